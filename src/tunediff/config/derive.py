"""Values that a config leaves out: concrete numbers derived from its models, its text files and what it does state.

They are filled in when the config is checked, so content keys, scripts and jobs see ordinary values: a derived value
written out by hand gives the same keys. The rules are told key by key in config/README.md.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tunediff.config.dictionaries import CrosscoderSettings, Run, trained
from tunediff.config.settings import LocalSource, Source, split_tokens
from tunediff.data.corpora import documents, reads_same_data
from tunediff.data.documents import Distinct, Document, Message, text_digest
from tunediff.demo import DEMO, DEMO_MODELS
from tunediff.errors import TunediffError

SPLITS = ("train", "validation")

# Text files: an estimate from below, so that a derived budget is never larger than its source.
CHARACTERS_PER_TOKEN = 6  # white space collapsed; tokenizers of large vocabularies need 3 (code) to 5 (prose)
LONGEST_READ = 2 * sum(Source.budgets.values())

MOST_CONVERSATIONS = 512
REQUESTS_USED = 0.9  # of those found: some may still be refused by the chat template
TEMPLATE_TOKENS = 64  # around a request, at most

SHARD, LEAST_SHARD, CHUNK = 65_536, 256, 1_024  # tokens
LEAST_PART = 65_536
SET_SHARE = 0.04  # of the latents: the paper's effective set is 3,176 of 73,728
LOGITS_BYTES = 1 << 30

FEW_TOKENS = 5_000_000  # train tokens: two epochs from here on
LEAST_STEPS, MOST_EPOCHS = 1_000, 16
BATCHES = (2_048, 1_024, 512, 256)  # tokens of a training step

# config.json, as far as read here, of the gated models that configs of this project name: plans need no access to them.
NUMBERS = (
    *("num_hidden_layers", "hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
)
KNOWN_MODELS = {
    "google/gemma-2-2b": (26, 2304, 9216, 8, 4, 256, 256_000),
    "google/gemma-3-270m": (18, 640, 2048, 4, 1, 256, 262_144),
    "meta-llama/Llama-3.2-1B": (16, 2048, 8192, 32, 8, 64, 128_256),
}
PICKLED = (
    "has no weights in *.safetensors, and pickled ones (pytorch_model.bin) are not read, for they can run code; load "
    "it with transformers and write it again with save_pretrained"
)
WIDTH = ("hidden_size", "n_embd", "d_model")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


def require(condition: bool, message: str) -> None:
    """Raise an error of the config unless the condition holds."""
    if not condition:
        raise TunediffError(f"config: {message}")


class Blanks:
    """Fills in missing keys, and remembers them in `filled`: value by dotted key."""

    def __init__(self) -> None:
        self.filled: dict[str, Any] = {}

    def fill(self, where: str, section: dict[str, Any], values: Mapping[str, Callable[[], Any]]) -> None:
        """Set each key that a section lacks to its value, in this order; `where` is the section's dotted key."""
        for name, value in values.items():
            if name not in section:
                self.filled[f"{where}.{name}"] = section[name] = value()


# -- models ------------------------------------------------------------------------------------------------------------


def _from_hub(model: str, revision: str | None, fetch: bool) -> dict[str, Any] | None:
    """Return config.json of a model of the hub: from its cache, else from the table above, else fetched."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(found, str):
        if model in KNOWN_MODELS:
            return dict(zip(NUMBERS, KNOWN_MODELS[model], strict=True))
        if not fetch:
            return None
        try:
            found = hf_hub_download(model, "config.json", revision=revision, etag_timeout=3)
        except (OSError, ValueError):  # the hub's own errors are among them
            return None
    return json.loads(Path(found).read_text(encoding="utf-8"))


def require_safetensors(directory: Path, told: str) -> None:
    """Raise a `TunediffError` where a model's directory has no weights in safetensors; `told` names the model."""
    if not any(directory.glob("*.safetensors")):
        raise TunediffError(f"{told}: {PICKLED}")


