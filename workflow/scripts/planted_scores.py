"""Score the crosscoders of one planted pair against what was planted."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.planted import PlantedArm
from tunediff.config.settings import HarvestSettings
from tunediff.data.activations import ActivationStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job
from tunediff.validation.planted import plant, strengths
from tunediff.validation.truth import score_pair

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    config, (arm, number) = work.config, Path(work.wildcards.pair).parts
    planted, seed = config["planted"], int(number.removeprefix("seed"))
    pair, layout = plant(PlantedArm(**planted["arms"][arm]), seed), HarvestSettings(**config["activations"])
    tables = {name: LatentTable.read(path, key=key) for name, path, key in work.each("latents")}
    score_pair(
        pair,
        strengths(pair, "validation", planted["validation_tokens"], layout, seed),
        {
            name: (Crosscoder.load(path, work.device, key=key), tables[name])
            for name, path, key in work.each("crosscoders")
        },
        ActivationStore(work.paths("validation"), key=work.key("validation")),
        Path(snakemake.output.store),
        key=work.own_key,
    )
