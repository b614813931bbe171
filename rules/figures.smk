# Figures and table 1 read tables only; each figure has its own script and module, so a change redraws just that one.
LATENTS = {
    "tables": each_dictionary("latents/{name}.parquet"),
    "manifests": each_dictionary("latents/{name}.json"),
}
FIGURE_INPUTS = {
    "fig2": LATENTS,
    "fig3": LATENTS,
    "fig4": {"summary": f"{R}/causal/summary.parquet", "sets": f"{R}/causal/sets.json"},
    "training": {"histories": each_trained("crosscoders/{name}.history.parquet")},
}


rule figure:
    input:
        unpack(lambda wildcards: FIGURE_INPUTS[wildcards.figure]),
    output:
        pdf=f"{R}/figures/{{figure}}.pdf",
        png=f"{R}/figures/{{figure}}.png",
        csv=f"{R}/figures/{{figure}}.csv",
    log:
        f"{R}/logs/figures/{{figure}}.log",
    benchmark:
        f"{R}/benchmarks/figures/{{figure}}.tsv"
    wildcard_constraints:
        figure="|".join(FIGURE_INPUTS),
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=1500,
        runtime=15,
    params:
        key=key("figures/{figure}"),
    script:
        "../workflow/scripts/{wildcards.figure}.py"


rule table1:
    input:
        latents=each_dictionary("latents/{name}.parquet"),
        manifests=each_dictionary("latents/{name}.json"),
        metrics=each_dictionary("evaluation/{name}.json"),
    output:
        pdf=f"{R}/tables/table1.pdf",
        png=f"{R}/tables/table1.png",
        csv=f"{R}/tables/table1.csv",
    log:
        f"{R}/logs/tables/table1.log",
    benchmark:
        f"{R}/benchmarks/tables/table1.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=1500,
        runtime=15,
    params:
        key=KEYS["tables/table1"],
    script:
        "../workflow/scripts/table1.py"


rule summary:
    input:
        fig4=f"{R}/figures/fig4.pdf",
        kl=f"{R}/causal/summary.parquet",
        metrics=each_dictionary("evaluation/{name}.json"),
        latents=each_dictionary("latents/{name}.parquet"),
        manifests=each_dictionary("latents/{name}.json"),
        concepts=f"{R}/concepts/concepts.parquet",
    output:
        f"{R}/summary.txt",
    log:
        f"{R}/logs/summary.log",
    benchmark:
        f"{R}/benchmarks/summary.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        key=KEYS["summary"],
    script:
        "../workflow/scripts/summary.py"
