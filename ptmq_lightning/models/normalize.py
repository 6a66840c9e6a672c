"""A traced graph made uniform, each step bitwise: a free batch size, plain modules, one name per operation."""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ptmq_lightning.models.nodes import attribute, bind, constants, module_of
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.layers import QUANTIZABLE

BATCHES = (2, 3)  # the two batch sizes that are traced
_MATMULS = {operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm", "__matmul__"}
_SOFTMAXES = {F.softmax, torch.softmax, "softmax"}
_RESHAPES = {torch.reshape, "reshape", "view", "reshape_as", "view_as"}
_SIGNATURES: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.conv_transpose2d: (*("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),),
    F.linear: ("input", "weight", "bias"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}
_FIELDS = ("values", "indices")  # of what topk, sort, max and min over a dimension give


def normalize(gm: fx.GraphModule, other: fx.Graph) -> None:
    """Make a graph traced at one batch size uniform, in place; other: the same network traced at the second size."""
    _free_batch(gm, other)
    _modules_from_functions(gm)
    _constant_layers(gm)
    _uniform_calls(gm)
    _items_of_fields(gm)
    _separate_shared_layers(gm)
    _fixed_output_sizes(gm)
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()


def _free_batch(gm: fx.GraphModule, other: fx.Graph) -> None:
    """Replace what differs between the two batch sizes by -1 (reshape) or by the size of the image batch."""
    graph = gm.graph
    pairs = list(zip(graph.nodes, other.nodes, strict=False))
    if len(graph.nodes) != len(other.nodes) or any((a.op, a.target) != (b.op, b.target) for a, b in pairs):
        raise ModelError(
            "the network takes different paths at batch sizes 2 and 3; expected the same operations at every batch "
            "size. Choose a network whose control flow does not depend on the batch."
        )
    image = next(node for node in graph.nodes if node.op == "placeholder")
    for node, twin in pairs:
        if "shape" in node.meta and node.meta["shape"] and twin.meta["shape"]:
            node.meta["rows"] = twin.meta["shape"][0] - node.meta["shape"][0]
        if node.op == "get_attr" and node.meta["shape"] != twin.meta["shape"]:
            _repeat_constant(gm, node, twin, image)
        if node.target in _RESHAPES and not any(isinstance(a, torch.dtype) for a in node.args):
            sizes = [a if a == b else -1 for a, b in zip(node.meta["shape"], twin.meta["shape"], strict=True)]
            if sizes.count(-1) > 1:
                raise _fixed_batch(node, node.meta["shape"], twin.meta["shape"])
            node.op, node.target, node.args, node.kwargs = "call_method", "reshape", (node.args[0], *sizes), {}
        elif node.op.startswith("call"):
            with graph.inserting_before(node):
                node.args = _merge(node.args, twin.args, node, image)
                node.kwargs = _merge(node.kwargs, twin.kwargs, node, image)


def _repeat_constant(gm: fx.GraphModule, node: fx.Node, twin: fx.Node, image: fx.Node) -> None:
    """A constant (2, ...) or (3, ...) that is the same for every image: one row, repeated for the batch."""
    value, shapes = attribute(gm, str(node.target)), (node.meta["shape"], twin.meta["shape"])
    if (shapes[0][0], shapes[1][0]) != BATCHES or shapes[0][1:] != shapes[1][1:] or not torch.equal(value[0], value[1]):
        raise _fixed_batch(node, *shapes)
    path, _, name = str(node.target).rpartition(".")
    gm.get_submodule(path).register_buffer(name, value[:1].clone(), persistent=True)
    with gm.graph.inserting_after(image):
        size = gm.graph.call_method("size", (image, 0))
    with gm.graph.inserting_after(node):
        rows = gm.graph.call_method("expand", (node, size, *[-1] * (value.ndim - 1)))
    rows.meta = dict(node.meta)
    node.meta = {**node.meta, "shape": (1, *value.shape[1:])}
    node.replace_all_uses_with(rows, delete_user_cb=lambda user: user is not rows)


def _constant_layers(gm: fx.GraphModule) -> None:
    """What layers compute from parameters alone (a position embedding) becomes a buffer."""
    for node, value in constants(gm).items():
        if node.op == "call_module":
            name = f"_constant_{node.name}"
            gm.register_buffer(name, value)
            node.op, node.target, node.args, node.kwargs = "get_attr", name, (), {}


def _merge(one: Any, two: Any, node: fx.Node, image: fx.Node) -> Any:
    """Arguments of a node at both batch sizes -> arguments for every batch size."""
    if isinstance(one, fx.Node):
        return one
    if isinstance(one, (tuple, list)):
        return type(one)([_merge(a, b, node, image) for a, b in zip(one, two, strict=True)])
    if isinstance(one, dict):
        return {key: _merge(one[key], two[key], node, image) for key in one}
    if isinstance(one, slice):
        return slice(*(_merge(getattr(one, k), getattr(two, k), node, image) for k in ("start", "stop", "step")))
    if one == two:
        return one
    if not isinstance(one, int) or one * BATCHES[1] != two * BATCHES[0]:
        raise _fixed_batch(node, one, two)
    size = node.graph.call_method("size", (image, 0))
    per_image = one // BATCHES[0]
    return size if per_image == 1 else node.graph.call_function(operator.mul, (size, per_image))


def _fixed_batch(node: fx.Node, one: Any, two: Any) -> ModelError:
    return ModelError(
        f"operation {node.name} of module '{node.meta.get('path', '')}' uses {one} at batch size 2 and {two} at batch "
        f"size 3; expected a number proportional to the batch. Choose a network that works at every batch size."
    )


def _modules_from_functions(gm: fx.GraphModule) -> None:
    """F.linear(x, weight, bias) and the like on constant weights -> call_module on a plain torch.nn module."""
    known = constants(gm)
    found = [(node, bind(node, _SIGNATURES[node.target])) for node in _calls(gm) if node not in known]
    found = [(node, given) for node, given in found if _weights_known(given, known)]
    homes = {_home(node, given.get("weight")) for node, given in found}
    for node, given in found:
        layer = _layer(node.target, {k: known.get(v, v) if isinstance(v, fx.Node) else v for k, v in given.items()})
        home = _free_path(gm, _home(node, given.get("weight")), layer, homes)
        gm.add_submodule(home, layer)
        node.op, node.target, node.args, node.kwargs = "call_module", home, (given["input"],), {}
        node.meta["path"] = home
    for node in reversed(gm.graph.nodes):  # the old parameters, whose modules are replaced
        if node.op not in ("placeholder", "output") and not node.users:
            gm.graph.erase_node(node)


def _calls(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if node.op == "call_function" and node.target in _SIGNATURES]


def _weights_known(given: Mapping[str, Any], known: Mapping[fx.Node, Any]) -> bool:
    return all(v in known for k, v in given.items() if k != "input" and isinstance(v, fx.Node))


def _home(node: fx.Node, weight: Any) -> str:
    """Path of the module that owns the weight, else of the one that made the call."""
    if isinstance(weight, fx.Node) and weight.op == "get_attr" and str(weight.target).endswith(".weight"):
        return str(weight.target).removesuffix(".weight")
    return node.meta["path"] or node.name


def _free_path(gm: fx.GraphModule, path: str, layer: nn.Module, homes: Collection[str]) -> str:
    """A path that no module has and that leads through none; homes: of the layers that are made of functions."""
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    if any(target.startswith(f"{path}.") for target in {*called, *homes}):
        path += ".norm" if isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm)) else ".layer"
    return next(p for p in (path, *(f"{path}_{i}" for i in range(1, 1000))) if p not in called)


def _layer(function: Any, given: dict[str, Any]) -> nn.Module:
    """A torch.nn module that computes function(input, **given); the tensors are shared, not copied."""
    weight: Any = given.get("weight")
    bias: Any = given.get("bias")
    meta: Any = {"device": "meta"}
    extra: dict[str, Any]
    layer: nn.Module
    if function is F.linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, **meta)
    elif function is F.conv2d:
        extra = {k: given[k] for k in ("stride", "padding", "dilation", "groups") if k in given}
        inputs = weight.shape[1] * extra.get("groups", 1)
        layer = nn.Conv2d(inputs, weight.shape[0], tuple(weight.shape[2:]), bias=bias is not None, **extra, **meta)
    elif function is F.conv_transpose2d:
        extra = {k: given[k] for k in ("stride", "padding", "output_padding", "groups", "dilation") if k in given}
        outputs, kernel = weight.shape[1] * extra.get("groups", 1), tuple(weight.shape[2:])
        layer = nn.ConvTranspose2d(weight.shape[0], outputs, kernel, bias=bias is not None, **extra, **meta)
    elif function is F.layer_norm:
        affine = weight is not None
        layer = nn.LayerNorm(given["normalized_shape"], given.get("eps", 1e-5), affine, bias is not None, **meta)
    else:
        layer = nn.BatchNorm2d(
            given["running_mean"].shape[0], given.get("eps", 1e-5), affine=weight is not None, **meta
        )
        layer.running_mean, layer.running_var = given["running_mean"], given["running_var"]
        layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=given["running_mean"].device)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            setattr(layer, name, nn.Parameter(value.detach()))
    return layer.eval()


