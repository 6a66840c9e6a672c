"""Which operations and widths each export target takes: one table, for the refusal before anything is written, for
`ptmq export --targets` and for docs/deploy.md.

A target's class says it once, in `support()`, and there from the table that its writer works with: what is listed is
what is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.spec import MAX_BITS, MIN_BITS

if TYPE_CHECKING:
    from ptmq_lightning.export.flow import Op
    from ptmq_lightning.export.targets import OnnxStatic

WIDTHS = range(MIN_BITS, MAX_BITS + 1)
BYTES = dict.fromkeys(WIDTHS, 8)  # every width in integers of 8 bits
ITSELF = {bits: bits for bits in WIDTHS}
CONV, DEPTHWISE, GROUPED = "convolution", "depthwise convolution", "grouped convolution"
TRANSPOSED, LINEAR, PRODUCT = "transposed convolution", "linear layer", "product of activations"
TABLE = "activation levels from a table"
KINDS = (CONV, DEPTHWISE, GROUPED, TRANSPOSED, LINEAR, PRODUCT)
_KEYS = {
    "QuantConv2d": CONV, "Conv2d": CONV, "QuantConvTranspose2d": TRANSPOSED, "ConvTranspose2d": TRANSPOSED,
    "QuantLinear": LINEAR, "Linear": LINEAR, "QuantMatmul": PRODUCT, "matmul": PRODUCT,
}  # fmt: skip
_ALWAYS = ("image", "constant", "ActivationQuantizer")


@dataclass(frozen=True)
class Support:
    """layers: kind of layer (KINDS) -> width -> bits that hold a value of that width; operations: names of
    `artifact.tables` without their room; tables: activation levels from a table."""

    layers: Mapping[str, Mapping[int, int]]
    operations: frozenset[str]
    tables: bool = False


def kind_of(op: Op) -> str | None:
    """The kind of a layer, quantized or of a float network; None for every other operation."""
    kind = _KEYS.get(op.key)
    groups = int(getattr(op.module, "groups", 1))
    if kind != CONV or groups == 1 or op.source is None or op.source.shape is None:
        return kind
    return DEPTHWISE if groups == op.source.shape[1] else GROUPED


def refused(ops: Iterable[Op], support: Support) -> list[str]:
    """A line for each operation that a target does not take."""
    found: dict[str, None] = {}
    for op in ops:
        home = op.path or op.where
        at = f"{op.key} of '{home}'" if home else op.key
        kind = kind_of(op)
        if kind is not None and kind not in support.layers:
            found[f"'{op.name}' ({at}): a {kind}"] = None
        elif kind is None and op.key not in support.operations and op.key not in _ALWAYS:
            found[f"'{op.name}' ({at})"] = None
        elif getattr(op.module, "tables", None) is not None and not support.tables:
            found[f"'{op.name}' ({at}): {TABLE}"] = None
    return list(found)


def require_supported(ops: Sequence[Op], target: OnnxStatic) -> None:
    """Raises ExportError that names every operation which the target does not take, before anything is written."""
    if lines := refused(ops, target.support()):
        raise ExportError(
            f"the network cannot be exported to {target.backend}: {'; '.join(lines)}. Expected operations that "
            f"`ptmq export --targets` lists for it. Choose another target there, or run the artifact with load()."
        )


def table() -> list[list[str]]:
    """Rows of text, the first one the head: operation, then a column per target."""
    known = _columns()
    rows = [["operation", *known]]
    for kind in KINDS:
        rows.append([kind, *(_widths(support.layers.get(kind)) for support in known.values())])
    rows.append([TABLE, *("yes" if support.tables else "-" for support in known.values())])
    taken = {name: {plain_name(own) for own in support.operations} for name, support in known.items()}
    alike: dict[tuple[str, ...], list[str]] = {}
    for operation in sorted(set().union(*taken.values())):
        alike.setdefault(tuple("yes" if operation in own else "-" for own in taken.values()), []).append(operation)
    for row, group in sorted(alike.items(), key=lambda item: (item[0].count("-"), item[0])):
        rows.append([", ".join(group), *row])
    return rows


def text() -> str:
    """The table in Markdown."""
    head, *rows = table()
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain_name(operation: str) -> str:
    """One name for a function and its layer: "avgpool2d" for avg_pool2d and AvgPool2d."""
    return operation.lower().replace("_", "")


def _columns() -> dict[str, Support]:
    from ptmq_lightning.export.targets import TARGETS

    return {
        f"{target.backend} {target.form}" if target.form != "static" else target.backend: target().support()
        for target in TARGETS.variants.values()
    }


def _widths(held: Mapping[int, int] | None) -> str:
    """{2: 2, 3: 4, 4: 4} -> "2; 3-4 as 4"."""
    if held is None:
        return "-"
    if all(width == bits for width, bits in held.items()):
        return _span(list(held))
    parts = []
    for bits, group in groupby(held, key=held.__getitem__):
        widths = list(group)
        parts.append(_span(widths) + ("" if widths == [bits] else f" as {bits}"))
    return "; ".join(parts)


def _span(widths: Sequence[int]) -> str:
    return str(widths[0]) if len(widths) == 1 else f"{widths[0]}-{widths[-1]}"
