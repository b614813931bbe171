"""Energies, halves, matched sets and curves against dense computations and brute force."""

from itertools import permutations

import numpy as np
import pytest
import torch

from causal_fixtures import REVERSED, F, latent_table
from tunediff.config.settings import CausalSettings
from tunediff.dictionaries.sparse import above_threshold
from tunediff.errors import TunediffError
from tunediff.interventions.registry import CROSSCODER, Capabilities
from tunediff.interventions.sets import (
    EditEnergy,
    effective_size,
    latent_sets,
    match_energies,
    rank_latents,
)

SILENT = 5  # a live latent that does not fire on response tokens
SETTINGS = CausalSettings(random_sets=4, random_orders=2, curve_energies=(0.05, 0.1, 0.4, 0.7, 0.7001))


@pytest.fixture(scope="module")
def dense():
    """Activations (token, latent) and decoder differences (latent, d_model), latents of very different energy."""
    g = torch.Generator().manual_seed(0)
    f = torch.randn(60, F, generator=g).clamp(min=0)
    f[:, SILENT] = 0
    return f.double(), torch.randn(F, 7, generator=g).double() * torch.logspace(-0.8, 0.8, F, dtype=torch.float64)[
        :, None
    ]


@pytest.fixture(scope="module")
def energy(dense):
    f, difference = dense
    return EditEnergy(above_threshold(f.float()), difference.float())


def brute(dense, latents):
    f, difference = dense
    latents = list(latents)
    return float((f[:, latents] @ difference[latents]).square().sum())


def of(chosen, intervention, ranking=None):
    return [s for s in chosen.members if s.intervention == intervention and ranking in (None, s.ranking)]


def make(energy, n=9, table=None, settings=SETTINGS):
    return latent_sets(table or latent_table(), energy, n, "a test", settings, CROSSCODER)


def test_energies_against_a_dense_computation(dense, energy):
    for j in range(F):
        assert energy.single[j] == pytest.approx(brute(dense, [j]), rel=1e-5)
    order = np.random.default_rng(0).permutation(F)
    grown = energy.grow(order)
    assert grown.latents.tolist() == order.tolist()
    np.testing.assert_allclose(grown.energy, [brute(dense, order[: i + 1]) for i in range(F)], rtol=1e-5)
    assert energy.joint(range(F)) == pytest.approx(brute(dense, range(F)), rel=1e-5)
    assert energy.joint([]) == 0


def test_without_limits_growing_reads_its_numbers_once(energy, monkeypatch):
    def read(tensor):
        raise AssertionError("a number was read from the device")

    monkeypatch.setattr(torch.Tensor, "__float__", read)
    assert len(energy.grow(range(F)).energy) == F
    with pytest.raises(AssertionError, match="was read"):
        energy.grow(range(F), most=1.0)


def test_growing_skips_what_exceeds_the_limit_and_stops_when_there_is_enough(dense, energy):
    order = np.random.default_rng(1).permutation(F)
    least, most = 0.28 * brute(dense, range(F)), 0.3 * brute(dense, range(F))
    kept, skipped = [], 0
    for j in order:
        if brute(dense, kept) >= least:
            break
        if brute(dense, [*kept, j]) <= most:
            kept.append(int(j))
        else:
            skipped += 1
    grown = energy.grow(order, most, least)
    assert grown.latents.tolist() == kept and skipped
    assert least <= grown.energy[-1] <= most


def test_every_set_states_its_energy(dense, energy):
    chosen = make(energy)
    assert chosen.energy == pytest.approx(brute(dense, range(F)), rel=1e-5)
    assert len(chosen.members) > 25
    for s in chosen.members:
        assert s.energy == pytest.approx(brute(dense, s.latents), rel=1e-5), s.intervention
    described = chosen.describe()
    assert described["size"] == 9 and described["latents"] == chosen.effective.tolist()
    for written, s in zip(described["sets"], chosen.members, strict=True):
        assert written["energy_share"] == pytest.approx(s.energy / chosen.energy)
        assert written["n_latents"] == len(s.latents)
        assert ("latents" in written) == (s.intervention != "prefix")


def test_halves_follow_their_rankings_and_hold_no_reversed_latent(energy):
    table = latent_table()
    chosen = make(energy)
    live = table.frame[~table.frame["dead"]].sort_values("norm_difference", ascending=False)
    usable = live[~live["reversed"]]
    assert chosen.effective.tolist() == usable["latent"].tolist()[:9]
    frame = usable.iloc[:9].assign(energy=lambda t: energy.single[t["latent"]])
    orders = {
        "norm_difference": frame,
        "latent_scaling": frame.sort_values("rank_sum", na_position="last", kind="stable"),
        "energy": frame.sort_values("energy", ascending=False),
    }
    for ranking, ordered in orders.items():
        for half, expected in (("best", ordered[:4]), ("worst", ordered[-4:])):
            (found,) = of(chosen, f"{ranking}_{half}")
            assert found.latents.tolist() == expected["latent"].tolist() and found.ranking == ranking
    (lost,) = of(chosen, "reversed")
    assert sorted(lost.latents) == sorted(set(live["latent"][:9]) & set(REVERSED)) != []
    for s in chosen.members:
        assert s.intervention in ("reversed", "prefix") or not set(s.latents) & {*REVERSED, F - 1}
    assert not of(make(energy, table=latent_table(reversed_latents=())), "reversed")


