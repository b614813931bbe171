"""Training of one dictionary, resumable: a checkpoint in a work folder while it trains, then a sealed crosscoder.

Every dictionary reads the same batches in the same order, a function of the data seed and the step alone.
"""

import importlib
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict
from itertools import chain, cycle, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tunediff.config.dictionaries import L0_TOLERANCE, DictionarySettings
from tunediff.config.settings import TrainingSettings
from tunediff.data.activations import STORAGE, ActivationBatch, ActivationStore
from tunediff.dictionaries import Dictionary, build
from tunediff.dictionaries.checkpoints import Checkpoints
from tunediff.dictionaries.crosscoder import Crosscoder, dictionary_inputs
from tunediff.dictionaries.fused import available, fuse
from tunediff.dictionaries.precision import precision
from tunediff.dictionaries.sharding import WHOLE, Shard
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import building, provenance, seal
from tunediff.pipeline.progress import Progress

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")

LOGGERS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}  # module, by the package's name
HISTORY = (  # columns of every history, so that those of different kinds line up; a kind's other metrics follow
    *("step", "tokens", "loss", "reconstruction", "sparsity", "auxiliary", "fve_base", "fve_chat", "l0"),
    *("dead_fraction", "mu", "threshold", "learning_rate", "tokens_per_second"),
)
PREFETCHED = 3  # batches waiting in memory
WRITTEN_BESIDE = ("cuda",)  # devices whose checkpoints are copied to the host, and written while training goes on
VALIDATION_BATCHES = 16
DEAD_WARNING = 0.5  # share of dead latents above which a dictionary carries a warning
TRIMMED_ABOVE = 5.0  # medians of the norm above which a token does not count in the mean


class Normalization(NamedTuple):
    """x^m = scale_m · (h^m − mean_m), of what a dictionary reads: base and chat, or their difference."""

    mean: Float[Tensor, "stream d_model"]  # float64; zeros unless mean_scale
    scale: Float[Tensor, "stream"]  # float64; ones where there is none

    def apply(self, x: Float[Tensor, "token stream d_model"]) -> Float[Tensor, "token stream d_model"]:
        """Return normalised inputs."""
        return (x - self.mean.to(x)).mul_(self.scale.to(x)[:, None])


def measure_normalization(
    store: ActivationStore, settings: TrainingSettings, reconstructs: str = "models"
) -> Normalization:
    """Compute mean and scale on the first `normalization_tokens` tokens of the training order, in float64.

    scale_m = √d / median_n ‖h^m − mean_m‖: the median norm becomes √d. The mean is over the tokens whose norm is at
    most `TRIMMED_ABOVE` medians. So a few massive activations, masked or not, hardly move either.
    """

    def batches() -> Iterator[Tensor]:
        count = 0
        for batch in store.batches(settings.batch_size, settings.seed, settings.pool_chunks, 0):
            yield dictionary_inputs(batch.activations.double(), reconstructs)
            count += len(batch.activations)
            if settings.normalization == "none" or count >= settings.normalization_tokens:
                return

    def median_norm(mean: Tensor) -> Tensor:
        # Into one block: with a list of small tensors the process grew by the size of a batch for every batch.
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


