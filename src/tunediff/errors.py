"""The one exception a user is meant to read."""


class TunediffError(Exception):
    """An expected failure, told in one line: what is wrong, where (key or file), and the remedy.

    Line breaks become spaces: messages quote what libraries say, and values of configs and files.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))
