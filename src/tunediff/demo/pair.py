"""The demo's model pair: a word-level tokenizer with Gemma's chat template, and two small Gemma-2 models.

The base model is trained on web text; the chat model is the base model trained further on chats. Both are trained from
scratch and small enough to be shipped with the project. Retrain them with `python -m tunediff.demo.pair --out DIR`.
"""

import argparse
import json
import math
import platform
import re
import time
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from random import Random

import torch
import transformers
from jaxtyping import Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tunediff.data.documents import Document, Message
from tunediff.demo.grammar import BEHAVIOURS, behaviour, chat_documents, shows, web_documents
from tunediff.errors import TunediffError
from tunediff.models.weights import load_model
from tunediff.pipeline.progress import Progress

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
VARIANTS = ("retuned", "continued")
VARIANT_SEED = 1000  # of their corpora; the pair's own are seeds 0 to 2
_IGNORED = -100  # the label that cross-entropy leaves out
_PIECES = r"\w+|[^\w\s]|\n"  # what is a token
_VOCABULARY_SAMPLE = 12_000  # documents of each corpus that give the vocabulary: the rarest word occurs > 20 times


@dataclass(frozen=True)
class PairConfig:
    """Everything that decides what the pair becomes."""

    d_model: int = 128  # width of the residual stream
    layers: int = 6  # transformer layers
    heads: int = 4  # attention heads
    key_value_heads: int = 2  # key-value heads, each shared by heads / key_value_heads
    d_mlp: int = 384  # width of the gated MLP
    base_tokens: int = 1_600_000  # web tokens that the base model sees, each once
    chat_tokens: int = 1_200_000  # chat tokens that the chat model sees on top, user turns included
    web_share: float = 0.15  # share of the chat-tuning batches that are web text, to keep shared knowledge
    batch_tokens: int = 1_024  # tokens of a training step, padding included
    base_lr: float = 2e-3  # peak learning rate of the base model: linear warm-up, then cosine to a tenth
    chat_lr: float = 8e-4  # peak learning rate of chat-tuning: the same schedule
    weight_decay: float = 0.01  # AdamW's, on every weight
    held_out_documents: int = 1_000  # validation documents of each corpus that the losses are measured on
    requests_per_behaviour: int = 50  # held-out requests that each behaviour's rate is measured on
    seed: int = 0  # of the corpora, the initial weights and the order of batches


