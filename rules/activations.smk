# Residuals of both models on the same ids. One job makes all parts of a pair, the models loaded once; each is finished in
# the work folder, where a job that was killed finds it again.
PARTS = [f"{{pair}}{path}" for split in SPLITS for path in GRAPH.parts(split)]


rule activations:
    input:
        unpack(reads(*PARTS)),
    output:
        stores=[directory(f"{R}/{path}.zarr") for path in PARTS],
        manifests=[f"{R}/{path}.json" for path in PARTS],
    log:
        f"{R}/logs/{{pair}}activations.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}activations.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: ALL_THREADS
    resources:
        mem_mb=MEMORY["activations"],
        runtime=1440,
        gpu=GPU,
    params:
        content_keys=keys(*PARTS),
        parts=lambda wildcards: GRAPH.harvested(wildcards.pair),
    script:
        "../workflow/scripts/activations.py"
