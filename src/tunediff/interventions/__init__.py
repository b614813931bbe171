"""Edits of the base model by sets of latents, and what they do to the KL divergence to the chat model."""
