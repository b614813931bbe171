"""Truth tests: pairs of known latents, and pairs in which the second model learned nothing new."""
