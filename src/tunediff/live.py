"""A prompt of one's own through both models: the residual streams, and the latents that fire on it.

Everything is read from a finished folder of results. Prompts are rendered and tokenised as the run's documents were,
and tokens that the run leaves out of its metrics (BOS, ignored ones, massive activations) have no latents here either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from tunediff import markup
from tunediff.data.documents import Document, Message
from tunediff.data.masks import LEFT_OUT
from tunediff.data.rendering import ChatRenderer, Encoding
from tunediff.errors import TunediffError
from tunediff.interventions.steering import Positions, steer, steering_vector
from tunediff.models.pair import load_pair
from tunediff.models.residual import replace_tokens
from tunediff.models.tokenizers import pieces

if TYPE_CHECKING:
    from tunediff.dictionaries.sparse import SparseCode
    from tunediff.results import Results

Prompt = str | Sequence[Mapping[str, str]]  # a text, or the messages of a conversation: role and content

LONGEST = 1 << 14  # tokens of a prompt
SHOWN_PEAKS, LEAST_PEAK = 3, 0.01  # tokens on which a latent fires most often, beside its number, and their least share


def messages_of(prompt: Prompt) -> tuple[Message, ...]:
    """Return a prompt as messages: a string is one request of the user.

    Raises
    ------
    TunediffError
        It is empty, no list of messages with `role` and `content`, or no valid Unicode.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    for turn in turns:
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise TunediffError('prompt: give a string, or messages: [{"role": "user", "content": "…"}, …]')
        try:
            (turn["role"] + turn["content"]).encode()
        except UnicodeEncodeError as error:
            raise TunediffError(f"prompt: not valid Unicode ({error.reason}); give it as UTF-8") from error
    if not any(turn["content"].strip() for turn in turns):
        raise TunediffError("prompt: it is empty; give some text")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


class LoadedPair:
    """Both models of a run with their tokenizer, whole, on one device."""

    def __init__(self, results: "Results", device: str) -> None:
        pair = results.pair
        self.info = load_pair(results.path / "models", pair.layer, pair.dtype)
        ignored = results.tokens("validation").attributes["ignore_first_tokens"]
        self.renderer = ChatRenderer(results.tokenizer, (), ignored)
        self.base = self.info.load_base(device, upper=True)
        self.chat = self.info.load_chat(device, upper=True)

    def encode(self, prompt: Prompt, text: bool = False) -> Encoding:
        """Return a prompt's tokens and masks, as the chat template renders it or, with `text`, as a plain text.

        A conversation that does not end with the assistant is followed by the header of the assistant's answer.
        """
        messages = messages_of(prompt)
        if text:
            if len(messages) > 1:
                raise TunediffError("prompt: a plain text is one string, not several messages; drop text=True")
            encoding = self.renderer.texts([Document("prompt", messages)], LONGEST + 1)[0]
        else:
            answer = messages[-1].role != "assistant"
            encoded = self.renderer.chats([Document("prompt", messages)], LONGEST + 1, prompt=answer)[0]
            if not isinstance(encoded, Encoding):
                raise TunediffError(f"prompt: the chat template refuses it ({encoded}); mend the messages")
            encoding = encoded
        if not 0 < len(encoding.token_id) <= LONGEST:
            raise TunediffError(f"prompt: it must have 1 to {LONGEST:,} tokens")
        return encoding

    @torch.no_grad()
    def residuals(self, token_id: Int[np.ndarray, "token"]) -> Float[Tensor, "token model d_model"]:
        """Return what both models write after the block of the run; float32."""
        ids = torch.from_numpy(token_id.astype(np.int64))[None]
        fed = (replace_tokens(ids, self.info.replacements), ids)
        both = [model.residual(each)[0].float() for model, each in zip((self.base, self.chat), fed, strict=True)]
        x = torch.stack(both, dim=1)
        if not bool(torch.isfinite(x).all()):
            raise TunediffError("prompt: the residual streams are not finite on it; use another `models.dtype`")
        return x


