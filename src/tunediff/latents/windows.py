"""The pass that finds each latent's examples on validation tokens (method.md section 11).

Activations are stored permuted, so the codes of some tokens wait until the documents they belong to are whole. Their
nonzeros are then sorted by latent and position, once: every step after that is a scan or two binary searches. What is
kept per latent is a fixed number of entries, each an integer: a priority (the activation, or a hash), then a position.
So memory does not grow with the tokens, results do not depend on how many are read at a time, and all stays on the
device. Tokens that no metric counts have no activation here.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tunediff.config.settings import ExampleSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.tokens import TokenStore
from tunediff.data.transfer import moved
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.latents.examples import BAND_FROM, HISTOGRAM_BINS
from tunediff.latents.passes import encoded_batches

BLOCK_TOKENS = 1 << 16  # tokens whose codes are sorted together, at least: a shard
ENTRIES_AT_ONCE = 1 << 24  # compared together
WINDOWS_AT_ONCE = 1 << 17  # whose activations are looked up together
POSITION = (1 << 32) - 1  # the low bits of an entry: this minus a position, so that of equals the earliest is largest


def _signed(value: int) -> int:
    """Return the low 64 bits of a number as torch reads them."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def hashed(left: Int[Tensor, "*shape"], right: Int[Tensor, "*shape"], seed: int) -> Int[Tensor, "*shape"]:
    """Return 31 random bits of two numbers (the finaliser of splitmix64), the same on every device."""
    mixed = left * _signed(0x9E3779B97F4A7C15) + right * _signed(0xD1B54A32D192ED03)
    mixed = mixed + _signed((seed + 1) * 0x632BE59BD9B4E019)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return (mixed >> 33) & 0x7FFFFFFF


@dataclass
class Texts:
    """The tokens of a split, on the device."""

    token_id: Int[Tensor, "position"]
    document: Int[Tensor, "position"]
    start: Int[Tensor, "document_plus_1"]  # first position of each document, and the number of positions
    source: Int[Tensor, "document"]
    sources: list[str]

    @classmethod
    def of(cls, tokens: TokenStore, device: str) -> "Texts":
        """Read a store."""

        def wide(array: NDArray[np.integer]) -> Tensor:
            return moved(array.astype(np.int64), device)

        per_position = wide(tokens.token_id), wide(tokens.doc)
        return cls(*per_position, wide(tokens.doc_start), wide(tokens.doc_source), tokens.sources)

    def window(
        self, centre: Int[Tensor, "*shape"], context: int
    ) -> tuple[Int[Tensor, "*shape"], Int[Tensor, "*shape"]]:
        """Return first position and end of the window around a position, inside its document."""
        document = self.document[centre]
        return (
            torch.maximum(self.start[document], centre - context),
            torch.minimum(self.start[document + 1], centre + context + 1),
        )


class Firings(NamedTuple):
    """The nonzeros of whole documents, sorted by latent and then position."""

    latent: Int[Tensor, "nonzero"]
    position: Int[Tensor, "nonzero"]
    value: Float[Tensor, "nonzero"]
    place: Int[Tensor, "nonzero"]  # latent · span + position − first: rising
    first: int  # position of the first token
    span: int  # number of tokens

    def between(
        self, latent: Int[Tensor, "window"], start: Int[Tensor, "window"], end: Int[Tensor, "window"]
    ) -> tuple[Int[Tensor, "window"], Int[Tensor, "window"]]:
        """Return where a latent's nonzeros on the positions [start, end) begin and end."""
        at = latent * self.span - self.first
        return torch.searchsorted(self.place, at + start), torch.searchsorted(self.place, at + end)


