"""Tokenise one split: exact budgets, masks and concept labels."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.data.sampling import tokenize_split
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    tokens, models, split = work.config["tokens"], work.config["models"], work.wildcards.split
    pair = load_pair(work.path("models"), models["layer"], models["dtype"], key=work.key("models"))
    tokenize_split(
        tokens["sources"],
        tokens["budgets"][split],
        split,
        pair.load_tokenizer(),
        tokens["max_length"],
        models["ignore_first_tokens"],
        work.config["seed"],
        Path(snakemake.output.store),
        key=work.own_key,
    )