def _peaks(results: "Results", name: str, latents: Sequence[int]) -> dict[int, str]:
    """Return the tokens on which latents fire most often, in words; nothing where examples are not made."""
    if not (results.path / "examples" / f"{name}.json").is_file():
        return {}
    cards, told = results.cards(name), {}
    for latent in latents:
        found = cards.examples.of("tokens", latent)
        found = found[(found["kind"] == "peak") & (found["share"] >= LEAST_PEAK)]
        found = found.sort_values("share", ascending=False, kind="stable").head(SHOWN_PEAKS)
        texts = map(markup.quoted, cards.pieces(found["token_id"]))
        told[latent] = ", ".join(f"{text} {share:.0%}" for text, share in zip(texts, found["share"], strict=True))
    return told


class _Code(NamedTuple):
    """The latents of one dictionary on the tokens that it covers."""

    counted: Bool[np.ndarray, "token"]
    position: Int[np.ndarray, "nonzero"]
    latent: Int[np.ndarray, "nonzero"]
    value: Float[np.ndarray, "nonzero"]


@dataclass(frozen=True, repr=False)
class Live:
    """Both models on one prompt.

    `residuals` are in float32, on the device of the models; `mask` has the bits of `Mask`.
    """

    results: "Results" = field(compare=False)
    device: str
    token_id: Int[np.ndarray, "token"]
    mask: UInt8[np.ndarray, "token"]
    residuals: Float[Tensor, "token model d_model"]  # model 0 is base, 1 is chat

    @cached_property
    def tokens(self) -> list[str]:
        """The text of every token."""
        return pieces(self.results.tokenizer, self.token_id.tolist())

    @cached_property
    def distance(self) -> Float[np.ndarray, "token"]:
        """‖h^chat − h^base‖ / ‖h^base‖ of every token: where tuning moved the residual stream."""
        base, chat = self.residuals.unbind(1)
        moved = torch.linalg.vector_norm(chat - base, dim=1) / torch.linalg.vector_norm(base, dim=1)
        return moved.cpu().numpy()

    def _code(self, name: str) -> _Code:
        crosscoder = self.results.loaded_crosscoder(name, self.device)
        left_out = torch.from_numpy(self.mask & np.uint8(LEFT_OUT) != 0).to(self.residuals.device)
        counted = crosscoder.covers(self.residuals) & ~left_out
        code: SparseCode = crosscoder.encode(self.residuals[counted])
        position = counted.nonzero()[:, 0][code.token]
        return _Code(*(part.cpu().numpy() for part in (counted, position, code.latent, code.value)))

    def latents(self, name: str) -> pd.DataFrame:
        """Return the activations of a dictionary: a row per token, a column per latent that fires on one of them.

        Chat-specific latents come first, the most chat-specific leftmost, then the others by their largest activation.
        The index is (position, token, counted). A token that is not counted (BOS, ignored, a massive activation) is
        none that the dictionary was trained on: its row is NaN.
        """
        counted, position, latent, value = self._code(name)
        table = self.results.latents(name)
        order = _ordered(table.frame, latent, value)
        column = pd.Series(np.arange(len(order)), index=order)
        dense = np.zeros((len(counted), len(order)), dtype=np.float32)
        dense[~counted] = np.nan
        dense[position, column[latent].to_numpy()] = value
        index = pd.MultiIndex.from_arrays(
            [np.arange(len(counted)), self.tokens, counted], names=["position", "token", "counted"]
        )
        return pd.DataFrame(dense, index=index, columns=pd.Index(order, name="latent"))

    def firings(self, name: str, top: int = 10) -> "Firings":
        """Return where chat-specific latents of a dictionary fire; `top` of them are shown, all are in its frames.

        All live latents count as such in a dictionary of the difference, which has no chat-specific ones.
        """
        counted, position, latent, value = self._code(name)
        table = self.results.latents(name)
        rows = table.frame.set_index("latent", drop=False)
        eligible = rows["chat_specific"] if table.has_norm_taxonomy else ~rows["dead"]
        kept = eligible.loc[latent].to_numpy()
        frame = pd.DataFrame({"position": position, "latent": latent, "activation": value})[kept]
        frame.insert(1, "token", [self.tokens[i] for i in frame["position"]])
        frame["share"] = frame["activation"] / rows.loc[frame["latent"], "max_activation"].to_numpy()
        frame = frame.sort_values(["position", "share"], ascending=[True, False], kind="stable", ignore_index=True)
        best = frame.loc[frame.groupby("latent")["share"].idxmax()]
        columns = ["norm_difference", "nu_reconstruction", "nu_error", "frequency", "rank_sum"]
        latents = best.merge(rows[["latent", *columns]].reset_index(drop=True), on="latent")
        latents = latents.sort_values("share", ascending=False, kind="stable", ignore_index=True)
        shown = latents["latent"].head(top).tolist()
        peaks = _peaks(self.results, name, shown)
        what = "chat-specific" if table.has_norm_taxonomy else "live"
        return Firings(name, self.tokens, ~counted, frame, latents, top, peaks, int(eligible.sum()), what)

    def __repr__(self) -> str:
        text = "".join(self.tokens)
        return f"Live({len(self.tokens)} tokens: {text[:60] + '…' if len(text) > 60 else text!r})"

    def _repr_html_(self) -> str:
        shown = np.where(self.mask & np.uint8(LEFT_OUT) != 0, 0, self.distance)
        largest = max(float(shown.max()), 1e-9)
        pair = self.results.pair
        titles = [
            f"{i}: ‖chat − base‖ / ‖base‖ = {moved:.2f}{', left out' if bits & LEFT_OUT else ''}"
            for i, (moved, bits) in enumerate(zip(self.distance, self.mask.tolist(), strict=True))
        ]
        told = (
            f"{len(self.tokens)} tokens after block {pair.layer}; the darkest is where the chat model's residual "
            f"stream is furthest from the base model's ({largest:.2f} of its norm). <code>firings(name)</code>: the "
            "latents that fire."
        )
        faint = (self.mask & np.uint8(LEFT_OUT) != 0).tolist()
        return markup.box(told, markup.tokens(self.tokens, (shown / largest).tolist(), titles, faint))


