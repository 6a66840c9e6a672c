"""Post-training multi-bit quantization: one pretrained vision network, one model for every bit-width.

The public names load on first use: ``import ptmq_lightning`` itself imports neither torch nor any code that does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ptmq_lightning.runtime import torchvision_shim

if TYPE_CHECKING:
    from ptmq_lightning.artifact.artifact import load as load
    from ptmq_lightning.artifact.artifact import save as save
    from ptmq_lightning.compose.library import evaluate as evaluate
    from ptmq_lightning.compose.library import quantize as quantize
    from ptmq_lightning.compose.library import reconstruct as reconstruct
    from ptmq_lightning.runtime.model import at_bits as at_bits

__version__ = "0.2.0"

_OWNERS = {
    "quantize": "ptmq_lightning.compose.library",
    "reconstruct": "ptmq_lightning.compose.library",
    "evaluate": "ptmq_lightning.compose.library",
    "save": "ptmq_lightning.artifact.artifact",
    "load": "ptmq_lightning.artifact.artifact",
    "at_bits": "ptmq_lightning.runtime.model",
}


def _public(name: str) -> Any:
    try:
        return getattr(import_module(_OWNERS[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ptmq_lightning.{name} needs the package {error.name!r}; expected the extra 'train': "
            "pip install 'ptmq-lightning[train]'.",
            name=error.name,
        ) from error


def __getattr__(name: str) -> Any:
    if name not in _OWNERS:
        raise AttributeError(
            f"ptmq_lightning has no public name {name!r}; the public names are {', '.join(_OWNERS)}: import everything "
            "else from the file that owns it"
        )
    return _public(name)


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *_OWNERS})


torchvision_shim.install()  # before any room imports timm, torchmetrics or lightning
