"""Networks on any channels, shapes and numbers of classes run through the commands alike: train, predict, export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def pictures(folder: Path, channels: int, classes: int) -> None:
    """A training and an evaluation part of noise, 24 and 3 pictures of each class."""
    numbers = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 3)):
        for name in (f"kind {index:02d}" for index in range(classes)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = numbers.integers(0, 256, (30, 50, channels), dtype=np.uint8).squeeze()
                Image.fromarray(pixels, MODES[channels]).save(folder / part / name / f"{number}.png")


def ran(folder: Path, *command: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "classes", "network"),
    [
        ((1, 32, 32), 3, ["model.name=test_resnet", "+model.kwargs.in_chans=1"]),
        ((4, 32, 32), 2, ["model.name=test_resnet", "+model.kwargs.in_chans=4"]),
        ((3, 24, 40), 13, ["model.name=test_resnet"]),
        ((3, 32, 48), 1, ["model.name=test_vit", "+model.kwargs.img_size=[32,48]"]),
    ],
    ids=["gray", "rgba", "13 classes", "one class"],
)
def test_a_network_runs_through_every_command(
    size: tuple[int, int, int], classes: int, network: list[str], tmp_path: Path
) -> None:
    pictures(tmp_path / "photos", size[0], classes)
    shutil.copy(ROOT / "train.py", tmp_path)
    shape = [] if any("img_size" in word for word in network) else [f"+model.preprocessing.input_size={[*size]}"]
    ran(
        tmp_path, "train.py", "model=timm", *network, *shape, f"model.num_classes={classes}", "model.pretrained=false",
        "data=imagefolder", "data.root=photos", "bits=w4a4", "recon=smoke", "recon.iters=2",
        "data.calibration_images=16", "export=onnx", "export.images=8", "hydra.run.dir=out",
    )  # fmt: skip
    export = json.loads((tmp_path / "out/model-onnx/export.json").read_text())
    assert export["info"]["input_size"] == [*size] and len(export["info"]["classes"]) == classes
    ptmq = ("-m", "ptmq_lightning.device.cli")
    lines = ran(tmp_path, *ptmq, "predict", "out/model", "photos/val", "--json").splitlines()
    assert len(lines) == 3 * classes
    assert {found["name"] for line in lines for found in json.loads(line)["classes"]} <= {
        f"kind {index:02d}" for index in range(classes)
    }
    ran(tmp_path, *ptmq, "export", "out/model", "--images", "photos/val", "--bits", "w4a4", "--out", "exported")
