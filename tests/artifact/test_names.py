"""Named assignments join an artifact that is there, exactly, and nothing else of it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptmq_lightning.artifact import artifact, names
from ptmq_lightning.artifact.manifest import MANIFEST, TENSORS
from ptmq_lightning.artifact.names import store_assignments
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.spec import BitAssignment
from tests.artifact.tiny import tiny_model
from tests.networks import images, small_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return artifact.save(tiny_model(), tmp_path / "model")


def test_stored_names_are_switched_to_exactly(tmp_path: Path) -> None:
    model, x = small_model(), images(4)
    place = artifact.save(model, tmp_path / "model")
    names = [name for name, layer in model.layers.items() if not layer.pinned]
    mixed = model.resolve({name: ["w3a3", "w4a8", "w6a5"][i % 3] for i, name in enumerate(names)})
    store_assignments(place, {"mixed_4.0": mixed, "size_6mb": model.resolve("w4a4")})
    loaded = artifact.load(place)
    assert loaded.assignments == {"mixed_4.0": mixed, "size_6mb": model.resolve("w4a4")}
    model.switch(mixed)
    loaded.switch("mixed_4.0")
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_the_tensors_and_earlier_names_stay(folder: Path) -> None:
    model, tensors = artifact.load(folder), (folder / TENSORS).read_bytes()
    store_assignments(folder, {"first": model.resolve(4), "second": model.resolve(4)})
    store_assignments(folder, {"second": model.resolve(8)})
    assert artifact.load(folder).assignments == {"first": model.resolve(4), "second": model.resolve(8)}
    assert (folder / TENSORS).read_bytes() == tensors
    assert {file.name for file in folder.iterdir()} == {MANIFEST, TENSORS}


def test_what_fails_leaves_the_artifact_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / MANIFEST).read_bytes()

    def full(path: Path, data: str) -> Path:
        raise OSError("no room")

    monkeypatch.setattr(names, "write_atomically", full)
    with pytest.raises(OSError, match="no room"):
        store_assignments(folder, {"mixed": artifact.load(folder).resolve(4)})
    assert (folder / MANIFEST).read_bytes() == before


def test_an_assignment_of_other_layers_is_refused(folder: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(ArtifactError, match="'fc'"):
        store_assignments(folder, {"mixed": BitAssignment.from_json({"nobody": [4, 4]})})
    assert (folder / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("name", ["w4a4", "float", "4", "a,b", "", "a/b", "x" * 101])
def test_a_name_that_cannot_be_chosen_by_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(ArtifactError, match="mixed_4"):
        store_assignments(folder, {name: artifact.load(folder).resolve(4)})
