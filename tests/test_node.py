"""The example in JavaScript runs one file at every width, and gives the classes that `Session` gives."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session
from tests.networks import small_model

pytestmark = pytest.mark.runtimes
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NODE = shutil.which("node")
NEEDED = pytest.mark.skipif(
    NODE is None or not (EXAMPLES / "node_modules" / "onnxruntime-node").exists(),
    reason="needs node, and what `npm install --prefix examples` installs",
)


@NEEDED
@pytest.mark.slow
@pytest.mark.parametrize("widths", [["w8a8", "w3a3", "w6a6", "w4a4"], ["w4a4", "mixed", "w8a8"]], ids=" ".join)
def test_javascript_gives_the_classes_of_python_at_every_width(widths: list[str], tmp_path: Path) -> None:
    model, images = small_model(), torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    inner = [name for name, layer in model.layers.items() if not layer.pinned]
    model.assignments["mixed"] = model.resolve({name: ("w8a8", "w3a3")[i % 2] for i, name in enumerate(inner)})
    write_export(model, tmp_path / "out", images, widths, form="multi")
    np.save(tmp_path / "images.npy", images.numpy())
    command = [NODE, EXAMPLES / "node" / "switch_widths.mjs", tmp_path / "out", tmp_path / "images.npy"]
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = dict(line.split(": ") for line in ran.stdout.splitlines())
    assert list(found) == widths
    session = Session(tmp_path / "out")
    for name, classes in found.items():
        session.switch(name)
        assert [int(index) for index in classes.split()] == session(images).argmax(1).tolist(), name
