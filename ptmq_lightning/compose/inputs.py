"""What a run is made of, as hashes and versions: a resumed run must find the same."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn

PACKAGES = ("ptmq-lightning", "torch", "timm")  # whose versions decide numbers


def describe_inputs(network: nn.Module, images: Tensor) -> dict[str, str]:
    """Hashes of the float network's tensors and of the drawn calibration images (N, C, H, W), and versions."""
    state = sorted(network.state_dict().items())
    found = {"the network's weights": _sha256(*state), "the calibration images": _sha256(("images", images))}
    return found | {f"the version of {name}": _version(name) for name in PACKAGES}


def _sha256(*tensors: tuple[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
