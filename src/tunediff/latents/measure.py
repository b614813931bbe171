"""Measures every latent of a crosscoder: norms, firing, Latent Scaling (method.md sections 3 and 4).

Latent Scaling is fitted on train tokens and confirmed on validation tokens; firing is measured on validation tokens.
BOS, ignored tokens and massive activations are left out of both.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tunediff.config.settings import LatentSettings
from tunediff.data.activations import ActivationStore, counted_batches
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.sparse import SparseCode
from tunediff.errors import TunediffError
from tunediff.latents import scaling
from tunediff.latents.criterion import Criterion
from tunediff.latents.table import (
    BOUNDED_TARGETS,
    CLASSES,
    CONTROLS,
    DIFFERENCE,
    MODELS,
    LatentTable,
    classify,
    control_passes,
    rank_sum,
)
from tunediff.pipeline.artifacts import building, provenance, seal


class Firing:
    """How often, how strongly and where each latent fires on validation tokens."""

    def __init__(self, n_latents: int, n_sources: int, device: str) -> None:
        shape = (n_sources, n_latents)
        self.count = torch.zeros(shape, dtype=torch.int64, device=device)
        self.maximum = torch.zeros(shape, dtype=torch.float32, device=device)
        self.template_count = torch.zeros(n_latents, dtype=torch.int64, device=device)
        self.template_mass = torch.zeros(n_latents, dtype=torch.float64, device=device)
        self.n_tokens = np.zeros(n_sources, dtype=np.int64)

    def add(self, code: SparseCode, source: NDArray, template: NDArray) -> None:
        """Add the nonzeros of one batch; `source` and `template` are per token of the batch."""
        self.n_tokens += np.bincount(source, minlength=len(self.n_tokens))
        token, latent, value, _ = code
        device = latent.device
        key = torch.from_numpy(source.astype(np.int64)).to(device)[token] * self.count.shape[1] + latent
        self.count.view(-1).scatter_add_(0, key, torch.ones_like(key))
        self.maximum.view(-1).scatter_reduce_(0, key, value.float(), "amax")
        on_template = torch.from_numpy(template).to(device)[token]
        self.template_count.scatter_add_(0, latent, on_template.long())
        self.template_mass.scatter_add_(0, latent, torch.where(on_template, value, 0).double())


def measure(
    crosscoder: Crosscoder,
    store: ActivationStore,
    settings: LatentSettings,
    device: str,
    name: str,
    directions: Tensor,
    limit: int | None = None,
) -> tuple[scaling.ScalingSums, Firing, Float[Tensor, "model d_model"]]:
    """Return Latent Scaling's sums, the firing of every latent and the mean activation, in one pass over a store.

    `limit` stops it after that many tokens. `name` is that of crosscoder and pass, for the progress bar and errors.
    `TunediffError`: the sums are not finite.
    """
    both = crosscoder.reconstructs == "models"
    sums = scaling.ScalingSums.zeros(settings.blocks, directions.shape[0], directions.shape[1], device, both)
    firing = Firing(directions.shape[0], len(store.sources), device)
    total = torch.zeros(2, crosscoder.d_model, dtype=torch.float64, device=device)
    for batch in counted_batches(store, settings.batch_size, device, name, limit):
        code = crosscoder.encode(batch.activations)
        block = torch.from_numpy(scaling.document_block(batch.doc, settings.blocks)).to(device)
        sums.add(code, batch.activations, crosscoder.decode(code) if both else None, directions, block)
        total += batch.activations.sum(0, dtype=torch.float64)
        firing.add(code, batch.source, batch.template)
    broken = (~sums.table.isfinite()).any(dim=2).any(dim=0).nonzero().flatten()
    if len(broken):
        raise TunediffError(
            f"{name}: Latent Scaling's sums of {len(broken)} latents, the first {int(broken[0])}, are not finite; "
            "delete the crosscoder and run snakemake again"
        )
    return sums, firing, total / max(1, firing.n_tokens.sum())


def _fit_columns(
    sums: scaling.ScalingSums, terms: scaling.DirectionTerms, min_count: int, suffix: str
) -> dict[str, NDArray]:
    """Return β, ν and the standard error of ν for every target; ν is NaN under `min_count` firings."""
    total = sums.total()
    rare = total.count[0] < min_count
    errors = scaling.nu_standard_error(sums, terms)
    columns = {}
    for target, beta in scaling.betas(total, terms).items():
        for m, model in enumerate(MODELS):
            columns[f"beta_{target}_{model}{suffix}"] = beta[0, :, m]
        columns[f"nu_{target}{suffix}"] = scaling.nu(beta[0]).masked_fill(rare, torch.nan)
        columns[f"nu_{target}_se{suffix}"] = errors[target].masked_fill(rare, torch.nan)
    return {name: column.cpu().numpy().astype(np.float32) for name, column in columns.items()}


def _nu(beta: Tensor, rare: Tensor, mirrored: bool = False) -> NDArray[np.float64]:
    return scaling.nu(beta[0], mirrored).masked_fill(rare, torch.nan).cpu().numpy()


def _share(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


@torch.no_grad()
def build_table(
    crosscoder: Crosscoder,
    train_store: ActivationStore,
    validation_store: ActivationStore,
    settings: LatentSettings,
    out: Path,
    *,
    key: str,
    device: str = "cpu",
) -> LatentTable:
    """Measure every latent of a crosscoder and write its table (kind `latents`) at `out`."""
    started = time.time()
    sources = list(validation_store.sources)
    directions = scaling.scaling_directions(crosscoder)
    chat = directions[:, scaling.CHAT_DIRECTION]
    train, fitted, mean = measure(
        crosscoder, train_store, settings, device, f"{out.stem} fit", directions, settings.fit_tokens
    )
    fired = (train.count.sum(0) > 0).cpu().numpy()
    borrowed = torch.from_numpy(scaling.shuffled_index(fired, settings.seed)).to(chat.device)
    control = torch.stack([scaling.random_directions(chat, settings.seed), chat[borrowed]], dim=1)
    controlled = torch.cat([directions, control], dim=1)
    validation, firing, _ = measure(crosscoder, validation_store, settings, device, f"{out.stem} confirm", controlled)
    if not fitted.n_tokens.sum() or not firing.n_tokens.sum():
        raise TunediffError("latent table: no token to measure on; raise the token budgets of train and validation")

    taxonomy = crosscoder.has_norm_taxonomy
    columns: dict[str, Any] = {"latent": np.arange(len(chat), dtype=np.int32)}
    norms = directions.double().norm(dim=-1).cpu().numpy()
    columns["norm_chat"], columns["norm_base"] = norms.T
    count = firing.count.cpu().numpy()
    columns["dead"] = count.sum(axis=0) == 0
    if taxonomy:
        largest = norms.max(axis=1)
        columns["norm_difference"] = 0.5 * (1 + np.nan_to_num(_share(norms[:, 0] - norms[:, 1], largest)))
        product = directions.double().prod(dim=1).sum(-1).cpu().numpy()
        columns["cosine"] = _share(product, norms.prod(axis=1))
        columns["class_name"] = classify(columns["norm_difference"], columns["dead"])
    else:
        columns["norm_difference"] = columns["cosine"] = np.full(len(chat), np.nan)
        columns["class_name"] = np.where(columns["dead"], "dead", DIFFERENCE)
    maximum = firing.maximum.cpu().numpy()
    for i, source in enumerate(sources):
        columns[f"frequency_{source}"] = count[i] / max(1, firing.n_tokens[i])
        columns[f"max_{source}"] = maximum[i]
    columns["frequency"] = count.sum(axis=0) / firing.n_tokens.sum()
    columns["max_activation"] = maximum.max(axis=0)
    columns["template_share"] = _share(firing.template_count.cpu().numpy(), count.sum(axis=0))
    mass = validation.activation_sum.sum(0).cpu().numpy()
    columns["template_share_mass"] = _share(firing.template_mass.cpu().numpy(), mass)

    columns["count_train"] = train.count.sum(0).long().cpu().numpy()
    columns["count_validation"] = count.sum(axis=0)
    centre = None if crosscoder.reconstructs == "models" else mean
    terms = scaling.direction_terms(crosscoder, directions, centre)
    columns |= _fit_columns(train, terms, settings.min_count, "")
    columns |= _fit_columns(validation, terms, settings.min_count, "_validation")
    rare = train.total().count[0] < settings.min_count
    intervals = scaling.bootstrap_nu(train, terms, settings.bootstrap_samples, settings.seed, BOUNDED_TARGETS)
    for target, interval in intervals.items():
        for end, values in interval._asdict().items():
            columns[f"nu_{target}_{end}"] = values.masked_fill(rare.cpu(), torch.nan).numpy()
    for target, beta in scaling.betas(train.total(), terms, scaling.BASE_DIRECTION).items():
        columns[f"nu_{target}_mirrored"] = _nu(beta, rare, mirrored=True)
    controlled_terms, held_out = scaling.direction_terms(crosscoder, controlled, centre), validation.total()
    for i, direction in enumerate(CONTROLS):
        values = scaling.betas(held_out, controlled_terms, 2 + i)
        for target in BOUNDED_TARGETS:
            columns[f"nu_{target}_{direction}"] = _nu(values[target], held_out.count[0] < settings.min_count)

    criterion = Criterion(settings.nu_reconstruction_below, settings.nu_error_below)
    fitted_nu = columns["nu_reconstruction"], columns["nu_error"]
    ranked_by = fitted_nu if taxonomy else (columns["nu_activation"],) * 2
    columns["rank_sum"] = rank_sum(*ranked_by, criterion)
    columns["chat_specific"] = criterion.chat_specific(*fitted_nu)
    for name, suffix in (("interval", "high"), ("validation", "validation")):
        as_well = criterion.chat_specific(columns[f"nu_reconstruction_{suffix}"], columns[f"nu_error_{suffix}"])
        columns[f"chat_specific_{name}"] = columns["chat_specific"] & as_well
    columns["reversed"] = criterion.reversed(*ranked_by)
    frame = pd.DataFrame(
        {
            name: pd.Series(columns[name], dtype="str" if dtype == "string" else dtype)
            for name, dtype in LatentTable.schema(sources).items()
        }
    )
    table = LatentTable(frame, sources, criterion)
    called = ("chat_specific", "chat_specific_interval", "chat_specific_validation")
    classes = CLASSES if taxonomy else (DIFFERENCE, "dead")
    facts = {
        "sources": sources,
        "settings": asdict(settings),
        "n_tokens_train": int(fitted.n_tokens.sum()),
        "n_tokens_validation": dict(zip(sources, firing.n_tokens.tolist(), strict=True)),
        "dead": f"no firing on the {int(firing.n_tokens.sum())} counted validation tokens",
        "classes": {name: int((frame["class_name"] == name).sum()) for name in classes},
        **{name: int(frame[name].sum()) for name in (*called, "reversed")},
        "controls": {name: {"passed": passed, "of": of} for name, (passed, of) in control_passes(table).items()},
        "criterion": criterion.as_dict(),
    }
    with building(out) as partial:
        table.write(partial)
    seal(out, "latents", key, facts, provenance(started, device))
    return table
