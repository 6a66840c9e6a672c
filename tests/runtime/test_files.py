"""What is written appears whole or not at all, and what a kill left is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptmq_lightning.runtime.files import (
    bring_back,
    remove_unfinished,
    replacing_file,
    replacing_folder,
    set_aside,
    write_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", ["naïve\n", b"\x00\r\n"])
def test_a_file_holds_what_was_written(data: str | bytes, tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "new" / "file", data)
    assert path.read_bytes() == (data.encode("utf-8") if isinstance(data, str) else data)
    assert names(path.parent) == ["file"]


def test_until_the_end_the_old_file_stands(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "file", "old")
    with replacing_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "file", "old")
    with pytest.raises(KeyboardInterrupt), replacing_file(path) as part:
        part.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "model"
    for content in ("old", "new"):
        with replacing_folder(place) as part:
            (part / "file").write_text(content)
    with pytest.raises(ZeroDivisionError), replacing_folder(place) as part:
        (part / "file").write_text("newer")
        _ = 1 / 0
    assert (place / "file").read_text() == "new" and names(tmp_path) == ["model"]


def test_the_latest_folder_that_was_set_aside_is_brought_back(tmp_path: Path) -> None:
    import os

    for second, name in enumerate((".model.0123abcd.old", ".model.0000aaaa.old", ".model.v2.0123abcd.old")):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (second, second))
    assert [path.name for path in set_aside(tmp_path / "model")] == [".model.0123abcd.old", ".model.0000aaaa.old"]
    bring_back(tmp_path / "model")
    bring_back(tmp_path / "model")  # one stands there: nothing is to be done
    assert names(tmp_path) == [".model.0123abcd.old", ".model.v2.0123abcd.old", "model"]


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".model.0123abcd.part").mkdir()
    (tmp_path / ".model.0123abcd.part" / "file").touch()
    (tmp_path / ".results.json.0123abcd.part").touch()
    kept = [".model.0123abcd.old", "film.part", ".film.part"]
    for name in kept:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == sorted(kept)
