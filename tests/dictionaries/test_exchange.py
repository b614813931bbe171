"""Published crosscoders against a dense float64 reference of their formulas; export; files that must be refused."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from analysis_fixtures import activation_store, token_store
from tunediff.cli import main
from tunediff.config.check import check
from tunediff.dictionaries import build, dictionary_settings, exchange
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.dictionaries.exchange import (
    CODE_NORMALIZATIONS,
    estimate_input_scale,
    export,
    import_published,
    load_published,
)
from tunediff.errors import TunediffError
from tunediff.pipeline.graph import Graph

ROOT = Path(__file__).resolve().parents[2]
D, F, N = 10, 40, 60
THETA = 1.1
State = dict[str, Tensor]


def state(seed: int = 0, batchtopk: bool = True) -> State:
    """Tensors as the paper's library names and shapes them; latent 3 has no decoder."""
    g = torch.Generator().manual_seed(seed)
    norms = torch.rand(2, F, 1, generator=g) * 2 / D**0.5
    norms[:, 3] = 0
    tensors = {
        "encoder.weight": torch.randn(2, D, F, generator=g) / D**0.5,
        "encoder.bias": torch.randn(F, generator=g) * 0.3,
        "decoder.weight": torch.randn(2, F, D, generator=g) * norms,
        "decoder.bias": torch.randn(2, D, generator=g),
    }
    if batchtopk:
        tensors |= {"k": torch.tensor(7, dtype=torch.int32), "threshold": torch.tensor(THETA)}
    return tensors


def activations(n: int = N, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, D, generator=g) * torch.tensor([1.5, 2.5])[:, None] + 0.2


def reference(s: State, x: Tensor, norm: str = "CROSSCODER", alphas: tuple[float, float] = (1.0, 0.1)) -> tuple:
    """The library's codes and reconstructions, dense, in float64."""
    s, x = {name: t.double() for name, t in s.items()}, x.double()
    mean, scale, back = torch.zeros(2, D), torch.ones(2, 1), torch.ones(2, 1)
    if not s.get("activation_mean", torch.tensor(math.nan)).isnan().any():
        mean, std = s["activation_mean"], s["activation_std"]
        total = s.get("activation_global_scale")
        scale = 1 / (std + 1e-8) if total is None else total.expand(2)[:, None]
        back = std + 1e-8 if total is None else 1 / (scale + 1e-8)
    w, dec = s["encoder.weight"], s["decoder.weight"]
    f = torch.relu(torch.einsum("nmd,mdl->nl", (x - mean) * scale, w) + s["encoder.bias"])
    added, joint = dec.norm(dim=2).sum(0), dec.norm(dim=(0, 2))
    options = {"CROSSCODER": added, "SAE": joint, "NONE": torch.ones(F), "MIXED": alphas[0] * joint + alphas[1] * added}
    if "threshold" in s:
        f = f * (f * options[norm] > s["threshold"])
    return f, (torch.einsum("nl,mld->nmd", f, dec) + s["decoder.bias"]) * back + mean


def assert_equal(crosscoder: Crosscoder, s: State, norm: str = "CROSSCODER", live: float = 0.02) -> None:
    x = activations()
    f, reconstruction = reference(s, x, norm)
    assert live < float((f > 0).double().mean()) < 0.9
    code = crosscoder.encode(x)
    assert torch.equal(code.to_dense(F) > 0, f > 0)
    assert torch.allclose(code.to_dense(F).double(), f, atol=2e-5)
    assert torch.allclose(crosscoder.decode(code).double(), reconstruction, atol=2e-5)


def write(directory: Path, s: State, **config: object) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(s, directory / "model.safetensors")
    stated = {"activation_dim": D, "dict_size": F, "num_layers": 2, **config}
    (directory / "config.json").write_text(json.dumps(stated))
    return str(directory)


@pytest.mark.parametrize("batchtopk", [False, True], ids=["l1", "batchtopk"])
def test_library_directory(tmp_path: Path, batchtopk: bool) -> None:
    s = state(batchtopk=batchtopk)
    crosscoder = load_published(write(tmp_path, s), facts={"layer": 13})
    assert_equal(crosscoder, s)
    config = crosscoder.config
    assert config["kind"] == ("batchtopk" if batchtopk else "l1") and config["layer"] == 13
    assert config["source"]["layout"] == "dictionary_learning" and config["normalization"] == {"kind": "none"}
    if batchtopk:
        assert config["k"] == 7 and config["theta"] == pytest.approx(THETA)
        assert math.isinf(crosscoder.threshold[3])  # without decoder its score is 0: it never fires
    else:
        assert not crosscoder.threshold.any()


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_state_dict_with_and_without_the_prefix_of_compiled_modules(tmp_path: Path, prefix: str) -> None:
    s = state()
    torch.save({prefix + name: tensor for name, tensor in s.items()}, tmp_path / "model_final.pt")
    for path, file in ((tmp_path / "model_final.pt", None), (tmp_path, None), (tmp_path, "model_final.pt")):
        assert_equal(load_published(str(path), file=file), s)