def model_config(models: Mapping[str, Any], shipped: Path, fetch: bool = True) -> dict[str, Any] | None:
    """Return config.json of the base model (of a multimodal one, its text part), None where it cannot be had.

    `models` is that section of the config; `shipped` is the folder of the demo's pair. Without `fetch` the hub is not
    asked, only its local cache.

    Raises
    ------
    TunediffError
        A config.json on this machine is not JSON.
    """
    named, revision = models["base"], models.get("base_revision")
    if isinstance(named, Mapping):  # with an adapter, which changes no shape
        named, revision = named["base"], named["base_revision"]
    path = (shipped / "base" if named in (DEMO, *DEMO_MODELS) else Path(named).expanduser()) / "config.json"
    try:
        if path.is_file():
            config = json.loads(path.read_text(encoding="utf-8"))
        else:
            config = _from_hub(named, revision, fetch) if named.count("/") == 1 else None
    except ValueError as error:
        wrong = f"config: `models.base`: config.json of {named} is not JSON ({error}); replace it"
        raise TunediffError(wrong) from error
    if config is None:
        return None
    recipe = models.get("demo", {})
    written = {"hidden_size": recipe.get("d_model"), "num_hidden_layers": recipe.get("layers")}
    return (config.get("text_config") or config) | {name: n for name, n in written.items() if n is not None}


def shape_value(config: Mapping[str, Any] | None, *names: str) -> int | None:
    """Return the first of some keys that a config.json has."""
    return next((int(config[name]) for name in names if config and config.get(name) is not None), None)


def _model_value(models: Mapping[str, Any] | None, shipped: Path, fetch: bool, names: Sequence[str], key: str) -> int:
    """Return a number of the base model's config.json that `key` is derived from; an error names the key."""
    if models is None:
        raise TunediffError(f"config: `{key}` is missing; add it: planted pairs have no model to derive it from")
    found = shape_value(model_config(models, shipped, fetch), *names)
    if found is None:
        raise TunediffError(
            f"config: `{key}` is missing, and no config.json of {models['base']} that states {names[0]} is in reach; "
            "write `models.layer` and every `dict_size`"
        )
    return found


# -- texts -------------------------------------------------------------------------------------------------------------


@dataclass
class Survey:
    """What a pass over local files finds: estimates from below."""

    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    requests: int = 0  # different requests that can be asked, in validation documents


def _is_request(document: Document, conversations: Mapping[str, Any]) -> bool:
    """Return whether the first turn is short enough for every tokenizer, and answered where answers are given."""
    turns = document.messages
    answered = conversations["answers"] == "generate" or (len(turns) > 1 and turns[1].role == "assistant")
    fits = len(turns[0].content) <= conversations["max_prompt_tokens"] - TEMPLATE_TOKENS
    return answered and fits and turns[0].role != "system"


def _alternates(document: Document) -> bool:
    return all(turn.role == ("user", "assistant")[i % 2] for i, turn in enumerate(document.messages))


