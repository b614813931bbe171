"""Collect the conversations of the KL experiment; the chat model answers, unless answers are given."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import ConversationSettings
from tunediff.data.conversations import build_conversations
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

models = snakemake.config["models"]
settings = dict(snakemake.config["conversations"])
source = settings.pop("source")
with job(snakemake):
    build_conversations(
        source,
        load_pair(Path(snakemake.input.models), models["layer"], models["dtype"], key=snakemake.params.models_key),
        ConversationSettings(**settings, ignore_first_tokens=models["ignore_first_tokens"]),
        snakemake.config["seed"],
        resolve_device(models["device"]),
        Path(snakemake.output.store),
        key=snakemake.params.key,
        shared_with=snakemake.params.shared_with,
    )
