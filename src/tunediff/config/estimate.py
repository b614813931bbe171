"""What a run costs before it is started: disk, memory of each kind of job, time of each stage.

The formulas are written once, here: rules ask for `memory_mb`, and what Snakemake prints at its start is `report`.
They are counts of bytes and of floating point operations (2 n k m for a product of (n, k) and (k, m)) of the stages as
they are written; the rates turn them into seconds. Neither is exact: a factor of two is a good estimate.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from textwrap import fill
from timeit import repeat, timeit
from types import SimpleNamespace
from typing import Any, NamedTuple

from tunediff.config.derive import LAYERS, NUMBERS, WIDTH, model_config, shape_value
from tunediff.config.dictionaries import DictionarySettings, trained
from tunediff.config.settings import ExampleSettings, generation_batch, split_tokens
from tunediff.data.corpora import opened
from tunediff.interventions import registry

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
BLOSC = 2 / 3  # of the uncompressed bytes
MB = 10**6

# Memory. Measured on 2 cores with Gemma 3 270M (float32, 65,536 tokens a part): 2.0 GB for the hooks, 3.7 to 4.1 GB for
# the harvest, 1.1 GB for the pair's tokenizers.
PROCESS = 500 * MB  # Python with torch and transformers
TOKENIZER = 1_400  # bytes a token of the vocabulary takes
SLACK = 1.15  # for what an allocator keeps
ROW = 22  # bytes beside the activations of a token
TOKEN = 21  # bytes of a token in its store
LOGITS_AT_ONCE = 128 * MB  # turned into float32 by what compares logits, see `models.LOGITS_AT_ONCE`
CODES = 128 * MB  # preactivations at a time, see `crosscoder.MAX_BLOCK`
WINDOW = 4 << 30  # residuals a harvest holds at most, see `harvest.WINDOW_BYTES`: two
WRITERS = 4  # shards a harvest writes at once, at most
PREFETCHED = 5  # batches in memory
LATENTS = 100  # active on a token, at most
TWINS = 0.1  # of the firings are of latents that may be twins
BLOCK_TOKENS = 1 << 16  # of the examples' pass, whose codes are sorted together
BLOCK = 64  # bytes a nonzero takes while they are
WINDOWS_EACH = 25  # documents of a latent's windows that no other latent's are of, about
DIRECTIONS_FROM = 1 << 17  # tokens that random directions get their thresholds from
PROMPT_TOKENS = 2_000  # of a request to explain
COMPARED = 600 * MB  # cosines of two seeds' latents, see `seeds.HUNGARIAN_LATENTS` and `seeds.BLOCK`: two arrays
EXAMPLES = 256 * MB  # blocks of cosines and of direct logits, each

# Work.
ADAM = 28  # bytes read and written for a parameter
MODEL_EFFICIENCY = 0.5  # of a large product's rate: the harvest of Gemma 3 270M on 2 cores
HALF_ON_CPU = 1 / 7  # of the rate in float32, on a CPU without bfloat16 products (measured)
FILLED = 0.6  # of their allowed length that texts have, and the longest conversation of a batch
STEERED_ARMS = 5  # beside random directions, see `steering.arms`
ANSWERED = 0.3  # the same of all conversations: 0.18 in the demo
TOKENS_PER_SECOND = 50_000  # tokenisation, one core
STEP_SECONDS = 0.002  # of a training step, beside its products
FORWARD_SECONDS = 0.02  # of a forward pass, beside its products
RULE_SECONDS = 0.015  # to find and score the rule of a latent
JOB_SECONDS = 4  # of a job, before it works

MANY_EPOCHS, FEW_EPOCHS = 20, 0.9


class ModelShape(NamedTuple):
    """What the cost of a model depends on."""

    d_model: int
    n_layers: int
    vocabulary: int
    intermediate: int  # width of a block's MLP
    block: int  # parameters of a block
    embedding: int  # parameters of the embedding, and of an output matrix of its own
    layer: int  # whose output is read

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return self.n_layers * self.block + self.embedding

    @property
    def lower(self) -> int:
        """Parameters that are kept where only the residual after `layer` is asked for."""
        return (self.layer + 1) * self.block + self.embedding

    def flops(self, first: int, last: int, logits: bool = False) -> int:
        """Operations of blocks [first, last) on one token."""
        return 2 * (max(0, last - first) * self.block + (self.vocabulary * self.d_model if logits else 0))


# Taken where config.json is out of reach: an 8 B model, so that rules ask for enough.
UNKNOWN = {**dict(zip(NUMBERS, (32, 4096, 14336, 32, 8, 128, 128_256), strict=True)), "tie_word_embeddings": False}


def model_shape(config: Mapping[str, Any], layer: int) -> ModelShape:
    """Return the shape of a decoder from its config.json; numbers it lacks are taken as those of plain attention."""
    d, n_layers = shape_value(config, *WIDTH) or 0, shape_value(config, *LAYERS) or 0
    heads = shape_value(config, "num_attention_heads", "n_head") or 1
    size = shape_value(config, "head_dim") or d // heads
    keys = shape_value(config, "num_key_value_heads") or heads
    intermediate = shape_value(config, "intermediate_size", "n_inner") or 4 * d
    experts = shape_value(config, "num_local_experts", "num_experts") or 1
    vocabulary = shape_value(config, "vocab_size") or 262_144
    block = 2 * d * size * (heads + keys) + 3 * d * intermediate * experts + 4 * d
    matrices = 1 if config.get("tie_word_embeddings", True) else 2
    return ModelShape(d, n_layers, vocabulary, intermediate, block, matrices * vocabulary * d + d, layer)


class Setting(NamedTuple):
    """A checked config and the shape of its models."""

    config: Mapping[str, Any]
    shape: ModelShape
    known: bool = True  # whether config.json was in reach
    judge: ModelShape | None = None  # of a local model that explains

    @property
    def planted(self) -> bool:
        """Whether activations are made from planted latents."""
        return "planted" in self.config

    @property
    def pairs(self) -> list[float]:
        """Factor on every `dict_size`, for each pair of models: each arm and seed of a planted run."""
        if not self.planted:
            return [1.0]
        planted = self.config["planted"]
        return [arm["dictionary"] for arm in planted["arms"].values() for _ in planted["seeds"]]

    def trained(self, factor: float) -> list[tuple[type[DictionarySettings], int]]:
        """Kind and number of latents of each dictionary that a pair trains."""
        seeds = 1 if self.planted else len(self.config["training"]["seeds"])
        found = trained(self.config["crosscoders"]).values()
        return [(kind, round(factor * own["dict_size"])) for kind, own in found for _ in range(seeds)]

    def dictionaries(self, factor: float) -> list[int]:
        """Latents of each dictionary of a pair; a published one is taken as of 32 × the width, as the paper's are."""
        published = len(self.config["crosscoders"]) - len(trained(self.config["crosscoders"]))
        return [*(size for _, size in self.trained(factor)), *([32 * self.shape.d_model] * published)]

    @property
    def firing(self) -> float:
        """Latents that a trained dictionary has on a token, as the config asks for it; 0 where nothing says so."""
        own = [own for _, own in trained(self.config["crosscoders"]).values()]
        return max((float(each.get("k") or each.get("target_l0") or 0) for each in own), default=0.0)

    def tokens(self, split: str) -> int:
        """Tokens of a split; of one planted pair."""
        return split_tokens(self.config, split)

    @property
    def dtype(self) -> str:
        """Type of a weight and of a residual where the models run."""
        return "float32" if self.planted else self.config["models"]["dtype"]

    @property
    def itemsize(self) -> int:
        """Bytes of it."""
        return ITEMSIZE[self.dtype]

    @property
    def device(self) -> str:
        """The device of the config."""
        return self.config["planted" if self.planted else "models"]["device"]

    @property
    def answered_at_once(self) -> int:
        """Answers that are generated at once."""
        return generation_batch(self.config["conversations"]["batch_size"], "cuda" if self.on_gpu else "cpu")

    @property
    def on_gpu(self) -> bool:
        """Whether that is a GPU, as far as this machine has one."""
        return self.device.startswith("cuda") or (self.device == "auto" and sees_gpu())

    @property
    def trainers(self) -> int:
        """GPUs that train a dictionary together; processes on one CPU gain nothing and count as one."""
        return self.config["training"].get("devices", 1) if self.on_gpu else 1


