"""What a drawing reads: the results it declares, opened at first use by the class that owns each format."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from tunediff.errors import TunediffError
from tunediff.latents.metrics import Evaluation
from tunediff.latents.table import LatentTable

if TYPE_CHECKING:
    from tunediff.validation.truth import Scores

T = TypeVar("T")
SPLITS = ("train", "validation")


class OutlierTokens(NamedTuple):
    """Massive activations of a split, left out of training and metrics."""

    factor: float  # a norm above this many medians is one
    norm: dict[str, float]  # largest norm that is none, per model (of the part where it is largest)
    median: dict[str, float]  # norm, per model (mean over the parts)
    tokens: dict[str, int]  # outliers per source
    of: dict[str, int]  # counted tokens per source, outliers among them

    @property
    def share(self) -> float:
        """Share of all counted tokens."""
        return sum(self.tokens.values()) / max(1, sum(self.of.values()))


def outlier_tokens(parts: Sequence[Path]) -> OutlierTokens | None:
    """Return what the manifests of a split's activation stores say of massive activations; None where no mask was set.

    `parts` are the manifests.
    """
    facts = [_json(path)["facts"]["outliers"] for path in parts]
    found = [fact for fact in facts if fact is not None]
    if not found:
        return None
    return OutlierTokens(
        found[0]["factor"],
        {model: max(fact["norm"][model] for fact in found) for model in found[0]["norm"]},
        {model: float(np.mean([fact["median"][model] for fact in found])) for model in found[0]["median"]},
        {source: sum(fact["tokens"][source] for fact in found) for source in found[0]["tokens"]},
        {source: sum(fact["of"][source] for fact in found) for source in found[0]["of"]},
    )


class Results:
    """The results of one run that a drawing reads; attributes are named as in `tunediff.report.registry.READS`.

    `paths` are the files of each, `config` is the run's, `nulls_key` that of the counts of the nulls (empty where they
    have not run). Mappings are by dictionary. What is not given is not declared, and asking for it is an error.
    """

    def __init__(
        self, paths: Mapping[str, Sequence[Path]], config: Mapping[str, Any], nulls_key: str | None = None
    ) -> None:
        self.paths, self.config, self.nulls_key = dict(paths), config, nulls_key

    @classmethod
    def of(cls, snakemake: Any) -> "Results":
        """Return what the rule of a job lists as its input; its parameter `nulls` is the key of the nulls' counts."""
        files = {name: [one] if isinstance(one, str) else one for name, one in snakemake.input.items()}
        paths = {name: [Path(one) for one in several] for name, several in files.items()}
        return cls(paths, snakemake.config, snakemake.params.get("nulls"))

    @property
    def seed(self) -> int:
        """The run's seed, of random choices in a drawing."""
        return self.config["seed"]

    @property
    def folder(self) -> Path:
        """Where the results are."""
        return Path(self.config["results"])

    @property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """The models of every pair, the run's own (`""`) first, then those of the nulls."""
        return {"": self.config["models"], **self.config["nulls"]}

    @cached_property
    def latents(self) -> dict[str, LatentTable]:
        """Latent tables."""
        return {_name(path): LatentTable.read(path) for path in self._files("latents")}

    @property
    def with_norms(self) -> dict[str, LatentTable]:
        """Latent tables of the dictionaries that have Δnorm and classes by it: not those of the difference alone."""
        return {name: table for name, table in self.latents.items() if table.has_norm_taxonomy}

    @cached_property
    def evaluation(self) -> dict[str, Evaluation]:
        """Held-out metrics."""
        return {_name(path): Evaluation.read(path) for path in self._files("evaluation")}

    @cached_property
    def twins(self) -> dict[str, pd.DataFrame]:
        """Pairs of a chat-only and a base-only latent."""
        return {_name(path): _table(path) for path in self._files("twins")}

    @cached_property
    def kl(self) -> pd.DataFrame:
        """Means and intervals of the KL experiment (causal/summary.parquet)."""
        return _table(*self._files("kl"))

    @cached_property
    def sets(self) -> dict[str, Any]:
        """Sets of latents of the KL experiment (causal/kl.sets.json)."""
        return _json(*self._files("sets"))

    @cached_property
    def histories(self) -> dict[str, pd.DataFrame]:
        """Training histories."""
        return {_name(path): _table(path) for path in self._files("histories")}

    @cached_property
    def concepts(self) -> pd.DataFrame:
        """Labelled concepts and the latents that detect them (concepts/concepts.parquet)."""
        return _table(*self._files("concepts"))

    @cached_property
    def seeds(self) -> pd.DataFrame:
        """Matches of latents between training seeds (seeds/matches.parquet)."""
        return _table(*self._files("seeds"))

    @cached_property
    def crosscoders(self) -> dict[str, dict[str, Any]]:
        """Facts of the crosscoders' manifests."""
        return {_name(path): _json(path)["facts"] for path in self._files("crosscoders")}

    @cached_property
    def outliers(self) -> dict[str, OutlierTokens | None]:
        """Massive activations of each split whose manifests are read."""
        roles = {split: f"activations_{split}" for split in SPLITS}
        return {split: outlier_tokens(self._files(role)) for split, role in roles.items() if role in self.paths}

    @cached_property
    def nulls(self) -> pd.DataFrame | None:
        """Counts of the nulls; None where they have not run."""
        from tunediff.report.nulls import read_nulls  # counts the nulls by table 1, which reads this module

        return read_nulls(self.folder, self._declared("nulls", self.nulls_key))

    @cached_property
    def pairs(self) -> dict[str, tuple[dict[str, LatentTable], dict[str, Evaluation]]]:
        """Latent tables and held-out metrics of every pair, in the order of `models`."""
        found = {}
        for pair in self.models:
            root = self.folder / "nulls" / pair if pair else self.folder
            files = {
                stage: [path for path in self._files("pairs") if path.parent == root / stage]
                for stage in ("latents", "evaluation")
            }
            own = Results(files, self.config)
            found[pair] = own.latents, own.evaluation
        return found

    @cached_property
    def scores(self) -> "Scores":
        """Scores of every pair of the planted benchmark."""
        from tunediff.validation.truth import read_scores  # imports torch, which no other drawing needs

        return read_scores(self._files("scores"))

    def _files(self, name: str) -> Sequence[Path]:
        return self._declared(name, self.paths.get(name))

    def _declared(self, name: str, given: T | None) -> T:
        if given is None:
            raise TunediffError(f"'{name}' is not declared; add it to `reads` of the DRAWING")
        return given


def _name(path: Path) -> str:
    return path.name.split(".")[0]


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except FileNotFoundError as error:
        raise TunediffError(f"{path}: missing; run snakemake again to make it") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TunediffError(f"{path}: missing; run snakemake again to make it") from error
