"""A network of the user's own Python file: model.name=FILE.py:NAME."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ptmq_lightning.runtime.errors import ModelError

FORM = "model.name=FILE.py:NAME, a class of networks or a function that returns one"
PICTURES = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}  # torchvision's Resize((H, W))


def is_own(name: str) -> bool:
    """Whether a network's name is that of a file and of something in it."""
    return name.partition(":")[0].endswith(".py")


def refused(name: str, error: TypeError) -> ModelError:
    """What to raise where a network's constructor does not accept the options that it was called with."""
    if found := re.search(r"missing \d+ required [\w-]+ arguments?: (.*)", str(error)):
        wanted = re.findall(r"'(\w+)'", found[1])
        keys = [f"model.{key}=N" if key == "num_classes" else f"+model.kwargs.{key}=VALUE" for key in wanted]
        return ModelError(f"the network '{name}' needs more options: {error}. Set {' '.join(keys)}.")
    return ModelError(f"the network '{name}' does not take these options: {error}. Remove them.")


def create_own(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """NAME(**kwargs) of FILE.py, which is run as an import runs it.

    Raises:
        ModelError: no such file or name, a file that fails, options that are not taken, or no network.
    """
    file, _, attribute = name.partition(":")
    make = getattr(_imported(Path(file)), attribute or "", None)
    if not callable(make):
        raise ModelError(f"'{file}' has no class or function {attribute!r}; expected {FORM}")
    try:
        module = make(**kwargs)
    except TypeError as error:
        raise refused(name, error) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"'{name}' gave {type(module).__name__}, no torch.nn.Module; expected {FORM}")
    return module


def require_preprocessing(name: str, given: Mapping[str, Any]) -> None:
    """Raises ModelError where nobody says how images are prepared for the network."""
    if missing := [key for key in ("input_size", "mean", "std") if key not in given]:
        raise ModelError(
            f"nobody tells the {', '.join(missing)} of the images of '{name}'; set what it was trained with: "
            "'+model.preprocessing={input_size:[3,32,32],mean:[0.5,0.5,0.5],std:[0.5,0.5,0.5]}'"
        )


def _imported(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"own_network_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ModelError(f"there is no file '{file}'; expected {FORM}, the path as seen from here, {Path.cwd()}")
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))  # modules beside it are found, as where it was written
    try:
        spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"'{file}' cannot be imported ({type(error).__name__}: {error}); expected a file that defines the network. "
            'Put what trains under if __name__ == "__main__":'
        ) from error
    finally:
        sys.path.remove(str(file.resolve().parent))
    return loaded
