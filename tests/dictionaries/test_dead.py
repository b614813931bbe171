"""Lists of dead latents that arrive late, and rows of a weight."""

from typing import Any

import pytest
import torch

from tunediff.dictionaries import dead
from tunediff.dictionaries.dead import DeadLatents, with_rows

F, N, AFTER = 40, 8, 100


class OnGPU(torch.Tensor):
    """Counters that say they lie on a GPU."""

    is_cuda = True


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists every 5 steps; copies that are there at once."""

    class Event:
        def __init__(self, device: Any) -> None: ...

        def record(self) -> None: ...

        def synchronize(self) -> None: ...

    monkeypatch.setattr(dead, "REFRESH", 5)
    monkeypatch.setattr(torch, "Event", Event)


def counters(steps: int) -> list[torch.Tensor]:
    """Return the tokens for which each latent is silent, before each step; most latents fire now and then."""
    generator, silent, made = torch.Generator().manual_seed(0), torch.zeros(F, dtype=torch.int64), []
    rate = torch.linspace(0, 0.2, F)
    for _ in range(steps):
        made.append(silent)
        silent = torch.where(torch.rand(F, generator=generator) < rate, 0, silent + N)
    return made


def lists(seen: list[torch.Tensor], start: int) -> dict[int, set[int]]:
    """Return the list at every step of a training that starts or is resumed at one."""
    listed = DeadLatents(AFTER)
    steps = range(start, len(seen))
    return {step: set(listed.listed(seen[step].as_subclass(OnGPU), step, N).own.tolist()) for step in steps}


def test_a_list_on_a_gpu_is_that_of_the_refresh_before() -> None:
    seen = counters(60)
    made = lists(seen, 0)
    for step in range(10, 60):
        assert made[step] == set((seen[step // 5 * 5 - 5] >= AFTER).nonzero().squeeze(1).tolist()), step
    assert any(made.values()) and any(made[step] != made[step + 5] for step in range(50))


def test_training_that_is_resumed_goes_on_with_the_same_lists() -> None:
    seen = counters(60)
    whole = lists(seen, 0)
    for start in range(10, 55):
        for step, resumed in lists(seen, start).items():
            still = set((seen[step] >= AFTER).nonzero().squeeze(1).tolist())  # others are silenced
            assert resumed & still == whole[step] & still, (start, step)


def test_a_list_on_a_cpu_is_that_of_the_moment() -> None:
    for silent in counters(30):
        own, total = DeadLatents(AFTER).listed(silent, 3, N)
        assert own.tolist() == (silent >= AFTER).nonzero().squeeze(1).tolist() and total == len(own)


def test_gradients_of_rows_are_added_into_those_of_the_weight() -> None:
    weight, latent = torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True), torch.tensor([5, 1])
    seed, own = torch.randn(7, 2, 3).double(), torch.randn(2, 2, 3).double()
    whole, rows = with_rows(weight, latent)
    assert torch.equal(whole, weight) and torch.equal(rows, weight[latent])
    given = seed.clone()
    torch.autograd.backward([whole, rows], [given, own])
    expected = seed.clone()
    expected[latent] += own
    assert torch.equal(weight.grad, expected)
    assert torch.equal(given, expected)  # in place: no second array of the weight's size
