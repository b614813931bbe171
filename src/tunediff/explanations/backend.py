"""The language model of a config, and where its replies are kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tunediff.config.settings import EndpointModel, ExplanationSettings, LanguageModel
from tunediff.config.settings import LocalModel as LocalSettings
from tunediff.explanations.asking import Asker, Cache, Endpoint, LocalModel, answered
from tunediff.explanations.explain import Answered


def replies_path(results: Path, stage: str, name: str) -> Path:
    """Return where the replies of a stage about a dictionary are kept: outside of what rules own."""
    return results / "replies" / f"{stage}-{name}.jsonl"


def asker_of(own: Any, device: str, tokenizer: Any = None) -> Asker:
    """Return what asks the language model of a section; `tokenizer` counts tokens where the model's is out of reach."""
    made = LanguageModel.made(own)
    if isinstance(made, EndpointModel):
        how = made.parallel, made.timeout, made.attempts
        return Endpoint(made.url, made.key_variable, made.model, *how, tokenizer=tokenizer)
    assert isinstance(made, LocalSettings)
    return LocalModel(made.path, device, made.dtype, made.batch_size, revision=made.revision)


@contextmanager
def answering(
    settings: ExplanationSettings, stage: str, out: Path, device: str
) -> Iterator[tuple[str, Answered | None]]:
    """Yield the name of the language model and what answers requests to it; of none "" and None.

    `out` is the artifact of a dictionary, results/STAGE/NAME.
    """
    if settings.model is None:
        yield "", None
        return
    asker, name = asker_of(settings.model, device), out.name.split(".")[0]
    with Cache(replies_path(out.parent.parent, stage, name)) as cache:
        ask = partial(
            answered, asker=asker, cache=cache, max_tokens_total=settings.max_tokens_total, name=f"{name} {stage}"
        )
        yield asker.model, ask
