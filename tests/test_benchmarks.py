"""The benchmarks of a CPU at tiny sizes: the sides they compare compute the same, and the rows they print are whole."""

import sys

import measured
import passes
import pytest
import scaling
import torch
import training_step


def test_all_sides_of_a_training_step_have_the_same_losses() -> None:
    shape = training_step.Shape(d_model=16, dict_size=256, n_tokens=64, k=4)
    made, draw = training_step.sides(shape), training_step.synthetic(16, 64)
    for _ in range(8):
        x = draw()
        losses = {name: side.step(x) for name, side in made.items()}
        assert losses["paper"] == pytest.approx(losses["ours"], rel=1e-4)
        assert losses["dense"] == pytest.approx(losses["ours"], rel=1e-4)


def test_passes_are_those_of_the_stages_at_the_l0_that_was_asked_for() -> None:
    shape = passes.Shape(d_model=16, dict_size=256, n_tokens=256, k=8)
    threads = torch.get_num_threads()
    found = passes.run(shape, batches=3, n_tokens=1024, threads=threads, examples_rounds=1, memory=False)
    assert list(found.times) == ["encoding", "fit", "validation"]
    assert found.l0 == pytest.approx(8, rel=0.2)
    assert found.examples > 1
    rows = passes.rows(shape, found._replace(memory=dict.fromkeys(["encoding", *passes.PASSES], 1.0)))
    assert [row.count("|") for row in rows] == [5, 5, 5]


def test_a_slope_is_that_of_the_logarithms_and_a_ratio_that_within_a_repetition() -> None:
    assert scaling.slope([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    times = measured.compared({"first": [1.0, 10.0, 1.0], "second": [2.0, 20.0, 2.0]})
    assert (times["second"].seconds, times["second"].ratio) == (2.0, 2.0)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_is_that_of_the_call_alone() -> None:
    assert measured.peak_memory(bytearray, 200_000_000) == pytest.approx(0.2, abs=0.05)
