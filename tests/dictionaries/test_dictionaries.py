"""Training objects against dense references by autograd."""

from typing import Any

import pytest
import torch
from scipy.optimize import minimize

from tunediff.dictionaries import DICTIONARIES, Dictionary, build, dictionary_settings
from tunediff.dictionaries.base import LatentGroup
from tunediff.dictionaries.batchtopk import BatchTopK, geometric_median
from tunediff.dictionaries.crosscoder import Crosscoder, dictionary_inputs
from tunediff.dictionaries.dead import Dead
from tunediff.dictionaries.l1 import L1, _WithNorms
from tunediff.dictionaries.losses import LossTerm
from tunediff.dictionaries.training import TrainingSettings, make_optimizer, optimizer_step
from tunediff.errors import TunediffError

D, F, N = 6, 40, 30


def make(kind: str, steps: int = 100, warmup: int = 5, **section: Any) -> Any:
    defaults: dict[str, Any] = {"mu": 0.1} if kind == "l1" else {"k": 4}
    settings = dictionary_settings({"kind": kind, "dict_size": F, "norm_init": 1.0, **defaults, **section})
    return randomised(build(settings, D, 0, steps, warmup))


def randomised(dictionary: Dictionary) -> Any:
    """The dictionary in float64, away from its start."""
    dictionary.double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return dictionary


def batch(seed: int = 0, n: int = N, kind: str = "batchtopk") -> torch.Tensor:
    pair = torch.randn(n, 2, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5
    return pair[:, 1:] - pair[:, :1] if kind == "diff_sae" else pair


def gradients(dictionary: Dictionary, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*dictionary.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def dense_f(dictionary: Dictionary, x: torch.Tensor) -> torch.Tensor:
    return torch.relu(torch.einsum("nmd,lmd->nl", x, dictionary.encoder_weight) + dictionary.encoder_bias)


def dense_error(dictionary: Dictionary, x: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    return x - torch.einsum("nl,lmd->nmd", f, dictionary.decoder_weight) - dictionary.decoder_bias


def reference_reconstruction(error: torch.Tensor, form: str, half: bool) -> torch.Tensor:
    if form == "norm":
        return (error[:, 0].norm(dim=-1) + error[:, 1].norm(dim=-1)).mean() / 2
    return error.pow(2).sum(dim=(1, 2)).mean() * (0.5 if half else 1)


@pytest.mark.parametrize("form", ["squared", "norm"])
@pytest.mark.parametrize("sparse_below", [0.0, 2.0])
def test_l1_loss_and_gradients(form: str, sparse_below: float) -> None:
    dictionary, x = make("l1", reconstruction=form), batch()
    dictionary.sparse_below = sparse_below
    f = dense_f(dictionary, x)
    s = dictionary.decoder_weight.norm(dim=-1).sum(dim=1)
    expected = reference_reconstruction(dense_error(dictionary, x, f), form, half=True) + 0.1 * (f * s).sum(1).mean()
    expected_gradients = gradients(dictionary, expected)
    result = dictionary.step(x)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert float(result.metrics["l0"]) == pytest.approx(float((f > 0).sum() / N))
    for name, gradient in gradients(dictionary, result.loss).items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-9, atol=1e-12), name


def test_l1_paths_train_alike() -> None:
    curves = []
    for limit in (0.0, 2.0):
        dictionary = make("l1")
        dictionary.sparse_below = limit
        optimizer = torch.optim.Adam(dictionary.parameters(), lr=1e-2)
        losses = []
        for seed in range(20):
            result = dictionary.step(batch(seed))
            optimizer.zero_grad()
            result.loss.backward()
            optimizer.step()
            losses.append(result.loss.item())
        curves.append((losses, dictionary.tokens_since_fired.tolist()))
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-9)
    assert curves[0][1] == curves[1][1]


@pytest.mark.parametrize(("kind", "form"), [("batchtopk", "squared"), ("batchtopk", "norm"), ("diff_sae", "squared")])
def test_batchtopk_loss_gradients_and_threshold(kind: str, form: str) -> None:
    dictionary, x = make(kind, reconstruction=form), batch(kind=kind)
    f = dense_f(dictionary, x)
    score = f.detach() * dictionary.decoder_weight.detach().norm(dim=-1).sum(dim=1)
    cutoff = score.flatten().sort(descending=True).values[N * 4 - 1]
    expected = reference_reconstruction(dense_error(dictionary, x, f * (score >= cutoff)), form, half=False)
    expected_gradients = gradients(dictionary, expected)
    result = dictionary.step(x)
    assert float(result.metrics["l0"]) == 4
    assert float(result.metrics["threshold"]) == pytest.approx(float(cutoff), rel=1e-6)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for name, gradient in gradients(dictionary, result.loss).items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize(("kind", "aux_k"), [("batchtopk", 3), ("batchtopk", 1000), ("diff_sae", 3)])
def test_auxiliary_loss_is_the_definition(kind: str, aux_k: int) -> None:
    dictionary, x = make(kind, aux_k=aux_k, aux_weight=0.25, dead_after_tokens=100), batch(kind=kind)
    dead = torch.arange(F) % 4 == 0
    dictionary.tokens_since_fired[dead] = 100
    dictionary.steps_taken = 10
    f = dense_f(dictionary, x)
    s = dictionary.decoder_weight.detach().norm(dim=-1).sum(dim=1)
    score = f.detach() * s
    kept = score >= score.flatten().sort(descending=True).values[N * 4 - 1]
    error = dense_error(dictionary, x, f * kept)
    residual = error.detach()
    dead_score = torch.where(dead, score, -1.0)
    chosen = torch.zeros_like(score)
    for n in range(N):
        chosen[n, dead_score[n].argsort(descending=True)[: min(aux_k, int(dead.sum()))]] = 1
    estimate = torch.einsum("nl,lmd->nmd", f * chosen, dictionary.decoder_weight)
    auxiliary = (residual - estimate).pow(2).sum(dim=(1, 2)).mean()
    auxiliary = auxiliary / (residual - residual.mean(dim=0)).pow(2).sum(dim=(1, 2)).mean()
    expected = error.pow(2).sum(dim=(1, 2)).mean() + 0.25 * auxiliary
    expected_gradients = gradients(dictionary, expected)
    result = dictionary.step(x)
    assert float(result.metrics["auxiliary"]) == pytest.approx(auxiliary.item(), rel=1e-5)
    for name, gradient in gradients(dictionary, result.loss).items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-9, atol=1e-12), name


