"""Dictionary kinds, one class per file, found by the `kind` of their config section.

A training object (here) and the inference object (`tunediff.dictionaries.crosscoder`) are different things: what a
kind needs only while it learns (k, μ, dead counters, the threshold's average) stays on this side.
"""

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from tunediff.config.dictionaries import CrosscoderSettings, DictionarySettings
from tunediff.dictionaries.base import Dictionary, StepResult
from tunediff.errors import TunediffError


def _classes() -> dict[str, type[Dictionary]]:
    """Return the class of every kind that is trained, from the file of its name."""
    found = {}
    for kind, settings in CrosscoderSettings.kinds.items():
        if issubclass(settings, DictionarySettings):
            module = import_module(f"{__name__}.{kind}")
            found[kind] = next(own for own in vars(module).values() if getattr(own, "settings_type", None) is settings)
    return found


DICTIONARIES = _classes()


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


__all__ = ["DICTIONARIES", "Dictionary", "DictionarySettings", "StepResult", "build", "dictionary_settings"]
