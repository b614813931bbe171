"""The examples of every latent, made: windows from the pass, windows of silence, tokens, neighbours, direct logits."""

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tunediff.config.settings import ExampleSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.examples import BAND_FROM, INACTIVE, INACTIVE_HARD, STRONGEST, Writer, lists, writing
from tunediff.latents.seeds import directions
from tunediff.latents.table import LatentTable
from tunediff.latents.windows import Firing, Found, Texts, find, hashed, positions
from tunediff.models.residual import ResidualModel
from tunediff.pipeline.artifacts import provenance

TOKENS_SHOWN, NEIGHBOURS_SHOWN, LOGITS_SHOWN = 10, 5, 15  # rows per latent and kind, kind, and end
MIN_JOINT = 2  # sampled tokens on which two latents must fire together to be neighbours by co-activation
CANDIDATES = 128  # random windows looked at per latent, until enough are silent
HARD_TOKENS, HARD_CANDIDATES = 3, 64  # most frequent tokens of a latent, and windows looked at per token
LATENTS_AT_ONCE = 1024  # whose candidates or joint firings are looked at together
ROW_GROUP = 32  # latents that are read together
COSINES_AT_ONCE = 1 << 26  # entries of a block of cosines
LOGITS_AT_ONCE = 1 << 26  # entries of a block of direct logits: 256 MiB of float32


def largest_first(group: NDArray[np.integer], score: NDArray[np.floating], size: int) -> NDArray[np.int64]:
    """Return the rows of the `size` largest scores of each group, sorted by group and falling score (ties by row)."""
    order = np.lexsort((-score, group))
    start = np.searchsorted(group[order], group[order])
    return order[np.arange(len(order)) - start < size]


def token_tables(found: Found, texts: Texts) -> dict[str, NDArray[Any]]:
    """Return the tokens that latents fire on, and those that follow: the columns of table `tokens`.

    Shown are those with the largest part, share · log lift, of the divergence of the latent's tokens from the corpus: a
    token is typical of a latent where it is both frequent there and rarer elsewhere. Counted are the sampled firings.
    """
    latent, position = (torch.cat(column) for column in zip(*found.firings, strict=True))
    counted = torch.from_numpy(np.flatnonzero(found.counted)).to(position.device)
    n_ids = int(texts.token_id.max()) + 1
    tables = []
    for number, shift in enumerate((0, 1)):
        within = position + shift < texts.start[texts.document[position] + 1]
        corpus = counted[counted + shift < texts.start[texts.document[counted] + 1]] + shift
        share_of = torch.bincount(texts.token_id[corpus], minlength=n_ids).double() / max(1, len(corpus))
        pair = latent[within] * n_ids + texts.token_id[position[within] + shift]
        pair, count = (each.cpu().numpy() for each in torch.unique(pair, return_counts=True))
        own, token_id = np.divmod(pair, n_ids)
        share = count / np.bincount(own, count, minlength=1)[own]
        lift = share / share_of.cpu().numpy()[token_id]
        rows = largest_first(own, share * np.log(lift), TOKENS_SHOWN)
        rows = rows[lift[rows] > 1]
        kind = np.full(len(rows), number)
        tables.append(np.stack([own[rows], kind, token_id[rows], count[rows], share[rows], lift[rows]]))
    both = np.concatenate(tables, axis=1)
    latent_, kind_, token_id, count, share, lift = both[:, np.lexsort((both[1], both[0]))]
    return {
        "latent": latent_.astype(np.int32),
        "kind": np.array(["peak", "next"], dtype=object)[kind_.astype(int)],
        "token_id": token_id.astype(np.int32),
        "count": count.astype(np.int32),
        "share": share.astype(np.float32),
        "lift": lift.astype(np.float32),
    }


def frequent_tokens(shown: Mapping[str, NDArray[Any]]) -> dict[int, list[int]]:
    """Return the tokens that each latent fires on, of those in the table `tokens`, the most frequent first."""
    by_count = np.lexsort((-shown["count"], shown["latent"]))
    frequent: dict[int, list[int]] = {}
    for row in by_count[shown["kind"][by_count] == "peak"].tolist():
        frequent.setdefault(int(shown["latent"][row]), []).append(int(shown["token_id"][row]))
    return frequent


