"""Dictionary kinds, one class per file, found by the `kind` of their config section.

A training object (here) and the inference object (`tunediff.dictionaries.crosscoder`) are different things: what a
kind needs only while it learns (k, μ, dead counters, the threshold's average) stays on this side.
"""

from importlib import import_module

from tunediff.config.dictionaries import CrosscoderSettings, DictionarySettings, dictionary_settings
from tunediff.dictionaries.base import Dictionary, StepResult
from tunediff.dictionaries.sharding import WHOLE, Shard


def _classes() -> dict[str, type[Dictionary]]:
    """Return the class of every kind that is trained, from the file of its name."""
    found = {}
    for kind, settings in CrosscoderSettings.kinds.items():
        if issubclass(settings, DictionarySettings):
            module = import_module(f"{__name__}.{kind}")
            found[kind] = next(own for own in vars(module).values() if getattr(own, "settings_type", None) is settings)
    return found


DICTIONARIES = _classes()


def build(
    settings: DictionarySettings, d_model: int, seed: int, steps: int = 0, warmup_steps: int = 0, shard: Shard = WHOLE
) -> Dictionary:
    """Make the training object of some settings; `steps` and `warmup_steps` are those of the run.

    `TunediffError`: a group of latents is smaller than the number of processes.
    """
    return DICTIONARIES[settings.kind](settings, d_model, seed, steps, warmup_steps, shard)


__all__ = ["DICTIONARIES", "Dictionary", "DictionarySettings", "StepResult", "build", "dictionary_settings"]
