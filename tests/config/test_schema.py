"""The schema and the page of keys are what the settings make of them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunediff.config.check import check
from tunediff.config.schema import files, schema
from tunediff.config.settings import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", list(files()))
def test_the_committed_files_are_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == files()[path], f"{path}: write it again with `make docs`"


def test_settings_and_schema_need_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)"
    code = f"import sys, tunediff.config.settings, tunediff.config.schema; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def described(node: dict[str, Any], key: str = "") -> None:
    for name, sub in node.get("properties", {}).items():
        assert sub.get("description"), f"{key}{name} has no help"
        assert sub["description"].endswith("."), f"{key}{name}: help is a sentence"
        described(sub, f"{key}{name}.")


def test_every_key_has_help() -> None:
    described(schema())
    for name, block in schema()["$defs"].items():
        described(block, f"{name}.")


def test_a_section_of_the_schema_by_hand() -> None:
    """One key of each kind: default, range, null, enum, list, derived, choice by tag, model or adapter."""
    keys = {name: node["properties"] for name, node in schema()["properties"].items() if "properties" in node}
    plain = {
        ("figures", "dpi"): {"type": "integer", "minimum": 50, "maximum": 1200, "default": 200},
        ("latents", "fit_tokens"): {"type": ["integer", "null"], "minimum": 1, "default": None},
        ("models", "dtype"): {"enum": ["float32", "bfloat16", "float16"], "default": "bfloat16"},
        ("evaluation", "batch_size"): {"type": "integer", "minimum": 1, "derived": True},
        ("training", "seeds"): {
            **{"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "integer", "minimum": 0}},
            "default": [0],
        },
        ("models", "base"): {"anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/Adapter"}]},
        ("models", "base_token_replacements"): {
            **{"type": "object", "propertyNames": {"pattern": "^[0-9]+$"}, "default": {}},
            "additionalProperties": {"type": "integer", "minimum": 0},
        },
        ("conversations", "source"): {
            **{"type": "object", "required": ["from"], "derived": True},
            "oneOf": [{"$ref": f"#/$defs/{name}Source"} for name in ("Demo", "Hub", "Local")],
        },
    }
    for (section, key), expected in plain.items():
        found = {name: value for name, value in keys[section][key].items() if name != "description"}
        assert found == expected, f"{section}.{key}"
    assert set(keys["models"]["demo"]["properties"]["layers"]) == {"type", "minimum", "description"}  # may be absent
    assert schema()["properties"]["models"]["required"] == ["base", "chat"]  # and layer is derived
    assert "required" not in schema() and schema()["else"] == {"required": ["models", "tokens"]}
    assert schema()["$defs"]["L1Settings"]["properties"]["mu"]["anyOf"] == [
        {"type": "number", "exclusiveMinimum": 0},
        {"const": "auto"},
    ]


def test_a_checked_config_makes_the_objects_of_its_sections() -> None:
    """What the schema fills in is what the classes ask for, and their own defaults are those of the schema."""
    config = check(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    for name, (_, cls) in Config.keys().items():
        if name in ("activations", "training", "latents", "evaluation", "causal", "figures", "conversations"):
            made, defaults = cls(**config[name]), cls()
            assert list(cls.keys()) == list(schema()["properties"][name]["properties"])
            for key, node in schema()["properties"][name]["properties"].items():
                value = getattr(made, key)
                assert (list(value) if isinstance(value, tuple) else value) == config[name][key]
                if "default" in node:
                    value = getattr(defaults, key)
                    assert (list(value) if isinstance(value, tuple) else value) == node["default"]
