import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from analysis_fixtures import SOURCES, activation_store, random_crosscoder, tiny_model, token_store
from tunediff.config.settings import EvaluationSettings, LatentSettings
from tunediff.data.masks import Mask
from tunediff.errors import TunediffError
from tunediff.latents.evaluation import build_evaluation, cross_entropy
from tunediff.latents.held_out import HeldOut, Reconstruction, Variance, Variances
from tunediff.latents.measure import build_table
from tunediff.models.residual import ResidualModel, replace_tokens

SETTINGS = EvaluationSettings(documents=3, batch_size=2)
LAYER = 1
OUTLIERS = [4, 77]  # rows whose massive activations count nowhere


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    tokens = token_store(folder / "validation.zarr", [12, 20, 28, 20, 16, 24, 18, 22])  # 160 tokens
    h = np.random.default_rng(0).normal(1.0, 2.0, size=(160, 2, 16)).astype(np.float32)
    h[:, 1, 5] *= 4  # the dimension of largest variance
    h[OUTLIERS] *= 1000
    models = (tiny_model(0, LAYER), tiny_model(1, LAYER))
    crosscoder = random_crosscoder(16, 20, threshold=0.5)
    crosscoder.threshold[3] = 1e9
    return activation_store(folder / "part-000.zarr", tokens, h, OUTLIERS), tokens, crosscoder, models, h


def held_out(store, crosscoder, folder):
    """What the pass that measures the latents writes beside their table, in batches of 50 tokens."""
    settings = LatentSettings(batch_size=50, min_count=5, blocks=8, bootstrap_samples=100)
    build_table(crosscoder, store, store, settings, folder / "c.parquet", key="k")
    return Reconstruction.read(folder / "c.parquet", key="k")


def lookup(result, metric, model, subset):
    (value,) = [
        row["value"]
        for row in result["metrics"]
        if (row["metric"], row["model"], row["subset"]) == (metric, model, subset)
    ]
    return value


def test_fve_l0_and_dead_against_their_definitions(stage, tmp_path):
    store, tokens, crosscoder, _, h = stage
    measured = held_out(store, crosscoder, tmp_path)
    result = build_evaluation(crosscoder, measured, tokens, None, SETTINGS, tmp_path / "e.json", key="k")
    counted = (tokens.mask & Mask.BOS == 0) & ~np.isin(np.arange(160), OUTLIERS)
    source = tokens.doc_source[tokens.doc]
    members = {"all": counted, "template": counted & (tokens.mask & Mask.TEMPLATE != 0)}
    members |= {name: counted & (source == i) for i, name in enumerate(SOURCES)}
    code = crosscoder.encode(torch.from_numpy(h))
    hat, dense = crosscoder.decode(code).numpy().astype(np.float64), code.to_dense(20).numpy()
    y = {"base": h[:, 0], "chat": h[:, 1], "difference": h[:, 1] - h[:, 0]}
    y_hat = {"base": hat[:, 0], "chat": hat[:, 1], "difference": hat[:, 1] - hat[:, 0]}
    for subset, member in members.items():
        assert result["n_tokens"][subset] == member.sum()
        assert lookup(result, "l0", "both", subset) == pytest.approx((dense[member] > 0).sum(1).mean())
        for model in y:
            target = y[model][member].astype(np.float64)
            error, total = (target - y_hat[model][member]) ** 2, (target - target.mean(0)) ** 2
            assert lookup(result, "fve", model, subset) == pytest.approx(1 - error.sum() / total.sum(), rel=1e-5)
            standardised = np.mean([1 - error[:, i].sum() / total[:, i].sum() for i in range(16)])
            assert lookup(result, "fve_standardised", model, subset) == pytest.approx(standardised, rel=1e-5)
            share = total.sum(0) / total.sum()
            assert lookup(result, "largest_dimension_share", model, subset) == pytest.approx(share.max(), rel=1e-6)
            assert lookup(result, "largest_dimension", model, subset) == share.argmax()
    assert lookup(result, "largest_dimension", "chat", "all") == 5
    assert lookup(result, "dead_fraction", "both", "all") == pytest.approx(((dense[counted] > 0).sum(0) == 0).mean())
    assert str(counted.sum()) in result["dead"]