def prefetch(
    batches: Iterator[Item], prepare: Callable[[Item], Prepared], depth: int = PREFETCHED
) -> Generator[Prepared, None, None]:
    """Yield prepare(batch) for each batch, computed by one thread ahead of the reader; its errors are raised here."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def following() -> list[Prepared]:
        return [prepare(batch) for batch in islice(batches, 1)]

    try:
        ahead = deque(thread.submit(following) for _ in range(depth))
        while prepared := ahead.popleft().result():
            ahead.append(thread.submit(following))
            yield from prepared
    finally:
        thread.shutdown(cancel_futures=True)


class PinnedRing:
    """Pinned memory for the batches that `prefetch` reads ahead, used in turn; copied to the GPU beside its work."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        # One more than are read ahead: while a batch is copied, the place of the one before it is filled.
        self.slots = [torch.empty(shape, dtype=dtype).pin_memory() for _ in range(PREFETCHED + 1)]
        self.copied = [torch.cuda.Event() for _ in self.slots]
        self.stream, self.device = torch.cuda.Stream(device), device

    def free(self) -> Iterator[Tensor]:
        """Yield the places in turn, each when its last batch has been copied; for the thread that reads."""
        for slot, copied in cycle(zip(self.slots, self.copied, strict=True)):
            copied.synchronize()  # at once where nothing was recorded
            yield slot

    def copies(self, filled: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the batches on the device; `filled` are the places in turn, as they get full."""
        for slot, copied in zip(filled, cycle(self.copied), strict=False):
            with torch.cuda.stream(self.stream):
                batch = slot.to(self.device, non_blocking=True)
                copied.record()
            used = torch.cuda.current_stream(self.device)
            used.wait_event(copied)
            batch.record_stream(used)
            yield batch


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
    fused, divisor = dictionary.fused, None
    if dictionary.clip_norm is not None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in dictionary.parameters() if p.grad is not None])
        if fused is not None:
            norm = (norm.square() + fused.square_norm()).sqrt()
        assert dictionary.decoder_bias.grad is not None
        norm = dictionary.shard.norm(norm, shared=dictionary.decoder_bias.grad)
        divisor = (norm / dictionary.clip_norm).clamp(min=1.0)
        if optimizer.defaults["fused"]:
            # The fused update divides by grad_scale as it reads: clipping without another pass over the gradients.
            optimizer.grad_scale = divisor  # type: ignore[attr-defined]
            optimizer.found_inf = torch.zeros((), device=norm.device)  # type: ignore[attr-defined]
        else:
            torch.nn.utils.clip_grads_with_norm_(dictionary.parameters(), dictionary.clip_norm, norm)
    if fused is not None:
        fused.update(torch.ones((), device=x.device) if divisor is None else divisor, dictionary.steps_taken)
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
            f"training.log_to: {settings.log_to} is not installed; pip install {settings.log_to}, or set log_to: none"
        ) from error


def _on_host(state: Any) -> Any:
    """Return a copy of a state's dictionaries, lists and tensors, in the memory of the host."""
    if isinstance(state, Tensor):
        return state.to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: _on_host(value) for name, value in state.items()}
    return [_on_host(value) for value in state] if isinstance(state, list) else state


