"""The configs of hub pairs, unchanged, on a mocked hub: a cache in its layout with small models and dictionaries."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkout import Checkout, make_checkout
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from helpers import gemma_tokenizer, llama_tokenizer
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.models.pair import load_pair
from tunediff.models.residual import replace_tokens
from tunediff.models.tokenizers import load_tokenizer

WIDTH, LATENTS, K, THETA = 32, 48, 6, 0.7
DTYPE = "bfloat16"
SHAPES = {"hidden_size": WIDTH, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
# config.json as these repositories hold it, written by transformers 4, but for shapes, token ids and the size of random
# weights, which here must matter in every block. As many blocks as there.
GEMMA = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 8,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.2,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_hidden_layers": 26,
    "query_pre_attn_scalar": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 16,
    "torch_dtype": DTYPE,
    "transformers_version": "4.42.4",
    **SHAPES,
}
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.2,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_hidden_layers": 18,
    "query_pre_attn_scalar": 8,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 16,
    "sliding_window_pattern": 6,
    "torch_dtype": DTYPE,
    "transformers_version": "4.55.0.dev0",
    **SHAPES,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "head_dim": 8,
    "hidden_act": "silu",
    "initializer_range": 0.05,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_hidden_layers": 16,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": DTYPE,
    "transformers_version": "4.45.0.dev0",
    **SHAPES,
}
LLAMA_ORDINARY = 128_000  # special tokens follow, in this order
LLAMA_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)

# Jobs per rule of a whole run: 15 drawings; without training no history, no seeds.
COMMON = {"models": 1, "hooks": 1, "tokens": 2, "conversations": 1, "latents": 2, "evaluation": 2, "concepts": 1}
COMMON |= {"examples": 2, "losses": 1, "causal": 1, "causal_summary": 1, "steering": 1, "summary": 1}
COMMON |= {"explain": 2, "judge": 2, "explanation_scores": 1, "report": 1}
TRAINED = {**COMMON, "activations": 1, "train": 2, "seeds": 1, "drawing": 17}
PLANNED = {
    "gemma2-2b-published": {**COMMON, "activations": 1, "published": 2, "drawing": 15},
    "gemma2-2b": TRAINED,
    "gemma3-270m": TRAINED,
    "llama32-1b": TRAINED,
}
FAMILIES = {"gemma2": GEMMA, "gemma3": GEMMA3, "llama32": LLAMA}
CONFIGS = pytest.mark.parametrize("name", PLANNED)


@dataclass(frozen=True)
class Hub:
    """A hub's cache, `home`/hub, of repositories with one commit each."""

    home: Path

    def folder(self, repository: str) -> Path:
        """Return the folder of a repository of models."""
        return self.home / "hub" / f"models--{repository.replace('/', '--')}"

    def commit(self, repository: str) -> str:
        """Return the commit its main branch is at."""
        return hashlib.sha1(repository.encode()).hexdigest()

    def snapshot(self, repository: str) -> Path:
        """Return the folder of its files."""
        return self.folder(repository) / "snapshots" / self.commit(repository)

    def publish(self, repository: str, write: Callable[[Path], None]) -> None:
        """Fill a repository by `write`, and lay it out as a download does: files are links to blobs."""
        snapshot = self.snapshot(repository)
        blobs, refs = (self.folder(repository) / name for name in ("blobs", "refs"))
        for folder in (snapshot, blobs, refs):
            folder.mkdir(parents=True)
        write(snapshot)
        for path in list(snapshot.iterdir()):
            blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
            path.rename(blob)
            path.symlink_to(os.path.relpath(blob, snapshot))
        (refs / "main").write_text(self.commit(repository))


def full_llama_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with Llama 3's ids of special tokens, which the config names; ids between are never given."""
    tiny = llama_tokenizer()
    spec = json.loads(tiny.backend_tokenizer.to_str())
    vocabulary = spec["model"]["vocab"]
    vocabulary.update({f"<unused {i}>": i for i in range(len(vocabulary), LLAMA_ORDINARY)})
    like = spec["added_tokens"][0]
    spec["added_tokens"] = [like | {"id": LLAMA_ORDINARY + i, "content": t} for i, t in enumerate(LLAMA_SPECIAL)]
    spec["post_processor"]["processors"][1]["special_tokens"][LLAMA_SPECIAL[0]]["ids"] = [LLAMA_ORDINARY]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        bos_token=tiny.bos_token,
        eos_token=tiny.eos_token,
        chat_template=tiny.chat_template,
    )


