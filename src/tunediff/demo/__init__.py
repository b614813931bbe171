"""The embedded demo: a generated corpus with known concepts and a small Gemma-2 pair trained on it."""
