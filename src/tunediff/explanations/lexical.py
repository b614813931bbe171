"""The lexical explanation: a rule of tokens, found without a language model (method.md section 8).

A rule is a few clauses, joined by or. A clause is a token, a token after or before a given one, or a token in a given
role. Clauses are added one by one: the one that most raises the share of the latent's windows in which it fires there,
less the share of windows of other texts that hold the clause anywhere. So a rule says what the latent fires on and not
what is everywhere. It is applied to a window as it is found: the same rule detects.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunediff.data.masks import LEFT_OUT, Mask
from tunediff.data.tokens import TokenStore
from tunediff.markup import quoted

FIRES_FROM = 0.1  # of the latent's maximum: the tokens of a window that count as those it fires on
CORPUS_WINDOWS = 2000  # windows of other texts
MOST_CLAUSES = 6
CANDIDATES = 64  # clauses looked at, the best alone
LEAST_GAIN = 0.03  # what a clause must add
ROLES = ("the template", "an answer", "a request", "plain text")
KINDS = ("token", "after", "before", "role")  # of a clause; `other` is the token before or after, or the role
BITS = 24  # of a token id


class Clause(NamedTuple):
    """A part of a rule."""

    kind: str  # of KINDS
    token: int
    other: int  # a token id, or an index into ROLES; 0 of a token alone
    weight: float  # share of the latent's windows that it is found in, less that of other texts

    def text(self, piece: Callable[[int], str]) -> str:
        """Return the clause in words."""
        own = quoted(piece(self.token))
        if self.kind == "token":
            return own
        return (
            f"{own} in {ROLES[self.other]}" if self.kind == "role" else f"{own} {self.kind} {quoted(piece(self.other))}"
        )


class Rule(NamedTuple):
    """Clauses, and what all of them together are found in."""

    clauses: tuple[Clause, ...]
    found: float  # share of the latent's windows in which it fires on one of them
    elsewhere: float  # share of windows of other texts that hold one


def roles(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the role of each token, an index into ROLES."""
    bits = [mask & np.uint8(bit) != 0 for bit in (Mask.TEMPLATE, Mask.ASSISTANT, Mask.USER)]
    return np.select(bits, [0, 1, 2], 3).astype(np.int64)


