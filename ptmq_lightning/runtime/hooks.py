"""Looking at what modules read and make while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def watched_inputs(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Context in which `see(name, x)` is told the first input of each module before the module runs.

    Args:
        modules: by the name that `see` is told.
    """

    def hook(name: str) -> Callable[..., Any]:
        return lambda _module, inputs: see(name, inputs[0])

    with _removed(module.register_forward_pre_hook(hook(name)) for name, module in modules.items()):
        yield


@contextmanager
def watched_calls(
    modules: Mapping[str, nn.Module], see: Callable[[str, tuple[Tensor, ...], Tensor], None]
) -> Iterator[None]:
    """Context in which `see(name, inputs, output)` is told of each module when it has run."""

    def hook(name: str) -> Callable[..., Any]:
        return lambda _module, inputs, output: see(name, inputs, output)

    with _removed(module.register_forward_hook(hook(name)) for name, module in modules.items()):
        yield


@contextmanager
def _removed(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """The hooks are set, and removed at the end, on errors too."""
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
