"""What a manifest may hold and how much of it: checked once, when it is read, before anything is built of it.

`runtime.sealed` has limited the file before (its size, the depth of its nesting, the length of a text). Without torch.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from types import NoneType
from typing import Any

from ptmq_lightning.artifact.bounds import check_graph, check_module
from ptmq_lightning.runtime.checked import check
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.spec import MAX_BITS, MIN_BITS

MOST_LAYERS = MOST_BLOCKS = MOST_ASSIGNMENTS = 10_000
MOST_NODES, MOST_CLASSES = 200_000, 100_000
MOST_PAIRS = (MAX_BITS - MIN_BITS + 1) ** 2
MOST_WEIGHTS = 2**31  # of one layer
_KINDS = ("conv", "conv_transpose", "linear", "matmul")
_ROW = {
    "name": str, "block": int, "kind": str, "weight_shape": (list, NoneType), "pin_w": (int, NoneType),
    "pin_a": (int, NoneType),
}  # fmt: skip
_NODE = {"name": str, "op": str, "target": str, "args": list, "kwargs": dict}
_WEIGHT = {"packing": str, "shape": list, "widths": list, "kind": str, "planes": int, "plane_of": dict}
_ACTIVATION = {"widths": list, "owner": str, "pin": (int, NoneType), "table": bool}
_LABEL = {"dtype": str, "shape": list, "sha256": str}


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Every value of a manifest against its type and its limit. Raises PTMQError naming the place."""
    parts = {"info": dict, "pairs": list, "assignments": dict, "layers": list, "blocks": list, "tensors": dict}
    for part, kind in parts.items():
        check(manifest.get(part), kind, part, ArtifactError)
    check_table(manifest)
    _at_most(manifest["blocks"], MOST_BLOCKS, "blocks")
    for number, block in enumerate(manifest["blocks"]):
        _check_block(block, f"blocks[{number}]")
    _at_most([node for block in manifest["blocks"] for node in block["nodes"]], MOST_NODES, "blocks' nodes")
    if late := next((row for row in manifest["layers"] if row["block"] >= len(manifest["blocks"])), None):
        raise _wrong(f"layers: block of {late['name']!r}", late["block"], f"below {len(manifest['blocks'])}")
    for name, label in manifest["tensors"].items():
        check(label, _LABEL, f"tensors.{name}", ArtifactError)


def check_table(manifest: Mapping[str, Any]) -> None:
    """What an artifact and an export say alike: info, layers, pairs, assignments. Raises PTMQError naming the place."""
    info = ModelInfo.from_json(manifest["info"])
    _at_most(info.classes, MOST_CLASSES, "info.classes")
    _at_most(manifest["pairs"], MOST_PAIRS, "pairs")
    _at_most(manifest["layers"], MOST_LAYERS, "layers")
    _at_most(manifest["assignments"], MOST_ASSIGNMENTS, "assignments")
    for number, row in enumerate(manifest["layers"]):
        _check_row(row, f"layers[{number}]")
    names = {row["name"] for row in manifest["layers"]}
    if len(names) < len(manifest["layers"]):
        raise _wrong("layers", f"{len(names)} names for {len(manifest['layers'])} layers", "a name for each")
    for number, pair in enumerate(manifest["pairs"]):
        _check_pair(pair, f"pairs[{number}]")
    for name, rows in manifest["assignments"].items():
        check(rows, dict, f"assignments.{name}", ArtifactError)
        if odd := sorted(names ^ set(rows)):
            raise _wrong(f"assignments.{name}", f"{len(rows)} layers", f"one for each layer, {odd[0]!r} too")
        for layer, pair in rows.items():
            _check_pair(pair, f"assignments.{name}.{layer}")


def _check_row(row: Any, place: str) -> None:
    check(row, _ROW, place, ArtifactError)
    _in(row["kind"], _KINDS, f"{place}.kind")
    if row["weight_shape"] is not None:
        _check_shape(row["weight_shape"], f"{place}.weight_shape")
    for pin in ("pin_w", "pin_a"):
        if row[pin] is not None:
            _in(row[pin], range(MIN_BITS, MAX_BITS + 1), f"{place}.{pin}")
    if row["block"] < 0:
        raise _wrong(f"{place}.block", row["block"], "a number from 0")


