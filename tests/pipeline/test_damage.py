"""No flipped byte of any artifact is read as another result: its reader names the file in one line, or reads the same.

Each kind of artifact is made small. Bytes of each of its files, its manifest among them, are flipped one by one, and
its readers read it as jobs, drawings and notebooks do.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr

import figure_tables
from analysis_fixtures import random_crosscoder
from example_tables import small_examples
from part_fixtures import LAYOUT, write_part
from results_fixtures import DICTIONARIES, small_results
from tunediff.data.activations import ActivationStore
from tunediff.data.tokens import FLAT, PER_DOCUMENT, TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.explanations import contexts
from tunediff.explanations.tables import EXPLANATIONS, JUDGEMENTS
from tunediff.inspection import inspect
from tunediff.interventions.steering_table import TEXTS, typed
from tunediff.latents.examples import LOSSES, SCHEMAS, Examples
from tunediff.latents.held_out import Reconstruction
from tunediff.latents.table import LatentTable
from tunediff.models.pair import load_pair, prepare_pair
from tunediff.pipeline.artifacts import manifest_path, provenance, read_json, seal, write_json
from tunediff.pipeline.graph import STAGES
from tunediff.report.html.pages import copied_drawings
from tunediff.report.html.pages import provenance as shown_provenance
from tunediff.report.inputs import Inputs
from tunediff.report.style import Drawn, Style, save
from tunediff.results import READERS, Results, open_results
from tunediff.validation.truth import PARTS, read_scores

NAME = DICTIONARIES[1]
AT_MOST = 50  # flips per file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results with something of every kind."""
    root = tmp_path_factory.mktemp("damage") / "results"
    small_results(root)
    every = figure_tables.all_results()

    def frame(path: str, table: pd.DataFrame, kind: str = "", **facts: Any) -> None:
        (root / path).parent.mkdir(exist_ok=True)
        table.to_parquet(root / path, index=False)
        if kind:
            seal(root / path, kind, "key", facts, provenance(0.0))

    frame(f"crosscoders/{NAME}.history.parquet", every["histories"]["l1-seed0"])
    random_crosscoder(6, seed=1).save(root / f"crosscoders/{NAME}")
    seal(root / f"crosscoders/{NAME}", "crosscoder", "key", {"k": 3}, beside=[".history.parquet"])
    frame("steering/steering.parquet", every["steering"])
    row = {"latent": 1, "draw": 0, "alpha": 0.5, "request": 2}
    frame("steering/steering.texts.parquet", typed([dict.fromkeys(TEXTS, "x") | row], TEXTS))
    seal(root / "steering/steering.parquet", "steering", "key", {}, beside=[".texts.parquet"])
    frame("explanation_scores/scores.parquet", every["explanation_scores"].head(20))
    frame("explanation_scores/scores.overall.parquet", every["explanation_means"])
    scores = root / "explanation_scores/scores.parquet"
    seal(scores, "explanation_scores", "key", {}, beside=[".overall.parquet"])
    (root / "causal/kl.sets.json").write_text(json.dumps(every["sets"]))
    seal(root / "causal/kl.parquet", "kl", "key", {}, beside=[".sets.json"])
    frame("concepts/concepts.parquet", every["concepts"], "concepts")
    frame("seeds/matches.parquet", every["seeds"], "matches")
    frame(f"latents/{NAME}.twins.parquet", every["twins"]["l1-seed0"])
    Reconstruction([{"value": 0.5}], {"all": 3}, "dead", [[1.5]]).write(root / f"latents/{NAME}.parquet")
    seal(root / f"latents/{NAME}.parquet", "latents", "key", {}, beside=[".twins.parquet", ".held_out.json"])
    losses = {name: np.arange(9).astype(dtype) for name, dtype in LOSSES.items()}
    frame("losses/losses.parquet", pd.DataFrame(losses), "losses")
    small_examples(root / f"examples/{NAME}", [0, 1, 4], [30, 40, 50])
    (root / f"explanations/{NAME}").mkdir(parents=True)
    (root / "judgements").mkdir()
    for path, schema in (
        (f"explanations/{NAME}/windows", contexts.WINDOWS),
        (f"explanations/{NAME}/explanations", EXPLANATIONS),
        (f"judgements/{NAME}", JUDGEMENTS),
    ):
        pq.write_table(pa.Table.from_pylist([dict.fromkeys(schema.names)] * 3, schema), root / f"{path}.parquet")
    seal(root / f"explanations/{NAME}", "explanations", "key", {"controls": 1})
    seal(root / f"judgements/{NAME}.parquet", "judgements", "key", {})
    for path in ("figures/fig2", "nulls/summary"):
        save(Drawn(Style().figure(1), every["nulls"]), root / path, Style(dpi=60))
        seal(root / f"{path}.csv", "drawing", "key", {}, beside=[".pdf", ".png"])
    planted = root / "planted/arm/seed0/scores"
    planted.mkdir(parents=True)
    for part in PARTS:
        getattr(every["scores"], part).head(9).drop(columns=["arm", "seed"], errors="ignore").to_parquet(
            planted / f"{part}.parquet"
        )
    seal(planted, "scores", "key", {"criterion": every["scores"].criterion.as_dict()})
    write_json(root / f"evaluation/{NAME}.provenance.json", provenance(0.0, seed=3))
    shutil.rmtree(root / "activations/train")
    for i, seed in enumerate((5, 6)):
        path = root / f"activations/train/part-00{i}.zarr"
        path.parent.mkdir(exist_ok=True)
        write_part(path, 64, 8, LAYOUT, seed, first_row=64 * i)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "results")


