"""A pretend GPU: tensors say cuda:0 or cuda:1 and compute on the CPU; mixed devices raise, waits are counted by line.

Import it before torch, in a process of its own, as stages.py does. Where a real GPU would make the host wait, the line
of tunediff that did it is counted in `WAITS`. A real GPU also has races, takes time, and sums in another order.
"""

import ctypes
import hashlib
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def load_device() -> None:
    """Compile the device (a few seconds, kept in the folder for temporary files) and load it."""
    assert "torch" not in sys.modules, "load the device before torch"
    torch_dir = Path(sysconfig.get_paths()["purelib"]) / "torch"
    source = Path(__file__).with_name("device.cpp")
    name = hashlib.sha256(source.read_bytes() + (torch_dir / "version.py").read_bytes()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"tunediff-device-{name}.so"
    if not library.exists():
        made, lib = tempfile.mkdtemp(), torch_dir / "lib"
        options = ["-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch_dir / 'include'}"]
        links = [f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10", "-ltorch_cpu"]
        subprocess.run(["g++", *options, source, *links, "-o", f"{made}/device.so"], check=True)
        Path(f"{made}/device.so").rename(library)
        Path(made).rmdir()
    ctypes.CDLL(str(library))


load_device()
import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

CPU = torch.device("cpu")
WAITS: Counter[str] = Counter()  # what made the host wait, and where
LAUNCHES: Counter[str] = Counter()  # operations on a device, by name
PLACES: set[str] = set()  # devices that held a tensor

WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
    "bincount",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
COPYING = {"_to_copy", "copy_", "_copy_from"}


class MixedDevicesError(RuntimeError):
    """Tensors of different devices in one operation."""


def site() -> str:
    """Return file and line of the innermost frame of tunediff."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if "/src/tunediff/" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.rsplit('/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def waits(what: str) -> None:
    """Count that the host waits here."""
    WAITS[f"{what} {site()}"] += 1


class OnCuda(torch.Tensor):
    """A tensor that says it is on a CUDA device; `inner` holds its values, on the CPU."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> "OnCuda":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **layout, device=device)
        made.inner = inner
        PLACES.add(str(device))
        return made

    # A module moves its parameters by swapping, where a tensor says what it wraps.
    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["inner"], self.device

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], device: torch.device, *_: Any) -> "OnCuda":
        return OnCuda(inner["inner"], device)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})

    def __repr__(self) -> str:
        return f"OnCuda({self.inner}, {self.device})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        waits("tolist")
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")


def _device(of: Any) -> torch.device | None:
    """Return a device with its number; None where none is said."""
    if of is None:
        return None
    device = torch.device(of)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _check(name: str, args: Any, tensors: list[torch.Tensor]) -> torch.device:
    """Return the one device of an operation's tensors; the CPU's scalars may go with any, its indices cost a wait."""
    on_device = [t for t in tensors if isinstance(t, OnCuda)]
    elsewhere = [t for t in tensors if not isinstance(t, OnCuda) and t.dim()]
    if name in INDEXING and isinstance(args[0], OnCuda) and elsewhere:
        waits("index from the host")
        elsewhere = []
    devices = {t.device for t in on_device}
    if len(devices) > 1 or elsewhere:
        shapes = [(str(t.device), tuple(t.shape)) for t in tensors]
        raise MixedDevicesError(f"{name} at {site()}: {shapes}")
    return devices.pop()


def _copied(args: Any, tensors: list[torch.Tensor], to: torch.device | None, non_blocking: bool) -> None:
    """Count a copy that the host waits for: all that is not asynchronous, from or to pinned memory."""
    source = tensors[-1]
    target = to or args[0].device
    if source.device == target:
        return
    host = args[0] if len(tensors) > 1 and not isinstance(args[0], OnCuda) else source
    pinned = isinstance(host, OnCuda) or host.is_pinned()  # between two devices no host memory is touched
    if not (non_blocking and pinned):
        waits("copy to the device" if target.type == "cuda" else "copy to the host")


def run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation on the values, and say of its results where they are."""
    name = operation._schema.name.split("::")[1]
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    on_device = any(isinstance(t, OnCuda) for t in tensors)
    asked = _device(kwargs.get("device"))
    if not on_device and (asked is None or asked.type == "cpu"):
        return operation(*args, **kwargs)
    LAUNCHES[name] += 1
    copies = name in COPYING
    if copies:
        place = asked or args[0].device
        flag = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
        _copied(args, tensors, asked if name == "_to_copy" else None, flag)
    else:
        place = _check(name, args, tensors) if on_device else asked
        place = asked or place
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != place.type:
        raise MixedDevicesError(f"{name} at {site()}: a generator of {generator.device} for a tensor of {place}")
    masks = args[1] if name in INDEXING else ()
    if name in WAITING or any(isinstance(t, torch.Tensor) and t.dtype in (torch.bool, torch.uint8) for t in masks):
        waits(name)
    plain_args, plain_kwargs = tree_map(lambda t: t.inner if isinstance(t, OnCuda) else t, (args, kwargs))
    if asked is not None:
        plain_kwargs["device"] = CPU
    plain_kwargs.pop("pin_memory", None)
    result = operation(*plain_args, **plain_kwargs)
    known = {id(t.inner): t for t in tensors if isinstance(t, OnCuda)} | {
        id(t): t for t in tensors if not isinstance(t, OnCuda)
    }
    if name == "_to_copy" and id(result) in known:
        result, known = result.clone(), {}

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return OnCuda(value, place) if place.type == "cuda" else value

    return tree_map(placed, result)


class Pretend(TorchDispatchMode):
    """Sees what makes tensors, too."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operation, args, kwargs or {})


class Event:
    """An event of a stream; nothing is ever to be waited for, but the host would."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        waits("event")


class Stream(Event):
    """A stream in which everything has happened."""

    def wait_stream(self, *_: Any) -> None:
        pass

    def wait_event(self, *_: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or Event()


def _in_mode(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    def run_thread(thread: threading.Thread) -> None:
        with Pretend():
            original(thread)

    return run_thread


def install() -> None:
    """Make torch say that it has two GPUs, in every thread from now on."""
    cuda: Any = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = cuda.is_initialized = cuda.is_bf16_supported = lambda *_: True
    cuda.device_count = lambda: 2
    cuda.current_device = lambda: 0
    cuda.Stream, cuda.Event = Stream, Event
    anything: Any = torch
    anything.Event = Event
    anything.Tensor.record_stream = lambda *_: None  # asks for a stream of torch's own
    cuda.stream = cuda.device = lambda *_: nullcontext()
    cuda.current_stream = cuda.default_stream = lambda *_: Stream()
    cuda.synchronize = lambda *_: waits("synchronize")
    cuda.empty_cache = cuda.reset_peak_memory_stats = cuda.set_device = lambda *_: None
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(x, device="cuda") is made here, then moved where we see it
    thread: Any = threading.Thread
    thread.run = _in_mode(thread.run)
    Pretend().__enter__()


install()
