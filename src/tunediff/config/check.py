"""Checks a config before anything else happens: one line per mistake, naming the key and the remedy.

The schema made from the settings checks keys, types and ranges; `tunediff.config.derive` fills in what follows from the
models and files; a section's own class checks what its values say together. What is left stands here: relations
between sections, and files that must exist.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tunediff.config.derive import LAYERS, derive, model_config, require, shape_value
from tunediff.config.dictionaries import DEFAULT_CROSSCODERS, CrosscoderSettings, trained
from tunediff.config.fields import BadSetting, Validator, wanted
from tunediff.config.planted import PlantedArm
from tunediff.config.schema import schema
from tunediff.config.settings import ConversationSettings, HarvestSettings, HubSource, Source, split_tokens
from tunediff.config.written import as_number, plain
from tunediff.demo import DEMO, DEMO_MODELS
from tunediff.errors import TunediffError

T = TypeVar("T")
LONGEST_NAME = 255  # bytes of a file's name; ids of the hub are shorter
LONGEST_KEY = 100  # of what the config names: files are named by it, with more behind it
SHIPPED_PAIR = Path("resources/demo-pair")  # runs start in the checkout
NOT_NAMES = ("nan", "null")  # a missing value where a table is read
MOST_SHOWN = 200  # characters of a value in a message
MOST_PARTS = 10_000  # jobs that Snakemake plans in a minute


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
    config = plain({"crosscoders": DEFAULT_CROSSCODERS, **raw})
    errors = Validator(_concrete(schema(), config)).iter_errors(config)
    error = min(errors, key=lambda error: list(map(str, error.absolute_path)), default=None)
    if error is not None:
        raise TunediffError(_explain(error))
    _check_lengths("", config)
    config["results"] = _results(config["results"])
    _check_names(config)
    planted = "planted" in config
    if planted:
        unread = [name for name in ("models", "tokens", "conversations", "nulls") if raw.get(name)]
        require(not unread, f"`{', '.join(unread)}` has no effect beside `planted`; remove it, or `planted`")
    else:
        _check_inputs(config)
    derived = derive(config, shipped, fetch)
    if not planted:
        require_layer(config["models"], shipped)
    _make("activations", HarvestSettings, **config["activations"])
    (_check_planted if planted else _check_relations)(config)
    _check_parts(config)
    _check_crosscoders(config)
    return Checked(config, derived)


def _results(written: str) -> str:
    """Return the folder of results, `~` expanded; it must be a folder of its own."""
    require(not set("{}\n") & set(written), f"`results` is {written!r}; write a path without braces and line breaks")
    try:
        path = Path(written).expanduser()
    except RuntimeError as error:
        raise TunediffError(f"config: `results`: {written} names no home folder; write the whole path") from error
    whole = path.resolve()
    require(
        not Path.cwd().is_relative_to(whole),
        f"`results` is {written}, which holds the folder this run starts in; write one of its own, such as results",
    )
    there = next(parent for parent in (whole, *whole.parents) if parent.exists())
    require(there.is_dir(), f"`results` is {written}, but {there} is a file; write a folder")
    return str(path)


def _check_names(config: Mapping[str, Any]) -> None:
    """Check that names of the config clash with no file of a run."""
    arms = config.get("planted", {}).get("arms", {})
    for section, named in {
        "crosscoders": config["crosscoders"],
        "nulls": config["nulls"],
        "planted.arms": arms,
    }.items():
        for name in NOT_NAMES:
            require(
                name not in named, f"`{section}.{name}`: tables read `{name}` as a missing value; write another name"
            )
    for name in ("logs", "benchmarks"):
        require(name not in arms, f"`planted.arms.{name}`: results/{name} holds other files; write another name")
    require("summary" not in config["nulls"], "`nulls.summary`: nulls/summary holds their counts; write another name")


def _check_parts(config: Mapping[str, Any]) -> None:
    """Check that a split has no more parts than Snakemake can plan."""
    part, shard = config["activations"]["part_tokens"], config["activations"]["shard_tokens"]
    for split in ("train", "validation"):
        total = split_tokens(config, split)
        key = f"planted.{split}_tokens" if "planted" in config else f"tokens.budgets.{split}"
        least = -(-total // (MOST_PARTS * shard)) * shard
        require(
            total <= MOST_PARTS * part,
            f"`{key}` ({total:,} tokens) makes {-(-total // part):,} parts of `activations.part_tokens` ({part:,}), "
            f"more than {MOST_PARTS:,}; write fewer tokens, or parts of {least:,} tokens",
        )


def _concrete(part: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """Resolve references and choices for this value and fill in its defaults, so that errors name one place."""
    node = dict(part)
    if "$ref" in node:
        node = {**schema()["$defs"][node.pop("$ref").rsplit("/", 1)[-1]], **node}
    if "oneOf" in node:
        tag = node["required"][0]
        branches = [_concrete(branch, None) for branch in node.pop("oneOf")]
        names = [branch["properties"][tag]["const"] for branch in branches]
        chosen = value.get(tag) if isinstance(value, dict) else None
        if chosen in names:
            node = {**branches[names.index(chosen)], "description": node.get("description", "")}
        else:
            node["properties"] = {tag: {"enum": names}}
    if not isinstance(value, dict):
        return node
    options = node.get("anyOf", [])
    mapping = next((option for option in options if _concrete(option, None).get("type") == "object"), None)
    if mapping:
        del node["anyOf"]
        return {**node, **_concrete(mapping, value), "description": node.get("description", "")}
    properties, extra = node.get("properties", {}), node.get("additionalProperties")
    for name, sub in properties.items():
        if "default" in sub:
            value.setdefault(name, deepcopy(sub["default"]))
    if isinstance(extra, dict):
        properties = properties | {name: extra for name in value if name not in properties}
    return node | {"properties": {n: _concrete(sub, value[n]) if n in value else sub for n, sub in properties.items()}}


def shortened(text: str) -> str:
    """Return a text on one line, as much of it as a message shows."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}…"


