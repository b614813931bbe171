"""Which keys each config value moves."""

import copy
from pathlib import Path

import yaml

from tunediff.config.check import check, load_schema
from tunediff.pipeline.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = load_schema(ROOT / "workflow/schemas/config.schema.yaml")
DEMO = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def keys_with(*changes: tuple[str, object]) -> dict[str, str]:
    config = copy.deepcopy(DEMO)
    for path, value in changes:
        *parents, last = path.split(".")
        node = config
        for step in parents:
            node = node.setdefault(step, {})
        node[last] = value
    return Plan(check(config, SCHEMA), ROOT / "workflow/scripts", ROOT / "resources/demo-pair").keys


def moved(*changes: tuple[str, object]) -> set[str]:
    """Top-level folders (and files) whose keys the changes move."""
    before, after = keys_with(), keys_with(*changes)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_style_moves_figures_only() -> None:
    names = moved(("figures.font_size", 9))
    before = keys_with()
    drawn = {name for name in before if name.startswith(("figures/", "tables/"))}
    assert names == drawn | {"summary", "nulls/summary"}
    assert names >= {"figures/fig4", "figures/twins", "figures/cosine", "tables/published", "tables/seeds"}


def test_k_moves_one_crosscoder_and_what_reads_it() -> None:
    names = moved(("crosscoders.batchtopk.k", 21))
    assert {"crosscoders/batchtopk-seed0", "latents/batchtopk-seed0", "causal/kl", "figures/fig4"} <= names
    assert not any(name.startswith(("models", "tokens", "activations")) for name in names)
    assert "crosscoders/l1-seed0" not in names and "latents/l1-seed0" not in names


def test_seed_moves_all_but_nothing_before_it() -> None:
    names = moved(("seed", 1))
    assert {"tokens/train", "activations/train/part-000", "crosscoders/l1-seed0", "figures/fig2"} <= names
    assert "hooks" not in names and "models" not in names


def test_layer_spares_models_and_tokens() -> None:
    names = moved(("models.layer", 2))
    assert "activations/train/part-000" in names
    assert not any(name.startswith(("models", "tokens")) for name in names)


def test_machine_settings_move_nothing() -> None:
    assert not moved(
        ("models.device", "cpu"),
        ("training.checkpoint_every", 7),
        ("activations.batch_tokens", 4096),
        ("causal.batch_size", 3),
        ("results", "elsewhere"),
    )


def test_more_conversations_spare_training() -> None:
    names = moved(("conversations.count", 100))
    assert names >= {"tokens/conversations", "causal/kl", "figures/fig4"}
    assert not any(name.startswith(("activations", "crosscoders", "latents")) for name in names)


def test_a_further_seed_adds_its_own_work_and_the_comparison() -> None:
    before, after = keys_with(("training.seeds", [0])), keys_with(("training.seeds", [0, 1, 2]))
    added = after.keys() - before.keys()
    stages = ("crosscoders", "latents", "evaluation")
    of_pairs = [f"{pair}{stage}" for pair in ("", *(f"nulls/{null}/" for null in DEMO["nulls"])) for stage in stages]
    of_pairs.append("twins")
    assert added == {f"{stage}/{kind}-seed{n}" for stage in of_pairs for kind in ("l1", "batchtopk") for n in (1, 2)}
    changed = {name for name in before if before[name] != after[name]}
    assert {"seeds/matches", "tables/seeds", "causal/kl"} <= changed
    assert not any(name.startswith(tuple(of_pairs)) for name in changed)


def test_a_null_shares_the_tokens_and_nothing_else() -> None:
    names = moved(("nulls.same", {"base": "demo-base", "chat": "demo-base"}))
    assert names >= {"nulls/same/models", "nulls/same/activations/train/part-000", "nulls/same/crosscoders/l1-seed0"}
    assert all(name.startswith("nulls/same/") or name == "nulls/summary" for name in names)
    names = moved(("models.layer", 2))
    assert names >= {"nulls/continued/hooks", "nulls/continued/latents/l1-seed0", "nulls/summary"}
    assert "nulls/continued/models" not in names


def test_twins_depend_on_their_own_crosscoder() -> None:
    names = moved(("crosscoders.batchtopk.k", 21))
    assert {"twins/batchtopk-seed0", "figures/twins", "tables/published", "seeds/matches"} <= names
    assert "twins/l1-seed0" not in names
    assert not any(name.startswith(("twins", "seeds")) for name in moved(("conversations.count", 100)))


def test_published_crosscoders_alone_have_every_figure_but_those_of_training() -> None:
    config = copy.deepcopy(DEMO)
    del config["training"], config["nulls"]
    config["crosscoders"] = {"l1": {"kind": "published", "path": "some/id", "layout": "dictionary_learning"}}
    plan = Plan(check(config, SCHEMA), ROOT / "workflow/scripts", ROOT / "resources/demo-pair")
    missing = keys_with().keys() - plan.keys.keys()
    assert {"figures/training", "tables/seeds", "seeds/matches"} <= missing
    assert not any(name.startswith(("figures/", "tables/")) for name in missing - {"figures/training", "tables/seeds"})
    assert "twins/l1" in plan.keys and plan.trained_seeds == {}


def test_parts_cover_the_budget_and_seeds_multiply_dictionaries() -> None:
    config = check({**DEMO, "training": {**DEMO["training"], "seeds": [0, 1]}}, SCHEMA)
    plan = Plan(config, ROOT / "workflow/scripts", ROOT / "resources/demo-pair")
    assert plan.n_parts("train") == 524288 // 131072
    own = [name for name in plan.keys if not name.startswith("nulls/")]
    assert plan.n_jobs == len(own) < len(plan.keys)
    assert list(plan.dictionaries) == ["l1-seed0", "batchtopk-seed0", "l1-seed1", "batchtopk-seed1"]
    assert plan.trained_seeds == {
        "l1": {0: "l1-seed0", 1: "l1-seed1"},
        "batchtopk": {0: "batchtopk-seed0", 1: "batchtopk-seed1"},
    }
