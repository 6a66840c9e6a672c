"""A registry knows what joined it, and says what it knows."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.keys import choices_of, key
from ptmq_lightning.runtime.registry import Registry


@pytest.fixture
def registry() -> Registry[type]:
    shapes: Registry[type] = Registry("shape")
    shapes.register("circle")(int)
    shapes.register("square")(float)
    return shapes


def test_a_variant_is_found_by_its_name(registry: Registry[type]) -> None:
    assert registry["square"] is float and registry.names() == ("circle", "square")


def test_an_unknown_name_is_answered_with_the_nearest_and_all(registry: Registry[type]) -> None:
    with pytest.raises(ConfigError) as caught:
        _ = registry["squire"]
    assert all(part in str(caught.value) for part in ("shape 'squire'", "nearest: square", "circle, square"))


def test_a_name_is_given_once(registry: Registry[type]) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.register("circle")(str)
    assert "'circle'" in str(caught.value) and registry["circle"] is int


def test_the_choices_of_a_key_grow_with_the_registry(registry: Registry[type]) -> None:
    @dataclass
    class Keys:
        name: str = key("circle", choices=registry.names)

    (field,) = fields(Keys)
    before = choices_of(field)
    registry.register("line")(str)
    assert choices_of(field) == (*before, "line")
