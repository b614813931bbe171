"""Exchange: crosscoders published by others, read into raw activation space, and ours written for their library.

Layouts: `dictionary_learning`, the paper's library (config.json + model.safetensors, or a .pt state dict), and
`kissane` (cfg.json + cc_weights.pt). Weights are read as tensors only: nothing of a downloaded file is executed.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunediff.data.activations import ActivationStore
from tunediff.data.masks import LEFT_OUT
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.pipeline.artifacts import building, file_sha256, provenance, seal

WEIGHTS, CONFIG = "model.safetensors", "config.json"
KISSANE_WEIGHTS, KISSANE_CONFIG = "cc_weights.pt", "cfg.json"
NAMES = {  # by layout: encoder (2, d, F), encoder bias (F), decoder (2, F, d; Kissane F, 2, d), decoder bias (2, d)
    "dictionary_learning": ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
    "kissane": ("W_enc", "b_enc", "W_dec", "b_dec"),
}
CODE_NORMALIZATIONS = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
LIBRARY_EPSILON = 1e-8  # the library adds it to whatever it divides by
TOLERANCE = 1e-5  # relative spread of f-thresholds · decoder norms that still counts as one θ


class Normalizer(NamedTuple):
    """Going in x = (h − mean) · factor, coming out ĥ = x̂ · inverse + mean; float64."""

    mean: Float[Tensor, "model d_model"]
    factor: Float[Tensor, "model d_model"]
    inverse: Float[Tensor, "model d_model"]  # not quite 1 / factor: the library adds an epsilon
    kind: str  # scale, mean_scale or mean_std


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _download(path: str, revision: str | None, file: str | None) -> Path:
    """Return the local snapshot of a hub repository (only the files of a crosscoder)."""
    from huggingface_hub import snapshot_download

    wanted = [WEIGHTS, CONFIG, KISSANE_WEIGHTS, KISSANE_CONFIG]
    if file is not None:
        folder = file.rpartition("/")[0]
        wanted = [file, *(f"{folder}/{name}".lstrip("/") for name in (CONFIG, KISSANE_CONFIG))]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub and the network raise many kinds
        text = f"{type(error).__name__}: {error}".lower()
        if any(word in text for word in ("gated", "401", "403", "restricted")):
            remedy = f"accept its terms at https://huggingface.co/{path} and set HF_TOKEN to a token of yours"
        elif os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
            remedy = "it is not in the local cache; unset HF_HUB_OFFLINE to download it, or give a local path"
        else:
            remedy = "check `path`, `revision` and the network, or give a local path"
        raise TunediffError(f"crosscoder {path}: cannot be downloaded ({_cause(error)}); {remedy}") from error


def _locate(path: str, revision: str | None, file: str | None) -> tuple[Path, Path | None, str | None]:
    """Find a crosscoder (a hub id, a directory or a weights file): its weights, its config, its commit of the hub."""
    place, commit = Path(path).expanduser(), None
    if not place.exists():
        if path.count("/") != 1 or path.startswith((".", "/", "~")):
            raise TunediffError(f"{path}: no such file or directory, and not an id of the hub (`organisation/name`)")
        place = _download(path, revision, file)
        commit = place.name
    if place.is_file():
        weights = place
    elif file is not None:
        weights = place / file
    else:
        present = [place / name for name in (WEIGHTS, KISSANE_WEIGHTS) if (place / name).is_file()]
        present = present or sorted(place.glob("*.pt"))
        if len(present) != 1:
            found = ", ".join(p.name for p in present) or "neither that nor a .pt file"
            raise TunediffError(f"{path}: holds {found} where one {WEIGHTS} was expected; name the weights in `file`")
        weights = present[0]
    if not weights.is_file():
        raise TunediffError(f"{path}: has no file {file}; correct `file`")
    configs = (weights.with_name(name) for name in (CONFIG, KISSANE_CONFIG))
    return weights, next((p for p in configs if p.is_file()), None), commit


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise TunediffError(f"{path}: cannot be read ({error}); download it again") from error
    except Exception as error:  # torch raises many kinds for a file that is damaged or holds more than tensors
        raise TunediffError(
            f"{path}: not a file of plain tensors ({type(error).__name__}), so it was not loaded; use {WEIGHTS}, or a "
            "state dict saved without other objects"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise TunediffError(f"{path}: not a state dict; save the crosscoder's state_dict(), names to tensors")
    return {str(name).rpartition("_orig_mod.")[2]: tensor for name, tensor in tensors.items()}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TunediffError(f"{path}: not readable JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise TunediffError(f"{path}: must hold a JSON object; download it again")
    return config


def _layout(layout: str, tensors: Mapping[str, Tensor], where: str) -> str:
    if layout in NAMES:
        return layout  # what is missing will be named
    if layout != "auto":
        raise TunediffError(f"{where}: layout {layout!r} is not known; use one of {', '.join(('auto', *NAMES))}")
    for name, names in NAMES.items():
        if any(tensor in tensors for tensor in names):
            return name
    found = ", ".join(sorted(tensors)[:6]) or "no tensor"
    raise TunediffError(f"{where}: unknown layout ({found}); it must hold encoder.weight … or W_enc …")


def _expect(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...] | None, where: str) -> Tensor:
    """Return a tensor by name, of this shape, in float32 and finite."""
    if name not in tensors:
        raise TunediffError(f"{where}: lacks the tensor {name}; download the file again or give another `file`")
    tensor = tensors[name]
    if shape is not None and tuple(tensor.shape) != shape:
        raise TunediffError(
            f"{where}: {name} has shape {tuple(tensor.shape)}, expected {shape}; only crosscoders of two models with "
            "one encoder and one decoder each can be read"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise TunediffError(f"{where}: {name} holds NaN or infinite values; the file is damaged, download it again")
    return tensor.float()


def _weights(tensors: Mapping[str, Tensor], names: Sequence[str], where: str) -> list[Tensor]:
    """Return encoder (2, d, F) and its bias, decoder (2, F, d) and its bias, as the library shapes them."""
    shape = tuple(_expect(tensors, names[0], None, where).shape)
    if len(shape) != 3 or shape[0] != 2:
        raise TunediffError(
            f"{where}: {names[0]} has shape {shape}, expected (2, d, F); only crosscoders of two models can be read"
        )
    _, d_model, dict_size = shape
    shapes = (shape, (dict_size,), (2, dict_size, d_model), (2, d_model))
    return [_expect(tensors, name, wanted, where) for name, wanted in zip(names, shapes, strict=True)]


def _scaling(input_scale: Sequence[float], d_model: int, where: str) -> Normalizer:
    scale = torch.tensor([float(value) for value in input_scale], dtype=torch.float64)
    if scale.shape != (2,) or not bool((scale > 0).all() & torch.isfinite(scale).all()):
        raise TunediffError(f"{where}: input_scale {list(input_scale)} must be two positive numbers, base and chat")
    factor = scale[:, None].expand(2, d_model)
    return Normalizer(torch.zeros(2, d_model, dtype=torch.float64), factor, 1 / factor, "scale")


def _stored_normalizer(tensors: Mapping[str, Tensor], d_model: int, where: str) -> Normalizer | None:
    """Return what the library does to activations: nothing where mean or std are absent or hold a NaN."""
    given = (tensors.get("activation_mean"), tensors.get("activation_std"))
    if any(tensor is None or bool(tensor.isnan().any()) for tensor in given):
        return None
    mean, std = (_expect(tensors, f"activation_{name}", (2, d_model), where).double() for name in ("mean", "std"))
    scale = tensors.get("activation_global_scale")
    if scale is None or bool(scale.isnan().any()):  # before June 2025: each neuron by its own deviation
        return Normalizer(mean, 1 / (std + LIBRARY_EPSILON), std + LIBRARY_EPSILON, "mean_std")
    shape = tuple(scale.shape)
    if shape not in ((), (2,)):
        raise TunediffError(f"{where}: activation_global_scale has shape {shape}, expected (2,); give another file")
    factor = scale.double().expand(2)[:, None].expand(2, d_model)
    return Normalizer(mean, factor, 1 / (factor + LIBRARY_EPSILON), "mean_scale")


def _code_normalization(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], given: str | None, where: str
) -> tuple[str, list[str]]:
    """Return which decoder norm the library multiplies f by (the buffer's, else config.json's, else the given one)."""
    stated = str(config["code_normalization"]).upper() if config.get("code_normalization") is not None else None
    if "code_normalization_id" in tensors:
        number = int(tensors["code_normalization_id"])
        name = CODE_NORMALIZATIONS.get(number, str(number))
    else:
        name = stated or given or "CROSSCODER"
    if name not in CODE_NORMALIZATIONS.values():
        known = ", ".join(CODE_NORMALIZATIONS.values())
        raise TunediffError(f"{where}: code normalisation {name} is not known, only {known}; use another file")
    if given not in (None, name):
        raise TunediffError(f"{where}: the file says code_normalization {name}, not {given}; remove the key")
    if name == "DECOUPLED":
        raise TunediffError(f"{where}: decoupled codes (one threshold per model) cannot be read; use another file")
    if stated not in (None, name):
        return name, [f"{CONFIG} says code_normalization {stated}; the buffer's {name} is used"]
    if "code_normalization_id" not in tensors and stated is None and given is None:
        return name, ["no code_normalization in the files, as before May 2025; CROSSCODER is assumed, the paper's"]
    return name, []


def _thresholds(
    theta: float, decoder: Float[Tensor, "model latent d_model"], normalization: str, config: Mapping[str, Any]
) -> Float[Tensor, "latent"]:
    """Return t with f > t exactly where f · s > θ, s the decoder norm of this normalisation.

    A latent without decoder never fires, unless θ < 0 (not set yet): then every positive f is kept.
    """
    norms = torch.linalg.vector_norm(decoder, dim=2, dtype=torch.float64)
    added, joint = norms.sum(dim=0), torch.linalg.vector_norm(norms, dim=0)
    if normalization == "MIXED":  # the weights are the library's defaults
        score = config.get("code_normalization_alpha_sae", 1.0) * joint
        score = score + config.get("code_normalization_alpha_cc", 0.1) * added
    else:
        score = {"CROSSCODER": added, "SAE": joint, "NONE": torch.ones_like(added)}[normalization]
    return torch.where(score > 0, theta / score, torch.inf) if theta >= 0 else torch.zeros_like(score)


def load_published(
    path: str,
    layout: str = "auto",
    revision: str | None = None,
    file: str | None = None,
    input_scale: Sequence[float] | None = None,
    code_normalization: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Crosscoder:
    """Read a published crosscoder into raw activation space; normalisation is folded into the weights in float64.

    `path` is a hub id, a directory or a weights file, `file` the weights within it. `input_scale` are the factors
    (base, chat) that inputs were multiplied by in training, where the file does not hold them (Kissane's never does);
    `code_normalization` the decoder norm in a threshold's score, where the file does not name it (before May 2025).
    The crosscoder's config says what was read and where the file contradicts itself, besides `facts`.

    Raises
    ------
    TunediffError
        Not found, gated, unreadable, more than tensors, another layout, a tensor missing or of the wrong shape,
        or an input scale missing or given twice.
    """
    weights_file, config_file, commit = _locate(path, revision, file)
    where, config = str(weights_file), {} if config_file is None else _read_config(config_file)
    tensors = _read_tensors(weights_file)
    layout = _layout(layout, tensors, where)
    if layout == "kissane":  # L1 on inputs scaled to mean norm √d
        if input_scale is None:
            raise TunediffError(
                f"{where}: the factors its inputs were scaled by are not in the file; give `input_scale: [base, "
                "chat]`, or `layout: kissane` in the config to have them estimated on the train activations"
            )
        tensors = {name: tensors[name] for name in NAMES[layout] if name in tensors}
        if "W_dec" in tensors and tensors["W_dec"].ndim == 3:
            tensors["W_dec"] = tensors["W_dec"].permute(1, 0, 2)
    elif config.get("encoder_layers") not in (None, [0, 1]):
        raise TunediffError(f"{where}: encoder_layers {config['encoder_layers']} of {CONFIG}; only [0, 1] can be read")
    encoder, bias, decoder, decoder_bias = _weights(tensors, NAMES[layout], where)
    d_model, dict_size = encoder.shape[1:]
    normalizer = _stored_normalizer(tensors, d_model, where)
    if input_scale is not None:
        if normalizer is not None:
            raise TunediffError(f"{where}: the file holds its own normalisation; remove `input_scale`")
        normalizer = _scaling(input_scale, d_model, where)

    about: dict[str, Any] = {**(facts or {}), "kind": "l1"}
    threshold, notes = torch.zeros(dict_size), list[str]()
    if "k" in tensors or "threshold" in tensors:
        code_normalization, notes = _code_normalization(tensors, config, code_normalization, where)
        theta = float(_expect(tensors, "threshold", (), where))
        about |= {"kind": "batchtopk", "theta": theta, "code_normalization": code_normalization}
        if "k" in tensors:
            about["k"] = int(_expect(tensors, "k", (), where))
        if config.get("k") not in (None, about.get("k")):
            notes.append(f"{CONFIG} says k = {config['k']}; the buffer's k = {about.get('k')} is right")
        if theta < 0:
            notes.append("the threshold was never set in training: every positive activation is kept")
        threshold = _thresholds(theta, decoder, code_normalization, config)
    for stated, size in (("activation_dim", d_model), ("d_in", d_model), ("dict_size", dict_size), ("num_layers", 2)):
        if config.get(stated, size) != size:
            raise TunediffError(
                f"{config_file}: {stated} is {config[stated]}, the weights have {size}; config and weights belong to "
                "different dictionaries, download both again"
            )
    about["normalization"] = {"kind": "none"}
    encoder, decoder = encoder.permute(2, 0, 1), decoder.permute(1, 0, 2)
    if normalizer is not None:
        mean, factor, inverse, kind = normalizer
        encoder = encoder.double() * factor
        bias = bias.double() - torch.einsum("lmd,md->l", encoder, mean)
        decoder = decoder.double() * inverse
        decoder_bias = decoder_bias.double() * inverse + mean
        about["normalization"] = {"kind": kind, "mean_norm": torch.linalg.vector_norm(mean, dim=1).tolist()}
        if kind != "mean_std":  # that one has a factor per neuron
            about["normalization"]["scale"] = factor[:, 0].tolist()
    source = {"path": path, "revision": commit, "file": weights_file.name if file is None else file, "layout": layout}
    about |= {"source": {**source, "sha256": file_sha256(weights_file)}, "notes": notes}
    return Crosscoder(encoder, bias, decoder, decoder_bias, threshold, about, where=where)


def estimate_input_scale(store: ActivationStore, n_tokens: int = 1_000_000) -> tuple[list[float], int]:
    """Return √d / mean ‖h^m‖ per model (base, chat), and on how many tokens: BOS and ignored tokens are left out.

    The chunks read are spread evenly over the store. The trainer's own factors, where they are known, are better:
    they were taken on other text, and possibly with BOS.
    """
    chunks = min(store.n_chunks, max(1, -(-n_tokens // store.chunk_tokens)))
    numbers = np.unique(np.linspace(0, store.n_chunks - 1, chunks).round().astype(np.int64))
    total, count = torch.zeros(2, dtype=torch.float64), 0
    for batch in store.read_chunks(numbers, LEFT_OUT):
        total += torch.linalg.vector_norm(batch.activations, dim=2, dtype=torch.float64).sum(dim=0)
        count += len(batch.activations)
    if count == 0 or not bool((total > 0).all()):
        raise TunediffError("input_scale: the activation store holds no token to estimate it on; give it as numbers")
    return (math.sqrt(store.d_model) * count / total).tolist(), count


def import_published(
    settings: Mapping[str, Any],
    store: ActivationStore | None,
    target: Path,
    facts: Mapping[str, Any] | None = None,
    d_model: int | None = None,
    *,
    key: str,
) -> Crosscoder:
    """Make the artifact of a published crosscoder (config section of `kind: published`), as training makes one.

    `store` is only read to estimate an input scale that is not given; `facts` (the layer) go into config.json. Of
    another width than `d_model`, where that is given, it is refused before anything long reads it.
    """
    started = time.time()
    chosen = {name: settings.get(name) for name in ("revision", "file", "input_scale", "code_normalization")}
    layout, scale_from = settings.get("layout", "auto"), "given"
    if layout == "kissane" and chosen["input_scale"] is None:
        if store is None:
            raise TunediffError(f"{settings['path']}: no activations to estimate `input_scale` on; give it as numbers")
        chosen["input_scale"], count = estimate_input_scale(store)
        scale_from = f"estimated on {count} train tokens, without BOS"
    about = {**(facts or {}), "seed": None}
    if chosen["input_scale"] is not None:
        about["input_scale"] = {"values": list(chosen["input_scale"]), "from": scale_from}
    crosscoder = load_published(settings["path"], layout, **chosen, facts=about)
    if d_model not in (None, crosscoder.d_model):
        raise TunediffError(
            f"{settings['path']}: a crosscoder of models {crosscoder.d_model} wide, these are {d_model} wide; give one "
            "trained on this pair"
        )
    with building(target) as partial:
        crosscoder.save(partial)
    seal(target, "crosscoder", key, crosscoder.config, provenance(started))
    for note in crosscoder.config["notes"]:
        print(f"{settings['path']}: {note}", flush=True)
    return crosscoder


def _single_theta(crosscoder: Crosscoder, tolerance: float) -> float | None:
    """Return the θ with f_j · s_j > θ just where f_j > threshold_j; None where no latent has a threshold."""
    threshold, score = crosscoder.threshold.double(), crosscoder.decoder_norms.double().sum(dim=1)
    if not bool((threshold > 0).any()):
        return None
    value = (threshold * score)[score > 0]  # a latent without decoder does not fire in the library either
    theta = float(value.median()) if len(value) else 0.0
    spread = float((value / theta - 1).abs().max()) if theta > 0 and math.isfinite(theta) else math.inf
    if not spread <= tolerance:
        raise TunediffError(
            f"export: no single threshold θ expresses this crosscoder's thresholds, which are up to {spread:.2g} "
            f"(relative) from θ = {theta:.4g}, more than {tolerance:g}, as after training on inputs scaled per model "
            "or with another decoder norm; train with `normalization: none`, or raise the tolerance and accept other "
            "codes near the threshold"
        )
    return theta


def export(
    crosscoder: Crosscoder, directory: Path, k: int | None = None, tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Write config.json and model.safetensors as every version of the paper's library loads them; return the config.

    Four tensors for a crosscoder without thresholds (CrossCoder), six with (BatchTopKCrossCoder). `k` is only needed
    where the crosscoder's config holds none. An existing export in `directory` is replaced, anything else is not.

    Raises
    ------
    TunediffError
        It reconstructs the difference alone, the thresholds are not those of one θ within `tolerance` (relative), k is
        unknown, or the directory holds other files.
    """
    if crosscoder.reconstructs != "models":
        raise TunediffError(
            f"export: kind {crosscoder.config.get('kind')} has one decoder, the library's files hold one per model; "
            "export a crosscoder"
        )
    if directory.exists() and (
        not directory.is_dir() or {p.name for p in directory.iterdir()} - {WEIGHTS, CONFIG, ".snakemake_timestamp"}
    ):
        raise TunediffError(f"{directory}: exists and is not an earlier export; give another directory")
    theta = _single_theta(crosscoder, tolerance)
    k = crosscoder.config.get("k") if k is None else k
    encoder, decoder = crosscoder.encoder_weight.permute(1, 2, 0), crosscoder.decoder_weight.permute(1, 0, 2)
    weights = (encoder, crosscoder.encoder_bias, decoder, crosscoder.decoder_bias)
    tensors = dict(zip(NAMES["dictionary_learning"], weights, strict=True))
    config: dict[str, Any] = {"activation_dim": crosscoder.d_model, "dict_size": crosscoder.dict_size, "num_layers": 2}
    if theta is not None or "theta" in crosscoder.config:
        if k is None:
            raise TunediffError("export: a crosscoder with thresholds needs its k, which its config lacks; give k")
        config["k"] = int(k)
        tensors["k"] = torch.tensor(int(k), dtype=torch.int32)
        tensors["threshold"] = torch.tensor(theta or 0.0, dtype=torch.float32)
    with building(directory) as partial:
        partial.mkdir()
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial / WEIGHTS)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config


def push(directory: Path, repository: str, private: bool = True) -> str:
    """Upload an export to the hub (a new repository is private unless said otherwise); return its address."""
    from huggingface_hub import HfApi

    try:
        api, files = HfApi(), [WEIGHTS, CONFIG]
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=directory, allow_patterns=files, commit_message="Add crosscoder"
        )
    except Exception as error:  # the hub and the network raise many kinds
        raise TunediffError(
            f"{repository}: cannot be uploaded to ({_cause(error)}); set HF_TOKEN to a token that may write there, or "
            f"upload {directory} yourself"
        ) from error
    return f"https://huggingface.co/{repository}"
