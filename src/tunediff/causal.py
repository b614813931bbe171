"""The KL experiment (method.md section 5, Figure 4): what each edit of the base activations restores of the chat model.

The chat model's upper half continues from an edited residual; KL(p_chat ‖ p_edited) is measured in nats over the full
vocabulary at the response positions. Models run once per batch, every crosscoder encodes once, and each intervention
costs one sparse decode of a filtered code and one upper half. Positions that no metric counts (BOS, ignored) and
padding carry no edit: there an intervention keeps the activation it starts from (h^base; h^chat for `error`).
"""

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tunediff.artifacts import building, provenance, seal, write_text
from tunediff.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.latents import LatentTable
from tunediff.models import LOGITS_AT_ONCE, ResidualModel, replace_tokens
from tunediff.sparse import SparseCode, sparse_decode
from tunediff.statistics import percentile_interval, resample_weights
from tunediff.tokens import LEFT_OUT, Mask, TokenStore, first_response_positions, response_positions

SHARED_INTERVENTIONS = ("none", "template", "chat")  # no crosscoder is involved
HALVES = ("norm_difference_best", "norm_difference_worst", "latent_scaling_best", "latent_scaling_worst")
_KL_DTYPES = {"n_all": "int32", "n_first": "int32", "conversation": "int32"}


@dataclass(frozen=True)
class CausalSettings:
    """Settings of the KL experiment."""

    reference: str = "l1"  # crosscoder whose number of chat-only latents is the size of everyone's effective set
    set_size: int | None = None  # that size as a number instead
    random_sets: int = 5  # control sets of random latents, each as large as a half
    include_bias: bool = False  # whether `all` also adds b^chat − b^base (the paper does not)
    batch_size: int = 16  # conversations per forward pass
    seed: int = 0  # of the random sets
    bootstrap_samples: int = 2000  # resamples of conversations in the summary


class LatentSets(NamedTuple):
    """The effective chat-only set of one crosscoder and what is drawn from it."""

    effective: NDArray[np.int64]  # latents by falling Δnorm
    members: dict[str, NDArray[np.int64]]  # intervention → latents whose difference is added
    rule: str  # how the set was chosen, for a reader


def effective_size(name: str, tables: Mapping[str, LatentTable], settings: CausalSettings) -> tuple[int, str]:
    """Return the size of the effective set of crosscoder `name`, and why.

    The reference is the crosscoder so named, or else its run of the same seed (REFERENCE-seedN).

    Raises
    ------
    TunediffError
        There is no such crosscoder.
    """
    if settings.set_size is not None:
        return settings.set_size, f"causal.set_size = {settings.set_size}"
    seed = re.search(r"-seed\d+$", name)
    candidates = [settings.reference, settings.reference + (seed.group() if seed else "")]
    for candidate in candidates:
        if candidate in tables:
            n = int((tables[candidate].frame["class_name"] == "chat-only").sum())
            return max(2, n), f"number of chat-only latents of {candidate} ({n}), at least 2"
    raise TunediffError(
        f"causal.reference: no crosscoder '{candidates[-1]}' among {', '.join(tables)}; "
        "name one of the config's crosscoders, or set causal.set_size"
    )


def latent_sets(table: LatentTable, n: int, reason: str, settings: CausalSettings) -> LatentSets:
    """Choose the effective set, its halves and the random controls.

    The effective set is the n live latents of highest Δnorm. Best and worst are the first and last ⌊n/2⌋ of it by
    falling Δnorm, or by rising rank_sum (latents without one come last). Random sets are ⌊n/2⌋ live latents from
    outside it.
    """
    frame = table.frame
    live = np.flatnonzero(~frame["dead"].to_numpy())
    by_norm = live[np.argsort(-frame["norm_difference"].to_numpy()[live], kind="stable")]
    effective, others = by_norm[:n], by_norm[n:]
    half = len(effective) // 2
    rank_sum = frame["rank_sum"].to_numpy()[effective]
    by_scaling = effective[np.argsort(np.nan_to_num(rank_sum, nan=np.inf), kind="stable")]
    members = {}
    for ranking, ordered in (("norm_difference", effective), ("latent_scaling", by_scaling)):
        members[f"{ranking}_best"] = ordered[:half]
        members[f"{ranking}_worst"] = ordered[len(ordered) - half :]
    for i in range(settings.random_sets):
        generator = np.random.default_rng([settings.seed, i])
        members[f"random_{i}"] = np.sort(generator.choice(others, min(half, len(others)), replace=False))
    rule = (
        f"{len(effective)} live latents of highest norm difference; size: {reason}; best/worst: first/last {half} by "
        f"norm difference or by rank_sum ({int(np.isnan(rank_sum).sum())} without rank_sum, ranked last); "
        f"random: {min(half, len(others))} live latents outside the set"
    )
    return LatentSets(effective, members, rule)


