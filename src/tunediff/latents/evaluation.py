"""Held-out metrics of one crosscoder (method.md section 2, "Metrics"); nothing here changes training state.

The pass over validation tokens that measures the latents makes those of reconstruction (`latents.held_out`). Here the
models run, for the cross-entropy recovered. BOS, ignored tokens and massive activations are left out of every metric.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tunediff.config.settings import EvaluationSettings
from tunediff.data.masks import LEFT_OUT
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.latents.held_out import Reconstruction, metric
from tunediff.models.residual import LOGITS_AT_ONCE, ResidualModel, replace_tokens
from tunediff.pipeline.artifacts import provenance, write_json
from tunediff.pipeline.progress import Progress

MODELS = ("base", "chat")


class Padded(NamedTuple):
    """Documents of similar length, padded on the right."""

    documents: list[int]
    token_id: Int[Tensor, "document position"]
    attention_mask: Int[Tensor, "document position"]
    counted: Bool[Tensor, "document position"]  # neither padding nor BOS nor ignored
    mask: UInt8[np.ndarray, "document position"]  # bits of `Mask`, none of padding

    def where(self, of: Callable[[NDArray[np.uint8]], NDArray[np.bool_]]) -> Bool[Tensor, "document position"]:
        """Return the positions that a function finds in the mask of one document."""
        return torch.from_numpy(np.stack([of(mask) for mask in self.mask])).to(self.token_id.device)


def padded_documents(tokens: TokenStore, documents: Iterable[int], per_batch: int, device: str) -> Iterator[Padded]:
    """Yield documents in batches of similar length."""
    lengths = {i: tokens.document(i).stop - tokens.document(i).start for i in documents}
    order = sorted(lengths, key=lambda i: (lengths[i], i))
    for start in range(0, len(order), per_batch):
        group = order[start : start + per_batch]
        shape = len(group), max(lengths[i] for i in group)
        token_id, attention, mask = (np.zeros(shape, dtype) for dtype in (np.int64, np.int64, np.uint8))
        for row, i in enumerate(group):
            token_id[row, : lengths[i]] = tokens.token_id[tokens.document(i)]
            mask[row, : lengths[i]] = tokens.mask[tokens.document(i)]
            attention[row, : lengths[i]] = 1
        counted = (attention == 1) & ((mask & int(LEFT_OUT)) == 0)
        ids, attended, kept = (torch.from_numpy(array).to(device) for array in (token_id, attention, counted))
        yield Padded(group, ids, attended, kept, mask)


@dataclass
class CrossEntropy:
    """Next-token losses summed over counted positions, in nats, of one model."""

    n: int = 0
    loss: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("clean", "spliced", "ablated"), 0.0))

    def means(self) -> dict[str, float]:
        """Return the mean losses and recovered = (ablated − spliced) / (ablated − clean)."""
        clean, spliced, ablated = (self.loss[name] / max(1, self.n) for name in ("clean", "spliced", "ablated"))
        gap = ablated - clean
        recovered = (ablated - spliced) / gap if gap else float("nan")
        return {"clean": clean, "spliced": spliced, "ablated": ablated, "recovered": recovered}


def _require_finite(values: Tensor, position: Tensor, batch: Padded, what: str) -> None:
    """Raise an error naming the documents unless the values at `position` (document, position) are all finite."""
    finite = values.isfinite()
    if finite.ndim > 1:
        finite = finite.all(dim=1)
    if not finite.all():
        rows = position.nonzero()[~finite, 0].unique().tolist()
        documents = ", ".join(str(i) for i in sorted(batch.documents[row] for row in rows))
        raise TunediffError(
            f"evaluation: {what} not finite in validation documents {documents}; write `models.dtype: float32`, or "
            "repair the model"
        )


def _loss_sum(model: ResidualModel, residual: Tensor, batch: Padded, scored: Tensor, what: str) -> float:
    """Return the summed next-token loss at the scored positions, with logits only where some document is scored.

    `what` names model and edit in the error that a loss which is not finite is.
    """
    positions = scored.any(0).nonzero().flatten()
    logits = model.logits_from(residual, batch.token_id, batch.attention_mask, positions)
    chosen = scored[:, positions]
    labels = batch.token_id[:, positions + 1][chosen]
    rows = logits[chosen]
    step = max(1, LOGITS_AT_ONCE // rows.shape[1])
    parts = zip(rows.split(step), labels.split(step), strict=True)
    loss = torch.cat([functional.cross_entropy(row.float(), label, reduction="none").double() for row, label in parts])
    _require_finite(loss, scored, batch, f"{what}: losses are")
    return loss.sum().item()


@torch.no_grad()
def cross_entropy(
    crosscoder: Crosscoder,
    models: tuple[ResidualModel, ResidualModel],
    tokens: TokenStore,
    means: Float[Tensor, "output d_model"],
    settings: EvaluationSettings,
    device: str,
    replacements: Mapping[int, int] | None = None,
) -> dict[tuple[str, str], CrossEntropy]:
    """Return the loss of each model (and corpus) with h, with ĥ in its place, and with the validation mean there.

    The block output is replaced at every counted position; scored are the counted positions that have a next token.
    Massive activations, which the crosscoder does not cover, are not counted: like BOS they keep their output.
    `replacements` maps token ids that the base model is fed otherwise (see `models.replace_tokens`). `TunediffError`: a
    residual stream or a loss is not finite.
    """
    sources = list(tokens.sources)
    chosen = [np.flatnonzero(tokens.doc_source == i)[: settings.documents] for i in range(len(sources))]
    results = {(model, source): CrossEntropy() for model in MODELS for source in sources}
    with Progress(sum(map(len, chosen)), "splice", "doc") as bar:
        for source, documents in zip(sources, chosen, strict=True):
            for batch in padded_documents(tokens, documents.tolist(), settings.batch_size, device):
                bar.update(len(batch.documents))
                fed = (replace_tokens(batch.token_id, replacements or {}), batch.token_id)
                residuals = [model.residual(ids, batch.attention_mask) for model, ids in zip(models, fed, strict=True)]
                attended = batch.attention_mask.bool()
                for name, residual in zip(MODELS, residuals, strict=True):
                    _require_finite(residual[attended], attended, batch, f"{name} model: the residual stream is")
                pair = torch.stack([residual[batch.counted].float() for residual in residuals], dim=1)
                covered = crosscoder.covers(pair)
                counted = batch.counted.masked_scatter(batch.counted, covered)
                scored = counted & functional.pad(attended[:, 1:], (0, 1))
                if not scored.any():
                    continue
                reconstruction = crosscoder.decode(crosscoder.encode(pair[covered]))
                for m, (model, residual) in enumerate(zip(models, residuals, strict=True)):
                    result, what = results[MODELS[m], source], f"{MODELS[m]} model"
                    result.n += int(scored.sum())
                    result.loss["clean"] += _loss_sum(model, residual, batch, scored, what)
                    for name, value in (("spliced", reconstruction[:, m]), ("ablated", means[m])):
                        edited = residual.clone()
                        edited[counted] = value.to(edited.dtype)
                        result.loss[name] += _loss_sum(model, edited, batch, scored, f"{what}, {name}")
    return results


def build_evaluation(
    crosscoder: Crosscoder,
    held_out: Reconstruction,
    tokens: TokenStore,
    models: tuple[ResidualModel, ResidualModel] | None,
    settings: EvaluationSettings,
    out: Path,
    *,
    key: str,
    device: str = "cpu",
    replacements: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """Add the cross-entropy to `held_out`; write all metrics at `out`, in long form, with their content key, as JSON.

    `models` (base, chat, with their upper halves) may be left out. A dictionary of the difference has FVE of that alone
    and no cross-entropy: it puts nothing in a model's place.
    """
    started = time.time()
    metrics, left_out = [*held_out.metrics], {}
    if crosscoder.reconstructs != "models":
        left_out["cross_entropy"] = "no reconstruction of either model: the dictionary is of their difference"
    elif models is not None:
        mean = torch.tensor(held_out.mean, dtype=torch.float64, device=device)
        losses = cross_entropy(crosscoder, models, tokens, mean, settings, device, replacements)
        for model in MODELS:
            parts = {source: losses[model, source] for source in tokens.sources}
            whole = CrossEntropy(sum(p.n for p in parts.values()))
            whole.loss = {loss: sum(p.loss[loss] for p in parts.values()) for loss in whole.loss}
            for subset, part in {"all": whole, **parts}.items():
                for loss, value in part.means().items():
                    if part.n:
                        metrics.append(metric(f"cross_entropy_{loss}", model, subset, value))
    evaluated = {
        "key": key,
        "metrics": metrics,
        "n_tokens": held_out.n_tokens,
        "dead": held_out.dead,
        "left_out": left_out,
        "dict_size": crosscoder.dict_size,
        "settings": asdict(settings),
    }
    write_json(out.with_suffix(".provenance.json"), provenance(started, device))
    write_json(out, evaluated)
    return evaluated
