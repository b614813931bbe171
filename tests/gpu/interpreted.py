"""Run by test_kernels.py in a process of its own: Triton's interpreter is chosen before Triton is imported."""

import copy
import sys
from typing import Any

import torch
from torch import distributed as dist

from tunediff.config.settings import TrainingSettings
from tunediff.dictionaries import build, dictionary_settings, kernels
from tunediff.dictionaries.base import Dictionary
from tunediff.dictionaries.fused import FusedWeight, RowSums, fuse
from tunediff.dictionaries.precision import precision
from tunediff.dictionaries.sharding import WHOLE, Ranks, Shard
from tunediff.dictionaries.sparse import SparseCode
from tunediff.dictionaries.training import make_optimizer, optimizer_step

D_MODEL, N_TOKENS, TRAINING = 24, 16, TrainingSettings(learning_rate=0.01)


def close(one: Any, other: Any, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def products() -> None:
    """Decode and dots against dense products, rows in float32 and bfloat16, longer and shorter than a block."""
    generator = torch.Generator().manual_seed(0)
    kernels.SPLITS = 1  # so that a program takes the nonzeros of a token in several turns
    for width, dtype in ((70, torch.float32), (300, torch.bfloat16)):
        dense = torch.randn(8, 30, generator=generator).clamp(min=1) - 1
        dense[1], dense[2] = 1.0, 0.0
        token, latent = dense.nonzero(as_tuple=True)
        code = SparseCode(token, latent, dense[token, latent], 8)
        weight = torch.randn(30, 4 * width, generator=generator).to(dtype)
        rows = torch.randn(8, 4 * width, generator=generator)
        close(kernels.decode(latent, code.value, code.offsets(), weight), dense @ weight.float(), 1e-4)
        for targets, directions in ((1, 1), (4, 2), (2, 4)):
            own, others = rows.view(8, -1, width)[:, :targets].contiguous(), weight.view(30, -1, width)[:, :directions]
            expected = torch.einsum("ntw,ldw->nldt", own, others.float())[token, latent]
            close(kernels.dots(code.offsets(), latent, own, others.contiguous()), expected, 1e-3)


def one_update() -> None:
    """The norm, the step, the copy and the row norms against torch's Adam on the gradient written down."""
    generator = torch.Generator().manual_seed(1)
    for d_model, low in ((35, False), (1100, True)):
        parameter = torch.nn.Parameter(torch.randn(12, 2, d_model, generator=generator))
        twin = parameter.detach().clone().requires_grad_()
        adam = {"lr": 0.01, "betas": (0.9, 0.99)}
        reference = torch.optim.Adam([twin], **adam)  # type: ignore[arg-type]
        weight = FusedWeight(parameter, torch.optim.Adam([parameter], **adam), low, norms=True)  # type: ignore[arg-type]
        for step in (1, 2, 3):
            counts = torch.randint(0, 6, (12,), generator=generator)
            counts[3], counts[4] = 0, 40  # a latent that fires nowhere, one that fires everywhere
            index = torch.cat([torch.randperm(40, generator=generator)[:count] for count in counts.tolist()])
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
            factor, rows = (
                torch.randn(len(index), generator=generator),
                torch.randn(40, 2 * d_model, generator=generator),
            )
            rows = rows.bfloat16() if low else rows
            extra = (torch.tensor([3, 7]), torch.randn(2, 2 * d_model, generator=generator))
            dense = torch.zeros(12, 2 * d_model).index_add(0, *extra)
            latent = torch.repeat_interleave(torch.arange(12), counts)
            dense = dense.index_add(0, latent, factor[:, None] * rows[index].float())
            weight.sums, weight.extra = RowSums(index, factor, offsets, rows), extra
            norm = weight.square_norm().sqrt()
            close(norm, dense.norm(), 1e-4)
            weight.update(norm / 2, step)
            twin.grad = (dense / (norm / 2)).view_as(twin)
            reference.step()
            close(parameter.detach(), twin.detach())
            close(weight.norms, twin.detach().norm(dim=-1))
            # the interpreter cuts bits where a GPU rounds to the nearest
            close(weight.rows.float(), parameter.detach().flatten(1), 2**-7 if low else 0)


class Alone(Ranks):
    """The only process of several: what it exchanges is its own."""

    def exchange(self, operation: Any, *arguments: Any) -> None:
        if operation is dist.all_gather:
            arguments[0][0].copy_(arguments[1])


def trained(
    kind: str, fused: bool, stop: int | None = None, setting: str = "highest", shard: Shard = WHOLE
) -> tuple[Dictionary, list[float]]:
    """Return a dictionary after six steps, with latents that die on the way; with `stop`, saved and loaded there."""
    settings = {"kind": kind, "dict_size": 24, "k": 1, "aux_k": 3, "aux_weight": 0.5, "dead_after_tokens": N_TOKENS}
    generator, losses, auxiliary = torch.Generator().manual_seed(2), [], 0.0
    dictionary = build(dictionary_settings(settings), D_MODEL, 0, 100, 5, shard)
    with torch.no_grad():  # a tied start leaves gradients that are rounding alone, and Adam makes steps of them
        dictionary.encoder_weight.add_(0.01 * torch.randn(dictionary.encoder_weight.shape, generator=generator))
    optimizer = make_optimizer(dictionary, TRAINING)
    for step in range(6):
        if step in (0, stop):
            state = copy.deepcopy((dictionary.state_dict(), optimizer.state_dict()))
            dictionary = build(dictionary_settings(settings), D_MODEL, 0, 100, 5, shard)
            optimizer = make_optimizer(dictionary, TRAINING)
            dictionary.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
            if fused:
                dictionary.fused = fuse(dict(dictionary.named_parameters()), optimizer, low=setting == "bf16")
        x = 3 * torch.randn(N_TOKENS, len(dictionary.streams), D_MODEL, generator=generator)
        with precision(setting):
            loss, metrics = optimizer_step(dictionary, optimizer, x)
        losses.append(float(loss))
        auxiliary = max(auxiliary, float(metrics["auxiliary"]))
    assert auxiliary > 0
    return dictionary, losses


def steps() -> None:
    """Training with the kernels against training without; stopped and resumed, bit for bit."""
    for kind in ("batchtopk", "diff_sae"):
        (plain, losses), (dictionary, with_kernels) = trained(kind, False), trained(kind, True)
        close(torch.tensor(with_kernels), torch.tensor(losses), 1e-5)
        for name, value in plain.named_parameters():
            close(dictionary.get_parameter(name), value)
    resumed, losses = trained("batchtopk", True, stop=3)
    first, whole = trained("batchtopk", True)
    assert losses == whole
    assert all(torch.equal(resumed.get_parameter(name), value) for name, value in first.named_parameters())
    sharded, losses = trained("batchtopk", True, shard=Alone(0, 1))
    close(torch.tensor(losses), torch.tensor(whole), 1e-6)
    for name, value in first.named_parameters():
        close(sharded.get_parameter(name), value)


def low() -> None:
    """Under bf16 a step's loss is that of rounded weights, and training stays near float32."""
    dictionary = build(dictionary_settings({"kind": "batchtopk", "dict_size": 64, "k": 4}), D_MODEL, 0, 100, 5)
    rounded = copy.deepcopy(dictionary)
    with torch.no_grad():
        for name in ("encoder_weight", "decoder_weight"):
            getattr(rounded, name).copy_(getattr(dictionary, name).bfloat16())
    dictionary.fused = fuse(dict(dictionary.named_parameters()), make_optimizer(dictionary, TRAINING), low=True)
    x = 3 * torch.randn(N_TOKENS, 2, D_MODEL, generator=torch.Generator().manual_seed(3))
    with precision("bf16"):
        loss = dictionary.step(x).loss
        close(loss, rounded.step(x).loss, 1e-3)
        loss.backward()
    for weight in dictionary.fused:  # half as many bytes to gather
        assert weight.sums is not None and weight.sums.rows.dtype == torch.bfloat16
    exact = trained("batchtopk", False)[0]
    plain, fused = (trained("batchtopk", on, setting="bf16")[0] for on in (False, True))
    for name, value in exact.named_parameters():  # as close to float32 as plain products in bfloat16 are
        near, own = ((of.get_parameter(name) - value).norm() / value.norm() for of in (plain, fused))
        assert own < 1.5 * near < 0.1, (name, near, own)


if __name__ == "__main__":
    for check in (products, one_update, steps, low):
        check()
        print(check.__name__, "ok", file=sys.stderr)
    print("ok")