class ConversationBatch(NamedTuple):
    """Conversations of similar length, padded on the right."""

    conversation: list[int]
    token_id: Int[Tensor, "conversation position"]
    attention_mask: Int[Tensor, "conversation position"]
    counted: Tensor  # bool [conversation, position]: neither padding nor BOS nor ignored: may carry an edit
    template: Tensor  # bool [conversation, position]: counted template tokens
    response: Tensor  # bool [conversation, position]: predicts an assistant token
    first: Tensor  # bool [conversation, position]: of those, the first 9 of each assistant turn


def conversation_batches(store: TokenStore, batch_size: int, device: str) -> Iterator[ConversationBatch]:
    """Yield all conversations, those of similar length together."""
    spans = [store.document(i) for i in range(store.n_documents)]
    lengths = np.array([span.stop - span.start for span in spans])
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size].tolist()
        width = int(lengths[group].max())
        token_id, attention = (np.zeros((len(group), width), dtype=np.int64) for _ in range(2))
        counted, template, response, first = (np.zeros((len(group), width), dtype=bool) for _ in range(4))
        for row, i in enumerate(group):
            inside = slice(0, lengths[i])
            mask = np.asarray(store.mask[spans[i]])
            token_id[row, inside] = store.token_id[spans[i]]
            attention[row, inside] = 1
            counted[row, inside] = (mask & int(LEFT_OUT)) == 0
            template[row, inside] = counted[row, inside] & ((mask & int(Mask.TEMPLATE)) != 0)
            response[row, inside] = response_positions(mask)
            first[row, inside] = first_response_positions(mask)
        arrays = (token_id, attention, counted, template, response, first)
        yield ConversationBatch(group, *(torch.from_numpy(array).to(device) for array in arrays))


def _only(code: SparseCode, member: Tensor) -> SparseCode:
    kept = member[code.latent]
    return code._replace(token=code.token[kept], latent=code.latent[kept], value=code.value[kept])


@dataclass
class Editor:
    """The edits of one crosscoder; decoder differences and set memberships are made once."""

    crosscoder: Crosscoder
    sets: LatentSets
    include_bias: bool

    def __post_init__(self) -> None:
        decoder = self.crosscoder.decoder_weight.detach()
        self.chat = decoder[:, 1].contiguous()
        self.difference = (decoder[:, 1] - decoder[:, 0]).contiguous()
        bias = self.crosscoder.decoder_bias.detach()
        self.bias_difference = bias[1] - bias[0]
        self.members = {}
        for name, latents in self.sets.members.items():
            member = torch.zeros(len(decoder), dtype=torch.bool, device=decoder.device)
            member[torch.from_numpy(latents).to(decoder.device)] = True
            self.members[name] = member

    def edits(self, pair: Float[Tensor, "token model d_model"]) -> Iterator[tuple[str, Float[Tensor, "token d_model"]]]:
        """Yield each intervention's edited activations of the given tokens (base, chat)."""
        base, chat = pair[:, 0], pair[:, 1]
        code = self.crosscoder.encode(pair)
        whole = sparse_decode(code, self.difference)
        yield "all", base + whole + (self.bias_difference if self.include_bias else 0)
        yield "error", chat - whole
        for name, member in self.members.items():
            part = _only(code, member)
            yield name, base + sparse_decode(part, self.difference)
            if name in HALVES:
                yield f"{name}_additive", base + sparse_decode(part, self.chat)