def setting(config: Mapping[str, Any], shipped: Path, fetch: bool = True) -> Setting:
    """Return a checked config with the shape of its models; see `derive.model_config`."""
    if "planted" in config:
        widest = max(arm["d_model"] for arm in config["planted"]["arms"].values())
        return Setting(config, ModelShape(widest, 0, 0, 0, 0, 0, 0))
    shape, known = _shape(config["models"], config["models"]["layer"], shipped, fetch)
    local = config["explanations"]["model"] or {}
    judge = None
    if local.get("from") == "local":
        judge, _ = _shape({"base": local["path"], "base_revision": local["revision"]}, 0, shipped, fetch)
    return Setting(config, shape, known, judge)


def _shape(models: Mapping[str, Any], layer: int, shipped: Path, fetch: bool) -> tuple[ModelShape, bool]:
    """Return the shape of a section's base model, and whether its config.json was in reach."""
    found = model_config(models, shipped, fetch)
    known = shape_value(found, *WIDTH) is not None and shape_value(found, *LAYERS) is not None
    return model_shape(found if found and known else UNKNOWN, layer), known


def parameters(d_model: int, dict_size: int) -> int:
    """Parameters of a dictionary: two encoders, two decoders, F + 2 d biases."""
    return 4 * d_model * dict_size + dict_size + 2 * d_model


