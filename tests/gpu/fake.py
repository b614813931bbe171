"""A CUDA device that does nothing, for a torch without CUDA: whole training steps at full scale without memory or GPU.

Tensors are fake (torch's FakeTensorMode): they have shape, dtype and device, but no data. A product of tensors of two
devices raises, and so does what needs a value on the host (`.item()`, `nonzero`, a boolean index). `Costs` writes down
what every operation would move and compute; times are bounds from peak rates, nothing is measured.

Run it in a process of its own, for the device must be there before torch: `python fake.py KIND-PRECISION-CASE …` prints
a line of JSON per case, `--table` what takes most.
"""

import ctypes
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

DEVICE_CODE = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::Stream;

// One device with one stream, always the current ones; events are over as soon as they are recorded.
struct NoGuard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static Device only() { return Device(DeviceType::CUDA, 0); }
  static Stream stream() { return Stream(Stream::DEFAULT, only()); }
  Device getDevice() const override { return only(); }
  Device exchangeDevice(Device) const override { return only(); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, NoGuard)

// The class must have the name that torch looks for, `CUDAHooks`.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
};
namespace at {
using ::CUDAHooks;
REGISTER_CUDA_HOOKS(CUDAHooks)
}
"""


def load_device(folder: Path) -> None:
    """Compile the device with g++ (some seconds) and load it; torch must not be imported yet."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already; load the device in a process of its own, before torch")
    found = find_spec("torch")
    assert found is not None and found.origin is not None
    root = Path(found.origin).parent
    source, library = folder / "device.cpp", folder / "device.so"
    source.write_text(DEVICE_CODE, encoding="utf-8")
    flags = ["-shared", "-fPIC", "-std=c++20", "-O0", f"-I{root / 'include'}", f"-L{root / 'lib'}"]
    linked = [f"-Wl,-rpath,{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", *flags, str(source), *linked, "-o", str(library)], check=True)
    ctypes.CDLL(str(library))


if "torch" not in sys.modules:  # as soon as this is imported, or run
    _folder = tempfile.TemporaryDirectory()
    load_device(Path(_folder.name))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

GPU = "cuda:0"
D_MODEL, DICT_SIZE, N_TOKENS, DEAD, RANKS = 2304, 73_728, 2048, 4096, 8
BANDWIDTH = {"H100": 3.3e12, "H200": 4.3e12}  # bytes/s; an H200 computes as fast as an H100
# What is gathered is read from memory once and then from the L2 cache where the array fits in it, else each time from
# memory. A level's time is all that passes it over its rate, and the slowest level counts: all is read through L2.
# Assumed, not measured: 5.5 TB/s on either card; and 25 MB, as each half of the 50 MB of an H100 holds what the
# processors on its side read.
L2_BANDWIDTH, L2_BYTES = 5.5e12, 25e6
SHARING = 64  # tokens of a batch on which the latent of a nonzero fires, on average over the nonzeros; assumed
SECTOR = 32  # bytes that the read of one number takes
RATES = {"bfloat16": 790e12, "high": 370e12, "highest": 50e12}  # FLOP/s of products: bfloat16, TF32, float32

# Passes over the data of an operation that makes several: a radix selection reads its input once per byte and once to
# collect, a radix sort reads and writes keys and values once per byte of the key.
TOPK_PASSES, SORT_PASSES = 5, 8
FREE = {  # make no data, or only another view of it
    *("alias", "as_strided", "detach", "diagonal", "expand", "lift_fresh", "permute", "select", "slice", "split"),
    *("squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "_reshape_alias"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"),
}
MAKE = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"}  # written, nothing read


class Moved(NamedTuple):
    """Bytes that an operation moves."""

    memory: int
    cached: int = 0  # read from the L2 cache


class Operation(NamedTuple):
    """One launch or more."""

    name: str
    moved: int  # bytes in the GPU's memory
    cached: int  # bytes read from its L2 cache
    flops: int  # of a product
    dtype: str  # of its largest tensor, of a product its inputs
    shape: tuple[int, ...]


def size(tensor: Tensor) -> int:
    """Return the bytes of a tensor; what is expanded lies in memory once."""
    held = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0)
    return tensor.element_size() * math.prod(held)


