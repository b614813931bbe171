"""What a drawing reads: the part of a run's results that it declares, read when first asked for."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from tunediff.errors import TunediffError
from tunediff.latents.metrics import Evaluation
from tunediff.latents.table import LatentTable
from tunediff.pipeline.artifacts import check
from tunediff.results import READERS, Results

if TYPE_CHECKING:
    from tunediff.data.tokens import TokenStore
    from tunediff.latents.examples import Examples
    from tunediff.validation.truth import Scores

SPLITS = ("train", "validation")


class OutlierTokens(NamedTuple):
    """Massive activations of a split, left out of training and metrics."""

    factor: float  # a norm above this many medians is one
    norm: dict[str, float]  # largest norm that is none, per model (of the part where it is largest)
    tokens: dict[str, int]  # outliers per source
    of: dict[str, int]  # counted tokens per source, outliers among them

    @property
    def share(self) -> float:
        """Share of all counted tokens."""
        return sum(self.tokens.values()) / max(1, sum(self.of.values()))

    @classmethod
    def of_parts(cls, parts: Sequence[Mapping[str, Any]]) -> "OutlierTokens | None":
        """Return what the facts of a split's activation stores say; None where no mask was set."""
        found = [facts["outliers"] for facts in parts if facts["outliers"] is not None]
        if not found:
            return None
        norm = pd.DataFrame([each["norm"] for each in found]).max()
        tokens, of = (pd.DataFrame([each[name] for each in found]).sum() for name in ("tokens", "of"))
        return cls(found[0]["factor"], dict(norm), dict(tokens), dict(of))


class Inputs:
    """What a drawing reads; attributes are those of `tunediff.report.registry.READS`, mappings are by dictionary.

    `files` are those of each that is declared, asking for another is an error; `config` is the run's, `nulls_key` that
    of the counts of the nulls (empty where they have not run), `nulls_examples` the paths of their examples.
    """

    latents: dict[str, LatentTable]
    evaluation: dict[str, Evaluation]
    examples: dict[str, "Examples"]
    losses: pd.DataFrame
    twins: dict[str, pd.DataFrame]
    histories: dict[str, pd.DataFrame]
    crosscoders: dict[str, dict[str, Any]]
    kl: pd.DataFrame
    sets: dict[str, Any]
    steering: pd.DataFrame
    steering_texts: pd.DataFrame
    concepts: pd.DataFrame
    seeds: pd.DataFrame

    def __init__(
        self,
        files: Mapping[str, Sequence[Path]],
        config: Mapping[str, Any],
        nulls_key: str | None = None,
        nulls_examples: Sequence[str] = (),
    ) -> None:
        self.files, self.config, self.nulls_key, self.nulls_examples = files, config, nulls_key, nulls_examples
        self.folder, self.seed = Path(config["results"]), config["seed"]

    @classmethod
    def of(cls, snakemake: Any) -> "Inputs":
        """Return what the rule of a job lists as its input; its parameter `nulls` is the key of the nulls' counts."""
        listed = {name: [one] if isinstance(one, str) else one for name, one in snakemake.input.items()}
        files = {name: [Path(one) for one in several] for name, several in listed.items()}
        return cls(files, snakemake.config, snakemake.params.get("nulls"), snakemake.params.get("nulls_examples", ()))

    def __getattr__(self, role: str) -> Any:
        """Read a role of `READERS` and keep it."""
        if role not in READERS:
            raise AttributeError(role)
        names, run = self._names(role), Results(self.folder)
        several = "{}" in READERS[role][0]
        vars(self)[role] = {name: run.read(role, name) for name in names} if several else run.read(role)
        return vars(self)[role]

    @property
    def with_norms(self) -> dict[str, LatentTable]:
        """Latent tables of the dictionaries that have Δnorm and classes by it: not those of the difference alone."""
        return {name: table for name, table in self.latents.items() if table.has_norm_taxonomy}

    @property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """The models of every pair, the run's own (`""`) first, then those of the nulls."""
        return {"": self.config["models"], **self.config["nulls"]}

    def has(self, role: str) -> bool:
        """Whether the run has what this role stands for."""
        return role in vars(self) or bool(self.files.get(role))

    @cached_property
    def tokens(self) -> "TokenStore":
        """The validation tokens."""
        self._names("tokens")
        return Results(self.folder).tokens("validation")

    @cached_property
    def null_firsts(self) -> dict[tuple[str, str], tuple[LatentTable, "Examples"]]:
        """Latent table and examples of the nulls that have examples, by pair and dictionary."""
        places = [path.split("/") for path in self.nulls_examples]  # nulls/PAIR/examples/NAME
        runs = {(pair, name): Results(self.folder / "nulls" / pair) for _, pair, _, name in places}
        return {key: (run.latents(key[1]), run.examples(key[1])) for key, run in runs.items()}

    @cached_property
    def outliers(self) -> dict[str, OutlierTokens | None]:
        """Massive activations of each split whose manifests are read."""
        roles = {split: f"activations_{split}" for split in SPLITS}
        read = {split: getattr(self, role) for split, role in roles.items() if role in self.files}
        return {split: OutlierTokens.of_parts(list(parts.values())) for split, parts in read.items()}

    @cached_property
    def nulls(self) -> pd.DataFrame | None:
        """Numbers of the nulls figure, nulls/summary.csv; None where they have not run."""
        if self.nulls_key is None:
            raise _undeclared("nulls")
        if not self.nulls_key:
            return None
        numbers = self.folder / "nulls/summary.csv"
        check(numbers, "drawing", self.nulls_key)
        return pd.read_csv(numbers).fillna({"pair": "", "null_kind": ""})

    @cached_property
    def pairs(self) -> dict[str, tuple[dict[str, LatentTable], dict[str, Evaluation]]]:
        """Latent tables and held-out metrics of every pair, in the order of `models`."""
        found, names = {}, dict.fromkeys(self._names("pairs"))
        for pair in self.models:
            run = Results(self.folder / "nulls" / pair if pair else self.folder)
            tables, metrics = ({name: run.read(role, name) for name in names} for role in ("latents", "evaluation"))
            found[pair] = tables, metrics
        return found

    @cached_property
    def scores(self) -> "Scores":
        """Scores of every pair of the planted benchmark."""
        from tunediff.validation.truth import read_scores  # imports torch, which no other drawing needs

        self._names("scores")
        return read_scores(self.files["scores"])

    def _names(self, role: str) -> list[str]:
        if role not in self.files:
            raise _undeclared(role)
        return [path.name.split(".")[0] for path in self.files[role]]


def _undeclared(role: str) -> TunediffError:
    return TunediffError(f"'{role}' is not declared; add it to `reads` of the DRAWING")
