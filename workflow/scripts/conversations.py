"""Collect the conversations of the KL experiment; the chat model answers, unless answers are given."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.config.settings import ConversationSettings
from tunediff.data.conversations import build_conversations
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    models, settings = work.config["models"], dict(work.config["conversations"])
    source = settings.pop("source")
    build_conversations(
        source,
        load_pair(work.path("models"), models["layer"], models["dtype"], key=work.key("models")),
        ConversationSettings(**settings, ignore_first_tokens=models["ignore_first_tokens"]),
        work.config["seed"],
        work.device,
        Path(snakemake.output.store),
        key=work.own_key,
        shared_with=work.params.shared_with,
    )