def write_model(
    directory: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerFast, chat: bool, kind: str
) -> None:
    """Write a random model; a base model's tokenizer has no chat template. `kind` is the hub's class of tokenizer."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = json.dumps({**config, **ids, "vocab_size": len(tokenizer)})
    (directory / "config.json").write_text(text)
    torch.manual_seed(int(chat))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory)).to(torch.bfloat16)
    model.save_pretrained(directory)
    (directory / "config.json").write_text(text)
    tokenizer.save_pretrained(directory, save_jinja_files=False)
    path = directory / "tokenizer_config.json"
    about = json.loads(path.read_text()) | {"tokenizer_class": kind}
    if not chat:
        del about["chat_template"]
    path.write_text(json.dumps(about))


def write_dictionary(directory: Path, batchtopk: bool) -> None:
    """Write a dictionary as the paper's library does; its decoder norm is not named, and config.json errs in k."""
    g = torch.Generator().manual_seed(0)
    tensors = {
        "encoder.weight": torch.randn(2, WIDTH, LATENTS, generator=g),
        "encoder.bias": torch.randn(LATENTS, generator=g),
        "decoder.weight": torch.randn(2, LATENTS, WIDTH, generator=g),
        "decoder.bias": torch.randn(2, WIDTH, generator=g),
    }
    config = {"activation_dim": WIDTH, "dict_size": LATENTS, "num_layers": 2, "encoder_layers": None}
    if batchtopk:
        tensors |= {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(THETA)}
        config["k"] = 100
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))


