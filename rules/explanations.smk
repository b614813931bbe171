# Explanations of latents, what judges make of them, and their scores. Replies of a language model are kept in
# results/replies, which no rule owns: a job that is run again pays for none of them twice.
rule explain:
    input:
        unpack(reads("explanations/{name}")),
    output:
        **makes("explanations", "explanations/{name}"),
    log:
        f"{R}/logs/explanations/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/explanations/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=MEMORY["explanations"],
        runtime=1440,
        gpu=GPU,
    params:
        content_keys=keys("explanations/{name}"),
    script:
        "../workflow/scripts/explain.py"


rule judge:
    input:
        unpack(reads("judgements/{name}")),
    output:
        **makes("judgements", "judgements/{name}"),
    log:
        f"{R}/logs/judgements/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/judgements/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=MEMORY["explanations"],
        runtime=2880,
        gpu=GPU if (config["explanations"]["model"] or {}).get("from") == "local" else 0,
    params:
        content_keys=keys("judgements/{name}"),
    script:
        "../workflow/scripts/judge.py"


rule explanation_scores:
    input:
        unpack(reads("explanation_scores/scores")),
    output:
        **makes("explanation_scores", "explanation_scores/scores"),
    log:
        f"{R}/logs/explanation_scores/scores.log",
    benchmark:
        f"{R}/benchmarks/explanation_scores/scores.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        content_keys=keys("explanation_scores/scores"),
    script:
        "../workflow/scripts/explanation_scores.py"
