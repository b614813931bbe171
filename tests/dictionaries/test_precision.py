"""Products at the precision of the moment."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tunediff.dictionaries import build, dictionary_settings
from tunediff.dictionaries.precision import operand, precision, product

KINDS = {
    "batchtopk": {"k": 4, "aux_k": 8, "dead_after_tokens": 1},
    "diff_sae": {"k": 4, "aux_k": 8, "dead_after_tokens": 1},
    "l1": {"mu": 0.1},
}


def matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(5, 300, generator=generator), torch.randn(300, 7, generator=generator)
    return left.requires_grad_(), right.requires_grad_(), torch.randn(7, generator=generator).requires_grad_()


def test_highest_is_torch_itself() -> None:
    left, right, bias = matrices()
    with precision("highest"):
        assert torch.equal(product(left, right), left @ right)
        assert torch.equal(product(left, right, bias), torch.addmm(bias, left, right))
        assert operand(left) is left


def test_bf16_rounds_what_is_multiplied_and_nothing_else() -> None:
    left, right, bias = matrices()
    seed = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    with precision("bf16"):
        made = product(left, right, bias)
        gradients = torch.autograd.grad(made, (left, right, bias), seed)
    low, high, rounded = (tensor.bfloat16().double() for tensor in (left, right, seed))
    assert made.dtype == torch.float32
    assert torch.allclose(made.double(), low @ high + bias.double(), rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(gradients, (rounded @ high.T, low.T @ rounded, seed.double().sum(0)), strict=True):
        assert gradient.dtype == torch.float32
        assert torch.allclose(gradient.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_setting_ends_with_its_block() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), precision("bf16"), precision("no setting"):
        pass
    assert torch.get_float32_matmul_precision() == before
    wide = torch.ones(2, 2, dtype=torch.float64)
    with precision("bf16"):
        assert operand(wide) is wide


@pytest.mark.parametrize(("kind", "section"), KINDS.items())
def test_no_large_product_of_a_step_escapes(
    kind: str, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`product` calls `torch.mm` and `torch.addmm` by name; operators (@, linear, einsum) reach the kernels alone."""
    settings = dictionary_settings({"kind": kind, "dict_size": 40, **section})
    x = torch.randn(30, len(build(settings, 6, 0).streams), 6, generator=torch.Generator().manual_seed(0))
    asked: list[str] = []
    for name in ("mm", "addmm"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, plain=plain, **kw: asked.append("torch") or plain(*a, **kw))

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
                seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def step(setting: str) -> tuple[float, dict[str, torch.Tensor]]:
        dictionary = build(settings, 6, 0)
        dictionary.steps_taken = 1
        dictionary.tokens_since_fired.fill_(1)  # every latent counts as dead
        with precision(setting), Products():
            result = dictionary.step(x)
            result.loss.backward()
        return float(result.loss.detach()), {name: p.grad for name, p in dictionary.named_parameters()}

    seen: list[str] = []
    exact = step("highest")
    seen.clear()
    asked.clear()
    rough = step("bf16")
    assert len(seen) == len(asked) > 0
    assert rough[0] != exact[0] and rough[0] == pytest.approx(exact[0], rel=2e-2)
    for name, gradient in exact[1].items():
        assert float((rough[1][name] - gradient).norm() / gradient.norm()) < 0.2, (
            name
        )  # an entry near the cutoff may swap
