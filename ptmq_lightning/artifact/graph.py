"""A block's fx graph as plain data and back: names from closed tables, no pickle, nothing else can be reached.

A node is {"name", "op", "target", "args", "kwargs"}; get_attr reads a tensor, or the quantizer that a layer is told. In
arguments JSON stands for itself, and what JSON cannot tell is tagged: {"node": name}, {"tuple": [...]}, {"slice":
[start, stop, step]}, {"const": "torch.float32"} (dtypes, Ellipsis, infinities). A called module is {"type", "spec"}
(and for a weight layer {"bias", "biases", "weight"}); all tensors travel apart, by path.
fx turns a graph into Python source, so every name that comes from a file is checked before it gets there.
"""

from __future__ import annotations

import functools
import keyword
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from ptmq_lightning.artifact.bounds import check_graph, check_module
from ptmq_lightning.artifact.nested import NestedWeight
from ptmq_lightning.artifact.tables import (
    CONSTANTS,
    FUNCTIONS,
    LAYERS,
    METHODS,
    NAME_OF,
    TAGGED,
    constructor_value,
)
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.layers import QUANTIZABLE, WEIGHT_LAYERS, ActivationQuantizer, QuantMatmul, WeightLayer
from ptmq_lightning.runtime.spec import MOST_ZERO, ZEROS
from ptmq_lightning.runtime.weights import CommittedWeight, MultiBitWeight

_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_KINDS = {"latent": ("nearest", "planes", "offset", "latent"), "nested": ("nearest", "planes")}  # packing -> roundings