def tensors(tree: Any) -> list[Tensor]:
    """Return all tensors of a tree."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def gathered(source: Tensor, count: int) -> Moved:
    """Return what it takes to read `count` rows of a tensor, in any order."""
    read = count * source.shape[-1] * source.element_size()
    return Moved(min(read, size(source)), read) if size(source) <= L2_BYTES else Moved(read)


def moved(name: str, read: list[Tensor], made: list[Tensor], kwargs: dict[str, Any]) -> Moved:
    """Return the bytes an operation reads and writes."""

    def and_all(rows: Moved, *others: Tensor) -> Moved:
        return rows._replace(memory=rows.memory + sum(map(size, others)))

    if name == "_fused_adam_":  # weight and both moments are read and written, the gradient is read; if scaled, written
        weights = [each for each in read if each.numel() > 1][: len(read) // 5]
        return Moved(sum(map(size, weights)) * (7 + (kwargs.get("grad_scale") is not None)))
    if name in ("_embedding_bag", "_embedding_bag_forward_only"):
        return and_all(gathered(read[0], read[1].numel()), *read[1:], made[0])
    if name == "_embedding_bag_per_sample_weights_backward":  # samples of a token, or latent, follow one another
        gradient, weight, index = read[:3]
        return and_all(gathered(weight, index.numel()), gradient, *read[2:], *made)
    if name in ("index", "index_select", "gather", "embedding"):  # of the source only what is picked
        return Moved(2 * sum(map(size, made)) + sum(map(size, read[1:])))
    if name in ("index_add_", "index_put_", "scatter_", "scatter_add_", "scatter_reduce_", "index_add"):
        changed = read[-1] if read[-1].numel() > 1 else read[1]
        whole = 2 * size(read[0]) if name == "index_add" else 0
        return Moved(3 * size(changed) + sum(map(size, read[1:-1])) + whole)
    # our kernels
    if name == "decode":
        latent, _, _, weight = read
        return and_all(gathered(weight, latent.numel()), *read[:3], *made)
    if name == "dots":  # of the weight one read per nonzero; the rows of a token once per group of nonzeros
        from tunediff.dictionaries.kernels import at_once

        _, latent, rows, weight = read
        again = latent.numel() * size(rows[0]) // at_once(rows.shape[1] * weight.shape[1])
        return and_all(gathered(weight, latent.numel() * weight.shape[1]), *read[:3], *made)._replace(cached=again)
    if name == "square_norms":  # the products of pairs of a latent's tokens lie anywhere
        index, gram = read[0], read[4]
        pairs = gathered(gram, SHARING // 2 * index.numel() * SECTOR // size(gram[0]))
        return and_all(pairs, *read[:3], *read[5:], *made)
    if name == "update":
        index, rows, moments, others = read[0], read[3], read[7:10], read[10:]
        return and_all(gathered(rows, index.numel()), *read[:3], *read[4:6], *moments, *moments, *others)
    if name == "topk":
        return Moved(TOPK_PASSES * size(read[0]) + sum(map(size, made)))
    if name in ("sort", "argsort"):
        return Moved(2 * SORT_PASSES * sum(map(size, made)))
    if name in MAKE:
        return Moved(sum(map(size, made)))
    inplace = [each for each in made if any(each is one for one in read)]
    return Moved(
        sum(map(size, read)) + sum(map(size, made)) - (sum(map(size, inplace)) if name.startswith("fill") else 0)
    )


class Costs(TorchDispatchMode):
    """Writes down every operation on the GPU, and every copy for which the host waits though a fake tensor does not."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        space, name = func._schema.name.split("::")
        read, made = tensors((args, kwargs)), tensors(result)
        if space == "prim" or not any(each.is_cuda for each in read + made):
            return result
        asynchronous = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if name in ("_to_copy", "copy_") and len({each.device for each in read + made}) > 1 and not asynchronous:
            self.waits.append(f"{name} of {tuple(made[0].shape)} between host and device")
        if name in FREE:
            return result
        flops, largest = 0, max(read + made, key=Tensor.numel)
        if name in ("mm", "addmm", "bmm"):
            left, right = [each for each in read if each.ndim == (3 if name == "bmm" else 2)][:2]
            flops, largest = 2 * left.numel() * right.shape[-1], left
        dtype = str(largest.dtype).removeprefix("torch.")
        self.operations.append(Operation(name, *moved(name, read, made, kwargs), flops, dtype, tuple(largest.shape)))
        return result

    def seconds(self, setting: str, gpu: str) -> float:
        """Return the seconds that peak rates allow."""
        total = 0.0
        for each in self.operations:
            rate = RATES[each.dtype if each.dtype == "bfloat16" else "high" if setting != "highest" else setting]
            levels = each.moved / BANDWIDTH[gpu], (each.moved + each.cached) / L2_BANDWIDTH
            total += max(*levels, each.flops / rate)
        return total

    def summary(self, setting: str) -> dict[str, Any]:
        """Return bytes, FLOP, launches, waits and the milliseconds that peak rates allow."""
        return {
            "gigabytes": round(sum(each.moved for each in self.operations) / 1e9, 2),
            "cached_gigabytes": round(sum(each.cached for each in self.operations) / 1e9, 2),
            "teraflop": round(sum(each.flops for each in self.operations) / 1e12, 3),
            "launches": len(self.operations),
            "waits": self.waits,
            "ms": {gpu: round(1e3 * self.seconds(setting, gpu), 2) for gpu in BANDWIDTH},
            "other_teraflop": sum(each.flops for each in self.operations if each.dtype != "bfloat16") / 1e12,
        }

    def table(self, setting: str, gpu: str = "H200", above: float = 0.004) -> str:
        """Return the operations that take most (milliseconds), added up by name, dtype and shape."""
        of: dict[tuple[str, str, tuple[int, ...]], list[float]] = {}
        for each in self.operations:
            alone = Costs()
            alone.operations = [each]
            found = of.setdefault((each.name, each.dtype, each.shape), [0, 0, 0, 0])
            for i, more in enumerate((1, each.moved / 1e9, each.cached / 1e9, alone.seconds(setting, gpu) * 1e3)):
                found[i] += more
        return "\n".join(
            f"{number:3.0f} × {name:44} {dtype:9} {shape!s:22} {memory:7.3f} + {cached:6.3f} GB {ms:6.3f} ms"
            for (name, dtype, shape), (number, memory, cached, ms) in sorted(of.items(), key=lambda each: -each[1][3])
            if ms > above
        )


