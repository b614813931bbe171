"""The crosscoder as the rest of the pipeline uses it: inference only, on raw activations, with a threshold per latent.

f = ReLU(Σ_m W_enc^m h^m + b_enc), kept where f_j > threshold_j; ĥ^m = Σ_j f_j d_j^m + b^m (method.md section 2).
How a dictionary was trained leaves no trace here but its threshold: L1 has 0, BatchTopK θ / s_j. Its weights say what
it reads and writes: both models, or with one row per latent their difference Δ = h^chat − h^base alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunediff.dictionaries.sparse import SparseCode, above_threshold, sparse_decode
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import check, manifest_path

STREAMS = {"models": ("base", "chat"), "difference": ("difference",)}  # what a dictionary reads and writes of a token
MAX_BLOCK = 2**25  # preactivations computed at a time, in entries (128 MiB of float32)
WEIGHTS, CONFIG = "crosscoder.safetensors", "config.json"
BUFFERS = ("encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias", "threshold")


class TrainedDictionary(Protocol):
    """What `Crosscoder.from_training` needs of a training object."""

    encoder_bias: nn.Parameter
    decoder_bias: nn.Parameter

    def encoder(self) -> Float[Tensor, "latent stream d_model"]: ...

    def decoder(self) -> Float[Tensor, "latent stream d_model"]: ...

    def inference_threshold(self) -> Float[Tensor, "latent"]: ...


def dictionary_inputs(
    x: Float[Tensor, "token model d_model"], reconstructs: str
) -> Float[Tensor, "token stream d_model"]:
    """Return what a dictionary reads of a pair of activations: the pair, or chat − base where that is reconstructed."""
    return x if reconstructs == "models" else x[:, 1:] - x[:, :1]


class Crosscoder(nn.Module):
    """A trained dictionary in raw activation space.

    Buffers: encoder_weight, decoder_weight (F, stream, d); encoder_bias, threshold (F); decoder_bias (stream, d);
    float32. Streams are base and chat, or one, the difference. `config` holds what config.json holds: kind, d_model,
    dict_size, layer, seed, k/mu/theta, normalisation facts. Stages ask for what it can do: `reconstructs` ("models",
    or the "difference" chat − base alone), `has_norm_taxonomy` (whether Δnorm exists: it compares two decoders),
    `groups`. `precision` (`precision.precision`) is that of encoder products in a pass over a store on a GPU.
    """

    encoder_weight: Tensor
    encoder_bias: Tensor
    decoder_weight: Tensor
    decoder_bias: Tensor
    threshold: Tensor
    precision: str = "highest"

    def __init__(
        self,
        encoder_weight: Float[Tensor, "latent stream d_model"],
        encoder_bias: Float[Tensor, "latent"],
        decoder_weight: Float[Tensor, "latent stream d_model"],
        decoder_bias: Float[Tensor, "stream d_model"],
        threshold: Float[Tensor, "latent"],
        config: Mapping[str, Any] | None = None,
        max_block: int = MAX_BLOCK,
        where: str = "crosscoder",
    ) -> None:
        super().__init__()
        if encoder_weight.ndim != 3 or encoder_weight.shape[1] not in (1, 2):
            raise TunediffError(
                f"{where}: encoder_weight has shape {tuple(encoder_weight.shape)}, expected (latent, 2, d_model), or "
                "(latent, 1, d_model) of a difference; transpose weights that come from another program"
            )
        tensors = (encoder_weight, encoder_bias, decoder_weight, decoder_bias, threshold)
        whole, latents = tuple(encoder_weight.shape), (len(encoder_weight),)
        for name, tensor, shape in zip(BUFFERS, tensors, (whole, latents, whole, whole[1:], latents), strict=True):
            if tuple(tensor.shape) != shape:
                raise TunediffError(
                    f"{where}: {name} has shape {tuple(tensor.shape)}, expected {shape}; give matching weights or "
                    "activations"
                )
            self.register_buffer(name, tensor.detach().float().contiguous())
        self.max_block = max_block
        self.dict_size, n_streams, self.d_model = whole
        self.has_norm_taxonomy = n_streams == 2
        self.reconstructs = "models" if n_streams == 2 else "difference"
        self.config: dict[str, Any] = {**(config or {}), "d_model": self.d_model, "dict_size": self.dict_size}

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Named ranges of latents (name, start, stop, k) of a dictionary that has several; else none."""
        return list(self.config.get("groups", []))

    @property
    def difference_directions(self) -> Float[Tensor, "latent d_model"]:
        """d_j^chat − d_j^base; d_j of a dictionary of the difference."""
        weight = self.decoder_weight
        return (weight[:, 1] - weight[:, 0] if self.reconstructs == "models" else weight[:, 0]).contiguous()

    @property
    def difference_bias(self) -> Float[Tensor, "d_model"]:
        """b^chat − b^base; b of a dictionary of the difference."""
        bias = self.decoder_bias
        return bias[1] - bias[0] if self.reconstructs == "models" else bias[0]

    def inputs(self, x: Float[Tensor, "token model d_model"]) -> Float[Tensor, "token stream d_model"]:
        """Return what the dictionary reads of a pair of activations, and reconstructs."""
        return dictionary_inputs(x, self.reconstructs)

    def rows(self, x: Float[Tensor, "token model d_model"]) -> Float[Tensor, "token width"]:
        """Return what the encoder multiplies, one row per token; `TunediffError`: of another shape."""
        if x.ndim != 3 or x.shape[1:] != (2, self.d_model):
            raise TunediffError(
                f"crosscoder: activations have shape {tuple(x.shape)}, expected (token, 2, {self.d_model}); "
                "was the crosscoder trained on another model pair?"
            )
        return self.inputs(x.to(self.encoder_weight)).flatten(1)

    @torch.no_grad()
    def covers(self, x: Float[Tensor, "token model d_model"]) -> Bool[Tensor, "token"]:
        """Return which tokens are of the kind the dictionary was trained on: no model's norm is a massive outlier.

        The limits are `config["outlier_norm"]`, one norm per model, as the activation store's manifest has them;
        without them every token is covered.
        """
        limits = self.config.get("outlier_norm")
        if limits is None:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        return (torch.linalg.vector_norm(x.float(), dim=2) <= torch.tensor(limits, device=x.device)).all(dim=1)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "token model d_model"]) -> SparseCode:
        """Return the latents above their threshold; at most `max_block` preactivations exist at a time."""
        rows = self.rows(x)
        weight = self.encoder_weight.view(self.dict_size, -1).T
        size = max(1, min(len(rows), self.max_block // self.dict_size))
        block = rows.new_empty(size, self.dict_size)
        codes = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            code = above_threshold(torch.addmm(self.encoder_bias, part, weight, out=block[: len(part)]), self.threshold)
            codes.append(code._replace(token=code.token + start))
        if not codes:
            return above_threshold(block[:0])
        token, latent, value = (torch.cat(parts) for parts in list(zip(*codes, strict=True))[:3])
        return SparseCode(token, latent, value, len(rows))

    @torch.no_grad()
    def decode(self, code: SparseCode) -> Float[Tensor, "token stream d_model"]:
        """Return ĥ^m = Σ_j f_j d_j^m + b^m, or Δ̂."""
        if not code.is_dense(self.dict_size):
            return sparse_decode(code, self.decoder_weight).add_(self.decoder_bias)
        weight = self.decoder_weight.view(self.dict_size, -1)
        pieces = [dense.to(weight) @ weight for _, dense in code.dense_pieces(self.dict_size)]
        return torch.cat(pieces).view(-1, *self.decoder_bias.shape) + self.decoder_bias

    def forward(self, x: Float[Tensor, "token model d_model"]) -> Float[Tensor, "token stream d_model"]:
        """Return the reconstruction of `inputs(x)`."""
        return self.decode(self.encode(x))

    @property
    def decoder_norms(self) -> Float[Tensor, "latent stream"]:
        """‖d_j^m‖, in raw activation units."""
        return torch.linalg.vector_norm(self.decoder_weight, dim=-1)

    @property
    def norm_difference(self) -> Float[Tensor, "latent"]:
        """Δnorm(j) = ½ (1 + (‖d^chat‖ − ‖d^base‖) / max): 1 chat-only, 0 base-only; ½ where both are 0.

        NaN without norm taxonomy.
        """
        if not self.has_norm_taxonomy:
            return torch.full_like(self.threshold, torch.nan)
        base, chat = self.decoder_norms.unbind(1)
        largest = torch.maximum(base, chat)
        return 0.5 * (1 + torch.where(largest > 0, (chat - base) / largest, 0.0))

    @classmethod
    @torch.no_grad()
    def from_training(
        cls,
        dictionary: TrainedDictionary,
        mean: Float[Tensor, "stream d_model"] | None = None,
        scale: Float[Tensor, "stream"] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> Self:
        """Fold the training normalisation x^m = scale_m · (h^m − mean_m) into the weights, in float64.

        W_enc' = scale · W_enc; b_enc' = b_enc − Σ_m scale_m ⟨W_enc^m, mean_m⟩; W_dec' = W_dec / scale;
        b_dec' = b_dec / scale + mean. Latent activations do not change, so thresholds stay those of training space.
        """
        encoder, decoder = dictionary.encoder().double(), dictionary.decoder().double()
        bias, decoder_bias = dictionary.encoder_bias.double(), dictionary.decoder_bias.double()
        if scale is not None:
            factor = scale.to(encoder)[:, None]
            encoder, decoder, decoder_bias = encoder * factor, decoder / factor, decoder_bias / factor
        if mean is not None:
            bias = bias - torch.einsum("lmd,md->l", encoder, mean.to(encoder))
            decoder_bias = decoder_bias + mean.to(encoder)
        return cls(encoder, bias, decoder, decoder_bias, dictionary.inference_threshold(), config)

    @classmethod
    def from_parts(cls, parts: Sequence[tuple[Path, Sequence[range]]], config: Mapping[str, Any]) -> Self:
        """Put saved parts of a dictionary together, each with the ranges of latents whose rows it has, in their order.

        One whole copy is in memory, and one tensor of one part.
        """
        dict_size = sum(len(own) for _, ranges in parts for own in ranges)
        whole: dict[str, Tensor] = {}
        for directory, ranges in parts:
            with safe_open(directory / WEIGHTS, framework="pt") as file:
                for name in BUFFERS:
                    rows = file.get_tensor(name)
                    if name == "decoder_bias":
                        whole[name] = rows
                        continue
                    into = whole.setdefault(name, rows.new_empty(dict_size, *rows.shape[1:]))
                    for own, piece in zip(ranges, rows.split([len(own) for own in ranges]), strict=True):
                        into[own.start : own.stop] = piece
        where = ", ".join(str(directory) for directory, _ in parts)
        return cls(**{name: whole[name] for name in BUFFERS}, config=config, max_block=MAX_BLOCK, where=where)

    def save(self, directory: Path) -> None:
        """Write crosscoder.safetensors and config.json into a directory (made if missing)."""
        directory.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu() for name, tensor in self.state_dict().items()}, directory / WEIGHTS)
        text = json.dumps(self.config, indent=1, sort_keys=True) + "\n"
        (directory / CONFIG).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path, device: str = "cpu", precision: str = "highest", *, key: str | None = None) -> Self:
        """Read a saved crosscoder; one that has a manifest must be unchanged, with `key` made by these inputs.

        Raises
        ------
        TunediffError
            A file or a tensor is missing, damaged, not finite or of the wrong shape, or the key is another.
        """
        if key is not None or manifest_path(directory).is_file():
            check(directory, "crosscoder", key)
        try:
            config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
            tensors = load_file(directory / WEIGHTS, device=device)
        except (OSError, ValueError, SafetensorError) as error:
            told = f"{directory}: not a readable crosscoder ({error}); delete it and run snakemake again"
            raise TunediffError(told) from error
        where, remedy = directory / WEIGHTS, f"delete {directory} and run snakemake again"
        for name in BUFFERS:
            if name not in tensors:
                raise TunediffError(f"{where}: lacks {name}; {remedy}")
            wrong = ~tensors[name].isfinite()
            if name == "threshold":
                wrong &= tensors[name] != torch.inf  # of a latent without decoder: it never fires
            if wrong.any():
                raise TunediffError(
                    f"{where}: {int(wrong.sum())} of {wrong.numel()} values of {name} are not finite; {remedy}"
                )
        crosscoder = cls(
            **{name: tensors[name] for name in BUFFERS}, config=config, max_block=MAX_BLOCK, where=str(where)
        )
        crosscoder.precision = precision
        if (config.get("dict_size"), config.get("d_model")) != (crosscoder.dict_size, crosscoder.d_model):
            raise TunediffError(f"{directory / CONFIG}: dict_size or d_model differ from the weights; {remedy}")
        return crosscoder
