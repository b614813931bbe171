"""Dictionary kinds, one class per file, found by the `kind` of their config section.

A training object (here) and the inference object (`tunediff.dictionaries.crosscoder`) are different things: what a
kind needs only while it learns (k, μ, dead counters, the threshold's average) stays on this side.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tunediff.dictionaries.base import Dictionary, DictionarySettings, StepResult
from tunediff.dictionaries.batchtopk import BatchTopK
from tunediff.dictionaries.diff_sae import DiffSAE
from tunediff.dictionaries.l1 import L1
from tunediff.errors import TunediffError

DICTIONARIES: dict[str, type[Dictionary]] = {cls.kind: cls for cls in (L1, BatchTopK, DiffSAE)}


def dictionary_settings(section: Mapping[str, Any], name: str = "dictionary") -> DictionarySettings:
    """Return the checked settings of one config section; unknown and missing keys are errors that name the key."""
    kind = section.get("kind")
    if kind not in DICTIONARIES:
        raise TunediffError(f"{name}.kind: {kind!r} is not known; use one of {', '.join(DICTIONARIES)}")
    settings = DICTIONARIES[kind].settings_type
    known = [entry.name for entry in fields(settings)]
    values = {key: value for key, value in section.items() if key != "kind"}
    for key in values:
        if key not in known:
            raise TunediffError(f"{name}.{key}: not a setting of kind {kind}; use {', '.join(known)}")
    try:
        return settings(**values)
    except TypeError as error:
        raise TunediffError(f"{name}: {str(error).partition('__init__() ')[2]}; add the key to the config") from error


def build(settings: DictionarySettings, d_model: int, seed: int, steps: int = 0, warmup_steps: int = 0) -> Dictionary:
    """Make the training object of some settings; `steps` and `warmup_steps` are those of the run."""
    return DICTIONARIES[settings.kind](settings, d_model, seed, steps, warmup_steps)


__all__ = [
    "DICTIONARIES",
    "L1",
    "BatchTopK",
    "Dictionary",
    "DictionarySettings",
    "DiffSAE",
    "StepResult",
    "build",
    "dictionary_settings",
]
