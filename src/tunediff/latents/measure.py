"""Measures every latent of a crosscoder: norms, firing, Latent Scaling (method.md sections 3 and 4).

Latent Scaling is fitted on train tokens. One pass over validation tokens confirms it, and feeds all that is measured on
the same tokens: firing, what the dictionary reconstructs (`latents.held_out`), twins (`latents.twins`). BOS, ignored
tokens and massive activations are left out of both.
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
from tunediff.data.activations import ActivationBatch, ActivationStore
from tunediff.data.transfer import moved
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.sparse import SparseCode
from tunediff.errors import TunediffError
from tunediff.latents import held_out, scaling, twins
from tunediff.latents.criterion import Criterion
from tunediff.latents.passes import encoded_batches
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
        key = moved(source.astype(np.int64), latent.device)[token] * self.count.shape[1] + latent
        self.count.view(-1).scatter_add_(0, key, torch.ones_like(key))
        self.maximum.view(-1).scatter_reduce_(0, key, value.float(), "amax")
        on_template = moved(template, latent.device)[token]
        self.template_count.scatter_add_(0, latent, on_template.long())
        self.template_mass.scatter_add_(0, latent, torch.where(on_template, value, 0).double())


class Measured:
    """Latent Scaling's sums, the firing of every latent and the mean activation, of the batches added so far.

    `more` measures the same tokens for other ends.
    """

    def __init__(
        self,
        crosscoder: Crosscoder,
        sources: list[str],
        settings: LatentSettings,
        device: str,
        directions: Float[Tensor, "latent direction d_model"],
        more: tuple[held_out.HeldOut, twins.Collected] | None = None,
    ) -> None:
        self.crosscoder, self.directions, self.more = crosscoder, directions, more
        self.both = crosscoder.reconstructs == "models"
        self.sums = scaling.ScalingSums.zeros(settings.blocks, len(directions), directions.shape[1], device, self.both)
        self.firing = Firing(len(directions), len(sources), device)
        self._total = torch.zeros(2, crosscoder.d_model, dtype=torch.float64, device=device)
        self._targets = torch.empty(0, 4 if self.both else 2, crosscoder.d_model, device=device)

    def _with_reconstruction(
        self, x: Float[Tensor, "token model d_model"], code: SparseCode
    ) -> tuple[Float[Tensor, "token target d_model"], Tensor | None]:
        """Return what is projected, and what the code decodes to if anything asks for it.

        Of a dictionary of both models, activations and reconstruction lie in one block, which the next call overwrites:
        fresh memory costs more than the copy.
        """
        if not self.both:
            return x, self.crosscoder.decode(code) if self.more else None
        if len(self._targets) < len(x):
            self._targets = self._targets.new_empty(len(x), *self._targets.shape[1:])
        targets = self._targets[: len(x)]
        targets[:, :2], targets[:, 2:] = x, self.crosscoder.decode(code)
        return targets, targets[:, 2:]

    def add(self, batch: ActivationBatch, code: SparseCode) -> None:
        """Add a batch; on a GPU nothing waits."""
        x = batch.activations
        targets, reconstruction = self._with_reconstruction(x, code)
        block = moved(scaling.document_block(batch.doc, len(self.sums.table)), x.device)
        self.sums.add(code, targets, self.directions, block)
        self._total += x.sum(0, dtype=torch.float64)
        self.firing.add(code, batch.source, batch.template)
        if self.more is not None and reconstruction is not None:
            reconstructed, collected = self.more
            reconstructed.add(batch, code, reconstruction)
            collected.add(code)

    @property
    def mean(self) -> Float[Tensor, "model d_model"]:
        """Mean activation."""
        return self._total / max(1, self.firing.n_tokens.sum())

    def read(
        self, store: ActivationStore, settings: LatentSettings, device: str, name: str, limit: int | None = None
    ) -> "Measured":
        """Add a store, in one pass that `limit` stops after that many tokens.

        `name` is that of crosscoder and pass, for the progress bar and errors. `TunediffError`: sums are not finite.
        """
        for batch, code in encoded_batches(self.crosscoder, store, settings.batch_size, device, name, limit):
            self.add(batch, code)
        broken = (~self.sums.table.isfinite()).any(dim=2).any(dim=0).nonzero().flatten()
        if len(broken):
            raise TunediffError(
                f"{name}: Latent Scaling's sums of {len(broken)} latents, the first {int(broken[0])}, are not finite; "
                "delete the crosscoder and run snakemake again"
            )
        return self


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
    twin_settings: twins.TwinSettings | None = None,
) -> LatentTable:
    """Measure every latent of a crosscoder and write its table (kind `latents`) at `out`.

    Beside it lie the metrics of what the dictionary reconstructs (`held_out.Reconstruction`) and the twins among its
    latents (`twins.SCHEMA`).
    """
    started = time.time()
    sources = list(validation_store.sources)
    directions = scaling.scaling_directions(crosscoder)
    chat = directions[:, scaling.CHAT_DIRECTION]
    taxonomy = crosscoder.has_norm_taxonomy
    columns: dict[str, Any] = {"latent": np.arange(len(chat), dtype=np.int32)}
    norms = directions.double().norm(dim=-1).cpu().numpy()
    columns["norm_chat"], columns["norm_base"] = norms.T
    columns["norm_difference"] = columns["cosine"] = np.full(len(chat), np.nan)
    if taxonomy:
        largest = norms.max(axis=1)
        columns["norm_difference"] = 0.5 * (1 + np.nan_to_num(_share(norms[:, 0] - norms[:, 1], largest)))
        product = directions.double().prod(dim=1).sum(-1).cpu().numpy()
        columns["cosine"] = _share(product, norms.prod(axis=1))

    fit = Measured(crosscoder, sources, settings, device, directions)
    fit.read(train_store, settings, device, f"{out.stem} fit", settings.fit_tokens)
    train, fitted = fit.sums, fit.firing
    fired = (train.count.sum(0) > 0).cpu().numpy()
    borrowed = torch.from_numpy(scaling.shuffled_index(fired, settings.seed)).to(chat.device)
    control = torch.stack([scaling.random_directions(chat, settings.seed), chat[borrowed]], dim=1)
    controlled = torch.cat([directions, control], dim=1)
    alive = twins.Classes.of(classify(columns["norm_difference"], np.zeros(len(chat), dtype=bool)))
    collected = twins.Collected(np.sort(np.concatenate(alive)), len(chat), device)
    reconstructed = held_out.HeldOut(crosscoder, sources, device)
    confirm = Measured(crosscoder, sources, settings, device, controlled, (reconstructed, collected))
    confirm.read(validation_store, settings, device, f"{out.stem} confirm")
    validation, firing = confirm.sums, confirm.firing
    if not fitted.n_tokens.sum() or not firing.n_tokens.sum():
        raise TunediffError("latent table: no token to measure on; raise the token budgets of train and validation")

    count = firing.count.cpu().numpy()
    columns["dead"] = count.sum(axis=0) == 0
    if taxonomy:
        columns["class_name"] = classify(columns["norm_difference"], columns["dead"])
    else:
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
    centre = None if crosscoder.reconstructs == "models" else fit.mean
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
    controlled_terms, confirmed = scaling.direction_terms(crosscoder, controlled, centre), validation.total()
    for i, direction in enumerate(CONTROLS):
        values = scaling.betas(confirmed, controlled_terms, 2 + i)
        for target in BOUNDED_TARGETS:
            columns[f"nu_{target}_{direction}"] = _nu(values[target], confirmed.count[0] < settings.min_count)

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
    reconstruction = reconstructed.metrics(columns["dead"].mean(), out.stem)
    settings_of_twins = twin_settings or twins.TwinSettings(seed=settings.seed)
    pairs, about_twins = twins.twins(crosscoder, twins.Classes.of(columns["class_name"]), collected, settings_of_twins)
    facts = {
        "sources": sources,
        "settings": asdict(settings),
        "n_tokens_train": int(fitted.n_tokens.sum()),
        "n_tokens_validation": dict(zip(sources, firing.n_tokens.tolist(), strict=True)),
        "dead": reconstruction.dead,
        "classes": {name: int((frame["class_name"] == name).sum()) for name in classes},
        **{name: int(frame[name].sum()) for name in (*called, "reversed")},
        "controls": {name: {"passed": passed, "of": of} for name, (passed, of) in control_passes(table).items()},
        "criterion": criterion.as_dict(),
        "twins": about_twins,
    }
    with building(out) as partial:
        table.write(partial)
    with building(out.with_suffix(twins.SUFFIX)) as partial:
        pairs.to_parquet(partial, index=False)
    reconstruction.write(out)
    seal(out, "latents", key, facts, provenance(started, device), beside=(twins.SUFFIX, held_out.SUFFIX))
    return table
