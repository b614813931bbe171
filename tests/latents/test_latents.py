import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import rankdata

from analysis_fixtures import SOURCES, activation_store, random_crosscoder, token_store
from tunediff.config.settings import LatentSettings
from tunediff.data.masks import Mask
from tunediff.errors import TunediffError
from tunediff.latents.criterion import Criterion
from tunediff.latents.measure import build_table
from tunediff.latents.scaling import ScalingSums, betas, direction_terms, document_block, nu, scaling_directions
from tunediff.latents.table import CONTROLS, LatentTable, classify, control_passes, rank_sum
from tunediff.pipeline.artifacts import check, seal

SETTINGS = LatentSettings(min_count=5, blocks=8, bootstrap_samples=100, batch_size=37)
OUTLIERS = [9, 33, 34, 210]  # rows whose massive activations count nowhere


def counted_in(tokens):
    return (tokens.mask & Mask.BOS == 0) & ~np.isin(np.arange(len(tokens.mask)), OUTLIERS)


def stores(folder, of_base=0.0):
    """Stores of 320 train and 320 validation tokens; chat activations hold `of_base` times those of base."""
    made = []
    for i, split in enumerate(("train", "validation")):
        tokens = token_store(folder / f"{split}.zarr", [20] * 16, seed=i)
        h = np.random.default_rng(i + 5).normal(size=(320, 2, 6)).astype(np.float32)
        h[:, 1] += np.float32(of_base) * h[:, 0]
        h[OUTLIERS] *= 1000
        made.append((activation_store(folder / split / "part-000.zarr", tokens, h, OUTLIERS), tokens, h))
    return made


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Such stores, and a crosscoder with one dead latent."""
    crosscoder = random_crosscoder()
    crosscoder.threshold[4] = 1e9
    return crosscoder, *stores(tmp_path_factory.mktemp("stores"))


def test_classes_by_norm_difference():
    x = np.array([1.0, 0.9, 0.89, 0.6, 0.5, 0.4, 0.39, 0.1, 0.0, 1.0])
    dead = np.arange(10) == 9
    names = ["chat-only"] * 2 + ["other"] + ["shared"] * 3 + ["other"] + ["base-only"] * 2 + ["dead"]
    assert classify(x, dead).tolist() == names


def test_rank_sum_leaves_out_wild_and_undefined_latents():
    reconstruction = np.array([0.1, 0.5, np.nan, 3.0, 0.5, -0.05])
    error = np.array([0.3, 0.0, 0.1, 0.1, -0.2, 2.0])
    ours = rank_sum(reconstruction, error, Criterion())
    kept = [0, 1, 5]
    assert np.isnan(ours[[2, 3, 4]]).all()
    np.testing.assert_array_equal(ours[kept], rankdata(reconstruction[kept]) + rankdata(error[kept]))
    assert np.isfinite(rank_sum(reconstruction, error, Criterion(lowest=-0.3, highest=4))[[3, 4]]).all()


def table_of(**columns):
    """A table of the given columns, nothing else in it."""
    frame = pd.DataFrame(columns)
    schema = LatentTable.schema(SOURCES)
    absent = {"bool": False, "string": "other", "int64": 0, "int32": 0}
    for name, dtype in schema.items():
        if name not in frame:
            frame[name] = np.arange(len(frame)) if name == "latent" else absent.get(dtype, np.nan)
        frame[name] = frame[name].astype("str" if dtype == "string" else dtype)
    return LatentTable(frame[list(schema)], SOURCES)


def test_the_first_latents_are_the_ranked_ones_or_those_of_highest_norm_difference():
    dead = [False, False, False, True, False, False]
    difference = [0.5, 0.9, 1.0, 0.99, 0.2, 0.9]
    table = table_of(rank_sum=[4.0, 2.0, np.nan, 1.0, 4.0, 9.0], dead=dead, norm_difference=difference)
    assert table.first(3)["latent"].tolist() == [1, 0, 4]
    assert table.first(20)["latent"].tolist() == [1, 0, 4, 5]
    unranked = table_of(rank_sum=[np.nan] * 3 + [1.0] + [np.nan] * 2, dead=dead, norm_difference=difference)
    assert unranked.first(3)["latent"].tolist() == [2, 1, 5]
    assert list(table.first(1)) == list(LatentTable.schema(SOURCES))


def test_controls_are_judged_by_the_tables_own_criterion():
    nan = np.nan
    table = table_of(
        nu_reconstruction_random=[0.1, 0.6, nan, -0.2, 0.3], nu_error_random=[0.1, 0.1, nan, 0.1, 0.25],
        nu_reconstruction_shuffled=[1.0, 0.9, nan, 1.1, 0.2], nu_error_shuffled=[1.0, 0.9, 0.1, 1.0, 0.0],
    )  # fmt: skip
    assert control_passes(table) == {"random": (1, 4), "shuffled": (1, 4)}
    table.criterion = Criterion(0.7, 0.3, lowest=-0.3)
    assert control_passes(table) == {"random": (4, 4), "shuffled": (1, 4)}


def test_taxonomy_of_hand_made_decoders(pair, tmp_path):
    _, train, validation = pair
    crosscoder = random_crosscoder()
    crosscoder.decoder_weight[0, 0] = 0  # chat-only
    crosscoder.decoder_weight[1, 1] = 0.05 * crosscoder.decoder_weight[1, 0]  # base-only: Δnorm = 0.025
    crosscoder.decoder_weight[2, 1] = -crosscoder.decoder_weight[2, 0]  # shared in norm, opposite in direction
    crosscoder.decoder_weight[3, 1] = 2 * crosscoder.decoder_weight[3, 0]  # Δnorm = 0.75
    crosscoder.decoder_weight[4] = 0  # nothing to decode: Δnorm is one half
    crosscoder.threshold[5] = 1e9
    frame = build_table(crosscoder, train[0], validation[0], SETTINGS, tmp_path / "t.parquet", key="k").frame
    assert frame["class_name"].tolist()[:6] == ["chat-only", "base-only", "shared", "other", "shared", "dead"]
    assert frame["norm_difference"].tolist()[:5] == pytest.approx([1, 0.025, 0.5, 0.75, 0.5], abs=1e-6)
    assert frame["cosine"].tolist()[1:4] == pytest.approx([1, -1, 1], abs=1e-6)
    assert np.isnan(frame["cosine"][0])


def test_firing_columns_against_a_dense_code(pair, tmp_path):
    crosscoder, train, validation = pair
    store, tokens, h = validation
    frame = build_table(crosscoder, train[0], store, SETTINGS, tmp_path / "t.parquet", key="k").frame
    counted = counted_in(tokens)
    f = crosscoder.encode(torch.from_numpy(h)).to_dense(20).numpy()[counted]
    source, template = tokens.doc_source[tokens.doc][counted], (tokens.mask & Mask.TEMPLATE != 0)[counted]
    fires = f > 0
    np.testing.assert_array_equal(frame["count_validation"], fires.sum(0))
    np.testing.assert_allclose(frame["frequency"], fires.mean(0), rtol=1e-6)
    for i, name in enumerate(SOURCES):
        np.testing.assert_allclose(frame[f"frequency_{name}"], fires[source == i].mean(0), rtol=1e-6)
        np.testing.assert_allclose(frame[f"max_{name}"], f[source == i].max(0), rtol=1e-5)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(frame["template_share"], fires[template].sum(0) / fires.sum(0), rtol=1e-6)
        np.testing.assert_allclose(frame["template_share_mass"], f[template].sum(0) / f.sum(0), rtol=1e-5)
    assert frame["dead"].tolist() == [j == 4 for j in range(20)]
    assert frame["class_name"][4] == "dead" and np.isnan(frame["nu_error"][4])


def test_scaling_columns_are_those_of_the_sums_over_counted_tokens(pair, tmp_path):
    crosscoder, train, validation = pair
    frame = build_table(crosscoder, train[0], validation[0], SETTINGS, tmp_path / "t.parquet", key="k").frame
    for (_, tokens, h), suffix in ((train, ""), (validation, "_validation")):
        counted = counted_in(tokens)
        x = torch.from_numpy(h[counted])
        code = crosscoder.encode(x)
        sums = ScalingSums.zeros(6, 20)
        block = torch.from_numpy(document_block(tokens.doc[counted], 6))
        sums.add(code, torch.cat([x, crosscoder.decode(code)], dim=1), scaling_directions(crosscoder), block)
        rare = sums.count.sum(0).numpy() < SETTINGS.min_count
        for target, beta in betas(sums.total(), direction_terms(crosscoder)).items():
            np.testing.assert_allclose(frame[f"beta_{target}_base{suffix}"], beta[0, :, 0], rtol=2e-4, atol=1e-5)
            expected = np.where(rare, np.nan, nu(beta[0]))
            np.testing.assert_allclose(frame[f"nu_{target}{suffix}"], expected, rtol=2e-3, atol=1e-4)
    live = ~np.isnan(frame["nu_error"])
    assert live.sum() > 10
    assert (frame["nu_error_low"] <= frame["nu_error_high"])[live].all()
    inside = (frame["nu_error_low"] <= frame["nu_error"]) & (frame["nu_error"] <= frame["nu_error_high"])
    assert inside[live].mean() > 0.8
    assert not frame["nu_error_random"][live].isna().all() and not frame["nu_error_shuffled"][live].isna().all()


def test_calls_against_the_definition_in_plain_comparisons(pair, tmp_path):
    """With thresholds of the config; a reversed latent is in no other outcome and has no rank."""
    crosscoder, train, validation = pair
    wide = LatentSettings(**{**SETTINGS.__dict__, "nu_reconstruction_below": 1.0, "nu_error_below": 0.9})
    table = build_table(crosscoder, train[0], validation[0], wide, tmp_path / "t.parquet", key="k")
    facts = check(tmp_path / "t.parquet", "latents", "k").facts
    frame = table.frame
    outcomes = {name: [] for name in ("", "_high", "_validation", "_random", "_shuffled", "reversed", "ranked")}
    for row in frame.to_dict("records"):
        for suffix in ("", "_high", "_validation", "_random", "_shuffled"):
            r, e = row[f"nu_reconstruction{suffix}"], row[f"nu_error{suffix}"]
            outcomes[suffix].append(bool(-0.1 <= r < 1.0 and -0.1 <= e < 0.9))
        r, e = row["nu_reconstruction"], row["nu_error"]
        outcomes["reversed"].append(bool(np.isfinite([r, e]).all() and min(r, e) < -0.1))
        outcomes["ranked"].append(bool(-0.1 <= r <= 2 and -0.1 <= e <= 2))
    fitted = np.array(outcomes[""])
    assert frame["chat_specific"].tolist() == outcomes[""] and fitted.any()
    assert frame["chat_specific_interval"].tolist() == (fitted & outcomes["_high"]).tolist()
    assert frame["chat_specific_validation"].tolist() == (fitted & outcomes["_validation"]).tolist()
    assert frame["reversed"].tolist() == outcomes["reversed"] and any(outcomes["reversed"])
    assert frame["rank_sum"].notna().tolist() == outcomes["ranked"]
    assert not (frame["reversed"] & (frame["chat_specific"] | frame["rank_sum"].notna())).any()
    for name in ("chat_specific", "chat_specific_interval", "chat_specific_validation", "reversed"):
        assert facts[name] == frame[name].sum()
    measured = (frame["count_validation"] >= 5).sum()
    assert facts["controls"] == {name: {"passed": sum(outcomes[f"_{name}"]), "of": measured} for name in CONTROLS}
    assert table.criterion.nu_error_below == facts["criterion"]["nu_error_below"] == 0.9


def test_a_dictionary_of_the_difference_is_scaled_by_plain_least_squares(tmp_path):
    """ν^act of d_j on h^m, and on h^m less its mean over the fit tokens; nothing that needs two decoders is defined."""
    train, validation = stores(tmp_path, of_base=1.5)
    dictionary = random_crosscoder(streams=1, threshold=0.5)
    dictionary.threshold[4] = 1e9
    table = build_table(dictionary, train[0], validation[0], SETTINGS, tmp_path / "diff.parquet", key="k")
    frame = LatentTable.read(tmp_path / "diff.parquet", key="k").frame
    counted = counted_in(train[1])
    mean = train[2][counted].astype(np.float64).mean(0)
    for (_, tokens, h), suffix in ((train, ""), (validation, "_validation")):
        h = h[counted_in(tokens)].astype(np.float64)
        f = dictionary.encode(torch.from_numpy(h)).to_dense(20).double().numpy()
        for j in (0, 7, 13):
            column = (f[:, j, None] * dictionary.decoder_weight[j, 0].double().numpy()).reshape(-1, 1)
            for target, y in (("activation", h), ("activation_no_bias", h - mean)):
                beta = [np.linalg.lstsq(column, y[:, m].reshape(-1), rcond=None)[0][0] for m in (0, 1)]
                found = [frame[f"beta_{target}_{model}{suffix}"][j] for model in ("base", "chat")]
                np.testing.assert_allclose(found, beta, rtol=1e-4, atol=1e-6)
                assert frame[f"nu_{target}{suffix}"][j] == pytest.approx(beta[0] / beta[1], rel=1e-3)
    absent = [name for name in frame if "reconstruction" in name or "error" in name] + ["norm_difference", "cosine"]
    assert len(absent) > 20 and frame[absent].isna().all(axis=None)
    np.testing.assert_allclose(frame["norm_chat"], dictionary.decoder_norms[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(frame["norm_base"], frame["norm_chat"])
    assert frame["class_name"].tolist() == ["dead" if j == 4 else "difference" for j in range(20)]
    assert not table.has_norm_taxonomy and not frame["chat_specific"].any()
    facts = check(tmp_path / "diff.parquet", "latents", "k").facts
    assert facts["classes"] == {"difference": 19, "dead": 1} and facts["controls"]["random"]["of"] == 0

    nu_act = frame["nu_activation"]
    ranked = nu_act[(nu_act >= -0.1) & (nu_act <= 2)].sort_values()
    assert len(ranked) > 3 and table.first(99)["latent"].tolist() == ranked.index.tolist()
    assert frame["reversed"].tolist() == (nu_act < -0.1).tolist()


def test_sums_that_are_not_finite_are_one_line_naming_the_crosscoder(pair, tmp_path):
    _, train, validation = pair
    crosscoder = random_crosscoder()
    crosscoder.decoder_weight[7] = 1e30
    crosscoder.encoder_weight[7] *= 1e30
    out = tmp_path / "l1-seed0.parquet"
    with pytest.raises(TunediffError, match=r"l1-seed0 fit: .* are not finite; delete the crosscoder") as error:
        build_table(crosscoder, train[0], validation[0], SETTINGS, out, key="k")
    assert not out.exists() and "\n" not in str(error.value)


def test_fit_tokens_limits_the_fit_only(pair, tmp_path):
    crosscoder, train, validation = pair
    few = LatentSettings(**{**SETTINGS.__dict__, "fit_tokens": 50})
    table = build_table(crosscoder, train[0], validation[0], few, tmp_path / "t.parquet", key="k")
    facts = check(tmp_path / "t.parquet", "latents", "k").facts
    assert facts["n_tokens_train"] == 50
    assert sum(facts["n_tokens_validation"].values()) == 300  # 320 less 16 BOS and 4 outliers
    assert table.frame["count_train"].sum() < table.frame["count_validation"].sum()


def test_built_twice_the_bytes_are_equal_and_a_read_gives_the_table_back(pair, tmp_path):
    crosscoder, train, validation = pair
    tables = [
        build_table(crosscoder, train[0], validation[0], SETTINGS, tmp_path / f"{name}.parquet", key="k")
        for name in "ab"
    ]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert check(tmp_path / "a.parquet", "latents", "k").facts["classes"]["dead"] == 1
    read = LatentTable.read(tmp_path / "a.parquet", key="k")
    with pytest.raises(TunediffError, match="made by other inputs"):
        LatentTable.read(tmp_path / "a.parquet", key="another")
    pd.testing.assert_frame_equal(read.frame, tables[0].frame)
    assert list(read.frame) == list(LatentTable.schema(SOURCES)) and read.sources == ("web", "chat")


def test_thresholds_and_bounds_travel_in_the_file(pair, tmp_path):
    crosscoder, train, validation = pair
    other = LatentSettings(**{**SETTINGS.__dict__, "nu_reconstruction_below": 0.37, "nu_error_below": 0.13})
    build_table(crosscoder, train[0], validation[0], other, tmp_path / "x.parquet", key="k")
    assert LatentTable.read(tmp_path / "x.parquet").criterion == Criterion(0.37, 0.13)
    moved = LatentTable(table_of(dead=[True]).frame, SOURCES, Criterion(0.3, 0.1, -0.2, 1.5))
    moved.write(tmp_path / "y.parquet")
    assert LatentTable.read(tmp_path / "y.parquet").criterion == Criterion(0.3, 0.1, -0.2, 1.5)


@pytest.mark.parametrize("criterion", [None, "", "0.5", "null", '{"lowest": -0.1}', "{nu: 0.5}"])
def test_a_table_without_a_whole_criterion_is_refused(tmp_path, criterion):
    path = tmp_path / "x.parquet"
    table_of(dead=[True]).write(path)
    metadata = {"sources": "web\nchat"} | ({} if criterion is None else {"criterion": criterion})
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(TunediffError, match="states no criterion; delete it and run snakemake again") as error:
        LatentTable.read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.drop(columns="nu_error"), "column 'nu_error' missing"),
        (lambda f: f.astype({"dead": "int8"}), "column 'dead' is int8 instead of bool"),
        (lambda f: f.assign(extra=1), "column 'extra' is not of a latent table"),
        (lambda f: f.iloc[::-1], "rows are not the latents 0 to 19 in order"),
        (lambda f: f.assign(class_name="chat"), "class_name 'chat' is not one of"),
    ],
)
def test_a_table_of_another_shape_is_refused_in_one_line(pair, tmp_path, damage, message):
    crosscoder, train, validation = pair
    path = tmp_path / "x.parquet"
    table = build_table(crosscoder, train[0], validation[0], SETTINGS, path, key="k")
    damaged = damage(table.frame)
    with pytest.raises(TunediffError, match=message):
        LatentTable(damaged, SOURCES).write(tmp_path / "y.parquet")
    metadata = {"sources": "web\nchat"}
    pq.write_table(pa.Table.from_pandas(damaged, preserve_index=False).replace_schema_metadata(metadata), path)
    seal(path, "latents", "k", {})
    with pytest.raises(TunediffError, match=message) as error:
        LatentTable.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(TunediffError, match="missing; run snakemake"):
        LatentTable.read(tmp_path / "no.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(TunediffError, match="not a Parquet file"):
        LatentTable.read(tmp_path / "text.parquet")
