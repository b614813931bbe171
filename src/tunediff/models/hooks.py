"""The proof that residuals are read and replaced as stated."""

from typing import Any

import torch
from torch import Tensor

from tunediff.errors import TunediffError
from tunediff.models.residual import ResidualModel

# Largest tolerated difference, relative to the largest value compared: kernels may sum in another order when the
# number of rows changes, and bfloat16 keeps 8 bits of mantissa.
TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 5e-3}


def relative_difference(left: Tensor, right: Tensor) -> float:
    """Return the largest absolute difference over the largest absolute value."""
    left, right = left.double(), right.double()
    return float((left - right).abs().max() / right.abs().max().clamp_min(1e-12))


def verify_hooks(model: ResidualModel) -> dict[str, Any]:
    """Prove on a small random batch that the residual is read and replaced as stated.

    Checked, relative to the largest value: shapes; residual = ``hidden_states[layer + 1]``; logits continued from it =
    the model's; padding on the right changes no real position; a changed residual does change the logits.

    Raises
    ------
    TunediffError
        One of them does not hold.
    """
    ids = torch.randint(0, model.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0)).to(model.device)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    real = mask.bool()
    residual = model.residual(ids, mask)
    if residual.shape != (2, 24, model.d_model):
        raise TunediffError(f"{model.name}: block {model.layer} gives {tuple(residual.shape)}, not a residual stream")
    with torch.no_grad():
        whole = model.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    dtype = str(model.dtype).removeprefix("torch.")
    for what, values in (("residual stream is", residual[real]), ("logits are", whole.logits[real])):
        if not bool(torch.isfinite(values).all()):
            raise TunediffError(
                f"{model.name}: its {what} not finite in {dtype}, though its weights are; write another `models.dtype`"
            )
    positions = torch.tensor([0, 7, 14])
    continued = model.logits_from(residual, ids, mask, positions)
    changed = model.logits_from(1.5 * residual, ids, mask, positions)
    stream = whole.hidden_states[model.layer + 1]
    differences = {
        "residual_against_hidden_states": relative_difference(residual[real], stream[real]),
        "logits_from_own_residual": relative_difference(continued, whole.logits[:, positions.to(model.device)]),
        "right_padding": relative_difference(residual[1, :15], model.residual(ids[1:, :15])[0]),
    }
    tolerance = TOLERANCE[dtype]
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise TunediffError(
                f"{model.name}: hook check '{name}' failed at layer {model.layer} (relative difference "
                f"{difference:.2g}, tolerated {tolerance:g}); this architecture is not supported by this version"
            )
    effect = relative_difference(changed, continued)
    if not effect > 0:
        raise TunediffError(f"{model.name}: replacing the residual of block {model.layer} changes no logit")
    facts = {"layer": model.layer, "dtype": dtype, "tolerance": tolerance, "effect_of_scaled_residual": effect}
    return facts | differences
