"""The element-wise arithmetic of a fit's layers, as plain functions that can be compiled.

A fit spends what it costs beyond plain training here, in a dozen passes over every activation. Compiled, each function
is one pass (`compiled`); the numbers stay the same, but for the order in which a gradient of a step size is summed.
Every function takes flat tensors, so that one compilation serves all shapes.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ptmq_lightning.quant.rounding import rectified_sigmoid_and_slope
from ptmq_lightning.runtime import grid

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


def quantize(
    x: Tensor, step: Tensor, low: Tensor, high: Tensor, keep: Tensor | None, levels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """LSQ's x^ = (clip(round(x/s) + z, 0, top) - z) s = clip(round(x/s), -z, top - z) s, as z is a whole number; where
    `keep` is 1, x as it is (QDrop).

    Args:
        x: (n,). step: a scalar. low, high: -z and top - z, scalars. keep: (n,) of 0 and 1; floats, as multiplying is
            several times faster than selecting. levels: (256,), what the codes stand for, less z.

    Returns:
        x^, and d(x^)/dx: 1 inside the range and where `keep` is 1, else 0; each (n,).
    """
    y, inside = torch.empty_like(x), torch.empty_like(x)
    for x_, keep_, y_, inside_ in pieces(x, keep, y, inside):
        _quantize(x_, step, low, high, keep_, levels, y_, inside_)
    return y, inside


@kernel
def _quantize(
    x: Tensor,
    step: Tensor,
    low: Tensor,
    high: Tensor,
    keep: Tensor | None,
    levels: Tensor | None,
    y: Tensor,
    inside: Tensor,
) -> None:
    torch.div(x, step, out=y)
    torch.round(y, out=inside)
    torch.maximum(inside, low, out=y)  # torch.clamp between tensors takes ten times as long on a CPU
    torch.minimum(y, high, out=y)
    inside.eq_(y)
    if levels is not None:
        torch.index_select(levels, 0, (y - low).int(), out=y)
    y.mul_(step)
    if keep is not None:
        torch.lerp(y, x, keep, out=y)
        torch.maximum(inside, keep, out=inside)


def quantize_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, inside: Tensor, step: Tensor, to_x: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to x (n,) and to s of y, inside = quantize(x, ...).

    d(x^)/ds is q - x/s inside the range, q at its ends, and 0 where an element was kept: (x^ - x d(x^)/dx)/s.

    Args:
        y: None where the gradient to s is not wanted. to_x: whether that to x is.
    """
    grad_x = torch.empty_like(grad) if to_x else None
    found = [_quantize_backward(*of_piece) for of_piece in pieces(grad, x, y, inside, grad_x)]
    return grad_x, None if y is None else sum(found[1:], found[0]) / step


@kernel
def _quantize_backward(grad: Tensor, x: Tensor, y: Tensor | None, inside: Tensor, grad_x: Tensor | None) -> Any:
    if grad_x is not None:
        torch.mul(grad, inside, out=grad_x)
    return None if y is None else torch.dot(grad, torch.addcmul(y, x, inside, value=-1))


def pieces(first: Tensor, *others: Tensor | None) -> Iterator[Sequence[Any]]:
    """Tensors (n,) in parts that stay in the cache of a CPU's cores while one operation follows the other; whole where
    the operations are compiled into one, and on a GPU."""
    tensors = first, *others
    size = len(first) if _on or first.is_cuda else grid.PIECE * torch.get_num_threads()
    if len(first) <= size:
        yield tensors
        return
    for start in range(0, len(first), size):
        yield [None if t is None else t[start : start + size] for t in tensors]


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
        h, slope: of `rectify`, (O, n). floor: (O, n). step: (O, 1). low, high: scalars or (O, 1).

    Returns:
        W^, and what its gradients need: d(W^)/dV and d(W^)/ds, each (O, n).
    """
    raw = floor + h
    q = torch.minimum(torch.maximum(raw, low), high)
    return q * step, slope * torch.eq(raw, q) * step, q


@kernel
def penalty(h: Tensor, slope: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """sum over V (n,) of 1 - |2h(V) - 1|^beta, a scalar, and its gradient (n,): one power for both. h, slope: of
    `rectify`."""
    signed = 2 * h - 1
    far = signed.abs()
    power = far.pow(beta - 1)
    return (1 - power * far).sum(), power * torch.sign(signed) * slope * (-2 * beta)
