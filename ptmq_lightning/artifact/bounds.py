"""What a stored graph may ask for: no number that grows without end, no result of a stranger's size.

A graph computes with plain numbers too (sizes of tensors), and Python's grow: 9 ** 1e9 ends no program, a list of 1e9
items ends the machine. So each node gets a bound for the bits of its number or the length of its sequence, before
anything is built. The same is asked before a network is fitted. On the JSON of `artifact.graph`, without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ptmq_lightning.runtime.errors import ArtifactError

MOST_BITS, MOST_LENGTH, MOST_POWER = 4096, 1 << 16, 64  # of a plain number, of a sequence, of operator.pow's exponent
MOST_EXTENT, MOST_SIZE = 4096, 1 << 20  # of what sets how large a result is; of any other whole number of a module
_FUNCTIONS = (
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d conv_transpose2d interpolate pad repeat",
    "repeat_interleave tile",
)
_LAYERS = (
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool2d ConstantPad2d ConvTranspose2d QuantConvTranspose2d",
    "ReflectionPad2d ReplicationPad2d Upsample UpsamplingBilinear2d UpsamplingNearest2d ZeroPad2d",
)
GROWING = frozenset(" ".join((*_FUNCTIONS, *_LAYERS)).split())
SCALING = frozenset(("interpolate", "Upsample", "UpsamplingBilinear2d"))  # they take fractions as factors
_CHANNELS = ("in_channels", "out_channels", "groups")  # arguments that make no edge longer
_PARTS = frozenset(("chunk", "split", "topk", "unbind"))  # they give sequences of tensors


class Bound(NamedTuple):
    """What a node may give. kind: "tensor", "number" or "sequence"; most: bits of a number, length of a sequence."""

    kind: str
    most: int


TENSOR, NUMBER = Bound("tensor", 64), Bound("number", 64)


def check_graph(nodes: Iterable[Mapping[str, Any]]) -> None:
    """Nodes in order, as `describe` gives them. Raises ArtifactError naming the first that asks for too much."""
    known: dict[str, Bound] = {}
    for node in nodes:
        name = node["target"].rpartition(".")[2]
        if node["op"] in ("call_function", "call_method") and name in GROWING:
            _check_numbers(name, [node["args"], node["kwargs"]], MOST_EXTENT)
        bound = _bound(node, [_of(value, known) for value in (*node["args"], *node["kwargs"].values())])
        if bound.most > (MOST_LENGTH if bound.kind == "sequence" else MOST_BITS):
            raise _too_much(f"{node['target']} may give a {bound.kind} of {bound.most:,} bits or items", MOST_BITS)
        known[node["name"]] = bound


def check_module(kind: str, spec: Mapping[str, Any]) -> None:
    """The arguments of a layer. Raises ArtifactError naming one that is too large."""
    _check_numbers(kind, spec, MOST_SIZE)
    if kind in GROWING:
        _check_numbers(kind, {name: value for name, value in spec.items() if name not in _CHANNELS}, MOST_EXTENT)


def _bound(node: Mapping[str, Any], given: list[Bound]) -> Bound:
    op, target = node["op"], node["target"]
    if op == "call_function" and target.startswith("operator."):
        return _of_operator(target.removeprefix("operator."), node, given)
    if op == "call_method" and target == "size":
        return NUMBER if len(given) > 1 else Bound("sequence", 8)
    if op == "call_module" and given and given[0].kind != "tensor":
        return given[0]  # Identity gives back what it gets
    name = target.rpartition(".")[2]
    if op in ("call_function", "call_method") and (name in _PARTS or (name in ("max", "min") and len(given) > 1)):
        return Bound("sequence", 1024)
    return TENSOR


def _of_operator(name: str, node: Mapping[str, Any], given: list[Bound]) -> Bound:
    kinds = [bound.kind for bound in given]
    most = [bound.most for bound in given]
    if name == "getitem":
        sliced = isinstance(node["args"][-1], dict) and "slice" in node["args"][-1]
        return given[0] if kinds[:1] == ["tensor"] or (given and sliced) else NUMBER
    if "sequence" in kinds:
        if name in ("mul", "mod", "matmul", "pow"):  # a sequence many times, a text with a width
            raise _too_much(f"operator.{name} works on a list or text")
        return Bound("sequence", sum(most))
    if name == "pow" and kinds[:1] != ["tensor"] and kinds[1:] != ["tensor"]:
        power = node["args"][-1]
        if isinstance(power, bool) or not isinstance(power, (int, float)) or abs(power) > MOST_POWER:
            raise _too_much(f"operator.pow has the exponent {power!r}", MOST_POWER)
        return Bound("number", most[0] * max(1, int(abs(power))))
    if "tensor" in kinds:
        return TENSOR
    return Bound("number", sum(most) if name == "mul" else max(most, default=1) + 1)


def _of(value: Any, known: Mapping[str, Bound]) -> Bound:
    if isinstance(value, dict):
        if "node" in value:
            return known.get(str(value["node"]), NUMBER)
        return _of(value["tuple"], known) if isinstance(value.get("tuple"), list) else NUMBER
    if isinstance(value, (list, str)):
        inner = [_of(item, known) for item in value] if isinstance(value, list) else []
        return Bound("sequence", len(value) + sum(bound.most for bound in inner if bound.kind == "sequence"))
    return Bound("number", value.bit_length()) if type(value) is int else NUMBER


def _check_numbers(name: str, value: Any, most: int) -> None:
    for number in _numbers(value):
        if abs(number) > most and (isinstance(number, int) or name in SCALING):
            raise _too_much(f"{name} has the argument {number}", most)


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, (int, float)):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(inner)


def _too_much(what: str, most: int | None = None) -> ArtifactError:
    expected = "numbers and tensors" if most is None else f"at most {most:,}"
    return ArtifactError(
        f"a graph in which {what} is refused, as it could fill any memory; expected {expected}. Use an artifact from a "
        f"source you trust, or a network without it"
    )
