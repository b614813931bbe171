# tunediff: what fine-tuning changed inside a language model. Run: snakemake --cores 8 results/figures/fig4.pdf
from snakemake.utils import min_version

min_version("9.27")


report: "report/workflow.rst"


if not workflow.overwrite_configfiles:  # a config given by --configfile replaces the demo, it is not merged into it

    configfile: "config/config.yaml"


include: "rules/common.smk"


if PLANTED:  # pairs of known latents instead of models

    include: "rules/planted.smk"
    include: "rules/crosscoders.smk"
    include: "rules/latents.smk"

else:

    include: "rules/models.smk"
    include: "rules/tokens.smk"
    include: "rules/activations.smk"
    include: "rules/crosscoders.smk"
    include: "rules/exchange.smk"
    include: "rules/latents.smk"
    include: "rules/evaluation.smk"
    include: "rules/explanations.smk"
    include: "rules/causal.smk"
    include: "rules/pairs.smk"


include: "rules/figures.smk"


rule all:
    default_target: True
    input:
        DRAWN,
