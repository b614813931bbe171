"""Write what is called chat-specific in the nulls, beside the run's own pair."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tunediff.figures.nulls import draw
from tunediff.figures.style import Style, save
from tunediff.nulls import null_rates
from tunediff.workflow import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

read, config = snakemake.input, snakemake.config
pairs = {"": config["models"], **config["nulls"]}  # in this order in the input
with job(snakemake):
    style, each = Style(**config["figures"]), len(read.tables) // len(pairs)
    found = {}
    for i, pair in enumerate(pairs):
        own = slice(i * each, (i + 1) * each)
        tables = {Path(p).stem: pd.read_parquet(p) for p in read.tables[own]}
        metrics = {Path(p).stem: json.loads(Path(p).read_text(encoding="utf-8")) for p in read.metrics[own]}
        found[pair] = tables, metrics
    models = {pair: (Path(of["base"]).name, Path(of["chat"]).name) for pair, of in pairs.items()}
    save(*draw(null_rates(found), models, style), Path(snakemake.output.pdf).with_suffix(""), style)
