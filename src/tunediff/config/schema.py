"""The JSON schema of a config, made from the settings; `python -m tunediff.config.schema` writes it and its tables.

Beside the keywords of JSON schema a key has `derived: true` where a value that is left out is worked out.
"""

from dataclasses import MISSING, Field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml

from tunediff.config.dictionaries import CrosscoderSettings
from tunediff.config.document import document
from tunediff.config.fields import Settings, Variant, has_kinds, is_section, node
from tunediff.config.planted import PlantedArm
from tunediff.config.settings import Adapter, Config, NullPair, Source

HEAD = "# Made by `make docs` from the settings in src/tunediff/config: change those, not this.\n"


def _help(cls: type[Settings]) -> str:
    return " ".join((cls.__doc__ or "").split())


def _written(hint: Any, optional: bool) -> Any:
    """Return the type of a key as it is written: what may be absent is None in Python only."""
    rest = [each for each in get_args(hint) if each is not NoneType]
    return rest[0] if len(rest) == 1 and NoneType in get_args(hint) and (optional or is_section(rest[0])) else hint


def _key(entry: Field[Any], hint: Any) -> tuple[dict[str, Any], bool]:
    """Return the schema of a key, and whether it has to be written."""
    derived, optional, given = entry.metadata["derived"], entry.metadata["optional"], entry.metadata["help"]
    hint = _written(hint, optional)
    if is_section(hint) and not has_kinds(hint):
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
    properties: dict[str, Any] = {}
    required: list[str] = []
    if issubclass(cls, Variant):
        properties[cls.tag] = {"const": cls.kind, "description": _help(cls)}
        required.append(cls.tag)
    for key, (entry, hint) in cls.keys().items():
        properties[key], needed = _key(entry, hint)
        required += [key] * needed
    found: dict[str, Any] = {"type": "object", "additionalProperties": False, "description": _help(cls)}
    return found | ({"required": required} if required else {}) | {"properties": properties}


@cache
def schema() -> dict[str, Any]:
    """Return the schema of a config; without `planted` it needs a pair of models and tokens."""
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_section(Config)}
    whole |= {"if": {"required": ["planted"]}, "else": {"required": list(Config.without_planted)}}
    shared = (Adapter, NullPair, PlantedArm, *Source.kinds.values(), *CrosscoderSettings.kinds.values())
    return whole | {"$defs": {cls.__name__: _section(cls) for cls in shared}}


def files() -> dict[str, str]:
    """Return the files that are made from the settings, by their path in the repository."""
    written = HEAD + yaml.safe_dump(schema(), sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    return {"workflow/schemas/config.schema.yaml": written, "config/README.md": document(schema())}


if __name__ == "__main__":
    for path, content in files().items():
        Path(path).write_text(content, encoding="utf-8")