def describe(gm: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The graph as {"nodes", "modules"} and its tensors by path. Raises ArtifactError for what no table holds."""
    nodes: list[dict[str, Any]] = []
    modules: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for node in gm.graph.nodes:
        nodes.append(_describe_node(node))
        if node.op == "call_module":
            modules[node.target] = _describe_module(node.target, module := gm.get_submodule(node.target))
            tensors |= {f"{node.target}.{name}": tensor for name, tensor in module.state_dict().items()}
        elif node.op == "get_attr":
            held: Any = functools.reduce(getattr, node.target.split("."), gm)
            if not isinstance(held, ActivationQuantizer):  # which its call describes
                tensors[node.target] = held
    return {"nodes": nodes, "modules": modules}, tensors


def require_storable(blocks: Iterable[fx.GraphModule]) -> None:
    """Raises ArtifactError that names every operation, with its module path, that a model made of these float blocks
    could not be saved with: to be asked before anything is fitted."""
    refused: dict[str, None] = {}
    blocks = list(blocks)
    for gm in blocks:
        for node in gm.graph.nodes:
            path = str(node.target) if node.op == "call_module" else node.meta.get("path", "")
            try:
                _describe_node(node)
                if node.op == "call_module" and not isinstance(module := gm.get_submodule(path), QUANTIZABLE):
                    entry = _describe_module(path, module)
                    check_module(entry["type"], entry["spec"])
            except _NotStorable as error:
                refused[f"{error.what} (in {path!r})" if path and repr(path) not in error.what else error.what] = None
    if refused:
        raise _NotStorable("; ".join(refused))
    for gm in blocks:
        check_graph([_describe_node(node) for node in gm.graph.nodes])


class _NotStorable(ArtifactError):
    def __init__(self, what: str) -> None:
        super().__init__(
            f"the network uses {what}, which an artifact cannot store; expected an operation of the tables in "
            f"ptmq_lightning/artifact/tables.py. Add it there if it is pure, or choose another network."
        )
        self.what = what


def _describe_node(node: fx.Node) -> dict[str, Any]:
    target: Any = node.target
    if node.op == "call_function":
        target = NAME_OF.get(target) or _cannot(f"the function {_full_name(target)}")
    elif node.op == "call_method" and target not in METHODS:
        _cannot(f"the tensor method {target!r}")
    kwargs = {key: _encode(value) for key, value in node.kwargs.items()}
    args = [_encode(value) for value in node.args]
    return {"name": node.name, "op": node.op, "target": target, "args": args, "kwargs": kwargs}


def _describe_module(path: str, module: nn.Module) -> dict[str, Any]:
    kind = type(module).__name__
    if type(module) is WEIGHT_LAYERS.get(kind) and isinstance(weight := module.weight, CommittedWeight):
        held = {name: getattr(module, name) is not None for name in ("bias", "biases")}
        return {"type": kind, "spec": module.spec(), **held, "weight": weight.spec()}  # type: ignore[operator]
    if type(module) in (QuantMatmul, ActivationQuantizer):
        return {"type": kind, "spec": module.spec()}  # type: ignore[operator]
    if kind not in LAYERS or type(module) is not getattr(nn, kind):
        _cannot(f"the module {path!r} of type {_full_name(type(module))}")
    return {"type": kind, "spec": {name: _encode(constructor_value(module, name)) for name in LAYERS[kind]}}


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        items = [_encode(item) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, slice):
        return {"slice": [_encode(value.start), _encode(value.stop), _encode(value.step)]}
    if isinstance(value, TAGGED) and str(value) in CONSTANTS:
        return {"const": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    return _cannot(f"the argument {value!r} of type {_full_name(type(value))}")


def _full_name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__name__', repr(thing))}"


def _cannot(what: str) -> Any:
    raise _NotStorable(what)


def rebuild(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """What `describe` took apart, in eval mode and without gradients; the tensors are used as they are.

    Raises ArtifactError for a name outside the tables, and KeyError, TypeError, ValueError, AttributeError,
    RuntimeError or SyntaxError for data that is no graph at all.
    """
    nodes = data["nodes"]
    modules = data["modules"]
    paths = [node["target"] for node in nodes if node["op"] == "get_attr" and not _is_quantizer(node, modules)]
    parts: dict[str, Any] = {path: tensors[path] for path in paths}
    parts |= {path: _rebuild_module(path, entry, tensors) for path, entry in modules.items()}
    ops = [node["op"] for node in nodes]
    if (ops[0], ops[-1]) != ("placeholder", "output") or ops.count("placeholder") + ops.count("output") != 2:
        _refuse("with other than one input and one output", "an input, operations and an output")
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for node in nodes:
        known[node["name"]] = _add(graph, node, known, parts)
    gm = fx.GraphModule(parts, graph)
    for node in graph.find_nodes(op="get_attr"):
        if node.target in modules and not all(_told(user, node, parts) for user in node.users):
            _refuse(f"that computes with the quantizer {node.target!r}", "it as the argument 'quantizer' of a layer")
    for path, part in parts.items():
        if functools.reduce(getattr, path.split("."), gm) is not part:
            _refuse(f"with two things at {path!r}", "one")
    return gm.eval().requires_grad_(False)


def _add(graph: fx.Graph, node: Mapping[str, Any], known: Mapping[str, fx.Node], parts: Mapping[str, Any]) -> fx.Node:
    name, op, target = _identifier(node["name"]), node["op"], node["target"]
    args = tuple(_decode(value, known) for value in node["args"])
    kwargs = {_identifier(key): _decode(value, known) for key, value in node["kwargs"].items()}
    if op == "placeholder":
        return graph.placeholder(_identifier(target))
    if op == "output":
        output: fx.Node = graph.output(args[0])
        return output
    if op == "call_function":
        target = FUNCTIONS.get(target) or _refuse(f"that calls the function {target!r}", "one of its table")
    elif op == "call_method":
        if target not in METHODS:
            _refuse(f"that calls the method {target!r}", "one of its table")
    elif op not in ("call_module", "get_attr"):
        _refuse(f"with the operation {op!r}", "a call, a tensor, an input or an output")
    elif target not in parts:
        _refuse(f"that reads {target!r}", "a module or tensor that the artifact holds")
    elif not _PATH.fullmatch(target) or any(map(keyword.iskeyword, target.split("."))):
        _refuse(f"with the path {target!r}", "names of letters, digits, _ and - that are no keywords, joined by dots")
    return graph.create_node(op, target, args, kwargs, name)


def _is_quantizer(node: Mapping[str, Any], modules: Mapping[str, Any]) -> bool:
    """Whether a get_attr node reads no tensor but a quantizer, which a layer is told (runtime.layers)."""
    return node["target"] in modules and modules[node["target"]]["type"] == "ActivationQuantizer"


def _told(user: fx.Node, quantizer: fx.Node, parts: Mapping[str, Any]) -> bool:
    """Whether a node is a layer that counts its bias in the quantizer's step, and does nothing else with it."""
    layer = parts.get(str(user.target)) if user.op == "call_module" else None
    return isinstance(layer, WeightLayer) and user.kwargs == {"quantizer": quantizer} and quantizer not in user.args


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name == "self":
        _refuse(f"with the name {name!r}", "a plain identifier")
    return str(name)


def _decode(value: Any, known: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, known) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, held),) = value.items()
    if tag == "node":
        return known[held]
    if tag == "tuple":
        return tuple(_decode(item, known) for item in held)
    if tag == "slice":
        return slice(*(_decode(item, known) for item in held))
    if tag != "const" or held not in CONSTANTS:
        _refuse(f"with the value {value!r}", "a node, tuple, slice or known constant")
    return CONSTANTS[held]


