"""export= writes an artifact on images of the data it was made with, at the widths that bits= lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose import export, pipeline
from ptmq_lightning.compose.cli import configuration, exported_bits
from ptmq_lightning.compose.library import quantize
from ptmq_lightning.compose.pipeline import run
from ptmq_lightning.models.zoo import build
from ptmq_lightning.runtime.errors import ConfigError, ExportError


def saved(folder: Path, data: str) -> Path:
    torch.manual_seed(0)
    network = build("digits_resnet", pretrained=False)
    model = quantize(network, torch.randn(16, 3, 16, 16), bits=[["w4a4"], ["w8a8"]])
    model.info = replace(model.info, data=data)
    return artifact.save(model, folder)


def test_images_of_other_data_are_refused(tmp_path: Path) -> None:
    place = saved(tmp_path / "model", "imagenet")
    with pytest.raises(ConfigError) as caught:
        export.run_export(configuration(["export=onnx", f"artifact={place}"]), tmp_path)
    assert str(caught.value) == (
        f"the artifact {place} was made with data=imagenet, but its export would see images of data=digits; set "
        "data=imagenet, with data.root=DIR where it needs one"
    )


def test_without_data_the_images_are_those_of_the_artifacts_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def opened(name: str, **given: Any) -> Any:
        asked.update(given, name=name)
        raise InterruptedError  # far enough

    monkeypatch.setattr(export, "open_data", opened)
    place = saved(tmp_path / "model", "imagenet")
    run = {"data": {"name": "imagenet", "root": "pictures", "val_images": 7}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run))
    with pytest.raises(InterruptedError):
        export.run_export(configuration(["export=onnx", f"artifact={place}"]), tmp_path)
    assert (asked["name"], asked["root"], asked["val_images"]) == ("imagenet", "pictures", 7)


def test_an_export_sees_calibration_images_prepared_for_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    class Report:
        agreement = 99.0

    def write(_model: Any, out: Path, images: Any, bits: Any, **options: Any) -> dict[str, Any]:
        seen.update(options, out=out, shape=tuple(images.shape), bits=bits)
        return {"w4a8": Report()}

    monkeypatch.setattr(export, "write_export", write)
    monkeypatch.setattr(export, "report_lines", lambda *_: [])
    place = saved(tmp_path / "model", "digits")
    overrides = exported_bits(["export=onnx", f"artifact={place}", "bits=w8a8,w4a8", "export.images=5"])
    assert export.run_export(configuration(overrides), tmp_path) == 99.0
    assert seen == {
        "out": tmp_path / "export", "shape": (5, 3, 16, 16), "bits": ["w8a8", "w4a8"], "form": "static",
        "backend": "onnx", "weights": "signed", "packed": True, "device": None,
    }  # fmt: skip


def test_bits_lists_widths_where_something_is_exported() -> None:
    assert exported_bits(["bits=vit", "export=onnx"]) == ["bits=vit", "export=onnx"]
    for given in ("bits=w8a8,w4a8", "bits=[w8a8,w4a8]"):
        assert exported_bits([given, "artifact=DIR"]) == ["export.bits=[w8a8,w4a8]", "artifact=DIR"]


SMALL = ["data.val_images=50", "recon=smoke", "recon.iters=2", "bits=w4a4", "model.pretrained=false"]


def test_a_run_that_asks_for_an_export_leaves_one_beside_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    class Report:
        agreement = 99.0

    def write(_model: Any, out: Path, images: Any, bits: Any, **options: Any) -> dict[str, Any]:
        asked.update(options, out=out, images=len(images), complete=(tmp_path / "results.json").exists())
        return {"w4a4": Report()}

    monkeypatch.setattr(export, "write_export", write)
    monkeypatch.setattr(export, "report_lines", lambda *_: [])
    run(configuration([*SMALL, "export=onnx", "export.images=5"]), tmp_path)
    assert (asked["out"], asked["images"], asked["backend"], asked["complete"]) == (
        tmp_path / "model-onnx", 5, "onnx", True,
    )  # fmt: skip


class Odd(torch.nn.Module):
    """A network with an operation that ONNX has no form of here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.LocalResponseNorm(3)
        self.head = torch.nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def test_what_cannot_be_exported_is_refused_before_the_fit_where_an_export_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = build("digits_resnet", pretrained=False)
    monkeypatch.setattr(pipeline, "build", lambda _: replace(own, module=Odd().eval()))
    monkeypatch.setattr(pipeline, "insert", lambda *_: pytest.fail("what cannot be exported was quantized"))
    with pytest.raises(ExportError, match=r"LocalResponseNorm of 'norm'"):
        run(configuration([*SMALL, "export=onnx"]), tmp_path)