# -- memory ------------------------------------------------------------------------------------------------------------


def memory_mb(run: Setting) -> dict[str, int]:
    """Return the memory to ask for, in MB, per kind of job: all it holds at its largest, on whatever device."""
    c, shape, acts = run.config, run.shape, run.config["activations"]
    d, w, width = shape.d_model, run.itemsize, ITEMSIZE[acts["dtype"]]
    trained, dictionaries = run.trained(max(run.pairs)), run.dictionaries(max(run.pairs))
    most = max(dictionaries)
    weights = 4 * parameters(d, most)
    tokenizer = TOKENIZER * shape.vocabulary
    statistics = 8 * (11 + 19) * c["latents"]["blocks"] * most  # of Latent Scaling: train and validation
    twins = TWINS * 2 * 12 * LATENTS * run.tokens("validation")  # their firings, kept until the pair is known, sorted
    latents = 3 * weights + statistics + 2 * CODES + twins
    needs: dict[str, float] = {"latents": latents, "dictionary": 2 * weights}
    needs["seeds"] = weights + len(c["training"].get("seeds", ())) * weights / 2 + COMPARED  # the decoder of every seed
    if trained:
        training = c["training"]
        states = 16 * parameters(d, max(size for _, size in trained))  # one job per dictionary
        pool = min(training["pool_chunks"] * acts["chunk_tokens"], run.tokens("train"))
        read = training["batch_size"] * PREFETCHED * 2 * 4 * d + 2 * pool * 2 * d * width  # by each process
        more = training["devices"] - 1  # processes, of which the first puts the dictionary together at the end
        needs["train"] = states + training["batch_size"] * 4 * 4 * most + read + more * (PROCESS + read)
        needs["train"] += weights if more else 0
    if run.planted:
        needs["stores"] = 3 * 4 * 2 * d * run.tokens("train")
        needs["scores"] = needs["train"] + latents
        return _rounded(needs)
    length, asked = c["tokens"]["max_length"], c["conversations"]["max_tokens"]
    model, lower = w * shape.parameters + tokenizer, w * shape.lower + tokenizer

    def forward(tokens: int) -> float:
        return w * tokens * (3 * shape.intermediate + 6 * d)

    def logits(documents: int, positions: int, bytes_each: int) -> float:
        return bytes_each * documents * positions * shape.vocabulary + LOGITS_AT_ONCE

    adapters = sum(not isinstance(c["models"][side], str) for side in ("base", "chat"))
    part = min(acts["part_tokens"], run.tokens("train"))
    needs["models"] = 2 * tokenizer + (3 * 4 * shape.parameters if adapters else 0)
    needs["hooks"] = model + forward(length)
    needs["tokens"] = tokenizer + 50 * max(run.tokens("train"), run.tokens("validation"))
    needs["conversations"] = model + forward(run.answered_at_once * asked)
    needs["activations"] = model + lower + forward(acts["batch_tokens"]) + min(WINDOW, 2 * d * width * part)
    shard = acts["shard_tokens"] * d * width
    needs["activations"] += 2 * WRITERS * shard  # shuffled, and on the way to the disk
    batches = c["evaluation"]["batch_size"], c["causal"]["batch_size"]
    needs["evaluation"] = (
        2 * model + weights + 2 * CODES + logits(batches[0], length, 2 * w) + forward(batches[0] * length)
    )
    shown, validation = ExampleSettings(**c["examples"]), run.tokens("validation")
    windows = (shown.strongest + 3 * shown.per_band) * (4 * (2 * shown.context + 1) + 8)
    kept = most * (windows + 8 * shown.firings + 8 * 20 * len(c["tokens"]["sources"]))
    codes = LATENTS * (BLOCK * min(BLOCK_TOKENS, validation) + 24 * min(shown.sample_tokens, validation))
    products = min(EXAMPLES, 4 * most**2) + 2 * min(EXAMPLES, 12 * most * shape.vocabulary)
    needs["examples"] = model + 2 * weights + CODES + kept + codes + products
    needs["explanations"] = tokenizer + 12 * (run.tokens("train") + validation) + codes + DIRECTIONS_FROM * 2 * d * 8
    if run.judge is not None:
        asked_of, own = run.judge, ITEMSIZE[c["explanations"]["model"]["dtype"]]
        needs["explanations"] += own * asked_of.parameters + TOKENIZER * asked_of.vocabulary
        prompts = c["explanations"]["model"]["batch_size"] * PROMPT_TOKENS
        needs["explanations"] += own * prompts * (3 * asked_of.intermediate + 6 * asked_of.d_model)
    needs["losses"] = (
        2 * model + logits(batches[0], length, 2 * 2 * w) + 2 * LOGITS_AT_ONCE + forward(batches[0] * length)
    )
    needs["report"] = tokenizer + 3000 * sum(dictionaries) + 12 * validation + 600 * 2**20  # measured
    # labelled tokens alone: all nonzeros of one dictionary's code, ranked
    labels = any(opened(source).labelled for source in c["tokens"]["sources"].values())
    labelled = run.tokens("validation") if labels else 0
    firing = run.firing or LATENTS
    needs["concepts"] = sum(4 * parameters(d, size) for size in dictionaries) + 2 * CODES + 80 * firing * labelled
    kept = 2 * d * w  # residuals of both models
    codes = FILLED * c["conversations"]["count"] * asked * (kept + 4 * d + 20 * LATENTS * len(dictionaries))
    edits = sum(6 * 4 * d * size for size in dictionaries)  # weights, and two decoders made of them
    needs["causal"] = model + lower + edits + codes + logits(batches[1], asked, 2 * w + 8) + forward(batches[1] * asked)
    weighed = sum(4 * parameters(d, size) for size in dictionaries)
    batch, most = batches[1], max(batches[1], run.answered_at_once)
    needs["steering"] = 2 * model + weighed + CODES + logits(batch, asked, 2 * w + 12) + forward(most * asked)
    return _rounded(needs)