def read_config(name: str) -> dict[str, Any]:
    """Read a config as it is shipped."""
    return yaml.safe_load((Path(__file__).parents[2] / f"config/{name}.yaml").read_text())


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The hub, for all processes started: the repositories that the configs name."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    gemma = gemma_tokenizer()
    gemma.add_special_tokens({"mask_token": "<mask>"})  # as Gemma's own has
    families = {
        "gemma2-2b": (GEMMA, gemma, "GemmaTokenizer"),
        "gemma3-270m": (GEMMA3, gemma, "GemmaTokenizer"),
        "llama32-1b": (LLAMA, full_llama_tokenizer(), "PreTrainedTokenizerFast"),
    }
    for name, (config, tokenizer, kind) in families.items():
        for side in ("base", "chat"):
            repository, chat = read_config(name)["models"][side], side == "chat"
            hub.publish(repository, lambda path, f=(config, tokenizer, chat, kind): write_model(path, *f))
    for name, settings in read_config("gemma2-2b-published")["crosscoders"].items():
        hub.publish(settings["path"], lambda path, name=name: write_dictionary(path, name == "batchtopk"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HOME", str(hub.home))
        for other in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
            environment.delenv(other, raising=False)
        yield hub


@dataclass(frozen=True)
class Run:
    """What a config planned and made."""

    checkout: Checkout
    config: dict[str, Any]
    planned: dict[str, int]  # jobs per rule

    @property
    def results(self) -> Path:
        """The folder of its artifacts."""
        return self.checkout.root / self.config["results"]


def run_config(name: str, root: Path) -> Run:
    """Run a config in a checkout of its own, as far as it reads models and dictionaries of the hub."""
    make_checkout(root, {})
    checkout, config = Checkout(root, root / f"config/{name}.yaml"), read_config(name)
    published = [n for n, settings in config["crosscoders"].items() if settings["kind"] == "published"]
    run = Run(checkout, config, checkout.planned())
    targets = ["hooks.json", *(f"crosscoders/{n}" for n in published)]
    checkout.run(*(f"{config['results']}/{target}" for target in targets))
    return run


@pytest.fixture(scope="module")
def runs(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Run]]]:
    """The run of each config, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run_config, name, tmp_path_factory.mktemp(name)) for name in PLANNED}


@CONFIGS
def test_dry_run_plans_every_job(runs: dict[str, Future[Run]], name: str) -> None:
    assert runs[name].result().planned == PLANNED[name]


@CONFIGS
def test_pair_of_the_hub_is_resolved_and_its_hooks_hold(runs: dict[str, Future[Run]], hub: Hub, name: str) -> None:
    run, shape = runs[name].result(), FAMILIES[name.partition("-")[0]]
    asked = run.config["models"]
    pair = load_pair(run.results / "models", asked["layer"], asked["dtype"])
    for side in ("base", "chat"):
        assert getattr(pair, side) == asked[side]
        assert getattr(pair, f"{side}_revision") == hub.commit(asked[side])
    tokenizer = load_tokenizer(hub.snapshot(asked["chat"]))
    assert (pair.d_model, pair.n_layers, pair.vocab_size) == (WIDTH, shape["num_hidden_layers"], len(tokenizer))
    assert pair.tokenizer["bos"] == tokenizer.bos_token

    hooks = json.loads((run.results / "hooks.json").read_text())
    assert (hooks["layer"], hooks["dtype"]) == (asked["layer"], asked["dtype"])
    for facts in (hooks["base"], hooks["chat"]):
        assert (facts["layer"], facts["dtype"]) == (asked["layer"], asked["dtype"])
        for check in ("residual_against_hidden_states", "logits_from_own_residual", "right_padding"):
            assert facts[check] <= facts["tolerance"] < 0.1
        assert facts["effect_of_scaled_residual"] > facts["logits_from_own_residual"]
    assert hooks["base"]["effect_of_scaled_residual"] != hooks["chat"]["effect_of_scaled_residual"]


def test_base_llama_reads_no_token_of_the_chat_format(runs: dict[str, Future[Run]], hub: Hub) -> None:
    run = runs["llama32-1b"].result()
    asked = run.config["models"]
    pair = load_pair(run.results / "models", asked["layer"], asked["dtype"])
    tokenizer = load_tokenizer(hub.snapshot(asked["chat"]))
    chat = [{"role": "user", "content": "Who pays?"}, {"role": "assistant", "content": "You."}]
    ids = torch.tensor(tokenizer.apply_chat_template(chat, return_dict=False))
    special = {LLAMA_ORDINARY + LLAMA_SPECIAL.index(f"<|{t}|>") for t in ("start_header_id", "end_header_id", "eot_id")}
    begin = LLAMA_ORDINARY
    assert {i for i in ids.tolist() if i >= begin} == {begin, *special}
    read = replace_tokens(ids, pair.replacements)
    assert [i for i in read.tolist() if i >= begin] == [begin]
    assert (read != ids).sum() == sum(i in special for i in ids.tolist())


def test_published_dictionaries_of_the_hub_are_imported(runs: dict[str, Future[Run]], hub: Hub) -> None:
    run = runs["gemma2-2b-published"].result()
    for name, settings in run.config["crosscoders"].items():
        store = run.results / "crosscoders" / name
        facts = json.loads(store.with_suffix(".json").read_text())["facts"]
        assert facts["source"]["path"] == settings["path"]
        assert facts["source"]["revision"] == hub.commit(settings["path"])
        assert facts["source"]["layout"] == settings["layout"]
        assert (facts["kind"], facts["layer"]) == (name, run.config["models"]["layer"])
        assert (facts["d_model"], facts["dict_size"]) == (WIDTH, LATENTS)

    batchtopk = Crosscoder.load(run.results / "crosscoders/batchtopk")
    scores = batchtopk.threshold * batchtopk.decoder_norms.sum(dim=1)
    torch.testing.assert_close(scores, torch.full((LATENTS,), THETA))
    assert batchtopk.config["k"] == K and batchtopk.config["theta"] == pytest.approx(THETA)
    assert [note.split()[0] for note in batchtopk.config["notes"]] == ["no", "config.json"]
    assert not Crosscoder.load(run.results / "crosscoders/l1").threshold.any()

    left = {rule: n for rule, n in run.planned.items() if rule not in ("models", "hooks", "published")}
    assert run.checkout.planned() == left
