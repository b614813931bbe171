"""The model pair: residual streams read and patched with nnsight, and the proof that the hooks do what they say.

`layer` always means the OUTPUT of block `layer`, which is ``hidden_states[layer + 1]`` of transformers.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from nnsight.modeling.transformers import TransformersModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tunediff.demo import DEMO_MODELS
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import building, check, file_sha256, provenance, seal, write_text

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Largest tolerated difference, relative to the largest value compared: kernels may sum in another order when the
# number of rows changes, and bfloat16 keeps 8 bits of mantissa.
TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 5e-3}

LOGITS_AT_ONCE = 1 << 25  # turned into float32 at once by what compares logits: 128 MiB, not a batch's gigabytes

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model")


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype called float32, bfloat16 or float16."""
    if name not in DTYPES:
        raise TunediffError(f"dtype '{name}': not supported; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def replace_tokens(ids: Int[Tensor, "*shape"], table: Mapping[int, int]) -> Int[Tensor, "*shape"]:
    """Return the ids with every key of `table` replaced by its value; the input is left as it is."""
    if not table:
        return ids
    replaced = ids.clone()
    for old, new in table.items():
        replaced[ids == old] = new
    return replaced


def reading_error(what: str, path: str, error: Exception) -> TunediffError:
    """Turn what transformers and the hub raise into one line with a remedy."""
    cause = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if "gated" in str(error).lower() or "401" in cause or "403" in cause:
        remedy = f"accept the terms at https://huggingface.co/{path} and set HF_TOKEN"
    elif Path(path).exists():
        remedy = "the directory needs config.json, *.safetensors and the tokenizer files of save_pretrained"
    else:
        remedy = "give a local directory, or an id of the hub that is cached or reachable (HF_HUB_OFFLINE unset)"
    return TunediffError(f"{path}: cannot read the {what} ({cause}); {remedy}")


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer.

    Raises
    ------
    TunediffError
        It cannot be read, or it is not a fast one (only those map tokens to characters).
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), revision=revision)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise reading_error("tokenizer", str(path), error) from error
    if not tokenizer.is_fast:
        raise TunediffError(f"{path}: its tokenizer is not a fast one (no character offsets); save it with tokenizers")
    return tokenizer


def load_tokenizers(
    base: str | Path,
    chat: str | Path,
    replacements: Mapping[int, int],
    base_revision: str | None = None,
    chat_revision: str | None = None,
    told: tuple[str, str] | None = None,
) -> PreTrainedTokenizerBase:
    """Load the chat tokenizer, having checked that the base model reads the same ids as the same tokens.

    `told` is how errors name the two, if not by their paths.

    Raises
    ------
    TunediffError
        No chat template, or ids that stand for different tokens and are not in `replacements`.
    """
    tokenizer = load_tokenizer(chat, chat_revision)
    base_told, chat_told = told or (str(base), str(chat))
    if not tokenizer.chat_template:
        raise TunediffError(
            f"{chat_told}: the tokenizer has no chat template; add chat_template.jinja to its directory"
        )
    of_base = {index: token for token, index in load_tokenizer(base, base_revision).get_vocab().items()}
    of_chat = {index: token for token, index in tokenizer.get_vocab().items()}
    differing = sorted(i for i, token in of_chat.items() if of_base.get(i) != token and i not in replacements)
    if differing:
        shown = ", ".join(f"{i}: {of_base.get(i)!r} / {of_chat[i]!r}" for i in differing[:5])
        shown += ", …" * (len(differing) > 5)
        raise TunediffError(
            f"{base_told} and {chat_told}: {len(differing)} ids differ (base / chat {shown}); "
            "use a pair with one tokenizer, or map these ids in `models.base_token_replacements`"
        )
    return tokenizer


def find_blocks(model: nn.Module, n_layers: int) -> str:
    """Return the path of the ModuleList of transformer blocks ("model.layers" for Gemma 2, Llama and Qwen 2)."""
    found = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not found:
        raise TunediffError(
            f"{type(model).__name__}: no list of {n_layers} blocks found; supported are decoders with one ModuleList "
            "of num_hidden_layers blocks, as Gemma 2, Llama 3 and Qwen 2.5 have"
        )
    return min(found, key=lambda name: name.count("."))