def test_a_dictionary_of_the_difference_has_fve_of_that_alone(stage, tmp_path):
    store, tokens, _, models, h = stage
    dictionary = random_crosscoder(16, 20, threshold=0.5, streams=1)
    measured = held_out(store, dictionary, tmp_path)
    result = build_evaluation(dictionary, measured, tokens, models, SETTINGS, tmp_path / "d.json", key="k")
    counted = (tokens.mask & Mask.BOS == 0) & ~np.isin(np.arange(160), OUTLIERS)
    delta = (h[:, 1] - h[:, 0])[counted].astype(np.float64)
    code = dictionary.encode(torch.from_numpy(h[counted]))
    error = delta - dictionary.decode(code)[:, 0].numpy()
    expected = 1 - (error**2).sum() / ((delta - delta.mean(0)) ** 2).sum()
    assert lookup(result, "fve", "difference", "all") == pytest.approx(expected, rel=1e-5)
    assert lookup(result, "l0", "both", "all") == pytest.approx(len(code.value) / counted.sum())
    assert {row["model"] for row in result["metrics"]} == {"difference", "both"}
    assert not any(row["metric"].startswith("cross_entropy") for row in result["metrics"])
    assert "no reconstruction of either model" in result["left_out"]["cross_entropy"]


def variance_of(y: torch.Tensor, guess: torch.Tensor, *starts: int) -> Variance:
    """What batches that begin at `starts` give, next to a subset that has every other token."""
    variances = Variances(2, *y.shape[1:], "cpu")
    for start, stop in pairwise([0, *starts, len(y)]):
        members = np.stack([np.ones(stop - start, dtype=bool), np.arange(start, stop) % 2 == 0])
        variances.add(members, y[start:stop], guess[start:stop])
    return variances.of(0)


def with_difference(y: torch.Tensor) -> torch.Tensor:
    return torch.cat([y, y[:, 1:] - y[:, :1]], dim=1)


def test_perfect_and_mean_reconstructions():
    y = torch.randn(50, 2, 4, dtype=torch.float64)
    perfect, mean = variance_of(y, y, 20), variance_of(y, y.mean(0).expand_as(y), 20)
    for fve in ("fve", "fve_standardised"):
        assert getattr(perfect, fve)() == pytest.approx([1, 1, 1])
        assert getattr(mean, fve)() == pytest.approx([0, 0, 0], abs=1e-12)
    torch.testing.assert_close(mean.mean(), with_difference(y).mean(0))


