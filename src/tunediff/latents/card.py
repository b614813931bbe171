"""All about one latent, gathered from finished results for whoever shows it: terminal, notebook, report.

A card holds texts as they are in the corpus, control characters and all: who shows them escapes them (`visible` for a
terminal).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tunediff import markup
from tunediff.data.masks import LEFT_OUT
from tunediff.data.tokens import TokenStore
from tunediff.errors import TunediffError
from tunediff.latents.criterion import Criterion
from tunediff.latents.examples import HISTOGRAM_BINS, STRONGEST, Examples
from tunediff.latents.table import LatentTable
from tunediff.markup import firing_share, quoted, visible
from tunediff.models.tokenizers import Pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHADES = (230, 229, 222, 215, 209)  # of a terminal's 256 colours, weak to strong
MARKS = "⟦", "⟧"  # around the peak where there are no colours
HTML_WINDOWS = {STRONGEST: 10, "other": 5}  # of a band, in a notebook


class Window(NamedTuple):
    """A piece of a document in which a latent fires, or is silent."""

    band: str  # one of `examples.BANDS`
    document: int
    source: str
    start: int  # position of the first token in the validation tokens
    peak: int  # index in the window: of the peak, or of the centre where the latent is silent
    value: float  # activation there
    pieces: list[str]  # text of each token
    activation: NDArray[np.float32]  # per token
    mask: NDArray[np.uint8]  # per token, bits of `Mask`
    kl: NDArray[np.float32]  # KL(chat ‖ base) after each token, in nats; NaN where it was not measured
    loss_base: NDArray[np.float32]  # of each token, in nats; NaN likewise
    loss_chat: NDArray[np.float32]


class TokenCount(NamedTuple):
    """A token that is typical of a latent."""

    token_id: int
    piece: str
    firings: int  # of the latent's sampled ones
    share: float  # of all sampled
    lift: float  # over the token's share of all tokens


class Logit(NamedTuple):
    """What a latent's decoder row adds to the logit of a token, per unit of its activation."""

    token_id: int
    piece: str
    value: float


class Neighbour(NamedTuple):
    """A latent that is like another."""

    latent: int
    value: float


