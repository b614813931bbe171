"""Training: several dictionaries from one pass over the same batches, each resumable and kept under its own key.

work_dir/KEY/ holds one dictionary: checkpoint.pt while it trains; crosscoder/ (sealed) and history.parquet once it is
finished. out_dir/NAME/ and out_dir/NAME.history.parquet are copies, so changing one dictionary retrains that one.
"""

import importlib
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from tunediff.artifacts import building, provenance, seal
from tunediff.crosscoder import Crosscoder
from tunediff.dictionaries import Dictionary, DictionarySettings, build, dictionary_settings
from tunediff.errors import TunediffError
from tunediff.finished import is_finished, publish

NORMALIZATIONS = ("none", "scale", "mean_scale")
PRECISIONS = ("highest", "high", "bf16")
LOGGERS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
HISTORY = (
    *("step", "tokens", "loss", "reconstruction", "sparsity", "auxiliary", "fve_base", "fve_chat", "l0"),
    *("dead_fraction", "mu", "threshold", "learning_rate", "tokens_per_second"),
)
PREFETCHED = 3  # batches waiting in memory
VALIDATION_BATCHES = 16
L0_TOLERANCE = 0.1  # relative; a dictionary further from the L0 it was asked for is not published
DEAD_WARNING = 0.5  # share of dead latents above which a dictionary carries a warning
TRIMMED_ABOVE = 5.0  # medians of the norm above which a token does not count in the mean


class Batch(Protocol):
    """What training reads of an `ActivationBatch`."""

    @property
    def activations(self) -> Float[Tensor, "token model d_model"]:
        """Raw activations, float32, on the CPU."""
        ...


class Store(Protocol):
    """What training reads of an `ActivationStore`: batches that are a pure function of (seed, step)."""

    def batches(self, batch_size: int, seed: int, pool_chunks: int, start_step: int = 0) -> Iterator[Any]:
        """Yield `Batch`es without end, from `start_step` on."""
        ...


@dataclass(frozen=True)
class TrainingSettings:
    """Config section `training`."""

    batch_size: int = 2048  # tokens per step
    steps: int = 97_656  # steps in all
    learning_rate: float = 1e-4  # of Adam, after the warm-up
    warmup_steps: int = 1000  # linear warm-up; constant afterwards
    beta1: float = 0.9  # decay of Adam's first moment
    beta2: float = 0.999  # decay of Adam's second moment
    normalization: str = "mean_scale"  # none; scale: one factor per model to median norm √d; mean_scale: centred first
    normalization_tokens: int = 1_000_000  # train tokens that mean and scale are computed on
    pool_chunks: int = 16  # chunks of the activation store shuffled together
    seed: int = 42  # of the data order
    checkpoint_every: int = 1000  # steps between checkpoints
    log_every: int = 100  # steps between rows of the history
    device: str = "cpu"  # cpu or cuda
    matmul_precision: str = "highest"  # highest: float32; high: TF32; bf16: encoder GEMM in bfloat16
    log_to: str = "none"  # none, tensorboard or wandb

    def __post_init__(self) -> None:
        for key in ("batch_size", "steps", "normalization_tokens", "pool_chunks", "checkpoint_every", "log_every"):
            self._require(key, getattr(self, key) >= 1, "1 or more")
        self._require("learning_rate", self.learning_rate > 0, "positive")
        self._require("warmup_steps", self.warmup_steps >= 0, "0 or more")
        self._require("beta1", 0 <= self.beta1 < 1, "in [0, 1)")
        self._require("beta2", 0 <= self.beta2 < 1, "in [0, 1)")
        self._require("normalization", self.normalization in NORMALIZATIONS, f"one of {NORMALIZATIONS}")
        self._require("matmul_precision", self.matmul_precision in PRECISIONS, f"one of {PRECISIONS}")
        self._require("log_to", self.log_to == "none" or self.log_to in LOGGERS, f"one of none, {', '.join(LOGGERS)}")

    @classmethod
    def from_config(cls, section: Mapping[str, Any], seed: int, device: str) -> Self:
        """Make the settings of config section `training`; its `seeds` belong to the dictionaries."""
        return cls(**{key: value for key, value in section.items() if key != "seeds"}, seed=seed, device=device)

    def _require(self, key: str, condition: bool, wanted: str) -> None:
        if not condition:
            raise TunediffError(f"training.{key}: is {getattr(self, key)!r}, must be {wanted}; correct the config")