def _explain(error: Any) -> str:
    key, part, kind, value = ".".join(map(str, error.absolute_path)), error.schema, error.validator, error.instance
    inside = f"{key}." if key else ""
    known = part.get("properties", {})
    if kind == "additionalProperties":
        unknown = next(name for name in value if name not in known)
        close = difflib.get_close_matches(unknown, sorted(known), n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(sorted(known))}"
        return f"config: unknown key `{inside}{shortened(unknown)}`; {hint}"
    if kind == "required":
        missing = next(name for name in error.validator_value if name not in value)
        about = known.get(missing, {}).get("description", "see config/README.md")
        return f"config: `{inside}{missing}` is missing; add it: {about}"
    must, meaning = wanted(error), part.get("description", "").rstrip(".")
    told = f"must be {must}, not {shortened(repr(value))}" if must else shortened(error.message)
    if must and "number" in must and isinstance(value, str) and (written := as_number(value)):
        told += f", which is text to YAML; write {written}"
    return f"config:{f' `{key}`' if key else ''} {told}{f' ({meaning})' if meaning else ''}"


def _check_lengths(where: str, value: Any) -> None:
    """Check that names and paths are no longer than a file system takes."""
    if isinstance(value, dict):
        for key, part in value.items():
            require(
                len(key) <= LONGEST_KEY, f"`{where}{key[:20]}…` has {len(key)} characters; write {LONGEST_KEY} at most"
            )
            _check_lengths(f"{where}{key}.", part)
    elif isinstance(value, str):
        longest = max(map(len, value.encode("utf-8", "surrogatepass").split(b"/")))
        require(
            longest <= LONGEST_NAME,
            f"`{where[:-1]}`: {value[:20]}… has a name of {longest} bytes, files and ids have {LONGEST_NAME} at most; "
            "correct it",
        )


