"""The graph of a run, written once: every artifact, what it reads, and its content key.

Rules take their inputs, outputs and keys from here; a start compares the keys of what is on disk with these. Read by
the Snakefile at every start, so nothing heavy is imported. An artifact's settings are exactly the config values that
change its result: batch sizes of forward passes, devices and intervals between checkpoints are not among them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tunediff.config.check import fingerprinted_paths
from tunediff.config.dictionaries import CrosscoderSettings, PublishedSettings, trained
from tunediff.config.settings import Source, split_tokens
from tunediff.data.corpora import opened, reads_same_data
from tunediff.demo import DEMO_MODELS
from tunediff.demo import VERSION as DEMO_VERSION
from tunediff.pipeline.keys import content_key, fingerprint, stored_key
from tunediff.report.registry import REPORT_READS, SUMMARY_READS, drawings_of

SPLITS = ("train", "validation")
NULLS = "nulls/summary"  # the drawing of the nulls' counts


class Stage(NamedTuple):
    """What all artifacts of one kind have in common."""

    version: int  # raised when results change, see `tunediff.pipeline.record`
    script: str  # in workflow/scripts
    suffixes: tuple[str, ...] = ()  # of the files and folders beside the manifest, the store first; none: only JSON


STAGES = {
    "models": Stage(1, "models", ("/",)),
    "hooks": Stage(1, "hooks"),
    "tokens": Stage(1, "tokens", (".zarr/",)),
    "conversations": Stage(1, "conversations", (".zarr/",)),
    "activations": Stage(1, "activations", (".zarr/",)),
    "train": Stage(1, "train", ("/", ".history.parquet")),
    "published": Stage(1, "import_crosscoder", ("/",)),
    "latents": Stage(2, "latents", (".parquet", ".twins.parquet", ".held_out.json")),
    "evaluation": Stage(2, "evaluation"),
    "examples": Stage(1, "examples", ("/",)),
    "losses": Stage(1, "losses", (".parquet",)),
    "concepts": Stage(2, "concepts", (".parquet",)),
    "causal": Stage(1, "causal", (".parquet", ".sets.json")),
    "causal_summary": Stage(1, "causal_summary", (".parquet",)),
    "steering": Stage(1, "steering", (".parquet", ".texts.parquet")),
    "explanations": Stage(1, "explain", ("/",)),
    "judgements": Stage(1, "judge", (".parquet",)),
    "explanation_scores": Stage(1, "explanation_scores", (".parquet", ".overall.parquet")),
    "seeds": Stage(2, "seed_matches", (".parquet",)),
    "planted": Stage(1, "planted_stores", (".zarr/",)),
    "scores": Stage(1, "planted_scores", ("/",)),
    "drawing": Stage(1, "draw", (".csv", ".pdf", ".png")),
    "summary": Stage(1, "summary", (".txt",)),
    "report": Stage(1, "report", ("/",)),
}
# What a drawing reads of an artifact where it is not the store: manifests of large ones, files beside others.
FILES = {
    **{"sets": ".sets.json", "histories": ".history.parquet", "steering_texts": ".texts.parquet"},
    **{"explanation_means": ".overall.parquet", "twins": ".twins.parquet"},
    **dict.fromkeys(("crosscoders", "activations_train", "activations_validation"), ".json"),
}


@dataclass(frozen=True)
class Artifact:
    """One artifact, made by one job; all parts of a pair's activations by the same."""

    path: str  # below the results folder, without suffix: latents/l1-seed0
    stage: str
    key: str
    reads: Mapping[str, tuple[str, ...]]  # paths of artifacts by role, as its script names them


def _without(section: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}


