"""A dictionary of which all is known: latent j fires on one token and nothing else; its explanations and judgements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from analysis_fixtures import SOURCES, VOCAB, activation_store, tiny_model
from tunediff.config.settings import ExampleSettings, ExplanationSettings, LatentSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.masks import Mask
from tunediff.data.rendering import Encoding
from tunediff.data.sampling import write_store
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.explanations.controls import control_windows
from tunediff.explanations.explain import Answered, Reader, build_explanations
from tunediff.explanations.judge import build_judgements
from tunediff.explanations.tables import Explanations
from tunediff.latents.examples import Examples
from tunediff.latents.measure import build_table
from tunediff.latents.profile import build_examples
from tunediff.latents.table import LatentTable

CONTEXT, BOS, RARE = 6, 2, 39  # RARE: a token that occurs twice
TOKENS = (10, 11, 12, 13, 14, 15, 16, RARE)  # of the latents
EXAMPLES = ExampleSettings(context=CONTEXT, strongest=12, per_band=15, inactive=12, batch_size=256, seed=5)
SETTINGS = ExplanationSettings(only={"d": list(range(len(TOKENS)))}, controls=4, context=CONTEXT, seed=5)


def texts(path: Path, n_documents: int, seed: int) -> TokenStore:
    """Return chats of random tokens; label 0 is on token 10, label 1 nowhere."""
    g = np.random.default_rng(seed)
    encodings = []
    for i in range(n_documents):
        ids = g.integers(5, RARE, 32).astype(np.int32)
        ids[0] = BOS
        if i in (3, 30):
            ids[7] = RARE
        mask = np.full(32, Mask.USER if i % 2 else 0, dtype=np.uint8)
        mask[0] = Mask.BOS
        encodings.append(Encoding(ids, mask, (ids == TOKENS[0]).astype(np.uint64)))
    attributes = {"sources": SOURCES, "concepts": ["ten", "none"], "split": "validation", "seed": seed}
    named = {**attributes, "tokenizer": "x"}
    return write_store(path, encodings, [i % 2 for i in range(n_documents)], named, {}, "key", 0.0)


@dataclass
class Known:
    """What the explanations are made from."""

    root: Path
    table: LatentTable
    examples: Examples
    tokens: Mapping[str, TokenStore]
    store: ActivationStore
    tokenizer: Any
    dense: np.ndarray  # activation per position and latent

    @property
    def reader(self) -> Reader:
        """Reads the windows."""
        return Reader(self.tokens["validation"], self.tokenizer)

    def explain(
        self,
        out: str = "d",
        model: str = "",
        answered: Answered | None = None,
        settings: ExplanationSettings = SETTINGS,
    ) -> Explanations:
        """Build explanations."""
        directions = partial(
            control_windows, self.store, self.tokens["validation"], settings=EXAMPLES, device="cpu", name="d"
        )
        of = self.table, self.examples, self.tokens, self.tokenizer, directions, settings
        path = self.root / out / "d"
        return build_explanations(*of, path, key="k", model=model, answered=answered)

    def judge(self, explanations: Explanations, model: str = "", answered: Answered | None = None) -> Any:
        """Build judgements."""
        path = explanations.path.parent / "judgements/d.parquet"
        return build_judgements(explanations, self.reader, path, key="k", model=model, seed=5, answered=answered)


def known(root: Path) -> Known:
    """Make stores in which a token's activation is its own direction, of a random strength; measure a dictionary."""
    tokens = {"validation": texts(root / "validation.zarr", 512, 1), "train": texts(root / "train.zarr", 256, 2)}
    ids = tokens["validation"].token_id
    g = np.random.default_rng(3)
    strength = g.uniform(0.12, 1, len(ids)).astype(np.float32)
    activations = np.zeros((len(ids), 2, VOCAB), dtype=np.float32)
    activations[np.arange(len(ids)), :, ids] = strength[:, None]
    activations += g.normal(0, 1e-3, activations.shape).astype(np.float32)
    store = activation_store(root / "part-000.zarr", tokens["validation"], activations, (), 4)
    weight = torch.zeros(len(TOKENS), 2, VOCAB)
    weight[torch.arange(len(TOKENS)), :, torch.tensor(TOKENS)] = 0.5
    off = torch.full((len(TOKENS),), 0.05)
    crosscoder = Crosscoder(weight, torch.zeros(len(TOKENS)), weight, torch.zeros(2, VOCAB), off, {"kind": "known"})
    latents = LatentSettings(min_count=2, blocks=8, bootstrap_samples=100, batch_size=256)
    table = build_table(crosscoder, store, store, latents, root / "d.parquet", key="k")
    model = tiny_model(1)
    model.direct_logits = lambda rows: torch.zeros(len(rows), model.vocab_size)  # of another width, and not asked for
    build_examples(crosscoder, table, store, tokens["validation"], model, EXAMPLES, root / "examples", key="k")
    dense = crosscoder.encode(torch.from_numpy(activations)).to_dense(len(TOKENS)).numpy()
    dense[tokens["validation"].mask & np.uint8(Mask.BOS) != 0] = 0
    examples = Examples.open(root / "examples", key="k")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w3"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", bos_token="w2")
    return Known(root, table, examples, tokens, store, tokenizer, dense)


Answer = Callable[[Sequence[Mapping[str, str]]], str]
