"""The results of a run, for a reader in Python: `open_results`.

Every artifact is read by the class that owns its format. torch is imported by what returns tensors only.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from tunediff.errors import TunediffError
from tunediff.explanations.tables import Explanations, read_judgements
from tunediff.interventions.steering_table import read_steering, read_texts
from tunediff.latents.examples import Examples, read_losses
from tunediff.latents.metrics import Evaluation
from tunediff.latents.table import LatentTable, control_passes
from tunediff.pipeline.artifacts import check, damage, manifest_at, manifest_path, read_json, read_manifest, store_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunediff.data.activations import ActivationStore
    from tunediff.data.tokens import TokenStore
    from tunediff.dictionaries.crosscoder import Crosscoder
    from tunediff.interventions.steering import Positions
    from tunediff.latents.card import Cards, LatentCard
    from tunediff.live import Live, LoadedPair, Prompt, Steered

MANIFEST_ENTRIES = {"kind", "key", "files"}
PROVENANCE = ".provenance.json"


def _facts(path: Path) -> dict[str, Any]:
    return manifest_at(path).facts


def _object(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


# role -> file ({}: a dictionary or a part), kind of its manifest (none: the reader itself goes by it), reader
READERS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "hooks": ("hooks.json", "", read_json),
    "latents": ("latents/{}.parquet", "", LatentTable.read),
    "evaluation": ("evaluation/{}.json", "", Evaluation.read),
    "twins": ("latents/{}.twins.parquet", "latents", pd.read_parquet),
    "examples": ("examples/{}", "", Examples.open),
    "losses": ("losses/losses.parquet", "losses", read_losses),
    "explanations": ("explanations/{}", "", Explanations.open),
    "judgements": ("judgements/{}.parquet", "", read_judgements),
    "explanation_scores": ("explanation_scores/scores.parquet", "explanation_scores", pd.read_parquet),
    "explanation_means": ("explanation_scores/scores.overall.parquet", "explanation_scores", pd.read_parquet),
    "histories": ("crosscoders/{}.history.parquet", "crosscoder", pd.read_parquet),
    "crosscoders": ("crosscoders/{}.json", "", _facts),
    "activations_train": ("activations/train/{}.json", "", _facts),
    "activations_validation": ("activations/validation/{}.json", "", _facts),
    "kl": ("causal/summary.parquet", "kl-summary", pd.read_parquet),
    "kl_table": ("causal/kl.parquet", "kl", pd.read_parquet),
    "sets": ("causal/kl.sets.json", "kl", _object),
    "steering": ("steering/steering.parquet", "steering", read_steering),
    "steering_texts": ("steering/steering.texts.parquet", "steering", read_texts),
    "concepts": ("concepts/concepts.parquet", "concepts", pd.read_parquet),
    "seeds": ("seeds/matches.parquet", "matches", pd.read_parquet),
}


class Pair(NamedTuple):
    """The two models whose residual streams were compared."""

    base: str  # id of the hub, directory, or model of the demo
    chat: str
    base_revision: str | None  # commit of the hub; None for directories
    chat_revision: str | None
    layer: int  # residuals are the output of this block, counted from 0
    dtype: str  # in which the models were run
    d_model: int  # width of the residual stream
    n_layers: int


@dataclass(frozen=True, repr=False)
class Results:
    """A run's folder of results; of a run that has not ended, what is finished so far.

    The folder of a null (``results/nulls/NAME``) or of a planted pair (``results/planted/ARM/seedN``) is one too.
    Asking for what is not there, unfinished or damaged raises a `TunediffError` that says what to run.
    """

    path: Path

    # -- what was made -------------------------------------------------------------------------------------------------

    @property
    def pair(self) -> Pair:
        """The model pair, and the block after which it is read."""
        facts = read_manifest(self._made("models"), "models").facts
        hooks = self.read("hooks")
        values = {name: facts[name] for name in Pair._fields if name in facts}
        return Pair(**values, layer=hooks["layer"], dtype=hooks["dtype"])

    @property
    def dictionaries(self) -> list[str]:
        """Names of the finished dictionaries: NAME-seedN, and NAME where it was not trained here."""
        folders = (path for path in (self.path / "crosscoders").glob("*") if path.is_dir())
        return sorted(path.name for path in folders if manifest_path(path).is_file())

    def crosscoder(self, name: str, device: str = "cpu") -> "Crosscoder":
        """Return a trained crosscoder: `encode` and `decode` on raw activations of shape (token, 2, d_model)."""
        from tunediff.dictionaries.crosscoder import Crosscoder

        self._known(name)
        return Crosscoder.load(self._made(f"crosscoders/{name}"), device)

    def latents(self, name: str) -> LatentTable:
        """Return the latent table of a dictionary; `frame` has one row per latent."""
        return self._of("latents", name)

    def evaluation(self, name: str) -> Evaluation:
        """Return the held-out metrics of a dictionary: `.value("fve", "difference")`, say."""
        return self._of("evaluation", name)

    def examples(self, name: str) -> Examples:
        """Return the examples of a dictionary: `.of("windows", latent)`, say."""
        return self._of("examples", name)

    def latent(self, name: str, number: int) -> "LatentCard":
        """Return all about one latent: its row of the table, windows, tokens, logits, neighbours; `print` shows it."""
        return self.cards(name).of(number)

    def cards(self, name: str) -> "Cards":
        """Return what makes the cards of a dictionary's latents; kept, so that the next card is quick."""
        from tunediff.explained import Explained
        from tunediff.latents.card import Cards

        if name not in self._cards:
            measured = (self.path / "losses/losses.parquet").is_file()
            losses = self.read("losses") if measured else None
            scored = manifest_path(self.path / "explanation_scores/scores.parquet").is_file()
            own = Explained(self.read("explanation_scores"), name).lines if scored else {}
            parts = self.latents(name), self.examples(name), self.tokens("validation"), self.tokenizer
            self._cards[name] = Cards(name, *parts, losses, own)
        return self._cards[name]

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the pair: the chat model's."""
        from tunediff.models.pair import load_pair

        return load_pair(self._made("models"), self.pair.layer, self.pair.dtype).load_tokenizer()

    @cached_property
    def _cards(self) -> "dict[str, Cards]":
        return {}

    def kl(self) -> pd.DataFrame:
        """Return the mean KL to the chat model of every intervention, in nats per token, with 95 % intervals."""
        return self.read("kl")

    def kl_table(self) -> pd.DataFrame:
        """Return the sums behind `kl`: one row per intervention and conversation."""
        return self.read("kl_table")

    def read(self, role: str, name: str = "") -> Any:
        """Return what `READERS` has under `role`, of dictionary or part `name`."""
        file, kind, reader = READERS[role]
        path = self._made(file.format(name))
        if kind:
            check(path, kind)
        return reader(path)

    def tokens(self, split: str) -> "TokenStore":
        """Return the tokens of `train` or `validation`, or the `conversations` of the KL experiment."""
        from tunediff.data.tokens import TokenStore

        return TokenStore.open(self._run()._made(f"tokens/{split}.zarr"))

    def activations(self, split: str) -> "ActivationStore":
        """Return the residuals of both models on all tokens of `train` or `validation`.

        Raises
        ------
        TunediffError
            As all methods; a part that is not harvested yet counts as missing.
        """
        from tunediff.data.activations import ActivationStore

        folder = f"activations/{split}"
        parts = sorted((self.path / folder).glob("part-*.zarr"))
        wanted = self.tokens(split).n_tokens
        store = ActivationStore(parts) if parts else None
        if store is None or store.n_tokens != wanted:
            harvested = f"{store.n_tokens if store else 0} of {wanted} tokens are harvested"
            lacking = next(i for i in range(len(parts) + 1) if not (self.path / folder / f"part-{i:03d}.zarr").exists())
            raise self._missing(f"{folder}/part-{lacking:03d}.zarr", harvested)
        return store

    # -- prompts of one's own ------------------------------------------------------------------------------------------

    def prompt(self, prompt: "Prompt", *, text: bool = False, device: str = "cpu") -> "Live":
        """Run both models on a prompt: tokens, residual streams, and the latents of each dictionary on them.

        A string is a request of the user, rendered by the chat template up to the header of the answer; with `text` it
        is a plain text. A list of messages (`{"role": …, "content": …}`) is a conversation. The models are kept for
        the next prompt. They are read from `results/models`, or where the config named them: a directory that must
        still be there, or the hub's cache.

        Raises
        ------
        TunediffError
            As all methods; a model cannot be read, or the chat template refuses the messages.
        """
        from tunediff.live import Live

        pair = self.loaded_pair(device)
        encoding = pair.encode(prompt, text)
        return Live(self, device, encoding.token_id, encoding.mask, pair.residuals(encoding.token_id))

    def steer(
        self,
        name: str,
        latent: int,
        prompt: "Prompt",
        alpha: float = 1.0,
        *,
        positions: "Positions" = "all",
        max_new_tokens: int = 64,
        device: str = "cpu",
    ) -> "Steered":
        """Return the chat model's greedy answers to a prompt, as it is and with α · max_j · d_j^chat added.

        That is added to the residual stream after the block, in its own units, at every position or with `positions`
        "prompt" at those of the prompt; max_j is the latent's largest activation on validation tokens. A negative α
        takes away. `prompt` is as in `prompt`. `TunediffError`: as there; no such latent, or a dead one.
        """
        from tunediff.live import steered

        self._known(name)
        return steered(self, name, latent, prompt, alpha, positions, max_new_tokens, device)

    def loaded_pair(self, device: str = "cpu") -> "LoadedPair":
        """Return both models, loaded once per device."""
        from tunediff.live import LoadedPair

        return self._once(("pair", device), lambda: LoadedPair(self, device))

    def loaded_crosscoder(self, name: str, device: str = "cpu") -> "Crosscoder":
        """Return a trained crosscoder, loaded once per device."""
        return self._once(("crosscoder", name, device), lambda: self.crosscoder(name, device))

    @cached_property
    def _loaded(self) -> dict[tuple[str, ...], Any]:
        return {}

    def _once(self, key: tuple[str, ...], load: Callable[[], Any]) -> Any:
        if key not in self._loaded:
            self._loaded[key] = load()
        return self._loaded[key]

    # -- whether it is whole -------------------------------------------------------------------------------------------

    def verify(self) -> list[Path]:
        """Compare the sha256 of every file of every artifact with its manifest; return the artifacts.

        An artifact that is one JSON file states its own digest, and so do manifests and provenances.

        Raises
        ------
        TunediffError
            An artifact is damaged: the first is named, the others are counted.
        """
        whole, damaged = [], []
        for path in _json_files(self.path):
            store, lines = _damage(path)
            remedy = f"; delete {path} and run snakemake again" if store != path else ""
            damaged += [f"{line}{remedy}" for line in lines[:1]]
            if not lines and not path.name.endswith(PROVENANCE):
                whole.append(store)
        if damaged:
            more = f" ({len(damaged) - 1} more artifacts are damaged)" if len(damaged) > 1 else ""
            raise TunediffError(damaged[0] + more)
        return whole

    def __repr__(self) -> str:
        """Return an overview: the pair, and per dictionary its latents, L0, FVE and chat-specific latents."""
        names = self.dictionaries
        width = max(map(len, names), default=0)
        lines = [f"{self.path}: {self._either('models.json', self._describe_pair)}"]
        for name in names:
            pieces = (
                self._either(f"evaluation/{name}.json", lambda name=name: self._describe_metrics(name)),
                self._either(f"latents/{name}.json", lambda name=name: self._describe_latents(name)),
            )
            lines.append(f"  {name:{width}}  {'; '.join(pieces)}")
        return "\n".join(lines if names else [*lines, "  no dictionary is finished yet"])

    def _either(self, relative: str, describe: Any) -> str:
        """Return a description, or what stands in its way: an overview never fails."""
        if not (self.path / relative).is_file():
            return f"no {relative} yet"
        try:
            return str(describe())
        except TunediffError as error:
            return str(error)

    def _describe_pair(self) -> str:
        pair = self.pair
        return f"{pair.base} → {pair.chat}, after block {pair.layer} of 0–{pair.n_layers - 1}, d_model {pair.d_model}"

    def _describe_metrics(self, name: str) -> str:
        metrics = self.evaluation(name)
        found = {model: metrics.value("fve", model) for model in ("base", "chat", "difference")}
        fve = ", ".join(f"{model} {value:.3f}" for model, value in found.items() if math.isfinite(value))
        return f"L0 {metrics.value('l0'):.1f}, FVE {fve}"

    def _describe_latents(self, name: str) -> str:
        table = self.latents(name)
        if not table.has_norm_taxonomy:
            median = table.frame.loc[~table.frame["dead"], "nu_activation"].median()
            return f"{len(table):,} latents of the difference alone, median ν^act {median:.2f}"
        called, (passed, of) = int(table.frame["chat_specific"].sum()), control_passes(table)["random"]
        confirmed = int(table.frame["chat_specific_validation"].sum())
        return (
            f"{called:,} of {len(table):,} latents chat-specific ({confirmed:,} confirmed); "
            f"control: {passed:,} of {of:,} random directions"
        )

    # -- reading -------------------------------------------------------------------------------------------------------

    def _run(self) -> "Results":
        """Return the results that hold the tokens: a null reads those of its run."""
        parents = self.path.absolute().parents
        return Results(parents[1]) if parents[0].name == "nulls" else self

    def _missing(self, relative: str, why: str = "not made yet") -> TunediffError:
        target = self.path / relative
        return TunediffError(
            f"{target}: {why}; run `snakemake {target} --cores all` (with the --configfile of this run)"
        )

    def _known(self, name: str) -> None:
        if name not in self.dictionaries:
            have = ", ".join(self.dictionaries) or "none"
            raise self._missing(f"crosscoders/{name}", f"no finished dictionary '{name}', there are: {have}")

    def _of(self, role: str, name: str) -> Any:
        self._known(name)
        return self.read(role, name)

    def _made(self, relative: str) -> Path:
        """Return the path of a store, or of a file beside one, that has a manifest."""
        path = self.path / relative
        if not manifest_path(path).is_file():
            raise self._missing(relative)
        return path


