"""The latent table: one row per latent with its norms, class, firing and Latent Scaling (method.md section 3).

Written by `tunediff.latents.measure`, read by everything after it; nothing here imports torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tunediff.errors import TunediffError
from tunediff.latents.criterion import Criterion
from tunediff.pipeline.artifacts import check, manifest_path

CLASSES = ("chat-only", "shared", "base-only", "other", "dead")  # by Δnorm
DIFFERENCE = "difference"  # class of the live latents of a dictionary of the difference: they have no Δnorm
MODELS = ("base", "chat")
TARGETS = ("activation", "activation_no_bias", "reconstruction", "error")  # of Latent Scaling
BOUNDED_TARGETS = ("error", "reconstruction")  # the two ν that decide chat-specificity: they get bootstrap intervals
CONTROLS = ("random", "shuffled")  # control directions, measured with the same f on validation tokens
# the classes by Δnorm, ends included
BASE_ONLY_TO, SHARED_FROM, SHARED_TO, CHAT_ONLY_FROM = Criterion.class_ends
TWIN_COSINE = 0.9  # a chat-only and a base-only latent with decoder directions more alike than this are twins
STABLE_COSINE = 0.8  # a latent matched this well in every other seed is stable


def classify(norm_difference: NDArray[np.floating], dead: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Return the class of each latent by Δnorm: chat-only [0.9, 1], shared [0.4, 0.6], base-only [0, 0.1], other, dead.

    Ends are inclusive; a dead latent is `dead` whatever its norms.
    """
    x = np.asarray(norm_difference)
    within = [dead, x >= CHAT_ONLY_FROM, (x >= SHARED_FROM) & (x <= SHARED_TO), x <= BASE_ONLY_TO]
    return np.select(within, ["dead", "chat-only", "shared", "base-only"], "other")


def rank_sum(nu_reconstruction: NDArray, nu_error: NDArray, criterion: Criterion) -> NDArray[np.float64]:
    """Return rank(ν^r) + rank(ν^ε) (ties averaged) among the latents whose ν are within the bounds, NaN elsewhere.

    Latents that have ν^act alone are ranked by it, given as both.
    """
    ranked = criterion.bounded(nu_reconstruction, nu_error)
    result = np.full(len(ranked), np.nan)
    from scipy.stats import rankdata  # takes half a second; only ranking needs it

    result[ranked] = rankdata(nu_reconstruction[ranked]) + rankdata(nu_error[ranked])
    return result