def _rounded(needs: Mapping[str, float]) -> dict[str, int]:
    return {name: 100 * math.ceil(SLACK * (PROCESS + need) / (100 * MB)) for name, need in needs.items()}


# -- disk --------------------------------------------------------------------------------------------------------------


def disk_bytes(run: Setting) -> dict[str, int]:
    """Return the bytes a run leaves on disk, per kind; checkpoints are gone at its end."""
    acts, d = run.config["activations"], run.shape.d_model
    tokens = len(run.pairs) * (run.tokens("train") + run.tokens("validation"))
    stored = 2 * d * ITEMSIZE[acts["dtype"]] * (BLOSC if acts["codec"] == "blosc" else 1)
    trained = [parameters(d, size) for factor in run.pairs for _, size in run.trained(factor)]
    kept = [parameters(d, size) for factor in run.pairs for size in run.dictionaries(factor)]
    return {
        "activations": round(tokens * (stored + ROW)),
        "tokens": tokens * TOKEN,
        "dictionaries": 4 * sum(kept),
        "checkpoints": 12 * sum(trained) // len(run.pairs),
    }


# -- time --------------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What a stage does."""

    model: float = 0  # operations of the language models
    dictionary: float = 0  # operations of the dictionaries
    traffic: float = 0  # bytes read and written
    seconds: float = 0  # that no device shortens

    def shared(self, devices: int) -> "Work":
        """Return what one of several devices does of it."""
        return self._replace(
            model=self.model / devices, dictionary=self.dictionary / devices, traffic=self.traffic / devices
        )


