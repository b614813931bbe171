# The planted benchmark (config/planted.yaml): per arm and seed a pair made from known latents, on which the ordinary
# training and latent tables run; then its score against the truth.
rule planted:
    input:
        unpack(reads(*GRAPH.stores("{pair}"))),
    output:
        stores=[directory(f"{R}/{path}.zarr") for path in GRAPH.stores("{pair}")],
        manifests=[f"{R}/{path}.json" for path in GRAPH.stores("{pair}")],
    log:
        f"{R}/logs/{{pair}}stores.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}stores.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=MEMORY["stores"],
        runtime=20,
    params:
        content_keys=keys("{pair}tokens/train"),
    script:
        "../workflow/scripts/planted_stores.py"


rule scores:
    input:
        unpack(reads("{pair}scores")),
    output:
        **makes("scores", "{pair}scores"),
    log:
        f"{R}/logs/{{pair}}scores.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}scores.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=MEMORY["latents"],
        runtime=60,
        gpu=GPU,
    params:
        content_keys=keys("{pair}scores"),
    script:
        "../workflow/scripts/planted_scores.py"
