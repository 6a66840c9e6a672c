"""For an Ethos-U the .tflite is checked and compiled, and what the compiler estimates stands beside it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.allocate.prices import read_prices
from ptmq_lightning.compose.library import quantize
from ptmq_lightning.export import ethosu_vela
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session
from ptmq_lightning.export.targets import target_of
from ptmq_lightning.runtime.errors import ConfigError, ExportError
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth
from tests.networks import images, small_model

WIDTHS = ["w2a8", "w4a8", "w8a8"]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    pytest.importorskip("ethosu.vela")
    pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(x: Tensor) -> MultiBitModel:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    return quantize(network.eval(), x, bits=[["w2a8", "w4a8"], ["w8a8"]])


@pytest.fixture(scope="module")
def exported(model: MultiBitModel, x: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ethosu") / "out"
    for name, report in write_export(model, folder, x, WIDTHS, backend="ethosu", device="ethos-u55-128").items():
        assert report.largest_step is not None and report.largest_step <= 1, name
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_fewer_bits_are_fewer_bytes_on_the_device(exported: Path) -> None:
    found = rows(exported / "networks.csv")
    assert [row["width"] for row in found] == WIDTHS
    assert {(row["device"], row["cpu_operators"]) for row in found} == {("ethos-u55-128", "0")}
    sizes = [int(row["weight_bytes"]) for row in found]
    assert sizes == sorted(sizes) and sizes[0] < 0.7 * sizes[-1]
    for row in found:
        assert (exported / f"{row['width']}_vela.tflite").stat().st_size == int(row["file_bytes"])
        assert int(row["cycles"]) > 0 and int(row["sram_bytes"]) > 0


def test_every_layer_has_a_price_at_every_pair(exported: Path) -> None:
    found = {
        (row["layer"], row["pair"]): (int(row["bytes"]), int(row["cycles"])) for row in rows(exported / "prices.csv")
    }
    assert set(found) == {("0", "w8a8"), *(("2", width) for width in WIDTHS), ("6", "w8a8")}
    assert all(size > 0 and cycles > 0 for size, cycles in found.values())
    (narrow, *_) = rows(exported / "networks.csv")
    layers = sum(found[key][0] for key in (("0", "w8a8"), ("2", "w2a8"), ("6", "w8a8")))  # with scales and biases
    assert int(narrow["weight_bytes"]) < layers < int(narrow["file_bytes"])


def test_widths_can_be_allocated_by_these_prices(exported: Path) -> None:
    found = read_prices(exported / "prices.csv", "bytes")
    assert set(found) == {"0", "2", "6"}
    assert found["2"][BitWidth(2, 8)] < found["2"][BitWidth(4, 8)] < found["2"][BitWidth(8, 8)]


def test_what_is_compiled_is_what_the_interpreter_runs(model: MultiBitModel, x: Tensor, exported: Path) -> None:
    session = Session(exported)
    session.switch("w8a8")
    model.switch("w8a8")
    with torch.no_grad():
        assert torch.allclose(session(x), model(x), atol=0.1)


def test_the_command_says_that_these_are_estimates(exported: Path) -> None:
    first, *others = target_of("ethosu").notes(exported)
    assert "estimates" in first and "nothing was run" in first and len(others) == len(WIDTHS)


def test_an_earlier_export_is_replaced_with_all_its_files(
    model: MultiBitModel, x: Tensor, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ethosu_vela, "compiled", lambda *_: ethosu_vela.Compiled(1, 1, 1, 1, 0, {}, {}))
    held = {path.name: path.read_bytes() for path in exported.iterdir()}
    try:
        write_export(model, exported, x, ["w4a8"], backend="ethosu")
        assert {path.name for path in exported.iterdir()} == {
            "export.json",
            "w4a8.tflite",
            "prices.csv",
            "networks.csv",
        }
    finally:
        for path in exported.iterdir():
            path.unlink()
        for name, data in held.items():
            (exported / name).write_bytes(data)


def test_another_device_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ethos-u99.*ethos-u55-256"):
        write_export(small_model(), tmp_path / "out", images(), backend="ethosu", device="ethos-u99")


def test_what_the_compiler_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "w8a8.tflite").write_bytes(b"no flatbuffer at all")
    with pytest.raises(ExportError, match=r"Vela cannot compile w8a8\.tflite for ethos-u55-256: \S"):
        ethosu_vela.compiled(tmp_path / "w8a8.tflite", "ethos-u55-256")


def test_another_form_of_what_the_compiler_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys, pathlib; (pathlib.Path(sys.argv[-3]) / 'a_vela.tflite').touch()"
    monkeypatch.setattr(ethosu_vela, "_COMMAND", program)
    with pytest.raises(ExportError, match=r"another form than that of its release"):
        ethosu_vela.compiled(tmp_path / "a.tflite", "ethos-u55-256")
