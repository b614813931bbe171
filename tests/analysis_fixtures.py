"""Small real stores, crosscoders and models for the tests of the analysis stages."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from part_fixtures import seal_part
from tunediff.config.settings import HarvestSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.harvest import create_part
from tunediff.data.masks import Mask
from tunediff.data.rendering import Encoding
from tunediff.data.sampling import write_store
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.models.residual import ResidualModel

SOURCES = ["web", "chat"]
VOCAB = 40


def random_crosscoder(
    d_model: int = 6, dict_size: int = 20, seed: int = 0, threshold: float = 0.8, streams: int = 2
) -> Crosscoder:
    """Return a crosscoder of random weights that fires on about a fifth of standard normal activations.

    With one stream it is a dictionary of the difference.
    """
    g = torch.Generator().manual_seed(seed)
    scale = d_model**-0.5
    return Crosscoder(
        torch.randn(dict_size, streams, d_model, generator=g) * scale,
        torch.randn(dict_size, generator=g) * 0.1,
        torch.randn(dict_size, streams, d_model, generator=g) * scale,
        torch.randn(streams, d_model, generator=g) * 0.3,
        torch.full((dict_size,), threshold),
        {"kind": "random"},
    )


def token_store(path: Path, lengths: Sequence[int], seed: int = 0, concepts: Sequence[str] = ()) -> TokenStore:
    """Return a store of random documents; every other one is a chat of a user and an assistant turn."""
    g = np.random.default_rng(seed)
    encodings, sources = [], []
    for i, n in enumerate(lengths):
        mask = np.zeros(n, dtype=np.uint8)
        if i % 2:
            half = n // 2
            mask[2:half] = Mask.USER
            mask[half + 2 :] = Mask.ASSISTANT
            mask[[1, half, half + 1]] = Mask.TEMPLATE
            mask[-1] = Mask.ASSISTANT | Mask.TEMPLATE
        mask[0] |= Mask.BOS
        label = np.zeros(n, dtype=np.uint64)
        for bit in range(len(concepts)):
            label |= (g.random(n) < 0.2).astype(np.uint64) << np.uint64(bit)
        encodings.append(Encoding(g.integers(3, VOCAB, n).astype(np.int32), mask, label))
        sources.append(i % 2)
    attributes = {"sources": SOURCES, "concepts": list(concepts), "split": "validation", "seed": seed, "tokenizer": "x"}
    return write_store(path, encodings, sources, attributes, {}, "key", 0.0)


def activation_store(
    path: Path, tokens: TokenStore, activations: np.ndarray, outliers: Sequence[int] = (), shards: int = 1
) -> ActivationStore:
    """Return a one-part store of the given float32 activations [row, model, d_model], rows permuted in each shard.

    `outliers` are the rows marked as massive activations.
    """
    n, _, d_model = activations.shape
    size, g = n // shards, np.random.default_rng(1)
    order = np.concatenate([start + g.permutation(size) for start in range(0, n, size)])
    layout = {"shard_tokens": size, "chunk_tokens": size // 4, "codec": "blosc", "dtype": "float32"}
    settings = HarvestSettings(part_tokens=n, **layout)
    attributes = {**layout, "sources": SOURCES, "first_row": 0}
    group = create_part(path, n, d_model, settings, attributes)
    for m, name in enumerate(("base", "chat")):
        group[name][:] = activations[order, m]
    rows = {name: getattr(tokens, name)[order] for name in ("token_id", "doc", "pos", "mask")}
    rows["mask"] = np.where(np.isin(order, outliers), rows["mask"] | np.uint8(Mask.OUTLIER), rows["mask"])
    rows |= {"row": order, "source": tokens.doc_source[tokens.doc[order]]}
    for name, values in rows.items():
        group[name][:] = values
    seal_part(path, key="key")
    return ActivationStore([path])


def tiny_model(seed: int, layer: int = 1) -> ResidualModel:
    """Return a random 3-block Gemma 2 with large weights, so that edits change its predictions visibly."""
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        sliding_window=16,
        attn_implementation="eager",
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w3"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", bos_token="w2")
    return ResidualModel(Gemma2ForCausalLM(config), tokenizer, layer)