def require_layer(models: Mapping[str, Any], shipped: Path, fetch: bool = False) -> None:
    """Raise a `TunediffError` where `models.layer` is no block whose output another one reads, as far as is known.

    See `derive.model_config` for `shipped` and `fetch`.
    """
    blocks = shape_value(model_config(models, shipped, fetch), *LAYERS)
    require(
        blocks is None or models["layer"] < blocks - 1,
        f"`models.layer` is {models['layer']}, the models have {blocks} blocks; write 0 to {(blocks or 2) - 2} (no "
        "other block reads the last one's output)",
    )


def _make(where: str, make: Callable[..., T], *own: Any, **keys: Any) -> T:
    """Return the object of a section: its class checks what the values say together."""
    try:
        return make(*own, **keys)
    except BadSetting as error:
        message = f"config: `{where}.{error.key}` must be {error.wanted}, not {error.value!r}"
        raise TunediffError(message) from error


def _crosscoders(config: Mapping[str, Any]) -> Iterator[tuple[str, CrosscoderSettings]]:
    for name, own in config["crosscoders"].items():
        yield f"crosscoders.{name}", _make(f"crosscoders.{name}", CrosscoderSettings.made, own)


def pairs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {"models": config["models"], **{f"nulls.{name}": pair for name, pair in config["nulls"].items()}}


