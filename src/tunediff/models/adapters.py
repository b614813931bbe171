"""A base model with an adapter, merged into an ordinary model, and the proof that nothing else was changed.

Low-rank adapters (Hu et al. 2021) are supported: a merged weight is W + s · B A, with s = alpha / r (or alpha / √r).
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from jaxtyping import Float
from peft import PeftConfig, PeftModel, PeftType
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tunediff.errors import TunediffError
from tunediff.models.hooks import relative_difference
from tunediff.models.pair import is_hub_id
from tunediff.models.residual import text_config
from tunediff.models.tokenizers import load_tokenizer, reading_error
from tunediff.models.weights import load_model

# Largest tolerated difference of logits between the merged model and the base with the adapter beside it, both in
# float32, relative to the largest logit: only the order of summation differs (measured 3e-6 on Gemma 3 270M).
MERGE_TOLERANCE = 1e-4

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
STORED = {frozenset({"BF16"}): torch.bfloat16, frozenset({"F16"}): torch.float16}  # dtypes in a checkpoint's headers


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _read_config(directory: Path, name: str) -> PeftConfig:
    """Return the adapter's config, having checked that it is a low-rank adapter in safetensors."""
    remedies = {
        CONFIG: "give a directory or hub id written by peft's save_pretrained",
        WEIGHTS: "pickled weights (adapter_model.bin) are not read; load it with peft and save it again with "
        "save_pretrained(…, safe_serialization=True)",
    }
    for file, remedy in remedies.items():
        if not (directory / file).is_file():
            raise TunediffError(f"adapter {name}: has no {file}; {remedy}")
    try:
        config = PeftConfig.from_pretrained(str(directory))
        raw = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TunediffError(
            f"adapter {name}: cannot read {CONFIG} ({_cause(error)}); save it again with peft's save_pretrained"
        ) from error
    if config.peft_type != PeftType.LORA:
        raise TunediffError(
            f"adapter {name}: is of type {config.peft_type}, only LORA is read; "
            "merge it with peft and give the merged model's directory"
        )
    # peft leaves out settings of a later version with a warning: what switches something on must not be lost.
    for setting, value in raw.items():
        if not hasattr(config, setting) and (value is True or (isinstance(value, dict) and value)):
            raise TunediffError(
                f"adapter {name}: its setting `{setting}` is of a later peft than {peft.__version__}; "
                "merge it with that and give the merged model's directory"
            )
    return config


def _check_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TunediffError(f"{what}: tensor {name} has values that are not finite; give undamaged weights")


