"""Examples against brute force: every window, band, token, neighbour and logit, and the format's errors."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from analysis_fixtures import SOURCES, VOCAB, activation_store, random_crosscoder, tiny_model, token_store
from example_tables import example_tables, small_examples
from tunediff.config.settings import ExampleSettings, LatentSettings
from tunediff.data.masks import LEFT_OUT
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.errors import TunediffError
from tunediff.latents import profile, windows
from tunediff.latents.examples import BAND_FROM, HISTOGRAM_BINS, SCHEMAS, Examples, lists, writing
from tunediff.latents.measure import build_table
from tunediff.latents.profile import build_examples
from tunediff.latents.seeds import directions
from tunediff.latents.table import LatentTable
from tunediff.models.residual import ResidualModel
from tunediff.pipeline.artifacts import seal

D_MODEL, CONTEXT, DEAD, SHARDS = 16, 6, 3, 4
SETTINGS = ExampleSettings(context=CONTEXT, strongest=5, per_band=3, inactive=4, batch_size=64, seed=7)
OUTLIERS = (50, 51, 333)


@dataclass
class Run:
    """Examples and all that they were made from."""

    examples: Examples
    crosscoder: Crosscoder
    table: LatentTable
    tokens: TokenStore
    model: ResidualModel
    dense: np.ndarray  # (position, latent): every activation, 0 where not counted
    counted: np.ndarray  # per position
    build: Callable[..., Examples]

    @property
    def live(self) -> list[int]:
        """Latents that fire."""
        return [j for j in range(self.dense.shape[1]) if j != DEAD]


def make(root: Path, streams: int = 2, settings: ExampleSettings = SETTINGS) -> Run:
    """Measure a dictionary on stores of random activations."""
    g = np.random.default_rng(3)
    lengths = g.integers(9, 40, 59).tolist()
    lengths.append(-sum(lengths) % (4 * SHARDS) + 16)
    tokens = token_store(root / "tokens.zarr", lengths)
    activations = g.standard_normal((tokens.n_tokens, 2, D_MODEL)).astype(np.float32)
    store = activation_store(root / "part-000.zarr", tokens, activations, OUTLIERS, SHARDS)
    crosscoder = random_crosscoder(D_MODEL, threshold=0.8, streams=streams)
    crosscoder.threshold += torch.linspace(0, 1.6, crosscoder.dict_size)
    crosscoder.threshold[DEAD] = torch.inf
    latents = LatentSettings(min_count=2, blocks=8, bootstrap_samples=100, batch_size=64)
    table = build_table(crosscoder, store, store, latents, root / "latents.parquet", key="k")
    model = tiny_model(1)

    def build(out: str, chosen: ExampleSettings = settings) -> Examples:
        build_examples(crosscoder, table, store, tokens, model, chosen, root / out, key="k")
        return Examples.open(root / out, key="k")

    counted = (tokens.mask & np.uint8(LEFT_OUT)) == 0
    counted[list(OUTLIERS)] = False
    dense = crosscoder.encode(torch.from_numpy(activations)).to_dense(crosscoder.dict_size).numpy()
    dense[~counted] = 0
    return Run(build("examples"), crosscoder, table, tokens, model, dense, counted, build)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A crosscoder's examples."""
    return make(tmp_path_factory.mktemp("examples"))


def document_peaks(run: Run, latent: int) -> dict[int, tuple[float, int]]:
    """Largest activation of a latent in every document it fires in, and its position."""
    peaks = {}
    for i in range(run.tokens.n_documents):
        where = run.tokens.document(i)
        own = run.dense[where, latent]
        if own.max() > 0:
            peaks[i] = float(own.max()), where.start + int(own.argmax())
    return peaks