def kl_divergence(
    reference: Float[Tensor, "token vocab"], other: Float[Tensor, "token vocab"]
) -> Float[Tensor, "token"]:
    """Return KL(softmax(reference) ‖ softmax(other)) in nats, float64: float32 log-softmax, summed in float64."""
    result = torch.empty(len(reference), dtype=torch.float64, device=reference.device)
    step = max(1, LOGITS_AT_ONCE // max(1, reference.shape[1]))
    for start in range(0, len(reference), step):
        p = reference[start : start + step].float().log_softmax(-1)
        q = other[start : start + step].float().log_softmax(-1)
        result[start : start + step] = (p.exp() * (p - q)).sum(-1, dtype=torch.float64)
    return result


def _scatter(start: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """Return a copy of `start` with `values` at the positions `at`: shared activations are never written to."""
    edited = start.clone()
    edited[at] = values.to(edited.dtype)
    return edited


def _interventions(
    batch: ConversationBatch, base: Tensor, chat: Tensor, editors: Mapping[str, Editor]
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (crosscoder, intervention, edited residual) for a batch."""
    yield "", "none", base
    yield "", "template", torch.where(batch.template[..., None], chat, base)
    yield "", "chat", chat
    pair = torch.stack([base[batch.counted].float(), chat[batch.counted].float()], dim=1)
    for name, editor in editors.items():
        for intervention, edited in editor.edits(pair):
            start = chat if intervention == "error" else base
            yield name, intervention, _scatter(start, batch.counted, edited)


@torch.no_grad()
def kl_table(
    models: tuple[ResidualModel, ResidualModel],
    crosscoders: Mapping[str, Crosscoder],
    sets: Mapping[str, LatentSets],
    conversations: TokenStore,
    settings: CausalSettings,
    device: str = "cpu",
    replacements: Mapping[int, int] | None = None,
) -> pd.DataFrame:
    """Return KL sums per conversation and intervention; `models` are base and chat, the latter with its upper half.

    `replacements` maps token ids that the base model is fed otherwise (see `models.replace_tokens`).
    """
    base_model, chat_model = models
    editors = {name: Editor(crosscoder, sets[name], settings.include_bias) for name, crosscoder in crosscoders.items()}
    parts = []
    with tqdm(total=conversations.n_documents, desc="kl", unit="conv", mininterval=5, file=sys.stderr) as bar:
        for batch in conversation_batches(conversations, settings.batch_size, device):
            fed = replace_tokens(batch.token_id, replacements or {})
            base = base_model.residual(fed, batch.attention_mask).to(device)
            chat = chat_model.residual(batch.token_id, batch.attention_mask).to(device)
            positions = batch.response.any(0).nonzero().flatten()
            scored = batch.response[:, positions]
            first = batch.first[:, positions] & scored

            def logits(residual: Tensor, batch: ConversationBatch = batch, positions: Tensor = positions) -> Tensor:
                return chat_model.logits_from(residual, batch.token_id, batch.attention_mask, positions).to(device)

            counts = {"n_all": scored.sum(1).cpu().numpy(), "n_first": first.sum(1).cpu().numpy()}
            reference = logits(chat)[scored] if len(positions) else None
            for crosscoder, intervention, edited in _interventions(batch, base, chat, editors):
                kl = torch.zeros(scored.shape, dtype=torch.float64, device=device)
                if reference is not None:
                    kl[scored] = kl_divergence(reference, logits(edited)[scored])
                columns: dict[str, Any] = {
                    "conversation": batch.conversation,
                    "crosscoder": crosscoder,
                    "intervention": intervention,
                }
                columns |= {"kl_sum_all": kl.sum(1).cpu().numpy(), "n_all": counts["n_all"]}
                columns |= {"kl_sum_first": (kl * first).sum(1).cpu().numpy(), "n_first": counts["n_first"]}
                parts.append(pd.DataFrame(columns))
            bar.update(len(batch.conversation))
    if not parts:
        raise TunediffError("conversations: none in the store; raise conversations.count")
    frame = pd.concat(parts, ignore_index=True).astype(_KL_DTYPES)
    ran = {"": 0} | {name: i + 1 for i, name in enumerate(crosscoders)}
    parts_of = frame.groupby(["crosscoder", "intervention"], sort=False).ngroup().to_numpy()
    at = np.lexsort((frame["conversation"].to_numpy(), parts_of, frame["crosscoder"].map(ran).to_numpy()))
    return frame.iloc[at].reset_index(drop=True)


def build_kl(
    models: tuple[ResidualModel, ResidualModel],
    crosscoders: Mapping[str, Crosscoder],
    tables: Mapping[str, LatentTable],
    conversations: TokenStore,
    settings: CausalSettings,
    out: Path,
    *,
    key: str,
    device: str = "cpu",
    replacements: Mapping[int, int] | None = None,
) -> pd.DataFrame:
    """Run all interventions; write the KL sums at `out` (kind `kl`) and the latent sets in sets.json beside it."""
    started = time.time()
    sets = {name: latent_sets(tables[name], *effective_size(name, tables, settings), settings) for name in crosscoders}
    frame = kl_table(models, crosscoders, sets, conversations, settings, device, replacements)
    described = {
        name: {
            "latents": chosen.effective.tolist(),
            "size": len(chosen.effective),
            "half": len(chosen.effective) // 2,
            "rule": chosen.rule,
            "sets": {intervention: latents.tolist() for intervention, latents in chosen.members.items()},
        }
        for name, chosen in sets.items()
    }
    write_text(out.parent / "sets.json", json.dumps(described, indent=1) + "\n")
    with building(out) as partial:
        frame.to_parquet(partial, index=False)
    none = frame[frame["intervention"] == "none"]
    facts = {
        "settings": {name: value for name, value in asdict(settings).items() if name != "bootstrap_samples"},
        "n_conversations": len(none),
        "n_tokens": {"all": int(none["n_all"].sum()), "first": int(none["n_first"].sum())},
        "unedited": "BOS, ignored and padding positions carry no edit",
        "rules": {name: chosen.rule for name, chosen in sets.items()},
    }
    seal(out, "kl", key, facts, provenance(started, device))
    return frame


def summarise(kl: pd.DataFrame, n_bootstrap: int, seed: int, level: float = 0.95) -> pd.DataFrame:
    """Return mean KL per intervention with intervals over conversations, and paired differences.

    Every intervention sees the same resamples of conversations. `delta_none` is the difference to None, `reduction` is
    1 − mean/None, and `delta_worst` (for `…_best` rows only) is the difference best − worst.
    """
    pairs = list(dict.fromkeys(zip(kl["crosscoder"], kl["intervention"], strict=True)))
    if ("", "none") not in pairs:
        raise TunediffError("causal/kl.parquet: no intervention 'none'; delete it and run snakemake again")
    column = {pair: i for i, pair in enumerate(pairs)}
    conversations = np.sort(kl["conversation"].unique())
    row = np.searchsorted(conversations, kl["conversation"])
    at = np.array([column[pair] for pair in zip(kl["crosscoder"], kl["intervention"], strict=True)])
    if len(kl) != len(conversations) * len(pairs):
        raise TunediffError(
            "causal/kl.parquet: some conversations lack an intervention; delete it and run snakemake again"
        )
    weights = resample_weights(len(conversations), n_bootstrap, seed)
    none = column["", "none"]
    rows: list[dict[str, Any]] = []
    for positions in ("all", "first"):
        sums, tokens = (np.zeros((len(conversations), len(pairs))) for _ in range(2))
        sums[row, at], tokens[row, at] = kl[f"kl_sum_{positions}"], kl[f"n_{positions}"]
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums.sum(0) / tokens.sum(0)
            resampled = (weights @ sums) / (weights @ tokens)
            for (crosscoder, intervention), i in column.items():
                result: dict[str, Any] = {
                    "crosscoder": crosscoder,
                    "intervention": intervention,
                    "positions": positions,
                }
                worst = column.get((crosscoder, intervention.replace("_best", "_worst")), i)
                nan = (np.nan, np.full(n_bootstrap, np.nan))
                quantities = {
                    "mean": (means[i], resampled[:, i]),
                    "delta": (means[i] - means[none], resampled[:, i] - resampled[:, none]),
                    "reduction": (1 - means[i] / means[none], 1 - resampled[:, i] / resampled[:, none]),
                    "delta_worst": nan
                    if worst == i
                    else (means[i] - means[worst], resampled[:, i] - resampled[:, worst]),
                }
                for name, (value, samples) in quantities.items():
                    interval = percentile_interval(np.asarray(value), samples, level)
                    prefix = "" if name == "mean" else f"{name}_"
                    result["delta_none" if name == "delta" else name] = float(interval.value)
                    result[f"{prefix}low"], result[f"{prefix}high"] = float(interval.low), float(interval.high)
                result |= {"n_conversations": len(conversations), "n_tokens": int(tokens[:, i].sum())}
                rows.append(result)
    return pd.DataFrame(rows)


def build_summary(kl: pd.DataFrame, out: Path, n_bootstrap: int, seed: int, *, key: str) -> pd.DataFrame:
    """Summarise the KL sums and write the table (kind `kl-summary`) at `out`."""
    started = time.time()
    frame = summarise(kl, n_bootstrap, seed)
    with building(out) as partial:
        frame.to_parquet(partial, index=False)
    seal(out, "kl-summary", key, {"bootstrap_samples": n_bootstrap, "seed": seed}, provenance(started))
    return frame
