# The KL experiment: every intervention on every conversation, then means with intervals over conversations.
rule causal:
    input:
        unpack(reads("causal/kl")),
    output:
        **makes("causal", "causal/kl"),
    log:
        f"{R}/logs/causal/kl.log",
    benchmark:
        f"{R}/benchmarks/causal/kl.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["causal"],
        runtime=240,
        gpu=GPU,
    params:
        content_keys=keys("causal/kl"),
    script:
        "../workflow/scripts/causal.py"


rule causal_summary:
    input:
        unpack(reads("causal/summary")),
    output:
        **makes("causal_summary", "causal/summary"),
    log:
        f"{R}/logs/causal/summary.log",
    benchmark:
        f"{R}/benchmarks/causal/summary.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        content_keys=keys("causal/summary"),
    script:
        "../workflow/scripts/causal_summary.py"


# Steering: what both models answer while the direction of a latent is added to their residuals, beside controls.
rule steering:
    input:
        unpack(reads("steering/steering")),
    output:
        **makes("steering", "steering/steering"),
    log:
        f"{R}/logs/steering/steering.log",
    benchmark:
        f"{R}/benchmarks/steering/steering.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["steering"],
        runtime=240,
        gpu=GPU,
    params:
        content_keys=keys("steering/steering"),
    script:
        "../workflow/scripts/steering.py"
