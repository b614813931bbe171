"""Collect the conversations of the KL experiment; the chat model answers, unless answers are given."""

from tunediff.config.settings import ConversationSettings
from tunediff.data.conversations import build_conversations
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    models, settings = work.config["models"], dict(work.config["conversations"])
    source = settings.pop("source")
    build_conversations(
        source,
        work.open(load_pair, "models", models["layer"], models["dtype"]),
        ConversationSettings(**settings, ignore_first_tokens=models["ignore_first_tokens"]),
        work.config["seed"],
        work.device,
        work.out,
        key=work.own_key,
        shared_with=work.params.shared_with,
    )
