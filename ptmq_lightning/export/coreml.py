"""Core ML (iOS 18, macOS 15): an ML program per width whose weights are palettes of 2, 3, 4, 6 or 8 bits.

A weight is an index of b bits into a palette of int8 codes, times a scale per output channel; activations are int8
between `quantize` and `dequantize`; the rest is float16, as Apple's Neural Engine has it. Core ML runs on Apple's
devices alone: the check reads the written file back with coremltools and computes with it in torch what the program
says (`coreml_run`). The numbers of Apple's own kernels, and their time, nobody has measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptmq_lightning.export.targets import TARGETS, OnnxStatic, Run

if TYPE_CHECKING:
    from ptmq_lightning.export.draft import Draft
    from ptmq_lightning.export.support import Support
    from ptmq_lightning.export.values import Array


@TARGETS.register("coreml_static")
class CoreMl(OnnxStatic):
    backend = "coreml"
    packs = False
    packages = ("coremltools",)
    early = False
    clip = "values"
    exact = True

    def support(self) -> Support:
        from ptmq_lightning.export.coreml_convert import PALETTES
        from ptmq_lightning.export.coreml_ops import OPERATIONS
        from ptmq_lightning.export.support import CONV, DEPTHWISE, GROUPED, ITSELF, LINEAR, PRODUCT, Support

        weights = dict.fromkeys((CONV, DEPTHWISE, GROUPED, LINEAR), PALETTES)
        return Support({**weights, PRODUCT: dict.fromkeys(ITSELF, 8)}, OPERATIONS)

    def files(self, draft: Draft) -> dict[str, str]:
        return {name: f"{name}.mlpackage" for name in draft.assignments}

    def network(self, draft: Draft, name: str) -> Any:
        from ptmq_lightning.export.coreml_convert import PaletteConverter, program

        converter = PaletteConverter(draft, name)
        return program(converter.network(draft.ops, {}), converter.palettes, batch=1)

    def verify(self, draft: Draft, name: str, network: Any) -> None:
        from ptmq_lightning.export.coreml_run import require_same_weights

        require_same_weights(draft, name, network)

    def write(self, network: Any, path: Path) -> None:
        from ptmq_lightning.export.coreml_package import save

        save(network, path)

    def notes(self, folder: Path) -> list[str]:
        return [
            "Core ML: the files were read back and computed in torch as their programs say; they were not run on Apple "
            "hardware, and nothing was measured there"
        ]

    def layer_graph(self, draft: Draft, name: str) -> Any:
        from ptmq_lightning.export.coreml_convert import PaletteConverter

        converter = PaletteConverter(draft, name)
        graph = converter.layers(draft.ops)
        return (graph, converter.palettes) if graph.graph.output else None

    def layers(self, graph: Any, given: Mapping[str, Array], portable: bool) -> dict[str, Array]:
        from ptmq_lightning.export.coreml_convert import program
        from ptmq_lightning.export.coreml_run import computed

        model, palettes = graph
        feed = {i.name: given[i.name] for i in model.graph.input}
        return computed(program(model, palettes, batch=len(next(iter(feed.values())))), feed)

    def opened(self, model: Path | bytes, threads: int | None) -> Run:
        from ptmq_lightning.export.coreml_package import load
        from ptmq_lightning.export.coreml_run import images_to_logits

        assert isinstance(model, Path)
        return images_to_logits(load(model))

    def saturates(self) -> bool:
        return False

    def float_kernels(self, file: Path | bytes, products: set[str], name: str = "") -> dict[str, int]:
        """Those whose input is not int8; what Apple's runtime makes of the others is its own choice."""
        from ptmq_lightning.export.coreml_package import load
        from ptmq_lightning.export.coreml_run import float_operators

        assert isinstance(file, Path)
        return float_operators(load(file))
