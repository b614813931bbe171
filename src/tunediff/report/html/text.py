"""Texts of a corpus as the report shows them: nothing in them is hidden or endless, or turns what is around it."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tunediff.latents.card import visible

LONGEST = 400  # characters of a piece that are shown
LABEL_TOKENS = 4  # peak tokens that name a latent
LABEL_SHARE = 0.02  # of a latent's firings that a token of its name has at least


def shown(text: str, *, lines: bool = False, longest: int = LONGEST) -> str:
    """Return a text with escapes for what would not be seen (`visible`); with `lines`, line breaks stay as they are.

    What is longer than `longest` is cut, and says so.
    """
    cut = f" … ({len(text):,} characters)" if len(text) > longest else ""
    text = text[:longest]
    return ("\n".join(map(visible, text.split("\n"))) if lines else visible(text)) + cut


class Pieces:
    """The text of every token id that the report shows, decoded once; `decode` gives the texts of ids."""

    def __init__(self, decode: Callable[[Sequence[int]], Sequence[str]]) -> None:
        self.decode, self.known = decode, dict[int, str]()

    def of(self, ids: ArrayLike) -> list[str]:
        """Return the visible text of each id."""
        self.add(ids)
        return [self.known[i] for i in np.asarray(ids).tolist()]

    def add(self, ids: ArrayLike) -> None:
        """See to it that these ids are in the report."""
        new = [i for i in np.unique(np.asarray(ids)).tolist() if i not in self.known]
        if new:
            self.known |= zip(new, map(shown, self.decode(new)), strict=True)


def labels(tokens: pd.DataFrame, pieces: Pieces, size: int) -> list[str]:
    """Return a name for each of `size` latents: the tokens that its peaks fall on, the most telling first.

    `tokens` is that table of the examples. A token tells share · log(lift): what it adds to the divergence of the
    latent's peak tokens from the corpus. So neither a frequent nor a rare token is named for its frequency alone.
    """
    peaks = tokens[(tokens["kind"] == "peak") & (tokens["share"] >= LABEL_SHARE) & (tokens["lift"] > 1)]
    telling = peaks["share"] * np.log(peaks["lift"].astype(np.float64))
    peaks = peaks.assign(telling=telling).sort_values(["latent", "telling"], ascending=[True, False], kind="stable")
    found: list[dict[str, str]] = [{} for _ in range(size)]
    for latent, text in zip(peaks["latent"].tolist(), pieces.of(peaks["token_id"]), strict=True):
        own, name = found[latent], text.strip() or text.replace(" ", "␣")
        if len(own) < LABEL_TOKENS:
            own.setdefault(name.casefold(), name)
    return [" · ".join(own.values()) for own in found]


def joined(names: Iterable[str]) -> str:
    """Return names as a sentence lists them: a, b and c."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
