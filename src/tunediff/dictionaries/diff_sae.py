"""Diff-SAE: BatchTopK on the difference of the activations, one decoder row per latent (method.md section 10)."""

from tunediff.config.dictionaries import DiffSAESettings
from tunediff.dictionaries.batchtopk import BatchTopK


class DiffSAE(BatchTopK):
    """L = mean_n ‖Δ − Σ_j f_j d_j − b‖² + α·aux, Δ = h^chat − h^base; v_j = f_j ‖d_j‖.

    Everything else is BatchTopK's. What a latent is to each model comes from Latent Scaling of d_j afterwards.
    """

    settings_type = DiffSAESettings
