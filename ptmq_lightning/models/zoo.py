"""Float networks by name, with their weights and their preprocessing.

timm names are chosen so that the weights are those PTMQ's tables start from, or the nearest that timm has.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import timm.data
from timm.layers import set_fused_attn, use_fused_attn
from timm.utils import reparameterize_model
from torch import nn

from ptmq_lightning.models.checkpoint import Checkpoint, read_checkpoint
from ptmq_lightning.models.own import PICTURES, create_own, is_own, refused, require_preprocessing
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.preprocessing import Preprocessing

TIMM_NAMES: dict[str, str] = {
    "resnet18": "resnet18.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "mobilenetv2": "mobilenetv2_100.ra_in1k",
    "regnetx_600mf": "regnetx_006.pycls_in1k",
    "vit_t": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_s": "vit_small_patch16_224.augreg_in1k",
    "vit_b": "vit_base_patch16_224.augreg_in1k",
    "deit_t": "deit_tiny_patch16_224.fb_in1k",
    "deit_s": "deit_small_patch16_224.fb_in1k",
    "deit_b": "deit_base_patch16_224.fb_in1k",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in1k",
    "mobileone_s0": "mobileone_s0.apple_in1k",
    "cifar_vit": "vit_tiny_patch16_224",
}
_CIFAR_VIT = {
    "img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 4, "num_heads": 4, "mlp_ratio": 2, "num_classes": 10,
}  # fmt: skip
_OURS = {"cifar_resnet20": ("cifar", "CifarResNet20"), "digits_resnet": ("digits", "DigitsResNet")}
NAMES = (*TIMM_NAMES, *_OURS)


@dataclass(frozen=True)
class Network:
    """module: eval mode, fp32, images (B, C, H, W) -> logits (B, classes). source: where the weights come from.
    preprocessing_source: who says how images are prepared. guessed: nobody who knows these weights does. trained: the
    weights are not random. classes: their names, where the checkpoint holds them."""

    module: nn.Module
    name: str
    preprocessing: Preprocessing
    source: str
    trained: bool = True
    preprocessing_source: str = "given with the network"
    guessed: bool = False
    classes: tuple[str, ...] = ()


def build(
    name: str,
    *,
    checkpoint: Path | str | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    drop_extra: bool = False,
    **kwargs: Any,
) -> Network:
    """A float network by its name here or in timm.

    checkpoint: a file of `models.checkpoint`; without it `pretrained` loads timm's weights, else they are random.
    drop_extra: leave out tensors of the checkpoint that the network does not have.
    preprocessing: what differs from the network's own mean, std, interpolation, crop_pct, crop_mode, input_size.
    kwargs: of the network (such as img_size). Raises ModelError.
    """
    kwargs |= {} if num_classes is None else {"num_classes": num_classes}
    download = pretrained and checkpoint is None
    if download and (name in (*_OURS, "cifar_vit") or is_own(name)):
        raise _no_weights(name, "nobody publishes weights for it through timm")
    if is_own(name):
        require_preprocessing(name, preprocessing or {})
    read = read_checkpoint(Path(checkpoint)) if checkpoint is not None else None
    module, own = _create(name, download, kwargs)
    if read is not None:
        module = _filled(module, read, drop_extra)
    if name == "mobileone_s0":
        module = reparameterize_model(module)
    if checkpoint:
        source = f"checkpoint {Path(checkpoint).name}"
    else:
        source = f"timm {TIMM_NAMES.get(name, name)}" if download else "random weights"
    merged = Preprocessing.from_json(own | dict(preprocessing or {}))
    told = "the network's own" if name in (*_OURS, "cifar_vit") else f"timm's default of {TIMM_NAMES.get(name, name)}"
    if is_own(name):
        told = "what torchvision's Resize((height, width)) does"
    if download:
        told = "told with the pretrained weights"
    if preprocessing:
        told = f"model.preprocessing ({', '.join(preprocessing)}), the rest {told}"
    guessed = checkpoint is not None and not preprocessing and told.startswith("timm's")
    trained = bool(checkpoint or download)
    classes = read.classes if read is not None else ()
    return Network(module.eval().float(), name, merged, source, trained, told, guessed, classes)


def classes_of(name: str, num_classes: int | None = None) -> int | None:
    """How many classes a network will tell apart, before it is built; None where that is not known."""
    if num_classes is not None or is_own(name):
        return num_classes
    if name in (*_OURS, "cifar_vit"):
        return 10
    try:
        config = timm.get_pretrained_cfg(TIMM_NAMES.get(name, name))
    except RuntimeError:  # no such weights: building says so, with the names that there are
        return None
    return config.num_classes if config is not None else None


def _create(name: str, download: bool, kwargs: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and what it says of its preprocessing."""
    if is_own(name):
        return create_own(name, kwargs), dict(PICTURES)
    if name in _OURS:
        home = importlib.import_module(f"ptmq_lightning.models.{_OURS[name][0]}")
        try:
            module = getattr(home, _OURS[name][1])(**kwargs)
        except TypeError as error:
            raise refused(name, error) from error
        # Such images are neither resized nor cropped.
        return module, Preprocessing(home.INPUT_SIZE, home.MEAN, home.STD, "bilinear", 1.0).to_json()
    module = _create_timm(name, download, (_CIFAR_VIT if name == "cifar_vit" else {}) | kwargs)
    if name == "cifar_vit":
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        return module, Preprocessing((3, 32, 32), mean, std, crop_pct=1.0).to_json()
    own = timm_preprocessing(module)
    channels, height, width = own.input_size
    if "img_size" in kwargs:
        size = kwargs["img_size"]
        height, width = (size, size) if isinstance(size, int) else size
    own = _in_channels(own, int(kwargs.get("in_chans", channels)))
    return module, replace(own, input_size=(own.input_size[0], height, width)).to_json()