def test_a_listed_latent_that_has_fired_since_is_silent_in_the_auxiliary_loss() -> None:
    results = []
    for listed in (torch.arange(0, F, 4), torch.arange(0, F, 2)):
        dictionary = make("batchtopk", aux_k=3, dead_after_tokens=100)
        dictionary.steps_taken = 100
        dictionary.tokens_since_fired[::4] = 100
        dictionary.dead_latents.listed = lambda *_, listed=listed: Dead(listed, len(listed))
        results.append((dictionary, dictionary.step(batch())))
    (one, expected), (other, actual) = results
    assert float(expected.metrics["auxiliary"]) > 0
    assert float(actual.metrics["auxiliary"]) == pytest.approx(float(expected.metrics["auxiliary"]), rel=1e-12)
    wanted = gradients(one, expected.loss)
    for name, gradient in gradients(other, actual.loss).items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-9, atol=1e-12), name


def test_no_auxiliary_loss_while_nothing_is_dead() -> None:
    dictionary = make("batchtopk", dead_after_tokens=10 * N)
    assert float(dictionary.step(batch()).metrics["auxiliary"]) == 0


def test_threshold_is_the_average_from_its_start_on() -> None:
    dictionary = make("batchtopk", threshold_start=3)
    smallest = [float(dictionary.step(batch(seed)).metrics["threshold"]) for seed in range(6)]
    expected = smallest[3]
    for value in smallest[4:]:
        expected = dictionary.threshold_decay * expected + (1 - dictionary.threshold_decay) * value
    assert float(dictionary.theta()) == pytest.approx(expected, rel=1e-12)
    s = dictionary.decoder_weight.norm(dim=-1).sum(dim=1)
    assert torch.allclose(dictionary.inference_threshold().double(), expected / s)


def test_a_run_shorter_than_the_threshold_start_uses_the_last_batch() -> None:
    dictionary = make("batchtopk", threshold_start=1000)
    smallest = [float(dictionary.step(batch(seed)).metrics["threshold"]) for seed in range(3)]
    assert float(dictionary.theta()) == smallest[-1]


def test_k_anneals_linearly() -> None:
    dictionary = make("batchtopk", k_max=20, k_anneal_steps=8)
    ks = [float(dictionary.step(batch(seed)).metrics["l0"]) for seed in range(10)]
    assert ks == [20, 18, 16, 14, 12, 10, 8, 6, 4, 4]


