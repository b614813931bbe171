"""Conversations: the requests of the causal experiment with the chat model's own (or given) answers."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from tunediff.config.settings import ConversationSettings, generation_batch
from tunediff.data.corpora import Skipped, documents
from tunediff.data.documents import Distinct, Document, Message
from tunediff.data.masks import Mask
from tunediff.data.rendering import ChatRenderer, Encoding, cut
from tunediff.data.sampling import write_store
from tunediff.data.tokens import TokenStore
from tunediff.errors import TunediffError
from tunediff.models.pair import PairInfo
from tunediff.models.residual import ResidualModel
from tunediff.pipeline.progress import Progress


class LeftPadded(NamedTuple):
    """Prompts of similar length, padded on the left, as generation reads them."""

    prompts: list[int]  # which of the prompts
    ids: Int[Tensor, "prompt position"]
    attention_mask: Int[Tensor, "prompt position"]
    shortest: int  # tokens of the shortest


def left_padded(prompts: Sequence[NDArray[np.integer]], batch_size: int, fill: int) -> Iterator[LeftPadded]:
    """Yield prompts in batches by length, padded with the id `fill`."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        shortest, width = (len(prompts[i]) for i in (chosen[0], chosen[-1]))
        ids = torch.full((len(chosen), width), fill, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.from_numpy(prompts[i].astype(np.int64))
            mask[row, width - len(prompts[i]) :] = 1
        yield LeftPadded(chosen, ids, mask, shortest)


def until_stop(answer: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Return generated ids up to and with the first stop token."""
    stops = (i for i, token in enumerate(answer) if token in stop_ids)
    return list(answer[: next(stops, len(answer)) + 1])


def _answered(encoding: Encoding, answer: Sequence[int], stop_ids: Sequence[int], length: int) -> Encoding:
    """Append generated ids to a prompt, up to and with the first stop token, cut to `length`."""
    ids = np.array(until_stop(answer, stop_ids), dtype=np.int32)
    mask = np.full(len(ids), Mask.ASSISTANT, dtype=np.uint8)
    if len(ids) and ids[-1] in stop_ids:
        mask[-1] |= np.uint8(Mask.TEMPLATE)
    own = Encoding(ids, mask, np.zeros(len(ids), dtype=np.uint64))
    return cut(Encoding(*(np.concatenate(pair) for pair in zip(encoding, own, strict=True))), length)


def _generate(
    model: ResidualModel, prompts: Sequence[Encoding], stop_ids: Sequence[int], settings: ConversationSettings
) -> list[Encoding]:
    """Answer every prompt greedily, in batches of prompts of similar length."""
    answers: dict[int, Encoding] = {}
    size = generation_batch(settings.batch_size, model.device.type)
    with Progress(len(prompts), "answers", "conv") as bar:
        for batch in left_padded([each.token_id for each in prompts], size, stop_ids[0]):
            longest = settings.max_tokens - batch.shortest
            new = model.generate(batch.ids, batch.attention_mask, longest, stop_ids).cpu().tolist()
            for i, answer in zip(batch.prompts, new, strict=True):
                answers[i] = _answered(prompts[i], answer, stop_ids, settings.max_tokens)
            bar.update(len(batch.prompts))
    return [answers[i] for i in range(len(prompts))]


def build_conversations(
    source: Mapping[str, Any],
    pair: PairInfo,
    settings: ConversationSettings,
    seed: int,
    device: str,
    out: Path,
    *,
    key: str,
    shared_with: str | None = None,
) -> TokenStore:
    """Write `settings.count` conversations: the first user turn of each document of `source`, and one answer.

    A request that equals an earlier one is left out, so all are different; so is a row that is no document.
    `shared_with` names the token source that reads the same data: then only the validation share is used, which nothing
    is trained on, else all of `source`. `TunediffError`: the source holds too few usable requests, or (answers "given")
    no answers.
    """
    started = time.time()
    tokenizer = pair.load_tokenizer()
    renderer = ChatRenderer(tokenizer, (), settings.ignore_first_tokens)
    skipped = dict.fromkeys(("system", "template", "long", "unanswered"), 0)
    distinct, bad = Distinct(), Skipped()
    kept: list[Encoding] = []
    for document in documents(source, "validation", seed, shared_with is None, bad):
        if len(kept) == settings.count:
            break
        turns = document.messages
        if turns[0].role == "system":
            skipped["system"] += 1
            continue
        user = Message("user", turns[0].content)  # a column of plain requests is fine too
        if not distinct.is_new([user]):
            continue
        prompt = renderer.chats([Document(document.id, (user,))], 1 << 20, prompt=True)[0]
        if not isinstance(prompt, Encoding):
            skipped["template"] += 1
        elif len(prompt.token_id) > settings.max_prompt_tokens:
            skipped["long"] += 1
        elif settings.answers == "generate":
            kept.append(prompt)
        elif len(turns) < 2 or turns[1].role != "assistant":
            skipped["unanswered"] += 1
        else:
            whole = renderer.chats([Document(document.id, (user, turns[1]))], settings.max_tokens)[0]
            if isinstance(whole, Encoding):
                kept.append(whole)
            else:
                skipped["template"] += 1
    skipped["copy"] = distinct.copies
    if bad.bad:
        skipped["bad"] = bad.bad
    for line in bad.lines("conversations.source"):
        print(line, file=sys.stderr)
    if len(kept) < settings.count:
        why = ", ".join(f"{n} skipped as {kind}" for kind, n in skipped.items() if n) or "none skipped"
        part = f"; only its validation share is used, for `tokens.sources.{shared_with}` reads the same data"
        raise TunediffError(
            f"conversations: the source has {len(kept)} usable requests, `conversations.count` asks for "
            f"{settings.count} ({why}{part if shared_with else ''}); lower the count or give a larger source"
        )
    if settings.answers == "generate":
        kept = _generate(pair.load_chat(device, upper=True), kept, renderer.stop_ids, settings)
    attributes = {
        "sources": ["requests"],
        "kinds": ["chat"],
        "concepts": [],
        "split": "validation",
        "seed": seed,
        "answers": settings.answers,
        "max_length": settings.max_tokens,
        "ignore_first_tokens": settings.ignore_first_tokens,
    }
    ended = sum(bool(e.mask[-1] & Mask.TEMPLATE) for e in kept)
    counts = {f"skipped_{kind}": n for kind, n in skipped.items()}
    facts = {"requests": {"documents": len(kept), "ended_their_turn": ended, **counts}}
    return write_store(out, kept, [0] * len(kept), attributes, facts, key, started, device)