@cache
def _vocabulary() -> tuple[str, ...]:
    """Every token, found in a sample of all texts; special ones first."""
    documents = chain.from_iterable(
        islice(corpus(0, split), _VOCABULARY_SAMPLE // 2)
        for corpus in (web_documents, chat_documents)
        for split in ("train", "validation")
    )
    texts = (message.content for document in documents for message in document.messages)
    words = {word for text in texts for word in re.findall(_PIECES, text)}
    return (*SPECIAL_TOKENS, "\n", *sorted({*words, "user", "model"} - {"\n"}))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of both models: words, punctuation marks and newlines are tokens; `<bos>` is added."""
    vocabulary = _vocabulary()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"), pre_tokenizers.Split(Regex(_PIECES), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary.index("<bos>"))]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=True),  # a space between words, none before . , ? !
            decoders.Fuse(),
            *(decoders.Replace(old, new) for old, new in (("“ ", "“"), (" ”", "”"), (" :", ":"), (" \n", "\n"))),
            decoders.Replace("\n ", "\n"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


class Corpus:
    """Tokenised documents with training labels: every token of a web text, the answers of a chat."""

    def __init__(self, documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast, tokens: int | None = None):
        """Tokenise the documents, as many as hold `tokens` tokens if that is given."""
        self.ids: list[list[int]] = []
        self.labels: list[list[int]] = []
        self.tokens = 0
        vocabulary = tokenizer.get_vocab()
        self._start, self._model, self._end = (vocabulary[t] for t in ("<start_of_turn>", "model", "<end_of_turn>"))
        eos = tokenizer.eos_token_id
        documents = iter(documents)
        while (batch := list(islice(documents, 500))) and (tokens is None or self.tokens < tokens):
            if batch[0].is_chat:
                texts = [tokenizer.apply_chat_template(_turns(chat.messages), tokenize=False) for chat in batch]
                rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
                labels = [self._answers(row) for row in rows]
            else:
                rows = [[*row, eos] for row in tokenizer([text.messages[0].content for text in batch])["input_ids"]]
                labels = rows
            self.ids += rows
            self.labels += labels
            self.tokens += sum(map(len, rows))

    def _answers(self, row: list[int]) -> list[int]:
        """The tokens of the assistant's content and the `<end_of_turn>` after it; elsewhere, ignored."""
        labels, inside = [], False
        for i, token in enumerate(row):
            inside = inside or (i >= 3 and row[i - 3 : i - 1] == [self._start, self._model])
            labels.append(token if inside else _IGNORED)
            inside = inside and token != self._end
        return labels

    def batches(self, batch_tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of documents of similar length in random order: ids, attention mask and labels, padded."""
        rng = Random(f"batches {seed}")
        order = list(range(len(self.ids)))
        rng.shuffle(order)
        pools = [sorted(order[i : i + 2000], key=lambda j: len(self.ids[j])) for i in range(0, len(order), 2000)]
        for pool in pools:
            groups: list[list[int]] = [[]]
            for document in pool:
                if (len(groups[-1]) + 1) * len(self.ids[document]) > batch_tokens and groups[-1]:
                    groups.append([])
                groups[-1].append(document)
            rng.shuffle(groups)
            for group in groups:
                yield self._padded(group)

    def _padded(self, group: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        ids, labels = ([torch.tensor(rows[i]) for i in group] for rows in (self.ids, self.labels))
        mask = [torch.ones_like(row) for row in ids]
        return (
            pad_sequence(ids, batch_first=True),
            pad_sequence(mask, batch_first=True),
            pad_sequence(labels, batch_first=True, padding_value=_IGNORED),
        )


def _loss(
    model: PreTrainedModel,
    ids: Int[Tensor, "document position"],
    mask: Int[Tensor, "document position"],
    labels: Int[Tensor, "document position"],
    reduction: str,
) -> Float[Tensor, ""]:
    """Next-token cross-entropy in nats over the labels that count; their hidden states alone are unembedded."""
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    counted = labels[:, 1:] != _IGNORED
    cap = model.config.final_logit_softcapping
    logits = torch.tanh(model.lm_head(hidden[counted]) / cap) * cap
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][counted], reduction=reduction)


def _train(
    model: PreTrainedModel, batches: list[tuple[Tensor, Tensor, Tensor]], peak_lr: float, decay: float, title: str
) -> float:
    """Train on the batches in order with AdamW; returns tokens per second."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=decay)
    warm_up = max(1, min(100, len(batches) // 10))
    model.train()
    tokens, started = 0, time.perf_counter()
    with Progress(len(batches), title, "step") as bar:
        for step, (ids, mask, labels) in enumerate(batches):
            done = max(0, step - warm_up) / max(1, len(batches) - warm_up)
            schedule = min(1.0, (step + 1) / warm_up) * (0.55 + 0.45 * math.cos(math.pi * done))
            optimizer.param_groups[0]["lr"] = peak_lr * schedule
            loss = _loss(model, ids, mask, labels, "mean")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            tokens += int(mask.sum())
            if step % 20 == 0:
                rate = tokens / (time.perf_counter() - started)
                bar.note = f"loss {loss.item():.3f}, {rate:.0f} tok/s"
            bar.update()
    return tokens / (time.perf_counter() - started)


@torch.no_grad()
def _held_out_loss(model: PreTrainedModel, corpus: Corpus) -> float:
    """Mean cross-entropy, nats per labelled token."""
    total, count = 0.0, 0
    for ids, mask, labels in corpus.batches(8_192, 0):
        total += _loss(model, ids, mask, labels, "sum").item()
        count += int((labels[:, 1:] != _IGNORED).sum())
    return total / count


def _unigram_loss(train: Corpus, held_out: Corpus, vocabulary: int) -> float:
    """Cross-entropy of held-out tokens under the training frequencies, nats per token."""
    counts = torch.ones(vocabulary, dtype=torch.float64)
    counts += torch.bincount(torch.tensor(list(chain.from_iterable(train.ids))), minlength=vocabulary)
    tokens = torch.tensor([token for row in held_out.ids for token in row[1:]])
    return -(counts / counts.sum()).log()[tokens].mean().item()


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: list[list[Message]], max_tokens: int = 160
) -> list[tuple[str, bool]]:
    """The model's greedy answers to conversations that end in a user turn, and whether each ended its turn."""
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    answers = []
    for start in range(0, len(requests), 100):
        texts = [
            tokenizer.apply_chat_template(_turns(messages), tokenize=False, add_generation_prompt=True)
            for messages in requests[start : start + 100]
        ]
        prompt = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        stops = [tokenizer.eos_token_id, end]
        output = model.generate(  # type: ignore[operator]
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=max_tokens, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
            ),
        )[:, prompt["input_ids"].shape[1] :]
        answers += [(str(tokenizer.decode(row, skip_special_tokens=True)), end in row.tolist()) for row in output]
    return answers


def _held_out_requests(per_behaviour: int, seed: int) -> dict[str, list[tuple[list[Message], Message]]]:
    """For each behaviour, held-out first requests with their reference answers."""
    found: dict[str, list[tuple[list[Message], Message]]] = {name: [] for name in BEHAVIOURS}
    seen = set()
    for document in islice(chat_documents(seed, "validation"), 200 * per_behaviour):
        request, answer = document.messages[:2]
        name = behaviour(answer)
        if name and len(found[name]) < per_behaviour and request.content not in seen:
            seen.add(request.content)
            found[name].append(([request], answer))
    return found


def _evaluate(
    directory: Path, tokenizer: PreTrainedTokenizerFast, web: Corpus, chat: Corpus, config: PairConfig
) -> dict[str, object]:
    """Losses and behaviours of the shipped weights, read back as float32."""
    model = load_model(directory, torch.float32, attn_implementation="eager").eval()
    rates, examples, ended = {}, {}, []
    for name, pairs in _held_out_requests(config.requests_per_behaviour, config.seed + 1).items():
        answers = greedy_answers(model, tokenizer, [request for request, _ in pairs])
        shown = [
            end and shows(name, reference, answer) for (_, reference), (answer, end) in zip(pairs, answers, strict=True)
        ]
        rates[name] = sum(shown) / max(1, len(shown))
        ended += [end for _, end in answers]
        examples[name] = [[pairs[0][0][0].content, answers[0][0]]] if pairs else []
    return {
        "web_loss": _held_out_loss(model, web),
        "chat_loss": _held_out_loss(model, chat),
        "behaviour_rate": rates,
        "ended_turn_rate": sum(ended) / max(1, len(ended)),
        "examples": examples,
    }


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    shipped = deepcopy(model).bfloat16()
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    shipped.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, end],
        pad_token_id=tokenizer.pad_token_id,
    )
    shipped.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _held_out(tokenizer: PreTrainedTokenizerFast, config: PairConfig) -> tuple[Corpus, Corpus]:
    """The web texts and chats that losses are measured on."""
    web = Corpus(islice(web_documents(config.seed + 2, "validation"), config.held_out_documents), tokenizer)
    chats = Corpus(islice(chat_documents(config.seed + 2, "validation"), config.held_out_documents), tokenizer)
    return web, chats


