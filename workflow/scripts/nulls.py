"""Write what is called chat-specific in the nulls, beside the run's own pair."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job
from tunediff.report.figures.nulls import draw
from tunediff.report.style import Style, one_criterion, save
from tunediff.validation.nulls import model_name, null_kind, null_rates, seal_nulls

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

read, config = snakemake.input, snakemake.config
pairs = {"": config["models"], **config["nulls"]}  # in this order in the input
with job(snakemake):
    style, each = Style(**config["figures"]), len(read.tables) // len(pairs)
    found = {}
    for i, pair in enumerate(pairs):
        own = slice(i * each, (i + 1) * each)
        tables = {Path(p).stem: LatentTable.read(Path(p)) for p in read.tables[own]}
        metrics = {Path(p).stem: json.loads(Path(p).read_text(encoding="utf-8")) for p in read.metrics[own]}
        found[pair] = tables, metrics
    models = {pair: (model_name(of["base"]), model_name(of["chat"])) for pair, of in pairs.items()}
    rates = null_rates(found, {pair: null_kind(of) for pair, of in pairs.items() if pair})
    drawing = draw(rates, one_criterion(found[""][0]), models, style)
    save(*drawing, Path(snakemake.output.pdf).with_suffix(""), style)
    seal_nulls(Path(snakemake.output.csv), snakemake.params.key)