def test_batchtopk_starts_at_the_median_of_inputs_that_are_not_centred() -> None:
    x = torch.randn(256, 2, D, generator=torch.Generator().manual_seed(4)) + 20
    dictionary = build(dictionary_settings({"kind": "batchtopk", "dict_size": F, "k": 4}), D, 0)
    before = float(dictionary.step(x).loss.detach())
    dictionary.prepare(x)
    assert torch.allclose(dictionary.decoder_bias, x.mean(0), atol=0.3)
    at_the_median = dictionary.preactivations(dictionary.decoder_bias.detach()[None])
    assert torch.allclose(at_the_median, torch.zeros(1, F), atol=1e-4)
    assert float(dictionary.step(x).loss.detach()) < 0.01 * before


@pytest.mark.parametrize("kind", ["l1", "batchtopk"])
def test_evaluation_changes_no_state_and_steps_count_tokens(kind: str) -> None:
    dictionary = make(kind)
    with torch.no_grad():
        dictionary.encoder_bias[7] = -1e6  # never fires
    dictionary.step(batch(0))
    before = {name: value.clone() for name, value in dictionary.state_dict().items() if name != "_extra_state"}
    for seed in range(3):
        dictionary.evaluate(batch(seed))
    for name, value in before.items():
        assert torch.equal(value, dictionary.state_dict()[name]), name
    assert dictionary.steps_taken == 1
    dictionary.step(batch(1))
    assert int(dictionary.tokens_since_fired[7]) == 2 * N
    assert int(dictionary.tokens_since_fired.min()) == 0


def test_evaluation_is_at_the_inference_threshold() -> None:
    dictionary, x = make("batchtopk"), batch()
    dictionary.step(batch(1))
    f = dense_f(dictionary, x)
    kept = f * (f * dictionary.decoder_weight.norm(dim=-1).sum(dim=1) > dictionary.theta())
    error = dense_error(dictionary, x, kept)
    spread = (x - x.mean(0)).pow(2).sum(dim=(0, 2))
    metrics = dictionary.evaluate(x)
    assert float(metrics["fve_base"]) == pytest.approx(
        (1 - error.pow(2).sum(dim=(0, 2))[0] / spread[0]).item(), rel=1e-5
    )
    assert float(metrics["l0"]) == pytest.approx(float((kept > 0).sum() / N), rel=1e-12)


def test_decoder_bias_starts_at_the_geometric_median() -> None:
    points = torch.randn(41, 3, dtype=torch.float64).exp()
    found = minimize(lambda y: float((points - torch.tensor(y)).norm(dim=1).sum()), points.mean(0).numpy(), tol=1e-10)
    assert geometric_median(points, tolerance=1e-9).tolist() == pytest.approx(found.x.tolist(), abs=1e-4)
    dictionary, x = make("batchtopk"), batch()
    dictionary.prepare(x)
    assert torch.allclose(dictionary.decoder_bias[1], geometric_median(x[:, 1]))


def test_start_is_one_direction_set_for_both_models_and_both_sides() -> None:
    dictionary = build(dictionary_settings({"kind": "l1", "dict_size": F, "mu": 1, "norm_init": 0.05}), D, seed=3)
    assert torch.equal(dictionary.encoder_weight, dictionary.decoder_weight)
    assert torch.equal(dictionary.decoder_weight[:, 0], dictionary.decoder_weight[:, 1])
    assert torch.allclose(dictionary.decoder_norms(), torch.tensor(0.05))
    assert not dictionary.encoder_bias.any() and not dictionary.decoder_bias.any()
    other = build(dictionary_settings({"kind": "l1", "dict_size": F, "mu": 1}), D, seed=4)
    assert not torch.allclose(other.encoder_weight, dictionary.encoder_weight)