class _Run:
    """One dictionary on its way: training object, optimiser, position and history, from the checkpoint if there is one.

    Its work folder holds the checkpoint, the history of a training that missed its L0, and the files of a logger. Where
    several processes train, each has a run like this with its own latents; the first one writes what is of all.
    """

    def __init__(
        self,
        name: str,
        settings: DictionarySettings,
        seed: int,
        store: ActivationStore,
        training: TrainingSettings,
        folder: Path,
        shard: Shard = WHOLE,
    ) -> None:
        self.name, self.settings, self.store, self.training, self.shard = name, settings, store, training, shard
        self.folder, self.saved, self.started = folder, Checkpoints(folder, shard), time.time()
        self.step, self.history = 0, list[dict[str, float]]()
        self.logged_at = (time.perf_counter(), 0)
        self._logger: Any = _logger(training) if shard.rank == 0 else None
        self._writer: Any = None
        self._checkpoints = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        state = self.saved.load()
        self._written: Path | None = None  # the last checkpoint of this run
        if state is None:
            measured = shard.of_first(lambda: measure_normalization(store, training, settings.reconstructs))
            self.normalization = Normalization(*measured)
        else:
            self.normalization = Normalization(state["mean"].clone(), state["scale"].clone())
        d_model = self.normalization.mean.shape[1]
        self.dictionary = build(settings, d_model, seed, training.steps, training.warmup_steps, shard)
        self.dictionary.to(training.device)
        self.optimizer = make_optimizer(self.dictionary, training)
        if state is not None:
            state.restore(self.dictionary, self.optimizer)
            self.step, self.history = state["step"], list(state["history"])
            torch.set_rng_state(state["rng"])
        changed = self.dictionary.mask is not None or self.dictionary.tied is not None
        if (
            training.kernels == "auto"
            and self.dictionary.sparse_gradients
            and not changed
            and available(training.device)
        ):
            weights = dict(self.dictionary.named_parameters())
            self.dictionary.fused = fuse(weights, self.optimizer, training.matmul_precision == "bf16")

    def save(self) -> None:
        """Write the checkpoint whole or not at all, and only from finite weights; on CUDA while training goes on."""
        self._require_finite()
        state = {
            "latents": [(own.start, own.stop) for own in self.dictionary.own],
            "dictionary": self.dictionary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,  # the learning rate and the data position are functions of it
            "history": list(self.history),
            "rng": torch.get_rng_state(),
            **self.normalization._asdict(),
        }
        self._wait_for_checkpoint()
        if self._written is not None:
            self.saved.drop(self._written, self.step)
        self._written = self.saved.place(self.step)
        if torch.device(self.training.device).type in WRITTEN_BESIDE:
            self._writing = self._checkpoints.submit(self.saved.write, _on_host(state))
        else:
            self.saved.write(state)

    def _wait_for_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written, if one is; what it failed with is raised here."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _require_finite(self) -> None:
        """Raise where a weight, or a number such as μ or θ that the method carries along, is not finite."""
        tensors = {**dict(self.dictionary.named_parameters()), **self.dictionary.facts()}
        for name, value in tensors.items():
            if not bool(torch.isfinite(torch.as_tensor(value)).all()):
                raise TunediffError(
                    f"{self.name}: {name} is not finite at step {self.step}; lower training.learning_rate, or set "
                    "training.normalization: mean_scale"
                )

    def advance(self, x: Tensor, bar: Progress) -> None:
        """Take the step of this batch; log and checkpoint when due."""
        dictionary, optimizer, training = self.dictionary, self.optimizer, self.training
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

    def _log(self, loss: Tensor, metrics: dict[str, Tensor], rate: float, bar: Progress) -> None:
        names = list(metrics)
        values = torch.stack([loss.double(), *(metrics[name].double() for name in names)]).tolist()
        if not math.isfinite(values[0]):
            raise TunediffError(
                f"{self.name}: the loss is {values[0]} at step {self.step}; lower training.learning_rate or set "
                "training.normalization: mean_scale"
            )
        every = torch.tensor(self.shard.every(values))
        if not torch.allclose(every, every[:1], rtol=1e-5, equal_nan=True):
            raise TunediffError(
                f"{self.name}: the processes of this training disagree at step {self.step} on one of "
                f"{', '.join(['loss', *names])}; a loss term that is a sum over latents must say so, as adds_latents"
            )
        row = dict.fromkeys(HISTORY, math.nan) | dict(zip(["loss", *names], values, strict=True))
        now, (before, step) = time.perf_counter(), self.logged_at
        batch = self.training.batch_size
        row |= {"step": self.step, "tokens": self.step * batch, "learning_rate": rate}
        row["tokens_per_second"] = (self.step - step) * batch / max(now - before, 1e-9)
        self.logged_at = (now, self.step)
        self.history.append(row)
        bar.note = f"loss {row['loss']:.3g} L0 {row['l0']:.1f}"
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

    def _inputs(self, count: int) -> Generator[Tensor, None, None]:
        """Yield the normalised inputs of the next steps on the device, read ahead of them.

        On CUDA batches travel as they are stored, and are normalised there.
        """
        training, device = self.training, torch.device(self.training.device)
        place = Normalization(*(values.to(device) for values in self.normalization))
        shape = (training.batch_size, 2, self.normalization.mean.shape[1])

        def normalised(activations: Tensor) -> Tensor:
            return place.apply(dictionary_inputs(activations.float(), self.settings.reconstructs))

        def read(into: Iterator[Tensor]) -> Iterator[ActivationBatch]:
            order = (training.batch_size, training.seed, training.pool_chunks, self.step)
            return islice(self.store.batches(*order, into=into), count)

        if device.type == "cuda":
            ring = PinnedRing(shape, STORAGE[self.store.dtype].torch, device)
            with closing(prefetch(read(ring.free()), lambda batch: batch.activations)) as feed:
                yield from map(normalised, ring.copies(feed))
        else:
            # One place is enough: what is normalised is new.
            with closing(
                prefetch(read(repeat(torch.empty(shape))), lambda batch: normalised(batch.activations))
            ) as feed:
                yield from feed

    def train(self) -> None:
        """Take all steps that are left."""
        training, size, left = self.training, self.training.batch_size, self.training.steps - self.step
        feed = self._inputs(left)
        self.logged_at = (time.perf_counter(), self.step)
        total, done = training.steps * size, self.step * size
        try:
            with Progress(total, self.name, "tok", done) as bar:
                for _, x in zip(range(left), feed, strict=True):
                    self.advance(x, bar)
                    bar.update(len(x))
            self._wait_for_checkpoint()
        finally:
            feed.close()
            self.close()
            self._checkpoints.shutdown()

    def finish(self, out: Path, key: str, facts: Mapping[str, Any]) -> None:
        """Write the inference object at `out` and the history beside it, seal them, and drop the checkpoint.

        Raises
        ------
        TunediffError
            A weight is not finite, or the L0 that was asked for is missed: then the history stays in the work folder.
        """
        dictionary, normalization = self.dictionary, self.normalization
        self._require_finite()
        columns = list(dict.fromkeys([*HISTORY, *chain.from_iterable(self.history)]))
        history = pd.DataFrame(self.history, columns=columns).astype({"step": "int64", "tokens": "int64"})
        kept = self.folder / "history.parquet"
        if self.shard.rank == 0:
            with building(kept) as partial:
                history.to_parquet(partial, index=False)
        final = self._measure()
        dictionary.release()
        dead = float(dictionary.dead_fraction())
        config: dict[str, Any] = {
            **facts,
            "kind": self.settings.kind,
            "seed": dictionary.seed,
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
        if len(dictionary.groups) > 1:
            config["groups"] = [group._asdict() for group in dictionary.groups]
        crosscoder = self._gathered(
            Crosscoder.from_training(dictionary, normalization.mean, normalization.scale, config)
        )
        if crosscoder is None:
            return
        with building(out.with_name(f"{out.name}.history.parquet")) as partial:
            history.to_parquet(partial, index=False)
        with building(out) as partial:
            crosscoder.save(partial)
        made = provenance(self.started, self.training.device, processes=self.shard.ranks)
        seal(out, "crosscoder", key, crosscoder.config, made, beside=[".history.parquet"])
        self.saved.remove()
        kept.unlink()
        with suppress(OSError):  # a logger may have left files
            self.folder.rmdir()

    def _gathered(self, part: Crosscoder) -> Crosscoder | None:
        """Return the crosscoder of all latents in the first process, from the parts of all; None in the others."""
        if self.shard.ranks == 1:
            return part
        parts = [self.folder / f"part-{rank}" for rank in range(self.shard.ranks)]
        part.save(parts[self.shard.rank])
        own = self.shard.every(self.dictionary.own)
        if self.shard.rank > 0:
            return None
        whole = Crosscoder.from_parts(list(zip(parts, own, strict=True)), part.config)
        for each in parts:
            shutil.rmtree(each)
        return whole

    def _measure(self) -> dict[str, float | None]:
        """Return what `Dictionary.evaluate` says of the final weights, on the batches that would come next."""
        training, rows = self.training, []
        batches = self.store.batches(training.batch_size, training.seed, training.pool_chunks, training.steps)
        for batch in islice(batches, VALIDATION_BATCHES):
            x = dictionary_inputs(batch.activations.to(training.device), self.settings.reconstructs)
            x = self.normalization.apply(x)
            rows.append({name: float(value) for name, value in self.dictionary.evaluate(x).items()})
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        wanted = self.dictionary.target_l0
        if wanted is not None and not abs(means["l0"] / wanted - 1) <= L0_TOLERANCE:
            stated = ", ".join(f"{name} {value:.4g}" for name, value in self.dictionary.facts().items())
            raise TunediffError(
                f"{self.name}: L0 is {means['l0']:.1f} at the end of training, {wanted:g} was asked ({stated}), so it "
                f"is not published (history: {self.folder / 'history.parquet'}); raise training.steps or "
                "training.learning_rate, or ask for another L0"
            )
        return {**means, "target_l0": wanted, "tokens": len(rows) * training.batch_size}


def train(
    settings: DictionarySettings,
    seed: int,
    store: ActivationStore,
    training: TrainingSettings,
    out: Path,
    work_dir: Path,
    *,
    key: str,
    facts: Mapping[str, Any] | None = None,
    shard: Shard = WHOLE,
) -> None:
    """Train a dictionary, from its checkpoint in `work_dir` if there is one; write it at `out` and seal it.

    `out` is a folder NAME; NAME.history.parquet comes beside it. `facts` (such as the layer) go into config.json. Of a
    damaged checkpoint a line is printed, and training starts from the one before it or from the beginning. Several
    processes (`shard`) call this together; each trains its own latents, and the first one writes.

    Raises
    ------
    TunediffError
        A name with a dot, a missing logger package, a loss or a weight that is not finite, an L0 missed by more than
        10 %, a full disk.
    """
    if "." in out.name:
        raise TunediffError(f"{out.name}: a dictionary's name may hold no dot; rename it in the config")
    if training.device.startswith("cuda") and not torch.cuda.is_available():
        raise TunediffError(
            "training.device: is 'cuda' but torch sees no GPU; set it to cpu, or install torch for CUDA"
        )
    run = _Run(out.name, settings, seed, store, training, work_dir, shard)
    with precision(training.matmul_precision):
        run.train()
        run.finish(out, key, facts or {})
