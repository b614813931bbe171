"""Score the explanations of all dictionaries."""

from tunediff.explanations.scores import build_scores
from tunediff.explanations.tables import Explanations, read_judgements
from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job

with job(snakemake) as work:
    build_scores(
        work.open_each(Explanations.open, "explanations"),
        work.open_each(read_judgements, "judgements"),
        work.open_each(LatentTable.read, "latents"),
        work.out,
        key=work.own_key,
        seed=work.config["seed"],
    )
