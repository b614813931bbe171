# All dictionaries from one pass over the train activations. A finished one is kept under its own key in
# RESULTS/.work, so that only those whose settings changed are trained again.
if PLAN.trained:

    rule train:
        input:
            stores=[ancient(path) for path in parts("train", ".zarr")],
            manifests=parts("train", ".json"),
        output:
            stores=[directory(path) for path in each_trained("crosscoders/{name}")],
            manifests=each_trained("crosscoders/{name}.json"),
            histories=each_trained("crosscoders/{name}.history.parquet"),
        log:
            f"{R}/logs/train.log",
        benchmark:
            f"{R}/benchmarks/train.tsv"
        conda:
            "../envs/tunediff.yaml"
        threads: 8
        resources:
            mem_mb=TRAIN_MB,
            runtime=2880,
            gpu=GPU,
        params:
            dictionaries=PLAN.trained,
            own_keys={name: KEYS[f"crosscoders/{name}"] for name in PLAN.trained},
            activations_key=KEYS["activations/train/part-000"],
        script:
            "../workflow/scripts/train.py"