def by_role(role: str) -> Callable[[Path], Any]:
    return lambda root: Results(root).read(role, "train/part-000" if role.startswith("activations") else NAME)


def tokens(root: Path) -> Any:
    store = TokenStore.open(root / "tokens/train.zarr")
    return store.attributes, [store.read(name) for name in (*FLAT, *PER_DOCUMENT)]


def activations(root: Path) -> Any:
    return list(ActivationStore(sorted(root.glob("activations/train/*.zarr"))).chunks())


def crosscoder(root: Path) -> Any:
    loaded = Crosscoder.load(root / "crosscoders" / NAME, key="key")
    return loaded.state_dict(), loaded.config


def inputs(root: Path, **files: list[Path]) -> Inputs:
    return Inputs(files, {**figure_tables.CONFIG, "results": str(root)}, "key")


def drawings(root: Path) -> Any:
    out = root.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    copied_drawings(inputs(root, drawings=[root / "figures/fig2.csv"]), out)
    return {path.name: path.read_bytes() for path in out.rglob("*.*")}


def folder(path: str) -> list[str]:
    return [f"{path}.json", f"{path}*/**/*"]


READ: dict[str, tuple[list[str], Callable[[Path], Any]]] = {  # files, by patterns, and their reader
    **{f"role {role}": ([file.format(NAME), f"{file.format(NAME).split('.')[0]}.json"], by_role(role))
       for role, (file, _, _) in READERS.items() if role not in ("activations_train", "activations_validation")},
    "role activations_train": (["activations/train/part-000.json"], lambda root: Results(root).read(
        "activations_train", "part-000")),
    "examples": (folder(f"examples/{NAME}"), lambda root: [
        Examples.open(root / f"examples/{NAME}").table(name) for name in SCHEMAS]),
    "explanations": (folder(f"explanations/{NAME}"), by_role("explanations")),
    "pair": (["models.json", "hooks.json"], lambda root: Results(root).pair),
    "tokens": (folder("tokens/train"), tokens),
    "activations": (folder("activations/train/part-001"), activations),
    "held out": ([f"latents/{NAME}.held_out.json", f"latents/{NAME}.json"], lambda root: Reconstruction.read(
        root / f"latents/{NAME}.parquet", key="key")),
    "crosscoder": (folder(f"crosscoders/{NAME}"), crosscoder),
    "nulls": (["nulls/summary.csv", "nulls/summary.json"], lambda root: inputs(root).nulls),
    "drawings": (["figures/fig2.csv", "figures/fig2.png", "figures/fig2.json"], drawings),
    "scores": (folder("planted/arm/seed0/scores"), lambda root: read_scores([root / "planted/arm/seed0/scores"])),
    "provenance": ([f"evaluation/{NAME}.provenance.json"], lambda root: shown_provenance(
        inputs(root), {f"evaluation/{NAME}": "key"})),
}  # fmt: skip


