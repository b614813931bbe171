"""tunediff shows what fine-tuning changed inside a language model.

Modules follow the data and import only leftwards:
``documents → demo → corpora → tokens → models → activations → crosscoder → training → scaling → latents → causal →
figures → report``; ``errors``, ``artifacts``, ``config`` and ``statistics`` serve them all.

Dimension names in jaxtyping annotations: ``token`` (positions), ``model`` (2: base, chat), ``d_model`` (activation
width d), ``latent`` (dictionary size F), ``nonzero`` (stored entries of a sparse code), ``vocab``.
"""

__version__ = "0.1.0"
