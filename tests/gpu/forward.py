"""The passes of the models at full scale on the fake GPU: harvest, KL and generation of Gemma 2 2B, from its config.

Run in a process of its own: python forward.py SETTING-CASE … [--table]. Cases: `harvest` and `long` (a batch of 32,768
tokens through both lower halves, as the harvest stores it; documents of 512 or 1,024), `reference` and `kl` (what the
KL experiment computes once per batch, and per intervention, of 4 conversations), `generate` (the next token of 128
answers), and the mistake `wait` (a value of a batch is read at once).

The modules are those of transformers. nnsight is left out: it runs them in threads, which fake tensors do not follow.
"""

from typing import Any

from fake import GPU, Costs, main  # loads the device, before torch

import numpy as np  # isort: skip
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config

from tunediff.config.settings import HarvestSettings
from tunediff.data.harvest import Harvester
from tunediff.interventions.kl import Reference, kl_divergence

GEMMA2 = {
    **{"vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
}
LAYER, BATCH_TOKENS = 13, 32_768
LENGTH = {"long": 1024}  # of documents; else 512
CONVERSATIONS, POSITIONS, RESPONSE = 4, 512, 256  # of a batch of the KL experiment; response positions of each
ANSWERS, BEFORE = 128, 512  # generated at once; positions before the token


class Event:
    """Stands for one of CUDA's."""

    def record(self) -> None:
        """Do nothing."""


class Half:
    """Blocks of a Gemma 2 in bfloat16, as `ResidualModel` calls them."""

    def __init__(self, blocks: slice) -> None:
        with torch.device(GPU):
            self.model: Any = AutoModelForCausalLM.from_config(Gemma2Config(**GEMMA2), dtype=torch.bfloat16).eval()
        self.model.model.layers = self.model.model.layers[blocks]
        self.device = torch.device(GPU)

    def residual(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Run the blocks; the final norm, which a harvest does not reach, is left out."""
        self.model.model.norm = torch.nn.Identity()
        positions = torch.arange(ids.shape[1], device=GPU)[None].expand_as(ids)
        return self.model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state

    def logits_from(self, residual: Tensor) -> Tensor:
        """Continue from a residual; logits of the response positions alone."""
        positions = torch.arange(residual.shape[1], device=GPU)[None].expand(len(residual), -1)
        kept = torch.arange(POSITIONS - RESPONSE, POSITIONS, device=GPU)
        mask = torch.ones_like(positions)
        made = self.model(
            inputs_embeds=residual, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=kept
        )
        return made.logits.flatten(0, 1)


class Pair:
    """Stands for a prepared pair."""

    layer, replacements = LAYER, dict[int, int]()

    def load_base(self, device: str) -> Half:
        """Return a lower half."""
        return Half(slice(LAYER + 1))

    load_chat = load_base


def harvest(costs: Costs, length: int, wait: bool) -> None:
    """Send a batch of full documents."""
    pair: Any = Pair()
    harvester = Harvester(pair, HarvestSettings(batch_tokens=BATCH_TOKENS, dtype="bfloat16"), GPU)
    count = BATCH_TOKENS // length
    ids, real = torch.zeros(count, length, dtype=torch.long), torch.ones(count, length, dtype=torch.bool)
    rows = np.arange(BATCH_TOKENS)
    with costs:
        made = harvester._launch(ids, real, rows, rows)  # the rows that are kept, as numbers: a mask has no known sum
        if wait:
            bool(made.finite[0].all())


def kl(costs: Costs, case: str) -> None:
    """Run the upper half, and compare its distributions with a reference or make that."""
    chat, residual = Half(slice(LAYER + 1, None)), torch.empty(CONVERSATIONS, POSITIONS, 2304, device=GPU).bfloat16()
    reference = Reference.of(chat.logits_from(residual))
    with costs:
        logits = chat.logits_from(residual)
        Reference.of(logits) if case == "reference" else kl_divergence(reference, logits)


def generate(costs: Costs) -> None:
    """Take one step of generation; the keys and values of the positions before it are kept."""
    model, cache = Half(slice(None)).model, DynamicCache()
    ids = torch.zeros(ANSWERS, BEFORE, dtype=torch.long, device=GPU)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    with costs:
        model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)


def step(setting: str, case: str) -> Costs:
    """Return the costs of a case."""
    cuda: Any = torch.cuda
    cuda.Event = Event
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    torch.Tensor.nonzero = lambda self: torch.zeros(self.numel(), self.ndim, dtype=torch.long)  # type: ignore[method-assign]
    costs = Costs()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        if case in ("kl", "reference"):
            kl(costs, case)
        elif case == "generate":
            generate(costs)
        else:
            harvest(costs, LENGTH.get(case, 512), case == "wait")
    return costs


if __name__ == "__main__":
    main(step)