def test_low_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    s = {name: t.bfloat16() if t.ndim else t for name, t in state().items()}
    crosscoder = load_published(write(tmp_path, s))
    assert crosscoder.encoder_weight.dtype == torch.float32
    assert_equal(crosscoder, {name: t.float() for name, t in s.items()})


@pytest.mark.parametrize(("number", "norm"), [(1, "CROSSCODER"), (2, "SAE"), (3, "MIXED"), (4, "NONE")])
def test_code_normalisation_of_the_buffer_wins(tmp_path: Path, number: int, norm: str) -> None:
    s = {**state(), "code_normalization_id": torch.tensor(number)}
    assert CODE_NORMALIZATIONS[number] == norm
    crosscoder = load_published(write(tmp_path, s, code_normalization="SAE"))
    assert_equal(crosscoder, s, norm)
    assert any("the buffer's" in note for note in crosscoder.config["notes"]) == (norm != "SAE")


def test_code_normalisation_from_config_or_given_or_assumed(tmp_path: Path) -> None:
    s = state()
    assert_equal(load_published(write(tmp_path / "stated", s, code_normalization="SAE")), s, "SAE")
    silent = write(tmp_path / "silent", s)
    assert_equal(load_published(silent, code_normalization="SAE"), s, "SAE")
    assert any("assumed" in note for note in load_published(silent).config["notes"])
    with pytest.raises(TunediffError, match="says code_normalization SAE, not NONE"):
        load_published(str(tmp_path / "stated"), code_normalization="NONE")


def test_mixed_code_normalisation_reads_its_weights_from_the_config(tmp_path: Path) -> None:
    s = {**state(), "code_normalization_id": torch.tensor(3)}
    path = write(tmp_path, s, code_normalization_alpha_sae=0.5, code_normalization_alpha_cc=0.6)
    expected = reference(s, activations(), "MIXED", (0.5, 0.6))[0]
    assert torch.equal(load_published(path).encode(activations()).to_dense(F) > 0, expected > 0)


@pytest.mark.parametrize("scale", [torch.tensor([0.7, 0.4]), torch.tensor(0.5), None], ids=["per model", "one", "std"])
@pytest.mark.parametrize("batchtopk", [False, True], ids=["l1", "batchtopk"])
def test_normaliser_is_folded_in(tmp_path: Path, scale: Tensor | None, batchtopk: bool) -> None:
    g = torch.Generator().manual_seed(5)
    mean, std = torch.randn(2, D, generator=g), torch.rand(2, D, generator=g) + 0.5
    s = {**state(batchtopk=batchtopk), "activation_mean": mean, "activation_std": std, "target_rms": torch.tensor(3.0)}
    if scale is not None:
        s["activation_global_scale"] = scale
    crosscoder = load_published(write(tmp_path, s))
    assert_equal(crosscoder, s, live=0.005)
    facts = crosscoder.config["normalization"]
    assert facts["kind"] == ("mean_std" if scale is None else "mean_scale")
    assert facts["mean_norm"] == pytest.approx(mean.norm(dim=1).tolist())
    with pytest.raises(TunediffError, match="its own normalisation; remove `input_scale`"):
        load_published(str(tmp_path), input_scale=[1, 1])


def test_nan_normaliser_is_none(tmp_path: Path) -> None:
    nothing = torch.full((2, D), math.nan)
    normaliser = {"activation_mean": nothing, "activation_std": nothing.clone()}
    s = {**state(), **normaliser, "activation_global_scale": torch.ones(2)}
    crosscoder = load_published(write(tmp_path, s))
    assert_equal(crosscoder, state())
    assert crosscoder.config["normalization"] == {"kind": "none"}


def test_k_of_the_config_is_not_believed(tmp_path: Path) -> None:
    crosscoder = load_published(write(tmp_path, state(), k=2048))
    assert crosscoder.config["k"] == 7
    assert any("k = 2048" in note and "k = 7" in note for note in crosscoder.config["notes"])


