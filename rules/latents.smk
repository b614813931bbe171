# Per crosscoder: the latent table with Latent Scaling, the held-out metrics; over all: labelled concepts.
rule latents:
    input:
        crosscoder=store("{pair}crosscoders/{name}"),
        crosscoder_manifest=f"{R}/{{pair}}crosscoders/{{name}}.json",
        train=[ancient(path) for path in parts("train", ".zarr", "{pair}")],
        train_manifests=parts("train", ".json", "{pair}"),
        validation=[ancient(path) for path in parts("validation", ".zarr", "{pair}")],
        validation_manifests=parts("validation", ".json", "{pair}"),
    output:
        store=f"{R}/{{pair}}latents/{{name}}.parquet",
        manifest=f"{R}/{{pair}}latents/{{name}}.json",
    log:
        f"{R}/logs/{{pair}}latents/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}latents/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=MEMORY["latents"],
        runtime=240,
        gpu=GPU,
    params:
        key=key("{pair}latents/{name}"),
        crosscoder_key=key("{pair}crosscoders/{name}"),
        train_key=key("{pair}activations/train/part-000"),
        validation_key=key("{pair}activations/validation/part-000"),
    script:
        "../workflow/scripts/latents.py"


rule evaluation:
    input:
        models=store("{pair}models"),
        hooks=f"{R}/{{pair}}hooks.json",
        tokens=store("tokens/validation.zarr"),
        tokens_manifest=f"{R}/tokens/validation.json",
        crosscoder=store("{pair}crosscoders/{name}"),
        crosscoder_manifest=f"{R}/{{pair}}crosscoders/{{name}}.json",
        validation=[ancient(path) for path in parts("validation", ".zarr", "{pair}")],
        validation_manifests=parts("validation", ".json", "{pair}"),
    output:
        f"{R}/{{pair}}evaluation/{{name}}.json",
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
        key=key("{pair}evaluation/{name}"),
        models_key=key("{pair}models"),
        tokens_key=KEYS["tokens/validation"],
        crosscoder_key=key("{pair}crosscoders/{name}"),
        validation_key=key("{pair}activations/validation/part-000"),
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
        mem_mb=MEMORY["concepts"],
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