def _sources(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every source of texts, by its key."""
    found = {f"tokens.sources.{name}": source for name, source in config["tokens"]["sources"].items()}
    asked = config["conversations"]
    return found | ({"conversations.source": asked["source"]} if "source" in asked else {})


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
    require(not published, f"`crosscoders.{', '.join(sorted(published))}`: planted pairs have no published crosscoder")
    for name in ("train_tokens", "validation_tokens"):
        require(
            planted[name] % shard == 0,
            f"`planted.{name}` ({planted[name]}) must be a multiple of `activations.shard_tokens` ({shard}); "
            f"write {max(1, round(planted[name] / shard)) * shard}",
        )
    for arm, settings in planted["arms"].items():
        length, where = settings["document_tokens"], f"planted.arms.{arm}"
        divides = f"`{where}.document_tokens` ({length}) must divide `activations.shard_tokens` ({shard})"
        require(shard % length == 0, divides)
        _make(where, PlantedArm, **settings)


def _check_pair(where: str, pair: dict[str, Any]) -> None:
    pair |= {side: f"{DEMO}-{side}" for side in ("base", "chat") if pair[side] == DEMO}
    require(
        (pair["base"] in DEMO_MODELS) == (pair["chat"] in DEMO_MODELS),
        f"`{where}.base` and `{where}.chat` must both be `demo`, or neither; write the other model's id or directory",
    )
    for side in ("base", "chat"):
        if isinstance(pair[side], dict):
            require(
                pair[side]["base"] not in (DEMO, *DEMO_MODELS),
                f"`{where}.{side}.base`: the demo's models take no adapter; give a hub id or directory",
            )
            require(
                pair[f"{side}_revision"] is None,
                f"`{where}.{side}_revision` has no effect beside an adapter; write `{where}.{side}.base_revision`",
            )
    for key, name in named_models(pair):
        kind, file = ("an adapter", "adapter_config.json") if key.endswith(".adapter") else ("a model", "config.json")
        path = Path(name).expanduser()
        require(
            not is_local(name) or (path / file).is_file(),
            f"`{where}.{key}`: {path} is not {kind} directory (no {file}); give one made by save_pretrained",
        )


def _check_inputs(config: Mapping[str, Any]) -> None:
    """Check what values are derived from: the models and files."""
    models, tokens = config["models"], config["tokens"]
    _check_pair("models", models)
    pair, recipe = (models["base"], models["chat"]), models["demo"]
    inside, retrain = pair[0] in DEMO_MODELS, recipe.get("retrain", False)
    require(
        inside or recipe == {"retrain": False},
        "`models.demo` is only read where `models.base` and `models.chat` are `demo`; remove it",
    )
    require(retrain or len(recipe) <= 1, "`models.demo` settings have no effect without `retrain: true`; add it")
    require(
        not retrain or pair == DEMO_MODELS[:2],
        f"`models.demo.retrain` trains {' and '.join(DEMO_MODELS[:2])}; name these in `models`, or `demo` in both",
    )
    for name, null in config["nulls"].items():
        _check_pair(f"nulls.{name}", null)
        require(
            (null["base"] in DEMO_MODELS) == inside,
            f"`nulls.{name}` must have the tokenizer of `models`: models of the demo go with the demo only",
        )
    for where, source in _sources(config).items():
        require(
            source["from"] != HubSource.kind or not Path(source["path"]).is_dir(),
            f"`{where}.path`: {source.get('path')} is a folder of this machine, and every file in it would be looked "
            "at; write `from: local` and its files, or the id of a data set of the hub",
        )
        for field in Source.of(source).files:
            require(
                not source.get(field) or bool(_files(source[field])),
                f"`{where}.{field}`: no file {source[field]}; give .jsonl, .jsonl.gz or .parquet files",
            )
    for split, budget in tokens["budgets"].items():
        require(
            set(budget) == set(tokens["sources"]),
            f"`tokens.budgets.{split}` names {sorted(budget)}, `tokens.sources` {sorted(tokens['sources'])}; "
            "give every source a budget",
        )


def _check_relations(config: Mapping[str, Any]) -> None:
    shard, causal, crosscoders = config["activations"]["shard_tokens"], config["causal"], config["crosscoders"]
    for split, budget in config["tokens"]["budgets"].items():
        total = sum(budget.values())
        require(
            total % shard == 0,
            f"`tokens.budgets.{split}` adds up to {total}, not a multiple of `activations.shard_tokens` ({shard}); "
            f"write {max(1, round(total / shard)) * shard} in all, or another shard",
        )
    _make("conversations", ConversationSettings, **config["conversations"])
    require(
        causal["set_size"] is not None or causal["reference"] in crosscoders,
        f"`causal.reference`: there is no crosscoder `{causal['reference']}`; "
        f"write one of {', '.join(crosscoders)}, or a number for `causal.set_size`",
    )


def _check_crosscoders(config: Mapping[str, Any]) -> None:
    require(
        bool(trained(config["crosscoders"])) or not config["nulls"],
        "`nulls` need crosscoders to train, but all of `crosscoders` are published; remove `nulls`",
    )
    device, processes = config["planted" if "planted" in config else "models"]["device"], config["training"]["devices"]
    require(
        processes == 1 or ":" not in device,
        f"`training.devices` is {processes}, but `device: {device}` names one GPU; write `cuda` or `auto` there",
    )
    for name, (_, own) in trained(config["crosscoders"]).items():
        require(
            processes <= own["dict_size"],
            f"`training.devices` is {processes}, more than the latents of `crosscoders.{name}`; lower it",
        )
    for where, settings in _crosscoders(config):
        weights = settings.weights
        require(
            weights is None or weights.exists(),
            f"`{where}.path`: there is no {weights}; give a hub id, a directory or a weights file",
        )


def _files(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    found = [path] if path.is_file() else Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
    return sorted(file for file in found if file.is_file())


def fingerprinted_paths(config: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Return the local files that stages read by content, per config key: models, adapters, texts, crosscoders."""
    named = {f"{where}.{key}": name for where, pair in pairs(config).items() for key, name in named_models(pair)}
    folders = {key: Path(name).expanduser() for key, name in named.items() if is_local(name)}
    paths = {key: sorted(path for path in folder.iterdir() if path.is_file()) for key, folder in folders.items()}
    for key, source in _sources(config).items():
        if fields := Source.of(source).files:
            paths[key] = [path for field in fields if source[field] for path in _files(source[field])]
    return paths | {key: own.files() for key, own in _crosscoders(config) if own.weights is not None}
