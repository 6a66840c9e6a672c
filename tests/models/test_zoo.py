from __future__ import annotations

from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from timm.layers import use_fused_attn

from ptmq_lightning.models import zoo
from ptmq_lightning.models.cifar import CifarResNet20
from ptmq_lightning.runtime.errors import ModelError


def message(**options) -> str:
    with pytest.raises(ModelError) as caught:
        zoo.build(**options)
    return str(caught.value)


@pytest.mark.parametrize("full", zoo.TIMM_NAMES.values())
def test_timm_knows_every_name_with_its_weights(full):
    assert full in timm.list_pretrained() or full == "vit_tiny_patch16_224"


def test_preprocessing_is_the_network_s_own():
    assert zoo.build("vit_t", pretrained=False).preprocessing.to_json() == {
        "input_size": [3, 224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
    }  # fmt: skip


def test_preprocessing_can_be_overridden_value_by_value():
    found = zoo.build(
        "resnet18", pretrained=False, preprocessing={"mean": [0.1, 0.2, 0.3], "crop_pct": 1.0}
    ).preprocessing
    assert (found.mean, found.crop_pct, found.std) == ((0.1, 0.2, 0.3), 1.0, (0.229, 0.224, 0.225))


def test_an_image_size_travels_into_the_preprocessing():
    assert zoo.build("vit_t", pretrained=False, img_size=64).preprocessing.input_size == (3, 64, 64)


def test_preprocessing_survives_json():
    found = zoo.build("cifar_vit", pretrained=False).preprocessing
    assert zoo.Preprocessing.from_json(found.to_json()) == found


def test_the_network_is_in_eval_mode_and_fp32():
    module = zoo.build("cifar_resnet20", pretrained=False).module
    assert not any(part.training for part in module.modules())
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_building_restores_timm_s_switch_for_fused_attention():
    before = use_fused_attn()
    module = zoo.build("cifar_vit", pretrained=False).module
    assert module.blocks[0].attn.fused_attn is False
    assert use_fused_attn() == before


def test_a_half_precision_checkpoint_becomes_fp32(tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in CifarResNet20().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "half.safetensors")
    network = zoo.build("cifar_resnet20", checkpoint=tmp_path / "half.safetensors")
    assert network.source == "checkpoint half.safetensors"
    assert torch.equal(network.module.conv1.weight, state["conv1.weight"].float())


def test_a_plain_state_dict_is_read(tmp_path):
    state = CifarResNet20().state_dict()
    torch.save(state, tmp_path / "plain.pt")
    network = zoo.build("cifar_resnet20", checkpoint=tmp_path / "plain.pt")
    assert torch.equal(network.module.linear.weight, state["linear.weight"])


def test_the_reparametrized_mobileone_has_no_branches():
    module = zoo.build("mobileone_s0", pretrained=False).module
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())


def test_an_unknown_name_is_answered_with_the_nearest():
    assert message(name="resnet81", pretrained=False).startswith(
        "no network is called 'resnet81'; the nearest names are resnet18, "
    )


def test_an_unknown_option_is_named():
    assert message(name="cifar_resnet20", pretrained=False, depth=3) == (
        "the network 'cifar_resnet20' does not take these options: CifarResNet20.__init__() got an unexpected keyword "
        "argument 'depth'. Remove them."
    )


def test_without_weights_one_message_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert message(name="resnet18") == (
        "no pretrained weights for 'resnet18': downloading 'resnet18.tv_in1k' failed (LocalEntryNotFoundError). Set "
        "model.checkpoint=FILE to read local weights, or model.pretrained=false to run with random ones."
    )


def test_a_network_that_nobody_publishes_says_so():
    assert message(name="cifar_resnet20") == (
        "no pretrained weights for 'cifar_resnet20': nobody publishes weights for it through timm. Set "
        "model.checkpoint=FILE to read local weights, or model.pretrained=false to run with random ones."
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar_resnet20", "cifar10/resnet20"),
        ("cifar_vit", "cifar10/vit_4x128"),
        ("vit_t", "imagenet/vit_tiny_patch16_224"),
        ("mobileone_s0", "imagenet/mobileone_s0_reparam"),
    ],
)
def test_the_real_weights_fill_the_network(data_root, name, file):
    assert zoo.build(name, checkpoint=data_root / f"{file}.safetensors").module is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"meen": [0.5] * 3}, "preprocessing.meen is no key (nearest: mean); expected input_size, mean, std,"),
        ({"input_size": 32}, "preprocessing.input_size=32 fits no image; expected whole numbers (channels, height,"),
        ({"interpolation": "cubic"}, "preprocessing.interpolation=cubic fits no image; expected one of nearest,"),
        ({"std": [1.0, 1.0, 0.0]}, "preprocessing.std=[1.0, 1.0, 0.0] fits no image; expected a finite number"),
        ({"mean": [0.5]}, "preprocessing.mean holds 1 numbers for images of 3 channels; expected a number per channel"),
        ({"mean": [float("nan")] * 3}, "preprocessing.mean=[nan, nan, nan] fits no image; expected a finite number"),
        ({"std": [float("inf")] * 3}, "preprocessing.std=[inf, inf, inf] fits no image; expected a finite number"),
        ({"input_size": [3, 16, 4097]}, "preprocessing.input_size=[3, 16, 4097] fits no image; expected whole numbers"),
        ({"crop_pct": 1.5}, "preprocessing.crop_pct=1.5 fits no image; expected a number above 0, at most 1"),
        ({"crop_pct": 0}, "preprocessing.crop_pct=0 fits no image; expected a number above 0"),
    ],
)
def test_preprocessing_that_fits_no_image_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        zoo.build("digits_resnet", pretrained=False, preprocessing=given)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_of_other_channels_gets_images_of_them(channels):
    network = zoo.build("test_resnet", pretrained=False, in_chans=channels)
    preprocessing = network.preprocessing
    assert preprocessing.input_size[0] == len(preprocessing.mean) == len(preprocessing.std) == channels
