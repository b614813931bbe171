# Crosscoders trained elsewhere, read into the same artifact that training makes; and ours in the paper's library's form.
if GRAPH.published:

    rule published:
        input:
            unpack(reads("crosscoders/{name}")),
        output:
            **makes("published", "crosscoders/{name}"),
        log:
            f"{R}/logs/crosscoders/{{name}}.log",
        benchmark:
            f"{R}/benchmarks/crosscoders/{{name}}.tsv"
        wildcard_constraints:
            name="|".join(GRAPH.published),
        conda:
            "../envs/tunediff.yaml"
        threads: 2
        resources:
            mem_mb=MEMORY["dictionary"],
            runtime=60,
        params:
            content_keys=keys("crosscoders/{name}"),
            settings=lambda wildcards: GRAPH.published[wildcards.name],
        script:
            "../workflow/scripts/import_crosscoder.py"


# Only on request: snakemake results/exports/NAME. Nothing is uploaded; `tunediff export --push-to` does that.
rule export_crosscoder:
    input:
        crosscoder=[ancient(f"{R}/crosscoders/{{name}}")],
        manifest=ancient(f"{R}/crosscoders/{{name}}.json"),
    output:
        store=directory(f"{R}/exports/{{name}}"),
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
        content_keys=lambda wildcards: {
            "own": "",
            f"{R}/crosscoders/{wildcards.name}": GRAPH.artifacts[f"crosscoders/{wildcards.name}"].key,
        },
    script:
        "../workflow/scripts/export_crosscoder.py"
