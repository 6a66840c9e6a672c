"""An exported network in ONNX Runtime or OpenVINO: the model's `switch`, and integer kernels behind it.

    session = Session("export")
    session.switch("w4a4")
    logits = session(images)

A switchable export is one session: its parameters are inputs, made once per width and kept bound. A multi export is one
session too, of which an input chooses the width. A static one holds a session per width, made when it is first asked
for. Any number of threads may call a session; one that switches takes a
handle of its own.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
import torch

from ptmq_lightning.export.folder import EXPORT, WIDTHS, read_manifest
from ptmq_lightning.export.onnx_convert import IMAGES, LOGITS
from ptmq_lightning.export.portable import as_portable, saturates, shifted
from ptmq_lightning.export.targets import target_of
from ptmq_lightning.export.values import Array, Table, parameters
from ptmq_lightning.runtime.errors import ConfigError, ExportError, PTMQError
from ptmq_lightning.runtime.extras import require
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.memory import release_freed_memory
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel, Which
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth
from ptmq_lightning.runtime.turns import Turns

Images = TypeVar("Images", torch.Tensor, Array)
Run = Callable[[Array], Array]


class Session:
    """What `write_export` wrote, ready to run: images (B, C, H, W) float32 -> logits (B, classes).

    threads: of one inference; None leaves the choice to the runtime. portable: run in the form that is exact on every
    processor (export.portable), None: where this processor needs it. Raises ExportError for a folder that is no
    export, or where a file is missing or altered.
    """

    def __init__(self, folder: Path | str, threads: int | None = 1, *, portable: bool | None = None) -> None:
        self.folder, self.threads = Path(folder), threads
        self.manifest = read_manifest(self.folder)
        self._image_shape = tuple(self.manifest["image_shape"])
        backend = self.manifest["backend"]
        self.target = target_of(backend, self.form)
        require(backend, *self.target.packages)
        stored = self.manifest["weights"] == "portable"
        asked = stored or (saturates(backend) if portable is None else portable)
        self.portable = asked and not self.target.exact
        self._rewrites = self.portable and not stored
        self.info = ModelInfo.from_json(self.manifest["info"])
        layers = [LayerInfo.from_json(row) for row in self.manifest["layers"]]
        pairs = [BitWidth.parse(pair) for pair in self.manifest["pairs"]]
        self._names = MultiBitModel((), (), {layer.name: layer for layer in layers}, pairs)  # resolves, runs nothing
        self.assignments = {n: BitAssignment.from_json(rows) for n, rows in self.manifest["assignments"].items()}
        self._names.assignments = self.assignments
        self._runs: dict[BitAssignment, Run] = {}
        self._preparing = threading.Lock()
        self.active: BitAssignment | None = None
        self._turns = Turns()
        try:
            self._shared = ONE_SESSION[self.form](self) if self.form in ONE_SESSION else None
            self.switch(next(iter(self.assignments)))
        except PTMQError:
            raise
        except Exception as error:  # a runtime meets bytes that are no graph with errors of its own
            first = (str(error).strip() or "no reason given").splitlines()[0]
            raise EXPORT.failed(
                self.folder, f"its graph cannot be run ({type(error).__name__}: {first[:300]}). {EXPORT.again}"
            ) from error

    @property
    def form(self) -> str:
        return str(self.manifest["form"])

    @property
    def widths(self) -> tuple[str, ...]:
        """The names that `switch` knows."""
        return tuple(self.assignments)

    def switch(self, which: Which | None) -> None:
        """Run at `which` from now on: 4, "w4a8", the name of an assignment, {layer: width}. Raises ConfigError."""
        if which is None:
            raise ConfigError("an export has no float network; expected one of its widths: " + ", ".join(self.widths))
        assignment = self._names.resolve(which)
        if assignment not in self._runs:
            with self._preparing:
                if assignment not in self._runs:  # no other thread came first
                    self._runs[assignment] = self._prepared(assignment, which)
        with self._turns.switching():
            self.active = assignment

    def handle(self) -> Session:
        """A second switch on the same export: all that was prepared is shared, the active width is not."""
        own = copy.copy(self)
        own._turns = Turns()
        return own

    def __call__(self, images: Images) -> Images:
        """Logits, in the type of the images: numpy or torch. Raises ExportError for images of another size."""
        assert self.active is not None
        given = np.ascontiguousarray(images.numpy() if isinstance(images, torch.Tensor) else images, dtype=np.float32)
        if given.shape[1:] != self._image_shape:
            raise ExportError(
                f"found images of shape {given.shape}; expected (B, {', '.join(map(str, self._image_shape))}), as "
                f"exported. Prepare them so, or export the artifact with images of this size."
            )
        run = self._runs[self.active]
        self._turns.require_own()  # after the look at `active`: what came before it is seen
        logits = run(given)
        return torch.from_numpy(logits) if isinstance(images, torch.Tensor) else logits

    def graph(self, name: str) -> Path | bytes:
        """What the runtime is given for an exported width: its file, or the file's graph in its portable form."""
        files = self.manifest["files"]
        path: Path = self.folder / (files.get("*") or files[name])
        if not self._rewrites:
            return path
        made: bytes = as_portable(path.read_bytes(), self.manifest["backend"]).SerializeToString()
        return made

    def _prepared(self, assignment: BitAssignment, which: Any) -> Run:
        if self._shared is not None:
            return self._shared.at(assignment, which)
        return self.target.opened(self.graph(self.name_of(assignment, which)), self.threads)

    def name_of(self, assignment: BitAssignment, which: Any) -> str:
        """The exported width that this is. Raises ConfigError where it is none."""
        names = (n for n, own in self.assignments.items() if own == assignment)
        name: str | None = next(names, None)
        if name is None:
            raise ConfigError(
                f"the width {which!r} was not exported; found {', '.join(self.widths)}. Export it too, or use "
                f"--form switchable."
            )
        return name