def test_threshold_that_was_never_set_keeps_every_activation(tmp_path: Path) -> None:
    s = {**state(), "threshold": torch.tensor(-1.0)}
    crosscoder = load_published(write(tmp_path, s))
    assert_equal(crosscoder, s)
    assert any("never set" in note for note in crosscoder.config["notes"])


def kissane(directory: Path, s: State) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": s["encoder.weight"], "b_enc": s["encoder.bias"], "b_dec": s["decoder.bias"]}
    torch.save({**tensors, "W_dec": s["decoder.weight"].permute(1, 0, 2)}, directory / "cc_weights.pt")
    (directory / "cfg.json").write_text(json.dumps({"d_in": D, "dict_size": F, "seed": 49, "site": "resid_pre"}))
    return str(directory)


def test_kissane_layout_with_given_factors(tmp_path: Path) -> None:
    s, scale, x = state(batchtopk=False), torch.tensor([0.28, 0.24]), activations() * 4
    crosscoder = load_published(kissane(tmp_path, s), input_scale=scale.tolist())
    f, scaled = reference(s, x * scale[:, None])  # it works on scaled activations; ours must come out raw
    assert torch.allclose(crosscoder.encode(x).to_dense(F).double(), f, atol=2e-5)
    assert torch.allclose(crosscoder(x).double(), scaled / scale[:, None], atol=1e-4)
    assert crosscoder.config["normalization"]["scale"] == pytest.approx([0.28, 0.24])
    with pytest.raises(TunediffError, match=r"give `input_scale: \[base, chat\]`"):
        load_published(str(tmp_path))
    with pytest.raises(TunediffError, match="two positive numbers"):
        load_published(str(tmp_path), input_scale=[0.28, -1])


def test_input_scale_is_estimated_without_bos_and_stated(tmp_path: Path) -> None:
    tokens = token_store(tmp_path / "tokens.zarr", [20, 20, 20, 20])
    x = np.random.default_rng(0).normal(size=(tokens.n_tokens, 2, D)).astype(np.float32)
    x[tokens.mask & 1 == 1] *= 1000
    store = activation_store(tmp_path / "part-000.zarr", tokens, x)
    kept = x[tokens.mask & 1 == 0]
    expected = math.sqrt(D) / np.linalg.norm(kept.astype(np.float64), axis=2).mean(axis=0)
    scale, count = estimate_input_scale(store)
    assert count == len(kept) == 76 and scale == pytest.approx(expected.tolist(), rel=1e-9)
    assert estimate_input_scale(store, 20)[1] < count  # some of the chunks only

    settings = {"kind": "published", "path": kissane(tmp_path / "hub", state(batchtopk=False)), "layout": "kissane"}
    made = import_published(settings, store, tmp_path / "results" / "kissane", {"layer": 13}, key="abc")
    assert made.config["input_scale"]["values"] == scale and "76 train tokens" in made.config["input_scale"]["from"]
    with pytest.raises(TunediffError, match="no activations"):
        import_published(settings, None, tmp_path / "results" / "other", key="abc")


def test_imported_artifact_is_what_later_stages_load(tmp_path: Path) -> None:
    from tunediff.inspection import as_text, inspect

    s = state()
    settings = {"path": write(tmp_path / "hub", s, k=100), "layout": "auto", "revision": None, "file": None}
    target = tmp_path / "results" / "batchtopk"
    with pytest.raises(TunediffError, match="a crosscoder of models 10 wide, these are 16 wide"):
        import_published(settings, None, target, {"layer": 13}, 16, key="abc")
    assert not target.exists()
    import_published(settings, None, target, {"layer": 13}, 10, key="abc")
    loaded = Crosscoder.load(target, key="abc")
    assert_equal(loaded, s)
    assert loaded.config["layer"] == 13 and loaded.config["source"]["path"] == settings["path"]
    result = inspect(target)
    assert not result.problems and "batchtopk" in as_text(result)


# Export


