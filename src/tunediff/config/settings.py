"""Every section of a config, and with it every key: type, range, default or rule, help.

A section object holds what a stage reads; plain fields beside the keys are given by the stage. The kinds of crosscoders
are in `tunediff.config.dictionaries`, the planted pairs in `tunediff.config.planted`. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tunediff.config.dictionaries import CrosscoderSettings
from tunediff.config.fields import DEVICE, MOST_TOKENS, NAME, Settings, Variant, setting
from tunediff.config.planted import PlantedSettings

TOKEN_ID = {"pattern": "^[0-9]+$"}


@dataclass(frozen=True, kw_only=True)
class Adapter(Settings, section="adapter"):
    """A base model with a low-rank adapter (LoRA, safetensors), merged once in float32 and kept with the results."""

    base: str = setting(
        "The model the adapter was trained on: a hub id or a local directory, not quantised.", minLength=1
    )
    adapter: str = setting(
        "The adapter: a hub id or a local directory, written by peft. Its own tokenizer or chat template is used if it "
        "comes with one, else the base's.",
        minLength=1,
    )
    revision: str | None = setting(
        "Commit, tag or branch of a hub adapter; null is its default branch.", None, minLength=1
    )
    base_revision: str | None = setting("The same for its base model.", None, minLength=1)


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings, section="models.demo"):
    """The built-in pair; only read where base and chat are `demo`."""

    retrain: bool = setting("Train the pair instead of using the shipped one.", False)
    base_tokens: int | None = setting(
        "Tokens of web text the base model is trained on; only with retrain.", optional=True, minimum=1000
    )
    chat_tokens: int | None = setting(
        "Tokens of conversations the chat model is tuned on; only with retrain.", optional=True, minimum=1000
    )
    d_model: int | None = setting("Width of the retrained pair; only with retrain.", optional=True, minimum=16)
    layers: int | None = setting("Blocks of the retrained pair; only with retrain.", optional=True, minimum=2)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings, section="models"):
    """The model pair."""

    base: str | Adapter = setting(
        "Base model: a hub id, a local directory, a base with an adapter (see below), or `demo`, the demo's base model "
        "(`demo-base`).",
        minLength=1,
    )
    chat: str | Adapter = setting(
        "Chat-tuned model: a hub id, a local directory, a base with an adapter (see below), or `demo` (`demo-chat`); "
        "its tokenizer and chat template are used.",
        minLength=1,
    )
    base_revision: str | None = setting("Commit, tag or branch of a hub base model; null is its default branch.", None)
    chat_revision: str | None = setting("Commit, tag or branch of a hub chat model; null is its default branch.", None)
    layer: int = setting(
        "Block whose output is compared, counted from 0, not the last",
        rule="the middle one: half the number of blocks, read from the base model's config.json (directory, hub cache, "
        "or hub)",
        minimum=0,
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting("Type the models run in.", "bfloat16")
    device: str = setting("`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.", "auto", pattern=DEVICE)
    ignore_first_tokens: int = setting(
        "Leading tokens of every sample left out of training and metrics (Gemma 0, Llama 3 25, Qwen 2.5 21).",
        0,
        minimum=0,
    )
    base_token_replacements: dict[str, int] = setting(
        'Token ids the base model gets instead of the chat tokenizer\'s, `"id": id` (Llama 3: {"128006": 1432, '
        '"128009": 827, "128007": 827}).',
        {},
        propertyNames=TOKEN_ID,
        minimum=0,
    )
    demo: DemoSettings = setting()


@dataclass(frozen=True, kw_only=True)
class NullPair(Settings, section="nulls"):
    """The two models; both must have the tokenizer of `models`."""

    base: str | Adapter = setting(
        "As `models.base`; of the demo also `demo-chat`, `demo-retuned` (tuned again, on other conversations in "
        "another order) and `demo-continued` (the base model, trained on with new web text).",
        minLength=1,
    )
    chat: str | Adapter = setting("The same for the model in the place of the chat model.", minLength=1)
    base_revision: str | None = setting("As `models.base_revision`.", None)
    chat_revision: str | None = setting("As `models.chat_revision`.", None)
    base_token_replacements: dict[str, int] = setting(
        "As `models.base_token_replacements`, whose value is not taken over: needed where the first model is a base "
        "model.",
        {},
        propertyNames=TOKEN_ID,
        minimum=0,
    )


class Source(Variant):
    """A source of texts."""

    tag: ClassVar[str] = "from"
    budgets: ClassVar[dict[str, int]] = {"train": 5 << 20, "validation": 1 << 19}  # tokens, at most, where none is said
    generated: ClassVar[bool] = False  # by this project: its texts have a version, and labelled concepts
    files: ClassVar[tuple[str, ...]] = ()  # keys that name files of this machine

    @classmethod
    def holds_chat(cls, own: Mapping[str, Any]) -> bool | None:
        """Return whether these are conversations; None where only reading tells."""
        return None

    @classmethod
    def requests(cls, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the source of requests that goes with one of conversations."""
        return dict(own)


