"""What a token position is: the bits of its mask, and the positions that predict answers."""

from enum import IntFlag

import numpy as np
from jaxtyping import Bool, UInt8


class Mask(IntFlag):
    """What a token position is; several bits may be set."""

    BOS = 1  # the beginning-of-sequence token
    TEMPLATE = 2  # written by the chat template
    ASSISTANT = 4  # content and end-of-turn token of an assistant turn
    USER = 8  # content of a user turn
    IGNORED = 16  # among the first `ignore_first_tokens` of its document
    OUTLIER = 32  # a massive activation in one of the models: set in activation stores, by their harvest


LEFT_OUT = Mask.BOS | Mask.IGNORED | Mask.OUTLIER  # of training and of every metric
KEEP_ALL = Mask(0)


def template_positions(mask: UInt8[np.ndarray, "position"]) -> Bool[np.ndarray, "position"]:
    """Return which positions the chat template wrote."""
    return mask & np.uint8(Mask.TEMPLATE) != 0


def response_positions(mask: UInt8[np.ndarray, "position"]) -> Bool[np.ndarray, "position"]:
    """Return which positions of ONE document predict an assistant token (the assistant mask, one to the left)."""
    predicting = np.zeros(len(mask), dtype=bool)
    predicting[:-1] = mask[1:] & np.uint8(Mask.ASSISTANT) != 0
    return predicting


def first_response_positions(mask: UInt8[np.ndarray, "position"], n: int = 10) -> Bool[np.ndarray, "position"]:
    """Return the first `n` predicting positions of each assistant turn of ONE document, without template tokens."""
    predicting = response_positions(mask)
    starts = np.flatnonzero(predicting & ~np.concatenate([[False], predicting[:-1]]))
    first = np.zeros(len(mask), dtype=bool)
    for start in starts:
        first[start : start + n] = True
    return first & predicting & ~template_positions(mask)