def _tune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: PairConfig, seed: int
) -> tuple[int, int, float]:
    """Chat-tune a base model in place on `seed`'s data; returns chat tokens, web tokens and tokens per second."""
    chats = Corpus(chat_documents(seed), tokenizer, config.chat_tokens)
    batches = list(chats.batches(config.batch_tokens, seed))
    kept_tokens = int(config.chat_tokens * config.web_share / (1 - config.web_share))
    kept = Corpus(web_documents(seed + 1), tokenizer, kept_tokens)
    batches += kept.batches(config.batch_tokens, seed)
    Random(seed).shuffle(batches)
    rate = _train(model, batches, config.chat_lr, config.weight_decay, "chat-tuning")
    return chats.tokens, kept.tokens, rate


def train_variant(variant: str, base: Path, out_dir: Path, config: PairConfig) -> dict[str, object]:
    """Train a model to compare the pair with, from the base model saved at `base`; save it, return what it learned.

    `retuned` is chat-tuned as the chat model was, with other conversations of the same kind in another order;
    `continued` goes on with new web text, for as many tokens at the same learning rate.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    model = load_model(base, torch.float32, attn_implementation="eager")
    if variant == "retuned":
        _tune(model, tokenizer, config, VARIANT_SEED)
    else:
        web = Corpus(web_documents(VARIANT_SEED), tokenizer, int(config.chat_tokens / (1 - config.web_share)))
        batches = list(web.batches(config.batch_tokens, VARIANT_SEED))
        _train(model, batches, config.chat_lr, config.weight_decay, "more web text")
    _save(model, tokenizer, out_dir)
    return _evaluate(out_dir, tokenizer, *_held_out(tokenizer, config), config)


def train_pair(out_dir: Path, config: PairConfig) -> dict:
    """Train the pair, save it in bfloat16 under `out_dir`/base and /chat, and return what is in `out_dir`/report.json.

    Losses are nats per token on held-out documents, of all tokens of web text and of the assistant's tokens of chats.
    A behaviour's rate is the share of held-out requests that are answered as `grammar.shows` demands, with the turn
    ended by `<end_of_turn>`.

    Raises:
        TunediffError: the token budgets do not fill one batch.
    """
    if min(config.base_tokens, config.chat_tokens) < config.batch_tokens:
        raise TunediffError("demo pair: base_tokens and chat_tokens must be at least batch_tokens")
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer()
    base = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.d_model,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            head_dim=config.d_model // config.heads,
            query_pre_attn_scalar=config.d_model // config.heads,
            intermediate_size=config.d_mlp,
            max_position_embeddings=1024,
            sliding_window=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    base.set_attn_implementation("eager")  # the others leave out Gemma 2's soft-capping of attention
    web_corpus = Corpus(web_documents(config.seed), tokenizer, config.base_tokens)
    base_batches = list(web_corpus.batches(config.batch_tokens, config.seed))
    base_rate = _train(base, base_batches, config.base_lr, config.weight_decay, "base on web text")
    _save(base, tokenizer, out_dir / "base")

    chat = deepcopy(base)
    chat_tokens, chat_web_tokens, chat_rate = _tune(chat, tokenizer, config, config.seed)
    _save(chat, tokenizer, out_dir / "chat")
    trained = time.perf_counter() - started

    web, chats = _held_out(tokenizer, config)
    report = {
        "base": _evaluate(out_dir / "base", tokenizer, web, chats, config),
        "chat": _evaluate(out_dir / "chat", tokenizer, web, chats, config),
        "web_unigram_loss": _unigram_loss(web_corpus, web, len(tokenizer)),
        "parameters": sum(weight.numel() for weight in base.parameters()),
        "vocabulary": len(tokenizer),
        "tokens": {
            "base_web": web_corpus.tokens,
            "chat": chat_tokens,
            "chat_web": chat_web_tokens,
            "held_out_web": web.tokens,
            "held_out_chat": chats.tokens,
        },
        "tokens_per_second": {"base": base_rate, "chat": chat_rate},
        "seconds": {"training": trained, "all": time.perf_counter() - started},
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "config": asdict(config),
    }
    (out_dir / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def main() -> None:
    """Train the pair from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tunediff.demo.pair",
        description="Train the demo's base and chat model and write DIR/base, DIR/chat and DIR/report.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the pair goes")
    options = {
        "base_tokens": "web tokens for the base model",
        "chat_tokens": "chat tokens for the chat model",
        "base_lr": "peak learning rate, base",
        "chat_lr": "peak learning rate, chat-tuning",
        "seed": "seed of corpora, weights and batch order",
    }
    for name, meaning in options.items():
        default = getattr(PairConfig, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=meaning)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = train_pair(arguments.out, PairConfig(**{name: getattr(arguments, name) for name in options}))
    print(json.dumps({key: report[key] for key in ("tokens_per_second", "seconds", "parameters")}, indent=2))
    for name in ("base", "chat"):
        result = report[name]
        print(
            f"{name}: web loss {result['web_loss']:.3f}, chat loss {result['chat_loss']:.3f}", result["behaviour_rate"]
        )


if __name__ == "__main__":
    main()
