"""The model pair: found, copied or merged, compared, and read again at a layer."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from tunediff.config.derive import require_safetensors
from tunediff.demo import DEMO_MODELS
from tunediff.errors import TunediffError
from tunediff.models.hooks import verify_hooks
from tunediff.models.residual import ResidualModel, check_layer, text_config, torch_dtype
from tunediff.models.tokenizers import load_tokenizer, load_tokenizers, reading_error
from tunediff.pipeline.artifacts import (
    building,
    check,
    file_sha256,
    provenance,
    read_manifest,
    require,
    seal,
    write_json,
)

WEIGHTS = "*.safetensors"
MODEL_FILES = (WEIGHTS, "*.json", "*.jinja", "*.model")


@dataclass(frozen=True)
class PairInfo:
    """A prepared pair, to be read at one layer."""

    base: str  # directory, or id of the hub
    chat: str
    base_revision: str | None  # commit of the hub, None for directories
    chat_revision: str | None
    layer: int  # residuals are the output of this block
    dtype: str  # of the weights when they are run
    d_model: int
    n_layers: int
    vocab_size: int  # of the chat model
    replacements: dict[int, int]  # token ids replaced in what the base model reads
    tokenizer: dict[str, Any]  # facts: class, size, bos, eos, digest of the chat template
    key: str  # content key of results/models
    folder: Path  # results/models

    def load_base(self, device: str, upper: bool = False) -> ResidualModel:
        """Load the base model; `TunediffError`: its weights in results/models are damaged."""
        self._check_weights("base")
        return ResidualModel.load(self.base, self.layer, self.dtype, device, upper, self.base_revision)

    def load_chat(self, device: str, upper: bool = False) -> ResidualModel:
        """Load the chat model; `TunediffError`: its weights in results/models are damaged."""
        self._check_weights("chat")
        return ResidualModel.load(self.chat, self.layer, self.dtype, device, upper, self.chat_revision)

    def _check_weights(self, model: str) -> None:
        """Compare the sha256 of a model's weights (about a second per GB) where they lie in results/models."""
        manifest = read_manifest(self.folder, "models", self.key)
        require(self.folder, manifest, [name for name in manifest.files if fnmatch(name, f"{model}/{WEIGHTS}")])

    def load_tokenizer(self) -> "transformers.PreTrainedTokenizerBase":
        """Load the tokenizer of the pair: the chat model's."""
        return load_tokenizer(self.chat, self.chat_revision)


def load_pair(models_dir: Path, layer: int, dtype: str, *, key: str | None = None) -> PairInfo:
    """Read results/models, to be run in `dtype` and read after block `layer`; weights are checked when they are loaded.

    Raises
    ------
    TunediffError
        It is missing, incomplete, damaged or made by other inputs than `key` says, or has no such layer.
    """
    manifest = check(models_dir, "models", key, later=[f"*/{WEIGHTS}"])
    values = json.loads((models_dir / "pair.json").read_text(encoding="utf-8"))
    paths = {name: str(models_dir / name) if values[f"{name}_inside"] else values[name] for name in ("base", "chat")}
    check_layer(layer, values["n_layers"], paths["chat"])
    torch_dtype(dtype)
    kept = ("base_revision", "chat_revision", "d_model", "n_layers", "vocab_size", "tokenizer")
    return PairInfo(
        base=paths["base"],
        chat=paths["chat"],
        **{name: values[name] for name in kept},
        layer=layer,
        dtype=dtype,
        replacements={int(old): new for old, new in values["replacements"].items()},
        key=manifest.key,
        folder=models_dir,
    )


def verify_pair(pair: PairInfo, device: str, out: Path, *, key: str) -> None:
    """Run `verify_hooks` on both models and write what it measured to `out` (JSON).

    Raises
    ------
    TunediffError
        A check fails, or a model cannot be read.
    """
    facts: dict[str, Any] = {"kind": "hooks", "key": key, "layer": pair.layer, "dtype": pair.dtype}
    for name, load in (("base", pair.load_base), ("chat", pair.load_chat)):
        model = load(device, upper=True)
        model.name = f"{name} model {model.name}"
        facts[name] = verify_hooks(model)
        del model
    write_json(out, facts)


