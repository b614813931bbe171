"""The settings of the planted benchmark: pairs whose latents are known."""

from dataclasses import dataclass
from typing import ClassVar

from tunediff.config.fields import DEVICE, MOST_TOKENS, NAME, Settings, setting


@dataclass(frozen=True, kw_only=True)
class PlantedArm(Settings):
    """One kind of planted pair."""

    section: ClassVar[str] = "planted"

    dictionary: float = setting("Factor on every crosscoder's `dict_size`.", 1.0, exclusiveMinimum=0)
    d_model: int = setting("Width.", 96, minimum=2)
    shared: int = setting("Concepts with one direction and one strength in both models.", 46, minimum=0)
    chat_only: int = setting("Concepts that base lacks.", 16, minimum=0)
    base_only: int = setting("Concepts that chat lacks.", 16, minimum=0)
    weaker: int = setting("Concepts with one direction, weaker in base.", 20, minimum=0)
    weaker_factors: tuple[float, ...] = setting(
        "Strength of those in base over chat, in turn.",
        (0.1, 0.2, 0.3, 0.4, 0.5),
        minItems=1,
        exclusiveMinimum=0,
        exclusiveMaximum=1,
    )
    amplified: int = setting("Concepts with one direction, stronger in chat.", 8, minimum=0)
    amplified_factor: float = setting("Strength of those in chat over base.", 2.0, exclusiveMinimum=1)
    rotated: int = setting("Concepts whose direction differs between the models.", 8, minimum=0)
    rotated_cosine: float = setting("Cosine of those directions.", 0.8, minimum=0, maximum=1)
    decoupled: int = setting(
        "Concepts with one direction in chat that base writes with other latents, which also fire alone.", 12, minimum=0
    )
    decoupled_parts: tuple[int, ...] = setting(
        "Number of those latents, in turn: 1 is a co-firing latent of the same direction and a strength of its own, "
        "more a combination that adds up to what chat has.",
        (1, 2),
        minItems=1,
        minimum=1,
    )
    decoupled_alone: float = setting(
        "How often each of those latents fires without the concept, over how often the concept does.", 2.0, minimum=0
    )
    frequency: tuple[float, ...] = setting(
        "Share of tokens a concept fires on, in turn within each kind but shared.",
        (0.03, 0.003),
        minItems=1,
        exclusiveMinimum=0,
        exclusiveMaximum=0.5,
    )
    shared_frequency: tuple[float, ...] = setting(
        "The same for shared concepts.", (0.05, 0.02), minItems=1, exclusiveMinimum=0, exclusiveMaximum=0.5
    )
    correlation: float = setting(
        "Correlation of the (normal, thresholded) gates within a co-firing group; with burstiness at most 1.",
        0.0,
        minimum=0,
        maximum=1,
    )
    group_size: int = setting("Concepts per co-firing group, of any kinds.", 4, minimum=2)
    hierarchy: float = setting(
        "Share of the concepts that fire only where a more frequent shared one does.", 0.0, minimum=0, maximum=1
    )
    burstiness: float = setting(
        "Share of a gate's and a log strength's variance that is the document's.", 0.3, minimum=0, maximum=1
    )
    tail: float = setting("Standard deviation of the log strength; 1 is heavy-tailed.", 0.3, minimum=0)
    noise: float = setting(
        "Standard deviation of noise per coordinate, independent in each model and token (strengths have mean 1).",
        0.05,
        minimum=0,
    )
    document_noise: float = setting("The same, constant within a document.", 0.03, minimum=0)
    document_tokens: int = setting("Tokens of every document.", 64, minimum=12)

    def __post_init__(self) -> None:
        super().__post_init__()
        highest = 0.5 / max(self.frequency)
        self.require("decoupled_alone", self.decoupled_alone < highest, f"below 0.5 / max(frequency) ({highest:.3g})")
        most = f"at most 1 − burstiness ({1 - self.burstiness:.3g}; lower one)"
        self.require("correlation", self.correlation + self.burstiness <= 1, most)


@dataclass(frozen=True, kw_only=True)
class PlantedSettings(Settings):
    """The planted benchmark instead of a model pair: stores made from known latents; `models`, `tokens` and
    `conversations` are left out."""

    section: ClassVar[str] = "planted"

    seeds: tuple[int, ...] = setting(
        "Each arm is drawn, trained and scored once per seed: concepts, tokens and dictionaries are new each time; "
        "intervals are over seeds.",
        (0, 1, 2, 3, 4),
        minItems=1,
        uniqueItems=True,
        minimum=0,
    )
    train_tokens: int = setting(
        "Train tokens; a multiple of activations.shard_tokens and of document_tokens.",
        196_608,
        minimum=1,
        maximum=MOST_TOKENS,
    )
    validation_tokens: int = setting("The same for validation tokens.", 65_536, minimum=1, maximum=MOST_TOKENS)
    device: str = setting("As `models.device`; these pairs are small.", "cpu", pattern=DEVICE)
    arms: dict[str, PlantedArm] = setting(
        "Named arms: what differs from the defaults (see below).", minProperties=1, propertyNames=NAME
    )
