# What is called chat-specific in the null pairs (config `nulls`), beside the run's own pair. Only on request:
# snakemake nulls
rule null_summary:
    input:
        pairs=[
            path
            for pair in PAIRS
            for pattern in ("latents/{name}.parquet", "evaluation/{name}.json")
            for path in each_trained(f"{pair}{pattern}")
        ],
        manifests=[
            path
            for pair in PAIRS
            for path in each_trained(f"{pair}latents/{{name}}.json")
        ],
    output:
        pdf=f"{R}/nulls/summary.pdf",
        png=report(
            f"{R}/nulls/summary.png",
            caption="../report/drawing.rst",
            category="Nulls",
            labels=labels_of("nulls/summary"),
        ),
        csv=f"{R}/nulls/summary.csv",
        manifest=f"{R}/nulls/summary.json",
    log:
        f"{R}/logs/nulls/summary.log",
    benchmark:
        f"{R}/benchmarks/nulls/summary.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=1500,
        runtime=15,
    params:
        key=KEYS["nulls/summary"],
        drawing="nulls/summary",
        about=about("nulls/summary"),
    script:
        "../workflow/scripts/draw.py"


rule nulls:
    input:
        f"{R}/nulls/summary.pdf",