class Silent(NamedTuple):
    """Centres of windows in which a latent does not fire."""

    centre: Int[Tensor, "latent place"]  # −1 where there are fewer
    hard: Int[Tensor, "latent place"]  # the same, of windows around one of the latent's most frequent tokens


def _first_places(good: Tensor, centre: Tensor, size: int) -> Int[Tensor, "latent place"]:
    """Return the first `size` centres that are good, in order, and −1 after them."""
    rank = good.cumsum(1) - 1
    kept = good & (rank < size)
    result = torch.full((len(good), size), -1, dtype=torch.int64, device=good.device)
    row, column = kept.nonzero(as_tuple=True)
    result[row, rank[row, column]] = centre[row, column]
    return result


def _first_of_document(good: Tensor, document: Tensor) -> Tensor:
    """Return which candidates are good and the first such of their document, row by row."""
    key = torch.where(good, document, -1)
    order = key.sort(dim=1, stable=True).indices
    ordered = key.gather(1, order)
    first = ordered >= 0
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    return torch.zeros_like(good).scatter(1, order, first)


def silent_windows(
    found: Found,
    texts: Texts,
    frequent: Mapping[int, list[int]],
    latents: NDArray[np.int64],
    settings: ExampleSettings,
) -> Silent:
    """Return windows of the sampled documents in which each of `latents` is silent, at most one per document and kind.

    `frequent` holds each latent's most frequent tokens. Where a latent fires almost everywhere there are fewer.
    """
    context, size, seed = settings.context, settings.inactive, settings.seed
    sample, device = found.sample, texts.start.device
    generator = np.random.default_rng([seed, 1])
    counted = np.flatnonzero(found.counted & sample.chosen.cpu().numpy())
    shuffled = generator.permutation(counted)
    # one random centre in each document, the documents in their random order
    of_document = texts.document.cpu().numpy()[shuffled]
    documents, first = np.unique(of_document, return_index=True)
    pool = torch.from_numpy(shuffled[first[np.searchsorted(documents, sample.documents)]]).to(device)
    # all positions of each token, in random order
    ids = texts.token_id.cpu().numpy()[shuffled]
    by_token = np.argsort(ids, kind="stable")
    places = torch.from_numpy(shuffled[by_token]).to(device)
    bounds = torch.from_numpy(np.searchsorted(ids[by_token], np.arange(int(texts.token_id.max()) + 2))).to(device)

    parts = []
    for start in range(0, len(latents), LATENTS_AT_ONCE):
        block = latents[start : start + LATENTS_AT_ONCE]
        latent = torch.from_numpy(block).to(device)[:, None]
        turn = hashed(latent, torch.zeros_like(latent), seed + 2)
        n = min(CANDIDATES, len(pool))
        centre = pool[(turn + torch.arange(n, device=device)) % len(pool)]
        good = sample.silent(latent.expand_as(centre).contiguous(), *texts.window(centre, context))
        easy = _first_places(good, centre, size)

        token = np.full((len(block), HARD_TOKENS), -1)
        for row, number in enumerate(block.tolist()):
            own = frequent.get(number, [])[:HARD_TOKENS]
            token[row, : len(own)] = own
        ids_ = torch.from_numpy(token).to(device)[:, :, None]
        low, high = bounds[ids_.clamp(min=0)], bounds[ids_.clamp(min=0) + 1]
        number = torch.arange(HARD_CANDIDATES, device=device)
        exists = (ids_ >= 0) & (number < high - low)
        at = low + (turn[:, :, None] + number) % (high - low).clamp(min=1)
        centre = places[torch.where(exists, at, 0)]
        # the candidates of the tokens in turn, so that none takes all places
        exists, centre = (each.transpose(1, 2).reshape(len(block), -1) for each in (exists, centre))
        good = exists & sample.silent(latent.expand_as(centre).contiguous(), *texts.window(centre, context))
        hard = _first_places(_first_of_document(good, texts.document[centre]), centre, size)
        parts.append((easy, hard))
    if not parts:
        none = torch.zeros(0, size, dtype=torch.int64, device=device)
        return Silent(none, none)
    return Silent(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Nearest(NamedTuple):
    """The nearest of some latents, the nearest first; −1 where there are fewer."""

    neighbour: NDArray[np.int64]  # (latent, place)
    value: NDArray[np.float32]


def nearest_by_cosine(directions: Float[Tensor, "latent width"], latents: NDArray[np.int64]) -> Nearest:
    """Return the latents of largest cosine among `latents`, given rows of length 1 of all (`seeds.directions`)."""
    rows = directions[torch.from_numpy(latents).to(directions.device)]
    size = min(NEIGHBOURS_SHOWN, max(0, len(rows) - 1))
    neighbour = np.full((len(rows), NEIGHBOURS_SHOWN), -1)
    value = np.zeros((len(rows), NEIGHBOURS_SHOWN), dtype=np.float32)
    step = max(1, COSINES_AT_ONCE // max(1, len(rows)))
    for start in range(0, len(rows), step):
        cosine = rows[start : start + step] @ rows.T
        own = torch.arange(len(cosine), device=cosine.device)
        cosine[own, own + start] = -torch.inf
        best = cosine.topk(size, dim=1)
        here = slice(start, start + step)
        neighbour[here, :size] = latents[best.indices.cpu().numpy()]
        value[here, :size] = best.values.cpu().numpy()
    return Nearest(neighbour, value)


def nearest_by_firing(found: Found, n_latents: int, latents: NDArray[np.int64]) -> Nearest:
    """Return the latents of largest Jaccard index of firing on the sampled documents, of each of `latents`.

    The index is the share of the tokens on which at least one of two latents fires that both fire on.
    """
    latent, number = found.sample.codes()
    ones = np.ones(len(latent), dtype=np.float32)
    shape = (n_latents, max(1, found.sample.n_tokens))
    fires = scipy.sparse.csr_array((ones, (latent, number)), shape=shape)
    count = np.bincount(latent, minlength=n_latents)
    tokens = fires.T.tocsr()
    neighbour = np.full((len(latents), NEIGHBOURS_SHOWN), -1)
    value = np.zeros((len(latents), NEIGHBOURS_SHOWN), dtype=np.float32)
    for start in range(0, len(latents), LATENTS_AT_ONCE):
        block = latents[start : start + LATENTS_AT_ONCE]
        joint = (fires[block] @ tokens).tocoo()
        row, other, both = joint.coords[0], joint.coords[1], joint.data
        kept = (other != block[row]) & (both >= MIN_JOINT)
        row, other, both = row[kept], other[kept], both[kept]
        index = both / (count[block[row]] + count[other] - both)
        best = largest_first(row, index, NEIGHBOURS_SHOWN)
        place = np.arange(len(best)) - np.searchsorted(row[best], row[best])
        neighbour[start + row[best], place] = other[best]
        value[start + row[best], place] = index[best]
    return Nearest(neighbour, value)


class Extremes(NamedTuple):
    """The tokens of highest and lowest direct logit of some latents' decoder rows."""

    token_id: NDArray[np.int64]  # (latent, direction, end, place)
    value: NDArray[np.float32]


def directions_of(crosscoder: Crosscoder) -> tuple[str, ...]:
    """Return the names of the directions whose direct logits are taken."""
    return ("chat", "base", "difference") if crosscoder.reconstructs == "models" else ("difference",)


def extreme_logits(
    crosscoder: Crosscoder, direct_logits: Callable[[Tensor], Tensor], vocab_size: int, latents: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], Extremes]]:
    """Yield some of `latents` and their extreme direct logits (`ResidualModel.direct_logits`), block by block."""
    size = min(LOGITS_SHOWN, vocab_size)
    step = max(1, LOGITS_AT_ONCE // (3 * vocab_size))
    for start in range(0, len(latents), step):
        block = latents[start : start + step]
        weight = crosscoder.decoder_weight[torch.from_numpy(block).to(crosscoder.decoder_weight.device)]
        streams = [direct_logits(weight[:, m]) for m in range(weight.shape[1])]
        rows = [streams[1], streams[0], streams[1] - streams[0]] if len(streams) == 2 else streams
        token_id = np.empty((len(block), len(rows), 2, size), dtype=np.int64)
        value = np.empty(token_id.shape, dtype=np.float32)
        for i, logits in enumerate(rows):
            for end, largest in enumerate((True, False)):
                best = logits.topk(size, dim=1, largest=largest)
                token_id[:, i, end], value[:, i, end] = best.indices.cpu().numpy(), best.values.cpu().numpy()
        yield block, Extremes(token_id, value)


# -- the artifact ------------------------------------------------------------------------------------------------------


def window_columns(
    found: Found, silent: Silent, texts: Texts, latents: NDArray[np.int64], rows: slice, settings: ExampleSettings
) -> dict[str, Any]:
    """Return the columns of table `windows` for `latents[rows]`; `silent` is about all of `latents`."""
    block = torch.from_numpy(latents[rows]).to(texts.start.device)
    kept = found.strongest, *found.bands
    centre = [positions(best.entry[block]) for best in kept]
    own = torch.cat([best.activation[block] for best in kept], dim=1)
    sizes = {STRONGEST: settings.strongest} | dict.fromkeys(BAND_FROM, settings.per_band)
    sizes |= {INACTIVE: settings.inactive, INACTIVE_HARD: settings.inactive}
    every = torch.cat([*centre, silent.centre[rows], silent.hard[rows]], dim=1)
    row, column = (each.cpu().numpy() for each in (every >= 0).nonzero(as_tuple=True))
    peak = every[every >= 0]
    (start, end), document = texts.window(peak, settings.context), texts.document[peak]
    source = texts.source[document]
    first, last, at, number, of = (each.cpu().numpy() for each in (start, end, peak, document, source))
    activation = np.zeros((len(row), own.shape[2]), dtype=np.float32)
    active = column < own.shape[1]
    activation[active] = own.cpu().numpy()[row[active], column[active]]
    position = at[:, None] + np.arange(-settings.context, settings.context + 1)
    inside = (position >= first[:, None]) & (position < last[:, None])
    return {
        "latent": latents[rows][row].astype(np.int32),
        "band": np.repeat(np.array(list(sizes), dtype=object), list(sizes.values()))[column],
        "place": np.concatenate([np.arange(size) for size in sizes.values()])[column].astype(np.int16),
        "document": number.astype(np.int32),
        "start": first,
        "peak": at,
        "value": activation[:, settings.context],
        "source": np.array(texts.sources, dtype=object)[of],
        "activation": lists(activation[inside], inside.sum(1)),
    }


def histogram_columns(found: Found, sources: list[str], latents: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return the columns of table `histogram`."""
    counts = found.histogram.cpu().numpy()[latents]
    row, source, number = np.nonzero(counts)
    return {
        "latent": latents[row].astype(np.int32),
        "source": np.array(sources, dtype=object)[source],
        "bin": number.astype(np.int8),
        "count": counts[row, source, number],
    }


def neighbour_columns(latents: NDArray[np.int64], nearest: Mapping[str, Nearest]) -> dict[str, NDArray[Any]]:
    """Return the columns of table `neighbours`, given the nearest of each kind."""
    neighbour = np.stack([each.neighbour for each in nearest.values()], axis=1)
    value = np.stack([each.value for each in nearest.values()], axis=1)
    row, kind, place = np.nonzero(neighbour >= 0)
    return {
        "latent": latents[row].astype(np.int32),
        "kind": np.array(list(nearest), dtype=object)[kind],
        "place": place.astype(np.int8),
        "neighbour": neighbour[row, kind, place].astype(np.int32),
        "value": value[row, kind, place],
    }


def logit_columns(latents: NDArray[np.int64], extremes: Extremes, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Return the columns of table `logits` for some latents."""
    row, direction, end, place = (each.ravel() for each in np.indices(extremes.value.shape))
    return {
        "latent": latents[row].astype(np.int32),
        "direction": np.array(names, dtype=object)[direction],
        "end": np.array(["highest", "lowest"], dtype=object)[end],
        "place": place.astype(np.int8),
        "token_id": extremes.token_id.ravel().astype(np.int32),
        "value": extremes.value.ravel(),
    }


def _add(writer: Writer, name: str, columns: Mapping[str, NDArray[Any]], latents: NDArray[np.int64]) -> None:
    """Write the rows of `latents` in row groups of whole latents."""
    cuts = np.searchsorted(columns["latent"], [*latents[::ROW_GROUP], latents[-1] + 1] if len(latents) else [])
    for start, end in pairwise(cuts.tolist()):
        writer.add(name, {column: values[start:end] for column, values in columns.items()})


@torch.no_grad()
def build_examples(
    crosscoder: Crosscoder,
    table: LatentTable,
    store: ActivationStore,
    tokens: TokenStore,
    model: ResidualModel,
    settings: ExampleSettings,
    out: Path,
    *,
    key: str,
    device: str = "cpu",
) -> None:
    """Find the examples of every live latent of a dictionary and write them at `out`, a folder (kind `examples`).

    `store` and `tokens` are of the validation split; `model` is the chat model, with its upper half. `TunediffError`:
    there is no token to look at.
    """
    started = time.time()
    firing = Firing(*(table.frame[name].to_numpy() for name in ("max_activation", "count_validation")))
    found, texts = find(crosscoder, firing, store, tokens, settings, device, f"{out.name} examples")
    pass_seconds = round(time.time() - started, 2)
    live = np.flatnonzero(~table.frame["dead"].to_numpy())

    shown = token_tables(found, texts)
    silent = silent_windows(found, texts, frequent_tokens(shown), live, settings)
    nearest = {
        "cosine": nearest_by_cosine(directions(crosscoder), live),
        "coactivation": nearest_by_firing(found, crosscoder.dict_size, live),
    }
    named = ("context", "strongest", "per_band", "inactive", "firings", "seed")
    facts = {
        "settings": {name: getattr(settings, name) for name in named},
        "sources": texts.sources,
        "latents": len(live),
        "dict_size": crosscoder.dict_size,
        "directions": list(directions_of(crosscoder)),
        "n_tokens": int(found.counted.sum()),
        "bands_from": BAND_FROM,
        "sample": {"documents": len(found.sample.documents), "tokens": found.sample.n_tokens},
        "fewer_windows": {
            name: int((centres < 0).any(1).sum())
            for name, centres in ((INACTIVE, silent.centre), (INACTIVE_HARD, silent.hard))
        },
        "peak": "largest activation of the latent in its document; a band holds one window per document",
        "tokens": f"of about {settings.firings} random firings, those from {min(BAND_FROM.values())} of the maximum on",
        "inactive": f"silent windows of the sample; hard ones are around one of the {HARD_TOKENS} most frequent tokens",
        "coactivation": f"Jaccard index on the sample, of latents that fire together on {MIN_JOINT} tokens or more",
        "logits": "W_U (γ ⊙ d) of the chat model, γ the scale of its final norm",
        "left_out": "latents that fire on no counted validation token",
    }
    made: dict[str, Any] = {}
    with writing(out, key=key, facts=facts, provenance=made) as writer:
        for start in range(0, len(live), ROW_GROUP):
            rows = slice(start, start + ROW_GROUP)
            writer.add("windows", window_columns(found, silent, texts, live, rows, settings))
        _add(writer, "tokens", shown, live)
        _add(writer, "histogram", histogram_columns(found, texts.sources, live), live)
        _add(writer, "neighbours", neighbour_columns(live, nearest), live)
        for block, extremes in extreme_logits(crosscoder, model.direct_logits, model.vocab_size, live):
            _add(writer, "logits", logit_columns(block, extremes, directions_of(crosscoder)), block)
        made |= provenance(started, device, pass_seconds=pass_seconds)
