"""Match the latents of every crosscoder with those of its other seeds."""

from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.seeds import build_matches, directions
from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job

with job(snakemake) as work:
    dictionaries = {
        name: directions(Crosscoder.load(path, work.device, key=key)) for name, path, key in work.each("crosscoders")
    }
    tables = work.open_each(LatentTable.read, "latents")
    by_seed = work.params.dictionaries.items()
    build_matches(
        {name: {seed: dictionaries[own] for seed, own in seeds.items()} for name, seeds in by_seed},
        {name: {seed: tables[own] for seed, own in seeds.items()} for name, seeds in by_seed},
        work.out,
        key=work.own_key,
    )