class Normalization(NamedTuple):
    """x^m = scale_m · (h^m − mean_m)."""

    mean: Float[Tensor, "model d_model"]  # float64; zeros unless mean_scale
    scale: Float[Tensor, "model"]  # float64; ones where there is none

    def apply(self, x: Float[Tensor, "token model d_model"]) -> Float[Tensor, "token model d_model"]:
        """Return normalised activations."""
        return (x - self.mean.to(x)) * self.scale.to(x)[:, None]


def measure_normalization(store: Store, settings: TrainingSettings) -> Normalization:
    """Compute mean and scale on the first `normalization_tokens` tokens of the training order, in float64.

    scale_m = √d / median_n ‖h^m − mean_m‖: the median norm becomes √d. The mean is over the tokens whose norm is at
    most `TRIMMED_ABOVE` medians. So a few massive activations, masked or not, hardly move either.
    """

    def batches() -> Iterator[Tensor]:
        count = 0
        for batch in store.batches(settings.batch_size, settings.seed, settings.pool_chunks, 0):
            yield batch.activations.double()
            count += len(batch.activations)
            if settings.normalization == "none" or count >= settings.normalization_tokens:
                return

    def median_norm(mean: Tensor) -> Tensor:
        # Into one block: small tensors that outlive large ones keep the heap from being used again (10 GB were).
        norms = mean.new_empty(settings.normalization_tokens + settings.batch_size, len(mean))
        count = 0
        for x in batches():
            torch.linalg.vector_norm(x - mean, dim=2, out=norms[count : count + len(x)])
            count += len(x)
        return norms[:count].median(dim=0).values

    first = next(batches(), None)
    if first is None:
        raise TunediffError("training: the activation store gave no batch; harvest more tokens or lower batch_size")
    mean, scale = torch.zeros_like(first[0]), torch.ones_like(first[0, :, 0])
    if settings.normalization == "none":
        return Normalization(mean, scale)
    median = median_norm(mean)
    if settings.normalization == "mean_scale":
        count = torch.zeros_like(scale)
        for x in batches():
            kept = (torch.linalg.vector_norm(x, dim=2) <= TRIMMED_ABOVE * median).double()
            mean += torch.einsum("nm,nmd->md", kept, x)
            count += kept.sum(dim=0)
        mean /= count[:, None]
        median = median_norm(mean)
    if not bool(torch.isfinite(mean).all() and torch.isfinite(median).all()):
        raise TunediffError("training: the activation store holds values that are not finite; harvest it again")
    return Normalization(mean, math.sqrt(first.shape[2]) / median)


