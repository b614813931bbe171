"""Steering (method.md section 12): what the models answer while the direction of a latent is added to their residuals.

h + α · max_j · d_j^chat after the block, f_j's maximum and the decoder row both in the units of raw residuals. Other
directions of the same norm are the controls. Latents are chosen on train tokens; the requests are other texts.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import binomtest, mannwhitneyu
from torch import Tensor

from tunediff.config.settings import SteeringSettings
from tunediff.data.conversations import left_padded, until_stop
from tunediff.data.masks import Mask
from tunediff.data.rendering import ChatRenderer
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.interventions.kl import Lower, Reference, kl_divergence
from tunediff.interventions.steering_table import COLUMNS, TEXTS, typed
from tunediff.latents.evaluation import Padded
from tunediff.latents.table import LatentTable
from tunediff.models.residual import ResidualModel, replace_tokens
from tunediff.pipeline.artifacts import building, provenance, write_frame
from tunediff.pipeline.progress import Progress, tracked
from tunediff.statistics import percentile_interval, resample_weights

Positions = Literal["all", "prompt"]
Ids = NDArray[np.int64]

TOP_LOGITS = 15  # direct logits of a latent whose shift is measured
GRAM = 3
OWN_AUROC = 0.9  # from which the answers that a latent fires in are of a kind
CANDIDATES = 10  # times as many of the ranking as are steered are asked for a kind
OWN_LEAST = 5  # of these answers, and of others
SHOWN = 4  # requests whose answers are kept as texts, per arm


# -- what is added -----------------------------------------------------------------------------------------------------


class Arm(NamedTuple):
    """What is added to the residuals of which model."""

    name: str  # of `steering_table.ARMS`
    model: str  # base or chat
    added: Float[Tensor, "d_model"]  # at α = 1
    direction: int = -1  # the latent whose decoder row it is
    draw: int = 0


def steering_vector(crosscoder: Crosscoder, table: LatentTable, latent: int) -> Float[Tensor, "d_model"]:
    """Return max_j · d_j^chat in units of the residual stream: what is added at α = 1.

    max_j is the largest f_j on validation tokens; a dictionary of the difference has d_j alone.
    """
    return float(table.frame["max_activation"].iloc[latent]) * crosscoder.decoder_weight[latent, -1]


def alike_in_frequency(table: LatentTable, latent: int) -> int | None:
    """Return the live shared latent whose frequency is nearest to that of a latent, by ratio; None where none is."""
    frame = table.frame
    shared = frame[(frame["class_name"] == "shared") & ~frame["chat_specific"] & (frame["latent"] != latent)]
    if shared.empty:
        return None
    apart = (np.log(shared["frequency"]) - np.log(frame["frequency"].iloc[latent])).abs()
    return int(shared["latent"].loc[apart.idxmin()])


def arms(crosscoder: Crosscoder, table: LatentTable, latent: int, settings: SteeringSettings) -> list[Arm]:
    """Return the latent's arms in both models and its controls, all of one norm; a control of no norm is left out."""
    added = steering_vector(crosscoder, table, latent)
    norm = torch.linalg.vector_norm(added)
    found = [Arm("steered", "chat", added, latent), Arm("base_model", "base", added, latent)]
    found.append(Arm("sign_flip", "chat", -added, latent))
    shared = alike_in_frequency(table, latent)
    rows = {"shared": (crosscoder.decoder_weight[shared, -1], shared)} if shared is not None else {}
    if crosscoder.reconstructs == "models":
        rows["base_row"] = crosscoder.decoder_weight[latent, 0], latent
    for name, (row, of) in rows.items():
        if row.norm() > 0:
            found.append(Arm(name, "chat", row * (norm / row.norm()), of))
    drawn = _random(added, settings.random_directions, settings.seed + latent)
    return found + [Arm("random", "chat", row, draw=draw) for draw, row in enumerate(drawn)]


