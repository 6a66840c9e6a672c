"""One table says what each target takes; what it lacks is refused in one message."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx, nn

from ptmq_lightning.compose.library import quantize
from ptmq_lightning.device.cli import main
from ptmq_lightning.export import support
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.foresee import require_exportable
from ptmq_lightning.export.onnx_convert import operations
from ptmq_lightning.export.support import Support, table, text
from ptmq_lightning.export.targets import TARGETS, OnnxStatic
from ptmq_lightning.runtime.errors import ConfigError, ExportError
from tests.networks import images, small_model


def test_every_target_has_a_column_and_every_kind_of_layer_a_row() -> None:
    head, *rows = table()
    assert len(head) == 1 + len(TARGETS.variants)
    assert [row[0] for row in rows[: len(support.KINDS)]] == list(support.KINDS)
    assert all(len(row) == len(head) for row in rows)


def test_every_operation_that_is_written_is_listed() -> None:
    listed = {name for row in table()[len(support.KINDS) + 2 :] for name in row[0].split(", ")}
    assert listed == {support.plain_name(name) for name in operations()}


def test_widths_are_told_with_the_bits_that_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}

    class Narrow(OnnxStatic):
        backend = "narrow"

        def support(self) -> Support:
            return Support({support.LINEAR: held}, frozenset({"add"}))

    monkeypatch.setitem(TARGETS.variants, "narrow_static", Narrow)
    rows = {row[0]: row[-1] for row in table()}
    assert rows[support.LINEAR] == "2; 3-4 as 4; 5-8 as 8" and rows[support.CONV] == "-"


def test_what_a_target_lacks_is_named_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Poor(OnnxStatic):
        backend = "poor"

        def support(self) -> Support:
            return Support({support.CONV: support.BYTES}, frozenset({"Flatten"}))

    monkeypatch.setitem(TARGETS.variants, "poor_static", Poor)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = quantize(network, x, bits=[["w4a4"], ["w8a8"]])
    with pytest.raises(ExportError, match=r"to poor: .*Tanh.*; .*: a linear layer.*--targets") as error:
        write_export(model, tmp_path / "out", x, backend="poor")
    assert "Flatten" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_the_command_prints_the_table_without_an_artifact(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["export", "--targets"])
    assert capsys.readouterr().out == text() + "\n"


def test_the_page_shows_the_table_of_the_code() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- ptmq export --targets -->\n")[2].partition("\n<!-- end of targets -->")[0]
    assert shown == text(), "python benchmarks/readme.py"


def test_a_float_network_is_judged_by_what_the_asked_target_takes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    chain = [fx.symbolic_trace(network)]
    x = torch.zeros(2, 3, 8, 8)
    require_exportable(chain, x, "onnx")
    with pytest.raises(ExportError, match=r"to litert: '0\._1' \(GELU of '1'\)\."):
        require_exportable(chain, x, "litert")


def test_a_device_that_a_backend_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device='ethos-u55-256' with backend='onnx'.*no devices"):
        write_export(small_model(), tmp_path / "out", images(), device="ethos-u55-256")
