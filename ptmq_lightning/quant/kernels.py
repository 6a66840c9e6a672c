"""The element-wise arithmetic of a fit's layers, as plain functions that can be compiled.

A fit spends what it costs beyond plain training here, in a dozen passes over every activation. Compiled, each function
is one pass (`compiled`); the numbers stay the same, but for the order in which a gradient of a step size is summed.
Every function takes flat tensors, so that one compilation serves all shapes.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ptmq_lightning.quant.rounding import rectified_sigmoid_and_slope

P = ParamSpec("P")
R = TypeVar("R")

_on = False


@contextmanager
def compiled(wanted: bool) -> Iterator[None]:
    """Context in which the kernels are compiled, on first use; where ``wanted`` is False they run as they are."""
    global _on
    before, _on = _on, wanted
    try:
        yield
    finally:
        _on = before


def compiler() -> str | None:
    """The C++ compiler that torch.compile needs on a CPU, or None where there is none."""
    return next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """The function, and within `compiled` its compiled form, which takes tensors without their history: whether they
    are learned and what they are views of changes no number, yet torch would compile anew for each, and gives up after
    a few."""
    fast: Any = torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _on:
            return function(*args, **kwargs)
        result: R = fast(*map(_bare, args), **{name: _bare(value) for name, value in kwargs.items()})
        return result

    return run


def _bare(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def failure(device: torch.device) -> str | None:
    """Why no kernel can be compiled for a device, in a line; None where one can. Besides the compiler it takes Python's
    headers and a folder to write to, and only a trial tells."""
    if device.type == "cpu" and compiler() is None:
        return "no C++ compiler is on the PATH"
    try:
        with compiled(True):
            rectify(torch.zeros(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


@kernel
def quantize(
    x: Tensor, step: Tensor, low: Tensor, high: Tensor, keep: Tensor | None, levels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """LSQ's x^ = (clip(round(x/s) + z, 0, top) - z) s = clip(round(x/s), -z, top - z) s, as z is a whole number; where
    `keep` is 1, x as it is (QDrop).

    Args:
        x: (n,). step: a scalar. low, high: -z and top - z, scalars. keep: (n,) of 0 and 1; floats, as multiplying is
            several times faster than selecting. levels: (256,), what the codes stand for, less z.

    Returns:
        x^, and what its gradients need: d(x^)/dx and d(x^)/ds, each (n,). The latter is q - x/s inside the range, q at
        its ends.
    """
    scaled = x / step
    raw = torch.round(scaled)
    q = raw.clamp(low, high)
    inside = raw.eq_(q)
    if levels is not None:
        q = levels[(q - low).int()]
    y = q * step
    slope = q.addcmul_(scaled, inside, value=-1)
    if keep is not None:
        y = torch.lerp(y, x, keep)
        slope.addcmul_(slope, keep, value=-1)
        inside = torch.maximum(inside, keep)
    return y, inside, slope


@kernel
def quantize_backward(
    grad: Tensor, inside: Tensor, slope: Tensor, to_x: bool = True, to_step: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to x (n,) and to s; None for one that is not wanted."""
    return grad * inside if to_x else None, torch.dot(grad, slope) if to_step else None


@kernel
def rectify(v: Tensor) -> tuple[Tensor, Tensor]:
    """h(V) and dh/dV, each (n,) as V is."""
    return rectified_sigmoid_and_slope(v)


@kernel
def soft_weight(
    h: Tensor, slope: Tensor, floor: Tensor, step: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """AdaRound's W^ = clip(floor(u) + h(V), low, high) s.

    Args:
        h, slope: of `rectify`, (O, n). floor: (O, n). step: (O, 1). low, high: scalars.

    Returns:
        W^, and what its gradients need: d(W^)/dV and d(W^)/ds, each (O, n).
    """
    raw = floor + h
    q = raw.clamp(low, high)
    return q * step, slope * torch.eq(raw, q) * step, q


@kernel
def penalty(h: Tensor, slope: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """sum over V (n,) of 1 - |2h(V) - 1|^beta, a scalar, and its gradient (n,): one power for both. h, slope: of
    `rectify`."""
    signed = 2 * h - 1
    far = signed.abs()
    power = far.pow(beta - 1)
    return (1 - power * far).sum(), power * torch.sign(signed) * slope * (-2 * beta)
