"""LiteRT (TensorFlow Lite): a .tflite of 8-bit integers, linear layers in 8, 4 or 2 bits, run by its interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ptmq_lightning.export.targets import TARGETS, OnnxStatic, Run

if TYPE_CHECKING:
    from ptmq_lightning.export.draft import Draft
    from ptmq_lightning.export.support import Support
    from ptmq_lightning.export.values import Array


@TARGETS.register("litert_static")
class LiteRt(OnnxStatic):
    backend = "litert"
    packs = False
    packages: ClassVar[tuple[str, ...]] = ("ai_edge_litert",)
    writers: ClassVar[tuple[str, ...]] = ("flatbuffers",)
    integer = True
    exact = True

    def support(self) -> Support:
        from ptmq_lightning.export.litert_convert import NATIVE
        from ptmq_lightning.export.litert_ops import OPERATIONS
        from ptmq_lightning.export.support import BYTES, CONV, DEPTHWISE, LINEAR, Support

        return Support({CONV: BYTES, DEPTHWISE: BYTES, LINEAR: NATIVE}, frozenset(OPERATIONS))

    def files(self, draft: Draft) -> dict[str, str]:
        return {name: f"{name}.tflite" for name in draft.assignments}

    def network(self, draft: Draft, name: str) -> Any:
        from ptmq_lightning.export.litert_convert import LiteRtConverter

        return LiteRtConverter(draft, name).network()

    def layer_graph(self, draft: Draft, name: str) -> Any:
        from ptmq_lightning.export.litert_convert import LiteRtConverter

        return LiteRtConverter(draft, name).layers()

    def layers(self, graph: Any, given: Mapping[str, Array], portable: bool) -> dict[str, Array]:
        from ptmq_lightning.export.litert_run import Runner

        runner = Runner(graph.model.data, 1)
        made = runner({name: graph.codes[name].into(given[name]) for name in runner.inputs})
        return {name: graph.codes[name].back(value) for name, value in made.items()}

    def opened(self, model: Path | bytes, threads: int | None) -> Run:
        from ptmq_lightning.export.litert_run import images_to_logits

        return images_to_logits(model if isinstance(model, bytes) else model.read_bytes(), threads)

    def saturates(self) -> bool:
        return False

    def float_kernels(self, file: Path | bytes, products: set[str], name: str = "") -> dict[str, int]:
        from ptmq_lightning.export.litert_run import float_operators

        return float_operators(file if isinstance(file, bytes) else file.read_bytes())
