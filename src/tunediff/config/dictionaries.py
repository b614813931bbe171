"""The kinds of crosscoders in a config: what is set, what that says together, and what is derived where it is left out.

A kind is one class here, found by its `kind`, and (where it is trained) one file in `tunediff.dictionaries`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from tunediff.config.fields import Variant, setting

L0_TOLERANCE = 0.1  # relative; a dictionary further from the L0 it was asked for is not published
MANY_TOKENS = 20_000_000  # train tokens; above, dictionaries are large

Reconstruction = Literal["squared", "norm"]


class Run(NamedTuple):
    """What a trained crosscoder's values are derived from."""

    train: int  # train tokens
    steps: int
    batch_size: int
    width: Callable[[], int]  # of the models; raises where it is unknown


def latents_per_token(dict_size: int, train: int) -> int:
    """Return k: the paper's 100 in large dictionaries, else 50, and at most a 32nd of all latents."""
    return min(100 if train > MANY_TOKENS else 50, max(1, dict_size // 32))


@dataclass(frozen=True, kw_only=True)
class CrosscoderSettings(Variant):
    """One crosscoder."""

    tag: ClassVar[str] = "kind"
    label: ClassVar[str]  # how a crosscoder that is named as its kind is printed; without one by its name
    version: ClassVar[int] = 1  # raised where the same settings give another crosscoder
    reconstructs: ClassVar[str] = "models"  # what is read and written: both models, or their "difference" chat − base
    sizes_sets: ClassVar[bool] = False  # whether its chat-only latents give `causal.reference` its size

    @property
    def weights(self) -> Path | None:
        """The weights file on this machine (or the directory it is in) that the crosscoder is read from, if any."""
        return None

    def files(self) -> list[Path]:
        """Return the files on this machine that the crosscoder is read from."""
        return []


@dataclass(frozen=True, kw_only=True)
class DictionarySettings(CrosscoderSettings):
    """Settings that every trained crosscoder has; a kind adds its own."""

    products: ClassVar[float]  # of a training step, in encoder products of its batch: measured on one core

    dict_size: int = setting(
        "Number of latents F",
        rule="8 × the models' width up to 20 M train tokens, else 32 × (a planted pair has no default)",
        minimum=2,
    )

    @classmethod
    def derived(cls, own: Mapping[str, Any], run: Run) -> dict[str, Callable[[], Any]]:
        """Return how each value of `own` that is left out is made, in this order."""
        return {
            "dict_size": lambda: (8 if run.train <= MANY_TOKENS else 32) * run.width(),
            "dead_after_tokens": lambda: min(10_000_000, max(1, run.steps * run.batch_size // 5)),
        }

    @classmethod
    def asked_l0(cls, own: Mapping[str, Any]) -> int | None:
        """Return the L0 that others are matched to, if this kind fixes one."""
        return None

    @classmethod
    def matched(cls, own: Mapping[str, Any], run: Run, l0: int | None) -> dict[str, Callable[[], Any]]:
        """Return the same for values that follow the L0 of the first crosscoder that fixes one."""
        return {}


@dataclass(frozen=True, kw_only=True)
class L1Settings(DictionarySettings):
    """L1 crosscoder."""

    kind: ClassVar[str] = "l1"
    label: ClassVar[str] = "L1"
    sizes_sets: ClassVar[bool] = True
    products: ClassVar[float] = 4.0  # 5.5 while its code is dense, fewer later

    mu: float | Literal["auto"] = setting(
        "Sparsity penalty μ, or `auto`: found during training for target_l0", rule="auto", exclusiveMinimum=0
    )
    target_l0: float | None = setting(
        "L0 wanted with mu auto",
        None,
        rule="the k of the first BatchTopK crosscoder, or what its k would be",
        exclusiveMinimum=0,
    )
    reconstruction: Reconstruction = setting(
        "`squared`: ½‖ε‖², the paper's; `norm`: ‖ε‖ averaged over the models, the released code's. μ compares only "
        "within one.",
        "squared",
    )
    norm_init: float = setting("Initial norm of decoder rows.", 0.05, exclusiveMinimum=0)
    dead_after_tokens: int = setting(
        "Tokens without firing after which a latent counts as dead in the history",
        10_000_000,
        rule="a fifth of the run, at most 10 M",
        minimum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        together = (self.mu == "auto") == (self.target_l0 is not None)
        self.require("target_l0", together, "given with `mu: auto` and left out with a number for mu")
        below = self.target_l0 is None or self.target_l0 < self.dict_size
        self.require("target_l0", below, f"below dict_size ({self.dict_size})")

    @classmethod
    def matched(cls, own: Mapping[str, Any], run: Run, l0: int | None) -> dict[str, Callable[[], Any]]:
        """Return how μ is left out: it is searched for the L0 of the crosscoders beside it."""
        asked = l0 or latents_per_token(own["dict_size"], run.train)
        return {"mu": lambda: "auto", "target_l0": lambda: asked if own["mu"] == "auto" else None}


@dataclass(frozen=True, kw_only=True)
class BatchTopKSettings(DictionarySettings):
    """BatchTopK crosscoder."""

    kind: ClassVar[str] = "batchtopk"
    label: ClassVar[str] = "BatchTopK"
    products: ClassVar[float] = 2.0

    k: int = setting(
        "Mean number of active latents per token",
        rule="50, from 20 M train tokens on 100, at most a 32nd of dict_size",
        minimum=1,
    )
    k_max: int | None = setting("k at the start of a linear annealing; null: none.", None, minimum=1)
    k_anneal_steps: int = setting("Steps of that annealing.", 0, minimum=0)
    aux_k: int = setting(
        "Dead latents that decode the residual in the auxiliary loss",
        512,
        rule="an eighth of dict_size, at most 512",
        minimum=0,
    )
    aux_weight: float = setting("Weight α of the auxiliary loss.", 1 / 32, minimum=0)
    dead_after_tokens: int = setting(
        "Tokens without firing after which a latent is dead in training",
        10_000_000,
        rule="a fifth of the run, at most 10 M",
        minimum=1,
    )
    threshold_start: int = setting(
        "Step at which the threshold's moving average starts",
        1000,
        rule="a third of the steps, at most 1,000",
        minimum=0,
    )
    norm_init: float = setting("Initial norm of decoder rows.", 1.0, exclusiveMinimum=0)
    clip_norm: float | None = setting("Gradient norm is clipped to this; null: not at all.", 1.0, exclusiveMinimum=0)
    reconstruction: Reconstruction = setting("As for l1.", "squared")

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.dict_size
        self.require("k", self.k <= size, f"at most dict_size ({size})")
        annealed = self.k_max is None or self.k <= self.k_max <= size
        self.require("k_max", annealed, f"null, or from k ({self.k}) to dict_size ({size})")
        together = (self.k_max is None) == (self.k_anneal_steps == 0)
        self.require("k_max", together, "given together with `k_anneal_steps`, or both left out")

    @classmethod
    def derived(cls, own: Mapping[str, Any], run: Run) -> dict[str, Callable[[], Any]]:
        """Return how missing values are made, the size of the dictionary first."""
        return super().derived(own, run) | {
            "k": lambda: latents_per_token(own["dict_size"], run.train),
            "aux_k": lambda: min(512, own["dict_size"] // 8),
            "threshold_start": lambda: min(1_000, run.steps // 3),
        }

    @classmethod
    def asked_l0(cls, own: Mapping[str, Any]) -> int | None:
        """Return k."""
        return int(own["k"])


@dataclass(frozen=True, kw_only=True)
class DiffSAESettings(BatchTopKSettings):
    """BatchTopK dictionary of the difference chat − base alone."""

    kind: ClassVar[str] = "diff_sae"
    label: ClassVar[str] = "diff-SAE"
    reconstructs: ClassVar[str] = "difference"
    products: ClassVar[float] = 1.0


@dataclass(frozen=True, kw_only=True)
class PublishedSettings(CrosscoderSettings):
    """A crosscoder that exists already: read, not trained."""

    kind: ClassVar[str] = "published"

    path: str = setting("Hub id, local directory, or local weights file.", minLength=1)
    revision: str | None = setting("Commit, tag or branch of a hub id; null is its default branch.", None)
    file: str | None = setting(
        "Weights file within path; null: model.safetensors, cc_weights.pt or the only .pt file.", None
    )
    layout: Literal["auto", "dictionary_learning", "kissane"] = setting(
        "`dictionary_learning`: the paper's library; `kissane`: cfg.json and cc_weights.pt; `auto`: by the names of "
        "the tensors.",
        "auto",
    )
    input_scale: tuple[float, float] | None = setting(
        "Factors [base, chat] the inputs were multiplied by in training, where the file does not hold them (kissane: "
        "mean norm √d); null with `layout: kissane` estimates them on the train activations.",
        None,
        exclusiveMinimum=0,
    )
    code_normalization: Literal["CROSSCODER", "SAE", "MIXED", "NONE"] | None = setting(
        "Decoder norm in the threshold's score, for BatchTopK files from before May 2025 that do not name it; null is "
        "the file's, or CROSSCODER.",
        None,
    )

    @property
    def estimates_scale(self) -> bool:
        """Whether the factors are estimated on the train activations."""
        return self.layout == "kissane" and self.input_scale is None

    @property
    def weights(self) -> Path | None:
        """The weights file (or the directory it is in) where it is on this machine, None of an id of the hub."""
        path = Path(self.path).expanduser()
        if self.path.count("/") == 1 and self.path[0] not in "./~" and not path.exists():
            return None
        return path if path.is_file() else path / (self.file or "")

    def files(self) -> list[Path]:
        """Return the weights file and what stands beside it, where they are on this machine."""
        weights = self.weights
        if weights is None:
            return []
        if weights.is_dir():
            return sorted(p for p in weights.iterdir() if p.suffix in (".json", ".safetensors", ".pt"))
        return sorted(p for p in weights.parent.iterdir() if p.name in (weights.name, "config.json", "cfg.json"))


DEFAULT_CROSSCODERS = {each.kind: {each.tag: each.kind} for each in (L1Settings, BatchTopKSettings)}


def dictionary_settings(own: Mapping[str, Any]) -> DictionarySettings:
    """Return the object of a section of a crosscoder that is trained; a value that is no good is an error."""
    settings: DictionarySettings = CrosscoderSettings.made(own)
    return settings


def trained(crosscoders: Mapping[str, dict[str, Any]]) -> dict[str, tuple[type[DictionarySettings], dict[str, Any]]]:
    """Return class and section of each crosscoder that is trained, by its name in the config."""
    found = ((name, CrosscoderSettings.of(own), own) for name, own in crosscoders.items())
    return {name: (kind, own) for name, kind, own in found if issubclass(kind, DictionarySettings)}
