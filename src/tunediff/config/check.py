"""Reads and checks a config before anything else happens: one line per mistake, naming the key and the remedy.

The schema made from the settings checks keys, types and ranges; `tunediff.config.derive` fills in what follows from the
models and files; a section's own class checks what its values say together. What is left stands here: relations
between sections, and files that must exist.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonschema import Draft202012Validator

from tunediff.config.derive import DEFAULT_CROSSCODERS, derive
from tunediff.config.dictionaries import CrosscoderSettings, kind_of, trained
from tunediff.config.fields import BadSetting, Settings, wanted
from tunediff.config.planted import PlantedArm
from tunediff.config.schema import schema
from tunediff.config.settings import ConversationSettings, HarvestSettings
from tunediff.demo import DEMO_MODELS
from tunediff.errors import TunediffError

SHIPPED_PAIR = Path("resources/demo-pair")  # runs start in the checkout


def load(path: Path) -> dict[str, Any]:
    """Read a config file (YAML), check it and fill in defaults."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TunediffError(f"config: {path} does not exist; give --configfile the path of a config") from error
    except yaml.YAMLError as error:
        raise TunediffError(f"config: {path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise TunediffError(f"config: {path} must hold a mapping of keys; see config/README.md")
    return check(raw)


class Checked(NamedTuple):
    """A config in which every key has a value."""

    config: dict[str, Any]
    derived: dict[str, Any]  # by dotted key: the values that were neither written nor defaults


def check(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with all values filled in; see `complete`."""
    return complete(raw).config


def complete(raw: Mapping[str, Any], shipped: Path = SHIPPED_PAIR, fetch: bool = True) -> Checked:
    """Return the config with defaults and derived values filled in, and which these are.

    `shipped` is the folder of the demo's pair; without `fetch` the hub is not asked for a model's config.json.

    Raises
    ------
    TunediffError
        The first mistake, in one line: the key, what is wrong, what to write instead.
    """
    config = {"crosscoders": DEFAULT_CROSSCODERS, **raw}
    config = json.loads(json.dumps(config))  # a deep copy of plain values
    concrete = _concrete(schema(), config)
    errors = sorted(Draft202012Validator(concrete).iter_errors(config), key=lambda e: list(map(str, e.absolute_path)))
    if errors:
        raise TunediffError(_explain(errors[0]))
    if "planted" in config:
        unread = [name for name in ("models", "tokens", "conversations", "nulls") if raw.get(name)]
        _require(not unread, f"`{', '.join(unread)}` has no effect beside `planted`; remove it, or `planted`")
    else:
        _check_inputs(config)
    derived = derive(config, shipped, fetch)
    _make(HarvestSettings, config["activations"], "activations")
    relations = _check_planted if "planted" in config else _check_relations
    relations(config)
    _check_crosscoders(config)
    return Checked(config, derived)


def _concrete(part: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """Resolve references and choices for this value and fill in its defaults, so that errors name one place."""
    node = dict(part)
    if "$ref" in node:
        node = {**schema()["$defs"][node.pop("$ref").rsplit("/", 1)[-1]], **node}
    if "oneOf" in node:
        branches = [_concrete(branch, None) for branch in node["oneOf"]]
        tag = node["required"][0]
        names = [branch["properties"][tag]["const"] for branch in branches]
        chosen = value.get(tag) if isinstance(value, dict) else None
        node.pop("oneOf")
        if chosen in names:
            node = {**branches[names.index(chosen)], "description": node.get("description", "")}
        else:
            node["properties"] = {tag: {"enum": names}}
    if isinstance(value, dict) and "anyOf" in node:
        options = [_concrete(option, None) for option in node["anyOf"]]
        mapping = next((option for option in options if option.get("type") == "object"), None)
        if mapping:
            del node["anyOf"]
            node |= mapping
    if isinstance(value, dict):
        properties = dict(node.get("properties", {}))
        for name, sub in properties.items():
            if name not in value and "default" in sub:
                value[name] = json.loads(json.dumps(sub["default"]))
        node["properties"] = {
            name: _concrete(sub, value[name]) if name in value else sub for name, sub in properties.items()
        }
        extra = node.get("additionalProperties")
        if isinstance(extra, dict):
            node["properties"] |= {n: _concrete(extra, v) for n, v in value.items() if n not in properties}
    return node


def _explain(error: Any) -> str:
    key = ".".join(str(step) for step in error.absolute_path)
    part = error.schema
    where = f"config: `{key}`" if key else "config:"
    meaning = f" ({part['description'].rstrip('.')})" if isinstance(part, dict) and part.get("description") else ""
    kind, value = error.validator, error.instance
    if kind == "additionalProperties":
        known = sorted(part.get("properties", {}))
        unknown = next(name for name in value if name not in known)
        close = difflib.get_close_matches(unknown, known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(known)}"
        return f"config: unknown key `{key + '.' if key else ''}{unknown}`; {hint}"
    if kind == "required":
        missing = next(name for name in error.validator_value if name not in value)
        about = part.get("properties", {}).get(missing, {}).get("description", "see config/README.md")
        return f"config: `{key + '.' if key else ''}{missing}` is missing; add it: {about}"
    must = wanted(error)
    return f"{where} {f'must be {must}, not {value!r}' if must else ' '.join(error.message.split())}{meaning}"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise TunediffError(f"config: {message}")


def _make(cls: type[Settings], section: Mapping[str, Any], where: str) -> Any:
    """Return the object of a section: its class checks what the values say together."""
    try:
        return cls(**section)
    except BadSetting as error:
        message = f"config: `{where}.{error.key}` must be {error.wanted}, not {error.value!r}"
        raise TunediffError(message) from error


def _crosscoder(name: str, own: Mapping[str, Any]) -> CrosscoderSettings:
    keys = {key: value for key, value in own.items() if key != CrosscoderSettings.tag}
    settings: CrosscoderSettings = _make(kind_of(own), keys, f"crosscoders.{name}")
    return settings


def named_models(pair: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each key of a pair that names a model or adapter (`base`; `base.base`, `base.adapter`), and that name."""
    for side in ("base", "chat"):
        if isinstance(pair[side], str):
            yield side, pair[side]
        else:
            yield from ((f"{side}.{part}", pair[side][part]) for part in ("base", "adapter"))


def is_local(model: str) -> bool:
    """Whether a model or adapter is named by a directory rather than a hub id (`org/name`) or as a demo model."""
    return model not in DEMO_MODELS and (model.startswith((".", "/", "~")) or Path(model).expanduser().is_dir())


def _check_planted(config: Mapping[str, Any]) -> None:
    planted, shard = config["planted"], config["activations"]["shard_tokens"]
    published = config["crosscoders"].keys() - trained(config["crosscoders"]).keys()
    _require(not published, f"`crosscoders.{', '.join(sorted(published))}`: planted pairs have no published crosscoder")
    for name in ("train_tokens", "validation_tokens"):
        total = planted[name]
        _require(
            total % shard == 0,
            f"`planted.{name}` ({total}) must be a multiple of `activations.shard_tokens` ({shard}); "
            f"write {max(1, round(total / shard)) * shard}",
        )
    for arm, settings in planted["arms"].items():
        length = settings["document_tokens"]
        _require(
            shard % length == 0,
            f"`planted.arms.{arm}.document_tokens` ({length}) must divide `activations.shard_tokens` ({shard})",
        )
        _make(PlantedArm, settings, f"planted.arms.{arm}")


def _check_pair(where: str, pair: dict[str, Any]) -> None:
    for side in ("base", "chat"):
        if pair[side] == "demo":
            pair[side] = f"demo-{side}"
    _require(
        (pair["base"] in DEMO_MODELS) == (pair["chat"] in DEMO_MODELS),
        f"`{where}.base` and `{where}.chat` must both be `demo`, or neither; write the other model's id or directory",
    )
    for side in ("base", "chat"):
        if isinstance(pair[side], dict):
            _require(
                pair[side]["base"] not in ("demo", *DEMO_MODELS),
                f"`{where}.{side}.base`: the demo's models take no adapter; give a hub id or directory",
            )
            _require(
                pair[f"{side}_revision"] is None,
                f"`{where}.{side}_revision` has no effect beside an adapter; write `{where}.{side}.base_revision`",
            )
    for key, name in named_models(pair):
        kind, file = ("adapter", "adapter_config.json") if key.endswith(".adapter") else ("model", "config.json")
        _require(
            not is_local(name) or (Path(name).expanduser() / file).is_file(),
            f"`{where}.{key}`: {Path(name).expanduser()} is not {'an' if kind == 'adapter' else 'a'} {kind} directory "
            f"(no {file}); give one made by save_pretrained",
        )


def _check_inputs(config: Mapping[str, Any]) -> None:
    """Check what values are derived from: the models and files."""
    models, tokens = config["models"], config["tokens"]
    _check_pair("models", models)
    inside = models["base"] in DEMO_MODELS
    _require(
        inside or models["demo"] == {"retrain": False},
        "`models.demo` is only read where `models.base` and `models.chat` are `demo`; remove it",
    )
    _require(
        models["demo"].get("retrain", False) or len(models["demo"]) <= 1,
        "`models.demo` settings have no effect without `retrain: true`; add it",
    )
    _require(
        not models["demo"].get("retrain", False) or (models["base"], models["chat"]) == DEMO_MODELS[:2],
        f"`models.demo.retrain` trains {' and '.join(DEMO_MODELS[:2])}; name these in `models`, or `demo` in both",
    )
    for name, pair in config["nulls"].items():
        _check_pair(f"nulls.{name}", pair)
        _require(
            (pair["base"] in DEMO_MODELS) == inside,
            f"`nulls.{name}` must have the tokenizer of `models`: models of the demo go with the demo only",
        )
    asked = {"conversations": config["conversations"]["source"]} if "source" in config["conversations"] else {}
    for name, source in {**tokens["sources"], **asked}.items():
        if source["from"] == "local":
            where = "conversations.source" if name == "conversations" else f"tokens.sources.{name}"
            for field in ("path", "validation_path"):
                if source.get(field):
                    _require(
                        bool(_files(source[field])),
                        f"`{where}.{field}`: no file {source[field]}; give .jsonl, .jsonl.gz or .parquet files",
                    )
    for split, budget in tokens["budgets"].items():
        _require(
            set(budget) == set(tokens["sources"]),
            f"`tokens.budgets.{split}` names {sorted(budget)}, `tokens.sources` {sorted(tokens['sources'])}; "
            "give every source a budget",
        )


def _check_relations(config: Mapping[str, Any]) -> None:
    tokens, acts = config["tokens"], config["activations"]
    for split, budget in tokens["budgets"].items():
        total, shard = sum(budget.values()), acts["shard_tokens"]
        _require(
            total % shard == 0,
            f"`tokens.budgets.{split}` adds up to {total}, not a multiple of `activations.shard_tokens` ({shard}); "
            f"write {max(1, round(total / shard)) * shard} in all, or another shard",
        )
    _make(ConversationSettings, config["conversations"], "conversations")
    causal, crosscoders = config["causal"], config["crosscoders"]
    _require(
        causal["set_size"] is not None or causal["reference"] in crosscoders,
        f"`causal.reference`: there is no crosscoder `{causal['reference']}`; "
        f"write one of {', '.join(crosscoders)}, or a number for `causal.set_size`",
    )


def _check_crosscoders(config: Mapping[str, Any]) -> None:
    crosscoders = config["crosscoders"]
    _require(
        bool(trained(crosscoders)) or not config["nulls"],
        "`nulls` need crosscoders to train, but all of `crosscoders` are published; remove `nulls`",
    )
    for name, own in crosscoders.items():
        weights = _crosscoder(name, own).weights
        _require(
            weights is None or weights.exists(),
            f"`crosscoders.{name}.path`: there is no {weights}; give a hub id, a directory or a weights file",
        )


def _files(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    anchor = Path(path.anchor or ".")
    return sorted(p for p in anchor.glob(str(path.relative_to(path.anchor))) if p.is_file())


def fingerprinted_paths(config: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Return the local files that stages read by content, per config key: models, adapters, texts, crosscoders."""
    paths: dict[str, list[Path]] = {}
    pairs = {"models": config["models"], **{f"nulls.{name}": pair for name, pair in config["nulls"].items()}}
    for where, pair in pairs.items():
        for key, name in named_models(pair):
            if is_local(name):
                paths[f"{where}.{key}"] = sorted(p for p in Path(name).expanduser().iterdir() if p.is_file())
    for name, source in {**config["tokens"]["sources"], "conversations": config["conversations"]["source"]}.items():
        if source["from"] == "local":
            fields = [source["path"], source["validation_path"]]
            paths[f"source.{name}"] = [path for field in fields if field for path in _files(field)]
    for name, own in config["crosscoders"].items():
        settings = _crosscoder(name, own)
        if settings.weights is not None:
            paths[f"crosscoders.{name}"] = settings.files()
    return paths
