"""ONNX nodes, constants and parameters as they are written, one after the other (opset 21, IR 10)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, count
from typing import Any

import numpy as np

from ptmq_lightning.export.values import Array

OPSET, IR = 21, 10
BATCH = "batch"
OWN = ("images", "logits", "bits", "assignment")  # inputs and outputs, whatever layers are called
Outputs = Sequence[tuple[str, Any, tuple[int, ...]]]


class Writer:
    """parameters: name -> value; those named in `inputs` become graph inputs, the others constants. outer: writes the
    graph around this one, if it is a branch; what is `stored` goes there. constants: what their names
    begin with, which is another in each graph around."""

    def __init__(
        self,
        parameters: Mapping[str, Array],
        inputs: Collection[str] = (),
        outer: Writer | None = None,
        constants: str = "~c",  # no module bears such a name
    ) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self.parameters, self.inputs, self._prefix = parameters, set(inputs), constants
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.outer: Writer = self if outer is None else outer
        self.values: dict[str, Any] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._used: set[str] = set()
        self._taken = set(OWN)
        self._steps = 0

    def node(self, op: str, inputs: Sequence[str], name: str, outputs: int = 0, **attributes: Any) -> Any:
        """Append a node; its output's name, or a list of `outputs` names."""
        name = self._free(name)
        names = [name] if not outputs else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(self._helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names if outputs else name

    def output(self, source: str, name: str) -> None:
        """Give a tensor the very name of an output of the graph."""
        self.nodes.append(self._helper.make_node("Identity", [source], [name], name=f"{name}~"))

    def step(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node without a name, its output under a short one: a file of few bits has many of them."""
        self._steps += 1
        name = f"{self._prefix[:-1]}~{self._steps}"
        self.nodes.append(self._helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """The name of a constant; equal ones are stored once."""
        array = np.ascontiguousarray(np.asarray(value, dtype=dtype))
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"{self._prefix}{len(self._constants)}"
            self.initializers[name] = self._numpy.from_array(array.reshape(np.shape(value)), name)
        return self._constants[key]

    def stored(self, name: str, value: Array) -> str:
        """A constant under a name of its own, which branches of one graph share."""
        if name not in self.outer.initializers:
            self.outer.initializers[name] = self._numpy.from_array(value, name)
        return name

    def zeros(self, name: str, like: Any, dtype: Any) -> str:
        """The zero points of a weight, under a name of their own: ONNX Runtime's `session.x64quantprecision` makes u8
        of them weight by weight, and fails on the second weight that shares them."""
        self.initializers[name] = self._numpy.from_array(np.zeros_like(like, dtype=dtype), name)
        return name

    def parameter(self, name: str) -> str:
        """The name of a parameter, which becomes an input or a constant of the graph."""
        if name not in self._used:
            self._used.add(name)
            value = self.parameters[name]
            if name in self.inputs:
                kind = self._helper.np_dtype_to_tensor_dtype(value.dtype)
                self.values[name] = self._helper.make_tensor_value_info(name, kind, value.shape)
            else:
                self.initializers[name] = self._numpy.from_array(value, name)
        return name

    def input(self, name: str, dtype: Any, shape: Sequence[int]) -> str:
        """A graph input whose first axis is the batch."""
        kind = self._helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.values[name] = self._helper.make_tensor_value_info(name, kind, [BATCH, *shape[1:]])
        return name

    def scalar(self, name: str) -> str:
        """A graph input int64 ()."""
        kind = self._helper.np_dtype_to_tensor_dtype(np.dtype(np.int64))
        self.values[name] = self._helper.make_tensor_value_info(name, kind, [])
        return name

    def model(self, outputs: Outputs, metadata: Mapping[str, str]) -> Any:
        """The ModelProto; outputs: (name, dtype, shape), the first axis the batch."""
        model = self._helper.make_model(
            self.graph(outputs, list(self.values.values())),
            opset_imports=[self._helper.make_opsetid("", OPSET)],
            ir_version=IR,
            producer_name="ptmq-lightning",
        )
        self._helper.set_model_props(model, dict(metadata))
        return model

    def graph(self, outputs: Outputs, inputs: Sequence[Any] = (), name: str = "ptmq") -> Any:
        """The GraphProto; a branch has no inputs, it reads the names of the graph around it."""
        kinds = [self._helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for _, dtype, _ in outputs]
        made = [
            self._helper.make_tensor_value_info(name, kind, [BATCH, *shape[1:]])
            for (name, _, shape), kind in zip(outputs, kinds, strict=True)
        ]
        return self._helper.make_graph(self.nodes, name, list(inputs), made, list(self.initializers.values()))

    def _free(self, name: str) -> str:
        """The name, numbered where it is taken: layers may be called as anything."""
        free = next(n for n in chain([name], (f"{name}.{i}" for i in count(1))) if n not in self._taken)
        self._taken.add(free)
        return free
