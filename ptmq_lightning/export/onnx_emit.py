"""What every emitter needs: the arguments of an operation, and the refusal that names it.

An emitter takes (writer, operation, names): the operation's tensors as float tensors of the graph, in the order of its
arguments. It gives the name of what it made, or a list of names for a tuple. Arguments that are no tensors are read
from the operation: `argument` knows those of a function by position and name, those of a layer by attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ptmq_lightning.export.flow import CONSTANT, Op
from ptmq_lightning.export.onnx_writer import Writer
from ptmq_lightning.export.values import Array
from ptmq_lightning.runtime.errors import ExportError

Emit = Callable[[Writer, Op, Sequence[str]], Any]


def shape_of(op: Op | None) -> tuple[int, ...]:
    """Shape at a batch of two."""
    assert op is not None and op.shape is not None
    return op.shape


def rank_of(op: Op) -> int:
    """Number of axes of the first argument."""
    return len(shape_of(op.source))


def argument(op: Op, position: int, name: str, default: Any = None) -> Any:
    """An argument of a function or method, or the attribute of that name of a layer."""
    if op.module is not None:
        return getattr(op.module, name, default)
    return op.args[position] if len(op.args) > position else op.kwargs.get(name, default)


def constant_of(op: Op, position: int, name: str) -> Array | None:
    """The numbers of an argument that is a parameter; None where there is none. Raises ExportError for others."""
    value = argument(op, position, name)
    if isinstance(value, Op) and value.key == CONSTANT:
        value = value.value
    if value is None or isinstance(value, Tensor):
        return None if value is None else value.detach().float().cpu().numpy()
    raise refuse(op, f"its {name} is no constant")


def pair(value: Any, axes: int = 2) -> list[int]:
    """A number per axis of space."""
    if isinstance(value, (tuple, list)):
        return [int(v) for v in value] * (axes if len(value) == 1 else 1)
    return [int(value)] * axes


def axes_of(value: Any, rank: int) -> list[int]:
    """Axes counted from the front; None: all."""
    if value is None:
        return list(range(rank))
    return [int(axis) % rank for axis in (value if isinstance(value, (tuple, list)) else [value])]


def numbers(w: Writer, values: Any) -> str:
    return w.constant(values, np.float32)


def with_batch(op: Op) -> list[int]:
    """The sizes of what an operation makes, the batch open."""
    return [-1, *shape_of(op)[1:]]


def refuse(op: Op, why: str = "") -> ExportError:
    home = op.path or op.where
    what = f" of '{home}'" if home else ""
    return ExportError(
        f"the operation '{op.name}' ({op.key}{what}) cannot be exported{f': {why}' if why else ''}; expected one of "
        f"the tables in ptmq_lightning/export/onnx_ops.py. Add it there, or run the artifact with load()."
    )


def flat(values: Sequence[Any]) -> list[Any]:
    """Operations and numbers in arguments, lists opened."""
    return [item for value in values for item in (flat(value) if isinstance(value, (tuple, list)) else [value])]