def test_every_activation_of_every_window_is_that_of_its_document(run: Run) -> None:
    frame = run.examples.table("windows")
    assert len(frame) > 300 and set(frame["latent"]) == set(run.live)
    for row in frame.itertuples():
        where = run.tokens.document(row.document)
        start, stop = max(where.start, row.peak - CONTEXT), min(where.stop, row.peak + CONTEXT + 1)
        assert (row.start, len(row.activation)) == (start, stop - start)
        np.testing.assert_allclose(row.activation, run.dense[start:stop, row.latent], rtol=1e-5)
        assert row.value == row.activation[row.peak - row.start]
        assert row.source == SOURCES[run.tokens.doc_source[row.document]]


def test_strongest_are_the_largest_peaks_of_documents(run: Run) -> None:
    frame = run.examples.table("windows").query("band == 'strongest'")
    for latent in run.live:
        own = frame[frame["latent"] == latent]
        peaks = sorted(document_peaks(run, latent).values(), key=lambda peak: (-peak[0], peak[1]))[: SETTINGS.strongest]
        assert own["peak"].tolist() == [position for _, position in peaks]
        np.testing.assert_allclose(own["value"], [value for value, _ in peaks], rtol=1e-5)
        assert own["place"].tolist() == list(range(len(own)))
        assert own["value"].iloc[0] == np.float32(run.table.frame["max_activation"][latent])


def test_bands_hold_one_window_per_document_with_its_peak_in_the_band(run: Run) -> None:
    frame, bounds = run.examples.table("windows"), (1.0, *BAND_FROM.values())
    drawn = 0
    for latent in run.live:
        peaks = document_peaks(run, latent)
        maximum = max(value for value, _ in peaks.values())
        for (band, low), high in zip(BAND_FROM.items(), bounds, strict=False):
            own = frame[(frame["latent"] == latent) & (frame["band"] == band)]
            inside = {i: at for i, (v, at) in peaks.items() if low <= v / maximum < (2 if high == 1 else high)}
            assert len(own) == own["document"].nunique() == min(SETTINGS.per_band, len(inside))
            assert [inside[i] for i in own["document"]] == own["peak"].tolist()
            drawn += len(inside) > len(own)
    assert drawn > 20  # something was left to chance


def test_the_draw_is_even(run: Run) -> None:
    """Over many seeds each document of a band is drawn as often as the others."""
    latent, counts = 0, np.zeros(run.tokens.n_documents)
    maximum = max(value for value, _ in document_peaks(run, latent).values())
    inside = [i for i, (value, _) in document_peaks(run, latent).items() if 0.4 <= value / maximum < 0.7]
    documents, latents = torch.tensor(inside), torch.full((len(inside),), latent)
    for seed in range(400):
        best = windows.Best(1, SETTINGS.per_band, "cpu")
        best.add(latents, windows.entries(windows.hashed(latents, documents, seed), documents))
        counts[windows.positions(best.entry[0]).numpy()] += 1
    expected = 400 * SETTINGS.per_band / len(inside)
    assert counts.sum() == counts[inside].sum() == 400 * SETTINGS.per_band
    assert np.abs(counts[inside] - expected).max() < 5 * np.sqrt(expected)


def test_inactive_windows_are_silent_and_hard_ones_hold_a_frequent_token(run: Run) -> None:
    frame = run.examples.table("windows")
    tokens = run.examples.table("tokens").query("kind == 'peak'")
    silent = frame[frame["band"].isin(["inactive", "inactive_hard"])]
    assert not np.concatenate(silent["activation"].to_list()).any() and not silent["value"].any()
    assert run.counted[silent["peak"]].all()
    assert (silent.groupby(["latent", "band"])["document"].nunique() == silent.groupby(["latent", "band"]).size()).all()
    lacking = {"inactive": 0, "inactive_hard": 0}
    for latent in run.live:
        own = silent[silent["latent"] == latent]
        for band in lacking:
            lacking[band] += (own["band"] == band).sum() < SETTINGS.inactive
        frequent = tokens[tokens["latent"] == latent].sort_values("count", ascending=False, kind="stable")
        hard = own.query("band == 'inactive_hard'")
        assert set(run.tokens.token_id[hard["peak"]]) <= set(frequent["token_id"].iloc[: profile.HARD_TOKENS])
    assert run.examples.facts["fewer_windows"] == lacking
    assert lacking["inactive"] < 10 and (silent["band"] == "inactive_hard").sum() > 20


