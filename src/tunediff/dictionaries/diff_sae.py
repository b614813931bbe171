"""Diff-SAE: BatchTopK on the difference of the activations, one decoder row per latent (method.md section 10)."""

from dataclasses import dataclass
from typing import ClassVar

from tunediff.dictionaries.batchtopk import BatchTopK, BatchTopKSettings


@dataclass(frozen=True)
class DiffSAESettings(BatchTopKSettings):
    """Config section of kind diff_sae."""

    kind: ClassVar[str] = "diff_sae"
    reconstructs: ClassVar[str] = "difference"


class DiffSAE(BatchTopK):
    """L = mean_n ‖Δ − Σ_j f_j d_j − b‖² + α·aux, Δ = h^chat − h^base; v_j = f_j ‖d_j‖.

    Everything else is BatchTopK's. What a latent is to each model comes from Latent Scaling of d_j afterwards.
    """

    kind = "diff_sae"
    settings_type = DiffSAESettings