@pytest.mark.parametrize("batchtopk", [False, True], ids=["l1", "batchtopk"])
def test_round_trip(tmp_path: Path, batchtopk: bool) -> None:
    s = state(batchtopk=batchtopk)
    crosscoder = load_published(write(tmp_path / "in", s))
    config = export(crosscoder, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == s.keys()  # the minimal form: 4 or 6 tensors
    for name, tensor in s.items():
        assert written[name].dtype == tensor.dtype and written[name].shape == tensor.shape
        assert torch.allclose(written[name], tensor, rtol=1e-6), name
    expected = {"activation_dim": D, "dict_size": F, "num_layers": 2} | ({"k": 7} if batchtopk else {})
    assert config == expected == json.loads((tmp_path / "out" / "config.json").read_text())
    assert_equal(load_published(str(tmp_path / "out")), s)


@pytest.mark.parametrize("kind", ["l1", "batchtopk"])
def test_trained_dictionary_round_trip(tmp_path: Path, kind: str) -> None:
    section = {"kind": kind, "dict_size": F, **({"mu": 0.1} if kind == "l1" else {"k": 5, "aux_k": 4})}
    dictionary = build(dictionary_settings(section), D, seed=0)
    with torch.no_grad():
        dictionary.decoder_weight.mul_(torch.rand(F, 2, 1))
    if kind == "batchtopk":
        dictionary.inference_threshold = lambda: 0.9 / dictionary.decoder_norms().sum(dim=1)  # type: ignore[method-assign]
    ours = Crosscoder.from_training(dictionary, torch.randn(2, D), torch.tensor([0.4, 0.4]), {"kind": kind, "k": 5})
    export(ours, tmp_path / "out")  # a mean, and one scale for both models, are no obstacle
    again, x = load_published(str(tmp_path / "out")), activations()
    assert torch.allclose(again.encode(x).to_dense(F), ours.encode(x).to_dense(F), atol=1e-5)
    assert torch.allclose(again(x), ours(x), atol=1e-5)


def test_thresholds_of_no_single_theta_are_refused_or_tolerated(tmp_path: Path) -> None:
    s = {**state(), "activation_mean": torch.zeros(2, D), "activation_std": torch.ones(2, D)}
    s["activation_global_scale"] = torch.tensor([0.5, 0.52])
    crosscoder = load_published(write(tmp_path / "in", s))
    with pytest.raises(TunediffError, match=r"up to 0\.0\d+ \(relative\) from θ = .*; train with"):
        export(crosscoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(crosscoder, tmp_path / "out", tolerance=0.05)
    again = load_published(str(tmp_path / "out"))
    ratio = (again.threshold / crosscoder.threshold)[crosscoder.threshold.isfinite()]
    assert 0 < float((ratio - 1).abs().max()) < 0.05


def test_a_dictionary_of_the_difference_cannot_be_exported(tmp_path: Path) -> None:
    rows, nothing = torch.ones(4, 1, 3), torch.zeros(4)
    one = Crosscoder(rows, nothing, rows, torch.zeros(1, 3), nothing, {"kind": "diff_sae", "k": 2})
    with pytest.raises(TunediffError, match="export: kind diff_sae has one decoder") as error:
        export(one, tmp_path / "out")
    assert not (tmp_path / "out").exists() and "\n" not in str(error.value)


def test_export_needs_k_and_spares_other_files(tmp_path: Path) -> None:
    s = state()
    del s["k"]
    crosscoder = load_published(write(tmp_path / "in", s))
    with pytest.raises(TunediffError, match="give k"):
        export(crosscoder, tmp_path / "out")
    assert export(crosscoder, tmp_path / "out", k=9)["k"] == 9
    assert export(crosscoder, tmp_path / "out", k=8)["k"] == 8  # an earlier export is replaced
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(TunediffError, match="not an earlier export"):
        export(crosscoder, tmp_path / "out", k=8)


def test_export_command_uploads_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pushed: list[tuple[str, bool]] = []
    monkeypatch.setattr(exchange, "push", lambda path, to, private=True: pushed.append((to, private)) or to)
    load_published(write(tmp_path / "in", state())).save(tmp_path / "batchtopk")
    for extra in ([], ["--push-to", "me/mine"], ["--push-to", "me/mine", "--public"]):
        assert main(["export", str(tmp_path / "batchtopk"), str(tmp_path / "out"), *extra]) == 0
    assert pushed == [("me/mine", True), ("me/mine", False)]
    assert f"{F} latents of {D} × 2, for BatchTopKCrossCoder" in capsys.readouterr().out


# Files that must be refused, in one line with the remedy


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("file", ["model_final.pt", "cc_weights.pt"])
def test_pickled_code_is_not_run(tmp_path: Path, file: str) -> None:
    torch.save({"encoder.weight": torch.zeros(2, D, F), "x": Malice(tmp_path / "owned")}, tmp_path / file)
    with pytest.raises(TunediffError, match=r"not a file of plain tensors .*not loaded; use model\.safetensors"):
        load_published(str(tmp_path))
    assert not (tmp_path / "owned").exists()


def without(name: str) -> Callable[[State], State]:
    return lambda s: {key: tensor for key, tensor in s.items() if key != name}


def with_tensor(name: str, tensor: Tensor) -> Callable[[State], State]:
    return lambda s: {**s, name: tensor}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        *((without(name), {}, f"lacks the tensor {name}") for name in state() if name != "k"),
        (with_tensor("encoder.weight", torch.zeros(3, D, F)), {}, r"expected \(2, d, F\)"),
        (with_tensor("decoder.weight", torch.zeros(F, 2, D)), {}, r"decoder.weight has shape \(40, 2, 10\), expected"),
        (with_tensor("decoder.bias", torch.full((2, D), math.nan)), {}, "decoder.bias holds NaN"),
        (with_tensor("code_normalization_id", torch.tensor(5)), {}, "decoupled codes"),
        (with_tensor("code_normalization_id", torch.tensor(9)), {}, "code normalisation 9 is not known"),
        (lambda s: {"weight": torch.zeros(3)}, {}, r"unknown layout \(weight\)"),
        (lambda s: s, {"dict_size": 4 * F}, "dict_size is 160, the weights have 40"),
        (lambda s: s, {"encoder_layers": [1]}, r"encoder_layers \[1\]"),
        (lambda s: s, {"code_normalization": "L7"}, "code normalisation L7 is not known"),
    ],
)
def test_unfit_files_are_told(tmp_path: Path, change: Callable[[State], State], config: dict, message: str) -> None:
    with pytest.raises(TunediffError, match=message) as caught:
        load_published(write(tmp_path, change(state()), **config))
    assert "\n" not in str(caught.value) and ";" in str(caught.value)


