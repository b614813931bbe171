"""A config as it is written: what YAML lets pass unseen, and no config may hold.

Snakemake reads configs itself: of a key that stands twice it keeps the last, an alias may stand for millions of values,
and a date is no value of any key. Each of these is one line that names the key.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unicodedata import category

import yaml

from tunediff.errors import TunediffError

MOST_BYTES = 1 << 19  # of a file, which takes seconds to read
MOST_VALUES = 100_000  # with every alias written out
LARGEST = 2**63  # of a whole number, which seeds and arrays stay below
DEEPEST = 50  # levels
NOT_IN_A_LINE = ("Cc", "Cs", "Zl", "Zp")  # categories: control, surrogate, separators of lines and paragraphs
NAMES = {bool: "true or false", float: "a number", type(None): "null"}  # what a key may be to YAML but a name


def plain(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config in which all is plain: mappings with text keys, lists, texts, numbers, null.

    Raises
    ------
    TunediffError
        A value is none of these, or not finite, an immense number, or a text with characters that are not to be seen
        in a line; or there are too many of them.
    """
    seen = 0

    def of(value: Any, where: str) -> Any:
        nonlocal seen
        seen += 1
        if seen > MOST_VALUES:
            raise TunediffError(
                f"config: `{where.split('.')[0]}` has more than {MOST_VALUES:,} values, aliases (*) written out; "
                "remove them"
            )
        if where.count(".") > DEEPEST:
            raise TunediffError(
                f"config: `{where[:60]}…` is nested more than {DEEPEST} levels deep; write values in place of aliases"
            )
        if isinstance(value, Mapping):
            found: dict[str, Any] = {}
            for key, own in value.items():
                name = _name(key, where)
                inside = f"{where}.{name}" if where else name
                if name in found:
                    raise TunediffError(f"config: `{inside}` is written twice; remove one")
                found[name] = of(own, inside)
            return found
        if isinstance(value, list | tuple):
            return [of(own, f"{where}.{i}") for i, own in enumerate(value)]
        if isinstance(value, str):
            return _text(value, where)
        if isinstance(value, float) and not math.isfinite(value):
            raise TunediffError(f"config: `{where}` is {value}; write a finite number")
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise TunediffError(f"config: `{where}` has a size of 2^63 or more; write a smaller number")
        if value is None or isinstance(value, bool | int | float):
            return value
        kind = type(value).__name__
        raise TunediffError(f"config: `{where}` is a {kind} to YAML ({value}); write a number, or put a text in quotes")

    result = of(raw, "")
    assert isinstance(result, dict)
    return result


def _name(key: Any, where: str) -> str:
    if isinstance(key, str):
        return _text(key, f"{where}.{key[:80]!r}" if where else repr(key[:80]))
    if type(key) is int:  # a token id
        return str(key)
    what = NAMES.get(type(key), f"a {type(key).__name__}")
    raise TunediffError(f"config: a key of `{where or 'the config'}` is {what} to YAML ({key}); put it in quotes")


def _text(value: str, where: str) -> str:
    """Return a text that can stand in a path and in a line: no control characters, no halves of surrogate pairs."""
    wrong = next((c for c in value if category(c) in NOT_IN_A_LINE), None)
    if wrong is not None:
        told = f"U+{ord(wrong):04X} ({value[:80]!r})"
        raise TunediffError(f"config: `{where}` holds the character {told}; write it without that character")
    return value


def as_number(text: str) -> str | None:
    """Return how to write a number that YAML reads as text, such as 1e-3; None where the text is no number."""
    mantissa, e, exponent = text.strip().lower().partition("e")
    try:
        float(text)
        power = int(exponent) if e else 0
    except ValueError:
        return None
    if not e or not math.isfinite(float(text)):
        return None
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{power:+d}"


def check_files(names: Iterable[str | Path], results: Path) -> None:
    """Check the files of a config, of which Snakemake keeps the merged values alone.

    Raises
    ------
    TunediffError
        A file that is no YAML lies in the folder of results, so it is a target; a file is too large; or a key stands
        twice in it.
    """
    for path in map(Path, names):
        if path.suffix not in (".yaml", ".yml") and path.absolute().is_relative_to(results.absolute()):
            raise TunediffError(
                f"{path}: was read as a config, as Snakemake does with every word after --configfile; targets go first:"
                f" snakemake {path} --cores all --configfile …"
            )
        try:
            _check_size(path)
            tree = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
            continue  # Snakemake has read it: JSON that is no YAML
        _check_tree(tree, path)


def load(path: Path) -> dict[str, Any]:
    """Return the values of one config file.

    Raises
    ------
    TunediffError
        It cannot be read, is too large, is no mapping, or has a key twice.
    """
    try:
        _check_size(path)
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        tree = loader.get_single_node()
        try:
            values = json.loads(text)
        except ValueError:
            values = None if tree is None else loader.construct_document(tree)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TunediffError(f"{path}: cannot be read ({str(error).splitlines()[0]}); give a config") from error
    if not isinstance(values, dict):
        raise TunediffError(f"{path}: holds no keys; give a config")
    _check_tree(tree, path)
    return values


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise TunediffError(f"{path}: has {size:,} bytes, a config has {MOST_BYTES:,} at most; give a config")


def _check_tree(tree: Any, path: Path) -> None:
    """Raise an error where a mapping has a key twice; what aliases share is looked at once."""
    todo, known = [(tree, "")], set()
    while todo:
        node, where = todo.pop()
        if id(node) in known or not isinstance(node, yaml.CollectionNode):
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += [(own, f"{where}{i}.") for i, own in enumerate(node.value)]
            continue
        lines: dict[str, int] = {}
        for key, own in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                first, line = lines[key.value], key.start_mark.line + 1
                raise TunediffError(
                    f"config: `{where}{key.value}` is written twice ({path} lines {first} and {line}); remove one"
                )
            lines[key.value] = key.start_mark.line + 1
            todo.append((own, f"{where}{key.value}."))
