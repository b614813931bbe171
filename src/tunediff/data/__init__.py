"""Texts to token stores, token stores to activation stores."""
