# Crosscoders trained elsewhere, read into the same artifact that training makes; and ours in the paper's library's form.
if PLAN.published:

    rule import_crosscoder:
        input:
            models=store("models"),
            models_manifest=f"{R}/models.json",
            stores=lambda wildcards: (
                [ancient(path) for path in parts("train", ".zarr")]
                if PLAN.estimates_scale(wildcards.name)
                else []
            ),
            manifests=lambda wildcards: (
                parts("train", ".json") if PLAN.estimates_scale(wildcards.name) else []
            ),
        output:
            store=directory(f"{R}/crosscoders/{{name}}"),
            manifest=f"{R}/crosscoders/{{name}}.json",
        log:
            f"{R}/logs/crosscoders/{{name}}.log",
        benchmark:
            f"{R}/benchmarks/crosscoders/{{name}}.tsv"
        wildcard_constraints:
            name="|".join(PLAN.published),
        conda:
            "../envs/tunediff.yaml"
        threads: 2
        resources:
            mem_mb=MEMORY["dictionary"],
            runtime=60,
        params:
            key=key("crosscoders/{name}"),
            models_key=KEYS["models"],
            settings=lambda wildcards: PLAN.published[wildcards.name],
            activations_key=KEYS["activations/train/part-000"],
        script:
            "../workflow/scripts/import_crosscoder.py"


# Only on request: snakemake results/exports/NAME. Nothing is uploaded; `tunediff export --push-to` does that.
rule export_crosscoder:
    input:
        crosscoder=store("crosscoders/{name}"),
        manifest=f"{R}/crosscoders/{{name}}.json",
    output:
        directory(f"{R}/exports/{{name}}"),
    log:
        f"{R}/logs/exports/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/exports/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=MEMORY["dictionary"],
        runtime=30,
    params:
        crosscoder_key=key("crosscoders/{name}"),
    script:
        "../workflow/scripts/export_crosscoder.py"