SECTIONS: dict[str, dict[str, Any]] = {
    "l1": {"mu": "auto", "target_l0": 100.0},
    "batchtopk": {"k": 100},
    "diff_sae": {"k": 100},
}


def step(kind: str, setting: str, case: str) -> Costs:
    """Take two training steps at full scale on the fake GPU; return the costs of the second.

    Cases: `alive`, `dead` (`DEAD` latents in the auxiliary loss), `kernels` and `deadkernels` (as `kernels: auto`),
    `logged` (metrics are computed, not read), and the mistakes that must be found: `item`, `cpu`, `zeros`. With
    `sharded` the step is that of one of `RANKS` processes, without what travels between them.
    """
    from tunediff.config.settings import TrainingSettings
    from tunediff.dictionaries import build, dictionary_settings
    from tunediff.dictionaries.fused import fuse
    from tunediff.dictionaries.precision import precision
    from tunediff.dictionaries.sharding import WHOLE, Ranks
    from tunediff.dictionaries.training import make_optimizer, optimizer_step

    class Alone(Ranks):
        def exchange(self, operation: Any, *arguments: Any) -> None: ...

    own = dictionary_settings({"kind": kind, "dict_size": DICT_SIZE, **SECTIONS[kind]})
    with FakeTensorMode(), precision(setting):
        dictionary = build(own, D_MODEL, 0, 50_000, 1000, Alone(1, RANKS) if "sharded" in case else WHOLE)
        for values in (dictionary._parameters, dictionary._buffers):  # `Module.to` does not take fake tensors
            for name, value in values.items():
                moved_there = value if value is None else value.detach().to(GPU)
                values[name] = torch.nn.Parameter(moved_there) if values is dictionary._parameters else moved_there
        optimizer = make_optimizer(dictionary, TrainingSettings(device=GPU))
        x = torch.empty(N_TOKENS, len(dictionary.streams), D_MODEL, device=GPU)
        dictionary.steps_taken = 20_000 if "dead" in case else 2_000
        if "kernels" in case:
            dictionary.fused = fuse(dict(dictionary.named_parameters()), optimizer, setting == "bf16")
        if "dead" in case and kind != "l1":
            dictionary.dead_latents._begun = Arrived(DEAD)
            dictionary.dead_latents._used = dictionary.dead_latents._begun.latents()
        plant(dictionary, case)
        for _ in range(2):
            with Costs() as costs:
                optimizer_step(dictionary, optimizer, x, case == "logged")
    return costs


class Arrived:
    """Stands for a list of latents whose length has reached the host: a fake tensor cannot say one."""

    def __init__(self, length: int) -> None:
        self.length = length

    def latents(self) -> Any:
        from tunediff.dictionaries.dead import Dead

        return Dead(torch.empty(self.length, dtype=torch.int64, device=GPU), self.length)


def plant(dictionary: Any, case: str) -> None:
    """Put one of the mistakes into a dictionary's loss."""
    from tunediff.dictionaries.losses import LossTerm

    mistakes = {
        "item": lambda x, error, code: error.sum() * error.max().item(),
        "cpu": lambda x, error, code: (error + torch.ones(x.shape[-1])).sum(),
        "zeros": lambda x, error, code: x.new_zeros(DICT_SIZE, 2 * D_MODEL).sum() + error.sum(),
    }
    if case in mistakes:
        dictionary.loss_terms = (LossTerm("mistake", 1.0, mistakes[case]),)


def main(take: Callable[..., Costs]) -> None:
    """Print what each case costs, or the error it ends in; `take` gets its words, the last but one is the setting."""
    for case in (each for each in sys.argv[1:] if each != "--table"):
        words = case.split("-")
        try:
            seen = take(*words)
        except Exception as error:
            print(json.dumps({"case": case, "error": type(error).__name__}))
            continue
        print(seen.table(words[-2]) if "--table" in sys.argv else json.dumps({"case": case, **seen.summary(words[-2])}))


if __name__ == "__main__":
    main(step)