class Graph:
    """All artifacts of one (checked) config, in pipeline order.

    `shipped` is the folder of the demo's models. A pair of models has its artifacts in a folder: the run's own pair in
    "", a null in "nulls/NAME/", a planted pair in "ARM/seedN/".
    """

    def __init__(self, config: Mapping[str, Any], shipped: Path) -> None:
        self.config, self.shipped = config, shipped
        self.results = Path(config["results"])
        self.artifacts: dict[str, Artifact] = {}
        self.build()

    def add(self, stage: str, path: str, settings: Any, version: int | None = None, /, **reads: Iterable[str]) -> None:
        """Add an artifact; what it reads must be in the graph already."""
        roles = {role: tuple(paths) for role, paths in reads.items()}
        upstream = {name: self.artifacts[name].key for paths in roles.values() for name in paths}
        number = STAGES[stage].version if version is None else version
        self.artifacts[path] = Artifact(path, stage, content_key(number, settings, upstream), roles)

    # Names

    @property
    def pairs(self) -> list[str]:
        """Folders of all pairs."""
        return ["", *(f"nulls/{null}/" for null in self.config["nulls"])]

    @cached_property
    def crosscoders(self) -> dict[str, dict[str, Any]]:
        """Config sections by name, in an order that does not depend on the order in the file: kind, then name."""
        kinds, sections = list(CrosscoderSettings.kinds), self.config["crosscoders"]
        return {
            name: dict(sections[name]) for name in sorted(sections, key=lambda n: (kinds.index(sections[n]["kind"]), n))
        }

    @property
    def seeds(self) -> list[int]:
        """Seeds that each dictionary is trained from."""
        return self.config["training"]["seeds"]

    @cached_property
    def trained(self) -> dict[str, tuple[dict[str, Any], int]]:
        """Settings and seed per trained dictionary, by its name NAME-seedN; see `training` for those of a pair."""
        found = trained(self.crosscoders).items()
        return {f"{name}-seed{seed}": (own, seed) for seed in self.seeds for name, (_, own) in found}

    @property
    def trained_seeds(self) -> dict[str, dict[int, str]]:
        """Names of the trained dictionaries per crosscoder of the config and seed."""
        return {name: {seed: f"{name}-seed{seed}" for seed in self.seeds} for name in trained(self.crosscoders)}

    @property
    def published(self) -> dict[str, dict[str, Any]]:
        """Settings per published dictionary, by its name NAME: read, not trained, so without a seed or a history."""
        return {name: own for name, own in self.crosscoders.items() if name not in trained(self.crosscoders)}

    @property
    def with_norms(self) -> list[str]:
        """Names of the dictionaries that have Δnorm: those that reconstruct both models."""
        own = {name: settings for name, (settings, _) in self.trained.items()}
        return [*self.published, *(name for name in own if CrosscoderSettings.of(own[name]).reconstructs == "models")]

    @property
    def dictionaries(self) -> list[str]:
        """Names of all dictionaries, published and trained."""
        return [*self.published, *self.trained]

    def training(self, folder: str, name: str) -> tuple[dict[str, Any], int]:
        """Return settings and seed of a trained dictionary of a pair."""
        return self.trained[name]

    def parts(self, split: str, folder: str = "") -> list[str]:
        """Return the parts of a split's activation store of a pair."""
        count = -(-split_tokens(self.config, split) // self.config["activations"]["part_tokens"])
        return [f"{folder}activations/{split}/part-{i:03d}" for i in range(count)]

    def each(self, stage: str, names: Iterable[str], folder: str = "") -> list[str]:
        """Return the paths STAGE/NAME of some dictionaries."""
        return [f"{folder}{stage}/{name}" for name in names]

    @property
    def n_jobs(self) -> int:
        """Number of jobs of a whole run, about: one for each artifact, but for parts, without the nulls."""
        harvested = {split: self.parts(split) for split in SPLITS}
        own = sum(not path.startswith("nulls/") for path in self.artifacts)
        return own - sum(map(len, harvested.values())) + 1

    # The artifacts of an ordinary run

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Digests of the local files the config names, and of the shipped pair where it is used."""
        found = {name: fingerprint(paths) for name, paths in fingerprinted_paths(self.config).items()}
        models = self.config["models"]
        recipe = models["demo"]
        if models["base"] in DEMO_MODELS and not recipe.get("retrain", False):
            found["shipped"] = fingerprint(sorted(p for p in self.shipped.rglob("*") if p.is_file()))
        return found

    @property
    def labelled(self) -> bool:
        """Whether concepts are labelled in some source of the tokens."""
        return any(opened(source).labelled for source in self.config["tokens"]["sources"].values())

    @cached_property
    def conversations_shared_with(self) -> str | None:
        """Name of the token source that reads the same data as the conversations, if one does."""
        source, sources = self.config["conversations"]["source"], self.config["tokens"]["sources"]
        return next((name for name, other in sources.items() if reads_same_data(source, other)), None)

    def build(self) -> None:
        """Add all artifacts, in pipeline order."""
        c = self.config
        self._pair("", c["models"])
        self._tokens()
        self._activations("")
        for name, own in self.published.items():
            read = [own, self.fingerprints.get(f"crosscoders.{name}"), c["models"]["layer"]]
            train = self.parts("train") if PublishedSettings.made(own).estimates_scale else []
            self.add("published", f"crosscoders/{name}", read, models=["models"], train=train)
        for name in self.trained:
            self._trained("", name)
        for name in self.dictionaries:
            self._measures("", name)
        self._across()
        for null, pair in c["nulls"].items():
            folder = f"nulls/{null}/"
            self._pair(folder, {**c["models"], **pair})
            self._activations(folder)
            for name in self.trained:
                self._trained(folder, name)
                self._measures(folder, name)
        self._drawings()

    def _pair(self, folder: str, models: Mapping[str, Any]) -> None:
        pair = _without(models, "layer", "dtype", "device", "ignore_first_tokens")
        where = folder.replace("/", ".") or "models."
        prints = {name: value for name, value in self.fingerprints.items() if name.startswith((where, "shipped"))}
        if models["base"] in DEMO_MODELS:
            prints["demo"] = str(DEMO_VERSION)
        own = ["models"] if folder else []  # the demo's other models are trained from its base model
        self.add("models", f"{folder}models", [pair, prints], own=own)
        self.add("hooks", f"{folder}hooks", [models["layer"], models["dtype"]], models=[f"{folder}models"])

    def _source(self, key: str, source: Mapping[str, Any]) -> dict[str, Any]:
        version = {"demo": DEMO_VERSION} if Source.of(source).generated else {}
        return {**source, **version, "fingerprint": self.fingerprints.get(key)}

    def _tokens(self) -> None:
        c, seed = self.config, self.config["seed"]
        models, tokens, asked = c["models"], c["tokens"], c["conversations"]
        sources = {name: self._source(f"tokens.sources.{name}", source) for name, source in tokens["sources"].items()}
        shares = tokens["budgets"]  # a document's split may depend on both budgets
        for split in SPLITS:
            sampled = [sources, shares[split], shares, tokens["max_length"], models["ignore_first_tokens"], split, seed]
            self.add("tokens", f"tokens/{split}", sampled, models=["models"])
        generated = [
            _without(asked, "batch_size", "source"),
            self._source("conversations.source", asked["source"]),
            self.conversations_shared_with,
            models["dtype"],
            models["ignore_first_tokens"],
            seed,
        ]
        self.add("conversations", "tokens/conversations", generated, models=["models"])

    def _activations(self, folder: str) -> None:
        """Add a pair's activation stores; all pairs read the same tokens."""
        stored = [_without(self.config["activations"], "batch_tokens"), self.config["seed"]]
        models = {"models": [f"{folder}models"], "hooks": [f"{folder}hooks"]}
        for split in SPLITS:
            for path in self.parts(split, folder):
                self.add("activations", path, stored, **models, tokens=[f"tokens/{split}"])

    def _trained(self, folder: str, name: str) -> None:
        """Add a dictionary that is trained on a pair's train activations."""
        c, (own, seed) = self.config, self.training(folder, name)
        shared = _without(c["training"], "checkpoint_every", "devices", "log_every", "log_to", "seeds")
        settings = [own, CrosscoderSettings.of(own).version, seed, shared, c["seed"]]
        self.add("train", f"{folder}crosscoders/{name}", settings, train=self.parts("train", folder))

    def _table(self, folder: str, name: str) -> None:
        """Add the latent table of a dictionary."""
        stores = {split: self.parts(split, folder) for split in SPLITS}
        settings, of = [self.config["latents"], self.config["seed"]], [f"{folder}crosscoders/{name}"]
        self.add("latents", f"{folder}latents/{name}", settings, crosscoder=of, **stores)

    def _measures(self, folder: str, name: str) -> None:
        """Add the latent table, the held-out metrics and the examples of a dictionary."""
        self._table(folder, name)
        settings = [_without(self.config["evaluation"], "batch_size")]
        models = {"models": [f"{folder}models"], "hooks": [f"{folder}hooks"], "tokens": ["tokens/validation"]}
        of = {"crosscoder": [f"{folder}crosscoders/{name}"], "latents": [f"{folder}latents/{name}"]}
        self.add("evaluation", f"{folder}evaluation/{name}", settings, **models, **of)
        c = self.config
        shown = [_without(c["examples"], "losses_latents"), c["models"]["dtype"], c["seed"]]
        read = {"models": models["models"], "tokens": models["tokens"], **of}
        read |= {"validation": self.parts("validation", folder)}
        self.add("examples", f"{folder}examples/{name}", shown, **read)

    def _across(self) -> None:
        """Add what is measured on the dictionaries of the run's own pair together."""
        c, seed, names = self.config, self.config["seed"], self.dictionaries
        validation = self.parts("validation")
        every = {"crosscoders": self.each("crosscoders", names), "latents": self.each("latents", names)}
        self.add("concepts", "concepts/concepts", [seed], tokens=["tokens/validation"], validation=validation, **every)
        measured = [c["examples"]["losses_latents"], c["models"]["layer"], c["models"]["dtype"]]
        read = {"models": ["models"], "tokens": ["tokens/validation"], "latents": every["latents"]}
        self.add("losses", "losses/losses", measured, **read, examples=self.each("examples", names))
        edits = _without(c["causal"], "batch_size", "bootstrap_samples")
        models = {"models": ["models"], "hooks": ["hooks"], "conversations": ["tokens/conversations"]}
        self.add("causal", "causal/kl", [edits, seed], **models, **every)
        self.add("causal_summary", "causal/summary", [c["causal"]["bootstrap_samples"], seed], kl=["causal/kl"])
        labelled = self._source("conversations.source", c["conversations"]["source"])  # tells kinds of answers
        steered = [c["steering"], labelled, seed]
        self.add("steering", "steering/steering", steered, **models, **every)
        self._explanations()
        if self.trained:
            own = {stage: self.each(stage, self.trained) for stage in ("crosscoders", "latents")}
            self.add("seeds", "seeds/matches", None, **own)

    @property
    def explained(self) -> list[str]:
        """Names of the dictionaries whose latents are explained."""
        only = self.config["explanations"]["only"]
        return [name for name in self.dictionaries if not only or name in only]

    def _explanations(self) -> None:
        """Add what explains latents, judges and scores that. Where a model runs, and how fast, is in no key."""
        c, seed, scores = self.config, self.config["seed"], "explanation_scores/scores"
        own, model = _without(c["explanations"], "model", "only"), c["explanations"]["model"]
        how = ("url", "key_variable", "parallel", "timeout", "attempts", "price_input", "price_output", "batch_size")
        asked = [own, model and _without(model, *how), seed]
        tokenizer = {"models": ["models"], "tokens": ["tokens/validation"]}
        for name in self.explained:
            of = [*asked, _without(c["examples"], "losses_latents"), c["explanations"]["only"].get(name)]
            read = {"latents": [f"latents/{name}"], "examples": [f"examples/{name}"], "train_tokens": ["tokens/train"]}
            read |= {"validation": self.parts("validation")}
            self.add("explanations", f"explanations/{name}", of, **tokenizer, **read)
            read = {"explanations": [f"explanations/{name}"]}
            self.add("judgements", f"judgements/{name}", asked, **tokenizer, **read)
        every = {stage: self.each(stage, self.explained) for stage in ("explanations", "judgements", "latents")}
        self.add("explanation_scores", scores, [seed], **every)

    def read_by(self, roles: Iterable[str]) -> dict[str, list[str]]:
        """Return the artifacts behind what drawings and the summary read (`tunediff.report.registry.READS`)."""
        dictionaries, measured = self.dictionaries, ("latents", "evaluation")
        every = {
            "latents": self.each("latents", dictionaries),
            "evaluation": self.each("evaluation", dictionaries),
            "examples": self.each("examples", dictionaries),
            "losses": ["losses/losses"],
            "explanations": self.each("explanations", self.explained),
            "judgements": self.each("judgements", self.explained),
            "explanation_scores": ["explanation_scores/scores"],
            "explanation_means": ["explanation_scores/scores"],
            "twins": self.each("latents", self.with_norms),
            "kl": ["causal/summary"],
            "sets": ["causal/kl"],
            "steering": ["steering/steering"],
            "steering_texts": ["steering/steering"],
            "histories": self.each("crosscoders", self.trained),
            "concepts": ["concepts/concepts"],
            "seeds": ["seeds/matches"],
            "crosscoders": self.each("crosscoders", dictionaries),
            "pairs": [path for pair in self.pairs for each in measured for path in self.each(each, self.trained, pair)],
            "scores": [f"{pair}scores" for pair in self.pairs],
        }
        every |= {f"activations_{split}": self.parts(split) for split in SPLITS}
        return {role: every[role] for role in roles if role in every}

    def _drawings(self) -> None:
        """Add figures, tables, the summary and the report.

        The nulls run on request only (snakemake nulls). What prints their counts depends on them where they have run
        for this very config, by their key: were they among what it reads, every run could start their whole chain.
        """
        c = self.config
        for path, drawing in sorted(drawings_of(self).items(), key=lambda item: "nulls" in item[1].reads):
            shown = [c["figures"], c["seed"], self.nulls_key if "nulls" in drawing.reads else ""]
            self.add("drawing", path, shown, drawing.version, **self.read_by(drawing.reads))
        if "planted" not in c:
            self.add("summary", "summary", [self.nulls_key], **self.read_by(SUMMARY_READS))
            drawn = [path for path in drawings_of(self) if path != NULLS or self.nulls_key]
            own = {"models": ["models"], "tokens": ["tokens/validation"], "drawings": drawn}
            shown = [self.nulls_key, self.nulls_examples, c["models"]["layer"]]
            read = self.read_by(REPORT_READS).items()  # of published dictionaries alone there are no seeds
            made = {role: [path for path in paths if path in self.artifacts] for role, paths in read}
            self.add("report", "report", shown, **made, **own)

    @cached_property
    def nulls_key(self) -> str:
        """Key of the nulls' counts where they have run for this config, else nothing."""
        counts = self.artifacts.get(NULLS)
        stored = stored_key(self.results / f"{NULLS}.json")
        return counts.key if counts and stored == counts.key else ""

    @cached_property
    def nulls_examples(self) -> dict[str, str]:
        """Keys of the nulls' examples by path, of those that are there for this config."""
        found = {
            path: of.key for path, of in self.artifacts.items() if path.startswith("nulls/") and of.stage == "examples"
        }
        return {path: key for path, key in found.items() if stored_key(self.results / f"{path}.json") == key}

    # What rules and starts ask

    def store(self, path: str) -> str:
        """Return the store of an artifact: its first file or folder, or its JSON file where it has no other."""
        suffix, *_ = STAGES[self.artifacts[path].stage].suffixes or (".json",)
        return f"{self.results / path}{suffix.removesuffix('/')}"

    def inputs(self, path: str) -> tuple[dict[str, list[str]], list[str]]:
        """Return the stores that an artifact's job reads, by role, and all their manifests."""
        artifact = self.artifacts[path]
        reads, files = artifact.reads, FILES if artifact.stage in ("drawing", "summary", "report") else {}
        stores = {
            role: [f"{self.results / name}{files[role]}" if role in files else self.store(name) for name in paths]
            for role, paths in reads.items()
        }
        return stores, sorted({f"{self.results / name}.json" for paths in reads.values() for name in paths})

    def expected(self, path: str) -> dict[str, str]:
        """Return the key of an artifact ("own") and of every store it reads, by the store's path."""
        artifact = self.artifacts[path]
        read = {self.store(name): self.artifacts[name].key for paths in artifact.reads.values() for name in paths}
        return {"own": artifact.key, **read}

    def harvested(self, folder: str) -> dict[str, str]:
        """Return the keys of all parts of a pair's activations, which one job makes, by their stores."""
        parts = [path for split in SPLITS for path in self.parts(split, folder)]
        return {self.store(path): self.artifacts[path].key for path in parts}

    def on_disk(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return the artifacts on disk that are those of this config, and those to be made again.

        These are what other inputs made, and stores without a readable manifest, as errors say to delete a manifest.
        """
        found = {path: stored_key(self.results / f"{path}.json") for path in self.artifacts}
        own = frozenset(path for path, key in found.items() if key == self.artifacts[path].key)
        there = frozenset(path for path, key in found.items() if key is not None or Path(self.store(path)).exists())
        return own, there - own


class PlantedGraph(Graph):
    """The artifacts of the planted benchmark: the ordinary training and tables on pairs of known latents."""

    @property
    def runs(self) -> list[tuple[str, str, int]]:
        """Folder, arm and seed of every pair."""
        return [(f"{arm}/seed{seed}/", arm, seed) for arm in self.config["planted"]["arms"] for seed in self.seeds]

    @property
    def pairs(self) -> list[str]:
        """Folders of all pairs."""
        return [folder for folder, _, _ in self.runs]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the pairs; a dictionary is trained from that of its pair."""
        return self.config["planted"]["seeds"]

    def training(self, folder: str, name: str) -> tuple[dict[str, Any], int]:
        """Return settings and seed of a dictionary: the arm states its size relative to the config's."""
        settings, seed = self.trained[name]
        factor = self.config["planted"]["arms"][folder.split("/")[0]]["dictionary"]
        return {**settings, "dict_size": round(factor * settings["dict_size"])}, seed

    def stores(self, folder: str) -> list[str]:
        """Return everything that the one job which plants a pair writes."""
        return [f"{folder}tokens/{split}" for split in SPLITS] + [p for s in SPLITS for p in self.parts(s, folder)]

    @property
    def n_jobs(self) -> int:
        """Number of jobs of a whole run: those of a pair, the figure, the table."""
        return len(self.runs) * (2 + 2 * len(self.crosscoders)) + 2

    def build(self) -> None:
        """Add all artifacts, in pipeline order."""
        c = self.config
        sizes = [split_tokens(c, split) for split in SPLITS] + [_without(c["activations"], "batch_tokens")]
        for folder, arm, seed in self.runs:
            for path in self.stores(folder):
                self.add("planted", path, [_without(c["planted"]["arms"][arm], "dictionary"), sizes, seed])
            names = [f"{name}-seed{seed}" for name in self.crosscoders]
            for name in names:
                self._trained(folder, name)
                self._table(folder, name)
            own = {stage: self.each(stage, names, folder) for stage in ("crosscoders", "latents")}
            self.add("scores", f"{folder}scores", None, **own, validation=self.parts("validation", folder))
        self._drawings()