def test_tokens_are_counted_over_all_firings_where_these_fit(run: Run) -> None:
    """Fewer than 256 firings: the table is that of all firings of at least 0.1 of the maximum."""
    frame, ids, n = run.examples.table("tokens"), run.tokens.token_id, run.tokens.n_tokens
    doc = run.tokens.doc
    followed = np.append(doc[1:] == doc[:-1], False)
    checked = 0
    for latent in run.live:
        own = run.dense[:, latent]
        fires = np.flatnonzero(own >= 0.1 * own.max())
        if len(fires) > SETTINGS.firings:
            continue
        checked += 1
        for kind, shift, kept in (("peak", 0, np.ones(n, bool)), ("next", 1, followed)):
            at = fires[kept[fires]] + shift
            corpus = np.flatnonzero(run.counted & kept) + shift
            counts = pd.Series(ids[at]).value_counts()
            share = counts / len(at)
            lift = share / pd.Series(ids[corpus]).value_counts(normalize=True).reindex(share.index)
            score = (share * np.log(lift)).sort_values(ascending=False)
            score = score[score > 0]
            found = frame[(frame["latent"] == latent) & (frame["kind"] == kind)]
            assert len(found) == min(profile.TOKENS_SHOWN, len(score))
            np.testing.assert_allclose(
                found["share"] * np.log(found["lift"]), score.iloc[: len(found)], rtol=1e-4, atol=1e-6
            )
            np.testing.assert_array_equal(found["count"], counts[found["token_id"]])
            np.testing.assert_allclose(found["share"], share[found["token_id"]], rtol=1e-5)
            np.testing.assert_allclose(found["lift"], lift[found["token_id"]], rtol=1e-5)
    assert checked > 10


def test_histogram_counts_every_firing(run: Run) -> None:
    frame = run.examples.table("histogram")
    source = run.tokens.doc_source[run.tokens.doc]
    for latent in run.live:
        own = run.dense[:, latent].astype(np.float64)
        for i, name in enumerate(SOURCES):
            fired = own[(own > 0) & (source == i)]
            wanted = np.bincount(np.minimum(fired / own.max() * HISTOGRAM_BINS, HISTOGRAM_BINS - 1).astype(int))
            found = frame[(frame["latent"] == latent) & (frame["source"] == name)].set_index("bin")["count"]
            assert found.to_dict() == {i: n for i, n in enumerate(wanted) if n}


