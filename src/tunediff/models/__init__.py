"""A pair of models: resolved, loaded, its hooks proven."""