def survey(
    source: Mapping[str, Any],
    max_length: int,
    most: Mapping[str, int],
    requests: int,
    conversations: Mapping[str, Any],
    whole: bool = False,
) -> Survey:
    """Read a local source until it has `most` tokens per split and `requests` different requests, or 11.5 M tokens.

    Copies of a text count once, and documents no longer than `max_length` tokens. Conversations that do not alternate
    from a user's turn on (system prompts) count only where there are no others: some chat templates refuse them. With
    `whole`, all documents are validation documents.

    Raises
    ------
    TunediffError
        A file cannot be read or holds a malformed row.
    """
    found, others = Survey(), dict.fromkeys(SPLITS, 0)
    asked = Distinct()
    share = float(source.get("validation_share", LocalSource.validation_share))
    separate = source.get("validation_path") is not None  # files of their own; else one pass reads both splits
    passes = ("validation",) if whole else SPLITS if separate else (None,)
    for fixed in passes:
        stream = documents(source, fixed or "train", 0, whole=whole or not separate)
        seen: set[int] = set()
        for document in stream:
            digest = text_digest(document.messages)
            if digest in seen:
                continue
            seen.add(digest)
            split = fixed or ("validation" if digest < share * 2**64 else "train")
            tokens = found.tokens if not document.is_chat or _alternates(document) else others
            characters = sum(len(" ".join(message.content.split())) for message in document.messages)
            tokens[split] += min(max_length, characters // CHARACTERS_PER_TOKEN)
            if split == "validation" and found.requests < requests and _is_request(document, conversations):
                found.requests += asked.is_new([Message("user", document.messages[0].content)])
            enough = all(found.tokens[name] >= most[name] for name in SPLITS if fixed in (None, name))
            enough &= found.requests >= requests or fixed == "train"
            if enough or sum(found.tokens.values()) + sum(others.values()) > LONGEST_READ:
                break
    if not any(found.tokens.values()):
        found.tokens = others
    found.tokens = {split: min(tokens, most[split]) for split, tokens in found.tokens.items()}
    return found


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Name the source in errors of reading it."""
    try:
        yield
    except TunediffError as error:
        raise TunediffError(f"config: `{where}`: {error}") from error


class _Texts:
    """What the sources hold; files are read when asked for, once."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.conversations, self.tokens = config["conversations"], config["tokens"]
        self.sources: dict[str, dict[str, Any]] = self.tokens["sources"]
        self.surveys: dict[str, Survey] = {}

    def _survey(self, where: str, source: Mapping[str, Any], whole: bool = False) -> Survey:
        if where not in self.surveys:
            budgets_written = all(split in self.tokens["budgets"] for split in SPLITS)
            most = dict.fromkeys(SPLITS, 0) if budgets_written or whole else Source.of(source).budgets
            asked = "count" not in self.conversations and self.conversations["source"] == source
            requests = math.ceil(MOST_CONVERSATIONS / REQUESTS_USED) if asked else 0
            with _named(where):
                found = survey(source, self.tokens["max_length"], most, requests, self.conversations, whole)
            self.surveys[where] = found
        return self.surveys[where]

    def _is_chat(self, name: str) -> bool:
        """Return whether a source of `tokens.sources` holds conversations."""
        source = self.sources[name]
        known = Source.of(source).holds_chat(source)
        if known is not None:
            return known
        with _named(f"tokens.sources.{name}"):
            first = next(documents(source, "train", 0, whole=True), None)
        return first is not None and first.is_chat

    def available(self, name: str, split: str) -> int:
        """Return the budget of a source where it is left to itself."""
        source = self.sources[name]
        if not Source.of(source).files:
            return Source.of(source).budgets[split]
        found = self._survey(f"tokens.sources.{name}", source).tokens[split]
        require(
            found > 0,
            f"`tokens.sources.{name}`: no text for {split} in column `{source['column']}`; give larger files, or "
            f"`validation_path`, or write `tokens.budgets.{split}`",
        )
        return found

    def source(self) -> dict[str, Any]:
        """Return the source of the conversations: the token source that holds conversations."""
        source = next((source for name, source in self.sources.items() if self._is_chat(name)), None)
        if source is None:
            raise TunediffError(
                "config: `conversations.source` is missing, and no source of `tokens.sources` holds conversations (a "
                "column of lists of turns); add it: a source of requests"
            )
        return Source.of(source).requests(source)

    def count(self) -> int:
        """Return the number of conversations: fewer where local files have fewer requests."""
        source = self.conversations["source"]
        if not Source.of(source).files:
            return MOST_CONVERSATIONS
        same = next((name for name, other in self.sources.items() if other == source), None)
        if same is not None:
            found = self._survey(f"tokens.sources.{same}", source)
        else:
            same = next((name for name, other in self.sources.items() if reads_same_data(source, other)), None)
            found = self._survey("conversations.source", source, whole=same is None)
        count = min(MOST_CONVERSATIONS, int(REQUESTS_USED * found.requests))
        share = f" (only its validation share is used: `tokens.sources.{same}` reads the same files)" if same else ""
        require(
            count >= 2,
            f"`conversations.source` has {found.requests} different requests to ask{share}; give a larger one, or "
            "write `conversations.count`",
        )
        return count


def whole_shards(budget: Mapping[str, int], shard: int) -> dict[str, int]:
    """Return a budget whose sum is a multiple of `shard` tokens: what is too much comes from the largest sources."""
    rounded, excess = dict(budget), sum(budget.values()) % shard
    for name in sorted(budget, key=lambda name: -budget[name]):
        taken = min(excess, rounded[name] - 1)
        rounded[name], excess = rounded[name] - taken, excess - taken
    return rounded


def _derive_budgets(config: Mapping[str, Any], texts: _Texts, blanks: Blanks) -> None:
    budgets = config["tokens"]["budgets"]
    found = {
        split: {name: texts.available(name, split) for name in texts.sources}
        for split in SPLITS
        if split not in budgets
    }
    written = [sum(budget.values()) for budget in budgets.values()]
    totals = {split: sum(budget.values()) for split, budget in found.items()}
    shard = config["activations"].get("shard_tokens")
    if shard is None:
        shard = SHARD
        while shard > LEAST_SHARD and min(*written, *totals.values()) < 8 * shard:
            shard //= 2
        for total in written:  # of the other split: it has to be whole shards too
            shard = largest_divisor(total, shard)
    for split, total in totals.items():
        require(
            total >= shard,
            f"`tokens.sources` hold about {total} tokens for {split}, less than a shard of {shard}; "
            f"give larger files, or write `tokens.budgets.{split}`",
        )
        blanks.fill("tokens.budgets", budgets, {split: partial(whole_shards, found[split], shard)})


# -- layout, training, crosscoders -------------------------------------------------------------------------------------


def largest_divisor(n: int, most: int) -> int:
    """Return the largest divisor of `n` that is at most `most`."""
    return next(d for d in range(max(1, min(n, most)), 0, -1) if n % d == 0)


def shard_size(train: int, validation: int, chunk: int = 1, part: int | None = None) -> int:
    """Return the tokens of a shard: the largest common divisor up to 65,536, in whole chunks."""
    common = math.gcd(train, validation, part or 0)
    shard = chunk * largest_divisor(common // chunk, SHARD // chunk) if common % chunk == 0 else chunk
    require(
        shard >= min(LEAST_SHARD, train, validation),
        f"`tokens.budgets` add up to {train} and {validation} tokens, whose common divisor up to {SHARD} is {shard}: "
        f"write multiples of {SHARD}, or `activations.shard_tokens`",
    )
    return shard


def part_size(train: int, shard: int) -> int:
    """Return the tokens of a part: about one million, in 4 to 16 parts of at least 65,536 tokens."""
    shards, parts = max(1, train // shard), min(16, max(4, round(train / 1e6)))
    return shard * min(shards, max(math.ceil(shards / parts), math.ceil(LEAST_PART / shard)))


def _layout(acts: Mapping[str, Any], train: int, validation: int) -> dict[str, Callable[[], int]]:
    chunk, part = acts.get("chunk_tokens", 1), acts.get("part_tokens")
    return {
        "shard_tokens": lambda: shard_size(train, validation, chunk, part),
        "part_tokens": lambda: part_size(train, acts["shard_tokens"]),
        "chunk_tokens": lambda: largest_divisor(acts["shard_tokens"], min(CHUNK, acts["shard_tokens"] // 8)),
    }


def _training(training: Mapping[str, Any], train: int) -> dict[str, Callable[[], float]]:
    """Return how training is set: the paper's learning rate for its 97,656 steps, a larger one for short runs."""

    def steps() -> int:
        size = training["batch_size"]
        epochs = 4 if train < FEW_TOKENS else 2
        return max(1, epochs * train // size, min(LEAST_STEPS, MOST_EPOCHS * train // size))

    def learning_rate() -> float:
        return 2e-3 if training["steps"] <= 3_000 else 3e-4 if training["steps"] <= 30_000 else 1e-4

    return {
        "batch_size": lambda: next((n for n in BATCHES if 4 * train >= LEAST_STEPS * n), BATCHES[-1]),
        "steps": steps,
        "learning_rate": learning_rate,
        "warmup_steps": lambda: min(1_000, training["steps"] // 10),
        "checkpoint_every": lambda: min(20_000, max(50, training["steps"] // 5)),
        "log_every": lambda: min(100, max(1, training["steps"] // 100)),
    }


def _derive_crosscoders(config: Mapping[str, Any], train: int, model: Callable[..., int], blanks: Blanks) -> None:
    """Fill in each trained crosscoder by its kind, then what follows the L0 of others."""
    found, steps, size = trained(config["crosscoders"]), config["training"]["steps"], config["training"]["batch_size"]
    widths = {name: partial(model, WIDTH, f"crosscoders.{name}.dict_size") for name in found}
    runs = {name: Run(train, steps, size, width) for name, width in widths.items()}
    for name, (kind, own) in found.items():
        blanks.fill(f"crosscoders.{name}", own, kind.derived(own, runs[name]))
    l0 = next((l0 for kind, own in found.values() if (l0 := kind.asked_l0(own)) is not None), None)
    for name, (kind, own) in found.items():
        blanks.fill(f"crosscoders.{name}", own, kind.matched(own, runs[name], l0))


def _derive_causal(config: Mapping[str, Any], blanks: Blanks) -> None:
    """Fill in the size of the effective sets: the L1 crosscoder's chat-only latents, else 4 % of the dictionary."""
    causal, crosscoders = config["causal"], config["crosscoders"]
    reference = next((name for name, own in crosscoders.items() if CrosscoderSettings.of(own).sizes_sets), None)
    sizes = [own["dict_size"] for own in crosscoders.values() if "dict_size" in own]
    size = None if reference or "reference" in causal or not sizes else max(2, round(SET_SHARE * min(sizes)))
    blanks.fill("causal", causal, {"set_size": lambda: size, "reference": lambda: reference or next(iter(crosscoders))})


def _derive_batches(config: Mapping[str, Any], shipped: Path, blanks: Blanks) -> None:
    """Fill in how many documents are run at once: its logits take 1 GiB in float32 at most."""
    vocabulary = shape_value(model_config(config["models"], shipped, fetch=False), "vocab_size")
    lengths = {"evaluation": config["tokens"]["max_length"], "causal": config["conversations"]["max_tokens"]}
    for section, length in lengths.items():
        fitting = 4 if vocabulary is None else LOGITS_BYTES // (4 * length * vocabulary)
        blanks.fill(section, config[section], {"batch_size": partial(min, 16, max(1, fitting))})


def derive(config: dict[str, Any], shipped: Path, fetch: bool = True) -> dict[str, Any]:
    """Fill in what a config leaves out, in place; return the values by dotted key.

    The config has the schema's defaults already. `shipped` is the folder of the demo's pair; without `fetch` the hub is
    not asked for a config.json, only its local cache.

    Raises
    ------
    TunediffError
        A value cannot be derived; the message names the key to write.
    """
    blanks = Blanks()
    model = partial(_model_value, config.get("models"), shipped, fetch)
    if "planted" not in config:
        texts = _Texts(config)
        blanks.fill("models", config["models"], {"layer": lambda: model(LAYERS, "models.layer") // 2})
        blanks.fill("conversations", config["conversations"], {"source": texts.source})
        _derive_budgets(config, texts, blanks)
        blanks.fill("conversations", config["conversations"], {"count": texts.count})
    train, validation = (split_tokens(config, split) for split in SPLITS)
    blanks.fill("activations", config["activations"], _layout(config["activations"], train, validation))
    if trained(config["crosscoders"]):
        blanks.fill("training", config["training"], _training(config["training"], train))
        _derive_crosscoders(config, train, model, blanks)
    if "planted" not in config:
        _derive_causal(config, blanks)
        _derive_batches(config, shipped, blanks)
    return blanks.filled