class Spans(NamedTuple):
    """The tokens of several windows, one window after another."""

    window: NDArray[np.int64]  # number of each token's window
    token_id: NDArray[np.integer]
    mask: NDArray[np.uint8]
    label: NDArray[np.uint64]
    n_windows: int

    @classmethod
    def of(cls, tokens: TokenStore, start: NDArray[np.int64], length: NDArray[np.int64]) -> "Spans":
        """Read the windows that start at some positions of a store."""
        window = np.repeat(np.arange(len(start)), length)
        position = np.arange(len(window)) + np.repeat(start - (np.cumsum(length) - length), length)
        return cls(window, tokens.token_id[position], tokens.mask[position], tokens.label[position], len(start))

    def held(self, token: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return in which windows any of the tokens is true."""
        return np.bincount(self.window[token], minlength=self.n_windows) > 0

    def clause_keys(self) -> NDArray[np.int64]:
        """Return the clauses that each token fits, as numbers, shape (kind, token); −1 where there is none."""
        ids = self.token_id.astype(np.int64)
        keys = np.stack([ids << BITS for _ in KINDS])
        same = self.window[1:] == self.window[:-1]
        keys[1, 1:] |= ids[:-1]
        keys[2, :-1] |= ids[1:]
        keys[3] |= roles(self.mask)
        keys |= np.arange(len(KINDS))[:, None] << (2 * BITS)
        keys[1, 1:][~same], keys[2, :-1][~same], keys[1, :1], keys[2, -1:] = -1, -1, -1, -1
        return keys


def _held_pairs(keys: NDArray[np.int64], window: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each clause once with every window that holds it, sorted by clause and window."""
    key, of = keys.ravel(), np.tile(window, len(keys))
    order = np.lexsort((of, key))
    key, of = key[order], of[order]
    new = np.ones(len(key), dtype=bool)
    new[1:] = (key[1:] != key[:-1]) | (of[1:] != of[:-1])
    new &= key >= 0
    return key[new], of[new]


def clause_of(key: int, weight: float) -> Clause:
    """Return the clause that a number stands for."""
    low = (1 << BITS) - 1
    return Clause(KINDS[key >> (2 * BITS)], key >> BITS & low, key & low, weight)


class Corpus:
    """Windows of other texts, and which clauses each holds: what a rule must not be found in."""

    def __init__(self, tokens: TokenStore, context: int, seed: int, n: int = CORPUS_WINDOWS) -> None:
        counted = np.flatnonzero(tokens.mask & np.uint8(LEFT_OUT) == 0)
        centre = np.random.default_rng([seed, 2]).choice(counted, min(n, len(counted)), replace=False)
        document = tokens.doc[centre]
        start = np.maximum(tokens.doc_start[document], centre - context)
        stop = np.minimum(tokens.doc_start[document + 1], centre + context + 1)
        self.spans, self.n_windows = Spans.of(tokens, start, stop - start), len(centre)
        self._key, self._window = _held_pairs(self.spans.clause_keys(), self.spans.window)

    def holds(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which windows hold each clause, shape (clause, window)."""
        found = np.zeros((len(keys), self.n_windows), dtype=bool)
        low, high = np.searchsorted(self._key, keys), np.searchsorted(self._key, keys, side="right")
        for row, (first, last) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            found[row, self._window[first:last]] = True
        return found


def find_rule(spans: Spans, activation: NDArray[np.floating], corpus: Corpus) -> Rule:
    """Return the rule of a latent, given the windows it is explained from; without clauses where none helps.

    `activation` is per token of the windows.
    """
    firing = activation >= FIRES_FROM * activation.max()
    held, window = _held_pairs(spans.clause_keys()[:, firing], spans.window[firing])
    keys, row = np.unique(held, return_inverse=True)
    own = np.zeros((len(keys), spans.n_windows), dtype=bool)
    own[row, window] = True
    # a clause of one window alone says nothing of the latent
    repeated = own.sum(1) >= min(2, spans.n_windows)
    keys, own = keys[repeated], own[repeated]
    other = corpus.holds(keys)
    alone = own.mean(1) - other.mean(1)
    best = np.lexsort((keys, -alone))[:CANDIDATES]  # of equals the simplest: kinds are the highest bits
    keys, own, other, alone = keys[best], own[best], other[best], alone[best]
    covered, spoiled = np.zeros(spans.n_windows, dtype=bool), np.zeros(corpus.n_windows, dtype=bool)
    clauses: list[Clause] = []
    while len(clauses) < MOST_CLAUSES and len(keys):
        gain = (own & ~covered).mean(1) - (other & ~spoiled).mean(1)
        place = int(gain.argmax())
        if gain[place] < LEAST_GAIN:
            break
        clauses.append(clause_of(int(keys[place]), float(alone[place])))
        covered, spoiled = covered | own[place], spoiled | other[place]
    return Rule(tuple(clauses), float(covered.mean()), float(spoiled.mean()))


def applied(clauses: Sequence[Clause], spans: Spans) -> NDArray[np.float64]:
    """Return how sure a rule is of each window: 0 where no clause is found in it, else 0.5 to 1 by the best clause."""
    keys, sure = spans.clause_keys(), np.zeros(spans.n_windows)
    for clause in clauses:
        kind = KINDS.index(clause.kind)
        found = keys[kind] == (kind << (2 * BITS) | clause.token << BITS | clause.other)
        sure = np.maximum(sure, np.where(spans.held(found), 0.5 + 0.5 * clause.weight, 0.0))
    return sure