def test_neighbours_are_those_of_brute_force(run: Run) -> None:
    frame = run.examples.table("neighbours")
    rows = directions(run.crosscoder).numpy()
    fires = (run.dense > 0).astype(float)
    joint = fires.T @ fires
    either = fires.sum(0)[:, None] + fires.sum(0)[None] - joint
    jaccard = np.divide(joint, either, out=np.zeros_like(joint), where=joint >= profile.MIN_JOINT)
    for kind, values in (("cosine", rows @ rows.T), ("coactivation", jaccard)):
        for latent in run.live:
            others = [j for j in run.live if j != latent and (kind == "cosine" or values[latent, j] > 0)]
            best = sorted(others, key=lambda j: -values[latent, j])[: profile.NEIGHBOURS_SHOWN]
            own = frame[(frame["latent"] == latent) & (frame["kind"] == kind)]
            np.testing.assert_allclose(own["value"], values[latent, best], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(values[latent, own["neighbour"]], own["value"], rtol=1e-5, atol=1e-6)
            assert own["place"].tolist() == list(range(len(best)))


def test_logits_are_those_of_the_norm_and_the_output_matrix(run: Run) -> None:
    frame, hf = run.examples.table("logits"), run.model.model
    weight = hf.lm_head.weight.detach() * (1 + hf.model.norm.weight.detach())
    base, chat = run.crosscoder.decoder_weight[:, 0] @ weight.T, run.crosscoder.decoder_weight[:, 1] @ weight.T
    for direction, logits in (("chat", chat), ("base", base), ("difference", chat - base)):
        for end, descending in (("highest", True), ("lowest", False)):
            best = logits.sort(dim=1, descending=descending)
            for latent in run.live:
                own = frame.query(f"latent == {latent} and direction == '{direction}' and end == '{end}'")
                np.testing.assert_allclose(own["value"], best.values[latent, : len(own)], rtol=1e-4, atol=1e-5)
                at = torch.from_numpy(own["token_id"].to_numpy().astype(np.int64))
                np.testing.assert_allclose(logits[latent, at], own["value"], rtol=1e-4, atol=1e-5)
                assert len(own) == profile.LOGITS_SHOWN


def test_the_size_of_blocks_and_batches_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "BLOCK_TOKENS", 1)
    monkeypatch.setattr(windows, "ENTRIES_AT_ONCE", 9)
    monkeypatch.setattr(windows, "WINDOWS_AT_ONCE", 7)
    monkeypatch.setattr(profile, "LATENTS_AT_ONCE", 3)
    monkeypatch.setattr(profile, "ROW_GROUP", 2)
    monkeypatch.setattr(profile, "COSINES_AT_ONCE", 40)
    monkeypatch.setattr(profile, "LOGITS_AT_ONCE", 500)
    added = []
    real = windows.Found.add
    monkeypatch.setattr(windows.Found, "add", lambda self, *rest: (added.append(rest[0].span), real(self, *rest))[1])
    other = run.build("in-pieces")
    assert len(added) == SHARDS + 1 and sum(added) == run.tokens.n_tokens
    for name in SCHEMAS:
        pd.testing.assert_frame_equal(other.table(name), run.examples.table(name), rtol=1e-6)
    assert other.facts == run.examples.facts


def test_one_latent_is_read_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "ROW_GROUP", 2)
    examples = run.build("in-groups")
    for name in SCHEMAS:
        whole = examples.table(name)
        for latent in (0, 7, 19):
            pd.testing.assert_frame_equal(
                examples.of(name, latent), whole[whole["latent"] == latent].reset_index(drop=True)
            )
        assert examples.of(name, DEAD).empty and examples.of(name, 10_000).empty
    assert pq.ParquetFile(examples.path / "windows.parquet").num_row_groups == 10


def test_a_sample_of_documents_serves_where_not_all_fit(run: Run) -> None:
    small = run.build("sampled", ExampleSettings(**{**vars(SETTINGS), "sample_tokens": 300, "firings": 30}))
    facts = small.facts["sample"]
    assert 300 <= facts["tokens"] < 340 and facts["documents"] < 30
    silent = small.table("windows").query("band in ('inactive', 'inactive_hard')")
    assert silent["document"].nunique() <= facts["documents"]
    for row in silent.itertuples():
        assert not run.dense[row.start : row.start + len(row.activation), row.latent].any()
    tokens = small.table("tokens").query("kind == 'peak'")
    for latent in run.live:
        own = tokens[tokens["latent"] == latent]
        sizes = (own["count"] / own["share"]).round()
        assert sizes.nunique() == 1 and sizes.iloc[0] < 30 + 5 * np.sqrt(30)
    frames = [each.table("windows") for each in (small, run.examples)]
    active = [frame[frame["band"].isin(["strongest", *BAND_FROM])].reset_index(drop=True) for frame in frames]
    pd.testing.assert_frame_equal(*active)


def test_a_dictionary_of_the_difference_has_that_direction_alone(tmp_path: Path) -> None:
    run = make(tmp_path, streams=1)
    assert set(run.examples.table("logits")["direction"]) == {"difference"} == set(run.examples.facts["directions"])
    for row in run.examples.table("windows").itertuples():
        own = run.dense[row.start : row.start + len(row.activation), row.latent]
        np.testing.assert_allclose(row.activation, own, rtol=1e-5)


