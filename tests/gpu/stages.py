"""Whole stages of a tiny pair, on the CPU and on the pretend GPU; what differs, and where the host waits, as JSON.

    python stages.py FOLDER

Each stage on the GPU reads what the stages before it made on the CPU, so that a difference is that stage's own.
"""

import pretend  # isort: skip  (it loads the device before torch)

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from analysis_fixtures import token_store
from helpers import save_pair
from tunediff.config.dictionaries import BatchTopKSettings, DictionarySettings, L1Settings
from tunediff.config.settings import (
    CausalSettings,
    ConversationSettings,
    EvaluationSettings,
    HarvestSettings,
    LatentSettings,
    TrainingSettings,
)
from tunediff.data.activations import ActivationStore
from tunediff.data.conversations import build_conversations
from tunediff.data.harvest import Wanted, harvest
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries import training as training_module
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.training import train
from tunediff.interventions.kl import build_kl
from tunediff.latents import scaling
from tunediff.latents.evaluation import build_evaluation
from tunediff.latents.held_out import Reconstruction
from tunediff.latents.measure import build_table
from tunediff.latents.seeds import build_matches, directions
from tunediff.latents.table import LatentTable
from tunediff.latents.twins import TwinSettings
from tunediff.models.pair import PairInfo, load_pair, prepare_pair

GPU = "cuda:1"  # not the first
STORED = HarvestSettings(part_tokens=256, shard_tokens=128, chunk_tokens=16, batch_tokens=256, dtype="float32")
TRAINING = TrainingSettings(
    kernels="off",  # as for `scaling.available`: Triton knows real GPUs only; test_kernels.py has its interpreter
    **{"batch_size": 32, "steps": 12, "learning_rate": 3e-3, "warmup_steps": 2, "normalization_tokens": 256},
    **{"pool_chunks": 4, "checkpoint_every": 4, "log_every": 4},
)
LATENTS = LatentSettings(min_count=2, blocks=8, bootstrap_samples=100)
DICTIONARIES: dict[str, tuple[DictionarySettings, int]] = {
    "l1-seed0": (L1Settings(dict_size=48, mu=0.02, dead_after_tokens=100, norm_init=0.3), 0),
    "batchtopk-seed0": (BatchTopKSettings(dict_size=48, k=6, aux_k=4, dead_after_tokens=60, threshold_start=3), 0),
    "batchtopk-seed1": (BatchTopKSettings(dict_size=48, k=6, aux_k=4, dead_after_tokens=60, threshold_start=3), 1),
}


class KilledError(Exception):
    """Stands for the end of the machine."""


class Mortal(ActivationStore):
    """A store whose batches end with the machine, at step 6."""

    def batches(self, *arguments: Any, **options: Any) -> Any:
        for step, batch in enumerate(super().batches(*arguments, **options)):
            if step == 6:
                raise KilledError
            yield batch


