"""What a config asks for: the dictionaries, the parts of each store, and the content key of every stage.

Read by the Snakefile at every start, so nothing heavy is imported. A stage's key holds exactly the config values that
change its result; batch sizes of forward passes, devices and intervals between checkpoints are not among them.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tunediff.config.check import fingerprinted_paths
from tunediff.data.corpora import reads_same_data
from tunediff.demo import DEMO_MODELS
from tunediff.pipeline.keys import fingerprint, stage_key
from tunediff.report.registry import SUMMARY_READS, drawings_of


def _without(section: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}


class Plan:
    """Names and content keys of all artifacts of one (checked) config.

    `scripts` is the folder of the rules' scripts, `shipped_pair` that of the demo's models.
    """

    splits = ("train", "validation")

    def __init__(self, config: Mapping[str, Any], scripts: Path, shipped_pair: Path) -> None:
        self.config, self.scripts, self.shipped_pair = config, scripts, shipped_pair

    @cached_property
    def trained(self) -> dict[str, tuple[dict[str, Any], int]]:
        """Settings and seed per trained dictionary, by its name NAME-seedN."""
        return {
            f"{name}-seed{seed}": (dict(settings), seed)
            for seed in self.config.get("training", {"seeds": []})["seeds"]
            for name, settings in self.config["crosscoders"].items()
            if settings["kind"] != "published"
        }

    @property
    def trained_seeds(self) -> dict[str, dict[int, str]]:
        """Names of the trained dictionaries per crosscoder of the config and seed."""
        found: dict[str, dict[int, str]] = {}
        for name, (_, seed) in self.trained.items():
            found.setdefault(name.removesuffix(f"-seed{seed}"), {})[seed] = name
        return found

    @cached_property
    def published(self) -> dict[str, dict[str, Any]]:
        """Settings per published dictionary, by its name NAME: read, not trained, so without a seed or a history."""
        crosscoders = self.config["crosscoders"].items()
        return {name: dict(settings) for name, settings in crosscoders if settings["kind"] == "published"}

    @property
    def dictionaries(self) -> list[str]:
        """Names of all dictionaries, published and trained."""
        return [*self.published, *self.trained]

    def estimates_scale(self, name: str) -> bool:
        """Return whether a published dictionary's input scale comes from the train activations (Kissane's layout)."""
        return self.published[name]["layout"] == "kissane" and self.published[name]["input_scale"] is None

    @property
    def n_jobs(self) -> int:
        """Number of jobs of a whole run, about: one for each artifact, without the nulls."""
        return sum(not name.startswith("nulls/") for name in self.keys)

    def n_parts(self, split: str) -> int:
        """Return the number of parts of a split's activation store."""
        total = sum(self.config["tokens"]["budgets"][split].values())
        return -(-total // self.config["activations"]["part_tokens"])

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Digests of the local files the config names, and of the shipped pair where it is used."""
        found = {name: fingerprint(paths) for name, paths in fingerprinted_paths(self.config).items()}
        models = self.config["models"]
        if models["base"] in DEMO_MODELS and not models["demo"].get("retrain", False):
            found["shipped"] = fingerprint(sorted(p for p in self.shipped_pair.rglob("*") if p.is_file()))
        return found

    @cached_property
    def conversations_shared_with(self) -> str | None:
        """Name of the token source that reads the same data as the conversations, if one does."""
        source = self.config["conversations"]["source"]
        sources = self.config["tokens"]["sources"].items()
        return next((name for name, other in sources if reads_same_data(source, other)), None)

    def _key(self, script: str, settings: Any, *upstream: str) -> str:
        return stage_key(self.scripts / script, settings, {name: self.keys[name] for name in upstream})

    def _source(self, name: str, source: Mapping[str, Any]) -> dict[str, Any]:
        return {**source, "fingerprint": self.fingerprints.get(f"source.{name}")}

    def _add_pair(self, folder: str, models: Mapping[str, Any]) -> None:
        """Add the keys of a pair of models and of the proof of its hooks."""
        pair = _without(models, "layer", "dtype", "device", "ignore_first_tokens")
        where = folder.replace("/", ".") or "models."
        prints = {name: value for name, value in self.fingerprints.items() if name.startswith((where, "shipped"))}
        upstream = ["models"] if folder else []  # the demo's other models are trained from its base model
        self.keys[f"{folder}models"] = self._key("models.py", [pair, prints], *upstream)
        self.keys[f"{folder}hooks"] = self._key("hooks.py", [models["layer"], models["dtype"]], f"{folder}models")

    def _add_activations(self, folder: str) -> None:
        """Add the keys of a pair's activation stores; all pairs read the same tokens."""
        stored = [_without(self.config["activations"], "batch_tokens"), self.config["seed"]]
        for split in self.splits:
            key = self._key("activations.py", stored, f"tokens/{split}", f"{folder}hooks")
            self.keys |= {f"{folder}activations/{split}/part-{i:03d}": key for i in range(self.n_parts(split))}

    def _add_trained(self, folder: str) -> None:
        """Add the keys of a pair's trained dictionaries and of what is measured on them."""
        shared = _without(self.config.get("training", {}), "checkpoint_every", "log_every", "log_to", "seeds")
        read, seed = f"{folder}activations/train/part-000", self.config["seed"]
        for name, (settings, own_seed) in self.trained.items():
            key = self._key("train.py", [settings, own_seed, shared, seed], read)
            self.keys[f"{folder}crosscoders/{name}"] = key
            self._add_measures(folder, name)

    def _add_measures(self, folder: str, name: str) -> None:
        """Add the keys of one dictionary's latent table and held-out metrics."""
        c, crosscoder = self.config, f"{folder}crosscoders/{name}"
        parts = {split: f"{folder}activations/{split}/part-000" for split in self.splits}
        fitted = self._key("latents.py", [c["latents"], c["seed"]], crosscoder, *parts.values())
        self.keys[f"{folder}latents/{name}"] = fitted
        measured = [_without(c["evaluation"], "batch_size")]
        metrics = self._key("evaluation.py", measured, crosscoder, parts["validation"], f"{folder}hooks")
        self.keys[f"{folder}evaluation/{name}"] = metrics

    def _add_drawings(self, results: Mapping[str, list[str]]) -> None:
        """Add the keys of all figures and tables; `results` names what each thing that they read is made of."""
        for path, drawing in drawings_of(self).items():
            upstream = {name: self.keys[name] for role in drawing.reads for name in results[role]}
            settings = [self.config["figures"], self.config["seed"], drawing.version]
            self.keys[path] = stage_key(drawing.file, settings, upstream)

    @cached_property
    def keys(self) -> dict[str, str]:
        """Content key per artifact, by its path under `results` without suffix."""
        self.keys = keys = {}  # filled in pipeline order: later stages look earlier ones up
        c, seed = self.config, self.config["seed"]
        models, tokens = c["models"], c["tokens"]
        self._add_pair("", models)

        sources = {name: self._source(name, source) for name, source in tokens["sources"].items()}
        for split in self.splits:
            budget = tokens["budgets"][split]
            shares = tokens["budgets"]  # a document's split may depend on both budgets
            sampled = [sources, budget, shares, tokens["max_length"], models["ignore_first_tokens"], split, seed]
            keys[f"tokens/{split}"] = self._key("tokens.py", sampled, "models")
        asked = [
            _without(c["conversations"], "batch_size", "source"),
            self._source("conversations", c["conversations"]["source"]),
            self.conversations_shared_with,
        ]
        generated = [*asked, models["dtype"], models["ignore_first_tokens"], seed]
        keys["tokens/conversations"] = self._key("conversations.py", generated, "models")

        self._add_activations("")
        parts = {split: f"activations/{split}/part-000" for split in self.splits}
        for name, settings in self.published.items():
            read = [settings, self.fingerprints.get(f"crosscoders.{name}"), models["layer"]]
            upstream = [parts["train"]] if self.estimates_scale(name) else []
            keys[f"crosscoders/{name}"] = self._key("import_crosscoder.py", read, "models", *upstream)
        self._add_trained("")
        for name in self.published:
            self._add_measures("", name)
        tables = [f"latents/{name}" for name in self.dictionaries]
        trained_all = [f"crosscoders/{name}" for name in self.dictionaries]
        keys["concepts/concepts"] = self._key("concepts.py", [seed], *tables, *trained_all, parts["validation"])
        edits = _without(c["causal"], "batch_size", "bootstrap_samples")
        keys["causal/kl"] = self._key(
            "causal.py", [edits, seed], *tables, *trained_all, "tokens/conversations", "hooks"
        )
        keys["causal/summary"] = self._key("causal_summary.py", [c["causal"]["bootstrap_samples"], seed], "causal/kl")

        for name in self.dictionaries:
            keys[f"twins/{name}"] = self._key(
                "twin_pairs.py", [seed], f"latents/{name}", f"crosscoders/{name}", parts["validation"]
            )
        if self.trained:
            of_seeds = [f"{stage}/{name}" for stage in ("crosscoders", "latents") for name in self.trained]
            keys["seeds/matches"] = self._key("seed_matches.py", None, *of_seeds)

        for null, pair in c["nulls"].items():
            folder = f"nulls/{null}/"
            self._add_pair(folder, {**models, **pair})
            self._add_activations(folder)
            self._add_trained(folder)
        folders = ["", *(f"nulls/{null}/" for null in c["nulls"])]
        stages = [f"{folder}{stage}" for folder in folders for stage in ("latents", "evaluation")]
        results = {
            "latents": tables,
            "evaluation": [f"evaluation/{name}" for name in self.dictionaries],
            "twins": [f"twins/{name}" for name in self.dictionaries],
            "kl": ["causal/summary"],
            "sets": ["causal/kl"],
            "histories": [f"crosscoders/{name}" for name in self.trained],
            "concepts": ["concepts/concepts"],
            "seeds": ["seeds/matches"],
            "crosscoders": trained_all,
            "activations_train": [parts["train"]],
            "activations_validation": [parts["validation"]],
            "nulls": [],  # a parameter of their own: see rules/figures.smk
            "pairs": [f"{stage}/{name}" for stage in stages for name in self.trained],
        }
        self._add_drawings(results)
        shown = {key: None for role in SUMMARY_READS for key in results[role]}
        keys["summary"] = self._key("summary.py", None, *shown, "figures/fig4")
        return keys


class PlantedPlan(Plan):
    """Names and content keys of the planted benchmark: every arm and seed is a pair with stores of its own."""

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Every arm with every seed."""
        planted = self.config["planted"]
        return [(arm, seed) for arm in planted["arms"] for seed in planted["seeds"]]

    @property
    def n_jobs(self) -> int:
        """Number of jobs of a whole run: stores and scores of every pair, the figure, the table."""
        return 2 * len(self.runs) + 2

    def trained_in(self, arm: str, seed: int) -> dict[str, tuple[dict[str, Any], int]]:
        """Settings and seed per dictionary of a pair, by its name NAME-seedN."""
        factor = self.config["planted"]["arms"][arm]["dictionary"]
        return {
            f"{name}-seed{seed}": ({**settings, "dict_size": round(factor * settings["dict_size"])}, seed)
            for name, settings in self.config["crosscoders"].items()
        }

    @cached_property
    def keys(self) -> dict[str, str]:
        """Content key per artifact, by its path under `results` without suffix."""
        self.keys = keys = {}
        c, seed = self.config, self.config["seed"]
        planted, shared = c["planted"], _without(c["training"], "checkpoint_every", "log_every", "log_to", "seeds")
        sizes = [planted["train_tokens"], planted["validation_tokens"], _without(c["activations"], "batch_tokens")]
        for arm, own_seed in self.runs:
            folder = f"{arm}/seed{own_seed}"
            drawn = [_without(planted["arms"][arm], "dictionary"), sizes, own_seed]
            stores = f"{folder}/stores"
            keys[stores] = self._key("planted_stores.py", drawn)
            tables = []
            for name, (settings, _) in self.trained_in(arm, own_seed).items():
                trained, table = f"{folder}/crosscoders/{name}", f"{folder}/latents/{name}"
                keys[trained] = self._key("train.py", [settings, own_seed, shared, seed], stores)
                keys[table] = self._key("latents.py", [c["latents"], seed], trained, stores)
                tables.append(table)
            keys[f"{folder}/scores"] = self._key("planted_scores.py", None, *tables)
        scores = [f"{arm}/seed{own_seed}/scores" for arm, own_seed in self.runs]
        self._add_drawings({"scores": scores})
        return keys