class LatentTable:
    """One row per latent of one crosscoder, and the criterion it was judged by; owns columns and file format."""

    def __init__(self, frame: pd.DataFrame, sources: Sequence[str], criterion: Criterion | None = None) -> None:
        self.frame = frame
        self.sources = tuple(sources)
        self.criterion = criterion or Criterion()

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def has_norm_taxonomy(self) -> bool:
        """Whether latents have Δnorm and classes by it, ν^r and ν^ε: not those of a dictionary of the difference."""
        return bool(self.frame["norm_difference"].notna().any())

    def first(self, n: int) -> pd.DataFrame:
        """Return the `n` most chat-specific live latents, whether or not any passes the criterion.

        By rising `rank_sum`, which only latents within the bounds have (so none that is reversed); where no live latent
        has one, by falling Δnorm. Ties by latent.
        """
        live = self.frame[~self.frame["dead"]]
        ranked = live[live["rank_sum"].notna()]
        if len(ranked):
            return ranked.sort_values("rank_sum", kind="stable").head(n)
        return live.sort_values("norm_difference", ascending=False, kind="stable").head(n)

    @staticmethod
    def schema(sources: Sequence[str]) -> dict[str, str]:
        """Return the columns in order, name → dtype, for the given corpora."""
        columns = {"latent": "int32"}
        columns |= dict.fromkeys(("norm_base", "norm_chat", "norm_difference", "cosine"), "float32")
        columns |= {"class_name": "string", "dead": "bool"}
        columns |= dict.fromkeys((*(f"frequency_{source}" for source in sources), "frequency"), "float32")
        columns |= dict.fromkeys((*(f"max_{source}" for source in sources), "max_activation"), "float32")
        columns |= dict.fromkeys(("template_share", "template_share_mass"), "float32")
        columns |= dict.fromkeys(("count_train", "count_validation"), "int64")
        for suffix in ("", "_validation"):
            columns |= {f"beta_{target}_{model}{suffix}": "float32" for target in TARGETS for model in MODELS}
            for target in TARGETS:
                columns |= {f"nu_{target}{suffix}": "float32", f"nu_{target}_se{suffix}": "float32"}
        for target in BOUNDED_TARGETS:
            columns |= {f"nu_{target}_low": "float32", f"nu_{target}_high": "float32"}
        columns |= {f"nu_{target}_mirrored": "float32" for target in TARGETS}
        columns |= {f"nu_{target}_{control}": "float32" for control in CONTROLS for target in BOUNDED_TARGETS}
        columns |= {"rank_sum": "float32", "chat_specific": "bool", "chat_specific_interval": "bool"}
        columns |= {"chat_specific_validation": "bool", "reversed": "bool"}
        return columns

    @classmethod
    def _check(cls, frame: pd.DataFrame, sources: Sequence[str], where: str) -> pd.DataFrame:
        remedy = "delete it and run snakemake again"
        schema = cls.schema(sources)
        for name, dtype in schema.items():
            if name not in frame:
                raise TunediffError(
                    f"{where}: not a latent table of {list(sources)}: column '{name}' missing; {remedy}"
                )
            found = "string" if pd.api.types.is_string_dtype(frame[name].dtype) else str(frame[name].dtype)
            if found != dtype:
                raise TunediffError(f"{where}: column '{name}' is {found} instead of {dtype}; {remedy}")
        unknown = [name for name in frame if name not in schema]
        if unknown:
            raise TunediffError(f"{where}: column '{unknown[0]}' is not of a latent table; {remedy}")
        if not np.array_equal(frame["latent"], np.arange(len(frame))):
            raise TunediffError(f"{where}: rows are not the latents 0 to {len(frame) - 1} in order; {remedy}")
        classes = set(frame["class_name"]) - {*CLASSES, DIFFERENCE}
        if classes:
            known = ", ".join((*CLASSES, DIFFERENCE))
            raise TunediffError(f"{where}: class_name '{min(classes)}' is not one of {known}; {remedy}")
        return frame[list(schema)]

    def write(self, path: Path) -> None:
        """Write the table as Parquet; equal tables give equal bytes."""
        frame = self._check(self.frame, self.sources, str(path))
        table = pa.Table.from_arrays(
            [pa.array(frame[name].to_numpy(), pa.string() if dtype == "string" else None)
             for name, dtype in self.schema(self.sources).items()],
            names=list(frame),
        )  # fmt: skip
        metadata = {"sources": "\n".join(self.sources), "criterion": json.dumps(self.criterion.as_dict())}
        pq.write_table(table.replace_schema_metadata(metadata), path)

    @classmethod
    def read(cls, path: Path, *, key: str | None = None) -> "LatentTable":
        """Read and check a table; one that has a manifest must be unchanged, with `key` made by these inputs.

        `TunediffError`: the file is missing, is not Parquet, was made by other inputs, or has other columns, types,
        rows or classes than a latent table.
        """
        if key is not None or manifest_path(path).is_file():
            check(path, "latents", key)
        try:
            table = pq.read_table(path)
        except FileNotFoundError as error:
            raise TunediffError(f"{path}: missing; run snakemake again to make it") from error
        except pa.ArrowInvalid as error:
            raise TunediffError(f"{path}: not a Parquet file; delete it and run snakemake again") from error
        metadata = table.schema.metadata or {}
        sources = metadata.get(b"sources", b"").decode().split("\n")
        frame = cls._check(table.to_pandas(), sources, str(path))
        try:
            criterion = Criterion.from_dict(json.loads(metadata[b"criterion"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TunediffError(f"{path}: states no criterion; delete it and run snakemake again") from error
        return cls(frame, sources, criterion)


def control_passes(table: LatentTable) -> dict[str, tuple[int, int]]:
    """Return, per control direction, how many latents pass the criterion with it, and how many have ν with it.

    The null of the count of chat-specific latents: the same activations on validation tokens, a direction not theirs.
    """
    passes = {}
    for control in CONTROLS:
        reconstruction, error = (table.frame[f"nu_{target}_{control}"] for target in ("reconstruction", "error"))
        passed = table.criterion.chat_specific(reconstruction, error)
        passes[control] = int(passed.sum()), int((reconstruction.notna() & error.notna()).sum())
    return passes
