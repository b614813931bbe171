"""tunediff shows what fine-tuning changed inside a language model.

Modules follow the data and import only leftwards:
``documents → demo → corpora → tokens → models → conversations, activations → sparse → crosscoder → dictionaries →
training → scaling → latents → evaluation, concepts, causal, twins, seeds → tables, nulls, figures → report``.
``exchange`` reads and writes other libraries' crosscoders, ``planted`` and ``truth`` make and score known latents;
``errors``, ``artifacts``, ``statistics`` serve them all; ``config``, ``keys``, ``plan``, ``finished``, ``workflow`` the
pipeline.

Dimension names in jaxtyping annotations: ``token`` (positions), ``model`` (2: base, chat), ``d_model`` (activation
width d), ``latent`` (dictionary size F), ``nonzero`` (stored entries of a sparse code), ``vocab``.
"""

__version__ = "0.1.0"
