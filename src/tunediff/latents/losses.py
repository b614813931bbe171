"""Both models' losses, and the KL of their predictions, on documents that examples of chat-specific latents come from.

The models read whole documents as they stand in the token store, the base model with its replaced tokens. Rows are
positions: the KL is of the predictions made after the token there, the losses are of the token itself (method.md
section 11). Where the vocabularies differ in size, predictions are compared on the tokens that both have.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tunediff.data.tokens import TokenStore
from tunediff.errors import TunediffError
from tunediff.latents.evaluation import Padded, padded_documents
from tunediff.latents.examples import LOSSES, SILENT, Examples
from tunediff.latents.table import LatentTable
from tunediff.models.residual import LOGITS_AT_ONCE, ResidualModel, replace_tokens
from tunediff.pipeline.artifacts import provenance, write_frame
from tunediff.pipeline.progress import Progress


def chosen_latents(table: LatentTable, n: int) -> list[int]:
    """Return the `n` chat-specific latents of lowest `rank_sum`; where none is, the first latent of the ranking."""
    frame = table.frame
    specific = frame[frame["chat_specific"] & ~frame["dead"]].sort_values("rank_sum", kind="stable").head(n)
    return (specific if len(specific) else table.first(1))["latent"].tolist()


def documents_of(examples: Examples, latents: list[int]) -> set[int]:
    """Return the documents of the windows in which these latents fire."""
    frames = [examples.of("windows", latent, ["band", "document"]) for latent in latents]
    return {int(i) for frame in frames for i in frame.loc[~frame["band"].isin(SILENT), "document"]}


class Predictions(NamedTuple):
    """What two models predict, per token of some documents."""

    kl: Float[Tensor, "token"]  # KL(chat ‖ base) after the token, nats
    base: Float[Tensor, "token"]  # loss of the next token, nats; NaN for one that is outside the shared vocabulary
    chat: Float[Tensor, "token"]


def compared(base: Float[Tensor, "token vocab"], chat: Float[Tensor, "token vocab"], following: Tensor) -> Predictions:
    """Compare logits, in float32 and some at a time; `following` are the ids of the next tokens."""
    shared = min(base.shape[1], chat.shape[1])
    parts = []
    for rows in torch.arange(len(following), device=base.device).split(max(1, LOGITS_AT_ONCE // shared)):
        q, p = (logits[rows, :shared].float().log_softmax(-1) for logits in (base, chat))
        kl = (p.exp() * (p - q)).sum(-1, dtype=torch.float64)
        label = following[rows]
        known = label < shared
        at = torch.where(known, label, 0)[:, None]
        parts.append((kl, *(-each.gather(1, at)[:, 0].masked_fill(~known, torch.nan).double() for each in (q, p))))
    return Predictions(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _rows(
    models: tuple[ResidualModel, ResidualModel], batch: Padded, tokens: TokenStore, replacements: Mapping[int, int]
) -> pd.DataFrame:
    """Return a row per token of a batch of documents."""
    every = torch.arange(batch.token_id.shape[1], device=batch.token_id.device)
    logits = []
    for model, ids in zip(models, (replace_tokens(batch.token_id, replacements), batch.token_id), strict=True):
        residual = model.residual(ids, batch.attention_mask)
        logits.append(model.logits_from(residual, ids, batch.attention_mask, every))
    real = batch.attention_mask.bool()
    found = compared(logits[0][real], logits[1][real], batch.token_id.roll(-1, dims=1)[real])
    of = [tokens.document(i) for i in batch.documents]
    position = np.concatenate([np.arange(where.start, where.stop) for where in of])
    last = np.cumsum([where.stop - where.start for where in of]) - 1
    columns = {name: values.cpu().numpy() for name, values in found._asdict().items()}
    inner = np.ones(len(position), dtype=bool)
    inner[last] = False  # what follows the last token is not of the document
    broken = ~np.isfinite(columns["kl"])
    for name in ("base", "chat"):
        broken |= inner & np.isinf(columns[name])
    if broken.any():
        document = int(tokens.doc[position[broken][0]])
        raise TunediffError(
            f"losses: predictions on validation document {document} are not finite; write `models.dtype: float32`, or "
            "repair the model"
        )
    own = {}
    for name in ("base", "chat"):  # from the next token's loss to that of the token itself
        own[f"loss_{name}"] = np.roll(np.where(inner, columns[name], np.nan), 1)
    return pd.DataFrame({"position": position, "kl": columns["kl"], **own})


@torch.no_grad()
def build_losses(
    models: tuple[ResidualModel, ResidualModel],
    tokens: TokenStore,
    tables: Mapping[str, LatentTable],
    examples: Mapping[str, Examples],
    n_latents: int,
    out: Path,
    *,
    key: str,
    batch_size: int = 16,
    device: str = "cpu",
    replacements: Mapping[int, int] | None = None,
) -> pd.DataFrame:
    """Measure the losses on the documents of `n_latents` chat-specific latents per dictionary; write them at `out`.

    `models` are base and chat, with their upper halves. `TunediffError`: a prediction is not finite.
    """
    started = time.time()
    latents = {name: chosen_latents(table, n_latents) for name, table in tables.items()}
    documents = sorted(set().union(*(documents_of(examples[name], own) for name, own in latents.items())))
    parts = [pd.DataFrame({name: [] for name in LOSSES})]
    with Progress(len(documents), "losses", "doc") as bar:
        for batch in padded_documents(tokens, documents, batch_size, device):
            parts.append(_rows(models, batch, tokens, replacements or {}))
            bar.update(len(batch.documents))
    frame = pd.concat(parts[1:] or parts).sort_values("position", ignore_index=True).astype(LOSSES)
    means = {name: float(frame[name].mean()) if len(frame) else None for name in ("kl", "loss_base", "loss_chat")}
    facts = {"latents": latents, "documents": len(documents), "n_tokens": len(frame), "means": means, "unit": "nats"}
    write_frame(frame, out, "losses", key, facts, provenance(started, device))
    return frame
