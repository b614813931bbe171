"""Tokenise one split: exact budgets, masks and concept labels."""

from tunediff.data.sampling import tokenize_split
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    tokens, models, split = work.config["tokens"], work.config["models"], work.wildcards.split
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    tokenize_split(
        tokens["sources"],
        tokens["budgets"][split],
        split,
        pair.load_tokenizer(),
        tokens["max_length"],
        models["ignore_first_tokens"],
        work.config["seed"],
        work.out,
        key=work.own_key,
    )