class Rates(NamedTuple):
    """What a device does in a second."""

    model: float
    dictionary: float
    traffic: float

    def seconds(self, work: Work) -> float:
        """Return the time some work takes."""
        return work.model / self.model + work.dictionary / self.dictionary + work.traffic / self.traffic + work.seconds


# An H100; modelled from its peak rates by tests/gpu (docs/speed.md), not measured: models in bfloat16 with what their
# norms and attention move; products in bfloat16 and TF32.
GPU_MODEL = {"float32": 3e13, "bfloat16": 3.5e14, "float16": 3.5e14}  # by `models.dtype`
GPU_DICTIONARY = {"highest": 5e13, "high": 3.7e14, "bf16": 7.9e14}  # by `training.matmul_precision`
GPU_TRAFFIC = 3.3e12


def slow_in(dtype: str) -> bool:
    """Return whether this CPU has no products of half precision."""
    facts = Path("/proc/cpuinfo")
    return ITEMSIZE[dtype] == 2 and facts.is_file() and "bf16" not in facts.read_text(encoding="utf-8")


def calibrate(cores: int, dtype: str, seconds: float = 0.1) -> Rates:
    """Return the rates of this machine's CPU now: a float32 product and a copy, timed for about `seconds`.

    `dtype` is what the models run in.
    """
    import numpy as np

    left, right = (np.ones((1024, 1024), dtype=np.float32) for _ in range(2))
    source, target = (np.ones(1 << 24, dtype=np.float32) for _ in range(2))

    def best(work: Callable[[], Any], size: float) -> float:
        first = timeit(work, number=1)
        return size / min(repeat(work, number=1, repeat=max(3, round(seconds / 2 / first))))

    product = best(lambda: left @ right, 2 * 1024**3) * min(1.0, cores / usable_cores())
    copy = best(lambda: np.copyto(target, source), 2 * source.nbytes)
    return Rates(MODEL_EFFICIENCY * product * (HALF_ON_CPU if slow_in(dtype) else 1), product, copy)


def usable_cores() -> int:
    """Return the cores this process may run on."""
    return len(os.sched_getaffinity(0))


def interventions(config: Mapping[str, Any], dictionaries: int) -> int:
    """Return how often the KL experiment runs the chat model's upper half, at most."""
    causal: Any = SimpleNamespace(**config["causal"])
    return registry.count(causal, None) + dictionaries * registry.count(causal, registry.CROSSCODER)