class _Switchable:
    """One session; a set of bound parameters per width."""

    def __init__(self, export: Session) -> None:
        manifest = export.manifest
        self.portable = export.portable
        self.table = Table.from_json(manifest["table"])
        self.arrays: dict[str, Array] = safetensors.numpy.load_file(export.folder / WIDTHS)
        self.session = inference_session(export.graph("*"), export.threads)
        self.inputs = [i.name for i in self.session.get_inputs() if i.name != IMAGES]
        exported = BitAssignment.from_json(next(iter(manifest["assignments"].values())))
        values = parameters(self.table, self.arrays, exported)
        self.constants = {name: values[name] for name in manifest["constants"]}

    def at(self, assignment: BitAssignment, which: Any) -> Run:
        import onnxruntime as ort

        try:
            values = parameters(self.table, self.arrays, assignment)
        except KeyError as error:
            name, _, bits = str(error.args[0]).rsplit(".", 2)
            at = f"the input of {self.table.quantizers[name].owner}" if name in self.table.quantizers else name
            raise ConfigError(
                f"the width {which!r} needs {bits} bits at {at}, which this export does not hold. Choose among the "
                f"exported widths, or export this one too."
            ) from None
        other = next((name for name, own in self.constants.items() if not np.array_equal(own, values[name])), None)
        if other is not None:
            raise ConfigError(
                f"the width {which!r} needs another {other}, which is a constant of this export: all its widths share "
                f"it. Choose among the exported widths, or export this one too."
            )
        given = {name: shifted(name, values[name]) if self.portable else values[name] for name in self.inputs}
        kept = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in given.items()}

        def bound() -> Any:
            binding = self.session.io_binding()
            for name, value in kept.items():
                binding.bind_ortvalue_input(name, value)
            return binding

        binding_of = per_thread(bound)

        def run(images: Array) -> Array:
            binding = binding_of()
            binding.bind_cpu_input(IMAGES, images)
            binding.bind_output(LOGITS)
            self.session.run_with_iobinding(binding)
            logits: Array = binding.copy_outputs_to_cpu()[0]
            return logits

        return run


class _Multi:
    """One session whose graph holds the widths; an input chooses."""

    def __init__(self, export: Session) -> None:
        self.name_of = export.name_of
        self.session = inference_session(export.graph("*"), export.threads)
        chosen = self.session.get_modelmeta().custom_metadata_map
        self.input = next(i.name for i in self.session.get_inputs() if i.name != IMAGES)
        self.values: dict[str, int] = json.loads(chosen[f"ptmq.{self.input}"])

    def at(self, assignment: BitAssignment, which: Any) -> Run:
        given = np.array(self.values[self.name_of(assignment, which)], dtype=np.int64)
        return lambda images: self.session.run([LOGITS], {IMAGES: images, self.input: given})[0]


ONE_SESSION: dict[str, type[_Switchable | _Multi]] = {"switchable": _Switchable, "multi": _Multi}


def per_thread(make: Callable[[], Any]) -> Callable[[], Any]:
    """A function that gives each thread its own of what `make` makes, always the same one."""
    local = threading.local()

    def own() -> Any:
        try:
            return local.made
        except AttributeError:  # the thread's first call
            local.made = make()
            return local.made

    return own


def inference_session(path: Path | bytes, threads: int | None, optimized: Path | None = None) -> Any:
    """An onnxruntime session on the CPU; optimized: where to leave the graph that it runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    model = path if isinstance(path, bytes) else str(path)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    release_freed_memory()  # unpacking the weights of every width leaves gigabytes with the C library
    return session


def compile_openvino(path: Path | bytes, threads: int | None) -> Any:
    """An OpenVINO compiled model on the CPU, with the latency hint."""
    import openvino

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    return core.compile_model(core.read_model(path if isinstance(path, bytes) else str(path)), "CPU", config)
