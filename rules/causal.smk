# The KL experiment: every intervention on every conversation, then means with intervals over conversations.
rule causal:
    input:
        models=store("models"),
        hooks=f"{R}/hooks.json",
        conversations=store("tokens/conversations.zarr"),
        conversations_manifest=f"{R}/tokens/conversations.json",
        crosscoders=[ancient(path) for path in each_dictionary("crosscoders/{name}")],
        crosscoder_manifests=each_dictionary("crosscoders/{name}.json"),
        latents=[ancient(path) for path in each_dictionary("latents/{name}.parquet")],
        latent_manifests=each_dictionary("latents/{name}.json"),
    output:
        store=f"{R}/causal/kl.parquet",
        manifest=f"{R}/causal/kl.json",
        sets=f"{R}/causal/sets.json",
    log:
        f"{R}/logs/causal.log",
    benchmark:
        f"{R}/benchmarks/causal.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=MEMORY["causal"],
        runtime=240,
        gpu=GPU,
    params:
        key=KEYS["causal/kl"],
        models_key=KEYS["models"],
        conversations_key=KEYS["tokens/conversations"],
        own_keys={name: KEYS[f"crosscoders/{name}"] for name in PLAN.dictionaries},
        latent_keys={name: KEYS[f"latents/{name}"] for name in PLAN.dictionaries},
    script:
        "../workflow/scripts/causal.py"


rule causal_summary:
    input:
        kl=store("causal/kl.parquet"),
        manifest=f"{R}/causal/kl.json",
    output:
        store=f"{R}/causal/summary.parquet",
        manifest=f"{R}/causal/summary.json",
    log:
        f"{R}/logs/causal_summary.log",
    benchmark:
        f"{R}/benchmarks/causal_summary.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        key=KEYS["causal/summary"],
        kl_key=KEYS["causal/kl"],
    script:
        "../workflow/scripts/causal_summary.py"
