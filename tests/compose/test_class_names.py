"""The names of the classes are those of the key, of the checkpoint or of the data, in this order, and fit them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptmq_lightning.compose.class_names import class_names
from ptmq_lightning.data.sources import Sources
from ptmq_lightning.models import zoo
from ptmq_lightning.models.zoo import Network
from ptmq_lightning.runtime.errors import ConfigError, DataError

SOURCES = Sources("imagefolder", [], [], 3, {}, classes=("ant", "bee", "cat"))


@pytest.fixture(scope="module")
def network() -> Network:
    return zoo.build("digits_resnet", pretrained=False, num_classes=3)


def test_a_key_wins_over_the_checkpoint_and_the_checkpoint_over_the_data(network: Network) -> None:
    told = replace(network, classes=("Ameise", "Biene", "Katze"))
    assert class_names(["x", "y", "z"], told, SOURCES, 3) == ("x", "y", "z")
    assert class_names(None, told, SOURCES, 3) == ("Ameise", "Biene", "Katze")
    assert class_names(None, network, SOURCES, 3) == ("ant", "bee", "cat")


def test_names_come_from_a_text_file_line_by_line(network: Network, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Ameise\nHummel, Biene \nKätzchen\n\n", encoding="utf-8")
    assert class_names(str(tmp_path / "names.txt"), network, SOURCES, 3) == ("Ameise", "Hummel, Biene", "Kätzchen")


@pytest.mark.parametrize("given", [["a", "b"], [], "nothing.txt", ["a", ["b"], "c"], ["a", " ", "c"], 5])
def test_what_are_no_names_of_the_networks_classes_is_refused(given: Any, network: Network) -> None:
    with pytest.raises(ConfigError, match=r"model\.classes"):
        class_names(given, network, SOURCES, 3)


def test_names_of_another_number_beside_a_checkpoint_are_not_its_classes(network: Network) -> None:
    assert class_names(None, replace(network, classes=("a", "b")), SOURCES, 3) == ("ant", "bee", "cat")


def test_data_that_number_a_class_otherwise_are_refused(network: Network) -> None:
    with pytest.raises(DataError, match=r"'ant' is class 0 .* class 2 of the checkpoint.*data\.class_map"):
        class_names(None, replace(network, classes=("cat", "bee", "ant")), SOURCES, 3)
