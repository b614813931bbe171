# Per crosscoder: the held-out metrics with the cross-entropy, and examples of what each latent fires on; over all: both models' losses on the
# documents of chat-specific latents, and labelled concepts.
rule evaluation:
    input:
        unpack(reads("{pair}evaluation/{name}")),
    output:
        **makes("evaluation", "{pair}evaluation/{name}"),
    log:
        f"{R}/logs/{{pair}}evaluation/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}evaluation/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["evaluation"],
        runtime=240,
        gpu=GPU,
    params:
        content_keys=keys("{pair}evaluation/{name}"),
    script:
        "../workflow/scripts/evaluation.py"


rule examples:
    input:
        unpack(reads("{pair}examples/{name}")),
    output:
        **makes("examples", "{pair}examples/{name}"),
    log:
        f"{R}/logs/{{pair}}examples/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}examples/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["examples"],
        runtime=240,
        gpu=GPU,
    params:
        content_keys=keys("{pair}examples/{name}"),
    script:
        "../workflow/scripts/examples.py"


rule losses:
    input:
        unpack(reads("losses/losses")),
    output:
        **makes("losses", "losses/losses"),
    log:
        f"{R}/logs/losses/losses.log",
    benchmark:
        f"{R}/benchmarks/losses/losses.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["losses"],
        runtime=240,
        gpu=GPU,
    params:
        content_keys=keys("losses/losses"),
    script:
        "../workflow/scripts/losses.py"


rule concepts:
    input:
        unpack(reads("concepts/concepts")),
    output:
        **makes("concepts", "concepts/concepts"),
    log:
        f"{R}/logs/concepts/concepts.log",
    benchmark:
        f"{R}/benchmarks/concepts/concepts.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["concepts"],
        runtime=120,
        gpu=GPU,
    params:
        content_keys=keys("concepts/concepts"),
    script:
        "../workflow/scripts/concepts.py"