def text_config(config: Any) -> Any:
    """Return the config of the language model, which for some models is a part of the checkpoint's config."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def check_layer(layer: int, n_layers: int, name: str) -> None:
    """Raise a `TunediffError` where block `layer` does not exist or is the last one."""
    if not 0 <= layer < n_layers - 1:
        raise TunediffError(
            f"layer {layer}: {name} has {n_layers} blocks, so `models.layer` must be 0 to {n_layers - 2} "
            "(the last block's output is never read by another block)"
        )


class ResidualModel:
    """A causal language model whose residual stream after block `layer` can be read and replaced."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layer: int, upper: bool = True, name: str = ""
    ) -> None:
        self.name = name or type(model).__name__
        config = text_config(model.config)
        self.n_layers, self.d_model, self.vocab_size = config.num_hidden_layers, config.hidden_size, config.vocab_size
        check_layer(layer, self.n_layers, self.name)
        self.layer = layer
        self.upper = upper
        self.model = model.eval().requires_grad_(False)
        # Checkpoints come with sampling and penalties of their own; answers here are greedy.
        self.model.generation_config = GenerationConfig()
        path = find_blocks(model, self.n_layers)
        if not upper:
            parent, _, last = path.rpartition(".")
            blocks: Any = model.get_submodule(path)
            setattr(model.get_submodule(parent) if parent else model, last, blocks[: layer + 1])
            if hasattr(model, "lm_head"):
                model.lm_head = nn.Identity()
        self._traced = TransformersModel(self.model, tokenizer=tokenizer, task="text-generation")
        envoy: Any = self._traced
        for part in path.split("."):
            envoy = getattr(envoy, part)
        self._blocks = [envoy[i] for i in range(layer + 1)]
        self._returns_tuple: bool | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        layer: int,
        dtype: str = "float32",
        device: str = "cpu",
        upper: bool = True,
        revision: str | None = None,
    ) -> "ResidualModel":
        """Load a checkpoint; with `upper` False only blocks 0..layer are kept in memory and no logits can be asked.

        Raises
        ------
        TunediffError
            The checkpoint cannot be read, or `layer` is not one whose output another block reads.
        """
        try:
            model = AutoModelForCausalLM.from_pretrained(str(path), dtype=torch_dtype(dtype), revision=revision)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise reading_error("model", str(path), error) from error
        residual_model = cls(model, load_tokenizer(path, revision), layer, upper, name=str(path))
        residual_model.model.to(device)
        return residual_model

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights and of the residuals."""
        return self.model.dtype

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        ids = input_ids.to(self.device)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(self.device)
        # Right padding: real tokens come first, so positions count from 0 in every row.
        positions = torch.arange(ids.shape[1], device=self.device)[None].expand_as(ids)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}

    def residual(
        self, input_ids: Int[Tensor, "batch position"], attention_mask: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position d_model"]:
        """Return the output of block `layer`, the forward pass stopped there; rows are padded on the right."""
        inputs = self._inputs(input_ids, attention_mask)
        block = self._blocks[-1]
        with torch.no_grad(), self._traced.trace(**inputs) as tracer:
            output = block.output.save()
            tracer.stop()
        self._returns_tuple = isinstance(output, tuple)
        return output[0] if self._returns_tuple else output

    def logits_from(
        self,
        residual: Float[Tensor, "batch position d_model"],
        input_ids: Int[Tensor, "batch position"],
        attention_mask: Int[Tensor, "batch position"] | None,
        positions: Int[Tensor, "kept"],
    ) -> Float[Tensor, "batch kept vocab"]:
        """Continue the forward pass from `residual` (blocks 0..layer are not run); logits only at `positions`."""
        if not self.upper:
            raise TunediffError(f"{self.name}: loaded without its upper half; load it with upper=True for logits")
        if self._returns_tuple is None:
            self.residual(input_ids[:1, :1])
        inputs = self._inputs(input_ids, attention_mask)
        kept = positions.to(self.device)
        patch = residual.to(self.device, self.dtype)
        replacement = (patch,) if self._returns_tuple else patch
        blocks = self._blocks
        traced = self._traced
        with torch.no_grad(), traced.trace(**inputs, logits_to_keep=kept) as tracer:  # noqa: F841
            for block in blocks:
                block.skip(replacement)
            # The model's output, not lm_head's: Gemma 2 caps its logits after lm_head.
            logits = traced.output.logits.save()
        return logits

    def generate(
        self,
        input_ids: Int[Tensor, "batch prompt"],
        attention_mask: Int[Tensor, "batch prompt"],
        max_new_tokens: int,
        stop_ids: Sequence[int],
    ) -> Int[Tensor, "batch new"]:
        """Answer greedily; prompts are padded on the LEFT, rows that have stopped are filled with the stop id."""
        if not self.upper:
            raise TunediffError(f"{self.name}: loaded without its upper half; load it with upper=True to generate")
        with torch.no_grad():
            ids = self.model.generate(
                input_ids=input_ids.to(self.device),
                attention_mask=attention_mask.to(self.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(stop_ids),
                pad_token_id=stop_ids[0],
            )
        return ids[:, input_ids.shape[1] :]


def relative_difference(left: Tensor, right: Tensor) -> float:
    """Return the largest absolute difference over the largest absolute value."""
    left, right = left.double(), right.double()
    return float((left - right).abs().max() / right.abs().max().clamp_min(1e-12))


def verify_hooks(model: ResidualModel) -> dict[str, Any]:
    """Prove on a small random batch that the residual is read and replaced as stated.

    Checked, relative to the largest value: shapes; residual = ``hidden_states[layer + 1]``; logits continued from the
    model's own residual = its logits; padding on the right changes no real position; and that a changed residual does
    change the logits.

    Raises
    ------
    TunediffError
        One of them does not hold.
    """
    ids = torch.randint(0, model.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0)).to(model.device)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    real = mask.bool()
    residual = model.residual(ids, mask)
    if residual.shape != (2, 24, model.d_model):
        raise TunediffError(f"{model.name}: block {model.layer} gives {tuple(residual.shape)}, not a residual stream")
    with torch.no_grad():
        whole = model.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    positions = torch.tensor([0, 7, 14])
    continued = model.logits_from(residual, ids, mask, positions)
    changed = model.logits_from(1.5 * residual, ids, mask, positions)
    differences = {
        "residual_against_hidden_states": relative_difference(
            residual[real], whole.hidden_states[model.layer + 1][real]
        ),
        "logits_from_own_residual": relative_difference(continued, whole.logits[:, positions.to(model.device)]),
        "right_padding": relative_difference(residual[1, :15], model.residual(ids[1:, :15])[0]),
    }
    tolerance = TOLERANCE[str(model.dtype).removeprefix("torch.")]
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise TunediffError(
                f"{model.name}: hook check '{name}' failed at layer {model.layer} (relative difference "
                f"{difference:.2g}, tolerated {tolerance:g}); this architecture is not supported by this version"
            )
    effect = relative_difference(changed, continued)
    if not effect > 0:
        raise TunediffError(f"{model.name}: replacing the residual of block {model.layer} changes no logit")
    return {
        "layer": model.layer,
        "dtype": str(model.dtype).removeprefix("torch."),
        "tolerance": tolerance,
        **differences,
        "effect_of_scaled_residual": effect,
    }


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

    def load_base(self, device: str, upper: bool = False) -> ResidualModel:
        """Load the base model."""
        return ResidualModel.load(self.base, self.layer, self.dtype, device, upper, self.base_revision)

    def load_chat(self, device: str, upper: bool = False) -> ResidualModel:
        """Load the chat model."""
        return ResidualModel.load(self.chat, self.layer, self.dtype, device, upper, self.chat_revision)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the pair: the chat model's."""
        return load_tokenizer(self.chat, self.chat_revision)


