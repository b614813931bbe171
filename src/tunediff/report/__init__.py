"""Figures, tables and the summary: drawn from tables alone."""