def _rebuild_module(path: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    kind, spec = entry["type"], dict(entry["spec"])
    if kind in WEIGHT_LAYERS:
        weight = _rebuild_weight(f"{path}.weight", entry["weight"], tensors)
        bias, biases = (tensors[f"{path}.{name}"] if entry[name] else None for name in ("bias", "biases"))
        if biases is not None and biases.shape != weight.steps.shape:
            _refuse(f"whose layer {path!r} has biases of shape {tuple(biases.shape)}", "one for each step")
        layer: nn.Module = WEIGHT_LAYERS[kind](weight, bias, biases=biases, **spec)
        return layer
    if kind == "QuantMatmul":
        return QuantMatmul(**spec)
    if kind == "ActivationQuantizer":
        module: nn.Module = ActivationQuantizer(tuple(spec.pop("widths")), **spec)
    elif kind not in LAYERS or set(spec) != set(LAYERS[kind]):
        _refuse(f"with a module of type {kind!r} and the arguments {sorted(spec)}", "one of its table")
    else:
        with torch.device("meta"):
            module = getattr(nn, kind)(**{key: _decode(value, {}) for key, value in spec.items()})
    module.load_state_dict({name: tensors[f"{path}.{name}"] for name in module.state_dict()}, assign=True)
    return module


def _rebuild_weight(path: str, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CommittedWeight:
    own = {key.removeprefix(f"{path}."): tensor for key, tensor in tensors.items() if key.startswith(f"{path}.")}
    steps, widths, channels = own.pop("steps"), tuple(spec["widths"]), spec["shape"][0]
    if steps.shape != (len(widths), channels):
        _refuse(f"whose weight {path!r} of {channels} channels has steps of shape {tuple(steps.shape)}", "them to fit")
    zeros = own.pop("zero_points", None)
    _check_zeros(path, spec, zeros)
    kinds = _KINDS.get(spec["packing"], ())
    if spec["kind"] not in kinds:
        found = f"the packing {spec['packing']!r} and the rounding {spec['kind']!r}"
        _refuse(f"whose weight {path!r} has {found}", f"one of {', '.join(kinds)}" if kinds else "latent or nested")
    plane_of = {int(bits): row for bits, row in spec["plane_of"].items()}
    if any(row not in range(spec["planes"]) for row in plane_of.values()):
        _refuse(f"whose weight {path!r} has the planes {plane_of}", f"{spec['planes']} planes")
    if spec["packing"] == "nested":
        nested = NestedWeight(widths, steps, tuple(spec["tied"]), spec["kind"], plane_of, own, zeros)
        if [list(nested.code(bits).shape) for bits in widths] != [spec["shape"]] * len(widths):
            _refuse(f"whose weight {path!r} has codes of another shape", f"{spec['shape']}")
        return nested
    latent, latent_step, ratios = own["latent"], own["latent_step"], own["ratios"]
    if ratios.shape != steps.shape or latent_step.shape != steps.shape[1:] or len(latent) != channels:
        _refuse(f"whose weight {path!r} has ratios of shape {tuple(ratios.shape)}", f"{tuple(steps.shape)}")
    weight = MultiBitWeight(latent, latent_step, widths, steps, ratios, zeros)
    if spec["kind"] != "nearest":
        if not set(plane_of) <= set(widths):
            _refuse(f"whose weight {path!r} has planes for the widths {sorted(plane_of)}", f"some of {widths}")
        if spec["kind"] == "offset" and set(plane_of) != set(widths):
            _refuse(f"whose weight {path!r} has no offset for some of its widths {widths}", "one for each")
        weight.set_rounding(spec["kind"], own["rounding"], plane_of)
    return weight


def _check_zeros(path: str, spec: Mapping[str, Any], zeros: Tensor | None) -> None:
    """Zero points where the weight says that it has some, within what is ever written, and nowhere else."""
    moved, shape = spec.get("moved", []), (len(spec["widths"]), spec["shape"][0])
    if zeros is None and not moved:
        return
    if zeros is None or not moved or zeros.dtype != torch.int8 or zeros.shape != shape:
        found = "no zero points" if zeros is None else f"zero points of shape {tuple(zeros.shape)}, {zeros.dtype}"
        _refuse(f"whose weight {path!r} has {found}", f"int8 of shape {shape} where widths have some, here {moved}")
    rows = [bits for bits, row in zip(spec["widths"], zeros, strict=True) if row.any()]
    if rows != moved or moved[-1] > MOST_ZERO or zeros.min() < min(ZEROS) or zeros.max() > max(ZEROS):
        found = f"zero points from {int(zeros.min())} to {int(zeros.max())} at the widths {rows}"
        _refuse(f"whose weight {path!r} has {found}", f"{min(ZEROS)} to {max(ZEROS)} half levels at the widths {moved}")


def _refuse(what: str, expected: str) -> NoReturn:
    raise ArtifactError(
        f"a graph {what} is refused; expected {expected}. Use an artifact that this version wrote, from a source "
        f"you trust."
    )