def same(left: Any, right: Any) -> bool:
    """Whether two results are equal, whatever they are made of."""
    if isinstance(left, pd.DataFrame):
        return left.equals(right) and list(left.dtypes) == list(right.dtypes)
    if isinstance(left, LatentTable):
        return same([left.frame, left.sources, left.criterion], [right.frame, right.sources, right.criterion])
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if is_dataclass(left) and not isinstance(left, Examples):
        return all(same(getattr(left, field.name), getattr(right, field.name)) for field in fields(left))
    return isinstance(left, Examples) or left == right  # its tables are read on their own


def flips(file: Path, at_most: int = AT_MOST) -> Iterator[None]:
    """Flip bits of one byte after another, every seventh or fewer, and put each back."""
    content = file.read_bytes()
    for i in range(0, len(content), max(7, len(content) // at_most)):
        file.write_bytes(content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1 :])
        yield
    file.write_bytes(content)


def assert_noticed(read: Callable[[], Any], good: Any, *named: Path) -> None:
    """Check that damage is told in one line that names one of these files, or changes nothing."""
    try:
        found = read()
    except TunediffError as error:
        told = str(error)
        assert any(str(path) in told for path in named) and "\n" not in told and "delete " in told
    else:
        assert same(good, found)


@pytest.mark.parametrize("name", READ)
def test_no_flipped_byte_is_read_as_another_result(name: str, root: Path) -> None:
    patterns, read = READ[name]
    good = read(root)
    assert same(good, read(root))
    files = sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()})
    assert files
    for file in files:
        for _ in flips(file, AT_MOST if len(files) < 8 else 6):
            assert_noticed(lambda: read(root), good, file)
    assert same(good, read(root))