def stages(run: Setting, jobs: int) -> dict[str, Work]:
    """Return the work of a whole run from nothing, per stage; `jobs` is the number of its jobs."""
    c, shape = run.config, run.shape
    d, train, validation = shape.d_model, run.tokens("train"), run.tokens("validation")
    steps, batch = (c["training"].get(key, 0) for key in ("steps", "batch_size"))  # absent where nothing is trained
    trained = [each for factor in run.pairs for each in run.trained(factor)]
    products = sum(kind.products * 4 * d * size for kind, size in trained)
    moved = ADAM * sum(parameters(d, size) for _, size in trained)
    learned = Work(0, products * batch * steps, moved * steps, STEP_SECONDS * steps * len(trained)).shared(run.trainers)
    dictionaries = [size for factor in run.pairs for size in run.dictionaries(factor)]
    encoded = sum(4 * d * size for size in dictionaries)  # operations a token
    fitted = min(train, c["latents"]["fit_tokens"] or train)
    tables = Work(0, 2 * encoded * (fitted + validation))
    texts, starts = Work(seconds=len(run.pairs) * (train + validation) / TOKENS_PER_SECOND), JOB_SECONDS * jobs
    if run.planted:
        return {"stores": texts, "training": learned, "latent tables": tables, "starts of jobs": Work(seconds=starts)}
    lower, upper = shape.flops(0, shape.layer + 1), shape.flops(shape.layer + 1, shape.n_layers, logits=True)
    held_out = len(c["tokens"]["sources"]) * c["evaluation"]["documents"] * FILLED * c["tokens"]["max_length"]
    spliced = len(dictionaries) * held_out * 2 * (lower + 3 * upper)  # per dictionary both models, each three times
    found = min(
        validation, len(dictionaries) * c["examples"]["losses_latents"] * WINDOWS_EACH * c["tokens"]["max_length"]
    )
    directions = 2 * shape.d_model * sum(size * (2 * shape.vocabulary + 2 * size) for size in dictionaries)
    looked = Work(2 * FILLED * found * (lower + upper), encoded * validation + directions)
    own = c["explanations"]
    several = sum(min(size, own["latents"] + own["shared"]) + 2 * own["controls"] for size in dictionaries)
    explained = sum(map(len, own["only"].values())) or several
    asked = c["conversations"]
    answers, answered = asked["count"] * ANSWERED * asked["max_tokens"], asked["answers"] == "generate"
    calls = math.ceil(asked["count"] / run.answered_at_once) * FILLED * asked["max_tokens"] if answered else 0
    runs = interventions(c, len(dictionaries))
    batches = math.ceil(asked["count"] / c["causal"]["batch_size"])
    steered, arms = c["steering"], STEERED_ARMS + c["steering"]["random_directions"]
    doses = steered["latents"] * len(steered["alphas"]) * len(steered["positions"])
    again = len(dictionaries) * doses * arms * min(steered["prompts"], asked["count"] // 2)  # answers
    words = again * steered["max_new_tokens"]
    passes = math.ceil(again / run.answered_at_once) * steered["max_new_tokens"]  # of generation
    return {
        "tokens": texts,
        "activations": Work((train + validation) * 2 * lower),
        "training": learned,
        "latent tables": tables,
        "held-out metrics": Work(spliced),
        "examples": looked,
        "explanations": Work(traffic=5 * validation * len(dictionaries) * 4 * d, seconds=RULE_SECONDS * explained),
        "answers": Work(
            answers * (lower + upper) * answered, 0, calls * run.itemsize * shape.parameters, calls * FORWARD_SECONDS
        ),
        "KL": Work(answers * (2 * lower + runs * upper), 0, 0, batches * runs * FORWARD_SECONDS),
        "steering": Work(
            words * (2 * lower + 3 * upper),
            0,
            passes * run.itemsize * shape.parameters,
            (passes + 2 * math.ceil(again / c["causal"]["batch_size"])) * FORWARD_SECONDS,
        ),
        "starts of jobs": Work(seconds=starts),
    }


# -- report ------------------------------------------------------------------------------------------------------------


def _bytes(n: float) -> str:
    scale, unit = next(((s, u) for s, u in ((1e12, "TB"), (1e9, "GB")) if n >= s), (1e6, "MB"))
    return f"{n / scale:.3g} {unit}"


def _time(seconds: float) -> str:
    scale, unit = next(((s, u) for s, u in ((86400, "d"), (3600, "h"), (60, "min")) if seconds >= s), (1, "s"))
    return f"{seconds / scale:.2g} {unit}" if seconds < 10 * scale else f"{seconds / scale:.0f} {unit}"


def _count(n: float) -> str:
    return f"{n / 1e6:.3g} M" if n >= 1e6 else f"{n:,.0f}"


def sees_gpu() -> bool:
    """Return whether this machine has a GPU, without importing torch."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def _value(value: Any) -> str:
    if isinstance(value, dict):
        if "from" in value:
            return str(value.get("path", value.get("part")))
        return " + ".join(f"{name} {_value(one)}" for name, one in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def describe_derived(derived: Mapping[str, Any]) -> str:
    """Return the derived values in one line, those of a section together; a null says nothing and is left out."""
    sections: dict[str, list[str]] = {}
    for key, value in derived.items():
        section, _, name = key.rpartition(".")
        if value is not None:
            sections.setdefault(section, []).append(f"{name} {_value(value)}")
    return "; ".join(f"{section}: {', '.join(values)}" for section, values in sections.items())


def warnings(run: Setting) -> list[str]:
    """Return what does not fit: steps and tokens, the models and this machine, needed and free disk."""
    found, training = [], run.config["training"]
    if run.trained(1.0):
        train, steps, batch = run.tokens("train"), training["steps"], training["batch_size"]
        read, said = steps * batch, f"{steps:,} steps of {batch:,} read"
        if read > MANY_EPOCHS * train:
            found.append(
                f"{said} the {train:,} train tokens {read / train:,.0f} times; give more tokens (`tokens.budgets`), or "
                f"lower `training.steps` to {max(1, 4 * train // batch):,} (4 epochs)"
            )
        if read < FEW_EPOCHS * train:
            found.append(
                f"{said} only {100 * read / train:.0f} % of the {train:,} train tokens; raise `training.steps` to "
                f"{math.ceil(train / batch):,} (1 epoch), or lower `tokens.budgets`"
            )
    if not run.known:
        found.append(
            f"no config.json of {run.config['models']['base']} in reach: taken as a model of 8 B parameters, for the "
            "memory that jobs ask for too"
        )
    if slow_in(run.dtype) and not run.on_gpu:
        found.append(f"this CPU is about 7 times slower in {run.dtype}; without a GPU write `models.dtype: float32`")
    results = Path(run.config["results"]).expanduser()
    have = sum(path.stat().st_size for path in results.rglob("*") if path.is_file()) if results.is_dir() else 0
    folder = next(parent for parent in (results.absolute(), *results.absolute().parents) if parent.exists())
    need, free = sum(disk_bytes(run).values()) - have, shutil.disk_usage(folder).free
    if need > free:
        found.append(
            f"{_bytes(need)} more of disk are needed under {folder}, {_bytes(free)} are free; lower `tokens.budgets`, "
            "or set `results` to another disk"
        )
    return found


def _times(run: Setting, jobs: int, cores: int) -> str:
    """Return the time of each stage and of all on the device in sight, and in all on a GPU where that is the CPU."""
    gpu = Rates(GPU_MODEL[run.dtype], GPU_DICTIONARY[run.config["training"]["matmul_precision"]], GPU_TRAFFIC)
    cpu, work = calibrate(cores, run.dtype), stages(run, jobs)
    times = {name: (gpu if run.on_gpu else cpu).seconds(one) for name, one in work.items()}
    cards = f"an H100, {run.trainers} in training," if run.trainers > 1 else "an H100"
    modelled = f"on {cards} about {_time(sum(map(gpu.seconds, work.values())))} (rates modelled, not measured)"
    measured = f"{_time(sum(times.values()))} on {cores} CPU cores (calibrated: {cpu.dictionary / 1e9:.0f} GFLOP/s)"
    total = modelled if run.on_gpu else measured if run.device == "cpu" else f"{measured}, {modelled}"
    taken = "" if run.planted else f"; answers, KL: conversations of {100 * ANSWERED:.0f} % of max_tokens on average"
    return ", ".join(f"{name} {_time(seconds)}" for name, seconds in times.items()) + f"; all {total}{taken}"


def report(run: Setting, derived: Mapping[str, Any], jobs: int, cores: int) -> str:
    """Return what Snakemake prints at its start: derived values, tokens, disk, memory, time, and what does not fit.

    `jobs` is the number of jobs of a whole run, `cores` how many it may use.
    """
    c, disk, memory = run.config, disk_bytes(run), memory_mb(run)
    texts = f"{_count(run.tokens('train'))} train + {_count(run.tokens('validation'))} validation"
    if run.planted:
        texts = f"{len(run.pairs)} pairs of {texts}"
    if run.trained(1.0):
        steps, batch = c["training"]["steps"], c["training"]["batch_size"]
        texts += f"; {steps:,} steps of {batch:,}: {steps * batch / run.tokens('train'):.1f} epochs"
    largest = sorted(memory.items(), key=lambda item: -item[1])
    others = f", others up to {_bytes(MB * largest[5][1])}" if len(largest) > 5 else ""
    lines = [
        ("derived", describe_derived(derived)),
        ("tokens", texts),
        ("disk", ", ".join(f"{name} {_bytes(n)}" for name, n in disk.items()) + f"; all {_bytes(sum(disk.values()))}"),
        ("memory", ", ".join(f"{name} {_bytes(n * MB)}" for name, n in largest[:5]) + others),
        ("time", _times(run, jobs, min(cores, usable_cores()))),
    ]
    if c["nulls"]:
        lines.append(("nulls", f"{len(c['nulls'])} more pairs, on request: each its activations, training and tables"))
    lines += [("warning", text) for text in warnings(run)]
    wrap = partial(fill, width=118, subsequent_indent=" " * 11, break_on_hyphens=False, break_long_words=False)
    wrapped = [wrap(f"  {name:8} {text}") for name, text in lines if text]
    return "\n".join(["estimate of the whole run, from nothing (a factor of two is possible):", *wrapped])
