# All dictionaries from one pass over the train activations. A finished one is kept under its own key in
# RESULTS/.work and published by its own job, so that only those whose settings changed are made again, and only what
# reads them.
if PLAN.trained:

    rule train:
        input:
            stores=[ancient(path) for path in parts("train", ".zarr", "{pair}")],
            manifests=parts("train", ".json", "{pair}"),
        output:
            f"{R}/{{pair}}crosscoders/trained.json",
        log:
            f"{R}/logs/{{pair}}train.log",
        benchmark:
            f"{R}/benchmarks/{{pair}}train.tsv"
        conda:
            "../envs/tunediff.yaml"
        threads: 8
        resources:
            mem_mb=MEMORY["train"],
            runtime=2880,
            gpu=GPU,
        params:
            dictionaries=PLAN.trained,
            own_keys=lambda wildcards: {
                name: KEYS[f"{wildcards.pair}crosscoders/{name}"]
                for name in PLAN.trained
            },
            activations_key=key("{pair}activations/train/part-000"),
        script:
            "../workflow/scripts/train.py"

    rule crosscoder:
        input:
            lambda wildcards: (
                []
                if kept(wildcards.pair, wildcards.name)
                else f"{R}/{wildcards.pair}crosscoders/trained.json"
            ),
        output:
            store=directory(f"{R}/{{pair}}crosscoders/{{name}}"),
            manifest=f"{R}/{{pair}}crosscoders/{{name}}.json",
            history=f"{R}/{{pair}}crosscoders/{{name}}.history.parquet",
        log:
            f"{R}/logs/{{pair}}crosscoders/{{name}}.log",
        benchmark:
            f"{R}/benchmarks/{{pair}}crosscoders/{{name}}.tsv"
        wildcard_constraints:
            name="|".join(PLAN.trained),
        conda:
            "../envs/tunediff.yaml"
        resources:
            mem_mb=1000,
            runtime=10,
        params:
            key=key("{pair}crosscoders/{name}"),
        script:
            "../workflow/scripts/crosscoder.py"
