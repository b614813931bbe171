"""What is in an artifact, or whole: layout, missing and damaged files, what made it, and the numbers worth a look."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunediff.data.masks import LEFT_OUT, Mask
from tunediff.data.tokens import TokenStore
from tunediff.errors import TunediffError
from tunediff.latents.criterion import Criterion
from tunediff.pipeline.artifacts import damage, manifest_path, own_files, read_json, read_manifest, store_of
from tunediff.results import MANIFEST_ENTRIES

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
LARGE_FACTOR = 5.0  # norms above this many medians are counted as large
SAMPLED_CHUNKS = 64  # chunks of an activation store that norms are measured on, spread evenly
SHOWN_TOKENS = 160  # of each document
SHOWN_COLUMNS = 40  # of a table
# files beside the store of an artifact: their kinds
BESIDE = {".history.parquet": "history", ".texts.parquet": "texts", ".overall.parquet": "means", ".sets.json": "sets"}
DRAWN = (".pdf", ".png")  # what a drawing's manifest stands for, beside its numbers
FOLDERS = ("crosscoders", "examples", "explanations")  # each folder in these is a store
STORES = ("models", "report", "scores")  # and so are these
NO_ARTIFACTS = ("logs", "benchmarks", "exports", "replies")
MOST_SHARDS = 1 << 20  # of an array


@dataclass
class Inspection:
    """Everything that is printed of one artifact."""

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)  # of the manifest
    bytes_stored: int = 0
    problems: list[str] = field(default_factory=list)  # missing, damaged, unfinished: one line each
    checksums: bool = True  # whether contents were compared with the manifest
    arrays: list[dict[str, Any]] = field(default_factory=list)  # of a zarr group or safetensors file
    made_by: dict[str, Any] = field(default_factory=dict)  # provenance
    summary: dict[str, Any] = field(default_factory=dict)  # numbers that depend on the kind
    documents: list[str] = field(default_factory=list)  # decoded, with masks


def inspect(path: Path, checksums: bool = True, documents: int = 2, tokenizer: Path | None = None) -> Inspection:
    """Look into an artifact, or what a manifest stands for, or a whole folder of results; damage is reported.

    `documents` decoded documents of a token store are shown, with `tokenizer` or the chat model's of the same results.

    Raises
    ------
    TunediffError
        There is nothing at `path`, or it is nothing this project writes.
    """
    described = path.suffix == ".json" and not path.name.endswith(".provenance.json") and store_of(path).exists()
    drawn = path.suffix in DRAWN and manifest_path(path).is_file()
    store = store_of(manifest_path(path)) if described or drawn else path
    if not store.exists():
        raise TunediffError(f"{path}: no such artifact; give a store, a directory, a table or a manifest of `results`")
    if _holds_artifacts(store):
        return inspect_run(store, checksums)
    result = Inspection(str(store), "unknown", checksums=checksums)
    if store.suffix == ".json" and (manifest_path(store) == store or store.name.endswith(".provenance.json")):
        result.kind = "json"
        _try(result, store, lambda: result.summary.update(read_json(store)))
        return result
    _try(result, store, _compare, result, store, checksums)
    if (store / "zarr.json").is_file():
        result.arrays = _zarr_arrays(store, result.problems)
    if result.problems and result.kind != "unknown":
        return result
    if result.kind == "tokens":
        _try(result, store, _inspect_tokens, result, store, documents, tokenizer)
    elif result.kind == "activations":
        _try(result, store, _inspect_activations, result, store)
    elif result.kind == "examples":
        _try(result, store, _inspect_examples, result, store)
    elif result.kind == "sets":
        _try(result, store, lambda: result.summary.update(json.loads(store.read_text(encoding="utf-8"))))
    elif list(store.glob("*.safetensors")) and (store / "config.json").is_file():
        _try(result, store, _inspect_crosscoder, result, store)
    elif store.suffix in (".parquet", ".csv"):
        _try(result, store, _inspect_table, result, store)
    elif result.kind in ("summary", "report"):
        text = store if result.kind == "summary" else store / "headline.txt"
        _try(result, store, lambda: result.documents.extend(text.read_text(encoding="utf-8").splitlines()))
    elif result.kind == "unknown" and not result.arrays and not manifest_path(store).is_file():
        raise TunediffError(f"{store}: nothing tunediff writes; give a store, a table or a manifest of `results`")
    return result


def _try(result: Inspection, store: Path, look: Callable[..., Any], *arguments: Any) -> None:
    """Call a function that reads files with these arguments; what it cannot read is a problem."""
    try:
        look(*arguments)
    except TunediffError as error:
        result.problems.append(str(error))
    except Exception as error:  # damage shows as whatever the reader of a format raises
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        result.problems.append(f"{store}: cannot be read ({why}); delete {manifest_path(store)}, run snakemake again")


def _compare(result: Inspection, store: Path, checksums: bool) -> None:
    """Compare a store with its manifest: with what lies beside it, or a file beside a store alone."""
    if manifest_path(store).is_file() and not store.exists():
        raise TunediffError(
            f"{manifest_path(store)}: its store is missing; snakemake makes it again where it is needed"
        )
    manifest = read_manifest(store)
    beside = next((kind for suffix, kind in BESIDE.items() if store.name.endswith(suffix)), None)
    files = own_files(store, manifest) if beside else list(manifest.files)
    result.kind, result.facts, result.made_by = beside or manifest.kind, manifest.facts, {"key": manifest.key}
    result.bytes_stored = sum(manifest.files[name]["bytes"] for name in files)
    result.problems += damage(store, manifest, files, later=() if checksums else ("*",))
    made = manifest_path(store).with_suffix(".provenance.json")
    result.made_by |= read_json(made) if made.is_file() else {}


# -- a whole run -------------------------------------------------------------------------------------------------------


def inspect_run(folder: Path, checksums: bool = True) -> Inspection:
    """Check every artifact of a folder of results: one problem for each file that is missing or damaged.

    What was never made is no problem: `snakemake -n` names it.
    """
    result = Inspection(str(folder), "run", checksums=checksums)
    for store in _stores(folder):
        if store.suffix == ".json":
            _try(result, store, read_json, store)
            kind = "json"
        else:
            found = Inspection(str(store), "unfinished", checksums=checksums)
            _try(found, store, _compare, found, store, checksums)
            result.problems += found.problems
            result.bytes_stored += found.bytes_stored
            kind = found.kind
        result.facts[kind] = result.facts.get(kind, 0) + 1
    for parts in sorted(folder.rglob("activations/*/")):
        numbers = sorted(int(file.stem[5:]) for file in parts.glob("part-*.json") if file.stem[5:].isdecimal())
        absent = sorted(set(range(numbers[-1] + 1 if numbers else 0)) - set(numbers))
        result.problems += [f"{parts}/part-{i:03d}.json: missing; run snakemake again" for i in absent]
    result.problems = list(dict.fromkeys(result.problems))  # files of one artifact may tell the same
    return result


def _holds_artifacts(folder: Path, levels: int = 3) -> bool:
    """Whether a folder is no store, but has stores in it, so many levels down."""
    if not folder.is_dir() or folder.suffix == ".zarr" or manifest_path(folder).is_file():
        return False
    manifests = [path for path in folder.glob("*.json") if not path.name.endswith(".provenance.json")]
    if any(store_of(path).exists() for path in manifests):
        return True
    within = (path for path in folder.iterdir() if not path.name.startswith(".")) if levels else ()
    return any(_holds_artifacts(path, levels - 1) for path in within)


def _stores(folder: Path) -> Iterator[Path]:
    """Yield every store of a folder, also those that lack a manifest or are lacking; JSON artifacts as they are."""
    names = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    manifests = [name for name in names if name.endswith(".json") and name.count(".") == 1]
    for name in manifests:
        path = names[name]
        try:
            whole = set(read_json(path)) >= MANIFEST_ENTRIES
        except (TunediffError, OSError, RecursionError):
            whole = store_of(path).exists()
        yield store_of(path) if whole else path
    sealed = {name.removesuffix(".json") for name in manifests}
    for name, path in names.items():
        stem = name.split(".")[0]
        if stem in sealed or path.suffix == ".json" or any(stem.startswith(f"{known}_") for known in sealed):
            continue  # of an artifact above, or a further table of a drawing
        if path.is_dir() and not (path.suffix == ".zarr" or folder.name in FOLDERS or name in STORES):
            if name not in NO_ARTIFACTS:
                yield from _stores(path)
        else:
            yield path


def _zarr_arrays(store: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Describe every array of a group; shards that are not there are added to `problems`."""
    import zarr

    described = []
    for folder in sorted(path.parent for path in store.glob("*/zarr.json")):
        if str(folder / "zarr.json") in " ".join(problems):
            continue
        try:
            array: Any = zarr.open_array(str(folder), mode="r")
        except Exception as error:  # zarr raises many kinds
            why = " ".join(str(error).split())[:200]
            problems.append(
                f"{folder / 'zarr.json'}: damaged ({why}); delete {manifest_path(store)}, run snakemake again"
            )
            continue
        unit = array.shards or array.chunks
        grid = [-(-size // step) for size, step in zip(array.shape, unit, strict=True)]
        if np.prod(np.array(grid, dtype=float)) > MOST_SHARDS:
            problems.append(f"{folder / 'zarr.json'}: states a shape of {array.shape}, which no store has")
            continue
        files = [folder.joinpath("c", *map(str, index)) for index in np.ndindex(*grid)]
        present = [file for file in files if file.is_file() and file.stat().st_size]
        known = " ".join(problems)
        problems += [f"{file}: missing or empty" for file in files if file not in present and str(file) not in known]
        stored = sum(file.stat().st_size for file in present)
        described.append(
            {
                "name": folder.name,
                "shape": list(array.shape),
                "dtype": str(array.attrs.get("logical_dtype", array.dtype)),
                "chunks": list(array.chunks),
                "shards": list(array.shards) if array.shards else None,
                "files": len(files),
                "files_missing": len(files) - len(present),
                "bytes_stored": stored,
                "compression_ratio": round(array.nbytes / stored, 3) if stored else None,
            }
        )
    return described


def _mask_name(bits: int) -> str:
    return "+".join(bit.name or "" for bit in Mask if bits & bit) or "text"


def _find_tokenizer(store: Path, tokenizer: Path | None) -> Any:
    """Return the tokenizer at `tokenizer`, or that of the models beside the store, or None."""
    from tunediff.models.pair import load_pair
    from tunediff.models.tokenizers import load_tokenizer

    if tokenizer is not None:
        return load_tokenizer(tokenizer)
    for folder in store.resolve().parents[:3]:
        if (folder / "models" / "pair.json").is_file():
            try:
                return load_pair(folder / "models", 0, "float32").load_tokenizer()
            except TunediffError:
                return None
    return None


def _decode(tokens: TokenStore, i: int, tokenizer: Any) -> str:
    """Return the start of a document, runs of equal masks in brackets."""
    where = tokens.document(i)
    stop = min(where.stop, where.start + SHOWN_TOKENS)
    ids, mask = tokens.read("token_id", where.start, stop), tokens.read("mask", where.start, stop)
    pieces = []
    for start, end in pairwise([0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]):
        run = ids[start:end].tolist()
        text = tokenizer.decode(run) if tokenizer is not None else " ".join(map(str, run))
        pieces.append(f"[{_mask_name(int(mask[start]))}] {text!r}")
    more = f"{' …' if stop < where.stop else ''} ({where.stop - where.start} tokens)"
    return f"document {i}, {tokens.sources[int(tokens.doc_source[i])]}: {' '.join(pieces)}{more}"


def _inspect_tokens(result: Inspection, store: Path, documents: int, tokenizer: Path | None) -> None:
    tokens = TokenStore.open(store)
    lengths = np.diff(tokens.doc_start)
    by_source = np.bincount(tokens.doc_source, lengths, len(tokens.sources))
    mask, label = tokens.mask, tokens.label
    result.summary = {
        "tokens": tokens.n_tokens,
        "documents": tokens.n_documents,
        "document_length": _quantiles(lengths),
        "tokens_by_source": {name: int(n) for name, n in zip(tokens.sources, by_source, strict=True)},
        "tokens_by_mask": {bit.name: int(np.count_nonzero(mask & np.uint8(bit))) for bit in Mask},
        "tokens_by_concept": {
            name: int(np.count_nonzero(label & np.uint64(1 << i))) for i, name in enumerate(tokens.concepts)
        },
    }
    if documents > 0:
        known = _find_tokenizer(store, tokenizer)
        chosen = np.unique(np.linspace(0, tokens.n_documents - 1, documents).astype(int))
        result.documents = [_decode(tokens, int(i), known) for i in chosen]


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    return {f"{q:g}": float(f"{v:.5g}") for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}


def _inspect_activations(result: Inspection, store: Path) -> None:
    from tunediff.data.activations import MODELS, ActivationStore

    activations = ActivationStore([store])
    chosen = np.unique(np.linspace(0, activations.n_chunks - 1, SAMPLED_CHUNKS).astype(int))
    squares, columns = 0.0, []
    for batch in activations.read_chunks(chosen):
        norm = np.linalg.norm(batch.activations.numpy(), axis=2)
        columns.append((norm, batch.row, batch.token_id, batch.pos, batch.mask))
        counted = (batch.mask & np.uint8(LEFT_OUT)) == 0
        difference = (batch.activations[:, 1] - batch.activations[:, 0]).double().square().sum(1).numpy()
        squares += float(difference[counted].sum())
    norm, row, token_id, pos, mask = (np.concatenate(column) for column in zip(*columns, strict=True))
    counted = (mask & np.uint8(LEFT_OUT)) == 0
    result.summary = {"rows_measured": len(row), "rows_counted": int(counted.sum())}
    outliers = result.facts.get("outliers")
    result.summary["outliers_left_out"] = (
        "not looked for (activations.outlier_factor is null)"
        if outliers is None
        else {source: f"{n} of {outliers['of'][source]}" for source, n in outliers["tokens"].items()}
    )
    if not counted.any():
        return
    result.summary["rms_norm_of_difference"] = float(f"{np.sqrt(squares / counted.sum()):.5g}")
    for m, name in enumerate(MODELS):
        median = float(np.median(norm[counted, m]))
        largest = np.argsort(-norm[:, m])[:5]
        result.summary[f"norm_{name}"] = _quantiles(norm[counted, m])
        result.summary[f"large_norms_{name}"] = {
            "above": float(f"{LARGE_FACTOR * median:.5g}"),
            "counted": int((norm[counted, m] > LARGE_FACTOR * median).sum()),
            "left_out": int((norm[~counted, m] > LARGE_FACTOR * median).sum()),
            "largest": [
                f"row {row[i]} token {token_id[i]} position {pos[i]} [{_mask_name(int(mask[i]))}]: {norm[i, m]:.4g}"
                for i in largest
            ],
        }


def _inspect_examples(result: Inspection, store: Path) -> None:
    from tunediff.latents.examples import BANDS, SCHEMAS, Examples

    try:
        examples = Examples.open(store)
        tables = {name: examples.table(name, ["latent"]) for name in SCHEMAS}
        band = examples.table("windows", ["band"])["band"]
    except TunediffError as error:
        result.problems.append(str(error))
        return
    result.summary = {
        "rows": {name: len(frame) for name, frame in tables.items()},
        "latents": {name: int(frame["latent"].nunique()) for name, frame in tables.items()},
        "windows": {name: int((band == name).sum()) for name in BANDS},
    }


def _inspect_crosscoder(result: Inspection, store: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from tunediff.latents.table import classify

    try:
        config = json.loads((store / "config.json").read_text(encoding="utf-8"))
        tensors = dict(item for file in sorted(store.glob("*.safetensors")) for item in load_file(file).items())
    except (SafetensorError, ValueError, OSError) as error:
        result.problems.append(f"{store}: cannot be read ({str(error).splitlines()[0]})")
        return
    result.arrays = [{"name": n, "shape": list(t.shape), "dtype": str(t.dtype)} for n, t in sorted(tensors.items())]
    result.summary = {"config": config}
    decoder = tensors.get("decoder_weight")
    if decoder is None or decoder.ndim != 3:
        return
    norms = np.linalg.norm(decoder.astype(np.float64), axis=2)
    if decoder.shape[1] == 1:  # of a dictionary of the difference
        result.summary |= {"decoder_norm": _quantiles(norms), "latents_of_zero_norm": int((norms == 0).sum())}
        return
    largest = norms.max(1)
    live = largest > 0
    difference = 0.5 * (1 + (norms[live, 1] - norms[live, 0]) / largest[live])
    names, counts = np.unique(classify(difference, np.zeros(len(difference), dtype=bool)), return_counts=True)
    result.summary |= {
        "decoder_norm_base": _quantiles(norms[:, 0]),
        "decoder_norm_chat": _quantiles(norms[:, 1]),
        "norm_difference": _quantiles(difference) if len(difference) else {},
        "classes_dead_included": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "latents_of_zero_norm": int((~live).sum()),
    }


def _inspect_table(result: Inspection, store: Path) -> None:
    import pandas as pd
    import pyarrow.parquet as pq

    try:
        frame = pd.read_csv(store) if store.suffix == ".csv" else pd.read_parquet(store)
        criterion = None if store.suffix == ".csv" else (pq.read_schema(store).metadata or {}).get(b"criterion")
    except (OSError, ValueError) as error:
        form = "CSV" if store.suffix == ".csv" else "Parquet"
        result.problems.append(f"{store}: not a readable {form} file ({str(error).splitlines()[0]})")
        return
    result.summary = {"rows": len(frame)}
    if criterion is not None:  # of a latent table
        result.summary["chat_specific_if"] = Criterion.from_dict(json.loads(criterion)).text
    result.summary["columns"] = {}
    for name in frame.columns[:SHOWN_COLUMNS]:
        column = frame[name]
        text = f"{column.dtype}, {int(column.isna().sum())} missing"
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) and column.notna().any():
            text += f", {column.min():.5g} … {column.mean():.5g} … {column.max():.5g}"
        elif column.nunique() <= 12:
            text += ", " + ", ".join(f"{value}: {count}" for value, count in column.value_counts().items())
        result.summary["columns"][str(name)] = text


# -- printing ----------------------------------------------------------------------------------------------------------


def _lines(values: Mapping[str, Any], indent: int) -> list[str]:
    lines = []
    for name, value in values.items():
        head, long = " " * indent + f"{name}:", len(str(value)) > 90
        if isinstance(value, Mapping) and value and long:
            lines += [head, *_lines(value, indent + 2)]
        elif isinstance(value, Mapping):
            lines.append(f"{head} " + ("  ".join(f"{k} {v}" for k, v in value.items()) or "none"))
        elif isinstance(value, Sequence) and not isinstance(value, str) and long:
            lines += [head, *(" " * (indent + 2) + str(item) for item in value)]
        else:
            lines.append(f"{head} {value}")
    return lines


def as_json(result: Inspection) -> str:
    """Return an inspection as JSON."""
    return json.dumps(asdict(result), indent=1, ensure_ascii=False, default=str)


def as_text(result: Inspection) -> str:
    """Return an inspection as text for a terminal."""
    lines = [f"{result.path}: {result.kind}, {result.bytes_stored:,} bytes"]
    if result.arrays:
        lines.append("arrays")
    for array in result.arrays:
        text = f"  {array['name']}: {array['shape']} {array['dtype']}"
        if "chunks" in array:
            shards = f", shards {array['shards']}" if array["shards"] else ""
            text += f", chunks {array['chunks']}{shards}; {array['files']} files"
            text += f", {array['files_missing']} missing" if array["files_missing"] else ""
            text += f"; {array['bytes_stored']:,} bytes, compression {array['compression_ratio']}"
        lines.append(text)
    for title in ("summary", "facts", "made_by"):
        values = getattr(result, title)
        if values:
            lines += [title.replace("_", " "), *_lines(values, 2)]
    lines += result.documents
    if result.problems:
        lines += ["PROBLEMS", *(f"  {line}" for line in result.problems)]
    else:
        checked = "all checksums as in the manifest" if result.checksums else "sizes as in the manifest"
        lines.append(
            f"whole: {checked}"
            if result.made_by or result.kind == "run"
            else "readable (it has no manifest of its own)"
        )
    return "\n".join(lines)
