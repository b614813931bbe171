# Figures and tables: one file each in src/tunediff/report/{figures,tables}, which says what it reads; one script draws
# them all. Beside them, what the run shows in plain words.
DRAWINGS = drawings_of(GRAPH)
DRAWN = [f"{R}/{path}.{suffix}" for path in DRAWINGS if path != NULLS for suffix in ("pdf", "png", "csv")]


rule drawing:
    input:
        unpack(reads("{drawing}")),
    output:
        store=report(
            f"{R}/{{drawing}}.csv",
            caption="../report/numbers.rst",
            category="Numbers",
            labels=lambda wildcards: DRAWINGS[wildcards.drawing].labels,
        ),
        pdf=f"{R}/{{drawing}}.pdf",
        png=report(
            f"{R}/{{drawing}}.png",
            caption="../report/drawing.rst",
            category="Figures and tables",
            subcategory=lambda wildcards: DRAWINGS[wildcards.drawing].folder,
            labels=lambda wildcards: DRAWINGS[wildcards.drawing].labels,
        ),
        manifest=f"{R}/{{drawing}}.json",
    log:
        f"{R}/logs/{{drawing}}.log",
    benchmark:
        f"{R}/benchmarks/{{drawing}}.tsv"
    wildcard_constraints:
        drawing="|".join(DRAWINGS),
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=1500,
        runtime=15,
    params:
        content_keys=keys("{drawing}"),
        about=lambda wildcards: DRAWINGS[wildcards.drawing].about(config),
        nulls=GRAPH.nulls_key,
    script:
        "../workflow/scripts/draw.py"


if not PLANTED:

    rule summary:
        input:
            unpack(reads("summary")),
        output:
            store=report(f"{R}/summary.txt", caption="../report/summary.rst", category="Summary"),
            manifest=f"{R}/summary.json",
        log:
            f"{R}/logs/summary.log",
        benchmark:
            f"{R}/benchmarks/summary.tsv"
        conda:
            "../envs/tunediff.yaml"
        resources:
            mem_mb=2000,
            runtime=5,
        params:
            content_keys=keys("summary"),
            nulls=GRAPH.nulls_key,
        script:
            "../workflow/scripts/summary.py"

    # A folder that opens from the disk. It shows everything, so it is made last; of the nulls, what is there.
    rule report:
        input:
            unpack(reads("report")),
        output:
            store=report(
                directory(f"{R}/report"), htmlindex="index.html", caption="../report/report.rst", category="Report"
            ),
            manifest=f"{R}/report.json",
        log:
            f"{R}/logs/report.log",
        benchmark:
            f"{R}/benchmarks/report.tsv"
        conda:
            "../envs/tunediff.yaml"
        resources:
            mem_mb=MEMORY["report"],
            runtime=30,
        params:
            content_keys=keys("report"),
            nulls=GRAPH.nulls_key,
            nulls_examples=list(GRAPH.nulls_examples),
            artifacts={path: artifact.key for path, artifact in GRAPH.artifacts.items()},
        script:
            "../workflow/scripts/report.py"

    DRAWN += [f"{R}/report"]
    DRAWN += [f"{R}/summary.txt", f"{R}/concepts/concepts.parquet", f"{R}/losses/losses.parquet"]
    DRAWN += [f"{R}/examples/{name}.json" for name in GRAPH.dictionaries]


# What is called chat-specific in the null pairs (config `nulls`), beside the run's own pair. Only on request.
if NULLS in DRAWINGS:

    rule nulls:
        input:
            f"{R}/{NULLS}.pdf",
            [f"{R}/{path}.json" for pair in GRAPH.pairs for path in GRAPH.each("examples", GRAPH.trained, pair)],