class Stages:
    """The stages on one device; `made` is the folder of what each stage writes, `read` that of what it reads."""

    def __init__(self, pair: PairInfo, tokens: TokenStore, requests: dict[str, str], device: str, made: Path) -> None:
        self.pair, self.tokens, self.requests, self.device, self.made = pair, tokens, requests, device, made
        self.read = made

    def store(self, parts: str = "activations") -> ActivationStore:
        return ActivationStore(sorted((self.read / parts).glob("part-*.zarr")), key="k")

    def crosscoder(self, name: str) -> Crosscoder:
        return Crosscoder.load(self.read / "crosscoders" / name, self.device)

    def harvest(self) -> dict[str, Any]:
        parts = [Wanted(self.tokens, i, self.made / f"activations/part-{i:03d}.zarr", "k") for i in range(2)]
        harvest(parts, self.pair, STORED, self.made / ".work", 3, self.device)
        store = ActivationStore(sorted((self.made / "activations").glob("part-*.zarr")))
        return {"residuals": torch.cat([batch.activations for batch in store.chunks()]), "mask": store.mask}

    def training(self, folder: str = "crosscoders", die: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = {}
        own = replace(TRAINING, device=self.device)
        for name, (settings, seed) in DICTIONARIES.items():
            out, work = self.made / folder / name, self.made / ".work" / folder / name
            if die:
                mortal = Mortal(sorted((self.read / "activations").glob("part-*.zarr")))
                try:
                    train(settings, seed, mortal, own, out, work, key="k")
                    raise AssertionError("it lived")
                except KilledError:
                    pass
            train(settings, seed, self.store(), own, out, work, key="k")
            found |= {f"{name}.{key}": value for key, value in Crosscoder.load(out).state_dict().items()}
            loss = pd.read_parquet(out.with_suffix(".history.parquet"))["loss"]
            found[f"{name}.loss"] = loss.to_numpy()
        return found

    def resume(self) -> dict[str, Any]:
        return self.training("resumed", die=True)

    def latents(self) -> dict[str, Any]:
        store, found = self.store(), {}
        for name in DICTIONARIES:
            out = self.made / f"latents/{name}.parquet"
            build_table(self.crosscoder(name), store, store, LATENTS, out, key="k", device=self.device)
            found |= columns(name, pd.read_parquet(out))
        return found

    def evaluation(self) -> dict[str, Any]:
        models = self.pair.load_base(self.device, upper=True), self.pair.load_chat(self.device, upper=True)
        found, settings = {}, EvaluationSettings(documents=2, batch_size=2)
        for name in ("l1-seed0", "batchtopk-seed0"):
            out = self.made / f"evaluation/{name}.json"
            of, held_out = self.crosscoder(name), Reconstruction.read(self.read / f"latents/{name}.parquet")
            made = build_evaluation(of, held_out, self.tokens, models, settings, out, key="k", device=self.device)
            found[name] = np.array([row["value"] for row in made["metrics"]], dtype=float)
        return found

    def conversations(self) -> dict[str, Any]:
        settings = ConversationSettings(count=6, max_prompt_tokens=30, max_tokens=40, batch_size=4)
        out = self.made / "tokens/conversations.zarr"
        store = build_conversations(self.requests, self.pair, settings, 0, self.device, out, key="k")
        return {"token_id": store.token_id, "mask": store.mask}

    def kl(self) -> dict[str, Any]:
        models = self.pair.load_base(self.device), self.pair.load_chat(self.device, upper=True)
        crosscoders = {name: self.crosscoder(name) for name in ("l1-seed0", "batchtopk-seed0")}
        tables = {name: LatentTable.read(self.read / f"latents/{name}.parquet") for name in crosscoders}
        asked = TokenStore.open(self.read / "tokens/conversations.zarr")
        settings = CausalSettings(set_size=8, random_sets=1, random_orders=1, curve_energies=(0.2,), batch_size=3)
        out = self.made / "causal/kl.parquet"
        return columns("kl", build_kl(models, crosscoders, tables, asked, settings, out, key="k", device=self.device))

    def twins(self) -> dict[str, Any]:
        of, store = self.crosscoder("batchtopk-seed0"), self.store()
        of.decoder_weight[:4, 0] *= 0.01  # chat-only, and their twins
        of.decoder_weight[4:8, 1] *= 0.01
        of.decoder_weight[4:8, 0] = of.decoder_weight[:4, 1]
        out, settings = self.made / "twins/latents.parquet", TwinSettings(random_pairs=7, seed=3)
        build_table(of, store, store, LATENTS, out, key="k", device=self.device, twin_settings=settings)
        return columns("twins", pd.read_parquet(out.with_suffix(".twins.parquet")))

    def seeds(self) -> dict[str, Any]:
        names = {seed: f"batchtopk-seed{seed}" for seed in (0, 1)}
        tables = {seed: LatentTable.read(self.read / f"latents/{name}.parquet") for seed, name in names.items()}
        decoders = {seed: directions(self.crosscoder(name)) for seed, name in names.items()}
        build_matches({"batchtopk": tables}, lambda _: decoders, self.made / "seeds/matches.parquet", key="k")
        return columns("seeds", pd.read_parquet(self.made / "seeds/matches.parquet"))


STAGES = (*("harvest", "training", "resume", "latents", "evaluation", "conversations", "kl", "twins", "seeds"),)


def columns(name: str, frame: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of a table; of text, whether it is equal is told by its hash."""
    found = {}
    for column, values in frame.items():
        plain = values.to_numpy() if values.dtype.kind in "biuf" else pd.util.hash_array(values.to_numpy(str))
        found[f"{name}.{column}"] = plain
    return found


def difference(left: Any, right: Any) -> float:
    """Return the largest absolute difference over the largest finite value; infinite where shapes or NaN differ."""
    a, b = (np.asarray(values).astype(np.float64) for values in (left, right))
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    a, b = (np.where(np.isfinite(values), values, 0) for values in (a, b))
    return float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-12))


def mistakes() -> dict[str, str]:
    """Return what each of some planted mistakes raised, or the waits it was counted as."""
    one, other, host = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1"), torch.ones(3)
    pinned = torch.ones(3).pin_memory()
    planted = {
        "two devices": lambda: one + other,
        "host and device": lambda: torch.nn.functional.linear(one, host),
        "numpy": lambda: one.numpy(),
        "generator": lambda: torch.rand(3, device="cuda:0", generator=torch.Generator()),
        "value": lambda: float(one.sum()),
        "mask": lambda: one[one > 0],
        "from the device": lambda: one.cpu(),
        "to the device": lambda: host.to("cuda:0", non_blocking=True),
        "no mistake": lambda: pinned.to("cuda:0", non_blocking=True) * one + torch.tensor(2.0),
    }
    found = {}
    for name, act in planted.items():
        pretend.WAITS.clear()
        try:
            act()
            found[name] = ", ".join(pretend.WAITS)
        except (pretend.MixedDevicesError, TypeError) as error:
            found[name] = type(error).__name__
    return found


def main(folder: Path) -> None:
    """Run all stages twice and print what they gave."""
    torch.set_num_threads(1)
    scaling.available = lambda device: False
    training_module.L0_TOLERANCE = float("inf")  # so short a run reaches no L0
    tiny = save_pair(folder / "pair", "gemma2", layers=3)
    prepare_pair({"base": str(tiny.base), "chat": str(tiny.chat)}, Path("unused"), folder / "models", key="k")
    pair = load_pair(folder / "models", 1, "float32")
    tokens = token_store(folder / "tokens.zarr", [32] * 16)
    texts = folder / "requests.jsonl"
    rows = [{"messages": [{"role": "user", "content": "word " * (i + 1)}]} for i in range(8)]
    texts.write_text("\n".join(map(json.dumps, rows)))
    requests = {"from": "local", "path": str(texts), "column": "messages", "validation_path": str(texts)}
    host, device = (Stages(pair, tokens, requests, name, folder / name) for name in ("cpu", GPU))
    device.read = host.made
    report: dict[str, Any] = {}
    for stage in STAGES:
        expected = getattr(host, stage)()
        used_by_host = sorted(pretend.PLACES)
        for counted in (pretend.WAITS, pretend.LAUNCHES, pretend.PLACES):
            counted.clear()
        found = getattr(device, stage)()
        report[stage] = {
            "values": min(np.asarray(values).size for values in expected.values()),
            "differences": {name: difference(expected[name], found[name]) for name in expected},
            "waits": Counter(pretend.WAITS),
            "launches": pretend.LAUNCHES.total(),
            "places": [used_by_host, sorted(pretend.PLACES)],
        }
        pretend.PLACES.clear()
    print(json.dumps({"stages": report, "mistakes": mistakes()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