def _uniform_calls(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if node.target is F.pad and not any(bind(node, ("input", "pad"))["pad"]):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
            continue
        softmax = isinstance(module_of(gm, node), nn.Softmax)
        if node.target in _MATMULS and node.op != "call_module":
            node.op, node.target = "call_function", torch.matmul
        elif softmax or (node.op != "call_module" and node.target in _SOFTMAXES):
            given = bind(node, ("input", "dim"))
            dim = module_of(gm, node).dim if softmax else given["dim"]  # type: ignore[union-attr]
            node.op, node.target = "call_function", F.softmax
            node.args, node.kwargs = (given["input"],), {"dim": dim} | {k: v for k, v in given.items() if k == "dtype"}


def _items_of_fields(gm: fx.GraphModule) -> None:
    """x.topk(k).indices -> x.topk(k)[1], and the like: an artifact stores no getattr."""
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target is getattr and node.args[1] in _FIELDS:
            node.target, node.args = operator.getitem, (node.args[0], _FIELDS.index(node.args[1]))


def _separate_shared_layers(gm: fx.GraphModule) -> None:
    """A weight layer that is called more than once becomes one copy per call, so that each call is one layer."""
    seen: set[str] = set()
    for node in gm.graph.nodes:
        if isinstance(layer := module_of(gm, node), QUANTIZABLE):
            if node.target in seen:
                path = _free_path(gm, str(node.target), layer, ())
                gm.add_submodule(path, copy.deepcopy(layer))
                node.target = node.meta["path"] = path
            seen.add(str(node.target))


def _fixed_output_sizes(gm: fx.GraphModule) -> None:
    """A transposed convolution that is told the size of its output gets the padding that gives this size."""
    for node in gm.graph.nodes:
        layer = module_of(gm, node)
        if isinstance(layer, nn.ConvTranspose2d) and len(node.args) + len(node.kwargs) > 1:
            source = bind(node, ("input", "output_size"))["input"]
            given, made = source.meta["shape"][-2:], node.meta["shape"][-2:]
            parts: Any = (layer.stride, layer.padding, layer.dilation, layer.kernel_size)
            least = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, s, p, d, k in zip(given, *parts, strict=True)]
            layer.output_padding = tuple(m - n for m, n in zip(made, least, strict=True))
            node.args, node.kwargs = (source,), {}