def test_places_without_a_crosscoder_are_told(tmp_path: Path) -> None:
    with pytest.raises(TunediffError, match="no such file or directory, and not an id"):
        load_published(str(tmp_path / "nowhere"))
    with pytest.raises(TunediffError, match=r"neither that nor a \.pt file"):
        load_published(str(tmp_path))
    torch.save(state(), tmp_path / "a.pt")
    torch.save(state(), tmp_path / "b.pt")
    with pytest.raises(TunediffError, match=r"holds a\.pt, b\.pt .*name the weights in `file`"):
        load_published(str(tmp_path))
    with pytest.raises(TunediffError, match=r"has no file c\.pt"):
        load_published(str(tmp_path), file="c.pt")
    with pytest.raises(TunediffError, match="layout 'other' is not known; use one of auto"):
        load_published(str(tmp_path), file="a.pt", layout="other")
    with pytest.raises(TunediffError, match="lacks the tensor W_enc"):
        load_published(str(tmp_path), file="a.pt", layout="kissane", input_scale=[1, 1])
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(TunediffError, match="not a state dict"):
        load_published(str(tmp_path / "list.pt"))
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(TunediffError, match=r"cannot be read .*; download it again"):
        load_published(str(tmp_path))


def test_hub_download_is_limited_to_the_files_of_a_crosscoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    snapshot, s, asked = tmp_path / "0a1b2c", state(), []
    write(snapshot, s)
    kissane(snapshot / "blocks.14", state(batchtopk=False))

    def download(path: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((path, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    crosscoder = load_published("org/name", revision="main")
    assert_equal(crosscoder, s)
    assert crosscoder.config["source"]["revision"] == "0a1b2c"
    other = load_published("org/name", file="blocks.14/cc_weights.pt", input_scale=[0.3, 0.2])
    assert other.config["source"] == {**other.config["source"], "layout": "kissane", "file": "blocks.14/cc_weights.pt"}
    assert asked[0][:2] == ("org/name", "main") and "model.safetensors" in asked[0][2]
    assert asked[1][2] == ["blocks.14/cc_weights.pt", "blocks.14/config.json", "blocks.14/cfg.json"]


@pytest.mark.parametrize(
    ("error", "offline", "remedy"),
    [
        ("403 Client Error: access to model is restricted", "0", "accept its terms at https://huggingface.co/org/name"),
        ("cannot find the snapshot", "1", "unset HF_HUB_OFFLINE"),
        ("no route\nto host", "0", "the network, or give a local path"),
    ],
)
def test_hub_errors_name_the_remedy(monkeypatch: pytest.MonkeyPatch, error: str, offline: str, remedy: str) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> str:
        raise RuntimeError(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    with pytest.raises(TunediffError, match=remedy) as caught:
        load_published("org/name")
    assert "\n" not in str(caught.value)


# In a config


def plan(crosscoders: dict, **changes: object) -> Graph:
    """The demo without nulls with these crosscoders; a section that is changed to None is left out."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config |= {"crosscoders": crosscoders, "causal": {"set_size": 10}, "nulls": {}, **changes}
    config = {name: section for name, section in config.items() if section is not None}
    checked = check(config)
    return Graph(checked, ROOT / "resources/demo-pair")


def keys_of(graph: Graph) -> dict[str, str]:
    return {path: artifact.key for path, artifact in graph.artifacts.items()}


HUB = {"kind": "published", "path": "org/name"}
TRAINED = {"kind": "l1", "dict_size": 8, "mu": 0.1}


def moved(before: Graph, after: Graph) -> set[str]:
    one, other = keys_of(before), keys_of(after)
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_published_crosscoders_have_no_seed_and_no_training() -> None:
    both = plan({"mine": TRAINED, "theirs": HUB})
    assert both.dictionaries == ["theirs", "mine-seed0"] and list(both.trained) == ["mine-seed0"]
    assert {"crosscoders/theirs", "latents/theirs", "evaluation/theirs", "latents/mine-seed0"} <= both.artifacts.keys()
    alone = plan({"theirs": HUB}, training=None)
    assert alone.dictionaries == ["theirs"] and not alone.trained
    derived = plan({"mine": TRAINED, "theirs": HUB}, training=None).config["training"]
    assert derived["steps"] == 4 * 524288 // 2048  # four epochs of the demo's train tokens


def test_a_published_crosscoder_moves_what_reads_it_only() -> None:
    before = plan({"mine": TRAINED, "theirs": HUB})
    names = moved(before, plan({"mine": TRAINED, "theirs": {**HUB, "revision": "abc"}}))
    assert {"crosscoders/theirs", "latents/theirs", "causal/kl"} <= names
    assert not any(name.startswith(("models", "tokens", "activations")) or "mine" in name for name in names)
    assert "figures/training" not in names
    training = yaml.safe_load((ROOT / "config/config.yaml").read_text())["training"]
    names = moved(before, plan({"mine": TRAINED, "theirs": HUB}, training={**training, "steps": 9}))
    assert "crosscoders/mine-seed0" in names and "crosscoders/theirs" not in names


@pytest.mark.parametrize("file", [None, "model.safetensors"])
def test_local_files_are_part_of_the_key_by_content(tmp_path: Path, file: str | None) -> None:
    section = {"kind": "published", "path": write(tmp_path, state()), "file": file}
    before = keys_of(plan({"theirs": section}))
    (tmp_path / "model.safetensors").touch()
    assert keys_of(plan({"theirs": section})) == before
    write(tmp_path, state(seed=1))
    after = keys_of(plan({"theirs": section}))
    assert before["crosscoders/theirs"] != after["crosscoders/theirs"]
    assert before["models"] == after["models"]
    with pytest.raises(TunediffError, match=r"`crosscoders\.theirs\.path`: there is no .*gone"):
        plan({"theirs": {**section, "path": str(tmp_path / "gone")}})


@pytest.mark.parametrize(
    ("more", "reads"),
    [
        ({}, False),
        ({"layout": "kissane"}, True),
        ({"layout": "kissane", "input_scale": [0.3, 0.2]}, False),
        ({"layout": "dictionary_learning"}, False),
    ],
)
def test_activations_are_read_only_to_estimate_a_scale(more: dict, reads: bool) -> None:
    section = {**HUB, **more}
    names = moved(plan({"theirs": section}), plan({"theirs": section}, seed=7))
    assert ("crosscoders/theirs" in names) == reads


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"layout": "sae"}, "`crosscoders.theirs.layout` must be one of auto"),
        ({"input_scale": [0.3]}, "`crosscoders.theirs.input_scale`"),
        ({"input_scale": [0.3, 0]}, "above 0"),
        ({"k": 100}, "unknown key `crosscoders.theirs.k`"),
    ],
)
def test_mistakes_in_a_published_section(more: dict, message: str) -> None:
    with pytest.raises(TunediffError) as caught:
        plan({"theirs": {**HUB, **more}})
    assert message in str(caught.value)
