"""Weights of a model, read whole: nothing missing, nothing left over, nothing that is not finite."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers  # its models load when one is named: half a second here, not three
from torch import nn

from tunediff.config.derive import PICKLED, require_safetensors
from tunediff.errors import TunediffError
from tunediff.models.tokenizers import reading_error

SHOWN = 3  # names in a message


def _named(names: Collection[str]) -> str:
    first = sorted(names)[:SHOWN]
    return ", ".join(first) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check_finite(model: nn.Module, told: str) -> None:
    """Raise a `TunediffError` naming the weights of `model` that hold NaN or infinities; `told` names the model."""
    bad = []
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.element_size() > 1 and weight.numel():  # 8 bits: quantised
            least, most = torch.aminmax(weight.detach())  # one pass without a copy; NaN comes through
            if not bool(torch.isfinite(least) & torch.isfinite(most)):
                bad.append(name)
    if bad:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        raise TunediffError(
            f"{told}: weights are not finite in {dtype}: {_named(bad)}; give undamaged weights, or a `dtype` that "
            "holds them"
        )


def load_model(
    path: str | Path, dtype: torch.dtype, revision: str | None = None, *, told: str | None = None, **options: Any
) -> "transformers.PreTrainedModel":
    """Load a causal language model from a directory or the hub, its weights exactly those that its class has.

    Transformers fills what is missing at random. Weights that its class ties to others, or knows to do without, are not
    missing. `told` is how errors name the model, if not by its path; `options` go to `from_pretrained`.

    Raises
    ------
    TunediffError
        The model cannot be read, has pickled weights only, or a weight is missing, unexpected, of another shape, or not
        finite; the message names the weights.
    """
    told = told or str(path)
    if Path(path).is_dir():
        require_safetensors(Path(path), told)
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            revision=revision,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told below, with names
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # transformers, safetensors and torch raise all kinds for a damaged file
        if "file named model.safetensors" in str(error):
            raise TunediffError(f"{told}: {PICKLED}") from error
        raise reading_error("model", told, error) from error
    model, found = loaded
    other_shape = {f"{name} ({tuple(stored)}, not {tuple(own)})" for name, stored, own in found["mismatched_keys"]}
    for problem, names in (
        ("weights are missing", found["missing_keys"]),
        ("weights have another shape than config.json says", other_shape),
        (f"weights are unknown to {type(model).__name__}", found["unexpected_keys"]),
    ):
        if names:
            raise TunediffError(f"{told}: {problem}: {_named(names)}; fetch the model or save it again")
    check_finite(model, told)
    return model