def sorted_firings(latent: Tensor, position: Tensor, value: Tensor, first: int, span: int, n_latents: int) -> Firings:
    """Return nonzeros on the positions [first, first + span), given in any order."""
    if latent.is_cuda:
        place, order = torch.sort(latent * span + (position - first))
        return Firings(latent[order], position[order], value[order], place, first, span)
    # on a CPU two counting sorts are five times faster
    columns = value.numpy(), ((position - first).int().numpy(), latent.int().numpy())
    ordered = scipy.sparse.coo_array(columns, shape=(span, n_latents)).tocsr().tocsc()
    latent = torch.from_numpy(np.repeat(np.arange(n_latents), np.diff(ordered.indptr)))
    offset = torch.from_numpy(ordered.indices.astype(np.int64))
    return Firings(latent, offset + first, torch.from_numpy(ordered.data), latent * span + offset, first, span)


def entries(priority: Int[Tensor, "entry"], position: Int[Tensor, "entry"]) -> Int[Tensor, "entry"]:
    """Return priority (31 bits, above) and position (below) as one number."""
    return (priority << 32) | (POSITION - position)


def bits(value: Float[Tensor, "entry"]) -> Int[Tensor, "entry"]:
    """Return positive float32 numbers as integers of the same order."""
    return value.view(torch.int32).long()


