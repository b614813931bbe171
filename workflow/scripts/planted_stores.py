"""Write the token and activation stores of one planted pair."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.planted import PlantedArm
from tunediff.config.settings import HarvestSettings
from tunediff.pipeline.job import job
from tunediff.validation.planted import plant, write_split

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    config, (arm, number) = work.config, Path(work.wildcards.pair).parts
    planted, seed = config["planted"], int(number.removeprefix("seed"))
    pair, layout = plant(PlantedArm(**planted["arms"][arm]), seed), HarvestSettings(**config["activations"])
    out = Path(config["results"]) / work.wildcards.pair
    for split in ("train", "validation"):
        write_split(pair, split, planted[f"{split}_tokens"], layout, out, seed, key=work.own_key)
