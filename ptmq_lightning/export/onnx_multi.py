"""One ONNX file for every width: a scalar input chooses among branches, which share their packed weights.

The input is `bits` where each exported width is uniform and known by its weight bits, else `assignment`, an index into
the names that the metadata hold. A value that is not built in is an error of the runtime ("indices element out of data
bounds"), not an answer of another width.

Everything but packed weights is copied into each branch: onnxruntime-web fails on scales and zero points of the graph
around a branch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ptmq_lightning.export.onnx_convert import IMAGES, LOGITS, Converter
from ptmq_lightning.export.onnx_emit import shape_of
from ptmq_lightning.export.onnx_shared import SharedWriter, shared
from ptmq_lightning.export.onnx_writer import Outputs, Writer
from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.model import MultiBitModel, weights_of
from ptmq_lightning.runtime.spec import BitAssignment

if TYPE_CHECKING:
    from ptmq_lightning.export.draft import Draft

BITS, ASSIGNMENT = "bits", "assignment"


def selector(model: MultiBitModel, assignments: Mapping[str, BitAssignment]) -> tuple[str, dict[str, int]]:
    """The name of the input that chooses, and its value for each exported width."""
    pairs = {}
    for name, assignment in assignments.items():
        pairs[name] = next((p for p in model.pairs if BitAssignment.uniform(*p, model) == assignment), None)
    bits = [pair.w for pair in pairs.values() if pair is not None]
    if len(set(bits)) == len(pairs):
        return BITS, dict(zip(pairs, bits, strict=True))
    return ASSIGNMENT, {name: index for index, name in enumerate(assignments)}


def multi(draft: Draft) -> Any:
    """The ModelProto: images (batch, C, H, W) and int64 () -> logits (batch, classes). Raises ExportError for one width
    alone."""
    if len(draft.assignments) == 1:
        raise ExportError(
            f"found one width, {next(iter(draft.assignments))}, for a file in which an input chooses; expected two or "
            f"more. Give them, or export with form=static."
        )
    outer = Writer({}, constants="choice.")
    writer = SharedWriter(_ways(draft))
    branches = []
    for name, assignment in draft.assignments.items():
        bits = {layer: width.w for layer, width in assignment.items()}
        made = Converter(
            draft.plan,
            draft.values[name],
            weight=lambda w, path, bits=bits, name=name: writer.write(w, path, bits[path], name),  # type: ignore[misc]
            outer=outer,
        )
        branches.append(made.branch(draft.ops, name))
    kind, chosen = selector(draft.model, draft.assignments)
    outer.input(IMAGES, np.float32, shape_of(draft.ops[0]))
    index = _index(outer, kind, chosen)
    _tree(outer, index, branches, LOGITS, 0)
    metadata = {"ptmq.form": "multi", f"ptmq.{kind}": json.dumps(chosen)}
    return outer.model([(LOGITS, np.float32, shape_of(draft.ops[-1]))], metadata)


def _ways(draft: Draft) -> dict[str, Any]:
    """How each layer with a weight is stored."""
    rows, found = draft.plan.table.layers, {}
    for name, weight in weights_of(draft.model):
        path = name.split(".", 2)[2]  # blocks.<index>.<layer>
        widths = sorted({dict(a.layers)[path].w for a in draft.assignments.values()})
        found[path] = (shared(weight, widths), rows[path].transposed)
    return found


def _index(w: Writer, kind: str, chosen: Mapping[str, int]) -> str:
    """The branch that the input stands for; a number outside of them all where it stands for none."""
    given = w.scalar(kind)
    places = np.full(max(chosen.values()) + 1, len(chosen), dtype=np.int64)
    places[list(chosen.values())] = np.arange(len(chosen))
    known = w.node("Gather", [w.constant(places), given], f"{kind}.place")
    return str(w.node("Gather", [w.constant(np.arange(len(chosen))), known], f"{kind}.branch"))


def _tree(w: Writer, index: str, branches: Sequence[Any], name: str, first: int) -> None:
    """Write the choice among branches first, first + 1, ... into a graph: halves of halves."""
    middle = len(branches) // 2
    if not middle:
        w.nodes.extend(branches[0].node)
        w.initializers.update({tensor.name: tensor for tensor in branches[0].initializer})
        w.output(branches[0].output[0].name, name)
        return
    before = w.node("Less", [index, w.constant(first + middle)], f"{name}.choice")
    then, other = _half(index, branches[:middle], first), _half(index, branches[middle:], first + middle)
    w.output(w.node("If", [before], f"{name}.chosen", then_branch=then, else_branch=other), name)


def _half(index: str, branches: Sequence[Any], first: int) -> Any:
    if len(branches) == 1:
        return branches[0]
    name = f"{LOGITS}.{first}-{first + len(branches) - 1}"
    inner = Writer({}, constants=f"{name}.")
    _tree(inner, index, branches, name, first)
    output = branches[0].output[0].type.tensor_type
    shape = tuple(d.dim_value for d in output.shape.dim)
    outputs: Outputs = [(name, np.float32, shape)]
    return inner.graph(outputs, name=name)
