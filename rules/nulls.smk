# What is called chat-specific in the null pairs (config `nulls`), beside the run's own pair. Only on request:
# snakemake nulls
rule null_summary:
    input:
        tables=[
            path
            for pair in PAIRS
            for path in each_trained(f"{pair}latents/{{name}}.parquet")
        ],
        manifests=[
            path
            for pair in PAIRS
            for path in each_trained(f"{pair}latents/{{name}}.json")
        ],
        metrics=[
            path
            for pair in PAIRS
            for path in each_trained(f"{pair}evaluation/{{name}}.json")
        ],
    output:
        pdf=f"{R}/nulls/summary.pdf",
        png=f"{R}/nulls/summary.png",
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
    script:
        "../workflow/scripts/nulls.py"


rule nulls:
    input:
        f"{R}/nulls/summary.pdf",