# -- the format --------------------------------------------------------------------------------------------------------


def rewritten(path: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Change a table of finished examples and seal them again."""
    pq.write_table(change(pq.read_table(path / f"{name}.parquet")), path / f"{name}.parquet")
    seal(path, "examples", "key", {})
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop_columns("peak"), "column 'peak' missing"),
        (lambda table: table.append_column("more", table["peak"]), "column 'more' is not of it"),
        (lambda table: table.set_column(7, "source", table["peak"]), "column 'source' is int64 instead of string"),
        (lambda table: table.select(table.column_names[::-1]), "in another order"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, change: Callable[[pa.Table], pa.Table], told: str) -> None:
    small_examples(tmp_path / "a", [0, 1, 4], [30, 40, 50])
    with pytest.raises(TunediffError, match=rf"windows\.parquet: .*{told}; delete .*a and run snakemake again"):
        Examples.open(rewritten(tmp_path / "a", "windows", change))


def test_unsorted_latents_are_refused(tmp_path: Path) -> None:
    small_examples(tmp_path / "a", [0, 1, 4], [30, 40, 50])

    def turned(table: pa.Table) -> pa.Table:
        return table.sort_by([("latent", "descending")])

    path = tmp_path / "a"
    table = turned(pq.read_table(path / "tokens.parquet"))
    pq.write_table(table, path / "tokens.parquet", row_group_size=20)
    seal(path, "examples", "key", {})
    with pytest.raises(TunediffError, match="not sorted by latent"):
        Examples.open(path)
    columns = example_tables([0, 1], [30, 40])["tokens"]
    with pytest.raises(ValueError, match="not in order"), writing(tmp_path / "b", key="k", facts={}) as writer:
        writer.add("tokens", {name: values[::-1] for name, values in columns.items()})
    with pytest.raises(ValueError, match="columns"), writing(tmp_path / "b", key="k", facts={}) as writer:
        writer.add("logits", columns)
    with writing(tmp_path / "b", key="k", facts={}) as writer:
        writer.add("tokens", columns)
        with pytest.raises(ValueError, match="not in order after 1"):
            writer.add("tokens", columns)
    assert Examples.open(tmp_path / "b").of("windows", 0).empty


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    small_examples(path, [0, 1], [30, 40, 50])
    with pytest.raises(TunediffError, match="made by other inputs"):
        Examples.open(path, key="other")
    file = path / "windows.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(TunediffError, match=r"windows\.parquet: .* bytes instead of"):
        Examples.open(path)
    seal(path, "examples", "key", {})
    with pytest.raises(TunediffError, match=r"windows\.parquet: not a readable Parquet file"):
        Examples.open(path)
    torn = bytearray(content)
    torn[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    file.write_bytes(torn)
    seal(path, "examples", "key", {})
    examples = Examples.open(path)
    with pytest.raises(TunediffError, match=r"windows\.parquet: damaged"):
        examples.of("windows", 0)
    file.unlink()
    with pytest.raises(TunediffError, match=r"windows\.parquet: missing"):
        Examples.open(path)


def test_lists_hold_the_values_given() -> None:
    made = lists(np.arange(5, dtype=np.float32), np.array([2, 0, 3]))
    assert made.to_pylist() == [[0, 1], [], [2, 3, 4]]


def test_facts_are_json_and_say_what_was_drawn(run: Run) -> None:
    facts = json.loads(run.examples.path.with_suffix(".json").read_text())["facts"]
    assert facts["latents"] == len(run.live) and facts["dict_size"] == 20 and facts["n_tokens"] == run.counted.sum()
    assert facts["settings"]["context"] == CONTEXT and facts["bands_from"] == BAND_FROM
    made = json.loads(run.examples.path.with_suffix(".provenance.json").read_text())
    assert 0 <= made["pass_seconds"] <= made["wall_seconds"]
    assert run.examples.table("logits")["token_id"].max() < VOCAB
