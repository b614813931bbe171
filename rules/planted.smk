# The planted benchmark (config/planted.yaml): per arm and seed, stores from known latents, then the ordinary training and
# latent tables on them, scored against the truth; one figure and one table over all.
ARMS = "|".join(config["planted"]["arms"])
PAIR = f"{R}/{{arm}}/seed{{n}}"


wildcard_constraints:
    arm=ARMS,
    n="[0-9]+",


def pair_key(pattern):
    """The content key of an artifact of one pair."""
    return lambda wildcards: KEYS[f"{wildcards.arm}/seed{wildcards.n}/{pattern}"]


def every_pair(pattern):
    """The pattern for every arm and seed."""
    return [f"{R}/{arm}/seed{n}/{pattern}" for arm, n in PLAN.runs]


rule planted_stores:
    output:
        tokens=directory(f"{PAIR}/tokens"),
        activations=directory(f"{PAIR}/activations"),
    log:
        f"{R}/logs/{{arm}}-seed{{n}}-stores.log",
    benchmark:
        f"{R}/benchmarks/{{arm}}-seed{{n}}-stores.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=MEMORY["stores"],
        runtime=20,
    params:
        key=pair_key("stores"),
    script:
        "../workflow/scripts/planted_stores.py"


rule planted_scores:
    input:
        tokens=f"{PAIR}/tokens",
        activations=f"{PAIR}/activations",
    output:
        scores=directory(f"{PAIR}/scores"),
        manifest=f"{PAIR}/scores.json",
        crosscoders=directory(f"{PAIR}/crosscoders"),
        latents=directory(f"{PAIR}/latents"),
    log:
        f"{R}/logs/{{arm}}-seed{{n}}-scores.log",
    benchmark:
        f"{R}/benchmarks/{{arm}}-seed{{n}}-scores.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=MEMORY["scores"],
        runtime=60,
        gpu=GPU,
    params:
        key=pair_key("scores"),
        stores_key=pair_key("stores"),
        dictionaries=lambda wildcards: PLAN.trained_in(wildcards.arm, int(wildcards.n)),
        own_keys=lambda wildcards: {
            f"{kind}/{name}": KEYS[f"{wildcards.arm}/seed{wildcards.n}/{kind}/{name}"]
            for kind in ("crosscoders", "latents")
            for name in PLAN.trained_in(wildcards.arm, int(wildcards.n))
        },
    script:
        "../workflow/scripts/planted_scores.py"


rule planted_figure:
    input:
        scores=every_pair("scores"),
        manifests=every_pair("scores.json"),
    output:
        pdf=f"{R}/figures/planted.pdf",
        png=report(
            f"{R}/figures/planted.png",
            caption="../report/drawing.rst",
            category="Figures",
            labels=labels_of("figures/planted"),
        ),
        csv=f"{R}/figures/planted.csv",
    log:
        f"{R}/logs/figures/planted.log",
    benchmark:
        f"{R}/benchmarks/figures/planted.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=1500,
        runtime=15,
    params:
        key=KEYS["figures/planted"],
        drawing="figures/planted",
        about=about("figures/planted"),
    script:
        "../workflow/scripts/draw.py"


rule planted_table:
    input:
        scores=every_pair("scores"),
        manifests=every_pair("scores.json"),
    output:
        pdf=f"{R}/tables/planted.pdf",
        png=report(
            f"{R}/tables/planted.png",
            caption="../report/drawing.rst",
            category="Tables",
            labels=labels_of("tables/planted"),
        ),
        csv=report(
            f"{R}/tables/planted.csv",
            caption="../report/drawing.rst",
            category="Tables",
            labels=labels_of("tables/planted"),
        ),
        all=f"{R}/tables/planted_all.csv",
    log:
        f"{R}/logs/tables/planted.log",
    benchmark:
        f"{R}/benchmarks/tables/planted.tsv"
    conda:
        "../envs/tunediff.yaml"
    resources:
        mem_mb=1500,
        runtime=15,
    params:
        key=KEYS["tables/planted"],
        drawing="tables/planted",
        about=about("tables/planted"),
    script:
        "../workflow/scripts/draw.py"
