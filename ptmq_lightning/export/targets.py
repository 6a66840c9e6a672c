"""Export targets by name, each one runtime and one form of its files. A runtime is imported when it is first used.

    @TARGETS.register("mine_static")
    class Mine(OnnxStatic):
        backend = "mine"

`write_export(..., backend="mine")`, `ptmq export --backend mine` and `export.name=mine` know it from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.registry import Registry

if TYPE_CHECKING:
    from ptmq_lightning.export.draft import Draft
    from ptmq_lightning.export.support import Support
    from ptmq_lightning.export.values import Array

Run = Callable[[Any], Any]  # images (B, C, H, W) -> logits, of numpy
TARGETS: Registry[type[OnnxStatic]] = Registry("export target")


@TARGETS.register("onnx_static")
class OnnxStatic:
    """A file for ONNX Runtime per width: weights are constants. The base of every target.

    backend, form: the names that it is asked for by. packages, writers: what running and, beside that, writing it
    needs. exact: it has one form of integer arithmetic, right on every processor. early: values become integers as
    soon as they can, and stay them from layer to layer; else where the simulation has its quantizers (plan.plan).
    clip: where bounds narrower than 8 bits are applied, to "codes" or "values" (onnx_convert.Converter). packs: stores
    weights narrower than 8 bits in their bits alone, or, asked so, in a byte each. integer: every tensor becomes
    integers, those that the simulation keeps in float at 8 bits over their range. devices: what the key export.device
    may name, the first one its default; device: the one that was asked for.
    """

    backend: ClassVar[str] = "onnx"
    form: ClassVar[str] = "static"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    early: ClassVar[bool] = True
    clip: ClassVar[str] = "codes"
    packs: ClassVar[bool] = True
    integer: ClassVar[bool] = False
    writers: ClassVar[tuple[str, ...]] = ("onnx",)
    exact: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = ()

    def __init__(self, device: str | None = None) -> None:
        self.device = device or next(iter(self.devices), None)

    def support(self) -> Support:
        """The operations and widths that it takes."""
        from ptmq_lightning.export.onnx_convert import operations
        from ptmq_lightning.export.support import BYTES, ITSELF, KINDS, PRODUCT, Support

        held = ITSELF if self.packs or self.form == "multi" else BYTES
        return Support({**dict.fromkeys(KINDS, held), PRODUCT: BYTES}, operations(), tables=True)

    def files(self, draft: Draft) -> dict[str, str]:
        """width -> file."""
        return {name: f"{name}.onnx" for name in draft.assignments}

    def network(self, draft: Draft, name: str) -> Any:
        """The ModelProto of a file; name: of `files`."""
        return draft.static(name, clip=self.clip, pack=self.packs and draft.pack)

    def verify(self, draft: Draft, name: str, network: Any) -> None:
        """Look at a network before it is written. Raises ExportError where it does not hold the model's numbers."""

    def write(self, network: Any, path: Path) -> None:
        """Write a network as the file, or the folder of files, that it is."""
        path.write_bytes(network.SerializeToString())

    def beside(self, draft: Draft, folder: Path, network: Any) -> list[str]:
        """Write what stands beside the graphs; the parameters that are constants of the last one, by name."""
        return []

    def told(self, draft: Draft, folder: Path) -> dict[str, Any]:
        """What the manifest tells beside what it tells of every target."""
        return {}

    def readme(self, manifest: Mapping[str, Any], folder: Path) -> str | None:
        """The text of a README.md in the folder."""
        return None

    def notes(self, folder: Path) -> list[str]:
        """What is to be said of a finished export beside its check, line by line."""
        return []

    def opened(self, model: Path | bytes, threads: int | None) -> Run:
        """images (B, C, H, W) -> logits of one static file."""
        from ptmq_lightning.export.onnx_convert import IMAGES, LOGITS
        from ptmq_lightning.export.session import inference_session

        session = inference_session(model, threads)
        return lambda images: session.run([LOGITS], {IMAGES: images})[0]

    def saturates(self) -> bool:
        """Whether its 16-bit sums saturate on this processor, tried out (export.portable)."""
        from ptmq_lightning.export.portable import onnx_is_exact

        return not onnx_is_exact()

    def make_portable(self, graph: Any) -> None:
        """Rewrite an onnx graph in its place as one that saturates nowhere."""
        from ptmq_lightning.export.portable import unsigned

        unsigned(graph)

    def layer_graph(self, draft: Draft, name: str) -> Any:
        """Every quantized layer by itself, for `layers`: "<layer>.in<i>" -> "<layer>.out"; None where there is none."""
        from ptmq_lightning.export.onnx_convert import Converter

        graph = Converter(draft.plan, draft.values[name], clip=self.clip).layers(draft.ops)
        return graph if graph.graph.output else None

    def layers(self, graph: Any, given: Mapping[str, Array], portable: bool) -> dict[str, Array]:
        """The outputs of a graph of single layers (`layer_graph`), by name, with the simulation's values as its
        inputs; nothing where the runtime fails on such graphs."""
        from ptmq_lightning.export.portable import as_portable, shifted, shifted_back
        from ptmq_lightning.export.session import inference_session

        outputs, feed = (
            [output.name for output in graph.graph.output],
            {i.name: given[i.name] for i in graph.graph.input},
        )
        if portable:
            graph, feed = as_portable(graph, self.backend), {n: shifted(n, value) for n, value in feed.items()}
        made = inference_session(graph.SerializeToString(), None).run(outputs, feed)
        return {name: shifted_back(value, given[name].dtype) for name, value in zip(outputs, made, strict=True)}

    def float_kernels(self, file: Path | bytes, products: set[str], name: str = "") -> dict[str, int]:
        """Convolutions and products that run in float at the width `name`, by kernel; products: names of the matrix
        products."""
        from ptmq_lightning.export.parity import FLOAT_KERNELS, kernels

        return {kernel: count for kernel, count in kernels(file).items() if kernel in FLOAT_KERNELS}


