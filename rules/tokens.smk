# Text to token ids with masks: train and validation splits, and the conversations of the KL experiment.
rule tokens:
    input:
        unpack(reads("tokens/{split}")),
    output:
        **makes("tokens", "tokens/{split}"),
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
        content_keys=keys("tokens/{split}"),
    script:
        "../workflow/scripts/tokens.py"


rule conversations:
    input:
        unpack(reads("tokens/conversations")),
    output:
        **makes("conversations", "tokens/conversations"),
    log:
        f"{R}/logs/tokens/conversations.log",
    benchmark:
        f"{R}/benchmarks/tokens/conversations.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["conversations"],
        runtime=240,
        gpu=GPU,
    params:
        content_keys=keys("tokens/conversations"),
        shared_with=GRAPH.conversations_shared_with,
    script:
        "../workflow/scripts/conversations.py"