def _in_channels(own: Preprocessing, count: int) -> Preprocessing:
    """For images of other channels than the weights' configuration tells of: one mean and std for all, as of gray."""
    if count == own.input_size[0]:
        return own
    mean, std = (sum(numbers) / len(numbers) for numbers in (own.mean, own.std))
    return replace(own, input_size=(count, *own.input_size[1:]), mean=(mean,) * count, std=(std,) * count)


def timm_preprocessing(module: nn.Module) -> Preprocessing:
    """What the weights' configuration in a network of timm says about its images."""
    config = timm.data.resolve_model_data_config(module)
    known = [field.name for field in fields(Preprocessing)]
    return Preprocessing.from_json({key: config[key] for key in known if key in config})


def _create_timm(name: str, download: bool, kwargs: dict[str, Any]) -> nn.Module:
    full = TIMM_NAMES.get(name, name)
    if not timm.is_model(full.partition(".")[0].removeprefix("hf-hub:")) and "/" not in full:
        near = difflib.get_close_matches(name, {*NAMES, *timm.list_models()}, n=3)
        raise ModelError(
            f"no network is called '{name}'" + (f"; the nearest names are {', '.join(near)}" if near else "")
            + f". Expected one of {', '.join(NAMES)}, or any name of timm.list_models()."
        )  # fmt: skip
    with _open_attention(), _offline_if_unreachable() if download else contextlib.nullcontext():
        try:
            module: nn.Module = timm.create_model(full, pretrained=download, **kwargs)
        except TypeError as error:
            raise refused(name, error) from error
        except Exception as error:
            if not download:
                raise ModelError(f"timm cannot build '{full}' with {kwargs}: {error}") from error
            raise _no_weights(name, f"downloading '{full}' failed ({type(error).__name__})") from error
    return module


def _no_weights(name: str, why: str) -> ModelError:
    return ModelError(
        f"no pretrained weights for '{name}': {why}. Set model.checkpoint=FILE to read local weights, or "
        f"model.pretrained=false to run with random ones."
    )


@contextlib.contextmanager
def _open_attention() -> Iterator[None]:
    """Networks built inside compute attention step by step; timm's global switch is restored afterwards."""
    before, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(False)
    try:
        yield
    finally:
        set_fused_attn(before, experimental)


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Where the hub does not answer, only its local cache is read: a missing file is known at once, without retries."""
    constants, before = huggingface_hub.constants, huggingface_hub.constants.HF_HUB_OFFLINE
    hub = urllib.parse.urlparse(constants.ENDPOINT)
    if not before and not urllib.request.getproxies():
        try:
            socket.create_connection((hub.hostname, hub.port or 443), timeout=5).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _filled(module: nn.Module, checkpoint: Checkpoint, drop_extra: bool) -> nn.Module:
    """The network with the checkpoint's tensors, in timm's reparameterized form where only that form fits."""
    try:
        state = checkpoint.fitting(module.state_dict(), drop_extra=drop_extra)
    except ModelError as error:
        module = reparameterize_model(module)
        try:
            state = checkpoint.fitting(module.state_dict(), drop_extra=drop_extra)
        except ModelError:
            raise error from None
    module.load_state_dict(state, strict=False)
    return module
