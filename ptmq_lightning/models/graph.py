"""One torch.fx graph for every family of networks: plain torch nodes, static sizes, a free batch dimension.

Tracing runs the network: each proxy carries its value, so sizes are numbers, control flow on sizes is followed and
helper functions are opened. Two batch sizes are traced; where the graphs differ stands the batch size.

What is normalized (each step keeps the result bitwise):
- in-place operations become out-of-place, operations that return their input (dropout, identity, drop path) vanish;
- linear, convolution, batch norm and layer norm called as functions on constant weights become plain torch.nn modules;
- attention, as torch.nn and torch.nn.functional have it, is opened into its products (`models.attention`);
- every matrix product of two activations is `torch.matmul`, every softmax `F.softmax`, every view a `reshape`.

Node meta: "path" (module in which the operation happens), and for tensors "shape" (at a batch of two) and "rows"
(length of the first axis per image, 0 where it does not grow with the batch).
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from ptmq_lightning.models.attention import OPEN_MODULES, attend, multi_head
from ptmq_lightning.models.nodes import attribute, execute
from ptmq_lightning.models.normalize import BATCHES, normalize
from ptmq_lightning.models.unwrap import only_tensor
from ptmq_lightning.runtime.errors import ModelError

_OPEN_OPERATORS = {getattr(operator, f"i{name}"): getattr(operator, name) for name in ("add", "sub", "mul", "truediv")}


def trace(module: nn.Module, input_size: tuple[int, ...]) -> fx.GraphModule:
    """The network (eval, fp32) as a GraphModule of its own modules, images (B, C, H, W) -> logits (B, classes).

    input_size: (C, H, W). Raises ModelError where the network cannot be followed.
    """
    try:
        gm, twin = (_trace_once(module, (batch, *input_size)) for batch in BATCHES)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the network {type(module).__name__} cannot be traced at input size {tuple(input_size)}: "
            f"{type(error).__name__}: {error}. Expected a network whose operations do not depend on the values of the "
            f"image; check the input size, or choose another network."
        ) from error
    normalize(gm, twin.graph)
    return gm.eval()


class _Proxy(fx.Proxy):
    """A proxy that knows its value: sizes, types and truth are plain Python values."""

    value: Any

    def __getattr__(self, name: str) -> Any:
        if name == "value":
            raise AttributeError(name)
        found = getattr(self.value, name)
        if callable(found):
            return fx.proxy.Attribute(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self.value)))  # type: ignore[index]

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image
        self.executing = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.executing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) and not isinstance(m, OPEN_MODULES)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if isinstance(m, nn.MultiheadAttention):
            forward = functools.partial(multi_head, m)
        return forward(*args, **kwargs) if self.executing else super().call_module(m, forward, args, kwargs)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        if kind == "placeholder" and any(node.op == "placeholder" for node in self.graph.nodes):
            return args[0] if args else None  # only the image enters; everything else keeps its default
        if target is F.scaled_dot_product_attention:
            return attend(*args, **kwargs)
        kind, target, kwargs, in_place = _out_of_place(kind, target, kwargs)
        value = self.image if kind == "placeholder" else self._run(kind, target, args, kwargs)
        if not _holds_tensor(value):
            return value
        for argument in args:
            if isinstance(argument, _Proxy) and argument.value is value:
                return argument
        made = super().create_proxy(kind, target, args, kwargs)
        made.value = value  # type: ignore[attr-defined]
        path = target if kind == "call_module" else self.scope.module_path
        made.node.meta = {"path": path} | ({"shape": tuple(value.shape)} if isinstance(value, Tensor) else {})
        if not in_place:
            return made
        args[0].node, args[0].value = made.node, value  # the name now stands for the changed tensor
        return args[0]

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = (map_aggregate(a, lambda v: v.value if isinstance(v, _Proxy) else v) for a in (args, kwargs))
        self.executing = True
        try:
            with torch.no_grad():
                return execute(self.root, kind, target, args, kwargs)
        finally:
            self.executing = False


def _trace_once(module: nn.Module, size: tuple[int, ...]) -> fx.GraphModule:
    module = copy.deepcopy(module).eval()
    for part in module.modules():
        for flag in ("inplace", "fused_attn"):  # an open attention shows both matrix products and the softmax
            if getattr(part, flag, False) is True:
                setattr(part, flag, False)
    first = next(module.parameters(), torch.zeros(()))
    image = torch.zeros(size, device=first.device, dtype=first.dtype)
    with mock.patch.dict(fx._symbolic_trace._wrapped_fns_to_patch, clear=True):  # open what timm wraps for plain fx
        graph = _Tracer(image).trace(module)
    _one_output(graph)
    gm = fx.GraphModule(module, graph, type(module).__name__)
    for node in gm.graph.nodes:
        if node.op == "get_attr" and "shape" not in node.meta:
            node.meta = {"path": "", "shape": tuple(attribute(gm, node.target).shape)}
    return gm


def _one_output(graph: fx.Graph) -> None:
    """The only tensor of a tuple, list or dict becomes the output. Raises ModelError where there are several."""
    (output,) = graph.find_nodes(op="output")
    if not isinstance(output.args[0], fx.Node):
        shaped: Any = lambda v: _Shaped(v) if isinstance(v, fx.Node) else v  # noqa: E731
        shapes: Any = map_aggregate(output.args[0], shaped)
        output.args = (only_tensor(shapes).node,)  # type: ignore[attr-defined]


class _Shaped:
    """A node of the output, with the shape that a message tells."""

    def __init__(self, node: fx.Node) -> None:
        self.node, self.shape = node, node.meta.get("shape", ())


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensor(v) for v in value)
    return isinstance(value, Tensor)


def _out_of_place(kind: str, target: Any, kwargs: Any) -> tuple[str, Any, Any, bool]:
    """The same call without a side effect, and whether the original changed its first argument."""
    if kind == "call_function" and target in _OPEN_OPERATORS:
        return kind, _OPEN_OPERATORS[target], kwargs, True
    if kind == "call_method" and target.endswith("_") and not target.endswith("__") and hasattr(Tensor, target[:-1]):
        return kind, target[:-1], kwargs, True
    if kwargs.get("inplace") is True:
        return kind, target, {**kwargs, "inplace": False}, True
    return kind, target, kwargs, False
