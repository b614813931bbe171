"""Match the latents of every crosscoder with those of its other seeds."""

from torch import Tensor

from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.seeds import build_matches, directions
from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job

with job(snakemake) as work:
    stores = {name: (path, key) for name, path, key in work.each("crosscoders")}
    tables, names = work.open_each(LatentTable.read, "latents"), work.params.dictionaries

    def rows(crosscoder: str) -> dict[int, Tensor]:
        """Return the directions of every seed."""
        own = {seed: stores[name] for seed, name in names[crosscoder].items()}
        return {seed: directions(Crosscoder.load(path, work.device, key=key)) for seed, (path, key) in own.items()}

    by_seed = {each: {seed: tables[name] for seed, name in own.items()} for each, own in names.items()}
    build_matches(by_seed, rows, work.out, key=work.own_key)