def search(section: dict[str, Any], steps: int, warmup: int) -> tuple[list[float], list[float]]:
    """Train an L1 crosscoder on sparse sums of 64 atoms; return L0 and μ of every step."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(64, 2, 16, generator=generator), dim=-1) * 4
    section = {"kind": "l1", "dict_size": 128, "norm_init": 0.1, **section}
    dictionary = build(dictionary_settings(section), 16, 0, steps, warmup)
    optimizer = make_optimizer(dictionary, TrainingSettings(learning_rate=3e-3))
    for group in optimizer.param_groups:
        group["lr"] *= group["factor"]
    l0, mu = [], []
    for step in range(steps):
        weight = torch.rand(128, 64, generator=generator) * (torch.rand(128, 64, generator=generator) < 0.08)
        x = torch.einsum("na,amd->nmd", weight, atoms)
        if step == 0:
            dictionary.prepare(x)
        _, metrics = optimizer_step(dictionary, optimizer, x)
        l0.append(float(metrics["l0"]))
        mu.append(float(metrics["mu"]))
    return l0, mu


@pytest.mark.parametrize(("form", "wanted"), [("squared", 6.0), ("norm", 6.0), ("squared", 4.0), ("squared", 12.0)])
def test_mu_search_reaches_the_wanted_l0(form: str, wanted: float) -> None:
    l0, mu = search({"mu": "auto", "target_l0": wanted, "reconstruction": form}, 700, 30)
    assert sum(l0[-50:]) / 50 == pytest.approx(wanted, rel=0.1)
    assert len(set(mu[:31])) == 1 and len(set(mu)) > 300  # fixed during the warm-up


def test_the_search_starts_with_about_twice_the_wanted_latents() -> None:
    x = torch.randn(512, 2, 16, generator=torch.Generator().manual_seed(2))
    section = {"kind": "l1", "dict_size": 128, "mu": "auto", "target_l0": 5.0}
    dictionary = build(dictionary_settings(section), 16, 0, 100, 5)
    dictionary.prepare(x)
    firing = (dictionary.preactivations(x) > 0).double().mean(0) * 128
    assert torch.allclose(firing, torch.tensor(10.0, dtype=torch.float64), atol=0.3)  # every latent alike
    fixed = build(dictionary_settings({"kind": "l1", "dict_size": 128, "mu": 0.1}), 16, 0, 100, 5)
    fixed.prepare(x)
    assert not fixed.encoder_bias.any()  # as the paper starts


def test_a_search_needs_steps() -> None:
    with pytest.raises(TunediffError, match=r"l1\.mu: the search of μ needs more steps than 10, of which 5 are"):
        build(dictionary_settings({"kind": "l1", "dict_size": 8, "mu": "auto", "target_l0": 2.0}), 16, 0, 10, 5)


@pytest.mark.parametrize(("steps", "decay"), [(0, 0.999), (100_000, 0.999), (1_500, 0.995), (505, 0.0), (500, 0.999)])
def test_the_threshold_averages_the_last_fifth_of_a_short_run(steps: int, decay: float) -> None:
    section = {"kind": "batchtopk", "dict_size": 8, "k": 2, "threshold_start": 500}
    assert build(dictionary_settings(section), 4, 0, steps).threshold_decay == pytest.approx(decay)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "l1", "dict_size": 0, "mu": 0.1}, r"l1\.dict_size: is 0"),
        ({"kind": "l1", "dict_size": 8, "mu": "best"}, r"l1\.mu: is 'best'"),
        ({"kind": "l1", "dict_size": 8, "mu": "auto"}, r"l1\.target_l0: is None"),
        ({"kind": "batchtopk", "dict_size": 8, "k": 9}, r"batchtopk\.k: is 9"),
        ({"kind": "batchtopk", "dict_size": 8, "k": 4, "k_max": 2}, r"batchtopk\.k_max: is 2"),
        ({"kind": "batchtopk", "dict_size": 8, "k": 4, "reconstruction": "l2"}, r"batchtopk\.reconstruction"),
    ],
)
def test_bad_settings_name_the_key(section: dict[str, Any], message: str) -> None:
    with pytest.raises(TunediffError, match=message):
        dictionary_settings(section)


def test_registry_names_are_the_kinds() -> None:
    assert {"l1", "batchtopk", "diff_sae"} <= set(DICTIONARIES)
    assert all(kind == cls.settings_type.kind for kind, cls in DICTIONARIES.items())


def test_a_diff_sae_reads_and_writes_chat_minus_base() -> None:
    pair = batch().float()
    dictionary = build(dictionary_settings({"kind": "diff_sae", "dict_size": F, "k": 4}), D, 0)
    assert dictionary.settings.reconstructs == "difference" and dictionary.streams == ("difference",)
    assert dictionary.decoder_weight.shape == (F, 1, D) and dictionary.decoder_bias.shape == (1, D)
    difference = dictionary_inputs(pair, "difference")
    assert torch.equal(difference[:, 0], pair[:, 1] - pair[:, 0])
    dictionary.prepare(difference)
    expected = geometric_median(pair[:, 1] - pair[:, 0]).float()
    assert torch.allclose(dictionary.decoder_bias[0], expected, atol=1e-5)
    metrics = dictionary.step(difference).metrics
    assert {name for name in metrics if name.startswith("fve")} == {"fve_difference"}


def gap(x: torch.Tensor, error: torch.Tensor, code: Any) -> torch.Tensor:
    """The difference term of method.md section 10, and something that only the code says."""
    return (error[:, 1] - error[:, 0]).pow(2).sum(dim=1).mean() + code.value.sum() / len(x)


class Parts:
    """What later kinds will ask the base for: the latents' own and shared, each part only where it is named."""

    parts: tuple[str, ...]

    def latent_groups(self) -> tuple[LatentGroup, ...]:
        groups = (LatentGroup("own", 0, 12, 1), LatentGroup("shared", 12, F, 3))
        return groups if "groups" in self.parts else super().latent_groups()  # type: ignore[misc]

    def latent_mask(self) -> torch.Tensor | None:
        mask = torch.ones(F, 2, dtype=torch.bool)
        mask[:6, 0], mask[6:12, 1] = False, False
        return mask if "mask" in self.parts else None

    def tied_latents(self) -> torch.Tensor | None:
        return torch.arange(F) >= 30 if "ties" in self.parts else None


