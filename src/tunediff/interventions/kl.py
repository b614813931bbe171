"""The KL experiment (method.md section 5, Figure 4): what each edit of the base activations restores of the chat model.

The chat model's upper half continues from an edited residual; KL(p_chat ‖ p_edited), in nats, and the edit's energy are
measured at the response positions. A first pass runs the lower halves, keeps their residuals and encodes these, for the
energies that sets are drawn by; in the second, each intervention costs a sparse decode and one upper half. Positions
that no metric counts, massive activations and padding carry no edit.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tunediff.config.settings import CausalSettings
from tunediff.data.masks import first_response_positions, response_positions
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.sparse import SparseCode, sparse_decode
from tunediff.errors import TunediffError
from tunediff.interventions.registry import KEY, Capabilities, Edit, Intervention, interventions
from tunediff.interventions.sets import EditEnergy, LatentSets, effective_size, latent_sets
from tunediff.latents.evaluation import Padded, padded_documents
from tunediff.latents.table import LatentTable
from tunediff.models.residual import LOGITS_AT_ONCE, ResidualModel, replace_tokens
from tunediff.pipeline.artifacts import provenance, write_frame, write_text
from tunediff.pipeline.progress import Progress, tracked

_SUMS = tuple(f"{name}_{of}" for of in ("all", "first") for name in ("kl_sum", "n", "energy"))
_INTEGERS = ("n_all", "n_first", "conversation", "draw", "point", "n_latents")


def _finite(values: Tensor, batch: Padded, row: Tensor, what: str) -> None:
    """Raise a `TunediffError` that names the first conversation with a non-finite value; `row` is per value."""
    bad = ~torch.isfinite(values).view(len(values), -1).all(1)
    if bad.any():
        conversation = batch.documents[int(row[bad][0])]
        raise TunediffError(
            f"{what} of conversation {conversation} is not finite; give `models.dtype` more range "
            "(bfloat16 or float32), or check the models and the crosscoder"
        )


@dataclass
class Lower:
    """The lower halves of both models on the conversations, batch by batch; a whole pass is run once and kept."""

    base: ResidualModel
    chat: ResidualModel
    conversations: TokenStore
    batch_size: int
    device: str
    replacements: Mapping[int, int]  # token ids that the base model is fed otherwise (see `models.replace_tokens`)
    _kept: list[tuple[Padded, Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)

    def __iter__(self) -> Iterator[tuple[Padded, Tensor, Tensor]]:
        if self._kept:
            yield from self._kept
            return
        kept = []
        for batch in self.over(range(self.conversations.n_documents)):
            kept.append(batch)
            yield batch
        self._kept = kept

    def over(self, documents: Sequence[int]) -> Iterator[tuple[Padded, Tensor, Tensor]]:
        """Yield each batch with the residuals (conversation, position, d_model) of base and chat, all finite."""
        if not documents:
            raise TunediffError("conversations: none in the store; raise conversations.count")
        for batch in padded_documents(self.conversations, documents, self.batch_size, self.device):
            fed = replace_tokens(batch.token_id, self.replacements)
            base = self.base.residual(fed, batch.attention_mask).to(self.device)
            chat = self.chat.residual(batch.token_id, batch.attention_mask).to(self.device)
            real = batch.attention_mask.bool()
            for name, residual in (("base", base), ("chat", chat)):
                _finite(residual[real], batch, real.nonzero()[:, 0], f"the {name} model's residual")
            yield batch, base, chat


def _pair(base: Tensor, chat: Tensor, at: Tensor) -> Float[Tensor, "token model d_model"]:
    return torch.stack([base[at].float(), chat[at].float()], dim=1)


def capabilities(crosscoder: Crosscoder) -> Capabilities:
    """Return what a crosscoder can be asked for."""
    return Capabilities(crosscoder.reconstructs, crosscoder.has_norm_taxonomy)


@torch.no_grad()
def edit_energies(lower: Lower, crosscoders: Mapping[str, Crosscoder]) -> dict[str, EditEnergy]:
    """Return the energies of each crosscoder's edits over the response positions, in one pass of the lower halves.

    Only the nonzeros of the codes stay in memory.
    """
    codes: dict[str, list[SparseCode]] = {name: [] for name in crosscoders}
    for batch, base, chat in tracked(lower, "energy", "batch"):
        pair = _pair(base, chat, batch.counted & batch.where(response_positions))
        for name, crosscoder in crosscoders.items():
            codes[name].append(crosscoder.encode(pair[crosscoder.covers(pair)]))
    energies = {}
    for name, parts in codes.items():
        starts = np.cumsum([0, *(part.n_tokens for part in parts)]).tolist()
        shifted = [(part.token + start, *part[1:3]) for part, start in zip(parts, starts, strict=False)]
        token, latent, value = map(torch.cat, zip(*shifted, strict=True))
        whole = SparseCode(token, latent, value, starts[-1])
        energies[name] = EditEnergy(whole, crosscoders[name].difference_directions)
    return energies


def applied(
    edit: Edit,
) -> tuple[Float[Tensor, "conversation position d_model"], Float[Tensor, "conversation position"]]:
    """Return a copy of `start` with the edit, and the squared norm of what was added, per position, float64."""
    residual = edit.start.clone()
    residual[edit.at] = edit.values.to(residual.dtype)
    energy = torch.zeros(edit.at.shape, dtype=torch.float64, device=edit.at.device)
    energy[edit.at] = (edit.values.double() - edit.start[edit.at].double()).square().sum(-1)
    return residual, energy


@dataclass
class Case:
    """A batch as an intervention sees it: the residuals of both models (conversation, position, d_model)."""

    batch: Padded
    base: Tensor
    chat: Tensor


class Run(NamedTuple):
    """An intervention and, where it needs latents, one set of them."""

    intervention: Intervention
    n_latents: int
    member: Bool[Tensor, "latent"] | None = None
    ranking: str = ""
    draw: int = 0
    point: int = 0


class Editor:
    """What the edits of one crosscoder share on all batches: directions of its latents, and what is run."""

    def __init__(self, crosscoder: Crosscoder, sets: LatentSets, settings: CausalSettings) -> None:
        self.crosscoder, self.difference = crosscoder, crosscoder.difference_directions
        members = torch.zeros(len(sets.members), crosscoder.dict_size, dtype=torch.bool, device=self.difference.device)
        for member, chosen in zip(members, sets.members, strict=True):
            member[torch.from_numpy(chosen.latents).to(member.device)] = True
        self.runs: list[Run] = []
        for each in interventions(settings, capabilities(crosscoder)):
            if each.needs == "crosscoder":
                self.runs.append(Run(each, crosscoder.dict_size))
                continue
            for member, chosen in zip(members, sets.members, strict=True):
                if chosen.intervention == (each.shares or each.name):
                    where = chosen.ranking, chosen.draw, chosen.point
                    self.runs.append(Run(each, len(chosen.latents), member, *where))

    @cached_property
    def chat(self) -> Float[Tensor, "latent d_model"]:
        """d_j^chat, of a crosscoder that reconstructs both models."""
        return self.crosscoder.decoder_weight[:, 1].contiguous()


class CrosscoderCase(Case):
    """A case of one crosscoder; `part` is the code of the latents that are edited with.

    `at` are the positions to edit; `before` and `after` (token, d_model) are the residuals of base and chat there.
    """

    def __init__(self, case: Case, editor: Editor) -> None:
        super().__init__(case.batch, case.base, case.chat)
        self.editor = editor
        counted = case.batch.counted
        pair = _pair(case.base, case.chat, counted)
        covered = editor.crosscoder.covers(pair)
        self.at, pair = counted.masked_scatter(counted, covered), pair[covered]
        self.before, self.after = pair[:, 0], pair[:, 1]
        self.code = self.part = editor.crosscoder.encode(pair)

    @cached_property
    def whole(self) -> Float[Tensor, "token d_model"]:
        """Change of the residual by all latents."""
        return sparse_decode(self.code, self.editor.difference)

    def choose(self, member: Bool[Tensor, "latent"] | None) -> None:
        """Edit with these latents, or with all."""
        self.part = self.code
        if member is not None:
            kept = member[self.code.latent]
            token, latent, value = (column[kept] for column in self.code[:3])
            self.part = SparseCode(token, latent, value, self.code.n_tokens)

    def decode(self, directions: Float[Tensor, "latent d_model"]) -> Float[Tensor, "token d_model"]:
        """Return Σ_j f_j direction_j over the latents that are edited with."""
        return sparse_decode(self.part, directions)


def _edits(case: Case, shared: Sequence[Run], editors: Mapping[str, Editor]) -> Iterator[Edit]:
    """Yield the edits of a batch: the shared ones, then those of every crosscoder."""
    for run in shared:
        yield run.intervention.edit(case)
    for editor in editors.values():
        own = CrosscoderCase(case, editor)
        for run in editor.runs:
            own.choose(run.member)
            yield run.intervention.edit(own)


class Reference(NamedTuple):
    """Distributions that others are compared with: what is the same in every comparison."""

    p: Float[Tensor, "token vocab"]
    negative_entropy: Float[Tensor, "token"]  # Σ p log p, float64

    @classmethod
    def of(cls, logits: Float[Tensor, "token vocab"]) -> "Reference":
        """Return the softmax of logits."""
        p = logits.float().softmax(-1)
        return cls(p, _expected_log(p, logits))


def _expected_log(p: Float[Tensor, "token vocab"], logits: Float[Tensor, "token vocab"]) -> Float[Tensor, "token"]:
    """Return Σ p log softmax(logits): float32 terms, summed in float64."""
    result = torch.empty(len(p), dtype=torch.float64, device=p.device)
    step = max(1, LOGITS_AT_ONCE // max(1, p.shape[1]))
    for start in range(0, len(p), step):
        log_q = logits[start : start + step].float().log_softmax(-1)
        result[start : start + step] = log_q.mul_(p[start : start + step]).sum(-1, dtype=torch.float64)
    return result


def kl_divergence(reference: Reference, logits: Float[Tensor, "token vocab"]) -> Float[Tensor, "token"]:
    """Return KL(p ‖ softmax(logits)) in nats, float64."""
    return reference.negative_entropy - _expected_log(reference.p, logits)


@torch.no_grad()
def kl_table(
    lower: Lower, crosscoders: Mapping[str, Crosscoder], sets: Mapping[str, LatentSets], settings: CausalSettings
) -> pd.DataFrame:
    """Return KL sums and edit energies per conversation and intervention, over all and the first response tokens.

    `TunediffError`: there is no conversation, or a residual or a logit is not finite.
    """
    shared = [Run(each, 0) for each in interventions(settings, None)]
    editors = {name: Editor(crosscoder, sets[name], settings) for name, crosscoder in crosscoders.items()}
    runs = [("", run) for run in shared] + [(name, run) for name, editor in editors.items() for run in editor.runs]
    # One block for all sums: small arrays kept from every batch pin the memory around them, and the process grows.
    sums = np.empty((len(runs), lower.conversations.n_documents, len(_SUMS)))
    with Progress(lower.conversations.n_documents, "kl", "conv") as bar:
        for batch, base, chat in lower:
            response, first = batch.where(response_positions), batch.where(first_response_positions)
            positions = response.any(0).nonzero().flatten()
            scored = response[:, positions]
            weights = scored, first[:, positions] & scored  # in the order of _SUMS
            row = scored.nonzero()[:, 0]

            def logits(
                residual: Tensor, batch: Padded = batch, positions: Tensor = positions, at: Tensor = scored
            ) -> Tensor:
                whole = lower.chat.logits_from(residual, batch.token_id, batch.attention_mask, positions)
                return whole.to(lower.device)[at]

            reference = Reference.of(logits(chat)) if len(positions) else None
            for i, edit in enumerate(_edits(Case(batch, base, chat), shared, editors)):
                kl = torch.zeros(scored.shape, dtype=torch.float64, device=lower.device)
                residual, energy = applied(edit)
                if reference is not None:
                    values = kl_divergence(reference, logits(residual))
                    _finite(values, batch, row, f"the KL divergence ({runs[i][1].intervention.name})")
                    kl[scored] = values
                energy = energy[:, positions]
                columns = [
                    part
                    for weight in weights
                    for part in ((kl * weight).sum(1), weight.sum(1), (energy * weight).sum(1))
                ]
                sums[i, batch.documents] = torch.stack([part.double() for part in columns], dim=1).cpu().numpy()
            bar.update(len(batch.documents))
    parts = []
    for (crosscoder, run), own in zip(runs, sums, strict=True):
        about: dict[str, Any] = {
            "conversation": np.arange(len(own)),
            "crosscoder": crosscoder,
            "intervention": run.intervention.name,
            "ranking": run.ranking,
            "draw": run.draw,
            "point": run.point,
            "n_latents": run.n_latents,
        }
        parts.append(pd.DataFrame(about | dict(zip(_SUMS, own.T, strict=True))))
    frame = pd.concat(parts, ignore_index=True).astype(dict.fromkeys(_INTEGERS, "int32"))
    ran = {"": 0} | {name: i + 1 for i, name in enumerate(crosscoders)}
    parts_of = frame.groupby(KEY, sort=False).ngroup().to_numpy()
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
    """Run all interventions; write the KL sums at `out` (kind `kl`) and the latent sets in kl.sets.json beside it.

    `models` are base and chat, the latter with its upper half.
    """
    started = time.time()
    lower = Lower(*models, conversations, settings.batch_size, device, replacements or {})
    energies = edit_energies(lower, crosscoders)
    sets = {}
    for name, crosscoder in crosscoders.items():
        n, reason = effective_size(name, tables, settings)
        sets[name] = latent_sets(tables[name], energies.pop(name), n, reason, settings, capabilities(crosscoder))
    frame = kl_table(lower, crosscoders, sets, settings)
    write_text(out.with_suffix(".sets.json"), json.dumps({name: own.describe() for name, own in sets.items()}) + "\n")
    none = frame[frame["intervention"] == "none"]
    facts = {
        "settings": {name: value for name, value in asdict(settings).items() if name != "bootstrap_samples"},
        "n_conversations": len(none),
        "n_tokens": {"all": int(none["n_all"].sum()), "first": int(none["n_first"].sum())},
        "n_interventions": len(frame) // len(none),
        "unedited": "BOS, ignored, massive and padding positions carry no edit",
        "rules": {name: chosen.rule for name, chosen in sets.items()},
        "notes": {name: chosen.notes for name, chosen in sets.items()},
    }
    write_frame(frame, out, "kl", key, facts, provenance(started, device), beside=[".sets.json"])
    return frame
