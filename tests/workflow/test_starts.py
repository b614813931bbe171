"""A start of Snakemake looks at what its jobs need, and ends with a line per mistake before the first of them."""

from pathlib import Path

from checkout import family_checkout


def test_mistakes_end_a_run_before_its_first_job(tiny_pairs, tmp_path: Path) -> None:
    checkout = family_checkout(tmp_path / "run", tiny_pairs("gemma2"))
    checkout.edit_config("tokens.sources.chat.column", "mesages")
    checkout.edit_config("models.device", "cuda:99")
    done = checkout.run("results/crosscoders/l1-seed0.json", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "config: `tokens.sources.chat`: texts/chat.parquet: no column 'mesages'; it has conversation" in done.stderr
    assert "config: `models.device`: is cuda:99, but torch sees" in done.stderr
    assert not list((checkout.root / "results").rglob("*.json"))
    assert checkout.planned("results/crosscoders/l1-seed0.json")["tokens"] == 2  # a dry run looks at nothing

    checkout.edit_config("models.device", "cpu")
    checkout.run("results/models.json")  # needs no text, and no lock was left behind
    assert "no column 'mesages'" in checkout.run("results/tokens/train.json", check=False).stderr
    checkout.edit_config("tokens.sources.chat.column", "conversation")
    checkout.run("results/tokens/train.json")