def directory_digest(directory: Path) -> str:
    """Return one sha256 over the weights, configuration and tokenizer files of a model directory."""
    files = sorted({path for pattern in MODEL_FILES for path in directory.glob(pattern)})
    return hashlib.sha256(json.dumps([[path.name, file_sha256(path)] for path in files]).encode()).hexdigest()


class _Placed(NamedTuple):
    """Where a model of a pair is, and what pair.json says of it."""

    path: str  # directory, or id of the hub
    revision: str | None  # commit of the hub, None for directories
    digest: str  # of a directory's files; the commit of a model of the hub
    told: str  # how messages and pair.json name it
    inside: bool = False  # whether it is a directory of the artifact itself
    adapter: dict[str, Any] | None = None  # what it was merged from, and what was checked


def is_hub_id(name: str) -> bool:
    """Whether a name is an id of the hub (`organisation/model`) rather than that of a directory."""
    path = Path(name).expanduser()
    return name.count("/") == 1 and not name.startswith(".") and not path.is_absolute() and not path.is_dir()


def _locate(model: str, revision: str | None, config_file: str = "config.json") -> tuple[Path, _Placed]:
    """Return the directory of a model or adapter named in the config, fetched if need be, and what is said of it."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        if not (directory / config_file).is_file():
            raise TunediffError(f"{directory}: has no {config_file}; give a directory written by save_pretrained")
        directory = directory.resolve()
        if config_file == "config.json":
            require_safetensors(directory, str(directory))
        return directory, _Placed(str(directory), None, directory_digest(directory), str(directory))
    if not is_hub_id(model):
        raise TunediffError(f"{model}: no such directory, and not an id of the hub (`organisation/model`)")
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(model, revision=revision, allow_patterns=list(MODEL_FILES)))
    except (OSError, ValueError) as error:  # the hub's own errors are among them
        raise reading_error("model", model, error) from error
    if config_file == "config.json":
        require_safetensors(snapshot, model)
    return snapshot, _Placed(model, snapshot.name, snapshot.name, model)


def _merge(model: Mapping[str, Any], target: Path) -> _Placed:
    """Merge a base model with its adapter into the directory `target`."""
    from tunediff.models.adapters import merge_adapter  # peft takes seconds to import

    base_directory, base = _locate(model["base"], model.get("base_revision"))
    directory, adapter = _locate(model["adapter"], model.get("revision"), "adapter_config.json")
    checked = merge_adapter(base_directory, directory, target, base_name=model["base"], adapter_name=model["adapter"])
    facts = {"base": base.told, "base_revision": base.revision, "base_digest": base.digest}
    facts |= {"adapter": adapter.told, "revision": adapter.revision, "digest": adapter.digest, **checked}
    told = f"{base.told} with adapter {adapter.told}"
    return _Placed(str(target), None, directory_digest(target), told, inside=True, adapter=facts)


def _place_demo(settings: Mapping[str, Any], shipped: Path, target: Path) -> None:
    """Put two of the demo's models at target/base and target/chat: copies of the shipped ones, or trained anew."""
    from tunediff.demo.pair import VARIANTS, PairConfig, train_pair, train_variant

    recipe = dict(settings.get("demo", {}))
    if recipe.pop("retrain", False):
        train_pair(target, PairConfig(**recipe))
        return
    for name in ("base", "chat"):
        if not (shipped / name / "config.json").is_file():
            raise TunediffError(
                f"{shipped / name}: the shipped demo pair is missing; restore it with git, or set "
                "`models.demo.retrain: true` to train it again"
            )
    report = json.loads((shipped / "report.json").read_text(encoding="utf-8"))  # what each model learned
    for side in ("base", "chat"):
        model = settings[side].removeprefix("demo-")
        if model in VARIANTS:
            report[model] = train_variant(model, shipped / "base", target / side, PairConfig(**recipe))
        else:
            shutil.copytree(shipped / model, target / side)
    (target / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_agreement(
    base: Any, chat: Any, tokenizer: "transformers.PreTrainedTokenizerBase", replacements: Mapping[int, int]
) -> None:
    for name, attribute in (("width (d_model)", "hidden_size"), ("number of blocks", "num_hidden_layers")):
        left, right = getattr(base, attribute), getattr(chat, attribute)
        if left != right:
            raise TunediffError(f"models: the {name} differs, base {left}, chat {right}; give a base and its own tune")
    read_by_base = {replacements.get(i, i) for i in tokenizer.get_vocab().values()}
    if max(read_by_base) >= base.vocab_size:
        raise TunediffError(
            f"models: the chat tokenizer gives ids up to {max(read_by_base)}, the base model embeds only "
            f"{base.vocab_size} (chat {chat.vocab_size}); map the new ids in `models.base_token_replacements`"
        )


def prepare_pair(settings: Mapping[str, Any], shipped: Path, out_dir: Path, *, key: str) -> dict[str, Any]:
    """Resolve a pair of models and check that they fit together; write `out_dir` and its manifest.

    `settings` is the config's `models` section: `base` and `chat` are directories, ids of the hub, mappings of a base
    and an adapter, which are merged into `out_dir`, or both models of the demo (`demo.DEMO_MODELS`), which are copied
    from `shipped` (or trained) into it. Only what is merged or trained is run here. Returns what pair.json holds.

    Raises
    ------
    TunediffError
        A model, adapter or tokenizer cannot be read, or two of them do not fit together.
    """
    started = time.time()
    replacements = {int(old): int(new) for old, new in settings.get("base_token_replacements", {}).items()}
    demo = settings["base"] in DEMO_MODELS
    if demo != (settings["chat"] in DEMO_MODELS):
        raise TunediffError("models: `base` and `chat` must both be models of the demo, or neither")
    with building(out_dir) as partial:
        partial.mkdir(parents=True)
        if demo:
            _place_demo(settings, shipped, partial)
        placed: dict[str, _Placed] = {}
        configs: dict[str, Any] = {}
        for name in ("base", "chat"):
            model, target = settings[name], partial / name
            if demo:
                of = _Placed(str(target), None, directory_digest(target), model, inside=True)
            elif isinstance(model, str):
                of = _locate(model, settings.get(f"{name}_revision"))[1]
            else:
                of = _merge(model, target)
            try:
                configs[name] = text_config(transformers.AutoConfig.from_pretrained(of.path, revision=of.revision))
            except Exception as error:  # transformers raises all kinds for a damaged file
                raise reading_error("model", of.told, error) from error
            placed[name] = of
        base, chat = placed["base"], placed["chat"]
        tokenizer = load_tokenizers(
            base.path, chat.path, replacements, base.revision, chat.revision, (base.told, chat.told)
        )
        _check_agreement(configs["base"], configs["chat"], tokenizer, replacements)
        facts: dict[str, Any] = {
            "d_model": configs["chat"].hidden_size,
            "n_layers": configs["chat"].num_hidden_layers,
            "vocab_size": configs["chat"].vocab_size,
            "replacements": {str(old): new for old, new in replacements.items()},
            "tokenizer": {
                "class": type(tokenizer).__name__,
                "size": len(tokenizer),
                "bos": tokenizer.bos_token,
                "eos": tokenizer.eos_token,
                "chat_template_sha256": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
            },
        }
        for name, of in placed.items():
            facts |= {name: of.told, f"{name}_inside": of.inside, f"{name}_revision": of.revision}
            facts |= {f"{name}_digest": of.digest, f"{name}_adapter": of.adapter}
        (partial / "pair.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    seal(out_dir, "models", key, facts, provenance(started))
    return facts