def test_subsets_overlap_and_those_that_do_not_are_added():
    generator = torch.Generator().manual_seed(0)
    y, guess = torch.randn(2, 60, 1, 3, generator=generator) + 5
    members = np.stack([np.arange(60) < 10, np.arange(60) >= 10, np.arange(60) % 3 == 0])
    variances = Variances(3, 1, 3, "cpu")
    for part in (slice(0, 25), slice(25, 60)):
        variances.add(members[:, part], y[part], guess[part])
    for own, member in {(0,): members[0], (2,): members[2], (0, 1): np.ones(60, dtype=bool)}.items():
        found, of = variances.of(*own), y[member].double()
        assert found.n_tokens == member.sum()
        torch.testing.assert_close(found.total(), (of - of.mean(0)).square().sum(0))
        torch.testing.assert_close(found.error, (of - guess[member].double()).square().sum(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(found.mean(), of.mean(0))


def test_one_dimension_can_carry_fve_alone():
    """By hand: dimension 1 has variance 99 of 100 and is perfect, dimension 0 is its mean, dimension 2 is constant."""
    base = torch.zeros(400, 3)
    base[::2, 0], base[1::2, 0] = 1, -1
    base[::4, 1], base[2::4, 1] = 198**0.5, -(198**0.5)
    base[:, 2] = 7
    y = torch.stack([base, -base], dim=1)  # the difference is −2 times the one of base
    guess = y.clone()
    guess[:, :, 0] = 0
    guess[:, :, 2] *= 6 / 7
    variance = variance_of(y, guess)
    assert variance.fve() == pytest.approx([1 - 2 / 100] * 3)  # the offset of the constant dimension counts here
    assert variance.fve_standardised() == pytest.approx([0.5] * 3)
    assert [(largest.dimension, largest.share) for largest in variance.largest_dimensions()] == [
        (1, pytest.approx(0.99))
    ] * 3


def test_no_digit_is_lost_where_the_mean_is_far_larger_than_the_spread():
    """Float32 activations around a mean up to 10⁶ times their spread; two passes over the same numbers as reference."""
    g = torch.Generator().manual_seed(0)
    mean, scale = 6000.0, torch.tensor([6e-3, 2e-2, 1.0, 1.0])
    y = (mean + scale * torch.randn(5000, 2, 4, generator=g)).float()
    y[:, :, 3] = mean / 3  # constant: no variance, whatever the rounding
    guess = y + 0.3 * scale * torch.randn(5000, 2, 4, generator=g)
    naive = y.double().square().sum(0) - y.double().sum(0).square() / len(y)
    variance = variance_of(y, guess, 7, 2000)
    exact = with_difference(y).double()
    error, total = (exact - with_difference(guess)).square().sum(0), (exact - exact.mean(0)).square().sum(0)
    torch.testing.assert_close(variance.total()[:, :3], total[:, :3], rtol=1e-9, atol=0)
    assert not torch.allclose(naive[:, :1], total[:2, :1], rtol=1e-7, atol=0)  # what the plain sums would give
    assert (variance.total()[:, 3] == 0).all()
    assert variance.fve() == pytest.approx((1 - error.sum(1) / total[:, :3].sum(1)).tolist(), rel=1e-9)
    standardised = 1 - (error[:, :3] / total[:, :3]).mean(1)
    assert variance.fve_standardised() == pytest.approx(standardised.tolist(), rel=1e-9)
    torch.testing.assert_close(variance.mean(), exact.mean(0), rtol=1e-12, atol=0)


def test_without_variance_there_is_no_share_of_it():
    variance = variance_of(torch.ones(3, 2, 2), torch.zeros(3, 2, 2))
    values = [*variance.fve(), *variance.fve_standardised(), *(x.share for x in variance.largest_dimensions())]
    assert len(values) == 9 and np.isnan(values).all()


def reference_losses(stage, crosscoder, means, documents, replacements):
    """Cross-entropies by hooks on the Hugging Face models, one document at a time."""
    _, tokens, _, models, _ = stage
    losses = {(m, name): 0.0 for m in range(2) for name in ("clean", "spliced", "ablated")}
    n = 0
    for i in documents:
        ids = torch.from_numpy(tokens.token_id[tokens.document(i)].astype(np.int64))[None]
        counted = torch.from_numpy(tokens.mask[tokens.document(i)] & Mask.BOS == 0)
        fed = (replace_tokens(ids, replacements), ids)
        h = [
            model.model(input_ids=x, output_hidden_states=True).hidden_states[LAYER + 1][0]
            for model, x in zip(models, fed, strict=True)
        ]
        hat = crosscoder(torch.stack(h, dim=1))
        for rows, limit in zip(h, crosscoder.config.get("outlier_norm", (np.inf, np.inf)), strict=True):
            counted &= rows.norm(dim=1) <= limit
        n += int(counted[:-1].sum())
        for m, model in enumerate(models):
            for name, value in (("clean", h[m]), ("spliced", hat[:, m]), ("ablated", means[m].float().expand_as(h[m]))):
                patch = torch.where(counted[:, None], value, h[m])[None]

                def hook(module, inputs, output, patch=patch):
                    return (patch, *output[1:]) if isinstance(output, tuple) else patch

                handle = model.model.model.layers[LAYER].register_forward_hook(hook)
                logits = model.model(input_ids=fed[m]).logits[0, :-1].double()
                handle.remove()
                nll = -logits.log_softmax(-1)[torch.arange(len(logits)), ids[0, 1:]]
                losses[m, name] += nll[counted[:-1]].sum().item()
    return losses, n


@pytest.mark.parametrize(("at_once", "limits"), [(1 << 25, None), (100, None), (1 << 25, (10.0, 10.5))])
def test_cross_entropy_against_forward_hooks(stage, monkeypatch, at_once, limits):
    """With limits on the norms, some counted positions keep their output and are not scored."""
    monkeypatch.setattr("tunediff.latents.evaluation.LOGITS_AT_ONCE", at_once)
    _, tokens, crosscoder, models, _ = stage
    if limits is not None:
        monkeypatch.setitem(crosscoder.config, "outlier_norm", list(limits))
    means = torch.randn(3, 16, dtype=torch.float64)
    replacements = {5: 6, 7: 8}
    ours = cross_entropy(crosscoder, models, tokens, means, SETTINGS, "cpu", replacements)
    for i, source in enumerate(SOURCES):
        documents = np.flatnonzero(tokens.doc_source == i)[:3]
        losses, n = reference_losses(stage, crosscoder, means, documents, replacements)
        bos = tokens.mask & Mask.BOS != 0
        every = sum(int((~bos[tokens.document(j)])[:-1].sum()) for j in documents)
        assert n == every if limits is None else 0.3 * every < n < 0.9 * every
        for m, model in enumerate(("base", "chat")):
            found = ours[model, source]
            assert found.n == n
            for name in ("clean", "spliced", "ablated"):
                assert found.loss[name] == pytest.approx(losses[m, name], rel=1e-5)
            clean, spliced, ablated = (losses[m, name] / n for name in ("clean", "spliced", "ablated"))
            recovered = (ablated - spliced) / (ablated - clean)
            assert found.means()["recovered"] == pytest.approx(recovered, rel=1e-3)


def broken(model, monkeypatch, where):
    """Make the residual stream, or the logits, of one token of one document not finite."""
    name = "residual" if where == "residual" else "logits_from"
    original = getattr(ResidualModel, name)

    def patched(self, *arguments):
        result = original(self, *arguments)
        if self is model:
            ids = arguments[0] if where == "residual" else arguments[1]
            row = (ids[:, 3] == broken.token).nonzero()[0, 0]
            result[row, 3, 0] = torch.inf if where == "residual" else torch.nan
        return result

    monkeypatch.setattr(ResidualModel, name, patched)


@pytest.mark.parametrize(("where", "what"), [("residual", "the residual stream is"), ("logits", "losses are")])
@pytest.mark.parametrize("m", [0, 1])
def test_what_is_not_finite_is_one_line_naming_model_and_document(stage, monkeypatch, m, where, what):
    _, tokens, crosscoder, models, _ = stage
    settings = EvaluationSettings(documents=3, batch_size=3)
    broken.token = int(tokens.token_id[tokens.document(2)][3])
    assert [tokens.token_id[tokens.document(i)][3] for i in (0, 2, 4)].count(broken.token) == 1
    broken(models[m], monkeypatch, where)
    message = f"{('base', 'chat')[m]} model: {what} not finite in validation documents 2; "
    with pytest.raises(TunediffError, match=message) as error:
        cross_entropy(crosscoder, models, tokens, torch.zeros(3, 16), settings, "cpu")
    assert "\n" not in str(error.value)


def test_a_reconstruction_that_is_not_finite_is_refused(stage):
    store, _, crosscoder, _, _ = stage
    measured = HeldOut(crosscoder, SOURCES, "cpu")
    batch = next(store.chunks())
    code = crosscoder.encode(batch.activations)
    measured.add(batch, code, crosscoder.decode(code) * torch.inf)
    with pytest.raises(TunediffError, match="l1-seed0: the reconstruction error is not finite"):
        measured.metrics(0.0, "l1-seed0")


def test_metrics_beside_the_table_are_those_of_its_key_and_whole(stage, tmp_path):
    store, _, crosscoder, _, _ = stage
    held_out(store, crosscoder, tmp_path)
    with pytest.raises(TunediffError, match="made by other inputs"):
        Reconstruction.read(tmp_path / "c.parquet", key="another")
    file = tmp_path / "c.held_out.json"
    file.write_text(file.read_text().replace("0.", "1.", 1))
    with pytest.raises(TunediffError, match=r"c.held_out.json: checksum differs from the manifest"):
        Reconstruction.read(tmp_path / "c.parquet", key="k")


def test_written_metrics(stage, tmp_path):
    store, tokens, crosscoder, models, _ = stage
    measured = held_out(store, crosscoder, tmp_path)
    out = tmp_path / "l1-seed0.json"
    build_evaluation(crosscoder, measured, tokens, models, SETTINGS, out, key="k")
    result = json.loads(out.read_text())
    assert result["key"] == "k"
    parts = [lookup(result, "cross_entropy_clean", "chat", name) for name in SOURCES]
    assert min(parts) < lookup(result, "cross_entropy_clean", "chat", "all") < max(parts)
    assert (tmp_path / "l1-seed0.provenance.json").is_file()
    again = tmp_path / "again.json"
    build_evaluation(crosscoder, measured, tokens, models, SETTINGS, again, key="k")
    assert again.read_bytes() == out.read_bytes()