def test_the_set_is_named_as_what_it_is(energy):
    frame = latent_table().frame
    chosen = make(energy)
    n = (frame["class_name"][chosen.effective] == "chat-only").sum()
    assert chosen.name == (
        f"the 9 live latents of highest norm difference that are not reversed ({n} of them chat-only)"
    )
    plain = make(energy, table=latent_table(0, ()))
    assert plain.name == "the 9 live latents of highest norm difference (0 of them chat-only)"
    assert plain.rule.startswith(plain.name) and "a test" in plain.rule


def test_matched_halves_are_the_best_assignment():
    g = np.random.default_rng(4)
    for _ in range(20):
        single = np.exp(g.normal(0, 0.5, 10))
        single[2] = 0  # fires nowhere
        best, worst = np.arange(5), np.arange(5, 10)
        options = []
        for order in permutations(worst):
            near = [abs(np.log(single[i] / single[j])) for i, j in zip(best, order, strict=True) if single[i] > 0]
            near = [d for d in near if d <= np.log(1.5)]
            options.append((-len(near), sum(near)))
        pairs = match_energies(best, worst, single)
        i, j = pairs.nonzero()
        assert not pairs[2].any() and len(set(i)) == len(i) and len(set(j)) == len(j)
        found = np.abs(np.log(single[best[i]] / single[worst[j]]))
        assert (-len(i), found.sum()) == (min(options)[0], pytest.approx(min(options)[1]))


def test_matched_halves_are_subsets_of_the_halves(energy):
    chosen = make(energy, n=14)
    for ranking in ("norm_difference", "latent_scaling"):
        sets = {s.intervention.removeprefix(ranking): s for s in chosen.members if s.ranking == ranking}
        best, worst = sets["_best_matched"].latents, sets["_worst_matched"].latents
        assert len(best) == len(worst) > 0
        assert set(best) <= set(sets["_best"].latents) and set(worst) <= set(sets["_worst"].latents)
        ratio = np.sort(energy.single[best]) / np.sort(
            energy.single[worst]
        )  # sorted pairs are no worse than optimal ones
        assert (np.abs(np.log(ratio)) <= np.log(1.5)).all()
        assert f"{len(best)} pairs" in sets["_best_matched"].rule


def test_halves_without_energies_in_common_are_left_out_and_it_is_said(dense):
    f, difference = (tensor.clone() for tensor in dense)
    table = latent_table()
    order = rank_latents(table.frame, np.ones(F), CROSSCODER)["norm_difference"]
    difference[order[:6]] *= 1e3
    chosen = make(EditEnergy(above_threshold(f.float()), difference.float()), table=table)
    assert not of(chosen, "norm_difference_best_matched") and not of(chosen, "norm_difference_worst_matched")
    assert any("no energy-matched halves: 0 pairs by norm_difference" in note for note in chosen.notes)


def test_random_controls_have_the_energy_of_the_best_half(energy):
    chosen = make(energy, n=6)
    outside = set(range(F - 1)) - set(chosen.effective) - {*REVERSED, SILENT}
    reached = 0
    for ranking in ("norm_difference", "latent_scaling", "energy"):
        (best,) = of(chosen, f"{ranking}_best")
        draws = of(chosen, "matched_random", ranking)
        assert [s.draw for s in draws] == list(range(4))
        assert len({tuple(sorted(s.latents)) for s in draws}) > 1
        for s in draws:
            assert set(s.latents) <= outside
            short = any(f"draw {s.draw} of random" in note and f"by {ranking}" in note for note in chosen.notes)
            assert short == (not 0.98 <= s.energy / best.energy <= 1.02)
            reached += not short
    assert reached >= 6
    assert [s.latents.tolist() for s in make(energy, n=6).members] == [s.latents.tolist() for s in chosen.members]


def test_a_best_half_of_more_energy_than_the_whole_outside(dense):
    f, difference = (tensor.clone() for tensor in dense)
    table = latent_table()
    order = rank_latents(table.frame, np.ones(F), CROSSCODER)["norm_difference"]
    difference[order[:6]] *= 1e3
    chosen = make(EditEnergy(above_threshold(f.float()), difference.float()), table=table)
    outside = set(range(F - 1)) - set(chosen.effective) - {*REVERSED, SILENT}
    draws = of(chosen, "matched_random", "norm_difference")
    assert len(draws) == 4 and all(set(s.latents) == outside for s in draws)
    assert sum("best half by norm_difference: it reaches 0 % of it" in note for note in chosen.notes) == 4