@TARGETS.register("onnx_switchable")
class OnnxSwitchable(OnnxStatic):
    """ONE file for ONNX Runtime, whose integer weights, scales and biases are inputs; the numbers of all widths stand
    beside it."""

    form = "switchable"
    packs = False

    def files(self, draft: Draft) -> dict[str, str]:
        return {"*": "model.onnx"}

    def network(self, draft: Draft, name: str) -> Any:
        return draft.switchable()

    def beside(self, draft: Draft, folder: Path, network: Any) -> list[str]:
        import safetensors.numpy

        from ptmq_lightning.export.folder import WIDTHS

        safetensors.numpy.save_file(draft.arrays, folder / WIDTHS)
        known = next(iter(draft.values.values()))
        return [tensor.name for tensor in network.graph.initializer if tensor.name in known]


@TARGETS.register("onnx_multi")
class OnnxMulti(OnnxStatic):
    """ONE file for ONNX Runtime in any program: an input chooses the width, whose branch unpacks shared weights."""

    form = "multi"
    packs = False  # always, and all widths at once

    _kernels: dict[str, dict[str, int]] | None = None  # in float, of each branch of the file that was looked at

    def files(self, draft: Draft) -> dict[str, str]:
        return {"*": "model.onnx"}

    def network(self, draft: Draft, name: str) -> Any:
        return draft.multi()

    def told(self, draft: Draft, folder: Path) -> dict[str, Any]:
        from ptmq_lightning.export.one_file import told

        return told(draft, folder / self.files(draft)["*"])

    def readme(self, manifest: Mapping[str, Any], folder: Path) -> str | None:
        from ptmq_lightning.export.one_file import readme

        return readme(manifest, (folder / manifest["files"]["*"]).stat().st_size)

    def float_kernels(self, file: Path | bytes, products: set[str], name: str = "") -> dict[str, int]:
        from ptmq_lightning.export.parity import FLOAT_KERNELS, branch_kernels

        if self._kernels is None:  # opening the file makes every branch
            self._kernels = {
                branch: {kernel: count for kernel, count in found.items() if kernel in FLOAT_KERNELS}
                for branch, found in branch_kernels(file).items()
            }
        return self._kernels[name]


