"""A network of the user's own Python file: model.name=FILE.py:NAME."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from torch import nn

from ptmq_lightning.runtime.errors import ModelError

FORM = "model.name=FILE.py:NAME, a class of networks or a function that returns one"


def is_own(name: str) -> bool:
    """Whether a network's name is that of a file and of something in it."""
    return name.partition(":")[0].endswith(".py")


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
        raise ModelError(f"the network '{name}' does not take these options: {error}. Remove them.") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"'{name}' gave {type(module).__name__}, no torch.nn.Module; expected {FORM}")
    return module


def _imported(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ModelError(f"there is no file '{file}'; expected {FORM}, the path as seen from here, {Path.cwd()}")
    loaded = importlib.util.module_from_spec(spec)
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
