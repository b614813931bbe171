"""The rule that calls a latent chat-specific, against plain comparisons, and the words it is printed in."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunediff.latents.criterion import Criterion

NU = st.one_of(st.floats(-3, 3), st.sampled_from([-0.1, 0.2, 0.5, 2.0, math.nan, math.inf, -math.inf]))


@given(st.lists(st.tuples(NU, NU), min_size=1, max_size=20))
def test_the_outcomes_are_plain_comparisons_and_exclude_each_other(both):
    """Ends of the bounds are within, thresholds themselves are not below; NaN and inf are nothing."""
    r, e = np.array(both).T
    rule = Criterion()
    bounded, specific, turned = rule.bounded(r, e), rule.chat_specific(r, e), rule.reversed(r, e)
    for i, (x, y) in enumerate(both):
        assert bounded[i] == (-0.1 <= x <= 2 and -0.1 <= y <= 2)
        assert specific[i] == (-0.1 <= x < 0.5 and -0.1 <= y < 0.2)
        assert turned[i] == (math.isfinite(x) and math.isfinite(y) and (x < -0.1 or y < -0.1))
    assert not (turned & bounded).any()
    assert np.array_equal(rule.chat_specific(pd.Series(r), pd.Series(e)), specific)


def test_other_numbers_decide_and_are_printed():
    rule = Criterion(0.37, 0.13, -0.06, 1.7)
    r, e = np.array([0.36, 0.38, 0.1, -0.07, 1.6, 1.6]), np.array([0.12, 0.12, 0.14, 0.1, 1.6, 1.8])
    assert rule.chat_specific(r, e).tolist() == [True, False, False, False, False, False]
    assert rule.reversed(r, e).tolist() == [False, False, False, True, False, False]
    assert rule.bounded(r, e).tolist() == [True, True, True, False, True, False]
    assert rule.text == "ν^r < 0.37 and ν^ε < 0.13, both within [−0.06, 1.7]"
    assert rule.math == r"$\nu^{r}$ < 0.37 and $\nu^{\epsilon}$ < 0.13, both within [−0.06, 1.7]"
    assert Criterion().text == "ν^r < 0.5 and ν^ε < 0.2, both within [−0.1, 2]"
    assert Criterion.from_dict(rule.as_dict()) == rule


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("lowest"),
        lambda d: d.update(lower=0.0),
        lambda d: d.update(highest=math.inf),
        lambda d: d.update(nu_error_below=math.nan),
    ],
)
def test_metadata_that_is_not_a_whole_criterion_is_refused(change):
    numbers = Criterion().as_dict()
    change(numbers)
    with pytest.raises(ValueError, match="not a criterion"):
        Criterion.from_dict(numbers)
