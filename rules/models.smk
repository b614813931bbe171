# A model pair: resolved, its tokenizers compared, its hooks verified. The demo's nulls start from its own models.
rule models:
    input:
        unpack(
            lambda wildcards: (
                {"own": store("models"), "manifest": f"{R}/models.json"}
                if wildcards.pair
                else {}
            )
        ),
    output:
        store=directory(f"{R}/{{pair}}models"),
        manifest=f"{R}/{{pair}}models.json",
    log:
        f"{R}/logs/{{pair}}models.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}models.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=MEMORY["models"],
        runtime=60,
    params:
        key=key("{pair}models"),
    script:
        "../workflow/scripts/models.py"


rule hooks:
    input:
        models=store("{pair}models"),
        manifest=f"{R}/{{pair}}models.json",
    output:
        f"{R}/{{pair}}hooks.json",
    log:
        f"{R}/logs/{{pair}}hooks.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}hooks.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=MEMORY["hooks"],
        runtime=30,
        gpu=GPU,
    params:
        key=key("{pair}hooks"),
        models_key=key("{pair}models"),
    script:
        "../workflow/scripts/hooks.py"
