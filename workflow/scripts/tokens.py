"""Tokenise one split: exact budgets, masks and concept labels."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.data.tokens import tokenize_split
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, split = snakemake.config, snakemake.wildcards.split
tokens, models = config["tokens"], config["models"]
with job(snakemake):
    pair = load_pair(Path(snakemake.input.models), models["layer"], models["dtype"], key=snakemake.params.models_key)
    tokenize_split(
        tokens["sources"],
        tokens["budgets"][split],
        split,
        pair.load_tokenizer(),
        tokens["max_length"],
        models["ignore_first_tokens"],
        config["seed"],
        Path(snakemake.output.store),
        key=snakemake.params.key,
    )