def prefetch(batches: Iterator[Any], prepare: Callable[[Any], Tensor], depth: int = PREFETCHED) -> Iterator[Tensor]:
    """Yield prepare(batch) for each batch, computed by one thread ahead of the reader; its errors are raised here."""
    ready: queue.Queue[tuple[Tensor | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[Tensor | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                if stop.is_set():
                    return
                put((prepare(batch), None))
            put((None, None))
        except BaseException as error:  # handed to the reader, whatever it is
            put((None, error))

    thread = threading.Thread(target=work, daemon=True, name="batches")
    thread.start()
    try:
        while True:
            tensor, error = ready.get()
            if error is not None:
                raise error
            if tensor is None:
                return
            yield tensor
    finally:
        stop.set()
        thread.join()


def make_optimizer(dictionary: Dictionary, settings: TrainingSettings) -> torch.optim.Adam:
    """Return Adam, fused where the device has it, without weight decay; one group per parameter."""
    fused = settings.device.split(":")[0] in ("cpu", "cuda")
    betas = (settings.beta1, settings.beta2)
    groups = [
        {"params": [parameter], "factor": dictionary.learning_rate_factors.get(name, 1.0)}
        for name, parameter in dictionary.named_parameters()
    ]
    return torch.optim.Adam(groups, lr=settings.learning_rate, betas=betas, fused=fused)


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step: linear from learning_rate / warmup_steps, then constant."""
    return settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))


def optimizer_step(
    dictionary: Dictionary, optimizer: torch.optim.Adam, x: Tensor, measure: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take one training step on normalised activations; return loss and metrics, on the device."""
    result = dictionary.step(x, measure)
    optimizer.zero_grad(set_to_none=True)
    result.loss.backward()
    if dictionary.clip_norm is not None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in dictionary.parameters() if p.grad is not None])
        if optimizer.defaults["fused"]:
            # The fused update divides by grad_scale as it reads: clipping without another pass over the gradients.
            optimizer.grad_scale = (norm / dictionary.clip_norm).clamp(min=1.0)  # type: ignore[attr-defined]
            optimizer.found_inf = torch.zeros((), device=norm.device)  # type: ignore[attr-defined]
        else:
            torch.nn.utils.clip_grads_with_norm_(dictionary.parameters(), dictionary.clip_norm, norm)
    optimizer.step()
    return result.loss.detach(), result.metrics


def _logger(settings: TrainingSettings) -> Any:
    """Import the configured logger, before any work is done."""
    if settings.log_to == "none":
        return None
    try:
        return importlib.import_module(LOGGERS[settings.log_to])
    except ImportError as error:
        raise TunediffError(
            f"training.log_to: {settings.log_to} is not installed; pip install {PACKAGES[settings.log_to]}, "
            "or set log_to: none"
        ) from error


class _Run:
    """One dictionary on its way: training object, optimiser, position and history."""

    def __init__(
        self, name: str, settings: DictionarySettings, seed: int, training: TrainingSettings, folder: Path, logger: Any
    ) -> None:
        self.name, self.settings, self.seed, self.training = name, settings, seed, training
        self.folder, self.started, self.step = folder, time.time(), 0
        self.history: list[dict[str, float]] = []
        self.normalization: Normalization | None = None
        self.dictionary: Dictionary | None = None
        self.optimizer: torch.optim.Adam | None = None
        self.logged_at = (time.perf_counter(), 0)
        self._logger = logger
        self._writer: Any = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def load(self) -> None:
        """Continue from the checkpoint, if there is one."""
        if not self.checkpoint.is_file():
            return
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            raise TunediffError(
                f"{self.checkpoint}: not a readable checkpoint ({type(error).__name__}); delete it and run again"
            ) from error
        self.normalization = Normalization(state["mean"], state["scale"])
        self.begin(state["mean"].shape[1])
        assert self.dictionary is not None and self.optimizer is not None
        self.dictionary.load_state_dict(state["dictionary"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]
        torch.set_rng_state(state["rng"])

    def begin(self, d_model: int) -> None:
        """Make the training object and its optimiser."""
        training = self.training
        self.dictionary = build(self.settings, d_model, self.seed, training.steps, training.warmup_steps)
        self.dictionary.to(training.device)
        if training.matmul_precision == "bf16":
            self.dictionary.gemm_dtype = torch.bfloat16
        self.optimizer = make_optimizer(self.dictionary, training)

    def save(self) -> None:
        """Write the checkpoint whole or not at all, and only from finite weights."""
        assert self.dictionary is not None and self.optimizer is not None and self.normalization is not None
        self._require_finite()
        state = {
            "dictionary": self.dictionary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,  # the learning rate and the data position are functions of it
            "history": self.history,
            "mean": self.normalization.mean,
            "scale": self.normalization.scale,
            "rng": torch.get_rng_state(),
        }
        with building(self.checkpoint) as partial:
            torch.save(state, partial)

    def _require_finite(self) -> None:
        """Raise where a weight, or a number such as μ or θ that the method carries along, is not finite."""
        assert self.dictionary is not None
        tensors = {**dict(self.dictionary.named_parameters()), **self.dictionary.facts()}
        for name, value in tensors.items():
            if not bool(torch.isfinite(torch.as_tensor(value)).all()):
                raise TunediffError(
                    f"{self.name}: {name} is not finite at step {self.step}; lower training.learning_rate, or set "
                    "training.normalization: mean_scale"
                )

    def advance(self, x: Tensor, bar: "tqdm[Any]") -> None:
        """Take the step of this batch; log and checkpoint when due."""
        dictionary, optimizer, training = self.dictionary, self.optimizer, self.training
        assert dictionary is not None and optimizer is not None
        if self.step == 0:
            dictionary.prepare(x)
        rate = learning_rate(self.step, training)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.step += 1
        logged = self.step % training.log_every == 0 or self.step == training.steps
        loss, metrics = optimizer_step(dictionary, optimizer, x, logged)
        if logged:
            self._log(loss, metrics, rate, bar)
        if self.step % training.checkpoint_every == 0 and self.step < training.steps:
            self.save()

    def _log(self, loss: Tensor, metrics: dict[str, Tensor], rate: float, bar: "tqdm[Any]") -> None:
        names = list(metrics)
        values = torch.stack([loss.double(), *(metrics[name].double() for name in names)]).tolist()
        if not math.isfinite(values[0]):
            raise TunediffError(
                f"{self.name}: the loss is {values[0]} at step {self.step}; lower training.learning_rate or set "
                "training.normalization: mean_scale"
            )
        row = dict.fromkeys(HISTORY, math.nan) | dict(zip(["loss", *names], values, strict=True))
        now, (before, step) = time.perf_counter(), self.logged_at
        batch = self.training.batch_size
        row |= {"step": self.step, "tokens": self.step * batch, "learning_rate": rate}
        row["tokens_per_second"] = (self.step - step) * batch / max(now - before, 1e-9)
        self.logged_at = (now, self.step)
        self.history.append(row)
        bar.set_postfix({self.name: f"loss {row['loss']:.3g} L0 {row['l0']:.1f}"}, refresh=False)
        if self._logger is not None:
            self._report(row)

    def _report(self, row: dict[str, float]) -> None:
        numbers = {name: value for name, value in row.items() if not math.isnan(value)}
        if self.training.log_to == "tensorboard":
            self._writer = self._writer or self._logger.SummaryWriter(str(self.folder / "tensorboard"))
            for name, value in numbers.items():
                self._writer.add_scalar(f"{self.name}/{name}", value, self.step)
        else:
            self._writer = self._writer or self._logger.init(
                project="tunediff", name=self.name, id=self.folder.name, resume="allow", reinit="create_new"
            )
            self._writer.log(numbers, step=self.step)

    def close(self) -> None:
        """Close the logger, if one was opened."""
        if self._writer is not None:
            self._writer.close() if self.training.log_to == "tensorboard" else self._writer.finish()
            self._writer = None

    def finish(self, key: str, facts: Mapping[str, Any], store: Store) -> None:
        """Keep the inference object and the history under the key, then drop the checkpoint.

        Raises
        ------
        TunediffError
            A weight is not finite, or the L0 that was asked for is missed: then nothing is kept.
        """
        dictionary, normalization = self.dictionary, self.normalization
        assert dictionary is not None and normalization is not None
        self._require_finite()
        final = self._measure(store)
        dictionary.release()
        dead = float(dictionary.dead_fraction())
        config: dict[str, Any] = {
            **facts,
            "kind": self.settings.kind,
            "seed": self.seed,
            **dictionary.facts(),
            "settings": asdict(self.settings),
            "steps": self.step,
            "tokens": self.step * self.training.batch_size,
            "data_seed": self.training.seed,
            "normalization": {
                "kind": self.training.normalization,
                "tokens": self.training.normalization_tokens,
                "scale": normalization.scale.tolist(),
                "mean_norm": torch.linalg.vector_norm(normalization.mean, dim=1).tolist(),
            },
            "final": final,
            "dead_fraction": dead,
            "warnings": [f"{dead:.0%} of the latents are dead at the end of training"] if dead > DEAD_WARNING else [],
        }
        crosscoder = Crosscoder.from_training(dictionary, normalization.mean, normalization.scale, config)
        with building(self.folder / "history.parquet") as partial:
            pd.DataFrame(self.history, columns=list(HISTORY)).astype({"step": "int64", "tokens": "int64"}).to_parquet(
                partial, index=False
            )
        with building(self.folder / "crosscoder") as partial:
            crosscoder.save(partial)
        record = provenance(self.started, self.training.device)
        seal(self.folder / "crosscoder", "crosscoder", key, crosscoder.config, record)
        self.checkpoint.unlink(missing_ok=True)
        self.dictionary = self.optimizer = None

    def _measure(self, store: Store) -> dict[str, float | None]:
        """Return FVE and L0 of the final weights, at the inference threshold, on the batches that would come next."""
        assert self.dictionary is not None and self.normalization is not None
        training, rows = self.training, []
        batches = store.batches(training.batch_size, training.seed, training.pool_chunks, training.steps)
        for batch in islice(batches, VALIDATION_BATCHES):
            x = self.normalization.apply(batch.activations.to(training.device))
            rows.append({name: float(value) for name, value in self.dictionary.evaluate(x).items()})
        means = {name: sum(row[name] for row in rows) / len(rows) for name in ("fve_base", "fve_chat", "l0")}
        wanted = self.dictionary.target_l0
        if wanted is not None and not abs(means["l0"] / wanted - 1) <= L0_TOLERANCE:
            stated = ", ".join(f"{name} {value:.4g}" for name, value in self.dictionary.facts().items())
            raise TunediffError(
                f"{self.name}: L0 is {means['l0']:.1f} at the end of training, {wanted:g} was asked ({stated}), so it "
                "is not published; raise training.steps or training.learning_rate, or ask for another L0"
            )
        return {**means, "target_l0": wanted, "tokens": len(rows) * training.batch_size}


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "high" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def train(
    dictionaries: Mapping[str, tuple[DictionarySettings | Mapping[str, Any], int]],
    store: Store,
    settings: TrainingSettings,
    out_dir: Path | None,
    work_dir: Path,
    keys: Mapping[str, str],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Train every dictionary that is not finished, from one pass over the batches; publish all of them in `out_dir`.

    All see the same tokens in the same order. `dictionaries` maps a name to (settings or their config section, seed),
    `keys` a name to the content key of that dictionary alone; `facts` (such as the layer) go into every config.json.
    With `out_dir` None they stay in work_dir/KEY. Resumed runs of different positions start at the earliest; those
    ahead skip the batches they have seen.

    Raises
    ------
    TunediffError
        A setting, a missing logger package, a damaged checkpoint, a loss or a weight that is not finite, an L0 missed
        by more than 10 % (the other dictionaries are finished and kept first), a full disk.
    """
    logger = _logger(settings)
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise TunediffError(
            "training.device: is 'cuda' but torch sees no GPU; set it to cpu, or install torch for CUDA"
        )
    pending: dict[str, _Run] = {}  # by key: equal settings under two names train once
    for name, (section, seed) in dictionaries.items():
        folder, key = work_dir / keys[name], keys[name]
        checked = dictionary_settings(section, name) if isinstance(section, Mapping) else section
        if is_finished(folder, key):
            print(f"{name}: finished before, kept in {folder}", file=sys.stderr)
        elif key not in pending:
            pending[key] = _Run(name, checked, seed, settings, folder, logger)
    if pending:
        with _matmul_precision(settings.matmul_precision):
            for run in pending.values():
                run.load()
            _train_runs(list(pending.values()), store, settings)
            missed = []
            for key, run in pending.items():  # what succeeded is kept, whatever the others did
                try:
                    run.finish(key, facts or {}, store)
                except TunediffError as error:
                    missed.append(str(error))
            if missed:
                raise TunediffError("; ".join(missed))
    if out_dir is not None:
        for name in dictionaries:
            publish(name, work_dir / keys[name], keys[name], out_dir)


def _train_runs(runs: list[_Run], store: Store, settings: TrainingSettings) -> None:
    saved = [run.normalization for run in runs if run.normalization is not None]
    normalization = saved[0] if saved else measure_normalization(store, settings)
    for run in runs:
        run.normalization = run.normalization or normalization
        if run.dictionary is None:
            run.begin(normalization.mean.shape[1])
    start = min(run.step for run in runs)
    mean, scale = normalization.mean.float(), normalization.scale.float()
    device = torch.device(settings.device)

    def prepare(batch: Batch) -> Tensor:
        x = (batch.activations.float() - mean) * scale[:, None]
        return x.pin_memory() if device.type == "cuda" else x

    batches = store.batches(settings.batch_size, settings.seed, settings.pool_chunks, start)
    steps = range(start, settings.steps)
    feed = prefetch(islice(batches, len(steps)), prepare)
    for run in runs:
        run.logged_at = (time.perf_counter(), run.step)
    size = settings.batch_size
    bar: tqdm[Any] = tqdm(
        total=settings.steps * size,
        initial=start * size,
        unit=" tokens",
        unit_scale=True,
        desc="training",
        mininterval=5,
        file=sys.stderr,
    )
    try:
        with bar:
            for step, x in zip(steps, feed, strict=True):
                x = x.to(device, non_blocking=True)
                for run in runs:
                    if run.step == step:
                        run.advance(x, bar)
                bar.update(len(x))
    finally:
        feed.close()  # type: ignore[attr-defined]
        for run in runs:
            run.close()
