# The model pair: resolved, its tokenizers compared, its hooks verified.
rule models:
    output:
        store=directory(f"{R}/models"),
        manifest=f"{R}/models.json",
    log:
        f"{R}/logs/models.log",
    benchmark:
        f"{R}/benchmarks/models.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        key=KEYS["models"],
    script:
        "../workflow/scripts/models.py"


rule hooks:
    input:
        models=store("models"),
        manifest=f"{R}/models.json",
    output:
        f"{R}/hooks.json",
    log:
        f"{R}/logs/hooks.log",
    benchmark:
        f"{R}/benchmarks/hooks.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=MODEL_MB,
        runtime=30,
        gpu=GPU,
    params:
        key=KEYS["hooks"],
        models_key=KEYS["models"],
    script:
        "../workflow/scripts/hooks.py"
