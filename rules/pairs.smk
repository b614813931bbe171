# Pairs of latents: twins within a crosscoder, and the matches between the seeds of one.
rule twins:
    input:
        crosscoder=store("crosscoders/{name}"),
        crosscoder_manifest=f"{R}/crosscoders/{{name}}.json",
        latents=store("latents/{name}.parquet"),
        latents_manifest=f"{R}/latents/{{name}}.json",
        validation=[ancient(path) for path in parts("validation", ".zarr")],
        validation_manifests=parts("validation", ".json"),
    output:
        store=f"{R}/twins/{{name}}.parquet",
        manifest=f"{R}/twins/{{name}}.json",
    log:
        f"{R}/logs/twins/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/twins/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=MEMORY["latents"],
        runtime=120,
        gpu=GPU,
    params:
        key=key("twins/{name}"),
        crosscoder_key=key("crosscoders/{name}"),
        latents_key=key("latents/{name}"),
        validation_key=KEYS["activations/validation/part-000"],
    script:
        "../workflow/scripts/twin_pairs.py"


if PLAN.trained:

    rule seeds:
        input:
            crosscoders=[ancient(path) for path in each_trained("crosscoders/{name}")],
            crosscoder_manifests=each_trained("crosscoders/{name}.json"),
            latents=[ancient(path) for path in each_trained("latents/{name}.parquet")],
            latent_manifests=each_trained("latents/{name}.json"),
        output:
            store=f"{R}/seeds/matches.parquet",
            manifest=f"{R}/seeds/matches.json",
        log:
            f"{R}/logs/seeds.log",
        benchmark:
            f"{R}/benchmarks/seeds.tsv"
        conda:
            "../envs/tunediff.yaml"
        threads: 8
        resources:
            mem_mb=MEMORY["latents"],
            runtime=240,
            gpu=GPU,
        params:
            key=KEYS["seeds/matches"],
            dictionaries=PLAN.trained_seeds,
            own_keys={name: KEYS[f"crosscoders/{name}"] for name in PLAN.trained},
            latent_keys={name: KEYS[f"latents/{name}"] for name in PLAN.trained},
        script:
            "../workflow/scripts/seed_matches.py"
