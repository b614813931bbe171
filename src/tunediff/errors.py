"""The one exception a user is meant to read."""


class TunediffError(Exception):
    """An expected failure, told in one line: what is wrong, where (key or file), and the remedy."""
