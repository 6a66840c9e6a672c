"""docs/mixed-precision.md works as it stands: its commands run in order, on a small model and its own pictures. Those
for a chip are taken with a limit that this model meets."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ptmq_lightning.allocate.prices import read_prices
from ptmq_lightning.allocate.sensitivity import free_layers
from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose.library import quantize
from ptmq_lightning.device import cli
from ptmq_lightning.export.ethosu_vela import read_rows
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.preprocessing import Preprocessing
from ptmq_lightning.runtime.spec import BitWidth
from tests.networks import small_model

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "mixed-precision.md").read_text(encoding="utf-8")
EVERY = re.findall(r"^    ptmq (.*)$", PAGE, flags=re.MULTILINE)
CHIP = [command for command in EVERY if "u55" in command]
COMMANDS = [command for command in EVERY if command not in CHIP]
PREPROCESSING = Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with DIR and FOLDER."""
    monkeypatch.chdir(tmp_path)
    saved(small_model(), tmp_path / "DIR")
    (tmp_path / "FOLDER").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "FOLDER" / f"{number}.png")
    return tmp_path


def saved(model: MultiBitModel, folder: Path) -> None:
    model.info = ModelInfo("small", preprocessing=PREPROCESSING)
    artifact.save(model, folder)


def of_convolutions() -> MultiBitModel:
    """What an Ethos-U takes, with layers whose weights it waits for."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 128), (128, 256)):
        parts += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
    network = nn.Sequential(*parts, nn.Flatten(), nn.Linear(256, 5)).eval()
    return quantize(network, torch.randn(8, 3, 8, 8), bits=[["w3a3", "w4a4"], ["w8a8"]])


@pytest.mark.runtimes
def test_every_command_runs_and_stores_the_names_that_the_page_tells(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    assert len(COMMANDS) == 8
    for command in COMMANDS:
        assert cli.main(command.split()) == 0, f"{command}: {capsys.readouterr().err}"
    stored = artifact.load(place / "DIR").assignments
    told = set(re.findall(r"`((?:mixed|size|max_drop|bit_ops)_[\w.]*\d\w*)`", PAGE))
    assert len(told) == 6 and told <= set(stored)
    assert {file.name for file in (place / "front").iterdir()} == {
        name for name in re.findall(r"`([\w.]+\.(?:md|csv|json|png))`", PAGE) if name.startswith(("front", "sensi"))
    }


@pytest.mark.slow
@pytest.mark.runtimes
@pytest.mark.parametrize("price", ["cycles", "bytes"])
def test_a_chip_s_compiler_prices_the_layers_and_compiles_the_choice(
    price: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ethosu.vela")
    pytest.importorskip("ai_edge_litert")
    shutil.rmtree(place / "DIR")
    saved(of_convolutions(), place / "DIR")
    compile_all, choose, compile_chosen = CHIP
    assert cli.main(compile_all.split()) == 0, capsys.readouterr().err
    table, free = read_prices(Path("u55/prices.csv"), price), free_layers(artifact.load(place / "DIR"))
    sums = {bits: sum(table[name][BitWidth(bits, bits)] for name in free) for bits in (3, 4, 8)}
    assert sums[3] < sums[8], "a limit between them does not bind"
    pinned = sum(max(prices.values()) for name, prices in table.items() if name not in free)
    limit = int((sums[3] + sums[8]) / 2 + pinned)
    for command in (choose, compile_chosen):
        words = command.replace("cycles", price).replace("300000", str(limit)).split()
        assert cli.main(words) == 0, capsys.readouterr().err
    assert f"w8a8 {sums[8] + pinned:,.10g}" in capsys.readouterr().out
    chosen = artifact.load(place / "DIR").assignments[name := f"{price}_{limit}"]
    spent = sum(table[layer][chosen[layer]] for layer in free)
    assert sums[3] <= spent <= limit - pinned
    (row,) = read_rows(Path(f"u55-{limit}/networks.csv"))
    assert row["width"] == name and row["cpu_operators"] == "0"


def test_the_page_is_found_from_the_readme() -> None:
    assert "](docs/mixed-precision.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
