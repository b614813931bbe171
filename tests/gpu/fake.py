"""A CUDA device that does nothing, for a torch without CUDA: whole training steps at full scale without memory or GPU.

Tensors are fake (torch's FakeTensorMode): they have shape, dtype and device, but no data. A product of tensors of two
devices raises, and so does what needs a value on the host (`.item()`, `nonzero`, a boolean index). `Costs` writes down
what every operation would move and compute; times are bounds from peak rates, nothing is measured.

Run it in a process of its own, for the device must be there before torch: `python fake.py KIND-PRECISION-CASE …` prints
a line of JSON per case, `--table` what moves most.
"""

import ctypes
import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
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
RATES = {"bfloat16": 790e12, "high": 370e12, "highest": 50e12}  # FLOP/s of products: bfloat16, TF32, float32

# Passes over the data of an operation that makes several: a radix selection reads its input once per byte and once to
# collect, a radix sort reads and writes keys and values once per byte of the key.
TOPK_PASSES, SORT_PASSES = 5, 8
FREE = {  # make no data, or only another view of it
    *("alias", "as_strided", "detach", "diagonal", "expand", "lift_fresh", "permute", "select", "slice", "split"),
    *("squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "_reshape_alias"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"),
}


class Operation(NamedTuple):
    """One launch or more."""

    name: str
    moved: int  # bytes
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


def moved(name: str, read: list[Tensor], made: list[Tensor], kwargs: dict[str, Any]) -> int:
    """Return the bytes an operation reads and writes in the GPU's memory."""
    if name == "_fused_adam_":  # weight and both moments are read and written, the gradient is read; if scaled, written
        weights = [each for each in read if each.numel() > 1][: len(read) // 5]
        return sum(map(size, weights)) * (7 + (kwargs.get("grad_scale") is not None))
    if name in ("_embedding_bag", "_embedding_bag_forward_only"):
        weight, index = read[:2]
        return index.numel() * weight.shape[1] * weight.element_size() + sum(map(size, [*read[1:], made[0]]))
    if name == "_embedding_bag_per_sample_weights_backward":
        gradient, weight, index = read[:3]
        return index.numel() * weight.shape[1] * weight.element_size() + sum(map(size, [gradient, *read[2:], *made]))
    if name in ("index", "index_select", "gather", "embedding"):  # of the source only what is picked
        return 2 * sum(map(size, made)) + sum(map(size, read[1:]))
    if name in ("index_add_", "index_put_", "scatter_", "scatter_add_", "scatter_reduce_", "index_add"):
        changed = read[-1] if read[-1].numel() > 1 else read[1]
        return 3 * size(changed) + sum(map(size, read[1:-1])) + (2 * size(read[0]) if name == "index_add" else 0)
    # our kernels; a row that is gathered counts as read each time, though the rows of a batch fit a GPU's cache
    if name == "decode":
        latent, _, _, weight = read
        return latent.numel() * weight.shape[1] * weight.element_size() + sum(map(size, [*read[:3], *made]))
    if name == "dots":
        token, _, rows, weight = read
        return token.numel() * weight.shape[1] * weight.element_size() + sum(map(size, [*read[:3], *made]))
    if name == "square_norms":
        return sum(map(size, [*read[:3], *read[4:], *made]))
    if name == "update":
        index, rows, moments, others = read[0], read[3], read[7:10], read[10:]
        gathered = index.numel() * rows.shape[1] * rows.element_size()
        return gathered + 2 * sum(map(size, moments)) + sum(map(size, others)) + sum(map(size, [*read[:3], *read[4:6]]))
    if name == "topk":
        return TOPK_PASSES * size(read[0]) + sum(map(size, made))
    if name in ("sort", "argsort"):
        return 2 * SORT_PASSES * sum(map(size, made))
    inplace = [each for each in made if any(each is one for one in read)]
    return sum(map(size, read)) + sum(map(size, made)) - (sum(map(size, inplace)) if name.startswith("fill") else 0)


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
        if name in ("mm", "addmm"):
            left, right = [each for each in read if each.ndim == 2][:2]
            flops, largest = 2 * left.numel() * right.shape[1], left
        dtype = str(largest.dtype).removeprefix("torch.")
        self.operations.append(Operation(name, moved(name, read, made, kwargs), flops, dtype, tuple(largest.shape)))
        return result

    def summary(self, setting: str) -> dict[str, Any]:
        """Return bytes, FLOP, launches, waits and the milliseconds that peak rates allow."""
        times = {}
        for gpu, bandwidth in BANDWIDTH.items():
            seconds = 0.0
            for each in self.operations:
                rate = RATES[each.dtype if each.dtype == "bfloat16" else "high" if setting != "highest" else setting]
                seconds += max(each.moved / bandwidth, each.flops / rate)
            times[gpu] = round(1e3 * seconds, 2)
        return {
            "gigabytes": round(sum(each.moved for each in self.operations) / 1e9, 2),
            "teraflop": round(sum(each.flops for each in self.operations) / 1e12, 3),
            "launches": len(self.operations),
            "waits": self.waits,
            "ms": times,
            "other_teraflop": sum(each.flops for each in self.operations if each.dtype != "bfloat16") / 1e12,
        }

    def table(self, above: float = 2e7) -> str:
        """Return the operations that move most, added up by name, dtype and shape."""
        total: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
        number: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
        for each in self.operations:
            total[each.name, each.dtype, each.shape] += each.moved
            number[each.name, each.dtype, each.shape] += 1
        return "\n".join(
            f"{number[of]:3} × {of[0]:44} {of[1]:9} {of[2]!s:22} {1e-9 * bytes_:7.3f} GB"
            for of, bytes_ in total.most_common()
            if bytes_ > above
        )


SECTIONS: dict[str, dict[str, Any]] = {
    "l1": {"mu": "auto", "target_l0": 100.0},
    "batchtopk": {"k": 100},
    "diff_sae": {"k": 100},
}


def step(kind: str, setting: str, case: str) -> Costs:
    """Take two training steps at full scale on the fake GPU; return the costs of the second.

    Cases: `alive`, `dead` (`DEAD` latents in the auxiliary loss), `kernels` and `deadkernels` (as `kernels: auto`),
    `logged` (metrics are computed, not read), and the mistakes that must be found: `item`, `cpu`, `zeros`. With `sharded`
    the step is that of one of `RANKS` processes, without what travels between them.
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
        print(seen.table() if "--table" in sys.argv else json.dumps({"case": case, **seen.summary(words[-2])}))


if __name__ == "__main__":
    main(step)
