"""A sealed file is read as it was written, or one message says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.sealed import Sealed, difference, digest, read_object

BOX = Sealed("box", 2, "box.json", ExportError, "cannot open", older="Make it again.", again="Copy it again.")


def write(folder: Path, manifest: object) -> None:
    (folder / BOX.file).write_text(json.dumps(manifest))


def test_what_is_stamped_is_read(tmp_path: Path) -> None:
    write(tmp_path, BOX.stamped({"side": 3}))
    assert BOX.read(tmp_path) == {"format": "box", "version": 2, "side": 3, "sha256": digest(BOX.stamped({"side": 3}))}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "box.json is no JSON object ("),
        ("[]", "box.json is no JSON object (found a list, expected an object). Copy it again."),
        ("[" * 100_000, "box.json is no JSON object (it is nested too deeply). Copy it again."),
        ("{}", "box.json has format None, version None; expected format 'box', version 2. Make it again."),
        (json.dumps(BOX.stamped({}) | {"version": 1}), "box.json has format 'box', version 1; expected "),
        (json.dumps(BOX.stamped({}) | {"side": 4}), "box.json was altered, its SHA-256 is "),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / BOX.file).write_text(text)
    with pytest.raises(ExportError) as error:
        BOX.read(tmp_path)
    assert str(error.value).startswith(f"cannot open '{tmp_path}': {says}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"box\.json cannot be read \(it is missing\); expected .* Copy it again\."):
        BOX.read(tmp_path)


def test_a_version_is_compared_with_the_expected_one(tmp_path: Path) -> None:
    write(tmp_path, {"schema": 1, "rows": []})
    found = read_object(tmp_path / BOX.file)
    assert difference(found, {"schema": 1}) is None
    assert difference(found, {"schema": 2}) == "schema 1; expected schema 2"
