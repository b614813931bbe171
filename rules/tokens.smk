# Text to token ids with masks: train and validation splits, and the conversations of the KL experiment.
rule tokens:
    input:
        models=store("models"),
        manifest=f"{R}/models.json",
    output:
        store=directory(f"{R}/tokens/{{split}}.zarr"),
        manifest=f"{R}/tokens/{{split}}.json",
    log:
        f"{R}/logs/tokens/{{split}}.log",
    benchmark:
        f"{R}/benchmarks/tokens/{{split}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 2
    resources:
        mem_mb=MEMORY["tokens"],
        runtime=720,
    params:
        key=key("tokens/{split}"),
        models_key=KEYS["models"],
    script:
        "../workflow/scripts/tokens.py"


rule conversations:
    input:
        models=store("models"),
        manifest=f"{R}/models.json",
    output:
        store=directory(f"{R}/tokens/conversations.zarr"),
        manifest=f"{R}/tokens/conversations.json",
    log:
        f"{R}/logs/tokens/conversations.log",
    benchmark:
        f"{R}/benchmarks/tokens/conversations.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=MEMORY["conversations"],
        runtime=240,
        gpu=GPU,
    params:
        key=KEYS["tokens/conversations"],
        models_key=KEYS["models"],
        shared_with=PLAN.conversations_shared_with,
    script:
        "../workflow/scripts/conversations.py"