@dataclass(frozen=True, kw_only=True)
class DemoSource(Source):
    """Text generated by the project."""

    kind: ClassVar[str] = "demo"
    budgets: ClassVar[dict[str, int]] = {"train": 1 << 18, "validation": 1 << 16}
    generated: ClassVar[bool] = True

    part: Literal["web", "chat", "requests"] = setting("Plain texts, conversations, or single user turns.")

    @classmethod
    def holds_chat(cls, own: Mapping[str, Any]) -> bool:
        """Return whether these are conversations, or requests."""
        return own["part"] != "web"

    @classmethod
    def requests(cls, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the source of single turns."""
        return {**own, "part": "requests"}


@dataclass(frozen=True, kw_only=True)
class HubSource(Source):
    """A hub data set, streamed."""

    kind: ClassVar[str] = "hub"
    chat_columns: ClassVar[tuple[str, ...]] = ("messages", "conversation", "conversations", "chat", "turns")

    path: str = setting("Hub id of the data set.", minLength=1)
    name: str | None = setting("Its configuration (sample-10BT).", None)
    split: str = setting("Its split.", "train")
    validation_split: str | None = setting(
        "Split for validation tokens; null sets documents apart by a hash of their content.", None
    )
    validation_share: float = setting(
        "Share of documents set apart for validation.", 0.1, exclusiveMinimum=0, exclusiveMaximum=1
    )
    column: str = setting("Column with the text, or with the list of messages.", minLength=1)
    revision: str | None = setting("Commit of the data set.", None)

    @classmethod
    def holds_chat(cls, own: Mapping[str, Any]) -> bool:
        """Return whether the column's name is one of conversations: nothing is fetched to see."""
        return own["column"] in cls.chat_columns


@dataclass(frozen=True, kw_only=True)
class LocalSource(Source):
    """Files: .jsonl, .jsonl.gz or .parquet."""

    kind: ClassVar[str] = "local"
    files: ClassVar[tuple[str, ...]] = ("path", "validation_path")

    path: str = setting("A file or a glob.", minLength=1)
    validation_path: str | None = setting(
        "Files for validation tokens; null sets documents apart by a hash of their content.", None
    )
    validation_share: float = setting(
        "Share of documents set apart for validation.", 0.1, exclusiveMinimum=0, exclusiveMaximum=1
    )
    column: str = setting("Column with the text, or with the list of messages.", minLength=1)


@dataclass(frozen=True, kw_only=True)
class BudgetSettings(Settings, section="tokens.budgets"):
    """Exact number of tokens per split and source."""

    train: dict[str, int] = setting(
        "Train tokens per source",
        rule="5,242,880 of a data set of the hub; of local files what they hold, at most as much, estimated from below "
        "(a token per 6 characters, where real tokenizers need 3 to 5; copies of a text left out, documents cut at "
        "max_length); the sum is rounded down to whole shards",
        minimum=1,
        maximum=MOST_TOKENS,
    )
    validation: dict[str, int] = setting(
        "Validation tokens per source, from other documents",
        rule="a tenth of that, in the same way",
        minimum=1,
        maximum=MOST_TOKENS,
    )


@dataclass(frozen=True, kw_only=True)
class TokenSettings(Settings, section="tokens"):
    """Which text is tokenised, and how much."""

    max_length: int = setting("Tokens a document is truncated to.", 1024, minimum=8)
    sources: dict[str, Source] = setting(
        "Named text sources; the names appear in every table (web, chat).", minProperties=1, maxProperties=8
    )
    budgets: BudgetSettings = setting()


@dataclass(frozen=True, kw_only=True)
class ConversationSettings(Settings, section="conversations"):
    """The chat interactions of the KL experiment."""

    source: Source | None = setting(
        "Requests (the first user turn is used), or whole conversations with `answers` given",
        None,
        rule="the first of `tokens.sources` that holds conversations, of which only the validation share is used",
    )
    count: int = setting(
        "Number of conversations",
        512,
        rule="512, or 90 % of the different requests of local files (no longer than max_prompt_tokens - 64 characters) "
        "where these are fewer",
        minimum=2,
    )
    answers: Literal["generate", "given"] = setting(
        "`generate`: the chat model answers greedily; `given`: the source's own first answer.", "generate"
    )
    max_prompt_tokens: int = setting("Longer prompts are skipped.", 896, minimum=4)
    max_tokens: int = setting("Prompt and answer together.", 1024, minimum=8)
    batch_size: int | None = setting(
        "Conversations per generation batch; null is 128 on a GPU and 16 on a CPU.", None, minimum=1
    )

    ignore_first_tokens: int = 0  # of `models`: marked as ignored at the start of each conversation

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.max_prompt_tokens < self.max_tokens
        self.require("max_prompt_tokens", fits, f"below max_tokens ({self.max_tokens}), to leave room for an answer")


def generation_batch(batch_size: int | None, device: str) -> int:
    """Return how many answers are generated at once: as `conversations.batch_size` says, or by the device."""
    return batch_size or (128 if device.startswith("cuda") else 16)


@dataclass(frozen=True, kw_only=True)
class HarvestSettings(Settings, section="activations"):
    """The activation stores."""

    dtype: Literal["bfloat16", "float16", "float32"] = setting(
        "Stored type; bfloat16 is lossless for models run in bfloat16.", "bfloat16"
    )
    codec: Literal["crc32c", "blosc"] = setting(
        "`crc32c`: uncompressed with checksums, read at memory-map speed; `blosc`: a third smaller, about 1.7 times "
        "the CPU.",
        "crc32c",
    )
    chunk_tokens: int = setting(
        "Tokens per chunk, the unit of reading",
        1024,
        rule="the largest divisor of shard_tokens up to 1,024 and an eighth of it",
        minimum=1,
    )
    shard_tokens: int = setting(
        "Tokens per shard file",
        65_536,
        rule="a multiple of chunk_tokens that divides the tokens of every split: the largest up to 65,536",
        minimum=1,
    )
    part_tokens: int = setting(
        "Tokens per part, the unit of resume; one job makes all parts of a pair",
        1_048_576,
        rule="a multiple of shard_tokens: 4 to 16 parts, about 1 M tokens each and 65,536 at least",
        minimum=1,
    )
    batch_tokens: int = setting("Padded tokens per forward pass.", 32_768, minimum=8)
    outlier_factor: float | None = setting(
        "A token whose norm exceeds this many medians of its part, in either model, is a massive activation: stored, "
        "but left out of training and of every metric; null keeps all, as the paper does.",
        5,
        exclusiveMinimum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for small, large in (("chunk_tokens", "shard_tokens"), ("shard_tokens", "part_tokens")):
            unit, total = getattr(self, small), getattr(self, large)
            written = max(1, round(total / unit)) * unit
            wanted = f"a multiple of `activations.{small}` ({unit}), such as {written}"
            self.require(large, total % unit == 0, wanted)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings, section="training"):
    """Shared by all trained crosscoders, which see the same tokens in the same order."""

    batch_size: int = setting(
        "Token pairs per step",
        2048,
        rule="2,048, halved (down to 256) while four epochs are fewer than 1,000 steps",
        minimum=1,
    )
    steps: int = setting(
        "Training steps; epochs = steps × batch_size / train tokens",
        97_656,
        rule="four epochs, or two from 5 M train tokens on; up to 16 where that were fewer than 1,000 steps",
        minimum=1,
    )
    learning_rate: float = setting(
        "Adam learning rate, constant after the warm-up",
        1e-4,
        rule="0.002 up to 3,000 steps, 0.0003 up to 30,000, else 0.0001",
        exclusiveMinimum=0,
    )
    warmup_steps: int = setting("Steps of linear warm-up", 1000, rule="a tenth of the steps, at most 1,000", minimum=0)
    normalization: Literal["none", "scale", "mean_scale"] = setting(
        "Input normalisation, folded into the weights at the end: `none`; `scale`: one scale per model to median norm "
        "√d; `mean_scale`: also minus the mean.",
        "mean_scale",
    )
    normalization_tokens: int = setting("Train tokens the normalisation is estimated on.", 1_000_000, minimum=1)
    pool_chunks: int = setting(
        "Open chunks that batches are drawn from; memory is pool_chunks × chunk_tokens × 4 d bytes.", 128, minimum=1
    )
    checkpoint_every: int = setting(
        "Steps between checkpoints", 20_000, rule="a fifth of the steps, 50 to 20,000", minimum=1
    )
    log_every: int = setting(
        "Steps between rows of the history", 100, rule="a hundredth of the steps, at most 100", minimum=1
    )
    matmul_precision: Literal["highest", "high", "bf16"] = setting(
        "Every large product of training on a GPU: float32, TF32, or inputs rounded to bfloat16; sums and weights are "
        "float32.",
        "highest",
    )
    kernels: Literal["auto", "off"] = setting(
        "auto: Triton kernels take the steps of dictionaries with sparse gradients on a GPU; off: plain PyTorch.",
        "auto",
    )
    devices: int = setting(
        "Processes that train one crosscoder together, each on a GPU of its own (or all on the CPU) with its share of "
        "the latents; the result is that of one process, to rounding.",
        1,
        minimum=1,
    )
    log_to: Literal["none", "tensorboard", "wandb"] = setting("Also send the history there.", "none")
    seeds: tuple[int, ...] = setting(
        "Each crosscoder is trained once per seed, all from one pass over the data.",
        (0,),
        minItems=1,
        uniqueItems=True,
        minimum=0,
    )

    beta1: float = 0.9  # decay of Adam's first moment
    beta2: float = 0.999  # decay of Adam's second moment
    seed: int = 42  # of the data order
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class LatentSettings(Settings, section="latents"):
    """The latent table and Latent Scaling."""

    fit_tokens: int | None = setting("Train tokens Latent Scaling is fitted on; null is all.", None, minimum=1)
    min_count: int = setting("Activations below which a latent gets no ν.", 100, minimum=2)
    blocks: int = setting("Independent blocks of documents for standard errors.", 64, minimum=8)
    bootstrap_samples: int = setting("Resamples of blocks for intervals of ν.", 1000, minimum=100)
    nu_reconstruction_below: float = setting("A chat-specific latent has ν^r below this.", 0.5, exclusiveMinimum=0)
    nu_error_below: float = setting("A chat-specific latent has ν^ε below this.", 0.2, exclusiveMinimum=0)

    batch_size: int = 2048  # tokens encoded at once
    seed: int = 0  # of the bootstrap and of the control directions


@dataclass(frozen=True, kw_only=True)
class ExampleSettings(Settings, section="examples"):
    """Examples of what each latent fires on, from validation tokens."""

    context: int = setting("Tokens of a window before and after its peak.", 32, minimum=1, maximum=512)
    strongest: int = setting("Windows of largest activation per latent.", 20, minimum=1, maximum=1000)
    per_band: int = setting(
        "Windows drawn per latent from each band of its maximum (0.1 to 0.4, to 0.7, to 1); explanations are scored on "
        "ten of a band, and made from the others.",
        15,
        minimum=1,
        maximum=1000,
    )
    inactive: int = setting(
        "Windows per latent in which it does not fire; and as many that hold one of its most frequent tokens.",
        15,
        minimum=1,
        maximum=50,
    )
    losses_latents: int = setting(
        "Chat-specific latents per dictionary, the lowest `rank_sum` first, on whose documents both models' losses and "
        "their KL are measured (of none, the first latent of the ranking).",
        25,
        minimum=1,
    )

    firings: int = 256  # sampled per latent, about, for the tables of tokens
    sample_tokens: int = 1 << 18  # of whole documents, of which all firings are kept
    batch_size: int = 2048  # tokens encoded at once
    seed: int = 0  # of everything drawn


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings, section="evaluation"):
    """Held-out metrics."""

    documents: int = setting("Held-out documents per source for the cross-entropy recovered.", 128, minimum=1)
    batch_size: int = setting(
        "Documents per forward pass", 16, rule="16, fewer where their logits were more than 1 GiB", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class CausalSettings(Settings, section="causal"):
    """The KL experiment (Figure 4)."""

    reference: str = setting(
        "Crosscoder whose number of Δnorm chat-only latents is the size of everyone's set of highest Δnorm",
        "l1",
        rule="the first L1 crosscoder",
    )
    set_size: int | None = setting(
        "That size as a number instead",
        None,
        rule="null, or 4 % of dict_size where no crosscoder is L1 and no reference is named",
        minimum=2,
    )
    include_bias: bool = setting(
        "Whether All is also run with the difference of the decoder biases (the paper does not add it).", False
    )
    random_sets: int = setting(
        "Draws of random latents with the edit energy of a best half, per ranking.", 5, minimum=1
    )
    random_orders: int = setting(
        "Random orders of all live latents, the curve that rankings are compared with (Figure 4b).", 3, minimum=1
    )
    curve_energies: tuple[float, ...] = setting(
        "Shares of the energy of All at which the curves are measured.",
        (0.02, 0.05, 0.1, 0.2, 0.4, 0.7),
        minItems=1,
        uniqueItems=True,
        exclusiveMinimum=0,
        exclusiveMaximum=1,
    )
    batch_size: int = setting(
        "Conversations per forward pass", 16, rule="16, fewer where their logits were more than 1 GiB", minimum=1
    )
    bootstrap_samples: int = setting("Resamples of conversations.", 2000, minimum=100)

    seed: int = 0  # of the random sets and orders


@dataclass(frozen=True, kw_only=True)
class SteeringSettings(Settings, section="steering"):
    """Steering: answers while the direction of a latent is added to the residual stream."""

    latents: int = setting(
        "Latents per crosscoder, the first of the ranking by both ν (where kinds of answers are labelled, the first "
        "chat-specific ones that fire in answers of one kind); each costs as many answers as prompts, times alphas, "
        "positions, and arms (five and random_directions).",
        3,
        minimum=1,
    )
    alphas: tuple[float, ...] = setting(
        "Doses α: α times the latent's largest activation on validation tokens times d^chat is added. Answers break at "
        "doses that are no longer small beside the residuals (`dose_share`), at `all` positions earlier.",
        (1, 4),
        minItems=1,
        uniqueItems=True,
        exclusiveMinimum=0,
    )
    positions: tuple[Literal["all", "prompt"], ...] = setting(
        "Where it is added: at `all` positions, or at those of the `prompt` only.",
        ("prompt",),
        minItems=1,
        uniqueItems=True,
    )
    prompts: int = setting(
        "Requests that are answered, drawn from the conversations; the others say what kind of answer a latent is of.",
        64,
        minimum=2,
    )
    max_new_tokens: int = setting("Length of an answer at most.", 48, minimum=1)
    random_directions: int = setting("Random directions of the same dose, per latent.", 3, minimum=1)

    generation_batch_size: int = 16  # of `conversations`: answers generated at once
    batch_size: int = 16  # of `causal`: conversations per forward pass
    bootstrap_samples: int = 1000  # of requests, for the intervals of all that is no rate
    seed: int = 0  # of the requests, of the random directions and of the bootstrap


class LanguageModel(Variant):
    """A language model that explains latents and judges explanations."""

    tag: ClassVar[str] = "from"


@dataclass(frozen=True, kw_only=True)
class EndpointModel(LanguageModel):
    """A server with the chat completions protocol: a local one (llama.cpp, Ollama, vLLM), or a hosted one."""

    kind: ClassVar[str] = "endpoint"

    url: str = setting(
        "Its address, with the version where it has one (http://localhost:8000/v1).", pattern="^https?://"
    )
    model: str = setting("Name of the model there.", minLength=1)
    key_variable: str | None = setting(
        "Name of the environment variable that holds the key, which is written nowhere; null where none is needed.",
        None,
        pattern="^[A-Z_][A-Z0-9_]*$",
    )
    parallel: int = setting("Requests at a time.", 4, minimum=1, maximum=64)
    timeout: float = setting("Seconds to wait for a reply.", 120, exclusiveMinimum=0)
    attempts: int = setting("Tries of a request that fails for a passing reason (429, 5xx, no reply).", 6, minimum=1)
    price_input: float | None = setting(
        "Price of a million tokens read, for the dry run; null leaves prices out.", None, minimum=0
    )
    price_output: float | None = setting("The same of tokens written.", None, minimum=0)


@dataclass(frozen=True, kw_only=True)
class LocalModel(LanguageModel):
    """A Transformers model with a chat template, on the device of `models`."""

    kind: ClassVar[str] = "local"

    path: str = setting("A hub id or a local directory.", minLength=1)
    revision: str | None = setting("Commit, tag or branch of a hub model; null is its default branch.", None)
    dtype: Literal["float32", "bfloat16", "float16"] = setting("Type it runs in.", "bfloat16")
    batch_size: int = setting("Requests at a time.", 8, minimum=1)


@dataclass(frozen=True, kw_only=True)
class ExplanationSettings(Settings, section="explanations"):
    """Explanations of latents and their scores (Figure 5): by rules of tokens, on request by a language model too."""

    latents: int = setting("Latents per dictionary, those of lowest `rank_sum`.", 300, minimum=0)
    shared: int = setting("Shared latents per dictionary, drawn at random.", 100, minimum=0)
    only: dict[str, tuple[int, ...]] = setting(
        "Latents by dictionary (`l1-seed0: [7, 12]`) in place of both; dictionaries that are not named are left out.",
        {},
        minimum=0,
    )
    controls: int = setting(
        "Of the latents of lowest `rank_sum`, those drawn for the controls: another latent's explanation, a generic "
        "one, two random directions that fire as often.",
        30,
        minimum=0,
    )
    model: LanguageModel | None = setting("The language model; null explains by rules alone.", None)
    max_tokens_total: int | None = setting(
        "Tokens, read and written, that the language model may cost per dictionary and stage; what it does not reach "
        "is said. Null is no limit; `tunediff calls` says what is needed.",
        None,
        minimum=1,
    )

    context: int = 32  # of `examples`
    seed: int = 0  # of all that is drawn


@dataclass(frozen=True, kw_only=True)
class FigureSettings(Settings, section="figures"):
    """Appearance only."""

    dpi: int = setting("Resolution of the PNGs.", 200, minimum=50, maximum=1200)
    font_size: float = setting("Points.", 8, minimum=4, maximum=24)


@dataclass(frozen=True, kw_only=True)
class Config(Settings, section="config"):
    """Every key of a tunediff config. Unknown keys are errors; defaults are filled in from here."""

    results: str = setting("Folder that receives every artifact.", "results", minLength=1)
    seed: int = setting(
        "Seed of token sampling, row permutation, data order, controls and bootstraps (dictionaries have "
        "`training.seeds`).",
        42,
        minimum=0,
    )
    models: ModelSettings | None = setting(optional=True)
    tokens: TokenSettings | None = setting(optional=True)
    conversations: ConversationSettings = setting()
    activations: HarvestSettings = setting()
    training: TrainingSettings = setting()
    crosscoders: dict[str, CrosscoderSettings] = setting(
        "Named crosscoders; each trains once per seed as NAME-seedN, a published one is read as NAME",
        rule="one of each kind that is trained, `l1` and `batchtopk`, at the same L0",
        minProperties=1,
        propertyNames=NAME,
    )
    latents: LatentSettings = setting()
    evaluation: EvaluationSettings = setting()
    examples: ExampleSettings = setting()
    causal: CausalSettings = setting()
    steering: SteeringSettings = setting()
    explanations: ExplanationSettings = setting()
    figures: FigureSettings = setting()
    nulls: dict[str, NullPair] = setting(
        "Named pairs of models of which the second learned nothing that the first lacks. On the run's tokens its "
        "crosscoders are trained on them too, and what is called chat-specific there is counted: `snakemake nulls`.",
        {},
        propertyNames=NAME,
    )
    planted: PlantedSettings | None = setting(optional=True)


def split_tokens(config: Mapping[str, Any], split: str) -> int:
    """Return the tokens of a split of a checked config; of one planted pair."""
    if "planted" in config:
        return config["planted"][f"{split}_tokens"]
    return sum(config["tokens"]["budgets"][split].values())