def _ordered(frame: pd.DataFrame, latent: Int[np.ndarray, "nonzero"], value: Float[np.ndarray, "nonzero"]) -> list[int]:
    """Return the latents that fire: chat-specific ones by rank, then the others by their largest activation."""
    largest = pd.Series(value).groupby(latent).max()
    rows = frame.set_index("latent").loc[largest.index, ["chat_specific", "rank_sum"]]
    rows["rank_sum"] = rows["rank_sum"].where(rows["chat_specific"])
    rows["other"] = (-largest).where(~rows["chat_specific"])
    by = ["chat_specific", "rank_sum", "other"]
    return rows.sort_values(by, ascending=[False, True, True], kind="stable").index.tolist()


@dataclass(frozen=True, repr=False)
class Firings:
    """Where the chat-specific latents of a dictionary fire in a prompt."""

    name: str
    tokens: list[str]
    left_out: Bool[np.ndarray, "token"]
    frame: pd.DataFrame  # one row per token and latent: position, token, latent, activation, share (of its largest)
    latents: pd.DataFrame  # one row per latent that fires, by falling share: where it is strongest, and its numbers
    top: int
    peaks: dict[int, str]  # of the latents shown: the tokens on which each fires most often
    of: int  # latents that could have fired
    what: str  # which those are: chat-specific, or all live ones of a dictionary of the difference

    @property
    def headline(self) -> str:
        """One sentence: how many fire."""
        fired, counted = len(self.latents), int((~self.left_out).sum())
        if not self.of:
            return f"{self.name}: it has no {self.what} latent"
        if not fired:
            return f"{self.name}: none of {self.of:,} {self.what} latents fires on any of {counted} tokens"
        more = f"; the {self.top} strongest are shown" if fired > self.top else ""
        return f"{self.name}: {fired:,} of {self.of:,} {self.what} latents fire on {counted} tokens{more}"

    @property
    def shown(self) -> pd.DataFrame:
        """The rows of `latents` that are printed."""
        return self.latents.head(self.top)

    def __str__(self) -> str:
        """Return the tokens with what fires on them, and a line per latent."""
        chosen = self.frame[self.frame["latent"].isin(self.shown["latent"])]
        texts = [markup.quoted(text) for text in self.tokens]
        width = min(max(map(len, texts)), 24)
        lines = [self.headline, ""]
        fired = {position: rows for position, rows in chosen.groupby("position")}
        for i, (text, left_out) in enumerate(zip(texts, self.left_out, strict=True)):
            told = "(left out)" if left_out else ""
            if i in fired:
                told = "  ".join(f"{row.latent} ({row.share:.0%})" for row in fired[i].itertuples())
            lines.append(f"{i:4}  {text:{width}}  {told}".rstrip())
        if len(self.shown):
            lines += ["", "percent of the latent's largest activation on validation tokens; the latents:"]
            lines += [f"{row.latent:7}  {self._numbers(row)}" for row in self.shown.itertuples()]
        return "\n".join(lines)

    __repr__ = __str__

    def _numbers(self, row: Any) -> str:
        parts = [f"{row.activation:.3g} at {row.position}", f"on {row.frequency:.2%} of all tokens"]
        if not np.isnan(row.norm_difference):
            parts += [
                f"Δnorm {row.norm_difference:.2f}",
                f"ν^r {row.nu_reconstruction:.2f}, ν^ε {row.nu_error:.2f}",
            ]
        if self.peaks.get(row.latent):
            parts.append(f"fires on {self.peaks[row.latent]}")
        return "; ".join(parts)

    def _repr_html_(self) -> str:
        rows = []
        for row in self.shown.itertuples():
            own = self.frame[self.frame["latent"] == row.latent].set_index("position")
            strengths = own["share"].reindex(range(len(self.tokens)), fill_value=0.0)
            values = own["activation"].reindex(range(len(self.tokens)), fill_value=0.0)
            titles = [f"{i}: {value:.3g}" for i, value in enumerate(values)]
            strip = markup.tokens(self.tokens, strengths.tolist(), titles, self.left_out.tolist())
            rows.append([str(row.latent), f"{row.share:.0%}", strip, markup.escape(self._numbers(row))])
        header = ("latent", "of its largest", "where", "")
        return markup.box(markup.escape(self.headline), markup.table(header, rows) if rows else "")


