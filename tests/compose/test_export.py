"""export= writes an artifact on images of the data it was made with, at the widths that bits= lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose import export
from ptmq_lightning.compose.cli import configuration, exported_bits
from ptmq_lightning.compose.library import quantize
from ptmq_lightning.models.zoo import build
from ptmq_lightning.runtime.errors import ConfigError


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
    monkeypatch.setattr(export, "report", lambda *_: [])
    place = saved(tmp_path / "model", "digits")
    overrides = exported_bits(["export=onnx", f"artifact={place}", "bits=w8a8,w4a8", "export.images=5"])
    assert export.run_export(configuration(overrides), tmp_path) == 99.0
    assert seen == {
        "out": tmp_path / "export", "shape": (5, 3, 16, 16), "bits": ["w8a8", "w4a8"], "form": "static",
        "backend": "onnx", "weights": "signed",
    }  # fmt: skip


def test_bits_lists_widths_where_something_is_exported() -> None:
    assert exported_bits(["bits=vit", "export=none"]) == ["bits=vit", "export=none"]
    for given in ("bits=w8a8,w4a8", "bits=[w8a8,w4a8]"):
        assert exported_bits([given, "export=onnx"]) == ["export.bits=[w8a8,w4a8]", "export=onnx"]
