"""docs/mixed-precision.md works as it stands: its commands run in order, on a small model and its own pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptmq_lightning.allocate.sensitivity import free_layers
from ptmq_lightning.artifact import artifact
from ptmq_lightning.device import cli
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.preprocessing import Preprocessing
from tests.networks import small_model

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "mixed-precision.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ptmq (.*)$", PAGE, flags=re.MULTILINE)
PREPROCESSING = Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DIR, FOLDER and u55.csv in the working folder."""
    monkeypatch.chdir(tmp_path)
    model = small_model()
    model.info = ModelInfo("small", preprocessing=PREPROCESSING)
    artifact.save(model, tmp_path / "DIR")
    (tmp_path / "FOLDER").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "FOLDER" / f"{number}.png")
    rows = [f"{n},w{w}a{w},{10 * w},{100 * w}" for n in free_layers(model) for w in (3, 4, 6, 8)]
    (tmp_path / "u55.csv").write_text("\n".join(["layer,pair,bytes,cycles", *rows]))
    return tmp_path


@pytest.mark.runtimes
def test_every_command_runs_and_stores_the_names_that_the_page_tells(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    assert len(COMMANDS) == 9
    for command in COMMANDS:
        assert cli.main(command.split()) == 0, f"{command}: {capsys.readouterr().err}"
    stored = artifact.load(place / "DIR").assignments
    told = set(re.findall(r"`((?:mixed|size|max_drop|bit_ops)_[\w.]*\d\w*)`", PAGE))
    assert len(told) == 6 and told <= set(stored)
    assert {file.name for file in (place / "front").iterdir()} == {
        name for name in re.findall(r"`([\w.]+\.(?:md|csv|json|png))`", PAGE) if name.startswith(("front", "sensi"))
    }


def test_the_page_is_found_from_the_readme() -> None:
    assert "](docs/mixed-precision.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
