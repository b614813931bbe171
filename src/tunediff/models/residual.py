"""Residual streams of one model: read after a block, and continued from there, with nnsight.

`layer` always means the OUTPUT of block `layer`, which is ``hidden_states[layer + 1]`` of transformers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn

from tunediff.errors import TunediffError
from tunediff.models.tokenizers import load_tokenizer
from tunediff.models.weights import load_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LOGITS_AT_ONCE = 1 << 25  # turned into float32 at once by what compares logits: 128 MiB, not a batch's gigabytes


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype called float32, bfloat16 or float16."""
    if name not in DTYPES:
        raise TunediffError(f"dtype '{name}': not supported; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def replace_tokens(ids: Int[Tensor, "*shape"], table: Mapping[int, int]) -> Int[Tensor, "*shape"]:
    """Return the ids with every key of `table` replaced by its value; the input is left as it is."""
    replaced = ids.clone()
    for old, new in table.items():
        replaced[ids == old] = new
    return replaced


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
        self,
        model: "transformers.PreTrainedModel",
        tokenizer: "transformers.PreTrainedTokenizerBase",
        layer: int,
        upper: bool = True,
        name: str = "",
    ) -> None:
        from nnsight.modeling.transformers import TransformersModel  # takes seconds; only who runs a model needs it

        self.name = name or type(model).__name__
        config = text_config(model.config)
        self.n_layers, self.d_model, self.vocab_size = config.num_hidden_layers, config.hidden_size, config.vocab_size
        check_layer(layer, self.n_layers, self.name)
        self.layer, self.upper = layer, upper
        self.model = model.eval().requires_grad_(False)
        # Checkpoints come with sampling and penalties of their own; answers here are greedy.
        self.model.generation_config = transformers.GenerationConfig()
        path = find_blocks(model, self.n_layers)
        self._block: nn.Module = model.get_submodule(f"{path}.{layer}")
        parent, _, last = path.rpartition(".")
        decoder: Any = model.get_submodule(parent) if parent else model
        if not upper:
            setattr(decoder, last, decoder.get_submodule(last)[: layer + 1])
            if hasattr(model, "lm_head"):
                model.lm_head = nn.Identity()
        # Wrapped by a pipeline of transformers, which moves the model to the first GPU unless it is told a device.
        self._traced = TransformersModel(
            self.model, tokenizer=tokenizer, task="text-generation", device=self.model.device
        )
        envoy: Any = self._traced
        for part in path.split("."):
            envoy = getattr(envoy, part)
        self._blocks = [envoy[i] for i in range(layer + 1)]
        self._returns_tuple: bool | None = None
        norms = [module for module in decoder.children() if "norm" in type(module).__name__.lower()]
        self._norm: nn.Module | None = norms[-1] if norms else None  # beside the blocks, the last one: the final norm

    @classmethod
    def load(
        cls,
        path: str | Path,
        layer: int,
        dtype: str = "float32",
        device: str = "cpu",
        upper: bool = True,
        revision: str | None = None,
    ) -> Self:
        """Load a checkpoint; with `upper` False only blocks 0..layer are kept in memory and no logits can be asked.

        Raises
        ------
        TunediffError
            The checkpoint cannot be read, its weights are not those of the model (see `load_model`), or `layer` is not
            one whose output another block reads.
        """
        model = load_model(path, torch_dtype(dtype), revision)
        made = cls(model, load_tokenizer(path, revision), layer, upper, name=str(path))
        made.model.to(device)
        return made

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
        block = self._blocks[-1]
        with torch.no_grad(), self._traced.trace(**self._inputs(input_ids, attention_mask)) as tracer:
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
        inputs, kept = self._inputs(input_ids, attention_mask), positions.to(self.device)
        patch = residual.to(self.device, self.dtype)
        replacement = (patch,) if self._returns_tuple else patch
        blocks, traced = self._blocks, self._traced
        with torch.no_grad(), traced.trace(**inputs, logits_to_keep=kept) as tracer:  # noqa: F841
            for block in blocks:
                block.skip(replacement)
            # The model's output, not lm_head's: Gemma 2 caps its logits after lm_head.
            logits = traced.output.logits.save()
        return logits

    @contextmanager
    def _adding(
        self, add: Tensor | None, attention_mask: Tensor, positions: Literal["all", "prompt"]
    ) -> Iterator[None]:
        """Add a vector per row to the output of block `layer` while generating: a hook that sees the prompt first."""
        if add is None:
            yield
            return
        added = add.to(self.device, self.dtype)[:, None]
        real = attention_mask.to(self.device, self.dtype)[:, :, None]
        calls = 0

        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 1 and positions == "prompt":
                return output
            stream = output[0] if isinstance(output, tuple) else output
            stream = stream + (added * real if calls == 1 else added)
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        handle = self._block.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the output matrix."""
        if self._norm is None:
            raise TunediffError(
                f"{self.name}: no final norm found beside its blocks; supported are decoders that keep it there, as "
                "Gemma 2, Llama 3 and Qwen 2.5 do"
            )
        return self._norm

    def direct_logits(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Return W_U (γ ⊙ row): what rows of the residual stream add to the logits before the norm divides, float32.

        γ is the scale of the final norm, read off what the norm makes of a vector of alternating signs, whose mean
        square is 1 and whose mean is 0: so it is right whether a family multiplies by w or by 1 + w. Soft caps of the
        logits, which are not linear, are left out.
        """
        if not self.upper:
            raise TunediffError(f"{self.name}: loaded without its upper half; load it with upper=True for logits")
        with torch.no_grad():
            signs = torch.ones(1, self.d_model, device=self.device, dtype=self.dtype)
            signs[:, 1::2] = -1
            scale = signs * (self.final_norm(signs) - self.final_norm(torch.zeros_like(signs)))
            scaled = rows.to(self.device).float() * scale.float()
            output: Any = self.model.get_output_embeddings()
            step = max(1, LOGITS_AT_ONCE // self.d_model)
            return torch.cat([scaled @ part.float().T for part in output.weight.split(step)], dim=1)

    def generate(
        self,
        input_ids: Int[Tensor, "batch prompt"],
        attention_mask: Int[Tensor, "batch prompt"],
        max_new_tokens: int,
        stop_ids: Sequence[int],
        add: Float[Tensor, "batch d_model"] | None = None,
        positions: Literal["all", "prompt"] = "all",
    ) -> Int[Tensor, "batch new"]:
        """Answer greedily; prompts are padded on the LEFT, rows that have stopped are filled with the stop id.

        `add` is added to the residual stream after block `layer`: at every real position of the prompt and, with
        `positions` "all", at those of the answer; padding is left as it is. With the cache each position runs once.
        """
        if not self.upper:
            raise TunediffError(f"{self.name}: loaded without its upper half; load it with upper=True to generate")
        with torch.no_grad(), self._adding(add, attention_mask, positions):
            ids = self.model.generate(
                input_ids=input_ids.to(self.device),
                attention_mask=attention_mask.to(self.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(stop_ids),
                pad_token_id=stop_ids[0],
            )
        return ids[:, input_ids.shape[1] :]