def positions(entry: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return the position of every entry; −1 of 0, which is none."""
    return torch.where(entry > 0, POSITION - (entry & POSITION), -1)


class Best:
    """The `size` largest entries of every group, whatever the order in which they come; 0 is none."""

    def __init__(self, n_groups: int, size: int, device: str) -> None:
        self.size = size
        self.entry = torch.zeros(n_groups, size, dtype=torch.int64, device=device)

    def add(self, group: Int[Tensor, "entry"], entry: Int[Tensor, "entry"]) -> tuple[Tensor, Tensor]:
        """Add entries, groups rising; return the groups that changed and where their entries were.

        Those under `size` were at that place before, the others are new.
        """
        above = entry > self.entry[group, -1]
        group, entry = group[above], entry[above]
        changed, row, count = torch.unique_consecutive(group, return_inverse=True, return_counts=True)
        start = count.cumsum(0) - count
        rank = torch.arange(len(group), device=group.device) - start[row]
        origin = torch.empty(len(changed), self.size, dtype=torch.int64, device=group.device)
        step = max(1, ENTRIES_AT_ONCE // int(count.max())) if len(count) else 1
        for low in range(0, len(changed), step):
            some, size = changed[low : low + step], count[low : low + step]
            own = slice(int(start[low]), int(start[low]) + int(size.sum()))
            both = self.entry.new_zeros(len(some), self.size + int(size.max()))
            both[:, : self.size] = self.entry[some]
            both[row[own] - low, rank[own] + self.size] = entry[own]
            best = both.topk(self.size, dim=1)
            self.entry[some], origin[low : low + step] = best.values, best.indices
        return changed, origin


class BestWindows(Best):
    """The best entries of every latent, with the activations of the window around each."""

    def __init__(self, n_latents: int, size: int, context: int, device: str) -> None:
        super().__init__(n_latents, size, device)
        self.context = context
        self.activation = torch.zeros(*self.entry.shape, 2 * context + 1, device=device)  # the peak in the middle

    def look_up(self, latent: Tensor, entry: Tensor, firings: Firings, texts: Texts) -> None:
        """Add entries whose windows lie in `firings`, latents rising."""
        changed, origin = self.add(latent, entry)
        if not len(changed):
            return
        fresh = origin >= self.size
        step = max(1, WINDOWS_AT_ONCE // self.size)
        for some, new, place in zip(changed.split(step), fresh.split(step), origin.split(step), strict=True):
            kept = self.activation[some].gather(
                1, place.clamp(max=self.size - 1)[..., None].expand(-1, -1, self.activation.shape[2])
            )
            self.activation[some] = kept.masked_fill_(new[..., None], 0)
        row, place = (fresh & (self.entry[changed] > 0)).nonzero(as_tuple=True)
        slots = changed[row] * self.size + place
        for slot in slots.split(WINDOWS_AT_ONCE):
            centre = positions(self.entry.view(-1)[slot])
            start, end = texts.window(centre, self.context)
            low, high = firings.between(slot // self.size, start, end)
            count = high - low
            window = torch.repeat_interleave(torch.arange(len(slot), device=slot.device), count)
            inside = torch.arange(len(window), device=slot.device) - (count.cumsum(0) - count)[window]
            at = low[window] + inside
            offset = firings.position[at] - centre[window] + self.context
            self.activation.view(len(self.activation) * self.size, -1)[slot[window], offset] = firings.value[at]


@dataclass
class Sample:
    """Whole documents, chosen at random, of which every firing is kept: what says that a window holds none."""

    documents: NDArray[np.int64]  # in random order
    chosen: Tensor  # per position: whether its document is one of them
    number: Tensor  # per position: how many such positions are before it
    place: list[Tensor]  # latent · n_tokens + number, per block

    @property
    def n_tokens(self) -> int:
        """Number of its positions."""
        return int(self.number[-1]) if len(self.number) else 0

    @classmethod
    def draw(cls, texts: Texts, counted: NDArray[np.bool_], n_tokens: int, seed: int) -> "Sample":
        """Choose documents that have a counted token, in random order, until they hold `n_tokens` positions."""
        start = texts.start.cpu().numpy()
        before = np.concatenate([[0], np.cumsum(counted)])
        order = np.random.default_rng([seed, 0]).permutation(len(start) - 1)
        order = order[before[start[order + 1]] > before[start[order]]]
        length = (start[order + 1] - start[order]).cumsum()
        documents = order[: np.searchsorted(length, n_tokens) + 1]
        member = np.zeros(len(start) - 1, dtype=bool)
        member[documents] = True
        chosen = np.repeat(member, np.diff(start))
        number = np.concatenate([[0], np.cumsum(chosen)])
        device = texts.start.device
        return cls(documents, torch.from_numpy(chosen).to(device), torch.from_numpy(number).to(device), [])

    def add(self, firings: Firings) -> None:
        """Keep the firings on the chosen documents."""
        own = self.chosen[firings.position]
        self.place.append(firings.latent[own] * self.n_tokens + self.number[firings.position[own]])

    def finish(self) -> None:
        """Sort what was kept, once all firings are there."""
        place = torch.cat([*self.place, self.number[:0]])
        self.place = [place.sort().values if place.is_cuda else torch.from_numpy(np.sort(place.numpy()))]

    def silent(
        self, latent: Int[Tensor, "*shape"], start: Int[Tensor, "*shape"], end: Int[Tensor, "*shape"]
    ) -> Bool[Tensor, "*shape"]:
        """Return whether a latent fires nowhere on positions [start, end) of a chosen document."""
        (place,), at = self.place, latent * self.n_tokens
        low = torch.searchsorted(place, at + self.number[start])
        return low == torch.searchsorted(place, at + self.number[end])

    def codes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return latent and number of the position of every firing, sorted by both."""
        latent, number = np.divmod(self.place[0].cpu().numpy(), self.n_tokens)
        return latent, number


class Firing(NamedTuple):
    """What is known of every latent on the same tokens before the pass."""

    maximum: NDArray[np.floating]  # activation; 0 of a latent that does not fire
    tokens: NDArray[np.integer]  # on which it fires


@dataclass
class Found:
    """What the pass keeps."""

    strongest: BestWindows  # by activation
    bands: list[BestWindows]  # at random, in the order of BAND_FROM
    firings: list[tuple[Tensor, Tensor]]  # latent and position of random firings from the lowest band on
    histogram: Int[Tensor, "latent source bin"]  # of all firings
    sample: Sample
    counted: NDArray[np.bool_]  # per position
    maximum: Float[Tensor, "latent"]  # largest activation, float64; infinite of a latent that does not fire
    kept: Int[Tensor, "latent"]  # a firing is kept whose hash is below this
    seed: int

    @classmethod
    def empty(
        cls, firing: Firing, texts: Texts, counted: NDArray[np.bool_], settings: ExampleSettings, device: str
    ) -> "Found":
        """Return the state before the first token."""
        maximum, count = (torch.from_numpy(column.astype(np.float64)).to(device) for column in firing)
        n, windows = len(maximum), (settings.context, device)
        return cls(
            BestWindows(n, settings.strongest, *windows),
            [BestWindows(n, settings.per_band, *windows) for _ in BAND_FROM],
            [],
            torch.zeros(n, len(texts.sources), HISTOGRAM_BINS, dtype=torch.int64, device=device),
            Sample.draw(texts, counted, settings.sample_tokens, settings.seed),
            counted,
            torch.where(maximum > 0, maximum, torch.inf),
            ((settings.firings / count).clamp(max=1) * (1 << 31)).long(),
            settings.seed,
        )

    def add(self, firings: Firings, texts: Texts) -> None:
        """Add the firings on whole documents."""
        self.sample.add(firings)
        latent, position, value = firings[:3]
        share = value.double() / self.maximum[latent]
        document = texts.document[position]
        cell = latent * len(texts.sources) + texts.source[document]
        cell = cell * HISTOGRAM_BINS + (share * HISTOGRAM_BINS).long().clamp(max=HISTOGRAM_BINS - 1)
        self.histogram += torch.bincount(cell, minlength=self.histogram.numel()).view_as(self.histogram)

        lowest = min(BAND_FROM.values())
        kept = (hashed(latent, position, self.seed) < self.kept[latent]) & (share >= lowest)
        self.firings.append((latent[kept], position[kept]))

        # the largest activation of each latent in each document
        first = torch.ones_like(kept)
        first[1:] = (latent[1:] != latent[:-1]) | (document[1:] != document[:-1])
        latent, document = latent[first], document[first]
        peak = torch.zeros_like(latent)
        peak.scatter_reduce_(0, first.cumsum(0) - 1, entries(bits(value), position), "amax")
        self.strongest.look_up(latent, peak, firings, texts)
        share = (peak >> 32).int().view(torch.float32).double() / self.maximum[latent]
        drawn = (hashed(latent, document, self.seed + 1) << 32) | (peak & POSITION)
        highest = torch.inf
        for best, low in zip(self.bands, BAND_FROM.values(), strict=True):
            own = (share >= low) & (share < highest)
            best.look_up(latent[own], drawn[own], firings, texts)
            highest = low


@torch.no_grad()
def find(
    crosscoder: Crosscoder,
    firing: Firing,
    store: ActivationStore,
    tokens: TokenStore,
    settings: ExampleSettings,
    device: str,
    name: str,
) -> tuple[Found, Texts]:
    """Read the store once and return what is kept of every latent. `name` is that of the progress bar.

    `TunediffError`: no token is counted.
    """
    texts = Texts.of(tokens, device)
    counted = np.zeros(tokens.n_tokens, dtype=bool)
    counted[store.row[store.kept()]] = True
    before = np.concatenate([[0], np.cumsum(counted)])
    found = Found.empty(firing, texts, counted, settings, device)
    start, first = tokens.doc_start, 0
    waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(end: int) -> None:
        """Add the documents that end by position `end`; the rest of their tokens' codes wait on."""
        nonlocal waiting, first
        latent, position, value = (torch.cat(column) for column in zip(*waiting, strict=True))
        whole = position < end
        own = latent[whole], position[whole], value[whole]
        found.add(sorted_firings(*own, first, end - first, crosscoder.dict_size), texts)
        waiting, first = [(latent[~whole], position[~whole], value[~whole])], end

    seen = high = since = 0
    for batch, code in encoded_batches(crosscoder, store, settings.batch_size, device, name):
        position = moved(batch.row, device)[code.token]
        waiting.append((code.latent, position, code.value.float()))
        seen, since, high = seen + len(batch.row), since + len(batch.row), max(high, int(batch.row.max()) + 1)
        if since >= BLOCK_TOKENS and seen == before[high]:  # nothing before `high` is missing
            add(int(start[np.searchsorted(start, high, side="right") - 1]))
            since = 0
    if not seen:
        raise TunediffError(f"{name}: no token to look at; raise the token budget of validation")
    add(tokens.n_tokens)
    found.sample.finish()
    return found, texts
