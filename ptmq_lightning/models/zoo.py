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
import safetensors
import safetensors.torch
import timm
import timm.data
import torch
from timm.layers import set_fused_attn, use_fused_attn
from timm.utils import reparameterize_model
from torch import Tensor, nn

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
    trained: the weights are not random."""

    module: nn.Module
    name: str
    preprocessing: Preprocessing
    source: str
    trained: bool = True


def build(
    name: str,
    *,
    checkpoint: Path | str | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Network:
    """A float network by its name here or in timm.

    checkpoint: safetensors or a plain state dict; without it `pretrained` loads timm's weights, else they are random.
    preprocessing: what differs from the network's own mean, std, interpolation, crop_pct, crop_mode, input_size.
    kwargs: of the network (such as img_size). Raises ModelError.
    """
    kwargs |= {} if num_classes is None else {"num_classes": num_classes}
    download = pretrained and checkpoint is None
    if download and name in (*_OURS, "cifar_vit"):
        raise _no_weights(name, "nobody publishes weights for it through timm")
    module, own = _create(name, download, kwargs)
    if checkpoint is not None:
        state = read_state(Path(checkpoint))
        if name == "mobileone_s0" and set(state) != set(module.state_dict()):
            module = reparameterize_model(module)
        _load(module, state, Path(checkpoint))
    if name == "mobileone_s0":
        module = reparameterize_model(module)
    if checkpoint:
        source = f"checkpoint {Path(checkpoint).name}"
    else:
        source = f"timm {TIMM_NAMES.get(name, name)}" if download else "random weights"
    merged = Preprocessing.from_json(own.to_json() | dict(preprocessing or {}))
    return Network(module.eval().float(), name, merged, source, trained=bool(checkpoint or download))


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a plain state dict (read with weights_only), floating point as fp32."""
    if not path.is_file():
        raise ModelError(
            f"no checkpoint at '{path}'; expected a safetensors file or a state dict. Set model.checkpoint."
        )
    try:
        state: Any = safetensors.torch.load_file(path)
    except safetensors.SafetensorError:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ModelError(
                f"cannot read the checkpoint '{path.name}'; expected a safetensors file or a "
                f"plain state dict (name -> tensor) saved by torch.save. Convert it to safetensors."
            ) from error
    return _plain_state(state, path.name)


def _plain_state(state: Any, file: str) -> dict[str, Tensor]:
    if isinstance(state, dict):
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    others = [v for v in state.values() if not isinstance(v, Tensor)] if isinstance(state, dict) else [state]
    if others:
        held = (
            f"a dict with values of type {type(others[0]).__name__}"
            if isinstance(state, dict)
            else type(state).__name__
        )
        raise ModelError(
            f"the checkpoint '{file}' holds {held}, not a plain state dict; expected name -> tensor. "
            f"Save module.state_dict() instead."
        )
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _create(name: str, download: bool, kwargs: dict[str, Any]) -> tuple[nn.Module, Preprocessing]:
    if name in _OURS:
        home = importlib.import_module(f"ptmq_lightning.models.{_OURS[name][0]}")
        try:
            module = getattr(home, _OURS[name][1])(**kwargs)
        except TypeError as error:
            raise ModelError(f"the network '{name}' does not take these options: {error}. Remove them.") from error
        # Such images are neither resized nor cropped.
        return module, Preprocessing(home.INPUT_SIZE, home.MEAN, home.STD, "bilinear", 1.0)
    module = _create_timm(name, download, (_CIFAR_VIT if name == "cifar_vit" else {}) | kwargs)
    if name == "cifar_vit":
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        return module, Preprocessing((3, 32, 32), mean, std, crop_pct=1.0)
    own = timm_preprocessing(module)
    if "img_size" in kwargs:
        size = kwargs["img_size"]
        height, width = (size, size) if isinstance(size, int) else size
        own = replace(own, input_size=(own.input_size[0], height, width))
    return module, own


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
            raise ModelError(f"the network '{name}' does not take these options: {error}. Remove them.") from error
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


def _load(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unexpected or shapes:
        parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        found = "; ".join(f"{len(keys)} {what} (first: {', '.join(keys[:3])})" for what, keys in parts if keys)
        raise ModelError(
            f"the checkpoint '{path.name}' does not fit {type(module).__name__}: tensors {found}. Expected exactly the "
            f"network's own names and shapes; check model.name, num_classes and the file."
        )
    module.load_state_dict(state, strict=False)
