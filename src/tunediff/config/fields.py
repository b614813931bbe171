"""How a setting is written: a dataclass field that knows its help, its range and the rule it is derived by.

A section of the config is a dataclass under `Settings`. A field made by `setting` is a key of the config; its type and
limits are a JSON schema (`node`), from which the whole schema and config/README.md are made and by which a value is
checked wherever an object is made. A plain field is no key: who makes the object gives it. The first line of a class's
docstring is the help of its section.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from tunediff.errors import TunediffError

NAME = {"pattern": "^[a-z][a-z0-9_]*$"}  # of what a config names
MOST_TOKENS = 10**11  # of a source: one job holds the tokens of a split, 50 bytes each
DEVICE = "^(auto|cpu|cuda(:[0-9]+)?)$"

PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}
LIMITS = {  # keywords of JSON schema, by the type they are about
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "string": ("minLength", "pattern"),
    "array": ("minItems", "uniqueItems"),
    "object": ("minProperties", "maxProperties", "propertyNames"),
}
WORDS = {
    **{"integer": "a whole number", "number": "a number", "string": "text", "object": "a mapping", "array": "a list"},
    **{"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"},
}


def _is_number(checker: Any, value: Any) -> bool:
    return _is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))


def _is_integer(checker: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# JSON's numbers: neither NaN, which is below no limit, nor infinite; and 200.0 is no whole number, as `range` has it.
TYPES = Draft202012Validator.TYPE_CHECKER.redefine("number", _is_number).redefine("integer", _is_integer)
Validator = extend(Draft202012Validator, type_checker=TYPES)


class BadSetting(TunediffError):  # noqa: N818
    """A value that is no good; `key` and `wanted` let the check of a config say it with the key's place there."""

    def __init__(self, settings: "Settings", key: str, wanted: str) -> None:
        self.key, self.wanted, self.value = key, wanted, getattr(settings, key)
        super().__init__(f"{settings.section}.{key}: is {self.value!r}, must be {wanted}; correct the config")


def setting(help: str = "", default: Any = MISSING, *, rule: str = "", optional: bool = False, **limits: Any) -> Any:
    """Return a field that is a key of the config.

    `help` is one sentence with the unit; without it a section's own is taken. `rule` says how a value that is left out
    is derived; a default beside it is that of large runs, for objects made in Python. An `optional` key may be absent.
    `limits` are keywords of JSON schema, about whatever part of the type has them.
    """
    unknown = limits.keys() - {name for names in LIMITS.values() for name in names}
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: no limit that `node` writes")
    about = f"{help}; {rule}." if rule else help
    metadata = {"help": about, "derived": bool(rule), "optional": optional, "limits": limits}
    if default == {}:
        return field(default_factory=dict, metadata=metadata)
    return field(default=None if optional else default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A section of the config; making one checks each value, and a subclass what values say together."""

    section: ClassVar[str]  # in messages

    def __init_subclass__(cls, section: str | None = None) -> None:
        if section is not None:
            cls.section = section

    def require(self, key: str, condition: bool, wanted: str) -> None:
        """Raise an error naming the key unless the condition holds."""
        if not condition:
            raise BadSetting(self, key, wanted)

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for key, validator in _validators(cls).items():
            value = getattr(self, key)
            if isinstance(value, list):  # as YAML has it
                object.__setattr__(self, key, tuple(value))
            plain = list(value) if isinstance(value, tuple) else value
            error = next(validator.iter_errors(plain), None)
            if error is not None:
                raise BadSetting(self, key, wanted(error) or f"valid ({error.message})")

    @classmethod
    def keys(cls) -> dict[str, tuple[Field[Any], Any]]:
        """Return the keys of the section, each with its field and type."""
        hints = get_type_hints(cls)
        return {entry.name: (entry, hints[entry.name]) for entry in fields(cls) if entry.metadata}


class Variant(Settings):
    """A section of one of several kinds, told apart by the value of a key."""

    tag: ClassVar[str]  # that key
    kind: ClassVar[str]  # its value
    kinds: ClassVar[dict[str, Any]]  # of the family: of the class that names the tag

    def __init_subclass__(cls) -> None:
        if "tag" in vars(cls):
            cls.kinds = {}
        if "kind" in vars(cls):
            cls.section = cls.kind
            cls.kinds[cls.kind] = cls

    @classmethod
    def of(cls, own: Mapping[str, Any]) -> Any:
        """Return the class of the kind that a section of the config names."""
        return cls.kinds[own[cls.tag]]

    @classmethod
    def made(cls, own: Mapping[str, Any]) -> Any:
        """Return the object of a section of the config, its values checked."""
        return cls.of(own)(**{key: value for key, value in own.items() if key != cls.tag})


def is_section(hint: Any) -> bool:
    """Whether a key's type is a section."""
    return isinstance(hint, type) and issubclass(hint, Settings)


def node(hint: Any, limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a type; a section inside it is a reference by the name of its class."""
    origin, args = get_origin(hint), get_args(hint)

    def limited(kind: str) -> dict[str, Any]:
        return {"type": kind, **{name: limits[name] for name in LIMITS.get(kind, ()) if name in limits}}

    if origin is Literal:
        return {"enum": list(args)} if len(args) > 1 else {"const": args[0]}
    if origin is tuple:
        size = {} if args[1] is ... else {"minItems": len(args), "maxItems": len(args)}
        return limited("array") | size | {"items": node(args[0], limits)}
    if origin is dict:
        return limited("object") | {"additionalProperties": node(args[1], limits)}
    if origin in (Union, UnionType):
        options = [node(each, limits) for each in args]
        if options[-1] == {"type": "null"} and len(options) == 2 and "type" in options[0] and "oneOf" not in options[0]:
            return options[0] | {"type": [options[0]["type"], "null"]}
        return {"anyOf": options}
    if is_section(hint) and "kinds" in vars(hint):  # one of several, which the config names
        branches = [{"$ref": f"#/$defs/{each.__name__}"} for each in hint.kinds.values()]
        return {"type": "object", "required": [hint.tag], "oneOf": branches}
    if is_section(hint):
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return limited(PLAIN[hint])


@cache
def _validators(cls: type[Settings]) -> dict[str, Any]:
    nodes = {key: node(hint, entry.metadata["limits"]) for key, (entry, hint) in cls.keys().items()}
    return {key: Validator(each) for key, each in nodes.items() if "$ref" not in str(each)}


def types(schema: Mapping[str, Any]) -> list[str]:
    """Return the types that a value may have."""
    kinds = schema.get("type", "object")
    return [kinds] if isinstance(kinds, str) else kinds


def described(schema: Mapping[str, Any]) -> str:
    """Return the values that a key may have, in words."""
    if "anyOf" in schema:
        return " or ".join(described(option) for option in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        options = schema.get("enum", [schema.get("const")])
        return ("one of " if len(options) > 1 else "") + ", ".join(map(str, options))
    return " or ".join(WORDS.get(kind, kind) for kind in types(schema))


def wanted(error: Any) -> str | None:
    """Return what a value must be, by a validator's error; None where only its message tells."""
    if error.validator in WORDS:
        return f"{WORDS[error.validator]} {error.validator_value}"
    if error.validator in ("type", "enum", "const", "anyOf"):
        return described({error.validator: error.validator_value})
    return None
