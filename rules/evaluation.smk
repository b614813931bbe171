# Per crosscoder: the held-out metrics; over all: labelled concepts.
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
    threads: 8
    resources:
        mem_mb=MEMORY["evaluation"],
        runtime=240,
        gpu=GPU,
    params:
        content_keys=keys("{pair}evaluation/{name}"),
    script:
        "../workflow/scripts/evaluation.py"


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
    threads: 8
    resources:
        mem_mb=MEMORY["concepts"],
        runtime=120,
        gpu=GPU,
    params:
        content_keys=keys("concepts/concepts"),
    script:
        "../workflow/scripts/concepts.py"
