"""The whole command on the small networks of many timm families, random weights: fitted, saved, loaded and switched.

Their common trait is an order of execution that differs from the order of names (a gate before a convolution, branches
that meet again), or operations that plain ResNets and ViTs do not have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.pipeline import run
from ptmq_lightning.runtime.model import MultiBitModel, weights_of

pytestmark = pytest.mark.slow

FAMILIES = {  # timm name -> image size; the smallest networks of their families
    "test_byobnet": 64,
    "test_convnext": 64,
    "test_convnext2": 64,
    "test_efficientnet": 64,
    "test_efficientnet_gn": 64,
    "test_efficientnet_evos": 64,
    "test_nfnet": 64,
    "test_resnet": 64,
    "test_vit": 160,
    "test_vit2": 160,
    "efficientnet_b0": 64,
    "mobilenetv3_small_050": 64,
    "ghostnet_050": 64,
    "mobilevit_xxs": 64,
    "repvit_m0_9": 64,
    "fastvit_t8": 256,
    "efficientvit_b0": 64,
    "efficientvit_m0": 224,
    "res2net50_14w_8s": 64,
    "resnest14d": 64,
    "hrnet_w18_small": 64,
    "cait_xxs24_224": 224,
    "levit_128s": 224,
    "convit_tiny": 224,
    "coat_lite_tiny": 224,
    "lcnet_035": 64,
    "semnasnet_050": 64,
    "starnet_s050": 64,
    "edgenext_xx_small": 64,
    "resmlp_12_224": 224,
    "vit_tiny_r_s16_p8_224": 224,
}
SHORT = [
    "recon=smoke", "recon.iters=1", "recon.batch=2", "recon.log_every=1", "data.calibration_images=4",
    "data.step_size_images=4", "data.val_images=4", "step_size.p=2", "bits.groups=[[w4a4],[w8a8]]",
]  # fmt: skip


def settings(name: str, size: int) -> list[str]:
    own = [f"model.name={name}", "model.pretrained=false", "model.num_classes=10"]
    return ["model=timm", *own, f"+model.preprocessing={{input_size:[3,{size},{size}]}}", *SHORT]


def trained(name: str, size: int, folder: Path) -> tuple[MultiBitModel, MultiBitModel]:
    """The model that a run fits, as it was handed to `save`, and as it was loaded from there."""
    kept: list[MultiBitModel] = []
    with pytest.MonkeyPatch.context() as patch:
        save = artifact.save

        def keep(model: MultiBitModel, *rest: Any) -> Path:
            kept.append(model)
            return save(model, *rest)

        patch.setattr(artifact, "save", keep)
        run(configuration(settings(name, size)), folder)
    return kept[0].eval(), artifact.load(folder / "model")


@pytest.mark.parametrize(("name", "size"), FAMILIES.items(), ids=list(FAMILIES))
def test_a_network_of_any_family_is_fitted_saved_and_switched_bit_for_bit(name: str, size: int, tmp_path: Path) -> None:
    model, loaded = trained(name, size, tmp_path / "run")
    stored = dict(weights_of(loaded))
    assert set(stored) == set(dict(weights_of(model)))
    for layer, weight in weights_of(model):
        for bits in weight.widths:
            assert torch.equal(stored[layer].at(bits), weight.at(bits)), f"{layer} at {bits} bits"
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    made = []
    for which in ("w4a4", "w8a8", "w4a4"):
        made.append(at(loaded, which, x))
        assert torch.equal(made[-1], at(model, which, x)), which
    assert torch.equal(made[0], made[2])
    # Not the logits: layer scales start at 1e-5 in some families, and the widths' logits may round to the same codes.
    assert any(not torch.equal(weight.at(4), weight.at(8)) for weight in stored.values() if 4 in weight.widths)
    rows = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["rows"]
    assert {row["config"] for row in rows} >= {"w4a4", "w8a8"}


def at(model: MultiBitModel, which: str, x: torch.Tensor) -> torch.Tensor:
    model.switch(which)
    with torch.no_grad():
        return model(x)
