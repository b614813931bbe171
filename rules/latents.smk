# Per crosscoder: the latent table with Latent Scaling, the held-out metrics; over all: planted concepts.
rule latents:
    input:
        crosscoder=store("crosscoders/{name}"),
        crosscoder_manifest=f"{R}/crosscoders/{{name}}.json",
        train=[ancient(path) for path in parts("train", ".zarr")],
        train_manifests=parts("train", ".json"),
        validation=[ancient(path) for path in parts("validation", ".zarr")],
        validation_manifests=parts("validation", ".json"),
    output:
        store=f"{R}/latents/{{name}}.parquet",
        manifest=f"{R}/latents/{{name}}.json",
    log:
        f"{R}/logs/latents/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/latents/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=CROSSCODER_MB,
        runtime=240,
        gpu=GPU,
    params:
        key=key("latents/{name}"),
        crosscoder_key=key("crosscoders/{name}"),
        train_key=KEYS["activations/train/part-000"],
        validation_key=KEYS["activations/validation/part-000"],
    script:
        "../workflow/scripts/latents.py"


rule evaluation:
    input:
        models=store("models"),
        hooks=f"{R}/hooks.json",
        tokens=store("tokens/validation.zarr"),
        tokens_manifest=f"{R}/tokens/validation.json",
        crosscoder=store("crosscoders/{name}"),
        crosscoder_manifest=f"{R}/crosscoders/{{name}}.json",
        validation=[ancient(path) for path in parts("validation", ".zarr")],
        validation_manifests=parts("validation", ".json"),
    output:
        f"{R}/evaluation/{{name}}.json",
    log:
        f"{R}/logs/evaluation/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/evaluation/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=MODEL_MB + CROSSCODER_MB,
        runtime=240,
        gpu=GPU,
    params:
        key=key("evaluation/{name}"),
        models_key=KEYS["models"],
        tokens_key=KEYS["tokens/validation"],
        crosscoder_key=key("crosscoders/{name}"),
        validation_key=KEYS["activations/validation/part-000"],
    script:
        "../workflow/scripts/evaluation.py"


rule concepts:
    input:
        tokens=store("tokens/validation.zarr"),
        tokens_manifest=f"{R}/tokens/validation.json",
        validation=[ancient(path) for path in parts("validation", ".zarr")],
        validation_manifests=parts("validation", ".json"),
        crosscoders=[ancient(path) for path in each_dictionary("crosscoders/{name}")],
        crosscoder_manifests=each_dictionary("crosscoders/{name}.json"),
        latents=[ancient(path) for path in each_dictionary("latents/{name}.parquet")],
        latent_manifests=each_dictionary("latents/{name}.json"),
    output:
        store=f"{R}/concepts/concepts.parquet",
        manifest=f"{R}/concepts/concepts.json",
    log:
        f"{R}/logs/concepts.log",
    benchmark:
        f"{R}/benchmarks/concepts.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=CROSSCODER_MB,
        runtime=120,
        gpu=GPU,
    params:
        key=KEYS["concepts/concepts"],
        tokens_key=KEYS["tokens/validation"],
        validation_key=KEYS["activations/validation/part-000"],
        own_keys={name: KEYS[f"crosscoders/{name}"] for name in PLAN.dictionaries},
        latent_keys={name: KEYS[f"latents/{name}"] for name in PLAN.dictionaries},
    script:
        "../workflow/scripts/concepts.py"
