"""QONNX: ONNX with `Quant` nodes of any width, for FINN and hls4ml; run by the qonnx package's own executor.

The nodes stand where the simulation has its quantizers and nowhere else, so that the graph is the simulation: weights
float32 whose `Quant` gives back each of them bit for bit, activations unsigned with a zero point, biases in float. The
file holds a float per weight: the widths are what the compiler behind it makes hardware of. Its batch is one, as those
compilers want it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptmq_lightning.export.targets import TARGETS, OnnxStatic, Run

if TYPE_CHECKING:
    from ptmq_lightning.export.draft import Draft
    from ptmq_lightning.export.support import Support
    from ptmq_lightning.export.values import Array


@TARGETS.register("qonnx_static")
class Qonnx(OnnxStatic):
    backend = "qonnx"
    packs = False
    packages = ("qonnx", "onnx", "onnxruntime")
    early = False
    clip = "values"
    exact = True

    def support(self) -> Support:
        from ptmq_lightning.export.onnx_convert import operations
        from ptmq_lightning.export.support import ITSELF, KINDS, Support

        return Support(dict.fromkeys(KINDS, ITSELF), operations())

    def network(self, draft: Draft, name: str) -> Any:
        from ptmq_lightning.export.qonnx_convert import QuantConverter, finished

        return finished(QuantConverter(draft, name).network(draft.ops, {"ptmq.width": name}), batch=1)

    def verify(self, draft: Draft, name: str, network: Any) -> None:
        from ptmq_lightning.export.qonnx_convert import require_same_weights

        require_same_weights(draft, name, network)

    def layer_graph(self, draft: Draft, name: str) -> Any:
        from ptmq_lightning.export.qonnx_convert import QuantConverter, finished

        graph = QuantConverter(draft, name).layers(draft.ops)
        return finished(graph) if graph.graph.output else None

    def layers(self, graph: Any, given: Mapping[str, Array], portable: bool) -> dict[str, Array]:
        return _executed(graph, {i.name: given[i.name] for i in graph.graph.input})

    def opened(self, model: Path | bytes, threads: int | None) -> Run:
        import onnx

        from ptmq_lightning.export.onnx_convert import IMAGES, LOGITS

        graph = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
        return lambda images: _executed(graph, {IMAGES: images})[LOGITS]

    def saturates(self) -> bool:
        return False

    def float_kernels(self, file: Path | bytes, products: set[str], name: str = "") -> dict[str, int]:
        """All of them: the executor computes with the quantized values in float."""
        from collections import Counter

        import onnx

        graph = onnx.load_from_string(file) if isinstance(file, bytes) else onnx.load(str(file))
        found = Counter(node.op_type for node in graph.graph.node)
        return {kind: found[kind] for kind in ("Conv", "Gemm", "MatMul") if found[kind]}


def _executed(graph: Any, feed: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs by name, from qonnx's executor at the batch of `feed`: it wants every shape to be fixed."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    from ptmq_lightning.export.qonnx_convert import with_batch

    batch = len(next(iter(feed.values())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ModelWrapper(with_batch(graph, batch)).transform(InferShapes())
        made: dict[str, Array] = execute_onnx(model, dict(feed))
    return made
