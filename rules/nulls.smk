# What is called chat-specific in pairs where nothing is (config `nulls`), beside the run's own pair. Only on request:
# snakemake nulls
def every_pair(pattern):
    """The pattern for every trained crosscoder of the run's own pair and of each null."""
    return [path for pair in PAIRS for path in each_trained(pair + pattern)]


rule null_summary:
    input:
        tables=every_pair("latents/{name}.parquet"),
        manifests=every_pair("latents/{name}.json"),
        metrics=every_pair("evaluation/{name}.json"),
    output:
        pdf=f"{R}/nulls/summary.pdf",
        png=f"{R}/nulls/summary.png",
        csv=f"{R}/nulls/summary.csv",
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
    script:
        "../workflow/scripts/nulls.py"


rule nulls:
    input:
        f"{R}/nulls/summary.pdf",
