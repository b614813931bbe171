"""The JSON schema of a config and the page of all keys, config/README.md, made from the settings.

`python -m tunediff.config.schema` writes both. Beside the keywords of JSON schema a key has `derived: true` where a
value that is left out is worked out.
"""

from collections.abc import Iterator
from dataclasses import MISSING, Field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml

from tunediff.config.dictionaries import CrosscoderSettings
from tunediff.config.fields import Settings, Variant, is_section, node, types
from tunediff.config.planted import PlantedArm
from tunediff.config.settings import Adapter, Config, LanguageModel, NullPair, Source

HEAD = "# Made by `make docs` from the settings in src/tunediff/config: change those, not this.\n"
INTRO = """# Configuration

A config is one YAML file: `config.yaml` is the embedded demo and the default; another is given with
`--configfile config/gemma2-2b.yaml` and *replaces* it. Several files after `--configfile` are merged, later ones
winning: `--configfile config/config.yaml my-changes.yaml`. A config holds science; threads, memory and partitions
belong to `profiles/`. It is checked before anything runs: an unknown key, a wrong type or a value out of range is one
line that names the key and the remedy.

Only `models.base`, `models.chat` and `tokens.sources` must be written; `template.yaml` shows them. What stands as
*derived* below is worked out from the models, the files and other keys, by the rule after the semicolon, before
anything runs. A derived value is an ordinary one: written out by hand it gives the same artifacts. `snakemake -n` and
the first lines of a run print the derived values, and an estimate of tokens, disk, memory and time with a warning where
these do not fit. Memory is counted from shapes, and rules ask for it; times are operations over the rate of a product
that is timed for a tenth of a second (a CPU), or over modelled rates (a GPU).

| file | run |
|---|---|
| `config.yaml` | the embedded demo |
| `ci.yaml` | the demo in small, for tests of the pipeline |
| `template.yaml` | your own pair: six values to write |
| `gemma3-270m.yaml` | the smallest real pair: Gemma 3 270M, layer 9; a laptop overnight |
| `gemma2-2b.yaml` | the paper's main run: Gemma 2 2B, layer 13 |
| `gemma2-2b-published.yaml` | the same tables and figures from the authors' own dictionaries, nothing trained |
| `llama32-1b.yaml` | Llama 3.2 1B, layer 8 |
| `planted.yaml` | the truth test: activations made from known latents instead of a model pair |
| `seeds.yaml` | on top of another: each dictionary from three seeds |

This page and `workflow/schemas/config.schema.yaml` are made from the settings in `src/tunediff/config` by `make docs`.
"""


def _written(hint: Any, optional: bool, derived: bool) -> Any:
    """Return the type of a key as it is written: what may be absent is None in Python only."""
    rest = [each for each in get_args(hint) if each is not NoneType]
    return (
        rest[0]
        if len(rest) == 1 and NoneType in get_args(hint) and (optional or (derived and is_section(rest[0])))
        else hint
    )


def _key(entry: Field[Any], hint: Any) -> tuple[dict[str, Any], bool]:
    """Return the schema of a key, and whether it has to be written."""
    derived, optional, given = entry.metadata["derived"], entry.metadata["optional"], entry.metadata["help"]
    hint = _written(hint, optional, derived)
    if is_section(hint) and "kinds" not in vars(hint):
        sub = _section(hint)
        default, required = (MISSING, True) if "required" in sub else ({}, False)
    else:
        sub = node(hint, entry.metadata["limits"])
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        required = default is MISSING
    if derived or optional:
        sub |= {"derived": True} if derived else {}
        required = False
    elif default is not MISSING:
        sub["default"] = list(default) if isinstance(default, tuple) else default
    return sub | ({"description": given} if given else {}), required


def _section(cls: type[Settings]) -> dict[str, Any]:
    """Return the schema of a section."""
    about = " ".join((cls.__doc__ or "").split())
    properties: dict[str, Any] = {}
    if issubclass(cls, Variant):
        properties[cls.tag] = {"const": cls.kind, "description": about}
    required = list(properties)
    for key, (entry, hint) in cls.keys().items():
        properties[key], needed = _key(entry, hint)
        required += [key] * needed
    found: dict[str, Any] = {"type": "object", "additionalProperties": False, "description": about}
    return found | ({"required": required} if required else {}) | {"properties": properties}


@cache
def schema() -> dict[str, Any]:
    """Return the schema of a config; without `planted` it needs a pair of models and tokens."""
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_section(Config)}
    whole |= {"if": {"required": ["planted"]}, "else": {"required": ["models", "tokens"]}}
    kinds = (*Source.kinds.values(), *CrosscoderSettings.kinds.values(), *LanguageModel.kinds.values())
    shared = (Adapter, NullPair, PlantedArm, *kinds)
    return whole | {"$defs": {cls.__name__: _section(cls) for cls in shared}}


def _type_name(node: dict[str, Any]) -> str:
    """Return how a key's values are written."""
    if "anyOf" in node:
        return " or ".join(map(_type_name, node["anyOf"]))
    if "oneOf" in node:
        return f"mapping with `{node['required'][0]}`"
    if "const" in node or "enum" in node:
        return ", ".join(f"`{option}`" for option in node.get("enum", [node.get("const")]))
    if "$ref" in node:
        return node["$ref"].rsplit("/", 1)[-1].lower()
    names = {"object": "mapping", "array": "list", "string": "text"}
    return " or ".join(names.get(kind, kind) for kind in types(node))


def _rows(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield one table row per key, nested keys with dots."""
    required = [*node.get("required", []), *node.get("else", {}).get("required", [])]
    for name, sub in node.get("properties", {}).items():
        default = yaml.safe_dump(sub["default"], default_flow_style=True).split("\n")[0] if "default" in sub else ""
        default = "required" if name in required else f"`{default}`" if default else ""
        default = "*derived*" if sub.get("derived") else default
        description = sub.get("description", "").replace("|", "\\|")
        yield f"| `{prefix}{name}` | {_type_name(sub)} | {default} | {description} |"
        yield from _rows(sub, f"{prefix}{name}.")


def _page() -> str:
    """Return config/README.md: the introduction, and a table of each block's keys."""
    blocks = {"Keys": Config, "A model with an `adapter`": Adapter}
    blocks |= {f"A source with `from: {kind}`": cls for kind, cls in Source.kinds.items()}
    blocks |= {f"A crosscoder with `kind: {kind}`": cls for kind, cls in CrosscoderSettings.kinds.items()}
    blocks |= {f"A language model with `from: {kind}`": cls for kind, cls in LanguageModel.kinds.items()}
    blocks |= {"A pair of `nulls`": NullPair, "An arm of `planted`": PlantedArm}
    lines = [INTRO]
    for title, cls in blocks.items():
        rows = _rows(schema() if cls is Config else schema()["$defs"][cls.__name__])
        lines += [f"## {title}\n", "| key | value | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def files() -> dict[str, str]:
    """Return the files that are made from the settings, by their path in the repository."""
    written = HEAD + yaml.safe_dump(schema(), sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    return {"workflow/schemas/config.schema.yaml": written, "config/README.md": _page()}


if __name__ == "__main__":
    for path, content in files().items():
        Path(path).write_text(content, encoding="utf-8")
