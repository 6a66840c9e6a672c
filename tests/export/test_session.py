"""A session runs what was exported and nothing else, in as many threads as call it."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session
from ptmq_lightning.runtime.errors import ConfigError, ExportError, ModelError
from ptmq_lightning.runtime.model import MultiBitModel, quantizers_of, weights_of
from ptmq_lightning.runtime.sealed import digest
from tests.networks import images, small_model

FORMS = [("static", "onnx"), ("multi", "onnx"), ("switchable", "onnx"), ("static", "openvino")]
WIDTHS = ["w8a8", "w4a8"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The small network in every form, its activations at 8 bits."""
    folder, model = tmp_path_factory.mktemp("session"), small_model()
    for form, backend in FORMS:
        write_export(model, folder / f"{backend}_{form}", images(), WIDTHS, form=form, backend=backend)
    return {(form, backend): folder / f"{backend}_{form}" for form, backend in FORMS}


def test_activations_of_a_width_that_was_not_exported_are_refused(exported: dict[tuple[str, str], Path]) -> None:
    session = Session(exported["switchable", "onnx"])
    with pytest.raises(ConfigError) as error:
        session.switch("w4a4")
    assert str(error.value) == (
        "the width 'w4a4' needs 4 bits at the input of layer1.0.conv1, which this export does not hold. Choose among "
        "the exported widths, or export this one too."
    )
    assert session.active == session.assignments["w8a8"]


def tied_model() -> MultiBitModel:
    """w4a8 and w8a4 have one bias in layer1.0.conv1, for the units s_a * s_w of it are equal (codes of 4 bits are
    stored times 8)."""
    model = small_model()
    weight = dict(weights_of(model.blocks[1]))["layer1.0.conv1"]
    weight.steps[weight.widths.index(4)] = 16 * weight.steps[weight.widths.index(8)]
    quantizer = dict(quantizers_of(model.blocks[1]))["quantizers.layer1_0_conv1"]
    quantizer.steps[quantizer.widths.index(4)] = 2 * quantizer.steps[quantizer.widths.index(8)]
    return model


def test_a_mix_whose_constants_would_differ_is_refused(tmp_path: Path) -> None:
    model = tied_model()
    draft = Draft(model, images(), ["w4a8", "w8a4"])
    assert "layer1.0.conv1.bias" not in draft.differing()  # the premise of this test
    write_export(model, tmp_path / "out", images(), ["w4a8", "w8a4"], form="switchable")
    session = Session(tmp_path / "out")
    mixed = {name: "w4a8" for name, layer in model.layers.items() if not layer.pinned} | {"layer1.0.conv1": "w4a4"}
    with pytest.raises(ConfigError) as error:
        session.switch(mixed)
    assert str(error.value) == (
        f"the width {mixed!r} needs another layer1.0.conv1.bias, which is a constant of this export: all its widths "
        f"share it. Choose among the exported widths, or export this one too."
    )


@pytest.mark.parametrize(("form", "backend"), FORMS)
def test_two_threads_on_one_session_get_what_one_gets(
    form: str, backend: str, exported: dict[tuple[str, str], Path]
) -> None:
    session = Session(exported[form, backend])
    given = [images(count, seed=count).numpy() for count in (1, 3)]  # other sizes, so that a mix-up cannot hide
    expected = [session(x) for x in given]

    def work(thread: int) -> bool:
        return all(np.array_equal(session(given[thread]), expected[thread]) for _ in range(1000))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, range(2)))


