"""Conversations of the causal experiment: greedy or given answers, masks, limits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunediff.config.settings import ConversationSettings, generation_batch
from tunediff.data.conversations import build_conversations
from tunediff.data.corpora import documents
from tunediff.data.masks import Mask, response_positions
from tunediff.errors import TunediffError
from tunediff.models.pair import PairInfo

SETTINGS = ConversationSettings(count=5, max_prompt_tokens=40, max_tokens=50, batch_size=2)


def source(folder: Path, n: int = 8) -> dict:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "word " * (i + 1)},
                {"role": "assistant", "content": f"answer {i}"},
                {"role": "user", "content": "more"},
            ]
        }
        for i in range(n)
    ]
    rows.insert(0, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]})
    rows.insert(1, {"messages": [{"role": "user", "content": "long " * 60}]})
    path = folder / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"from": "local", "path": str(path), "column": "messages", "validation_path": str(path)}


def test_answers_are_generated_in_larger_batches_on_a_gpu() -> None:
    sizes = {
        device: generation_batch(ConversationSettings().batch_size, device) for device in ("cpu", "cuda", "cuda:1")
    }
    assert sizes == {"cpu": 16, "cuda": 128, "cuda:1": 128}
    assert generation_batch(3, "cuda") == 3


def test_generated_answers_are_greedy(prepared_pair: PairInfo, tmp_path: Path) -> None:
    out = tmp_path / "conversations.zarr"
    store = build_conversations(source(tmp_path), prepared_pair, SETTINGS, 0, "cpu", out, key="k")
    assert store.n_documents == 5
    plain = AutoModelForCausalLM.from_pretrained(prepared_pair.chat).eval()
    tokenizer = prepared_pair.load_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    for i in range(5):
        ids, mask = store.token_id[store.document(i)], store.mask[store.document(i)]
        content = "word " * (i + 1)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert ids[: len(prompt)].tolist() == prompt
        assert (mask[: len(prompt)] & np.uint8(Mask.ASSISTANT)).sum() == 0
        answer = ids[len(prompt) :]
        assert len(answer) and len(ids) <= 50 and all(mask[len(prompt) :] & np.uint8(Mask.ASSISTANT))
        with torch.no_grad():
            logits = plain(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
        predicting = np.flatnonzero(response_positions(mask))
        assert predicting.tolist() == list(range(len(prompt) - 1, len(ids) - 1))
        assert logits[predicting].argmax(-1).tolist() == answer.tolist()
        stops = np.flatnonzero(np.isin(answer, [end, tokenizer.eos_token_id]))
        if len(ids) < 50:
            assert stops.tolist() == [len(answer) - 1] and mask[-1] == Mask.ASSISTANT | Mask.TEMPLATE


def test_given_answers(prepared_pair: PairInfo, tmp_path: Path) -> None:
    from dataclasses import replace

    out = tmp_path / "conversations.zarr"
    given = replace(SETTINGS, answers="given")
    store = build_conversations(source(tmp_path), prepared_pair, given, 0, "cpu", out, key="k")
    tokenizer = prepared_pair.load_tokenizer()
    for i in range(5):
        mask = store.mask[store.document(i)]
        answer = store.token_id[store.document(i)][
            (mask & np.uint8(Mask.ASSISTANT) != 0) & (mask & np.uint8(Mask.TEMPLATE) == 0)
        ]
        assert tokenizer.decode(answer) == f"answer {i}"
        assert store.n_documents == 5


def test_too_few_requests_are_counted(prepared_pair: PairInfo, tmp_path: Path) -> None:
    wanted = r"3 usable requests, `conversations.count` asks for 5 \(1 skipped as system, 1 skipped as long\)"
    with pytest.raises(TunediffError, match=wanted):
        build_conversations(source(tmp_path, 3), prepared_pair, SETTINGS, 0, "cpu", tmp_path / "c.zarr", key="k")


def requests(path: Path, texts: list[str]) -> dict:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return {"from": "local", "path": str(path), "column": "text"}


def test_copies_of_a_request_are_left_out_and_counted(prepared_pair: PairInfo, tmp_path: Path) -> None:
    asked = requests(tmp_path / "r.jsonl", ["a cat", "A  Cat ", "a dog", "a cat", "ａ ｄｏｇ", "a cow"])
    settings = ConversationSettings(count=3, max_prompt_tokens=40, max_tokens=50, batch_size=2)
    store = build_conversations(asked, prepared_pair, settings, 0, "cpu", tmp_path / "c.zarr", key="k")
    tokenizer = prepared_pair.load_tokenizer()
    texts = [tokenizer.decode(store.token_id[store.document(i)]) for i in range(3)]
    assert all(animal in text for animal, text in zip(("cat", "dog", "cow"), texts, strict=True))
    facts = json.loads((tmp_path / "c.json").read_text())["facts"]["by_source"]["requests"]
    assert facts["skipped_copy"] == 3


def test_a_file_of_its_own_is_used_whole_and_a_shared_one_says_why_not(prepared_pair: PairInfo, tmp_path: Path) -> None:
    asked = requests(tmp_path / "r.jsonl", [f"word number {i}" for i in range(30)])
    settings = ConversationSettings(count=30, max_prompt_tokens=40, max_tokens=44, batch_size=30)
    store = build_conversations(asked, prepared_pair, settings, 0, "cpu", tmp_path / "c.zarr", key="k")
    assert store.n_documents == 30
    in_validation = len(list(documents(asked, "validation", 0)))
    match = (
        f"{in_validation} usable requests.*only its validation share is used, for `tokens.sources.talk` reads the same"
    )
    with pytest.raises(TunediffError, match=match):
        build_conversations(
            asked, prepared_pair, settings, 0, "cpu", tmp_path / "d.zarr", key="k", shared_with="talk"
        )  # fmt: skip