def _rows(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, by column."""
    columns = [frame[name].tolist() for name in frame]
    for values in zip(*columns, strict=True):
        yield dict(zip(map(str, frame), values, strict=True))


@dataclass(frozen=True, repr=False)
class LatentCard:
    """All about one latent; `str(card)` is what `tunediff latent` prints."""

    dictionary: str  # its name, as in the results
    latent: int
    row: "pd.Series[Any]"  # of the latent table
    criterion: Criterion
    sources: tuple[str, ...]
    windows: list[Window]  # by band, as in `examples.BANDS`
    tokens: dict[str, list[TokenCount]]  # peak: tokens it fires on; next: those after them
    logits: dict[str, dict[str, list[Logit]]]  # by direction (chat, base, difference), then end (highest, lowest)
    neighbours: dict[str, list[Neighbour]]  # by kind: cosine, coactivation
    histogram: pd.DataFrame  # firings by bin of the maximum, a column per source
    explanations: tuple[str, ...] = ()  # its own, where it was explained, each a line with its score

    @property
    def maximum(self) -> float:
        """Largest activation on validation tokens."""
        return float(self.row["max_activation"])

    def band(self, name: str) -> list[Window]:
        """Return the windows of a band."""
        return [window for window in self.windows if window.band == name]

    @property
    def verdict(self) -> str:
        """Whether the latent is chat-specific, and how sure that is, in words."""
        row = self.row
        if row["dead"]:
            return "dead: it fires on no counted validation token"
        if row["chat_specific"]:
            sure = "confirmed" if row["chat_specific_validation"] else "not confirmed"
            interval = "also with intervals" if row["chat_specific_interval"] else "not with intervals"
            return f"chat-specific, {sure} on validation tokens, {interval} ({self.criterion.text})"
        if row["reversed"]:
            return "reversed: base has the direction with the opposite sign"
        return f"not chat-specific ({self.criterion.text})"

    def _ratio(self, name: str, symbol: str) -> str:
        value = float(self.row[f"nu_{name}"])
        if not math.isfinite(value):
            return f"{symbol} not measured"
        ends = [float(self.row.get(f"nu_{name}_{end}", math.nan)) for end in ("low", "high")]
        interval = f" [{ends[0]:.2f}, {ends[1]:.2f}]" if all(map(math.isfinite, ends)) else ""
        return f"{symbol} {value:.2f}{interval}"

    def head(self) -> list[str]:
        """Return what is known of the latent without its examples, in lines."""
        row = self.row
        lines = [f"{self.dictionary}/{self.latent}: {self.verdict}"]
        if row["dead"]:
            return lines
        if math.isfinite(row["norm_difference"]):
            ratios = [self._ratio("reconstruction", "ν^r"), self._ratio("error", "ν^ε")]
            own = f"class {row['class_name']}, Δnorm {row['norm_difference']:.2f}, cosine {row['cosine']:.2f}"
        else:
            ratios, own = [self._ratio("activation", "ν^act")], "of a dictionary of the difference"
        lines.append("; ".join((own, *ratios)))
        by_source = ", ".join(f"{source} {firing_share(row[f'frequency_{source}'])}" for source in self.sources)
        fires = f"fires on {firing_share(row['frequency'])} of tokens ({by_source}), maximum {self.maximum:.3g}"
        fires += f"; {firing_share(row['template_share'])} of its firings on the chat template's tokens"
        if "swap_ratio" in row and math.isfinite(row["swap_ratio"]):
            fires += f"; swap ratio {row['swap_ratio']:.2f}"
        lines.append(fires)
        for kind, told in (("peak", "fires on"), ("next", "before")):
            shown = [f"{quoted(t.piece)} {firing_share(t.share)} ×{t.lift:.3g}" for t in self.tokens[kind]]
            lines.append(f"{told} (share of firings, × over all tokens): {', '.join(shown) or 'none'}")
        for direction, ends in self.logits.items():
            raises, lowers = (" ".join(quoted(each.piece) for each in ends[end][:8]) for end in ("highest", "lowest"))
            lines.append(f"logits of {direction}: raises {raises}; lowers {lowers}")
        for kind, told in (("cosine", "by decoder"), ("coactivation", "by firing together")):
            shown = [f"{each.latent} ({each.value:.2f})" for each in self.neighbours[kind]]
            lines.append(f"nearest {told}: {', '.join(shown) or 'none'}")
        return [*lines, *self.explanations]

    def _window(self, window: Window, colour: bool) -> str:
        shown = []
        for i, (piece, activation) in enumerate(zip(window.pieces, window.activation, strict=True)):
            text = visible(piece)
            if colour and activation > 0:
                shade = SHADES[min(len(SHADES) - 1, int(len(SHADES) * activation / self.maximum))]
                text = f"\x1b[{'1;4;' if i == window.peak else ''}30;48;5;{shade}m{text}\x1b[0m"
            elif colour and i == window.peak:
                text = f"\x1b[4m{text}\x1b[0m"
            elif i == window.peak:
                text = MARKS[0] + text + MARKS[1]
            shown.append(text)
        return f"  {window.value:7.3g} {window.source} {window.document:>6}  {''.join(shown).strip()}"

    def text(self, bands: Iterable[str] = (STRONGEST,), windows: int = 10, colour: bool = False) -> str:
        """Return the latent as text: what is known of it, then some windows of each of `bands`.

        A line of a window has the activation at the peak, the source, the document and the text. With `colour` tokens
        are shaded by their activation, for a terminal; without, the peak stands in ⟦ ⟧.
        """
        lines = self.head()
        for band in bands:
            own = self.band(band)
            lines += ["", f"{band} ({min(windows, len(own))} of {len(own)} windows)"]
            lines += [self._window(window, colour) for window in own[:windows]]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        first, *others = (markup.escape(line) for line in self.head())
        counts = self.histogram.sum(axis=1).tolist()
        bars = markup.histogram(counts, "firings by activation, from 0 to the maximum, logarithmic")
        caption = f"firings by activation, from 0 to {self.maximum:.3g}; bars are logarithmic"
        parts = [f"<b>{first}</b>", *others, f"{bars} <small>{caption}</small>" if any(counts) else ""]
        for band in dict.fromkeys(window.band for window in self.windows):
            own = self.band(band)
            shown = own[: HTML_WINDOWS.get(band, HTML_WINDOWS["other"])]
            rows = [[f"{w.value:.3g}", markup.escape(w.source), self._strip(w)] for w in shown]
            summary = f"{band} ({len(shown)} of {len(own)} windows)"
            parts.append(markup.details(summary, markup.table(("peak", "source", "text"), rows), band == STRONGEST))
        return markup.box(*parts)

    def _strip(self, window: Window) -> str:
        """Return the tokens of a window, each with what is known of it as its title."""
        titles = []
        for numbers in zip(window.activation, window.kl, window.loss_base, window.loss_chat, strict=True):
            named = zip(
                ("activation", "KL(chat ‖ base) after it", "loss of base", "loss of chat"), numbers, strict=True
            )
            titles.append("; ".join(f"{name} {value:.3g}" for name, value in named if math.isfinite(value)))
        faint = (window.mask & np.uint8(LEFT_OUT) != 0).tolist()
        strengths = (window.activation / self.maximum).tolist()
        return markup.tokens(window.pieces, strengths, titles, faint, peak=window.peak)

    def __repr__(self) -> str:
        return f"<LatentCard {self.dictionary}/{self.latent}: {self.verdict}>"


@dataclass
class Cards:
    """What cards of a dictionary's latents are made from."""

    dictionary: str
    table: LatentTable
    examples: Examples
    tokens: TokenStore  # validation
    tokenizer: "PreTrainedTokenizerBase"
    losses: pd.DataFrame | None = None  # `examples.LOSSES`, where they are measured
    explanations: Mapping[int, Sequence[str]] = field(default_factory=dict)  # by latent

    @cached_property
    def pieces(self) -> Pieces:
        """The text of each token."""
        return Pieces(self.tokenizer)

    @cached_property
    def _losses(self) -> dict[str, NDArray[Any]]:
        names = ("position", "kl", "loss_base", "loss_chat")
        return {name: np.array([]) if self.losses is None else self.losses[name].to_numpy() for name in names}

    def _measured(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return the losses of positions [start, stop), NaN where they were not measured."""
        position = self._losses["position"]
        own = slice(*np.searchsorted(position, (start, stop)))
        values = np.full(stop - start, np.nan, dtype=np.float32)
        values[position[own].astype(np.int64) - start] = self._losses[name][own]
        return values

    def of(self, latent: int) -> LatentCard:
        """Return the card of a latent.

        `TunediffError`: the dictionary has no latent of this number.
        """
        if not 0 <= latent < len(self.table):
            raise TunediffError(
                f"{self.dictionary}/{latent}: no such latent; give a number from 0 to {len(self.table) - 1}"
            )
        frames = {name: self.examples.of(name, latent) for name in ("tokens", "logits", "neighbours", "histogram")}
        texts = {name: iter(self.pieces(frames[name]["token_id"])) for name in ("tokens", "logits")}
        counted: dict[str, list[TokenCount]] = {"peak": [], "next": []}
        for row in _rows(frames["tokens"]):
            own = row["token_id"], next(texts["tokens"]), row["count"], row["share"], row["lift"]
            counted[row["kind"]].append(TokenCount(*own))
        logits: dict[str, dict[str, list[Logit]]] = {}
        for row in _rows(frames["logits"]):
            ends = logits.setdefault(row["direction"], {"highest": [], "lowest": []})
            ends[row["end"]].append(Logit(row["token_id"], next(texts["logits"]), row["value"]))
        near: dict[str, list[Neighbour]] = {"cosine": [], "coactivation": []}
        for row in _rows(frames["neighbours"]):
            near[row["kind"]].append(Neighbour(row["neighbour"], row["value"]))
        bins = pd.RangeIndex(HISTOGRAM_BINS, name="bin")
        histogram = frames["histogram"].pivot(index="bin", columns="source", values="count")
        histogram = histogram.reindex(index=bins, columns=list(self.table.sources)).fillna(0).astype(np.int64)
        return LatentCard(
            self.dictionary,
            latent,
            self.table.frame.iloc[latent],
            self.table.criterion,
            self.table.sources,
            self.windows(latent),
            counted,
            logits,
            near,
            histogram,
            tuple(self.explanations.get(latent, ())),
        )

    def windows(self, latent: int) -> list[Window]:
        """Return all windows of a latent, by band."""
        made = []
        for row in _rows(self.examples.of("windows", latent)):
            start, activation = row["start"], row["activation"]
            stop = start + len(activation)
            ids, mask = (getattr(self.tokens, name)[start:stop] for name in ("token_id", "mask"))
            losses = (self._measured(name, start, stop) for name in ("kl", "loss_base", "loss_chat"))
            own = row["band"], row["document"], row["source"], start, row["peak"] - start, row["value"]
            made.append(Window(*own, self.pieces(ids), activation, mask, *losses))
        return made