def test_no_energy_anywhere_leaves_out_controls_and_curves(dense):
    f, difference = dense
    chosen = make(EditEnergy(above_threshold(torch.zeros_like(f).float()), difference.float()))
    assert chosen.energy == 0 and not of(chosen, "matched_random") and not of(chosen, "prefix")
    assert any("that half has no energy" in note for note in chosen.notes)
    assert {s["energy_share"] for s in chosen.describe()["sets"]} == {None}


def test_curves_against_brute_force(dense, energy):
    frame = latent_table().frame
    orders = rank_latents(frame, energy.single, CROSSCODER)
    live = frame[~frame["dead"]].sort_values("norm_difference", ascending=False)
    assert orders["norm_difference"].tolist() == live["latent"].tolist()
    ranked = live.sort_values("rank_sum", na_position="last", kind="stable")
    assert orders["latent_scaling"].tolist() == ranked["latent"].tolist()
    assert sorted(orders["energy"], key=lambda j: -energy.single[j]) == orders["energy"].tolist()
    chosen, total = make(energy), brute(dense, range(F))
    for ranking, order in orders.items():
        energies = np.array([brute(dense, order[:m]) for m in range(F)])
        wanted = {}
        for point, share in enumerate(SETTINGS.curve_energies, 1):
            size = int(np.abs(energies - share * total).argmin())
            if size and size not in wanted.values():
                wanted[point] = size
        points = of(chosen, "prefix", ranking)
        assert {s.point: len(s.latents) for s in points} == wanted
        assert all(s.latents.tolist() == order[: len(s.latents)].tolist() for s in points)
        assert wanted and 5 not in wanted  # the fourth share again: run once
    random = of(chosen, "prefix", "random")
    assert {s.draw for s in random} == {0, 1}
    longest = [max((s.latents.tolist() for s in random if s.draw == draw), key=len) for draw in (0, 1)]
    assert longest[0] != longest[1] and all(F - 1 not in latents for latents in longest)


def test_size_of_the_effective_set():
    tables = {"l1-seed0": latent_table(9), "topk-seed0": latent_table(2)}
    assert effective_size("topk-seed0", tables, CausalSettings(reference="l1"))[0] == 9
    assert effective_size("topk-seed0", tables, CausalSettings(reference="topk-seed0"))[0] == 2
    assert effective_size("topk-seed0", tables, CausalSettings(set_size=5))[0] == 5
    with pytest.raises(TunediffError, match="no crosscoder 'l2-seed0' among l1-seed0, topk-seed0"):
        effective_size("topk-seed0", tables, CausalSettings(reference="l2"))
    tables["topk-seed0"].frame["norm_difference"] = np.nan
    with pytest.raises(TunediffError, match="'topk-seed0' has no Δnorm"):
        effective_size("l1-seed0", tables, CausalSettings(reference="topk-seed0"))


def test_a_table_without_norms_is_ranked_by_what_it_has(energy):
    table, g = latent_table(), np.random.default_rng(8)
    table.frame[["norm_difference", "rank_sum"]] = np.nan
    table.frame["nu_activation"] = g.normal(0.5, 0.5, F).astype(np.float32)
    table.frame.loc[list(REVERSED), "nu_activation"] = -5.0  # lower than all others
    table.frame.loc[3, "nu_activation"] = np.nan
    chosen = latent_sets(table, energy, 6, "a test", SETTINGS, Capabilities("difference", has_norm_taxonomy=False))
    placed = table.frame[~table.frame["dead"] & ~table.frame["reversed"]].dropna(subset=["nu_activation"])
    order = placed.sort_values("nu_activation")["latent"].tolist()
    assert chosen.effective.tolist() == order[:6]
    assert {s.ranking for s in chosen.members} == {"nu_activation", "energy", "random"}
    assert of(chosen, "nu_activation_best")[0].latents.tolist() == order[:3]
    assert of(chosen, "energy_best")[0].latents.tolist() == sorted(order[:6], key=lambda j: -energy.single[j])[:3]
    assert of(chosen, "matched_random") and not of(chosen, "reversed")
    longest = max((s.latents.tolist() for s in of(chosen, "prefix", "nu_activation")), key=len)
    assert len(longest) > 3 and longest[: len(order)] == order[: len(longest)]
    assert chosen.name == "the 6 live latents of lowest ν^act"
    assert chosen.rule.endswith("first/last 3 by ν^act (0 without it, ranked last) or by edit energy")