def _check_block(block: Any, place: str) -> None:
    check(block, {"name": str, "nodes": list, "modules": dict}, place, ArtifactError)
    _at_most(block["nodes"], MOST_NODES, f"{place}.nodes")
    for number, node in enumerate(block["nodes"]):
        check(node, _NODE, f"{place}.nodes[{number}]", ArtifactError)
    for path, module in block["modules"].items():
        _check_module(module, f"{place}.modules.{path}")
    check_graph(block["nodes"])


def _check_module(module: Any, place: str) -> None:
    held = {"bias": bool, "biases": bool, "weight": dict}
    has = isinstance(module, dict) and "weight" in module
    check(module, {"type": str, "spec": dict} | (held if has else {}), place, ArtifactError)
    if has:
        _check_weight(module["weight"], f"{place}.weight")
    if module["type"] == "ActivationQuantizer":
        check(module["spec"], _ACTIVATION, f"{place}.spec", ArtifactError)
        _check_widths(module["spec"]["widths"], f"{place}.spec.widths")
        if module["spec"]["pin"] is not None:
            _in(module["spec"]["pin"], module["spec"]["widths"], f"{place}.spec.pin")
    else:
        check_module(module["type"], module["spec"])


def _check_weight(spec: Any, place: str) -> None:
    nested = isinstance(spec, dict) and spec.get("packing") == "nested"
    more = {key: list for key in (["tied"] if nested else []) + (["moved"] if "moved" in spec else [])}
    check(spec, _WEIGHT | more, place, ArtifactError)
    _check_shape(spec["shape"], f"{place}.shape")
    for key in ("widths", *more):
        _check_widths(spec[key], f"{place}.{key}", least=key != "tied")
    for bits in spec.get("moved", ()):
        _in(bits, [width for width in spec["widths"] if width not in spec.get("tied", ())], f"{place}.moved")
    _in(spec["planes"], range(MAX_BITS), f"{place}.planes")
    for bits, plane in spec["plane_of"].items():
        _in(bits, [str(width) for width in spec["widths"]], f"{place}.plane_of")
        _in(plane, range(MAX_BITS), f"{place}.plane_of.{bits}")


def _check_widths(widths: list[Any], place: str, least: int = 1) -> None:
    known = range(MIN_BITS, MAX_BITS + 1)
    if not least <= len(widths) <= len(known) or any(type(b) is not int or b not in known for b in widths):
        raise _wrong(place, widths, f"widths from {MIN_BITS} to {MAX_BITS}")
    if sorted(set(widths)) != widths:
        raise _wrong(place, widths, "each width once, narrow to wide")


def _check_pair(pair: Any, place: str) -> None:
    known = range(MIN_BITS, MAX_BITS + 1)
    if not isinstance(pair, list) or len(pair) != 2 or any(type(bits) is not int or bits not in known for bits in pair):
        raise _wrong(place, pair, f"two numbers of bits from {MIN_BITS} to {MAX_BITS}")


def _check_shape(shape: list[Any], place: str) -> None:
    if not 0 < len(shape) <= 6 or any(type(size) is not int or size < 1 for size in shape):
        raise _wrong(place, shape, "one to six whole numbers from 1")
    if math.prod(shape) > MOST_WEIGHTS:
        raise _wrong(place, shape, f"at most {MOST_WEIGHTS:,} weights")


def _at_most(values: Any, most: int, place: str) -> None:
    if len(values) > most:
        raise _wrong(place, f"{len(values):,} entries", f"at most {most:,}")


def _in(value: Any, choices: Any, place: str) -> None:
    if isinstance(value, bool) or value not in choices:
        shown = (
            f"{choices[0]} to {choices[-1]}" if isinstance(choices, range) else f"one of {', '.join(map(str, choices))}"
        )
        raise _wrong(place, value, shown)


def _wrong(place: str, found: Any, expected: str) -> ArtifactError:
    shown = found if isinstance(found, str) else reprlib.repr(found)
    return ArtifactError(f"{place} is {shown}; expected {expected}")