def _random(like: Float[Tensor, "d_model"], n: int, seed: int) -> Float[Tensor, "draw d_model"]:
    """Return random directions of the norm of a vector."""
    drawn = torch.randn((n, len(like)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn / drawn.norm(dim=1, keepdim=True)).to(like) * like.norm()


# -- answers -----------------------------------------------------------------------------------------------------------


def answer(
    model: ResidualModel,
    prompts: Sequence[Ids],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    add: Float[Tensor, "prompt d_model"] | None = None,
    positions: Positions = "all",
) -> list[list[int]]:
    """Return the greedy answers to prompts, each up to and with its stop token; row i of `add` steers prompt i."""
    answers: dict[int, list[int]] = {}
    for batch in left_padded(prompts, batch_size, stop_ids[0]):
        own = None if add is None else add[batch.prompts]
        new = model.generate(batch.ids, batch.attention_mask, max_new_tokens, stop_ids, own, positions)
        for i, ids in zip(batch.prompts, new.cpu().tolist(), strict=True):
            answers[i] = until_stop(ids, stop_ids)
    return [answers[i] for i in range(len(prompts))]


def steer(
    model: ResidualModel,
    crosscoder: Crosscoder,
    table: LatentTable,
    latent: int,
    prompts: Sequence[Ids],
    alpha: float,
    stop_ids: Sequence[int],
    *,
    positions: Positions = "all",
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> list[list[int]]:
    """Return a model's greedy answers with α · max_j · d_j^chat added to its residuals after the block.

    `prompts` are rendered requests (token ids), `stop_ids` those of `ChatRenderer`. At α = 0 these are the unsteered
    answers.

    Raises
    ------
    TunediffError
        There is no such latent, or it never fires, or the model is without its upper half.
    """
    if not 0 <= latent < crosscoder.dict_size:
        raise TunediffError(f"latent {latent}: the crosscoder has latents 0 to {crosscoder.dict_size - 1}")
    added = alpha * steering_vector(crosscoder, table, latent)
    if not added.isfinite().all() or bool(table.frame["dead"].iloc[latent]):
        raise TunediffError(f"latent {latent}: fires on no validation token, so it has no dose; choose a live one")
    add = added.expand(len(prompts), -1) if alpha else None
    return answer(model, prompts, stop_ids, max_new_tokens, batch_size, add, positions)


def repeated_grams(ids: Sequence[int], n: int = GRAM) -> tuple[int, int]:
    """Return how many n-grams of an answer it had before, and how many it has."""
    grams = Counter(zip(*(ids[i:] for i in range(n)), strict=False))
    return sum(grams.values()) - len(grams), sum(grams.values())


# -- other conversations: what kind of answer a latent is of, and what its ablation does -----------------------------


class Labeller(Protocol):
    """What tells kinds of answers: a `tunediff.data.corpora.Source`."""

    def answer_kinds(self) -> tuple[str, ...]:
        """Return the kinds."""

    def kind_of_answer(self, text: str) -> str:
        """Return the kind of an answer."""


class Sums(NamedTuple):
    """A measure of one run, per request: its mean is Σ sums / Σ counts."""

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]

    def interval(self, n_bootstrap: int, seed: int) -> dict[str, float]:
        """Return the mean with the 95 % interval of a bootstrap over requests."""
        weights = np.vstack([np.ones(len(self.sums)), resample_weights(len(self.sums), n_bootstrap, seed)])
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (weights @ self.sums) / (weights @ self.counts)
        return dict(zip(("value", "low", "high"), map(float, percentile_interval(means[0], means[1:])), strict=True))


class Chosen(NamedTuple):
    """A latent that is steered."""

    crosscoder: str
    latent: int
    place: int  # in the ranking, 1 first


def _log_probabilities(
    model: ResidualModel, residual: Tensor, ids: Tensor, mask: Tensor, at: Bool[Tensor, "row position"]
) -> Float[Tensor, "token vocab"]:
    """Return log p of the next token at some positions, continued from a residual stream."""
    positions = at.any(0).nonzero().flatten()
    logits = model.logits_from(residual, ids, mask, positions).to(at.device)
    return logits[at[:, positions]].float().log_softmax(-1)


Fired = tuple[Padded, Tensor, dict[Chosen, Float[Tensor, "conversation position"]], dict[str, Tensor]]


@torch.no_grad()
def _fired(
    lower: Lower,
    documents: Sequence[int],
    crosscoders: Mapping[str, Crosscoder],
    chosen: Iterable[Chosen],
    about: str,
) -> Iterator[Fired]:
    """Yield each batch of conversations with the chat model's residuals, f_j of each latent, and residual norms."""
    batches = -(-len(documents) // lower.batch_size)
    bar = tracked(lower.over(documents), about, "batch", batches)
    of = {name: [each for each in chosen if each.crosscoder == name] for name in crosscoders}
    for batch, base, chat in bar:
        pair = torch.stack([base[batch.counted].float(), chat[batch.counted].float()], dim=1)
        strengths, norms = {}, {}
        for name, crosscoder in crosscoders.items():
            covered = crosscoder.covers(pair)
            at = batch.counted.masked_scatter(batch.counted, covered)
            code = crosscoder.encode(pair[covered])
            norms = dict(zip(("base", "chat"), pair[covered].norm(dim=2).unbind(1), strict=True))
            for each in of[name]:
                f, fired = torch.zeros(code.n_tokens, device=at.device), code.latent == each.latent
                f[code.token[fired]] = code.value[fired]
                strengths[each] = torch.zeros(at.shape, device=at.device).masked_scatter(at, f)
        yield batch, chat, strengths, norms


class Contexts(NamedTuple):
    """What is known of conversations before any is steered."""

    maximum: dict[Chosen, NDArray[np.float64]]  # largest f_j, per conversation
    norm: dict[str, float]  # mean norm of a model's residuals, massive activations left out


def contexts(
    lower: Lower, documents: Sequence[int], crosscoders: Mapping[str, Crosscoder], chosen: Sequence[Chosen]
) -> Contexts:
    """Encode conversations: where the latents fire, and how long residuals are at the counted positions."""
    number = {document: i for i, document in enumerate(documents)}
    maximum = {each: np.zeros(len(documents)) for each in chosen}
    total, tokens = {"base": 0.0, "chat": 0.0}, 0
    for batch, _, strengths, norms in _fired(lower, documents, crosscoders, chosen, "contexts"):
        for each, f in strengths.items():
            maximum[each][[number[document] for document in batch.documents]] = f.amax(1).cpu().numpy()
        total = {name: total[name] + float(norm.double().sum()) for name, norm in norms.items()}
        tokens += len(norms["chat"])
    return Contexts(maximum, {name: value / max(1, tokens) for name, value in total.items()})


@torch.no_grad()
def ablations(
    lower: Lower, crosscoders: Mapping[str, Crosscoder], where: Mapping[Chosen, Collection[int]], seed: int
) -> dict[tuple[Chosen, str, str], Sums]:
    """Subtract f_j d_j^chat, or as much of a random direction, from the chat model's residuals in conversations.

    Returns KL(chat ‖ ablated) at the counted positions where the latent fires ("firing") and at the others of these
    conversations ("elsewhere"), by latent, arm and positions.
    """
    kl: dict[tuple[Chosen, str, str], list[tuple[float, int]]] = {}
    documents = sorted({document for own in where.values() for document in own})
    for batch, chat, strengths, _ in _fired(lower, documents, crosscoders, where, "ablation") if documents else ():
        for each, f in strengths.items():
            rows = torch.tensor([i for i, document in enumerate(batch.documents) if document in where[each]])
            if not len(rows):
                continue
            rows = rows.to(f.device)
            ids, mask, counted = batch.token_id[rows], batch.attention_mask[rows], batch.counted[rows]
            plain = Reference.of(_log_probabilities(lower.chat, chat[rows], ids, mask, counted))
            own = crosscoders[each.crosscoder].decoder_weight[each.latent, -1]
            firing = f[rows] > 0
            for arm, row in (("ablation", own), ("ablation_random", _random(own, 1, seed + each.latent)[0])):
                edited = chat[rows] - (f[rows][:, :, None] * row).to(chat.dtype)
                values = torch.zeros(counted.shape, dtype=torch.float64, device=f.device)
                values[counted] = kl_divergence(plain, _log_probabilities(lower.chat, edited, ids, mask, counted))
                for positions, at in (("firing", firing), ("elsewhere", counted & ~firing)):
                    sums, tokens = (values * at).sum(1).tolist(), at.sum(1).tolist()
                    kl.setdefault((each, arm, positions), []).extend(zip(sums, tokens, strict=True))
    return {of: Sums(*np.array(pairs, dtype=np.float64).T) for of, pairs in kl.items()}


def own_kinds(maximum: Mapping[Chosen, NDArray[np.float64]], kinds: Sequence[str]) -> dict[Chosen, tuple[str, float]]:
    """Return of each latent the kind of answer it fires in, and its AUROC: that of the largest f_j of a conversation.

    `kinds` are those of the conversations. None is a latent's own where no AUROC is at least `OWN_AUROC`.
    """
    said, own = np.array(kinds), {}
    counts = {kind: int((said == kind).sum()) for kind in dict.fromkeys(kinds) if kind}
    scored = [kind for kind, n in counts.items() if OWN_LEAST <= n <= len(said) - OWN_LEAST]
    for each, values in maximum.items():
        aurocs = {}
        for kind in scored:
            inside, outside = values[said == kind], values[said != kind]
            aurocs[kind] = float(mannwhitneyu(inside, outside).statistic) / (len(inside) * len(outside))
        best = max(aurocs, key=lambda kind: aurocs[kind], default="")
        own[each] = (best, aurocs[best]) if best and aurocs[best] >= OWN_AUROC else ("", float("nan"))
    return own


def ranked(tables: Mapping[str, LatentTable], n: int, kinds: bool) -> list[Chosen]:
    """Return the first `n` latents of every ranking and, where `kinds` are told, chat-specific ones after them."""
    found = []
    for name, table in tables.items():
        for place, row in enumerate(table.first(CANDIDATES * n if kinds else n).to_dict("records"), 1):
            if place <= n or row["chat_specific"]:
                found.append(Chosen(name, int(row["latent"]), place))
    return found


def preferred(candidates: Sequence[Chosen], own: Mapping[Chosen, tuple[str, float]], n: int) -> list[Chosen]:
    """Return `n` latents of every crosscoder: the first that have a kind of their own, then the first of the others."""
    found: list[Chosen] = []
    for name in dict.fromkeys(each.crosscoder for each in candidates):
        of = [each for each in candidates if each.crosscoder == name]
        found += sorted(sorted(of, key=lambda each: (not own[each][0], each.place))[:n], key=lambda each: each.place)
    return found


# -- measures ----------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One arm at one dose: an answer to every request."""

    of: Chosen
    arm: Arm
    alpha: float
    positions: Positions

    @property
    def added(self) -> Float[Tensor, "d_model"]:
        """What is added to the residuals."""
        return self.alpha * self.arm.added


class Answered(NamedTuple):
    """Prompts with answers, padded on the right."""

    rows: list[int]  # which of them
    ids: Tensor  # (row, position)
    attention_mask: Tensor
    prompt: Bool[Tensor, "row position"]
    predicting: Bool[Tensor, "row position"]  # of the positions, those whose next token is of the answer


@dataclass
class Bench:
    """What all runs share."""

    models: Mapping[str, ResidualModel]  # base and chat, both with their upper halves
    prompts: Sequence[Ids]
    stop_ids: Sequence[int]
    replacements: Mapping[int, int]  # token ids that the base model is fed otherwise
    settings: SteeringSettings
    device: str

    def fed(self, model: str, ids: Tensor) -> Tensor:
        """Return the ids a model reads."""
        return replace_tokens(ids, self.replacements) if model == "base" else ids

    def answers(self, runs: Sequence[Run]) -> list[list[list[int]]]:
        """Return the answers of each run; the base model reads prompts with its replacements, its own answers as is."""
        found: dict[int, list[list[int]]] = {}
        groups: dict[Any, list[int]] = {}
        for i, run in enumerate(runs):
            groups.setdefault((run.arm.model, run.positions, run.of), []).append(i)
        with Progress(len(runs), "answers", "run") as bar:
            for (model, positions, _), members in groups.items():
                prompts = [self.fed(model, torch.from_numpy(prompt)).numpy() for prompt in self.prompts] * len(members)
                add = torch.stack([runs[i].added for i in members]).repeat_interleave(len(self.prompts), dim=0)
                of, size = self.models[model], self.settings.generation_batch_size
                new = answer(of, prompts, self.stop_ids, self.settings.max_new_tokens, size, add, positions)
                for k, i in enumerate(members):
                    found[i] = new[k * len(self.prompts) : (k + 1) * len(self.prompts)]
                bar.update(len(members))
        return [found[i] for i in range(len(runs))]

    def answered(self, prompts: Sequence[Ids], answers: Sequence[Sequence[int]]) -> Iterator[Answered]:
        """Yield prompts with their answers in batches of similar length."""
        lengths = [len(prompt) + len(ids) for prompt, ids in zip(prompts, answers, strict=True)]
        order = sorted(range(len(prompts)), key=lambda i: lengths[i])
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size]
            ids = torch.zeros((len(rows), lengths[rows[-1]]), dtype=torch.long)
            for row, i in enumerate(rows):
                ids[row, : lengths[i]] = torch.tensor([*prompts[i].tolist(), *answers[i]])
            place = torch.arange(ids.shape[1])[None]
            asked = torch.tensor([len(prompts[i]) for i in rows])[:, None]
            whole = torch.tensor([lengths[i] for i in rows])[:, None]
            masks = place < whole, place < asked, (place >= asked - 1) & (place < whole - 1)
            real, prompt, predicting = (mask.to(self.device) for mask in masks)
            yield Answered(rows, ids.to(self.device), real.long(), prompt, predicting)

    @torch.no_grad()
    def forced(
        self, runs: Sequence[Run], answers: Sequence[Sequence[int]], top: Mapping[Chosen, Tensor]
    ) -> dict[str, list[Sums]]:
        """Return KL(chat ‖ run) and the shift of the logits in `top`, per run, on the chat model's own answers."""
        shape = len(runs), len(self.prompts)
        kl, shift, tokens = np.zeros(shape), np.zeros(shape), np.zeros(len(self.prompts))
        used = list(dict.fromkeys(run.arm.model for run in runs))
        with Progress(len(self.prompts), "kl", "answer") as bar:
            for batch in self.answered(self.prompts, answers):
                row = batch.predicting.nonzero()[:, 0]
                streams, plain = {}, {}
                for name in dict.fromkeys(("chat", *used)):
                    fed = self.fed(name, batch.ids)
                    streams[name] = self.models[name].residual(fed, batch.attention_mask).to(self.device)
                    plain[name] = self._continued(name, streams[name], batch)
                reference = Reference.of(plain["chat"])

                def by_request(values: Tensor, row: Tensor = row, n: int = len(batch.rows)) -> NDArray[np.float64]:
                    sums = torch.zeros(n, dtype=torch.float64, device=values.device)
                    return sums.index_add_(0, row, values.double()).cpu().numpy()

                tokens[batch.rows] = by_request(torch.ones_like(row))
                for i, run in enumerate(runs):
                    where = batch.attention_mask.bool() if run.positions == "all" else batch.prompt
                    stream = streams[run.arm.model]
                    steered = stream + (where[:, :, None] * run.added.to(self.device)).to(stream.dtype)
                    logits = self._continued(run.arm.model, steered, batch)
                    kl[i, batch.rows] = by_request(kl_divergence(reference, logits))
                    if run.of in top:
                        moved = logits - plain[run.arm.model]
                        shift[i, batch.rows] = by_request(moved[:, top[run.of]].mean(1) - moved.mean(1))
                bar.update(len(batch.rows))
        return {
            "kl": [Sums(sums, tokens) for sums in kl],
            "logit_shift": [Sums(sums, tokens) for sums in shift],
        }

    def _continued(self, model: str, residual: Tensor, batch: Answered) -> Float[Tensor, "token vocab"]:
        fed = self.fed(model, batch.ids)
        return _log_probabilities(self.models[model], residual, fed, batch.attention_mask, batch.predicting)

    @torch.no_grad()
    def losses(self, answers: Sequence[Sequence[Sequence[int]]]) -> list[Sums]:
        """Return the loss of each run's answers under the unsteered chat model."""
        n, chat = len(self.prompts), self.models["chat"]
        flat = [ids for own in answers for ids in own]
        sums = np.zeros(len(flat))
        with Progress(len(flat), "nll", "answer") as bar:
            for batch in self.answered(list(self.prompts) * len(answers), flat):
                residual = chat.residual(batch.ids, batch.attention_mask).to(self.device)
                log_p = self._continued("chat", residual, batch)
                row, place = batch.predicting.nonzero(as_tuple=True)
                loss = -log_p.gather(1, batch.ids[row, place + 1][:, None])[:, 0].double()
                own = torch.zeros(len(batch.rows), dtype=torch.float64, device=loss.device).index_add_(0, row, loss)
                sums[batch.rows] = own.cpu().numpy()
                bar.update(len(batch.rows))
        lengths = np.array([len(ids) for ids in flat], dtype=np.float64)
        return [Sums(sums[i * n : (i + 1) * n], lengths[i * n : (i + 1) * n]) for i in range(len(answers))]


def repetition(answers: Sequence[Sequence[int]]) -> Sums:
    """Return the share of n-grams of the answers that their answer had before."""
    repeated, grams = np.array([repeated_grams(ids) for ids in answers], dtype=np.float64).T
    return Sums(repeated, grams)


def rate(kinds: Sequence[str], kind: str) -> dict[str, float]:
    """Return the share of answers of a kind, with Wilson's 95 % interval."""
    found = binomtest(sum(each == kind for each in kinds), len(kinds))
    interval = found.proportion_ci(method="wilson")
    return {"value": found.statistic, "low": interval.low, "high": interval.high}


# -- the stage ---------------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """The token ids of a conversation."""

    prompt: Ids  # all before the answer
    asked: Ids  # the user's words in it
    answer: Ids


def _parts(conversations: TokenStore, document: int) -> Parts:
    span = conversations.document(document)
    ids, mask = conversations.token_id[span].astype(np.int64), conversations.mask[span]
    answered = mask & np.uint8(Mask.ASSISTANT) != 0
    start = int(answered.argmax()) if answered.any() else len(ids)
    return Parts(ids[:start], ids[:start][mask[:start] & np.uint8(Mask.USER) != 0], ids[start:])


def _runs(
    chosen: Sequence[Chosen],
    crosscoders: Mapping[str, Crosscoder],
    tables: Mapping[str, LatentTable],
    settings: SteeringSettings,
    nothing: Float[Tensor, "d_model"],
) -> list[Run]:
    """Return every run, those without steering first: of the chat model, then of base."""
    runs = [Run(Chosen("", -1, 0), Arm("unsteered", model, nothing), 0.0, "all") for model in ("chat", "base")]
    for each in chosen:
        found = arms(crosscoders[each.crosscoder], tables[each.crosscoder], each.latent, settings)
        for positions in settings.positions:
            runs += [Run(each, arm, alpha, positions) for alpha in settings.alphas for arm in found]
    return runs


def _rows(
    runs: Sequence[Run],
    measures: Mapping[str, Sequence[Sums]],
    kinds: Sequence[Sequence[str]],
    own: Mapping[Chosen, tuple[str, float]],
    norm: Mapping[str, float],
    labeller: Labeller,
    settings: SteeringSettings,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table for all runs; `kinds` are those of each run's answers."""
    directions = {run.of: run.arm.added for run in runs if run.arm.name == "steered"}
    for i, run in enumerate(runs):
        dose = float(run.added.norm())
        place = run.of._asdict() | {"arm": run.arm.name, "model": run.arm.model, "direction": run.arm.direction}
        place |= {"draw": run.arm.draw, "alpha": run.alpha, "positions": run.positions, "dose": dose}
        place |= {"dose_share": dose / norm[run.arm.model], "cosine": np.nan, "kind": "", "own": False}
        place["n"] = len(kinds[i])
        if run.of in directions:
            place["cosine"] = float(torch.cosine_similarity(run.arm.added, directions[run.of], dim=0))
        for measure, of_runs in measures.items():
            if measure != "logit_shift" or run.of in directions:
                interval = of_runs[i].interval(settings.bootstrap_samples, settings.seed)
                yield place | {"measure": measure} | interval
        for kind in labeller.answer_kinds():
            is_own = run.of in own and own[run.of][0] == kind
            yield place | {"measure": "rate", "kind": kind, "own": is_own} | rate(kinds[i], kind)


def build_steering(
    models: tuple[ResidualModel, ResidualModel],
    crosscoders: Mapping[str, Crosscoder],
    tables: Mapping[str, LatentTable],
    conversations: TokenStore,
    renderer: ChatRenderer,
    labeller: Labeller,
    settings: SteeringSettings,
    out: Path,
    *,
    key: str,
    device: str = "cpu",
    replacements: Mapping[int, int] | None = None,
) -> pd.DataFrame:
    """Steer the first latents of every ranking; write the table (kind `steering`) at `out`, texts beside it.

    `models` are base and chat, both with their upper halves. The requests are drawn from the conversations, at most
    half of them; the others say what kind of answer each latent is of. `TunediffError`: a value is not finite.
    """
    started = time.time()
    order = np.random.default_rng(settings.seed).permutation(conversations.n_documents)
    n = min(settings.prompts, len(order) // 2)
    asked, others = np.sort(order[:n]).tolist(), order[n:].tolist()

    def text(ids: Any) -> str:
        return str(renderer.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def kinds_of(answers: Iterable[Any]) -> list[str]:
        return [labeller.kind_of_answer(text(ids)) for ids in answers]

    base, chat = models
    lower = Lower(base, chat, conversations, settings.batch_size, device, replacements or {})
    candidates = ranked(tables, settings.latents, bool(labeller.answer_kinds()))
    seen = contexts(lower, others, crosscoders, candidates)
    own = own_kinds(seen.maximum, kinds_of(_parts(conversations, i).answer for i in others))
    chosen = preferred(candidates, own, settings.latents)
    fired = {each: np.flatnonzero(seen.maximum[each])[: settings.prompts] for each in chosen}  # others are in no order
    where = {each: {others[i] for i in places} for each, places in fired.items()}
    ablated = ablations(lower, crosscoders, where, settings.seed)

    parts = [_parts(conversations, i) for i in asked]
    prompts = [own_parts.prompt for own_parts in parts]
    bench = Bench({"base": base, "chat": chat}, prompts, renderer.stop_ids, replacements or {}, settings, device)
    runs = _runs(chosen, crosscoders, tables, settings, torch.zeros(chat.d_model, device=device))
    top = {}
    for each in chosen:
        logits = chat.direct_logits(crosscoders[each.crosscoder].decoder_weight[each.latent, -1][None])[0]
        top[each] = logits.topk(min(TOP_LOGITS, len(logits))).indices.to(device)
    answers = bench.answers(runs)
    measures = bench.forced(runs, answers[0], top)
    measures |= {"nll": bench.losses(answers), "repetition": [repetition(of_run) for of_run in answers]}

    rows = list(_rows(runs, measures, [kinds_of(of_run) for of_run in answers], own, seen.norm, labeller, settings))
    for (each, arm, positions), sums in ablated.items():
        place = {"arm": arm, "model": "chat", "positions": positions, "measure": "kl", "n": len(sums.sums)}
        place |= {"direction": each.latent if arm == "ablation" else -1, "draw": 0, "kind": "", "own": False}
        rows.append(each._asdict() | place | sums.interval(settings.bootstrap_samples, settings.seed))
    table = typed(rows, COLUMNS)
    if not np.isfinite(table.loc[~table["arm"].str.startswith("ablation"), "value"]).all():
        raise TunediffError(
            "steering: a measure is not finite; give `models.dtype` more range (bfloat16 or float32), or lower "
            "`steering.alphas`"
        )
    shown = []
    for run, after in zip(runs[2:], answers[2:], strict=True):
        place = {"crosscoder": run.of.crosscoder, "latent": run.of.latent, "arm": run.arm.name, "draw": run.arm.draw}
        place |= {"alpha": run.alpha, "positions": run.positions}
        before = answers[0 if run.arm.model == "chat" else 1]
        for k in range(min(SHOWN, n)):
            said = {"prompt": parts[k].asked, "unsteered": before[k], "steered": after[k]}
            shown.append(place | {"request": asked[k]} | {name: text(ids) for name, ids in said.items()})
    with building(out.with_suffix(".texts.parquet")) as partial:
        typed(shown, TEXTS).to_parquet(partial, index=False)
    facts = {
        "settings": {name: value for name, value in asdict(settings).items() if not name.endswith("batch_size")},
        "requests": asked,
        "mean_norm": seen.norm,
        "kinds": {f"{e.crosscoder}/{e.latent}": dict(zip(("kind", "auroc"), own[e], strict=True)) for e in chosen},
    }
    write_frame(table, out, "steering", key, facts, provenance(started, device), beside=[".texts.parquet"])
    return table