@pytest.mark.parametrize(("form", "backend"), FORMS)
def test_handles_switch_in_threads_of_their_own(form: str, backend: str, exported: dict[tuple[str, str], Path]) -> None:
    session, x = Session(exported[form, backend]), images(2).numpy()
    expected = {}
    for width in WIDTHS:
        session.switch(width)
        expected[width] = session(x)
    assert not np.array_equal(*expected.values())
    fresh = Session(exported[form, backend])  # whose second width is prepared by the threads

    def work(first: int) -> bool:
        handle = fresh.handle()
        order = WIDTHS[first:] + WIDTHS[:first]
        return all(np.array_equal(at(handle, width), expected[width]) for _ in range(200) for width in order)

    def at(handle: Session, width: str) -> np.ndarray:
        handle.switch(width)
        return handle(x)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, range(2)))
    assert fresh.active == fresh.assignments[WIDTHS[0]]  # its own width is as it was
    assert all(fresh.handle()._runs[a] is fresh._runs[a] for a in fresh.assignments.values())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"hashes": {"../model.onnx": "0"}}, "hashes names '../model.onnx'"),
        ({"hashes": {}}, "hashes does not name 'model.onnx'"),
        ({"files": {"*": "../model.onnx"}}, "hashes does not name '../model.onnx'"),
        ({"files": {}}, "files names 0 widths"),
        ({"image_shape": [3, 200_000, 200_000]}, "image_shape is "),
        ({"pairs": [[8, 8]] * 1000}, "pairs is 1,000 entries"),
        ({"form": "liquid"}, "form is liquid"),
        ({"table": None}, "table is None"),
        ({"assignments": {}}, "assignments is empty"),
    ],
    ids=str,
)
def test_a_manifest_that_asks_for_what_no_export_has_is_refused(
    changed: dict[str, object], named: str, exported: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    place = Path(shutil.copytree(exported["switchable", "onnx"], tmp_path / "copy"))
    manifest = json.loads((place / "export.json").read_text(encoding="utf-8")) | changed
    (place / "export.json").write_text(json.dumps(manifest | {"sha256": digest(manifest)}), encoding="utf-8")
    with pytest.raises(ExportError) as error:
        Session(place)
    assert str(error.value).startswith(f"cannot open '{place}': export.json describes no export: {named}")


@pytest.mark.parametrize("link", [True, False], ids=["a link", "a pipe"])
def test_a_link_and_a_pipe_in_the_place_of_a_file_are_refused(
    link: bool, exported: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    place = Path(shutil.copytree(exported["switchable", "onnx"], tmp_path / "copy"))
    (place / "model.onnx").unlink()
    if link:
        (place / "model.onnx").symlink_to(exported["switchable", "onnx"] / "model.onnx")
    else:
        os.mkfifo(place / "model.onnx")
    with pytest.raises(ExportError, match=r"model\.onnx cannot be read \(it is no regular file\)"):
        Session(place)


def test_two_threads_that_switch_one_session_are_told_of_handles(exported: dict[tuple[str, str], Path]) -> None:
    session = Session(exported["switchable", "onnx"])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(session.switch, WIDTHS[0]).result()
    with pytest.raises(ModelError, match=r"another thread has switched .*handle\(\)"):
        session(np.zeros((1, *session.manifest["image_shape"]), np.float32))
    own = session.handle()
    own.switch(WIDTHS[0])
    assert own(np.zeros((1, *session.manifest["image_shape"]), np.float32)).shape[0] == 1


@pytest.mark.parametrize("name", ["model.onnx", "widths.safetensors"])
def test_a_flipped_bit_is_found_and_its_file_named(
    name: str, exported: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    place = Path(shutil.copytree(exported["switchable", "onnx"], tmp_path / "copy"))
    data = bytearray((place / name).read_bytes())
    data[len(data) // 2] ^= 1
    (place / name).write_bytes(data)
    with pytest.raises(ExportError) as error:
        Session(place)
    assert str(error.value).startswith(f"cannot open '{place}': {name} was altered, its SHA-256 is ")
    assert str(error.value).endswith("... Copy the export again, or export the artifact again.")


def test_a_number_changed_in_the_manifest_is_found(exported: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(exported["switchable", "onnx"], tmp_path / "copy"))
    text = (place / "export.json").read_text(encoding="utf-8")
    (place / "export.json").write_text(text.replace('"factor": 1.0', '"factor": 2.0'), encoding="utf-8")
    with pytest.raises(ExportError) as error:
        Session(place)
    assert str(error.value).startswith(f"cannot open '{place}': export.json was altered, its SHA-256 is ")


@pytest.mark.parametrize(("form", "backend"), FORMS)
def test_a_missing_file_is_named(
    form: str, backend: str, exported: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    place = Path(shutil.copytree(exported[form, backend], tmp_path / "copy"))
    name = "w4a8.onnx" if form == "static" else "model.onnx"
    (place / name).unlink()
    with pytest.raises(ExportError) as error:
        Session(place)
    assert str(error.value).startswith(f"cannot open '{place}': {name} cannot be read (it is missing); ")
    assert str(error.value).endswith(" Copy the export again, or export the artifact again.")


@pytest.mark.parametrize(
    ("text", "found"),
    [("[]", "is no JSON object"), ('{"format": "ptmq export", "version": 1}', "has format 'ptmq export', version 1; ")],
)
def test_a_manifest_of_another_kind_or_version_is_refused(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(ExportError) as error:
        Session(tmp_path)
    assert str(error.value).startswith(f"cannot open '{tmp_path}': export.json {found}")
    assert str(error.value).endswith("xport the artifact again.")


@pytest.mark.parametrize(("form", "backend"), FORMS)
def test_images_of_another_size_are_refused(form: str, backend: str, exported: dict[tuple[str, str], Path]) -> None:
    with pytest.raises(ExportError) as error:
        Session(exported[form, backend])(np.zeros((2, 3, 9, 8), np.float32))
    assert str(error.value) == (
        "found images of shape (2, 3, 9, 8); expected (B, 3, 8, 8), as exported. Prepare them so, or export the "
        "artifact with images of this size."
    )