@pytest.mark.parametrize("name", READ)
def test_no_torn_or_missing_file_ends_in_a_traceback(name: str, root: Path) -> None:
    patterns, read = READ[name]
    for file in {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}:
        content = file.read_bytes()
        for torn in (content[: len(content) // 2], b"", None):
            file.unlink() if torn is None else file.write_bytes(torn)
            if torn is None and name == "provenance":
                continue  # an artifact may have none
            with pytest.raises(TunediffError) as error:
                read(root)
            assert "\n" not in str(error.value) and file.parent.name in str(error.value)
        file.write_bytes(content)


def test_every_role_of_results_and_every_file_of_a_stage_is_among_them(made: Path) -> None:
    assert {f"role {role}" for role in READERS} - {"role activations_validation"} <= READ.keys()
    beside = {suffix for stage in STAGES.values() for suffix in stage.suffixes if suffix.count(".") == 2}
    sealed = {name for path in made.rglob("*.json") if path.suffixes == [".json"] and path.parent.name != "models"
              for name in read_json_or_nothing(path).get("files", {}) if name.startswith("*")}  # fmt: skip
    assert {f"*{suffix}" for suffix in beside} | {"*.pdf", "*.png"} == sealed


def read_json_or_nothing(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except TunediffError:
        return {}


def test_verify_and_inspect_name_every_damaged_file(root: Path) -> None:
    results = open_results(root)
    results.verify()
    skipped = {"config.json", "zarr.json"}
    stores = [path for path in root.rglob("*") if path.is_file() and path.name not in skipped]
    for file in stores:
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :])
        try:
            results.verify()
        except TunediffError as error:
            assert str(file) in str(error) and "\n" not in str(error)
        else:
            assert file.suffix == ".json" and json.loads(content) == json.loads(file.read_bytes())
        file.write_bytes(content)
    for path in ("causal/kl.sets.json", f"crosscoders/{NAME}.history.parquet", f"crosscoders/{NAME}"):
        assert inspect(root / path).problems == []
        file = next(iter(sorted((root / path).glob("*"))), root / path)
        content = file.read_bytes()
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        assert any(str(file) in line for line in inspect(root / path).problems)
        file.write_bytes(content)


def test_a_flipped_byte_of_a_model_is_noticed_when_it_is_loaded(tiny_pairs, tmp_path: Path) -> None:
    out = tmp_path / "models"
    prepare_pair({"base": "demo-base", "chat": "demo-chat"}, tiny_pairs("gemma2").base.parent, out, key="k")

    def read() -> Any:
        pair = load_pair(out, 1, "float32", key="k")
        return pair.layer, [model.model.state_dict() for model in (pair.load_base("cpu"), pair.load_chat("cpu"))]

    good = read()
    for file in (manifest_path(out), *sorted(path for path in out.rglob("*") if path.is_file())):
        for _ in flips(file, 5):
            assert_noticed(read, good, file)
    weights = out / "base/model.safetensors"
    load_pair(out, 1, "float32").load_base("cpu")
    for _ in flips(weights, 2):
        pair = load_pair(out, 1, "float32")  # so that jobs which need the tokenizer alone need not wait
        pair.load_chat("cpu")
        with pytest.raises(TunediffError, match=r"base/model\.safetensors: checksum differs"):
            pair.load_base("cpu")


# -- files of another place --------------------------------------------------------------------------------------------


def exchange(left: Path, right: Path) -> None:
    content = left.read_bytes()
    left.write_bytes(right.read_bytes())
    right.write_bytes(content)


@pytest.mark.parametrize("codec", ["crc32c", "blosc"])
def test_a_shard_or_chunk_of_another_place_is_refused(tmp_path: Path, codec: str) -> None:
    layout = type(LAYOUT)(shard_tokens=32, chunk_tokens=8, codec=codec)
    parts = [tmp_path / path for path in ("train/part-000.zarr", "train/part-001.zarr", "validation/part-000.zarr",
                                          "null/train/part-000.zarr")]  # fmt: skip
    for i, path in enumerate(parts):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_part(path, 64, 16, layout, seed=i, first_row=64 * (i == 1))
    own = parts[:2]

    def read() -> Any:
        return list(ActivationStore(own, key="k").chunks())

    good = read()
    first = own[0] / "base/c/0/0"
    for other in (
        own[0] / "base/c/1/0",  # the next shard
        own[0] / "chat/c/0/0",  # the other model
        own[1] / "base/c/0/0",  # another part
        parts[2] / "base/c/0/0",  # the other split
        parts[3] / "base/c/0/0",  # another pair of models
    ):
        exchange(first, other)
        with pytest.raises(TunediffError, match=r"/c/[01](/0)?: .*delete .* and run snakemake again"):
            read()
        exchange(first, other)
    for name in ("row", "token_id", "doc", "pos", "mask", "source"):
        file, other = own[0] / name / "c/0", own[0] / name / "c/1"
        if file.read_bytes() != other.read_bytes():
            exchange(file, other)
            with pytest.raises(TunediffError, match=rf"{name}/c/[01]: checksum differs"):
                read()
            exchange(file, other)
    exchange(own[0] / "doc/c/1", own[0] / "pos/c/1")  # the same bytes here
    assert same(good, read())


def test_a_chunk_rewritten_with_a_checksum_of_its_own_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part-000.zarr"
    write_part(path, 64, 16, LAYOUT)
    array = zarr.open_group(str(path), mode="r+")["chat"]
    array[:32] = np.asarray(array[:32])[::-1]  # a whole shard in another order: zarr is content with it
    with pytest.raises(TunediffError, match=r"chat/c/0/0: checksum of chunk 0 differs from the manifest, .* another"):
        list(ActivationStore([path]).chunks())


def test_a_whole_part_of_another_place_is_refused(tmp_path: Path) -> None:
    parts = [tmp_path / f"part-00{i}.zarr" for i in range(2)]
    for i, path in enumerate(parts):
        write_part(path, 64, 16, LAYOUT, seed=i, first_row=64 * i)
    list(ActivationStore(parts).chunks())
    with pytest.raises(TunediffError, match=r"part-000\.zarr: is of another place, its first token is 0 and should be"):
        ActivationStore(parts[::-1])
    for suffix in (".zarr", ".json"):
        left, right, aside = (path.with_suffix(suffix) for path in (*parts, tmp_path / "aside"))
        left.rename(aside)
        right.rename(left)
        aside.rename(right)
    with pytest.raises(TunediffError, match=r"part-001\.zarr: is of another place"):
        ActivationStore(parts)
