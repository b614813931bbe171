"""Run by test_kernels.py in a process of its own: Triton's interpreter is chosen before Triton is imported."""

import torch

from tunediff.dictionaries import kernels


def reference(pre: torch.Tensor, count: int, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The definition: sort all scores, the first of equal ones win."""
    score = (pre.float().clamp(min=0) * scale).flatten()
    order = score.sort(descending=True, stable=True).indices[:count]
    order = order[score[order] > 0].sort().values
    return order, score[order], float(score[order].min()) if len(order) else 0.0


def selection() -> None:
    generator = torch.Generator().manual_seed(0)
    for case in range(24):
        tokens, latents = 7 + case, 300 + 37 * case
        pre = torch.randn(tokens, latents, generator=generator) * 10 ** float(torch.randn((), generator=generator))
        scale = torch.rand(latents, generator=generator) + 0.1
        if case % 3 == 1:
            pre = pre.bfloat16()  # many equal preactivations
        if case % 4 == 2:
            pre, scale = (pre * 2).round() / 2, torch.ones(latents)  # ties at the cutoff
        if case % 4 == 3:
            pre = pre - 4 * pre.float().std().to(pre.dtype)  # fewer positive ones than asked for
        count = tokens * (3 + case % 5)
        position, score, smallest = kernels.largest_scores(pre, count, scale)
        assert len(position) == len(score) == count and bool((position.diff() >= 0).all())
        positive = score > 0
        wanted, scores, least = reference(pre, count, scale)
        assert torch.equal(position[positive], wanted), case
        assert torch.equal(score[positive], scores) and float(smallest) == least, case


def too_many_equal() -> None:
    pre = torch.ones(400, 500)
    assert kernels.largest_scores(pre, 800, torch.ones(500))[2].isnan()


def row_gradient(generator: torch.Generator, tokens: int, latents: int, width: int) -> kernels.RowGradient:
    counts = torch.randint(0, 6, (latents,), generator=generator)
    counts[3], counts[4] = 0, tokens  # a latent that fires nowhere, one that fires everywhere
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    index = torch.cat([torch.randperm(tokens, generator=generator)[:count].sort().values for count in counts.tolist()])
    extra_latent = torch.tensor([3, 7])
    return kernels.RowGradient(
        index,
        torch.randn(len(index), generator=generator),
        offsets,
        torch.randn(tokens, width, generator=generator),
        extra_latent,
        torch.randn(len(extra_latent), width, generator=generator),
    )


def update() -> None:
    generator = torch.Generator().manual_seed(1)
    for tokens, latents, width in ((40, 12, 70), (33, 20, 1030)):
        weight = torch.randn(latents, width, generator=generator)
        twin = weight.clone().requires_grad_()
        optimizer = torch.optim.Adam([twin], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
        average, square = torch.zeros_like(weight), torch.zeros_like(weight)
        for step in (1, 2, 3):
            gradient = row_gradient(generator, tokens, latents, width)
            dense = gradient.dense()
            norm = gradient.square_norm().sqrt()
            torch.testing.assert_close(norm, dense.norm(), rtol=1e-5, atol=0)
            gradient.update(weight, average, square, norm / 2, step, 0.01, kernels.Adam(0.9, 0.99, 1e-8))
            twin.grad = dense / (norm / 2)
            optimizer.step()
            torch.testing.assert_close(weight, twin.detach(), rtol=1e-5, atol=1e-6)
            state = optimizer.state[twin]
            torch.testing.assert_close(average, state["exp_avg"], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(square, state["exp_avg_sq"], rtol=1e-5, atol=1e-7)


selection()
update()
too_many_equal()
print("ok")