def stored_dtype(directory: Path) -> torch.dtype:
    """Return bfloat16 or float16 where all weights of a checkpoint are stored so, else float32."""
    kinds: set[str] = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            kinds |= {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
    return STORED.get(frozenset(kinds), torch.float32)


def _load_base(directory: Path, name: str, adapted: Collection[str]) -> PreTrainedModel:
    """Load the base in float32; `adapted` are the names of the adapter's tensors."""
    try:
        stored = AutoConfig.from_pretrained(directory)
    except Exception as error:  # transformers raises all kinds for a damaged file
        raise reading_error("model", name, error) from error
    if getattr(stored, "quantization_config", None) is not None:
        raise TunediffError(f"{name}: is quantised, an adapter cannot be merged exactly; give the unquantised model")
    model: Any = load_model(directory, torch.float32, told=name)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    ends = [f".{path}." for path, module in model.named_modules() if module in (head, embeddings)]
    if head is not None and head.weight is embeddings.weight and any(end in key for end in ends for key in adapted):
        # One weight for both: merging what the adapter adds to one of them would change the other.
        head.weight = nn.Parameter(head.weight.detach().clone())
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _logits(model: nn.Module, vocab_size: int) -> Float[Tensor, "batch position vocab"]:
    """Return the logits of a small random batch, the same at every call."""
    ids = torch.randint(0, vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, use_cache=False).logits


def _attach(
    model: PreTrainedModel, config: PeftConfig, directory: Path, told: str
) -> tuple[PeftModel, dict[str, Tensor]]:
    """Put the adapter, all of its tensors fitting, beside the weights of `model`; return that, and its own biases."""
    unfit = "this is not the base it was trained on, or the adapter is incomplete; give that base, or save it again"
    try:
        adapted = PeftModel(model, config)
        own = {k: p.detach().clone() for k, p in adapted.named_parameters() if k.endswith("bias") and "lora_" not in k}
        result = adapted.load_adapter(str(directory), "default", torch_device="cpu")
    except (ValueError, RuntimeError, KeyError, NotImplementedError, ImportError) as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
        cause = next((line for line in lines if "mismatch" in line), lines[0] if lines else type(error).__name__)
        raise TunediffError(f"{told}: does not fit ({cause[:300]}); {unfit}") from error
    for problem, keys in (("lacks", result.missing_keys), ("has an unknown tensor", result.unexpected_keys)):
        if keys:
            raise TunediffError(f"{told}: {problem} {keys[0]} (one of {len(keys)}); {unfit}")
    return adapted, own


@torch.no_grad()
def _zeroed_logits(adapted: PeftModel, biases: dict[str, Tensor], vocab_size: int) -> Tensor:
    """Return the logits with LoRA weights 0 and what else the adapter holds as in the base; put the adapter back."""
    trained = {k: p for k, p in adapted.named_parameters() if "lora_" in k or k in biases}
    kept = {k: p.clone() for k, p in trained.items()}
    replaced = [module for module in adapted.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    for k, parameter in trained.items():
        parameter.copy_(biases[k]) if k in biases else parameter.zero_()
    for module in replaced:
        module.enable_adapters(False)
    logits = _logits(adapted, vocab_size)
    for module in replaced:
        module.enable_adapters(True)
    for k, parameter in trained.items():
        parameter.copy_(kept[k])
    return logits


def _tokenizer(base: Path, adapter: Path) -> PreTrainedTokenizerBase:
    """Return the adapter's tokenizer if it has a chat template, else the base's, with the adapter's template if any."""
    if (adapter / "tokenizer.json").is_file():
        own = load_tokenizer(adapter)
        if own.chat_template:
            return own
    tokenizer, template = load_tokenizer(base), adapter / "chat_template.jinja"
    if template.is_file():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def merge_adapter(base: Path, adapter: Path, out: Path, *, base_name: str, adapter_name: str) -> dict[str, Any]:
    """Merge the adapter of one directory into the model of another, and save model and tokenizer at `out`.

    Checked on a small random batch, in float32: with the adapter zeroed the logits are exactly the base's; merged
    weights give what base and adapter give side by side; the logits differ from the base's, by more than saving them
    rounds. The saved files are read again and hold the merged weights. `base_name` and `adapter_name` are the config's
    words for the two. Returns what was measured, differences relative to the largest logit.

    Raises
    ------
    TunediffError
        A check fails, a file cannot be read, or a weight is not finite.
    """
    told = f"adapter {adapter_name} on {base_name}"
    config = _read_config(adapter, adapter_name)
    own = config.base_model_name_or_path
    if own and is_hub_id(own) and is_hub_id(base_name) and own.lower() != base_name.lower():
        raise TunediffError(
            f"adapter {adapter_name}: was trained on {own}, the config gives base {base_name}; write `base: {own}`, "
            "or the local directory of a copy of it"
        )
    try:
        tensors = load_file(adapter / WEIGHTS)
    except SafetensorError as error:
        raise TunediffError(
            f"adapter {adapter_name}: {WEIGHTS} is damaged ({error}); fetch or save it again"
        ) from error
    _check_finite(f"adapter {adapter_name}", tensors)
    model = _load_base(base, base_name, tensors.keys())
    vocab_size = text_config(model.config).vocab_size
    of_base = _logits(model, vocab_size)
    _check_finite(base_name, {"of its logits": of_base})

    adapted, biases = _attach(model, config, adapter, told)
    zeroed = float((_zeroed_logits(adapted, biases, vocab_size) - of_base).abs().max())
    if zeroed != 0:
        raise TunediffError(
            f"{told}: with the adapter zeroed the logits are not the base's (difference {zeroed:.3g}), so it changes "
            "more than it adds (DoRA, PiSSA and the like); merge it with peft and give the merged model's directory"
        )
    of_adapter = _logits(adapted, vocab_size)
    try:
        merged: Any = adapted.merge_and_unload()
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise TunediffError(
            f"{told}: cannot be merged ({_cause(error)}); give a model that is merged already"
        ) from error
    _check_finite(f"{told}, merged", merged.state_dict())
    of_merged = _logits(merged, vocab_size)
    _check_finite(told, {"of its logits": of_adapter, "of the merged logits": of_merged})
    difference = relative_difference(of_merged, of_adapter)
    if not difference <= MERGE_TOLERANCE:
        raise TunediffError(
            f"{told}: merged weights give other logits than the adapter beside the base (relative difference "
            f"{difference:.2g}, tolerated {MERGE_TOLERANCE:g}); merge it yourself and give that model's directory"
        )
    effect = relative_difference(of_merged, of_base)
    if not effect > 0:
        raise TunediffError(f"{told}: changes no logit; give an adapter that was trained, or the base alone")

    # Kept in the base's own dtype, as merged models are published: both models of the pair are then rounded alike, and
    # the default run in bfloat16 reads exactly these weights. A float32 base keeps float32.
    dtype = stored_dtype(base)
    merged.to(dtype)
    merged.config.dtype = dtype
    merged.generation_config = GenerationConfig()  # the base's may hold settings that are refused when saved
    _check_finite(f"{told}, merged in {dtype}", merged.state_dict())
    merged.save_pretrained(out)
    _tokenizer(base, adapter).save_pretrained(out)
    saved: Any = load_model(out, dtype, told=f"{told}, merged and saved").eval()
    read, wanted = saved.state_dict(), merged.state_dict()
    for k in [*wanted, *sorted(read.keys() - wanted.keys())]:
        if k not in read or k not in wanted or not torch.equal(read[k], wanted[k]):
            raise TunediffError(
                f"{told}: {k} is not saved as merged; merge it yourself and give that model's directory"
            )
    rounding = relative_difference(_logits(saved.float(), vocab_size), of_merged)
    if not rounding < effect:
        raise TunediffError(
            f"{told}: what it changes is lost in {dtype} (relative difference of logits {effect:.2g}, of rounding "
            f"{rounding:.2g}); give the base stored in float32, and `models.dtype: float32`"
        )
    measured = {"merged_against_adapter": difference, "effect_on_logits": effect, "rounding_of_logits": rounding}
    return {
        "own_base": own,
        "rank": getattr(config, "r", None),
        "alpha": getattr(config, "lora_alpha", None),
        "tensors": len(tensors),
        "dtype": str(dtype).removeprefix("torch."),
        "zeroed_against_base": zeroed,
        "merge_tolerance": MERGE_TOLERANCE,
        # Manifests hold nothing that another number of threads would change.
        **{name: float(f"{value:.3g}") for name, value in measured.items()},
    }
