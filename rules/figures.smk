# Figures and tables read tables only; each has its own script, so a change redraws just that one.
LATENTS = {
    "tables": each_dictionary("latents/{name}.parquet"),
    "manifests": each_dictionary("latents/{name}.json"),
}
METRICS = {"metrics": each_dictionary("evaluation/{name}.json")}
TWINS = {"twins": each_dictionary("twins/{name}.parquet")}
KL = {"summary": f"{R}/causal/summary.parquet"}


# The nulls run on request only (snakemake nulls). Table 1 and the summary print their counts where they have run before
# this start: this key is one of their parameters, so a start after the nulls makes these two again. It is no input of
# theirs: then every run would have the nulls' whole chain in its graph, and could start it.
NULLS_KEY = nulls_key()
HELD_OUT = {"validation": parts("validation", ".json")}
FIGURE_INPUTS = {
    "fig2": LATENTS,
    "fig3": LATENTS,
    "fig4": {**KL, "sets": f"{R}/causal/sets.json"},
    "fig4b": {**KL, "sets": f"{R}/causal/sets.json"},
    "template": LATENTS,
    "cosine": LATENTS,
    "twins": TWINS,
    "frequency": LATENTS,
    "detection": {"concepts": f"{R}/concepts/concepts.parquet"},
    "training": {"histories": each_trained("crosscoders/{name}.history.parquet")},
}
TABLE_INPUTS = {
    "table1": {**LATENTS, **METRICS, **HELD_OUT},
    "ranking": LATENTS,
    "published": {**LATENTS, **METRICS, **TWINS, **KL},
    "seeds": {**LATENTS, **METRICS, **KL, "matches": f"{R}/seeds/matches.parquet"},
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


rule table:
    input:
        unpack(lambda wildcards: TABLE_INPUTS[wildcards.table]),
    output:
        pdf=f"{R}/tables/{{table}}.pdf",
        png=f"{R}/tables/{{table}}.png",
        csv=f"{R}/tables/{{table}}.csv",
    log:
        f"{R}/logs/tables/{{table}}.log",
    benchmark:
        f"{R}/benchmarks/tables/{{table}}.tsv"
    wildcard_constraints:
        table="|".join(TABLE_INPUTS),
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=1500,
        runtime=15,
    params:
        key=key("tables/{table}"),
        nulls=lambda wildcards: NULLS_KEY if wildcards.table == "table1" else "",
    script:
        "../workflow/scripts/{wildcards.table}.py"


# Every figure and table of a run, and a page that lists them.
rule paper:
    input:
        figures=FIGURES,
        tables=TABLES,
    output:
        f"{R}/paper.txt",
    log:
        f"{R}/logs/paper.log",
    benchmark:
        f"{R}/benchmarks/paper.tsv"
    localrule: True
    conda:
        "../envs/tunediff.yaml"
    params:
        key=KEYS["paper"],
    script:
        "../workflow/scripts/paper.py"


rule summary:
    input:
        fig4=f"{R}/figures/fig4.pdf",
        kl=f"{R}/causal/summary.parquet",
        sets=f"{R}/causal/sets.json",
        metrics=each_dictionary("evaluation/{name}.json"),
        latents=each_dictionary("latents/{name}.parquet"),
        manifests=each_dictionary("latents/{name}.json"),
        crosscoders=each_dictionary("crosscoders/{name}.json"),
        concepts=f"{R}/concepts/concepts.parquet",
        train=parts("train", ".json"),
        validation=parts("validation", ".json"),
    output:
        f"{R}/summary.txt",
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
        key=KEYS["summary"],
        nulls=NULLS_KEY,
    script:
        "../workflow/scripts/summary.py"
