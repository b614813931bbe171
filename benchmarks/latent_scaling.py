"""Latent Scaling's statistics against encoding alone, side by side in one run.

Random activations and weights; each batch is timed twice: `crosscoder.encode` alone, then the whole step of the pass
(encode, decode, all projections, scatter into blocks). The ratio of the medians is what all targets of all latents
cost over the encoding that any method needs; the target is 1.3 or less where the code is sparse. `--path sparse` and
`--path dense` force one way at any L0: they cross at `sparse.DENSE_FROM`. On the first batch, some latents' β of every
target are then compared with the leave-one-out definition in float64.
"""

import argparse
import json
import statistics
import time

import torch

from tunediff.dictionaries import sparse
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.scaling import ScalingSums, betas, direction_terms, scaling_directions


def synchronised(device: str) -> float:
    """Return the time in seconds, after all work of the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def random_crosscoder(d_model: int, dict_size: int, l0: float, x: torch.Tensor, device: str) -> Crosscoder:
    """Return a crosscoder of random weights whose threshold leaves `l0` latents per token on the sample `x`."""
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(dict_size, 2, d_model, generator=generator) * (2 * d_model) ** -0.5
    decoder = torch.randn(dict_size, 2, d_model, generator=generator) * d_model**-0.5
    bias, decoder_bias = torch.zeros(dict_size), torch.randn(2, d_model, generator=generator) * 0.1
    crosscoder = Crosscoder(encoder, bias, decoder, decoder_bias, torch.zeros(dict_size)).to(device)
    rows, weight = crosscoder.inputs(x.to(crosscoder.encoder_weight)).flatten(1), crosscoder.encoder_weight.flatten(1)
    values = torch.addmm(crosscoder.encoder_bias, rows, weight.T).flatten()
    rank = len(values) - round(l0 * len(x))
    crosscoder.threshold.fill_(values.cpu().kthvalue(rank).values.item())
    return crosscoder


def brute_force(
    crosscoder: Crosscoder, h: torch.Tensor, f: torch.Tensor, latents: list[int]
) -> dict[str, torch.Tensor]:
    """Return β (latent, model) by the definition, target by target, from the dense code `f`, in float64."""
    decoder, bias = crosscoder.decoder_weight.double(), crosscoder.decoder_bias.double()
    hat = torch.einsum("nf,fmd->nmd", f, decoder) + bias
    result: dict[str, list[torch.Tensor]] = {}
    for j in latents:
        own = f[:, j, None, None] * decoder[j]
        direction = f[:, j, None] * decoder[j, 1]
        targets = {"activation": h, "activation_no_bias": h - bias, "reconstruction": hat, "error": h - hat + own}
        for name, y in targets.items():
            beta = torch.einsum("nmd,nd->m", y, direction) / direction.square().sum()
            result.setdefault(name, []).append(beta)
    return {name: torch.stack(rows) for name, rows in result.items()}


def run(
    d_model: int = 512,
    dict_size: int = 16_384,
    n_tokens: int = 1024,
    l0: float = 32,
    batches: int = 7,
    blocks: int = 64,
    device: str = "cpu",
    checked: int = 32,
    path: str = "auto",
) -> dict[str, float | int | str]:
    """Return median times per batch in ms, their ratio, and the largest difference of β to the definition."""
    if path != "auto":
        sparse.DENSE_FROM[device.partition(":")[0]] = {"sparse": 2.0, "dense": -1.0}[path]
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(n_tokens, 2, d_model, generator=generator) for _ in range(batches)]
    crosscoder = random_crosscoder(d_model, dict_size, l0, data[0].to(device)[:256], device)
    directions = scaling_directions(crosscoder)
    block = [torch.randint(0, blocks, (n_tokens,), generator=generator).to(device) for _ in range(batches)]
    sums = ScalingSums.zeros(blocks, dict_size, 2, device)

    def step(into: ScalingSums, i: int) -> int:
        x = data[i].to(device)
        code = crosscoder.encode(x)
        into.add(code, torch.cat([x, crosscoder.decode(code)], dim=1), directions, block[i])
        return len(code.latent)

    step(ScalingSums.zeros(blocks, dict_size, 2, device), 0)  # warm up
    encoding, whole, nonzeros = [], [], 0
    for i in range(batches):
        start = synchronised(device)
        crosscoder.encode(data[i].to(device))
        middle = synchronised(device)
        nonzeros += step(sums, i)
        end = synchronised(device)
        encoding.append(middle - start)
        whole.append(end - middle)

    once = ScalingSums.zeros(blocks, dict_size, 2, device)
    step(once, 0)
    latents = once.count.sum(0).argsort(descending=True)[: 4 * checked : 4].tolist()
    x = data[0].to(device)
    expected = brute_force(crosscoder, x.double(), crosscoder.encode(x).to_dense(dict_size).double(), latents)
    found = betas(once.total(), direction_terms(crosscoder))
    difference = max((found[name][0, latents] - beta).abs().max().item() for name, beta in expected.items())
    encode_ms, pass_ms = (1000 * statistics.median(times) for times in (encoding, whole))
    return {
        "device": device,
        "path": path,
        "threads": torch.get_num_threads(),
        "d_model": d_model,
        "dict_size": dict_size,
        "n_tokens": n_tokens,
        "l0": nonzeros / (batches * n_tokens),
        "encode_ms": encode_ms,
        "pass_ms": pass_ms,
        "ratio": pass_ms / encode_ms,
        "tokens_per_s": n_tokens / pass_ms * 1000,
        "encode_s_per_100k_tokens": 100 * encode_ms / n_tokens,
        "pass_s_per_100k_tokens": 100 * pass_ms / n_tokens,
        "max_difference": difference,
    }


def markdown_row(result: dict[str, float | int | str]) -> str:
    """Return the row of README's performance table."""
    r = result
    return (
        f"| Latent Scaling, all latents and targets | d {r['d_model']}, F {r['dict_size']}, N {r['n_tokens']}, "
        f"L0 {r['l0']:.0f}, {r['device']} × {r['threads']} threads | {r['pass_ms']:.0f} ms a batch "
        f"({r['tokens_per_s']:.0f} tokens/s) | **{r['ratio']:.2f}×** encoding alone ({r['encode_ms']:.0f} ms) | "
        f"max. difference to the definition {r['max_difference']:.1e} |"
    )


def main() -> None:
    """Parse arguments, run, print a Markdown row (or JSON)."""
    parser = argparse.ArgumentParser(description="Time Latent Scaling's one pass against encoding alone.")
    parser.add_argument("--d-model", type=int, default=512, help="activation width")
    parser.add_argument("--dict-size", type=int, default=16_384, help="latents")
    parser.add_argument("--n-tokens", type=int, default=1024, help="tokens per batch")
    parser.add_argument("--l0", type=float, default=32, help="mean active latents per token")
    parser.add_argument("--batches", type=int, default=7, help="batches timed; medians are reported")
    parser.add_argument("--blocks", type=int, default=64, help="blocks of documents the sums are kept for")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--checked", type=int, default=32, help="latents compared with the definition")
    parser.add_argument("--path", choices=("auto", "sparse", "dense"), default="auto", help="force a way of summing")
    parser.add_argument("--json", action="store_true", help="print all values as JSON instead")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    result = run(**arguments)
    print(json.dumps(result, indent=1) if as_json else markdown_row(result))


if __name__ == "__main__":
    main()
