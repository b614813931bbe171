import json

import numpy as np
import pytest
import torch

from analysis_fixtures import SOURCES, activation_store, random_crosscoder, tiny_model, token_store
from tunediff.evaluation import EvaluationSettings, Variance, build_evaluation, cross_entropy, evaluate
from tunediff.models import replace_tokens
from tunediff.tokens import Mask

SETTINGS = EvaluationSettings(documents=3, batch_size=2, token_batch_size=50)
LAYER = 1


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    tokens = token_store(folder / "validation.zarr", [12, 20, 28, 20, 16, 24, 18, 22])  # 160 tokens
    h = np.random.default_rng(0).normal(1.0, 2.0, size=(160, 2, 16)).astype(np.float32)
    models = (tiny_model(0, LAYER), tiny_model(1, LAYER))
    crosscoder = random_crosscoder(16, 20, threshold=0.5)
    crosscoder.threshold[3] = 1e9
    return activation_store(folder / "part-000.zarr", tokens, h), tokens, crosscoder, models, h


def lookup(result, metric, model, subset):
    (value,) = [
        row["value"]
        for row in result["metrics"]
        if (row["metric"], row["model"], row["subset"]) == (metric, model, subset)
    ]
    return value


def test_fve_l0_and_dead_against_their_definitions(stage):
    store, tokens, crosscoder, _, h = stage
    result = evaluate(crosscoder, store, tokens, None, SETTINGS)
    counted = tokens.mask & Mask.BOS == 0
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
            fve = 1 - ((target - y_hat[model][member]) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
            assert lookup(result, "fve", model, subset) == pytest.approx(fve, rel=1e-5)
    assert lookup(result, "dead_fraction", "both", "all") == pytest.approx(((dense[counted] > 0).sum(0) == 0).mean())
    assert str(counted.sum()) in result["dead"]


def test_perfect_and_mean_reconstructions():
    y = torch.randn(50, 3, 4, dtype=torch.float64)
    perfect, mean = Variance(4, "cpu"), Variance(4, "cpu")
    for part in (slice(0, 20), slice(20, 50)):
        perfect.add(y[part], y[part])
        mean.add(y[part], y.mean(0).expand_as(y[part]))
    assert perfect.fve() == pytest.approx([1, 1, 1])
    assert mean.fve() == pytest.approx([0, 0, 0], abs=1e-12)
    torch.testing.assert_close(mean.mean(), y.mean(0))


def reference_losses(stage, means, documents, replacements):
    """Cross-entropies by hooks on the Hugging Face models, one document at a time."""
    _, tokens, crosscoder, models, _ = stage
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


@pytest.mark.parametrize("at_once", [1 << 25, 100])
def test_cross_entropy_against_forward_hooks(stage, monkeypatch, at_once):
    monkeypatch.setattr("tunediff.evaluation.LOGITS_AT_ONCE", at_once)
    _, tokens, crosscoder, models, _ = stage
    means = torch.randn(3, 16, dtype=torch.float64)
    replacements = {5: 6, 7: 8}
    ours = cross_entropy(crosscoder, models, tokens, means, SETTINGS, "cpu", replacements)
    for i, source in enumerate(SOURCES):
        documents = np.flatnonzero(tokens.doc_source == i)[:3]
        losses, n = reference_losses(stage, means, documents, replacements)
        for m, model in enumerate(("base", "chat")):
            found = ours[model, source]
            assert found.n == n
            for name in ("clean", "spliced", "ablated"):
                assert found.loss[name] == pytest.approx(losses[m, name], rel=1e-5)
            clean, spliced, ablated = (losses[m, name] / n for name in ("clean", "spliced", "ablated"))
            recovered = (ablated - spliced) / (ablated - clean)
            assert found.means()["recovered"] == pytest.approx(recovered, rel=1e-3)


def test_written_metrics(stage, tmp_path):
    store, tokens, crosscoder, models, _ = stage
    out = tmp_path / "l1-seed0.json"
    build_evaluation(crosscoder, store, tokens, models, SETTINGS, out, key="k")
    result = json.loads(out.read_text())
    assert result["key"] == "k"
    parts = [lookup(result, "cross_entropy_clean", "chat", name) for name in SOURCES]
    assert min(parts) < lookup(result, "cross_entropy_clean", "chat", "all") < max(parts)
    assert (tmp_path / "l1-seed0.provenance.json").is_file()
    again = tmp_path / "again.json"
    build_evaluation(crosscoder, store, tokens, models, SETTINGS, again, key="k")
    assert again.read_bytes() == out.read_bytes()
