"""The one rule by which a latent is called chat-specific, and the words in which every figure and table states it.

ν^r < 0.5 and ν^ε < 0.2 (paper, section 4), both within [−0.1, 2]: outside these bounds ν is a ratio of noise, or the
base model uses the direction with the opposite sign ("reversed"). The bounds decide counts as much as the thresholds.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunediff.config.settings import LatentSettings


@dataclass(frozen=True)
class Criterion:
    """Thresholds and bounds; they travel in the metadata of every latent table."""

    nu_reconstruction_below: float = LatentSettings.nu_reconstruction_below  # ν^r under this (no Latent Decoupling)
    nu_error_below: float = LatentSettings.nu_error_below  # … and ν^ε under this (no Complete Shrinkage)
    lowest: float = -0.1  # of both ν; a latent with one of them under it is reversed
    highest: float = 2.0  # of both ν; above, β^chat is too small to divide by
    # beside the rule, the ends of the classes by Δnorm: base-only to, shared from and to, chat-only from
    class_ends: ClassVar[tuple[float, ...]] = (0.1, 0.4, 0.6, 0.9)

    def bounded(self, nu_reconstruction: ArrayLike, nu_error: ArrayLike) -> NDArray[np.bool_]:
        """Return which latents have both ν within the bounds: these are ranked. NaN is not."""
        both = np.stack([nu_reconstruction, nu_error])
        return np.asarray(((both >= self.lowest) & (both <= self.highest)).all(axis=0))

    def chat_specific(self, nu_reconstruction: ArrayLike, nu_error: ArrayLike) -> NDArray[np.bool_]:
        """Return which latents are called chat-specific."""
        below = np.asarray(nu_reconstruction) < self.nu_reconstruction_below, np.asarray(nu_error) < self.nu_error_below
        return np.asarray(self.bounded(nu_reconstruction, nu_error) & below[0] & below[1])

    def reversed(self, nu_reconstruction: ArrayLike, nu_error: ArrayLike) -> NDArray[np.bool_]:
        """Return which latents have finite ν of which one is under the lower bound: base has the opposite sign."""
        both = np.stack([nu_reconstruction, nu_error])
        return np.asarray(np.isfinite(both).all(axis=0) & (both < self.lowest).any(axis=0))

    @property
    def text(self) -> str:
        """The rule in plain characters."""
        return f"ν^r < {self.nu_reconstruction_below:g} and ν^ε < {self.nu_error_below:g}, both within {self.range}"

    @property
    def math(self) -> str:
        """The rule in matplotlib's mathtext."""
        return self.text.replace("ν^r", r"$\nu^{r}$").replace("ν^ε", r"$\nu^{\epsilon}$")

    @property
    def range(self) -> str:
        """The bounds in plain characters."""
        return f"[{self.lowest:g}, {self.highest:g}]".replace("-", "−")

    def as_dict(self) -> dict[str, float]:
        """Return the numbers, for metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Criterion":
        """Make a criterion from metadata; ValueError unless every number is there and finite."""
        numbers = {field.name: float(values[field.name]) for field in fields(cls) if field.name in values}
        if set(numbers) != set(values) or len(numbers) < len(fields(cls)) or not np.isfinite([*numbers.values()]).all():
            raise ValueError(f"not a criterion: {dict(values)}")
        return cls(**numbers)