@TARGETS.register("openvino_static")
class OpenVino(OnnxStatic):
    """A file for OpenVINO per width; it reads ONNX and compiles the weights in. Its layers make floats."""

    backend = "openvino"
    packages = ("openvino",)
    early = False
    clip = "values"
    packs = False  # its compiler does not fold the unpacking, and then convolves in float

    def opened(self, model: Path | bytes, threads: int | None) -> Run:
        import numpy as np

        from ptmq_lightning.export.session import compile_openvino, per_thread

        request_of = per_thread(compile_openvino(model, threads).create_infer_request)
        return lambda images: np.array(request_of().infer([images], share_inputs=True, share_outputs=True)[0])

    def saturates(self) -> bool:
        from ptmq_lightning.export.portable import openvino_is_exact

        return not openvino_is_exact()

    def make_portable(self, graph: Any) -> None:
        from ptmq_lightning.export.portable import split_weights

        split_weights(graph)

    def layers(self, graph: Any, given: Mapping[str, Array], portable: bool) -> dict[str, Array]:
        from ptmq_lightning.export.portable import as_portable
        from ptmq_lightning.export.session import compile_openvino

        model = as_portable(graph, self.backend) if portable else graph
        try:
            compiled = compile_openvino(model.SerializeToString(), None)
        except RuntimeError:  # of some networks its compiler fails on these graphs
            return {}
        made = compiled({i.name: given[i.name] for i in graph.graph.input})
        return {output.name: made[output.name] for output in graph.graph.output}

    def float_kernels(self, file: Path | bytes, products: set[str], name: str = "") -> dict[str, int]:
        from ptmq_lightning.export.parity import openvino_floats

        return openvino_floats(file, products)


def backends() -> tuple[str, ...]:
    """The choices of `--backend` and of the key export.name."""
    return tuple(dict.fromkeys(target.backend for target in TARGETS.variants.values()))


def unpacking() -> tuple[str, ...]:
    """The backends none of whose forms lets weights be packed or not."""
    return tuple(
        name for name in backends() if not any(t.packs for t in TARGETS.variants.values() if t.backend == name)
    )


def forms() -> tuple[str, ...]:
    """The choices of `--form` and export.form."""
    return tuple(dict.fromkeys(target.form for target in TARGETS.variants.values()))


def target_of(backend: str, form: str | None = None, device: str | None = None) -> OnnxStatic:
    """The target of a backend and form, for a device; without a form the backend's first, as all run alike.

    Raises:
        ConfigError: there is none, or none for this device; the message lists those that there are.
    """
    made = next((t for t in TARGETS.variants.values() if t.backend == backend and form in (None, t.form)), None)
    if made is None:
        known = ", ".join(f"{target.backend} {target.form}" for target in TARGETS.variants.values())
        raise ConfigError(f"found backend={backend!r} with form={form!r}; expected a backend and form of {known}.")
    if device is not None and device not in made.devices:
        known = f"one of {', '.join(made.devices)}" if made.devices else f"none: {backend} knows no devices"
        raise ConfigError(f"found device={device!r} with backend={backend!r}; expected {known}.")
    return made(device)


def devices() -> tuple[str, ...]:
    """The choices of `--device` and export.device."""
    return tuple(dict.fromkeys(device for target in TARGETS.variants.values() for device in target.devices))


from ptmq_lightning.export import coreml, ethosu, litert, qonnx  # noqa: E402, F401  they register themselves, as above
