"""Matches between seeds: permuted and noisy decoders are found again, and the spread is that of plain arithmetic."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analysis_fixtures import random_crosscoder
from figure_tables import evaluation, kl_summary, latent_table
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.seeds import SCHEMA, build_matches, directions, match, matches
from tunediff.latents.table import LatentTable
from tunediff.pipeline.artifacts import check
from tunediff.report.style import Style, save
from tunediff.report.tables import seeds as seeds_table
from tunediff.report.tables.seeds import across_seeds
from tunediff.report.tables.table1 import table1

STYLE = Style(dpi=60)


def table_of(size: int, dead: tuple[int, ...] = (), chat_only: tuple[int, ...] = ()) -> LatentTable:
    """The columns that matching reads."""
    latent = np.arange(size)
    class_name = np.where(np.isin(latent, dead), "dead", np.where(np.isin(latent, chat_only), "chat-only", "shared"))
    frame = pd.DataFrame({"latent": latent, "class_name": class_name, "dead": class_name == "dead"})
    return LatentTable(frame.assign(chat_specific=class_name == "chat-only"), ["web"])


def permuted(crosscoder: Crosscoder, order: np.ndarray, noise: float, seed: int) -> Crosscoder:
    """The same latents in another order, each decoder row with noise of a share of its length."""
    rows = crosscoder.decoder_weight[torch.from_numpy(order)].clone()
    g = torch.Generator().manual_seed(seed)
    added = torch.randn(rows.shape, generator=g)
    rows += noise * added * (rows.flatten(1).norm(dim=1) / added.flatten(1).norm(dim=1))[:, None, None]
    return Crosscoder(
        crosscoder.encoder_weight, crosscoder.encoder_bias, rows, crosscoder.decoder_bias, crosscoder.threshold
    )


def test_permuted_and_noisy_decoders_are_found_again() -> None:
    size, rng = 60, np.random.default_rng(0)
    first = random_crosscoder(24, size)
    orders = [np.arange(size), rng.permutation(size), rng.permutation(size)]
    crosscoders = [first, *(permuted(first, order, 0.3, i) for i, order in enumerate(orders[1:]))]
    crosscoders[2].decoder_weight[np.flatnonzero(orders[2] == 5)] = torch.randn(
        1, 2, 24, generator=torch.Generator().manual_seed(0)
    )  # latent 5 is not there
    found, methods = matches(
        {i: directions(c) for i, c in enumerate(crosscoders)}, dict.fromkeys(range(3), table_of(size))
    )
    assert methods == ["Hungarian assignment"] and len(found) == 3 * 2 * size
    rows = found[found["latent"].between(0, size) & (found["seed"] == 0)].set_index(["latent", "other_seed"])
    for latent in set(range(size)) - {5}:
        for other in (1, 2):
            row = rows.loc[(latent, other)]
            assert orders[other][int(row["match"])] == latent and row["stable"]
            a, b = (
                c.decoder_weight[i].flatten().numpy()
                for c, i in ((first, latent), (crosscoders[other], int(row["match"])))
            )
            assert row["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert rows.loc[(5, 1), "cosine"] > 0.9 > 0.8 > rows.loc[(5, 2), "cosine"]
    assert not rows.loc[(5, 1), "stable"]  # found in one seed of two is not stable
    for _, pair in found.groupby(["seed", "other_seed"]):
        assert pair["match"].is_unique


def test_assignment_is_one_to_one_where_the_best_is_not() -> None:
    left = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1]]), dim=1)
    right = torch.nn.functional.normalize(torch.tensor([[1.0, 0.05], [0.5, 1.0]]), dim=1)
    assigned = match(left, right)
    assert assigned.left.tolist() == [0, 1] and assigned.right.tolist() == [0, 1]
    mutual = match(left, right, limit=1)
    assert mutual.left.tolist() == [0] and mutual.right.tolist() == [0] and "mutual best" in mutual.method


def test_mutual_best_agrees_with_the_assignment_on_what_is_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunediff.latents.seeds.BLOCK", 17)
    first = random_crosscoder(24, 60)
    order = np.random.default_rng(1).permutation(60)
    pair = directions(first), directions(permuted(first, order, 0.4, 0))
    hungarian, mutual = match(*pair), match(*pair, limit=10)
    stable = hungarian.cosine >= 0.8
    found = dict(zip(mutual.left.tolist(), mutual.right.tolist(), strict=True))
    assert stable.sum() > 50
    assert all(found[a] == b for a, b in zip(hungarian.left[stable], hungarian.right[stable], strict=True))
    assert mutual.cosine == pytest.approx([float(pair[0][a] @ pair[1][b]) for a, b in found.items()], abs=1e-6)


def test_latents_of_a_difference_are_matched_by_their_one_direction() -> None:
    first = random_crosscoder(24, 30, streams=1)
    order = np.random.default_rng(2).permutation(30)
    found, _ = matches(
        {0: directions(first), 1: directions(permuted(first, order, 0.2, 0))}, dict.fromkeys((0, 1), table_of(30))
    )
    own = found[found["seed"] == 0]
    assert order[own["match"]].tolist() == list(range(30)) and own["stable"].all()


def test_a_chat_only_latent_is_stable_whatever_its_base_direction() -> None:
    first = random_crosscoder(24, 30)
    second = permuted(first, np.arange(30), 0.0, 0)
    noise = 0.02 * torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    first.decoder_weight[3, 0], second.decoder_weight[3, 0] = noise
    found, _ = matches({0: directions(first), 1: directions(second)}, dict.fromkeys((0, 1), table_of(30)))
    row = found[(found["latent"] == 3) & (found["seed"] == 0)].iloc[0]
    assert row["match"] == 3 and row["cosine"] > 0.95


def test_dead_latents_are_not_matched_and_the_table_is_sealed(tmp_path: Path) -> None:
    first = random_crosscoder(8, 12)
    rows = {"l1": {0: directions(first), 4: directions(first)}, "one": {0: directions(first)}}
    tables = {
        "l1": {0: table_of(12, dead=(2, 3)), 4: table_of(12, dead=(2,), chat_only=(7,))},
        "one": {0: table_of(12)},
    }
    found = build_matches(tables, rows.__getitem__, tmp_path / "matches.parquet", key="k")
    read = pd.read_parquet(tmp_path / "matches.parquet")
    assert read.columns.tolist() == list(SCHEMA) and read.attrs == {"stable_cosine": 0.8}
    own = found[(found["crosscoder"] == "l1") & (found["seed"] == 0)].set_index("latent")
    assert own.loc[[2, 3], "match"].tolist() == [-1, -1] and own.loc[[2, 3], "cosine"].isna().all()
    assert not own.loc[[2, 3], "stable"].any() and own.loc[2, "match_class"] == ""
    assert (
        own.loc[7, "match"] == 7 and own.loc[7, "match_class"] == "chat-only" and own.loc[7, "class_name"] == "shared"
    )
    other = found[(found["crosscoder"] == "l1") & (found["seed"] == 4)].set_index("latent")
    assert other.loc[7, "chat_specific"] and not other.loc[3, "stable"]  # its counterpart is dead
    assert not (found["crosscoder"] == "one").any()
    facts = check(tmp_path / "matches.parquet", "matches", "k").facts
    assert facts["seeds"] == {"l1": [0, 4], "one": [0]} and facts["methods"]["one"] == []


def spread_inputs() -> tuple[dict, dict, pd.DataFrame, pd.DataFrame]:
    """Three seeds of two crosscoders and a published one."""
    labels = [f"{name}-seed{seed}" for seed in (0, 1, 2) for name in ("l1", "batchtopk")]
    shares = {"l1": (0.14, 0.5, 0.12, 0.2, 0.04), "batchtopk": (0, 0.7, 0.05, 0.15, 0.1)}
    latents = {label: latent_table(i, shares[label.split("-")[0]], 400) for i, label in enumerate(labels)}
    latents["theirs"] = latent_table(9, size=100)
    evaluations = {label: evaluation(0.8 + 0.01 * i, 20 + i) for i, label in enumerate(latents)}
    kl, _ = kl_summary()
    one = kl[kl["crosscoder"] == "l1-seed0"]
    kl = pd.concat(
        [one.assign(crosscoder=label, reduction=one["reduction"] - 0.01 * i) for i, label in enumerate(labels)]
    )
    pieces = []
    for i, label in enumerate(labels):
        table, rng = latents[label], np.random.default_rng(i)
        table = table.frame
        stable = (rng.random(len(table)) < 0.6) & ~table["dead"]
        for other in {0, 1, 2} - {i // 2}:
            piece = table[["latent", "class_name", "chat_specific"]].assign(
                stable=stable, other_seed=other, seed=i // 2
            )
            pieces.append(piece.assign(crosscoder=label.split("-")[0]))
    return latents, evaluations, kl, pd.concat(pieces, ignore_index=True)


def test_spread_over_seeds(tmp_path: Path) -> None:
    latents, evaluations, kl, found = spread_inputs()
    found.attrs["stable_cosine"] = 0.8
    spread = across_seeds(latents, evaluations, kl, found)
    assert set(spread["crosscoder"]) == {"l1", "batchtopk"}
    rows = spread.set_index(["crosscoder", "quantity"])
    counted = table1(latents, evaluations).set_index("crosscoder")
    for quantity in ("chat_only", "chat_specific", "chat_specific_interval", "shared", "l0", "fve_chat", "dead"):
        values = counted.loc[["l1-seed0", "l1-seed1", "l1-seed2"], quantity].to_numpy(float)
        row = rows.loc[("l1", quantity)]
        assert row[["mean", "low", "high", "sd"]].tolist() == pytest.approx(
            [values.mean(), values.min(), values.max(), values.std(ddof=1)]
        )
        assert row[["value_seed0", "value_seed1", "value_seed2"]].tolist() == pytest.approx(values.tolist())
    own = found[(found["crosscoder"] == "l1") & (found["seed"] == 1) & (found["other_seed"] == 0)]
    chat_only = own[own["class_name"] == "chat-only"]
    assert rows.loc[("l1", "stable_chat_only"), "value_seed1"] == pytest.approx(chat_only["stable"].mean())
    specific = chat_only[chat_only["chat_specific"]]
    assert rows.loc[("l1", "stable_chat_specific"), "value_seed1"] == pytest.approx(specific["stable"].mean())
    live = own[own["class_name"] != "dead"]
    assert rows.loc[("l1", "stable"), "value_seed1"] == pytest.approx(live["stable"].mean())
    assert rows.loc[("batchtopk", "stable_chat_only"), "n_seeds"] == 0  # there is none
    best = kl[(kl["crosscoder"] == "l1-seed2") & (kl["intervention"] == "latent_scaling_best")].set_index("positions")
    assert rows.loc[("l1", "kl_change_latent_scaling_best"), "value_seed2"] == pytest.approx(
        -best.loc["all", "reduction"]
    )
    first = rows.loc[("l1", "kl_change_latent_scaling_best_first"), "value_seed2"]
    assert first == pytest.approx(-best.loc["first", "reduction"])

    drawing = seeds_table.printed(spread, STYLE)
    printed = [text.get_text() for text in drawing.figure.axes[0].texts]
    row = rows.loc[("l1", "chat_only")]
    assert f"{row['mean']:,.1f} [{row['low']:.0f}, {row['high']:.0f}]" in printed
    assert "l1, 3 seeds" in printed and "–" in printed
    files = save(drawing, tmp_path / "seeds", STYLE)
    assert [path.suffix for path in files] == [".pdf", ".png", ".csv"]


@pytest.mark.parametrize("kept", [["l1-seed0", "batchtopk-seed0"], ["theirs"]])
def test_one_seed_is_said_in_one_row(kept: list[str], tmp_path: Path) -> None:
    latents, evaluations, kl, found = spread_inputs()
    table = across_seeds({label: latents[label] for label in kept}, evaluations, kl, found.iloc[:0])
    assert len(table) == 1
    expected = "no crosscoder trained here" if kept == ["theirs"] else "one seed (0): no spread"
    assert table["quantity"].item().startswith(expected)
    save(seeds_table.printed(table, STYLE), tmp_path / "seeds", STYLE)
    assert any(expected in text.get_text() for text in seeds_table.printed(table, STYLE).figure.axes[0].texts)
