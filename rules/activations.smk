# Residuals of both models on the same ids. One job makes all parts of a pair, the models loaded once; each is finished in
# the work folder, where a job that was killed finds it again.
PARTS = [path for split in SPLITS for path in GRAPH.parts(split)]


rule activations:
    input:
        unpack(harvest_of(reads)),
    output:
        stores=[directory(f"{R}/{{pair}}{path}.zarr") for path in PARTS],
        manifests=[f"{R}/{{pair}}{path}.json" for path in PARTS],
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
        content_keys=harvest_of(keys),
        parts=lambda wildcards: GRAPH.harvested(wildcards.pair),
    script:
        "../workflow/scripts/activations.py"
