"""Losses and KL on examples' documents against a plain run of the Hugging Face models."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analysis_fixtures import VOCAB, tiny_model, token_store
from example_tables import small_examples
from figure_tables import latent_table
from tunediff.errors import TunediffError
from tunediff.latents import losses
from tunediff.latents.examples import LOSSES, read_losses
from tunediff.latents.losses import build_losses, chosen_latents, compared, documents_of
from tunediff.models.residual import ResidualModel

LENGTHS = [9, 14, 23, 12, 30, 17, 11, 26, 9, 13]
REPLACED = {7: 3, 11: 4}


@pytest.fixture(scope="module")
def models() -> tuple[ResidualModel, ResidualModel]:
    return tiny_model(0), tiny_model(1)


def plain(model: ResidualModel, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the plain model on one document."""
    with torch.no_grad():
        return model.model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)


def test_losses_are_those_of_the_plain_models(
    models: tuple[ResidualModel, ResidualModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 5 * VOCAB)
    tokens = token_store(tmp_path / "tokens.zarr", LENGTHS)
    table = latent_table(size=40)
    per_band = {"strongest": 2, "high": 1, "middle": 1, "low": 0, "inactive": 5, "inactive_hard": 5}
    examples = {"a": small_examples(tmp_path / "a", range(40), LENGTHS, context=4, per_band=per_band)}
    out = tmp_path / "losses.parquet"
    options = {"key": "k", "batch_size": 3, "replacements": REPLACED}
    build_losses(models, tokens, {"a": table}, examples, 1, out, **options)
    frame = read_losses(out)
    documents = sorted(documents_of(examples["a"], chosen_latents(table, 1)))
    assert 2 <= len(documents) < len(LENGTHS)
    every = [np.arange(tokens.document(i).start, tokens.document(i).stop) for i in documents]
    assert frame["position"].tolist() == np.concatenate(every).tolist()
    for i in documents:
        where = tokens.document(i)
        ids = torch.from_numpy(tokens.token_id[where].astype(np.int64))
        fed = ids.clone()
        for old, new in REPLACED.items():
            fed[ids == old] = new
        q, p = plain(models[0], fed), plain(models[1], ids)
        own = frame[frame["position"].between(where.start, where.stop - 1)]
        np.testing.assert_allclose(own["kl"], (p.exp() * (p - q)).sum(-1), rtol=1e-3, atol=1e-5)
        for name, logp in (("loss_base", q), ("loss_chat", p)):
            assert np.isnan(own[name].iloc[0])
            wanted = -logp[:-1].gather(1, ids[1:, None])[:, 0]
            np.testing.assert_allclose(own[name].iloc[1:], wanted, rtol=1e-3, atol=1e-4)
    assert frame["kl"].mean() > 0.1


def test_the_documents_are_those_of_chat_specific_latents_of_lowest_rank(tmp_path: Path) -> None:
    table = latent_table(size=400)
    frame = table.frame
    specific = frame[frame["chat_specific"]].sort_values("rank_sum", kind="stable")["latent"].tolist()
    assert len(specific) > 5
    assert chosen_latents(table, 5) == specific[:5] and chosen_latents(table, 1000) == specific
    table.frame = frame.assign(chat_specific=False)
    assert chosen_latents(table, 5) == table.first(1)["latent"].tolist()
    examples = small_examples(tmp_path / "a", [0, 1, 2], [20] * 30)
    shown = examples.table("windows").query("latent in (0, 2) and not band.str.startswith('inactive')")
    assert documents_of(examples, [0, 2, 99]) == set(shown["document"])


def test_vocabularies_of_other_sizes_are_compared_where_both_have_tokens() -> None:
    g = torch.Generator().manual_seed(0)
    base, chat = torch.randn(4, 6, generator=g), torch.randn(4, 9, generator=g)
    found = compared(base, chat, torch.tensor([0, 5, 6, 2]))
    p, q = chat[:, :6].double().log_softmax(-1), base.double().log_softmax(-1)
    torch.testing.assert_close(found.kl, (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.chat[1], -p[1, 5], rtol=1e-4, atol=1e-6)
    assert found.base.isnan().tolist() == found.chat.isnan().tolist() == [False, False, True, False]


def test_predictions_that_are_not_finite_name_their_document(tmp_path: Path) -> None:
    tokens = token_store(tmp_path / "tokens.zarr", LENGTHS)
    table = latent_table(size=40)
    examples = {"a": small_examples(tmp_path / "a", range(40), LENGTHS, context=4)}
    broken = tiny_model(1)
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(TunediffError, match=r"losses: predictions on validation document \d+ are not finite"):
        build_losses((tiny_model(0), broken), tokens, {"a": table}, examples, 2, tmp_path / "l.parquet", key="k")
    assert not (tmp_path / "l.parquet").exists()


def test_another_table_is_no_losses(tmp_path: Path) -> None:
    good = pd.DataFrame({name: np.arange(3) for name in LOSSES}).astype(LOSSES)
    path = tmp_path / "losses.parquet"
    for frame, told in (
        (good.drop(columns="kl"), "columns"),
        (good.astype({"kl": "float64"}), "columns"),
        (good[::-1], "positions do not rise"),
    ):
        frame.to_parquet(path, index=False)
        with pytest.raises(TunediffError, match=rf"losses\.parquet: {told}.*delete"):
            read_losses(path)
    path.write_bytes(b"torn")
    with pytest.raises(TunediffError, match="not a readable Parquet file"):
        read_losses(path)
    good.to_parquet(path, index=False)
    pd.testing.assert_frame_equal(read_losses(path), good)
