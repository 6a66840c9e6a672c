"""Looking at what modules read while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def watched_inputs(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Context in which `see(name, x)` is told the first input of each module before the module runs.

    Args:
        modules: by the name that `see` is told.
    """

    def hook(name: str) -> Callable[..., Any]:
        return lambda _module, inputs: see(name, inputs[0])

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
