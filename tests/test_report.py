"""The five lines say what the tables say."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tunediff.report import summary, write_summary


def kl_rows(crosscoder: str, means: dict[str, float]) -> list[dict]:
    return [
        {
            "crosscoder": crosscoder,
            "intervention": name,
            "positions": positions,
            "mean": mean,
            "reduction": 1 - mean / 2,
            "reduction_low": 1 - mean / 2 - 0.01,
            "reduction_high": 1 - mean / 2 + 0.01,
        }
        for name, mean in means.items()
        for positions in ("all", "first")
    ]


@pytest.fixture
def tables() -> tuple[pd.DataFrame, dict, dict, pd.DataFrame]:
    own = {"all": 0.5, "latent_scaling_best": 1.0, "latent_scaling_worst": 1.8}
    kl = pd.DataFrame(kl_rows("", {"none": 2.0, "template": 1.5}) + kl_rows("l1-seed0", own))
    latents = pd.DataFrame(
        {
            "class_name": ["chat-only", "chat-only", "shared", "dead"],
            "nu_reconstruction": [0.7, 0.1, 1.0, float("nan")],
            "chat_specific": [False, True, False, False],
        }
    )
    metrics = [
        {"metric": "fve", "model": "base", "subset": "all", "value": 0.9},
        {"metric": "fve", "model": "chat", "subset": "all", "value": 0.8},
        {"metric": "fve", "model": "chat", "subset": "web", "value": 0.1},
        {"metric": "l0", "model": "both", "subset": "all", "value": 12.34},
    ]
    concepts = pd.DataFrame(
        [
            ("refusal_onset", "chat-specific", 0.99, 0.95),
            ("joke_onset", "chat-specific", 0.99, 0.6),
            ("rewriting_onset", "all", 1.0, 1.0),
            ("answer_onset", "chat-specific", 1.0, float("nan")),
            ("refusal", "chat-specific", 0.95, float("nan")),
        ],
        columns=["concept", "pool", "auroc", "auroc_among_onsets"],
    ).assign(crosscoder="l1-seed0", planted=True)
    return kl, {"l1-seed0": latents}, {"l1-seed0": metrics}, concepts


def test_lines_quote_the_tables(tables: tuple) -> None:
    text = summary(*tables, Path("results/figures"))
    lines = text.splitlines()
    assert lines[0] == "Figures: results/figures/fig4.pdf and beside it" and len(lines) == 6
    assert "base activation 2.000 nats" in lines[1] and "restored 1.500" in lines[1]
    assert "l1-seed0 -75 % [-76, -74]" in lines[1]
    assert "l1-seed0 -50 % [-51, -49] against -10 % [-11, -9]" in lines[2]
    assert "FVE 0.900 (base) 0.800 (chat), L0 12.3" in lines[3]
    assert "2 chat-only by Δnorm (1 of them with ν^r ≥ 0.5), 1 chat-specific by ν" in lines[4]
    assert "l1-seed0 1 of 2 (refusal)" in lines[5]


def test_corpora_without_labels_say_so_and_the_file_is_written(tables: tuple, tmp_path: Path) -> None:
    kl, latents, metrics, concepts = tables
    kl.to_parquet(tmp_path / "kl.parquet")
    latents["l1-seed0"].to_parquet(tmp_path / "l1-seed0.parquet")
    concepts.iloc[:0].to_parquet(tmp_path / "concepts.parquet")
    (tmp_path / "l1-seed0.json").write_text(json.dumps({"metrics": metrics["l1-seed0"]}))
    write_summary(
        tmp_path / "kl.parquet",
        {"l1-seed0": tmp_path / "l1-seed0.parquet"},
        {"l1-seed0": tmp_path / "l1-seed0.json"},
        tmp_path / "concepts.parquet",
        tmp_path,
        tmp_path / "summary.txt",
    )
    assert (tmp_path / "summary.txt").read_text().endswith("so no concept was scored.\n")
