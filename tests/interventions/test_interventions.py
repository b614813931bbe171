"""The registry of interventions: what its entries refer to is there, and what a dictionary supports."""

import subprocess
import sys

import pytest

from tunediff.config.settings import CausalSettings
from tunediff.errors import TunediffError
from tunediff.interventions import registry
from tunediff.interventions.registry import CROSSCODER, INTERVENTIONS, RANKINGS, Capabilities, Intervention, Ranking
from tunediff.report.figures import fig4, fig4b

OF_DIFFERENCE = Capabilities("difference", has_norm_taxonomy=False)


def test_the_registry_does_without_torch() -> None:
    code = "import sys, tunediff.interventions.registry; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_entries_refer_to_entries() -> None:
    for name, each in INTERVENTIONS.items():
        assert each.name == name and each.label
        assert {each.partner, each.control, each.shares or None} <= {None, *INTERVENTIONS}
        assert (each.partner is None) == (each.difference is None)
        assert (each.needs == "latents") == (each.choose is not None) ^ bool(each.shares)
        assert each.ranking in ("", *RANKINGS)
        if each.control is not None:
            assert list(INTERVENTIONS).index(name) < list(INTERVENTIONS).index(each.control)
        if each.shares:
            assert INTERVENTIONS[each.shares].choose is not None
        if each.partner is not None and each.ranking:
            assert INTERVENTIONS[each.partner].ranking == each.ranking
    assert len({each.label for each in INTERVENTIONS.values()}) == len(INTERVENTIONS)  # tables find them by label
    assert set(fig4.LOOKS) <= set(fig4.bars()) and set(fig4b.LOOKS) <= set(RANKINGS)


@pytest.mark.parametrize("entry", [Ranking("energy", "", "", ""), Intervention("all", "", registry._add)])
def test_a_name_is_there_once(entry: Ranking | Intervention) -> None:
    with pytest.raises(TunediffError, match=f"two entries are named '{entry.name}'"):
        registry._by_name(entry, entry)


def test_dictionaries_run_what_they_support() -> None:
    causal = CausalSettings()
    names = {of: [each.name for each in registry.interventions(causal, of)] for of in (None, CROSSCODER, OF_DIFFERENCE)}
    assert names[None] == ["none", "template", "chat"]
    assert names[CROSSCODER][:4] == ["all", "error", "norm_difference_best", "norm_difference_best_additive"]
    assert {each.ranking for each in INTERVENTIONS.values() if each.name in names[CROSSCODER]} == {
        *("", "norm_difference", "latent_scaling", "energy"),
    }
    assert names[OF_DIFFERENCE] == [
        *("all", "error", "nu_activation_best", "nu_activation_worst"),
        *("nu_activation_best_matched", "nu_activation_worst_matched", "energy_best", "energy_worst"),
        *("reversed", "matched_random", "prefix"),
    ]
    assert list(registry.rankings(OF_DIFFERENCE)) == ["nu_activation", "energy"]


def test_settings_switch_interventions_on_and_off() -> None:
    plain, other = CausalSettings(), CausalSettings(include_bias=True, random_sets=1)
    changed = {each.name for each in registry.interventions(plain, CROSSCODER)} ^ {
        each.name for each in registry.interventions(other, CROSSCODER)
    }
    assert changed == {"all_with_bias"}
    assert registry.count(plain, None) == 3
    # All, Error, four halves and their additive ones, four matched, two by energy, reversed; draws; curves
    assert registry.count(plain, CROSSCODER) == 2 + 8 + 4 + 2 + 1 + 3 * 5 + 6 * 6
    assert registry.count(other, OF_DIFFERENCE) == 2 + 1 + 2 + 2 + 2 + 1 + 2 * 1 + 6 * 5
