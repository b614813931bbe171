"""Writes the key tables of config/README.md from the schema: python workflow/schemas/document.py > config/README.md"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

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

This page is written from `workflow/schemas/config.schema.yaml` by `workflow/schemas/document.py`.
"""


def type_name(node: dict[str, Any]) -> str:
    """Return how a key's values are written."""
    if "anyOf" in node:
        return " or ".join(type_name(option) for option in node["anyOf"])
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{option}`" for option in node["enum"])
    if "$ref" in node:
        return node["$ref"].rsplit("/", 1)[-1]
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
    blocks = [INTRO, table("Keys", schema)]
    blocks.append(table("A model with an `adapter`", schema["$defs"]["adapter"]))
    for branch in schema["$defs"]["source"]["oneOf"]:
        blocks.append(table(f"A source with `from: {branch['properties']['from']['const']}`", branch))
    for kind in (
        ref["$ref"].rsplit("/", 1)[-1] for ref in schema["properties"]["crosscoders"]["additionalProperties"]["oneOf"]
    ):
        blocks.append(table(f"A crosscoder with `kind: {kind}`", schema["$defs"][kind]))
    blocks.append(table("A pair of `nulls`", schema["$defs"]["null_pair"]))
    blocks.append(table("An arm of `planted`", schema["$defs"]["planted_arm"]))
    return "\n".join(blocks)


if __name__ == "__main__":
    print(document(yaml.safe_load((Path(__file__).parent / "config.schema.yaml").read_text(encoding="utf-8"))), end="")