def _json_files(folder: Path) -> Iterator[Path]:
    """Yield the manifests, artifacts of JSON alone and provenances of a folder; what is hidden is work in progress."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not manifest_path(path).is_file():  # else a store: its manifest knows what is in it
                yield from _json_files(path)
        elif (path.suffixes == [".json"] or path.name.endswith(PROVENANCE)) and _is_own(path):
            yield path


def _is_own(path: Path) -> bool:
    """Return whether a JSON file is one of ours, damaged or not: those of an exported crosscoder are not."""
    try:
        return not {"key", "digest"}.isdisjoint(_object(path))
    except (OSError, ValueError, TypeError):
        return True


def _damage(path: Path) -> tuple[Path, list[str]]:
    """Return the store that a JSON file stands for (else the file itself) and what is damaged of it."""
    try:
        if set(read_json(path)) >= MANIFEST_ENTRIES:
            return store_of(path), damage(store_of(path), manifest_at(path))
    except TunediffError as error:
        return path, [str(error)]
    return path, []


def open_results(path: str | Path = "results") -> Results:
    """Open the folder of results of a run, of any config, finished or not.

    Raises
    ------
    TunediffError
        There is no such folder, or nothing of a run is in it.
    """
    folder = Path(path)
    if not any((folder / name).exists() for name in ("models.json", "tokens", "activations", "crosscoders")):
        raise TunediffError(
            f"{folder}: holds no results; give a config's `results` folder, or make it: `snakemake --cores all`"
        )
    return Results(folder)
