"""docs/configuration.md is made of the declarations."""

from __future__ import annotations

from pathlib import Path

from ptmq_lightning.config.declared import every_key
from ptmq_lightning.config.document import PAGE, page
from ptmq_lightning.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_the_one_that_the_command_makes() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page()


def test_every_key_has_a_help_without_a_period() -> None:
    for key, field, _ in every_key(Config):
        assert field.metadata["help"], key
        assert not field.metadata["help"].endswith((". ", "?")), key
