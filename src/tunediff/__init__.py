"""tunediff shows what fine-tuning changed inside a language model.

`open_results` opens what a run of the pipeline made; the names below are all that an outsider needs. They are imported
when first used, so ``import tunediff`` costs nothing and loads no torch.

Rooms follow the data and import only leftwards: ``models → data → dictionaries → latents → interventions → validation →
report``. ``config`` and ``pipeline`` say what is made and how it reaches the disk, without torch; ``demo`` is reached
through its source and its pair only. docs/architecture.md says what each holds, docs/method.md what is computed.

Dimension names in jaxtyping annotations: ``token`` (positions), ``model`` (2: base, chat), ``d_model`` (activation
width d), ``latent`` (dictionary size F), ``nonzero`` (stored entries of a sparse code), ``vocab``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tunediff.errors import TunediffError

if TYPE_CHECKING:
    from tunediff.data.activations import ActivationStore
    from tunediff.data.tokens import TokenStore
    from tunediff.dictionaries.crosscoder import Crosscoder
    from tunediff.latents.table import LatentTable
    from tunediff.results import Results, open_results

__version__ = "0.1.0"

__all__ = [
    "ActivationStore",
    "Crosscoder",
    "LatentTable",
    "Results",
    "TokenStore",
    "TunediffError",
    "__version__",
    "open_results",
]

_MODULES = {
    "ActivationStore": "tunediff.data.activations",
    "Crosscoder": "tunediff.dictionaries.crosscoder",
    "LatentTable": "tunediff.latents.table",
    "Results": "tunediff.results",
    "TokenStore": "tunediff.data.tokens",
    "open_results": "tunediff.results",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'tunediff' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
