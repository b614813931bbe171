"""Match the latents of every crosscoder with those of its other seeds."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.seeds import build_matches, directions
from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

params, read = snakemake.params, snakemake.input
device = resolve_device(snakemake.config["models"]["device"])
crosscoders = {Path(p).name: Path(p) for p in read.crosscoders}
latents = {Path(p).stem: Path(p) for p in read.latents}
with job(snakemake):
    build_matches(
        {
            name: {
                seed: directions(Crosscoder.load(crosscoders[own], device, key=params.own_keys[own]))
                for seed, own in seeds.items()
            }
            for name, seeds in params.dictionaries.items()
        },
        {
            name: {seed: LatentTable.read(latents[own], key=params.latent_keys[own]) for seed, own in seeds.items()}
            for name, seeds in params.dictionaries.items()
        },
        Path(snakemake.output.store),
        key=params.key,
    )
