"""The loaders on real images: float accuracy equals the figures published with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ptmq_lightning.data.module import draw_calibration, eval_loader
from ptmq_lightning.data.sources import open_data
from ptmq_lightning.models.zoo import build

ROOT = Path(os.environ.get("PTMQ_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
pytestmark = pytest.mark.skipif(not (ROOT / "cifar10").is_dir(), reason=f"no real images: no {ROOT}; set PTMQ_DATA=DIR")


@pytest.mark.parametrize(
    ("name", "checkpoint", "correct"), [("cifar_resnet20", "resnet20", 915), ("cifar_vit", "vit_4x128", 717)]
)
@torch.inference_mode()
def test_float_networks_reach_their_published_accuracy_on_cifar10(name: str, checkpoint: str, correct: int) -> None:
    network = build(name, checkpoint=ROOT / "cifar10" / f"{checkpoint}.safetensors")
    val = open_data("cifar10", root=ROOT / "cifar10", preprocessing=network.preprocessing).val
    right = sum(int((network.module(images).argmax(1) == labels).sum()) for images, labels in eval_loader(val, 100))
    assert abs(right - correct) <= 1  # of 1,000; one image of slack for another order of summation


def test_imagenet_labels_come_from_the_class_map() -> None:
    preprocessing = build("vit_t", pretrained=False).preprocessing
    sources = open_data("imagenet", root=ROOT / "imagenet", preprocessing=preprocessing)
    described = sources.describe()
    assert (described["train_images"], described["val_images"], described["num_classes"]) == (500, 700, 1000)
    names = (ROOT / "imagenet" / "class_map.txt").read_text().split()
    assert sources.val.filename(0).split("/")[0] == names[sources.val[0][1]]


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_calibration_and_evaluation_share_no_image(name: str) -> None:
    preprocessing = build("cifar_resnet20", pretrained=False).preprocessing
    sources = open_data(name, root=ROOT / name, preprocessing=preprocessing)
    assert len(draw_calibration(sources.train, len(sources.train), 0, sources.val)) == len(sources.train)
