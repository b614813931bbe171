"""Which keys each config value moves, and what is on disk but was made by another config."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from tunediff.config.check import check
from tunediff.pipeline import graph
from tunediff.pipeline.graph import Graph, PlantedGraph

ROOT = Path(__file__).resolve().parents[2]
DEMO = yaml.safe_load((ROOT / "config/config.yaml").read_text())


SHIPPED = ROOT / "resources/demo-pair"


def graph_with(*changes: tuple[str, object]) -> Graph:
    config = copy.deepcopy(DEMO)
    for path, value in changes:
        *parents, last = path.split(".")
        node = config
        for step in parents:
            node = node.setdefault(step, {})
        node[last] = value
    return Graph(check(config), SHIPPED)


def keys_with(*changes: tuple[str, object]) -> dict[str, str]:
    return {path: artifact.key for path, artifact in graph_with(*changes).artifacts.items()}


def moved(*changes: tuple[str, object]) -> set[str]:
    """Top-level folders (and files) whose keys the changes move."""
    before, after = keys_with(), keys_with(*changes)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_style_moves_figures_only() -> None:
    names = moved(("figures.font_size", 9))
    before = keys_with()
    drawn = {name for name in before if name.startswith(("figures/", "tables/"))}
    assert names == drawn | {"nulls/summary", "report"}
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
        ("training.devices", 2),
        ("activations.batch_tokens", 4096),
        ("causal.batch_size", 3),
        ("results", "elsewhere"),
    )


def test_more_conversations_spare_training() -> None:
    names = moved(("conversations.count", 100))
    assert names >= {"tokens/conversations", "causal/kl", "figures/fig4"}
    assert not any(name.startswith(("activations", "crosscoders", "latents")) for name in names)


def test_another_dose_moves_steering_and_what_shows_it() -> None:
    names = moved(("steering.alphas", [3]))
    assert names >= {"steering/steering", "figures/steering", "tables/steering", "summary"}
    assert all(name.startswith(("steering/", "figures/", "tables/", "summary", "report")) for name in names)
    assert "causal/kl" in keys_with() and "steering/steering" in moved(("conversations.count", 100))


def test_a_further_seed_adds_its_own_work_and_the_comparison() -> None:
    before, after = keys_with(("training.seeds", [0])), keys_with(("training.seeds", [0, 1, 2]))
    added = after.keys() - before.keys()
    stages = ("crosscoders", "latents", "evaluation", "examples")
    of_pairs = [f"{pair}{stage}" for pair in ("", *(f"nulls/{null}/" for null in DEMO["nulls"])) for stage in stages]
    of_pairs += ["explanations", "judgements"]
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
    assert {"latents/batchtopk-seed0", "figures/twins", "tables/published", "seeds/matches"} <= names
    assert "latents/l1-seed0" not in names
    assert not any(name.startswith(("latents", "seeds")) for name in moved(("conversations.count", 100)))


def test_published_crosscoders_alone_have_every_figure_but_those_of_training() -> None:
    config = copy.deepcopy(DEMO)
    del config["training"], config["nulls"]
    config["crosscoders"] = {"l1": {"kind": "published", "path": "some/id", "layout": "dictionary_learning"}}
    plan = Graph(check(config), SHIPPED)
    missing = keys_with().keys() - plan.artifacts.keys()
    assert {"figures/training", "tables/seeds", "seeds/matches"} <= missing
    assert not any(name.startswith(("figures/", "tables/")) for name in missing - {"figures/training", "tables/seeds"})
    assert plan.read_by(["twins"]) == {"twins": ["latents/l1"]} and plan.trained_seeds == {}


def test_parts_cover_the_budget_and_seeds_multiply_dictionaries() -> None:
    config = check({**DEMO, "training": {**DEMO["training"], "seeds": [0, 1]}})
    plan = Graph(config, SHIPPED)
    assert plan.parts("train") == [f"activations/train/part-{i:03d}" for i in range(524288 // 131072)]
    own = [name for name in plan.artifacts if not name.startswith("nulls/")]
    parts = [name for name in own if name.startswith("activations/")]
    assert plan.n_jobs == len(own) - len(parts) + 1 < len(plan.artifacts)  # one job makes all parts
    assert plan.harvested("") == {f"results/{name}.zarr": plan.artifacts[name].key for name in parts}
    assert list(plan.dictionaries) == ["l1-seed0", "batchtopk-seed0", "l1-seed1", "batchtopk-seed1"]
    assert plan.trained_seeds == {
        "l1": {0: "l1-seed0", 1: "l1-seed1"},
        "batchtopk": {0: "batchtopk-seed0", 1: "batchtopk-seed1"},
    }


def test_the_order_of_crosscoders_moves_nothing() -> None:
    turned = dict(reversed(DEMO["crosscoders"].items()))
    assert list(turned) != list(DEMO["crosscoders"])
    one, other = graph_with(), graph_with(("crosscoders", turned))
    assert list(one.artifacts.values()) == list(other.artifacts.values())


def test_the_demo_moves_its_own_keys_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real = yaml.safe_load((ROOT / "config/gemma2-2b.yaml").read_text())

    def keys_of(config: dict) -> dict[str, str]:
        built = Graph(check(copy.deepcopy(config)), SHIPPED)
        return {path: artifact.key for path, artifact in built.artifacts.items()}

    before = keys_of(real), keys_of(DEMO)
    monkeypatch.setattr(graph, "DEMO_VERSION", graph.DEMO_VERSION + 1)
    after = keys_of(real), keys_of(DEMO)
    assert after[0] == before[0]
    assert {path for path in before[1] if before[1][path] == after[1][path]} == set()


def test_another_kind_moves_no_trained_crosscoder() -> None:
    more = {"kind": "batchtopk", "dict_size": 64, "k": 4}
    moved_names = moved(("crosscoders.another", more))
    assert {"crosscoders/another-seed0", "causal/kl"} <= moved_names
    assert not any(name in moved_names for name in ("crosscoders/l1-seed0", "latents/batchtopk-seed0"))


def test_a_stage_of_a_higher_version_moves_itself_and_what_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_with()
    raised = graph.STAGES["latents"]._replace(version=99)
    monkeypatch.setitem(graph.STAGES, "latents", raised)
    after = keys_with()
    names = {name for name in before if before[name] != after[name]}
    assert {"latents/l1-seed0", "causal/kl", "figures/fig2", "summary"} <= names
    assert not any(name.startswith(("crosscoders", "activations")) for name in names)


def test_what_another_config_made_is_found_by_its_key(tmp_path: Path) -> None:
    one = graph_with(("results", str(tmp_path)))
    for path, artifact in one.artifacts.items():
        file = tmp_path / f"{path}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"key": artifact.key}))
    again = graph_with(("results", str(tmp_path)))
    # the counts of the nulls are on disk now, and these print them
    own, others = again.on_disk()
    assert others == {"tables/table1", "summary", "report"} and own == again.artifacts.keys() - others
    other = graph_with(("results", str(tmp_path)), ("crosscoders.batchtopk.k", 21))
    own, others = other.on_disk()
    assert {"crosscoders/batchtopk-seed0", "latents/batchtopk-seed0", "causal/kl"} <= others
    assert {"crosscoders/l1-seed0", "tokens/train", "evaluation/l1-seed0"} <= own
    (tmp_path / "causal/kl.json").unlink()
    assert "causal/kl" not in other.on_disk()[1] | other.on_disk()[0]


def test_a_store_without_a_readable_manifest_is_made_again(tmp_path: Path) -> None:
    one = graph_with(("results", str(tmp_path)))
    for path in ("figures/fig4", "crosscoders/l1-seed0", "hooks"):
        store = Path(one.store(path))
        store.parent.mkdir(parents=True, exist_ok=True)
        store.mkdir() if path.startswith("crosscoders") else store.write_text("damaged")
    assert one.on_disk() == (frozenset(), {"figures/fig4", "crosscoders/l1-seed0", "hooks"})
    (tmp_path / "figures/fig4.json").write_text(json.dumps({"key": one.artifacts["figures/fig4"].key}))
    assert one.on_disk() == ({"figures/fig4"}, {"crosscoders/l1-seed0", "hooks"})


def test_jobs_get_stores_manifests_and_keys() -> None:
    built = graph_with()
    stores, manifests = built.inputs("latents/l1-seed0")
    assert stores["crosscoder"] == ["results/crosscoders/l1-seed0"]
    assert stores["train"] == [f"results/activations/train/part-{i:03d}.zarr" for i in range(4)]
    assert set(manifests) == {path.removesuffix(".zarr") + ".json" for paths in stores.values() for path in paths}
    expected = built.expected("latents/l1-seed0")
    assert expected["own"] == built.artifacts["latents/l1-seed0"].key
    assert expected["results/crosscoders/l1-seed0"] == built.artifacts["crosscoders/l1-seed0"].key
    assert built.inputs("figures/fig4")[0]["sets"] == ["results/causal/kl.sets.json"]


def test_planted_pairs_train_dictionaries_of_their_arm() -> None:
    config = check(yaml.safe_load((ROOT / "config/planted.yaml").read_text()))
    built = PlantedGraph(config, SHIPPED)
    size = config["crosscoders"]["l1"]["dict_size"]
    assert built.training("fourfold/seed5/", "l1-seed5") == ({**config["crosscoders"]["l1"], "dict_size": 4 * size}, 5)
    stages = [artifact.stage for artifact in built.artifacts.values()]
    assert {name: stages.count(name) for name in ("train", "latents", "scores")} == {
        "train": 50,
        "latents": 50,
        "scores": 25,
    }
    assert {"figures/planted", "tables/planted"} <= built.artifacts.keys()
    assert not any(path.startswith("figures/fig") for path in built.artifacts)


def local(path: Path, column: str) -> dict:
    return {"from": "local", "path": str(path), "column": column}


def test_a_token_source_may_be_named_as_anything_else(tmp_path: Path) -> None:
    """The files of a source move the tokens, also where it is named like another section that names files."""
    for name in ("conversations", "source", "tokens"):
        files = {part: tmp_path / f"{name}-{part}.jsonl" for part in ("texts", "requests")}
        for path in files.values():
            path.write_text('{"text": "a b c"}\n')
        changes = (
            ("tokens.sources", {name: local(files["texts"], "text")}),
            ("tokens.budgets", {"train": {name: 65_536}, "validation": {name: 65_536}}),
            ("conversations.source", local(files["requests"], "text")),
        )
        before = keys_with(*changes)
        files["texts"].write_text('{"text": "a b d"}\n')
        tokens = keys_with(*changes)
        assert tokens["tokens/train"] != before["tokens/train"]
        assert tokens["tokens/conversations"] == before["tokens/conversations"]
        files["requests"].write_text('{"text": "a b e"}\n')
        asked = keys_with(*changes)
        assert asked["tokens/train"] == tokens["tokens/train"]
        assert asked["tokens/conversations"] != tokens["tokens/conversations"]


def files_of(made: Graph) -> list[str]:
    suffixes = {path: [s.rstrip("/") for s in graph.STAGES[of.stage].suffixes] for path, of in made.artifacts.items()}
    return [f"{path}{suffix}" for path, several in suffixes.items() for suffix in (*several, ".json")]


def test_no_name_that_a_config_may_give_is_that_of_another_file() -> None:
    """Every word in a path of a run, tried as the name of a crosscoder, a null and an arm."""
    words = {w for path in files_of(graph_with()) for part in path.split("/") for w in part.split("-")[0].split(".")}
    words = {w for w in words if w.isidentifier() and w.islower()} | {"trained", "random"}
    published = {f"{word}": {"kind": "published", "path": "some/one"} for word in words}
    trained = {f"x_{word}" if word in published else word: {"kind": "l1"} for word in words}
    pair = {"base": "demo-chat", "chat": "demo-chat"}
    made = graph_with(
        ("crosscoders", {**published, **trained}),
        ("causal.reference", "x_l1"),
        ("nulls", {word: pair for word in words - {"summary"}}),
    )
    planted = yaml.safe_load((ROOT / "config/planted.yaml").read_text())
    arm = next(iter(planted["planted"]["arms"].values()))
    planted["planted"]["arms"] = {word: arm for word in words}
    for each in (made, PlantedGraph(check(planted), SHIPPED)):
        found = files_of(each)
        assert len(set(found)) == len(found)
        stores = set(each.artifacts)
        inside = {str(above) for path in stores for above in Path(path).parents} & stores
        assert not inside
