# A model pair: resolved, its tokenizers compared, its hooks verified. The demo's nulls start from its own models.
rule models:
    input:
        unpack(reads("{pair}models")),
    output:
        **makes("models", "{pair}models"),
    log:
        f"{R}/logs/{{pair}}models.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}models.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["models"],
        runtime=60,
    params:
        content_keys=keys("{pair}models"),
    script:
        "../workflow/scripts/models.py"


rule hooks:
    input:
        unpack(reads("{pair}hooks")),
    output:
        **makes("hooks", "{pair}hooks"),
    log:
        f"{R}/logs/{{pair}}hooks.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}hooks.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["hooks"],
        runtime=30,
        gpu=GPU,
    params:
        content_keys=keys("{pair}hooks"),
    script:
        "../workflow/scripts/hooks.py"