def load_pair(models_dir: Path, layer: int, dtype: str, *, key: str | None = None) -> PairInfo:
    """Read results/models, to be run in `dtype` and read after block `layer`.

    Raises
    ------
    TunediffError
        It is missing, incomplete, damaged or made by other inputs than `key` says, or has no such layer.
    """
    manifest = check(models_dir, "models", key)
    values = json.loads((models_dir / "pair.json").read_text(encoding="utf-8"))
    paths = {name: str(models_dir / name) if values[f"{name}_inside"] else values[name] for name in ("base", "chat")}
    check_layer(layer, values["n_layers"], paths["chat"])
    torch_dtype(dtype)
    return PairInfo(
        **paths,
        base_revision=values["base_revision"],
        chat_revision=values["chat_revision"],
        layer=layer,
        dtype=dtype,
        d_model=values["d_model"],
        n_layers=values["n_layers"],
        vocab_size=values["vocab_size"],
        replacements={int(old): new for old, new in values["replacements"].items()},
        tokenizer=values["tokenizer"],
        key=manifest.key,
    )


def verify_pair(pair: PairInfo, device: str, out: Path, *, key: str) -> dict[str, Any]:
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
    write_text(out, json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return facts


def directory_digest(directory: Path) -> str:
    """Return one sha256 over the weights, configuration and tokenizer files of a model directory."""
    files = sorted({path for pattern in WEIGHT_FILES for path in directory.glob(pattern)})
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


def _locate(model: str, revision: str | None, config_file: str = "config.json") -> tuple[Path, str | None]:
    """Return the directory of a model or adapter named in the config, fetched if need be, and its commit of the hub."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        if not (directory / config_file).is_file():
            raise TunediffError(f"{directory}: has no {config_file}; give a directory written by save_pretrained")
        return directory.resolve(), None
    if not is_hub_id(model):
        raise TunediffError(f"{model}: no such directory, and not an id of the hub (`organisation/model`)")
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(model, revision=revision, allow_patterns=list(WEIGHT_FILES)))
    except (OSError, ValueError) as error:  # the hub's own errors are among them
        raise reading_error("model", model, error) from error
    return snapshot, snapshot.name


def _resolve(model: str, revision: str | None) -> _Placed:
    directory, commit = _locate(model, revision)
    if commit is None:
        return _Placed(str(directory), None, directory_digest(directory), str(directory))
    return _Placed(model, commit, commit, model)


def _merge(model: Mapping[str, Any], target: Path) -> _Placed:
    """Merge a base model with its adapter into the directory `target`."""
    from tunediff.models.adapters import merge_adapter  # peft takes seconds to import

    base, adapter = model["base"], model["adapter"]
    base_directory, base_commit = _locate(base, model.get("base_revision"))
    directory, commit = _locate(adapter, model.get("revision"), "adapter_config.json")
    checked = merge_adapter(base_directory, directory, target, base_name=base, adapter_name=adapter)
    facts = {
        "base": base if base_commit else str(base_directory),
        "base_revision": base_commit,
        "base_digest": base_commit or directory_digest(base_directory),
        "adapter": adapter if commit else str(directory),
        "revision": commit,
        "digest": commit or directory_digest(directory),
        **checked,
    }
    told = f"{facts['base']} with adapter {facts['adapter']}"
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


def _check_agreement(base: Any, chat: Any, tokenizer: PreTrainedTokenizerBase, replacements: Mapping[int, int]) -> None:
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
        for name in ("base", "chat"):
            model, target = settings[name], partial / name
            if demo:
                placed[name] = _Placed(str(target), None, directory_digest(target), model, inside=True)
            elif isinstance(model, str):
                placed[name] = _resolve(model, settings.get(f"{name}_revision"))
            else:
                placed[name] = _merge(model, target)
        configs = {}
        for name, of in placed.items():
            try:
                configs[name] = text_config(AutoConfig.from_pretrained(of.path, revision=of.revision))
            except (OSError, ValueError, KeyError) as error:
                raise reading_error("model", of.told, error) from error
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
            facts |= {
                name: of.told,
                f"{name}_inside": of.inside,
                f"{name}_revision": of.revision,
                f"{name}_digest": of.digest,
                f"{name}_adapter": of.adapter,
            }
        (partial / "pair.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    seal(out_dir, "models", key, facts, provenance(started))
    return facts