def with_parts(cls: type[Dictionary], parts: tuple[str, ...], **section: Any) -> Any:
    made = type("Made", (Parts, cls), {"parts": parts})
    made.loss_terms = (LossTerm("gap", 0.7, gap),) if "term" in parts else ()
    settings = dictionary_settings({"kind": cls.settings_type.kind, "dict_size": F, "norm_init": 1.0, **section})
    return randomised(made(settings, D, 0, 100, 5))


def used_weights(dictionary: Dictionary, parts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, latent by latent."""
    encoder, decoder = [], []
    for j in range(F):
        base, chat = ("mask" not in parts or j >= 6), ("mask" not in parts or not 6 <= j < 12)
        d_base = dictionary.decoder_weight[j, 0]
        d_chat = d_base if "ties" in parts and j >= 30 else dictionary.decoder_weight[j, 1]
        encoder.append(torch.stack([dictionary.encoder_weight[j, 0] * base, dictionary.encoder_weight[j, 1] * chat]))
        decoder.append(torch.stack([d_base * base, d_chat * chat]))
    return torch.stack(encoder), torch.stack(decoder)


PARTS = [("groups",), ("mask",), ("ties",), ("term",), ("groups", "mask", "ties", "term")]


@pytest.mark.parametrize("parts", PARTS)
def test_groups_mask_ties_and_terms_against_a_dense_reference(parts: tuple[str, ...]) -> None:
    dictionary, x = with_parts(BatchTopK, parts, k=4, aux_k=2, aux_weight=0.25, dead_after_tokens=100), batch()
    dead = torch.arange(F) % 9 == 0
    dictionary.tokens_since_fired[dead] = 100
    dictionary.steps_taken = 10
    encoder, decoder = used_weights(dictionary, parts)
    f = torch.relu(torch.einsum("nmd,lmd->nl", x, encoder) + dictionary.encoder_bias)
    score = f.detach() * decoder.detach().norm(dim=-1).sum(dim=1)
    kept, theta = torch.zeros_like(score), []
    for group, k in ((slice(0, 12), 1), (slice(12, F), 3)) if "groups" in parts else ((slice(0, F), 4),):
        theta.append(score[:, group].flatten().sort(descending=True).values[N * k - 1])
        kept[:, group] = (score[:, group] >= theta[-1]).double()
    error = x - torch.einsum("nl,lmd->nmd", f * kept, decoder) - dictionary.decoder_bias
    chosen = torch.zeros_like(score).scatter_(1, torch.where(dead, score, -1.0).topk(2).indices, 1.0)
    residual = error.detach()
    auxiliary = (residual - torch.einsum("nl,lmd->nmd", f * chosen, decoder)).pow(2).sum()
    auxiliary = auxiliary / (residual - residual.mean(dim=0)).pow(2).sum()
    term = (error[:, 1] - error[:, 0]).pow(2).sum(dim=1).mean() + (f * kept).sum() / N
    expected = error.pow(2).sum(dim=(1, 2)).mean() + 0.25 * auxiliary + (0.7 * term if "term" in parts else 0)
    expected_gradients = gradients(dictionary, expected)

    result = dictionary.step(x)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for name, gradient in gradients(dictionary, result.loss).items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-9, atol=1e-12), name
    assert float(result.metrics["l0"]) == 4
    names = ["threshold_own", "threshold_shared"] if "groups" in parts else ["threshold"]
    assert [float(result.metrics[name]) for name in names] == pytest.approx([float(t) for t in theta], rel=1e-12)
    assert ("gap" in result.metrics) == ("term" in parts)
    if "term" in parts:
        assert float(result.metrics["gap"]) == pytest.approx(term.item(), rel=1e-12)


@pytest.mark.parametrize("parts", PARTS)
def test_what_is_used_in_training_is_what_is_published(parts: tuple[str, ...]) -> None:
    dictionary, x = with_parts(BatchTopK, parts, k=4), batch()
    dictionary.step(batch(1))
    encoder, decoder = used_weights(dictionary, parts)
    f = torch.relu(torch.einsum("nmd,lmd->nl", x, encoder) + dictionary.encoder_bias)
    theta = dictionary.theta()[[0] * 12 + [len(dictionary.groups) - 1] * (F - 12)]
    kept = f * (f * decoder.norm(dim=-1).sum(dim=1) > theta)
    error = x - torch.einsum("nl,lmd->nmd", kept, decoder) - dictionary.decoder_bias
    metrics = dictionary.evaluate(x)
    spread = (x - x.mean(dim=0)).pow(2).sum(dim=(0, 2))
    assert float(metrics["fve_chat"]) == pytest.approx(1 - (error.pow(2).sum(dim=(0, 2)) / spread)[1].item(), rel=1e-9)
    crosscoder = Crosscoder.from_training(dictionary)
    assert torch.allclose(crosscoder.encode(x).to_dense(F).double(), kept, atol=1e-5)
    assert torch.allclose(crosscoder(x).double(), x - error, atol=1e-4)


def test_without_them_the_parameters_themselves_are_used() -> None:
    dictionary = make("batchtopk")
    assert dictionary.encoder() is dictionary.encoder_weight and dictionary.decoder() is dictionary.decoder_weight
    assert dictionary.groups == (LatentGroup("all", 0, F, 4),)


@pytest.mark.parametrize("sparse_below", [0.0, 2.0])
def test_l1_with_mask_ties_and_terms(sparse_below: float) -> None:
    parts = ("mask", "ties", "term")
    dictionary, x = with_parts(L1, parts, mu=0.1), batch()
    dictionary.sparse_below = sparse_below
    encoder, decoder = used_weights(dictionary, parts)
    f = torch.relu(torch.einsum("nmd,lmd->nl", x, encoder) + dictionary.encoder_bias)
    error = x - torch.einsum("nl,lmd->nmd", f, decoder) - dictionary.decoder_bias
    term = (error[:, 1] - error[:, 0]).pow(2).sum(dim=1).mean() + f.sum() / N
    penalty = (f * decoder.norm(dim=-1).sum(dim=1)).sum(1).mean()
    expected = 0.5 * error.pow(2).sum(dim=(1, 2)).mean() + 0.1 * penalty + 0.7 * term
    expected_gradients = gradients(dictionary, expected)
    result = dictionary.step(x)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert float(result.metrics["l0"]) == pytest.approx(float((f > 0).sum() / N))
    for name, gradient in gradients(dictionary, result.loss).items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-9, atol=1e-12), name


def test_norms_with_their_gradient_in_that_of_the_weight_are_torchs() -> None:
    weight, seed = torch.randn(5, 2, 3).double(), torch.randn(5, 2, 3).double()
    weight[2, 1] = 0  # a row without a direction
    by = torch.randn(5, 2).double()
    one, other = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    whole, norms = _WithNorms.apply(one)
    torch.autograd.backward([whole, norms], [seed.clone(), by])
    torch.autograd.backward([other * 1, other.norm(dim=-1)], [seed, by])
    assert torch.equal(norms, weight.norm(dim=-1))
    assert torch.allclose(one.grad, other.grad, rtol=1e-12)


def test_groups_must_cover_the_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchTopK, "latent_groups", lambda _: (LatentGroup("a", 0, 5, 1), LatentGroup("b", 6, F, 3)))
    with pytest.raises(TunediffError, match=rf"must follow one another from 0 to dict_size {F}"):
        make("batchtopk")