@dataclass(frozen=True, repr=False)
class Steered:
    """The chat model's greedy answers to one request, as it is and steered by a latent."""

    name: str
    latent: int
    alpha: float  # in units of the latent's largest activation on validation tokens
    dose: float  # ‖α · max_j · d_j^chat‖, added to the residual stream after the block
    dose_share: float  # of the mean norm of the chat model's residuals on the request
    prompt: str
    unsteered: str
    steered: str

    @property
    def headline(self) -> str:
        """What was added, in words."""
        return (
            f"{self.name}, latent {self.latent}, α {self.alpha:g}: {self.dose:.3g} added to the residual stream "
            f"({self.dose_share:.0%} of its mean norm)"
        )

    def __str__(self) -> str:
        texts = {name: markup.visible(getattr(self, name)) for name in ("prompt", "unsteered", "steered")}
        return "\n".join([self.headline, *(f"{name + ':':10} {text}" for name, text in texts.items())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [[name, markup.escape(getattr(self, name))] for name in ("prompt", "unsteered", "steered")]
        return markup.box(markup.escape(self.headline), markup.table(("", ""), rows))


def steered(
    results: "Results",
    name: str,
    latent: int,
    prompt: Prompt,
    alpha: float,
    positions: Positions,
    max_new_tokens: int,
    device: str,
) -> Steered:
    """Answer a prompt as `Results.steer` says."""
    pair, crosscoder, table = (
        results.loaded_pair(device),
        results.loaded_crosscoder(name, device),
        results.latents(name),
    )
    live = results.prompt(prompt, device=device)
    ids = [live.token_id.astype(np.int64)]
    stop_ids = pair.renderer.stop_ids
    both = [
        steer(
            pair.chat,
            crosscoder,
            table,
            latent,
            ids,
            dose,
            stop_ids,
            positions=positions,
            max_new_tokens=max_new_tokens,
        )[0]
        for dose in (0.0, alpha)
    ]
    said, instead = (str(results.tokenizer.decode(answer, skip_special_tokens=True)).strip() for answer in both)
    dose = abs(alpha) * float(steering_vector(crosscoder, table, latent).norm())
    counted = torch.from_numpy(live.mask & np.uint8(LEFT_OUT) == 0).to(live.residuals.device)
    counted &= crosscoder.covers(live.residuals)
    norm = float(torch.linalg.vector_norm(live.residuals[counted, 1], dim=1).mean())
    asked = prompt if isinstance(prompt, str) else "".join(live.tokens)
    return Steered(name, latent, alpha, dose, dose / norm, asked, said, instead)
