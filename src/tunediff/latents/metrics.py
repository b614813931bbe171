"""The held-out metrics of one crosscoder, as everything after their stage reads them; nothing here imports torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import read_json


@dataclass(frozen=True)
class Evaluation:
    """What `evaluation/NAME.json` holds: one value per metric, model and subset of the validation tokens."""

    metrics: list[dict[str, Any]]  # metric, model ("base", "chat", "difference", "both"), subset, value
    n_tokens: Mapping[str, int]  # counted tokens per subset

    @classmethod
    def read(cls, path: Path) -> "Evaluation":
        """Read the metrics that the evaluation wrote.

        `TunediffError`: the file is missing or damaged, or holds no metrics.
        """
        values = read_json(path)
        try:
            return cls(values["metrics"], values["n_tokens"])
        except KeyError as error:
            raise TunediffError(f"{path}: holds no metrics ({error}); delete it and run snakemake again") from error

    def value(self, name: str, model: str | None = None, subset: str = "all") -> float:
        """Return one metric (of any model if none is given), NaN if it was not measured."""
        for row in self.metrics:
            if row["metric"] == name and row["subset"] == subset and model in (None, row["model"]):
                return math.nan if row["value"] is None else float(row["value"])
        return math.nan
