# Figures and tables: one file each in src/tunediff/report/{figures,tables}, which says what it reads; one script draws
# them all. Beside them, what the run shows in plain words.
# The nulls run on request only (snakemake nulls). What reads their counts prints them where they have run before this
# start: this key is a parameter, so a start after the nulls makes it again. It is no input: then every run would have
# the nulls' whole chain in its graph, and could start it.
NULLS_KEY = nulls_key()
RESULTS = {
    "latents": each_dictionary("latents/{name}.parquet"),
    "evaluation": each_dictionary("evaluation/{name}.json"),
    "twins": each_dictionary("twins/{name}.parquet"),
    "kl": [f"{R}/causal/summary.parquet"],
    "sets": [f"{R}/causal/sets.json"],
    "histories": each_trained("crosscoders/{name}.history.parquet"),
    "concepts": [f"{R}/concepts/concepts.parquet"],
    "seeds": [f"{R}/seeds/matches.parquet"],
    "crosscoders": each_dictionary("crosscoders/{name}.json"),
    "activations_train": parts("train", ".json"),
    "activations_validation": parts("validation", ".json"),
}


def files_of(reads):
    """The files of all results that are read, by their name in the registry."""
    return {role: RESULTS[role] for role in reads if role in RESULTS}


def inputs_of(drawing):
    """The files that a drawing reads."""
    return files_of(drawing.reads)


def nulls_of(drawing):
    """The key of the nulls' counts for a drawing that prints them."""
    return NULLS_KEY if "nulls" in drawing.reads else None


rule figure:
    input:
        unpack(lambda wildcards: inputs_of(DRAWINGS[f"figures/{wildcards.figure}"])),
    output:
        pdf=f"{R}/figures/{{figure}}.pdf",
        png=report(
            f"{R}/figures/{{figure}}.png",
            caption="../report/drawing.rst",
            category="Figures",
            labels=labels_of("figures/{figure}"),
        ),
        csv=f"{R}/figures/{{figure}}.csv",
    log:
        f"{R}/logs/figures/{{figure}}.log",
    benchmark:
        f"{R}/benchmarks/figures/{{figure}}.tsv"
    wildcard_constraints:
        figure="|".join(names_in("figures")),
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=1500,
        runtime=15,
    params:
        key=key("figures/{figure}"),
        drawing="figures/{figure}",
        about=about("figures/{figure}"),
        nulls=lambda wildcards: nulls_of(DRAWINGS[f"figures/{wildcards.figure}"]),
    script:
        "../workflow/scripts/draw.py"


rule table:
    input:
        unpack(lambda wildcards: inputs_of(DRAWINGS[f"tables/{wildcards.table}"])),
    output:
        pdf=f"{R}/tables/{{table}}.pdf",
        png=report(
            f"{R}/tables/{{table}}.png",
            caption="../report/drawing.rst",
            category="Tables",
            labels=labels_of("tables/{table}"),
        ),
        csv=report(
            f"{R}/tables/{{table}}.csv",
            caption="../report/drawing.rst",
            category="Tables",
            labels=labels_of("tables/{table}"),
        ),
    log:
        f"{R}/logs/tables/{{table}}.log",
    benchmark:
        f"{R}/benchmarks/tables/{{table}}.tsv"
    wildcard_constraints:
        table="|".join(names_in("tables")),
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=1500,
        runtime=15,
    params:
        key=key("tables/{table}"),
        drawing="tables/{table}",
        about=about("tables/{table}"),
        nulls=lambda wildcards: nulls_of(DRAWINGS[f"tables/{wildcards.table}"]),
    script:
        "../workflow/scripts/draw.py"


rule summary:
    input:
        **files_of(SUMMARY_READS),
        fig4=f"{R}/figures/fig4.pdf",
    output:
        report(f"{R}/summary.txt", caption="../report/summary.rst", category="Summary"),
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
