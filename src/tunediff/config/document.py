"""The page of all keys, config/README.md: an introduction and tables made from the schema."""

from collections.abc import Iterator
from typing import Any

import yaml

from tunediff.config.dictionaries import CrosscoderSettings
from tunediff.config.settings import Source

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
that is timed for a tenth of a second (a CPU), or over stated rates (a GPU).

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


def type_name(node: dict[str, Any]) -> str:
    """Return how a key's values are written."""
    if "anyOf" in node:
        return " or ".join(type_name(option) for option in node["anyOf"])
    if "oneOf" in node:
        return f"mapping with `{node['required'][0]}`"
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{option}`" for option in node["enum"])
    if "$ref" in node:
        return node["$ref"].rsplit("/", 1)[-1].lower()
    kind = node.get("type", "mapping")
    names = {"object": "mapping", "array": "list", "null": "null", "integer": "integer", "string": "text"}
    return " or ".join(names.get(k, k) for k in ([kind] if isinstance(kind, str) else kind))


def rows(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield one table row per key, nested keys with dots."""
    required = [*node.get("required", []), *node.get("else", {}).get("required", [])]
    for name, sub in node.get("properties", {}).items():
        default = yaml.safe_dump(sub["default"], default_flow_style=True).split("\n")[0] if "default" in sub else ""
        default = "required" if name in required else f"`{default}`" if default else ""
        default = "*derived*" if sub.get("derived") else default
        description = sub.get("description", "").replace("|", "\\|")
        yield f"| `{prefix}{name}` | {type_name(sub)} | {default} | {description} |"
        yield from rows(sub, f"{prefix}{name}.")


def table(title: str, node: dict[str, Any]) -> str:
    """Return a headed Markdown table of a block's keys."""
    return "\n".join([f"## {title}\n", "| key | value | default | meaning |", "|---|---|---|---|", *rows(node)]) + "\n"


def document(schema: dict[str, Any]) -> str:
    """Return config/README.md."""
    parts = schema["$defs"]
    titled = {
        "A model with an `adapter`": parts["Adapter"],
        **{f"A source with `from: {kind}`": parts[cls.__name__] for kind, cls in Source.kinds.items()},
        **{f"A crosscoder with `kind: {kind}`": parts[cls.__name__] for kind, cls in CrosscoderSettings.kinds.items()},
        "A pair of `nulls`": parts["NullPair"],
        "An arm of `planted`": parts["PlantedArm"],
    }
    return "\n".join([INTRO, table("Keys", schema), *(table(title, part) for title, part in titled.items())])
