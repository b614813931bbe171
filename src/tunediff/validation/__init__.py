"""Truth tests: pairs of known latents, and the score of every call."""
