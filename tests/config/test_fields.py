"""Settings know their keys, check their values, and are told apart by a tag."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from tunediff.config.fields import Settings, Variant, node, setting
from tunediff.errors import TunediffError


@dataclass(frozen=True, kw_only=True)
class Oven(Settings):
    """Baking."""

    section: ClassVar[str] = "oven"

    heat: float = setting("Kelvin.", exclusiveMinimum=0)
    mode: Literal["fan", "grill"] = setting("What is on.", "fan")
    trays: tuple[int, ...] = setting("Levels in use.", (1,), minItems=1, minimum=1, maximum=4)
    minutes: int | None = setting("Time", 30, rule="half an hour", minimum=1)
    label: str | Literal[0] = setting("On the door.", "A", pattern="^[A-Z]$")

    door: str = "closed"  # no key

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("minutes", self.mode == "fan" or self.minutes != 30, "another time under the grill")


def test_keys_are_the_fields_that_are_settings() -> None:
    assert list(Oven.keys()) == ["heat", "mode", "trays", "minutes", "label"]
    assert Oven.keys()["minutes"][0].metadata["help"] == "Time; half an hour."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heat": 0}, "oven.heat: is 0, must be above 0; correct the config"),
        ({"heat": "hot"}, "oven.heat: is 'hot', must be a number; correct the config"),
        ({"heat": True}, "oven.heat: is True, must be a number; correct the config"),
        ({"heat": 1, "mode": "steam"}, "oven.mode: is 'steam', must be one of fan, grill; correct the config"),
        ({"heat": 1, "trays": (1, 5)}, "oven.trays: is (1, 5), must be at most 4; correct the config"),
        ({"heat": 1, "trays": 2}, "oven.trays: is 2, must be a list; correct the config"),
        ({"heat": 1, "minutes": 0}, "oven.minutes: is 0, must be at least 1; correct the config"),
        ({"heat": 1, "label": 5}, "oven.label: is 5, must be text or 0; correct the config"),
        ({"heat": 1, "mode": "grill"}, "oven.minutes: is 30, must be another time under the grill; correct the config"),
    ],
)
def test_a_bad_value_names_its_key(values: dict, message: str) -> None:
    with pytest.raises(TunediffError) as caught:
        Oven(**values)
    assert str(caught.value) == message


def test_a_misspelt_limit_is_an_error() -> None:
    with pytest.raises(TypeError, match="minimun"):
        setting("Metres.", 1, minimun=1)


def test_values_as_yaml_has_them() -> None:
    made = Oven(heat=450, trays=[2, 3], minutes=None, door="open")
    assert made.trays == (2, 3) and made == Oven(heat=450.0, trays=(2, 3), minutes=None, door="open")
    assert hash(made) == hash(Oven(heat=450, trays=(2, 3), minutes=None, door="open"))


class Fuel(Variant):
    """What burns."""

    tag: ClassVar[str] = "of"


@dataclass(frozen=True, kw_only=True)
class Gas(Fuel):
    """Gas."""

    kind: ClassVar[str] = "gas"

    pressure: int = setting("Bar.", 1, minimum=1)


@dataclass(frozen=True, kw_only=True)
class Wood(Fuel):
    """Wood."""

    kind: ClassVar[str] = "wood"


def test_a_family_knows_its_kinds() -> None:
    assert Fuel.kinds == {"gas": Gas, "wood": Wood}
    with pytest.raises(TunediffError, match=r"gas\.pressure: is 0"):
        Gas(pressure=0)
    choice = {"type": "object", "required": ["of"], "oneOf": [{"$ref": "#/$defs/Gas"}, {"$ref": "#/$defs/Wood"}]}
    assert node(Fuel, {}) == choice
    assert node(dict[str, Fuel], {"minProperties": 1}) == {
        **{"type": "object", "minProperties": 1, "additionalProperties": choice}
    }


@pytest.mark.parametrize(
    ("hint", "limits", "expected"),
    [
        (int, {"minimum": 1, "pattern": "x"}, {"type": "integer", "minimum": 1}),
        (bool, {"minimum": 1}, {"type": "boolean"}),
        (str | None, {"minLength": 1}, {"type": ["string", "null"], "minLength": 1}),
        (Literal["a"], {}, {"const": "a"}),
        (Literal["a", "b"] | None, {}, {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]}),
        (
            tuple[float, float],
            {"exclusiveMinimum": 0},
            {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number", "exclusiveMinimum": 0}},
        ),
        (
            dict[str, int],
            {"minimum": 1, "maxProperties": 8},
            {"type": "object", "maxProperties": 8, "additionalProperties": {"type": "integer", "minimum": 1}},
        ),
    ],
)
def test_limits_go_to_the_part_of_a_type_that_has_them(hint: object, limits: dict, expected: dict) -> None:
    assert node(hint, limits) == expected
