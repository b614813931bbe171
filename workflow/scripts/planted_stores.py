"""Write the token and activation stores of one planted pair."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.planted import PlantedArm
from tunediff.config.settings import HarvestSettings
from tunediff.pipeline.job import job
from tunediff.validation.planted import plant, write_split

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, seed = snakemake.config, int(snakemake.wildcards.n)
planted = config["planted"]
with job(snakemake):
    pair = plant(PlantedArm(**planted["arms"][snakemake.wildcards.arm]), seed)
    layout, out = HarvestSettings(**config["activations"]), Path(snakemake.output.tokens).parent
    for split in ("train", "validation"):
        write_split(pair, split, planted[f"{split}_tokens"], layout, out, seed, key=snakemake.params.key)
