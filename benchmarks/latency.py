"""Latency of one model in every way to run it, and what a switch costs: all ways take turns in one process.

    python benchmarks/latency.py
    python benchmarks/latency.py --networks resnet18 --batches 1 --threads 1 --rounds 15

Random weights, rounded to nearest, images of noise: none of these changes the time. Ratios are to eager PyTorch in
float, and of ONNX Runtime's integers to ONNX Runtime in float too; with --clock cpu one-thread times are seconds of the
process's CPU, which other programs on a busy machine disturb less. "simulated" is a model as it is loaded; switch.py
measures it in place as well. Results: benchmarks/results/latency.json, .md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session, inference_session
from ptmq_lightning.models import blocks, fold, graph, zoo
from ptmq_lightning.quant.insert import Placement, insert
from ptmq_lightning.quant.steps import StepSize, calibrate
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth

RESULTS = Path(__file__).resolve().parent / "results"
NETWORKS = ("resnet18", "mobilenetv2", "deit_s")
WIDTHS = ("w8a8", "w4a4")
SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=11, help="runs of each way; a quarter of it at batches over 8")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="of the runs with one thread")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (minutes to compile)")
    options = parser.parse_args()
    file = RESULTS / "latency.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    found["machine"] = machine() | {"clock": options.clock}
    for name in options.networks:
        for threads in options.threads:
            with tempfile.TemporaryDirectory() as folder:
                clock = time.process_time if options.clock == "cpu" and threads == 1 else time.perf_counter
                bench = Bench(name, threads, Path(folder), compiled=not options.no_compile, clock=clock)
                for batch in options.batches:
                    rounds = options.rounds if batch <= 8 else max(3, options.rounds // 4)
                    found[f"{name}, batch {batch}, threads {threads}"] = bench.run(batch, rounds)
                    write_atomically(file, json.dumps(found, indent=2) + "\n")
                    write_atomically(RESULTS / "latency.md", table(found))
                    print(name, batch, threads, found[f"{name}, batch {batch}, threads {threads}"], flush=True)
                found[f"{name}, switch"] = bench.switches()
                write_atomically(file, json.dumps(found, indent=2) + "\n")
                write_atomically(RESULTS / "latency.md", table(found))
    print(table(found))


class Bench:
    """Every way to run one network on a number of threads."""

    def __init__(self, name: str, threads: int, folder: Path, *, compiled: bool, clock: Callable[[], float]) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.threads, self.folder, self.clock = threads, folder, clock
        self.float_network = zoo.build(name, pretrained=False).module.eval()
        self.model = multi_bit(self.float_network, name)
        images = torch.randn(2, 3, SIZE, SIZE)
        for form, backend in (("static", "onnx"), ("switchable", "onnx"), ("static", "openvino")):
            write_export(self.model, folder / f"{backend}_{form}", images, WIDTHS, form=form, backend=backend)
        torch.onnx.export(
            self.float_network, (images,), str(folder / "float.onnx"), dynamo=False, opset_version=17,
            input_names=["images"], dynamic_axes={"images": {0: "batch"}},
        )  # fmt: skip
        self.compiled: Any = torch.compile(self.float_network) if compiled else None

    def ways(self, x: Tensor) -> dict[str, Callable[[], Any]]:
        """Name -> one inference of the images (B, C, H, W)."""
        array, ways = x.numpy(), dict[str, Callable[[], Any]]()
        ways["float, eager"] = lambda: self.float_network(x)
        if self.compiled is not None:
            ways["float, torch.compile"] = lambda: self.compiled(x)
        for width in WIDTHS:
            ways[f"simulated, {width}"] = self._simulated(width, x)
        session = inference_session(self.folder / "float.onnx", self.threads)
        ways["ONNX Runtime, float"] = lambda: session.run(None, {"images": array})
        for label, folder in (("ONNX Runtime", "onnx_static"), ("ONNX Runtime switchable", "onnx_switchable"),
                              ("OpenVINO", "openvino_static")):  # fmt: skip
            for width in WIDTHS:
                ways[f"{label}, {width}"] = self._session(self.folder / folder, width, array)
        return ways

    def _simulated(self, width: str, x: Tensor) -> Callable[[], Any]:
        def run() -> Any:
            return self.model(x)

        run.__dict__["before"] = lambda: (self.model.switch(width), self.model(x[:1]))  # integers made, not timed
        return run

    def _session(self, folder: Path, width: str, array: Any) -> Callable[[], Any]:
        session = Session(folder, self.threads)
        session.switch(width)
        return lambda: session(array)

    @torch.inference_mode()
    def run(self, batch: int, rounds: int) -> dict[str, dict[str, float]]:
        """Median and least milliseconds of each way, and eager's median over its."""
        ways = self.ways(torch.randn(batch, 3, SIZE, SIZE))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, way in ways.items():
                getattr(way, "before", lambda: None)()
                start = self.clock()
                way()
                if turn:  # the first round warms up
                    seconds[name].append(self.clock() - start)
        medians = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
        return {
            name: {
                "ms": medians[name],
                "least_ms": 1e3 * min(times),
                "speedup": medians["float, eager"] / medians[name],
            }
            for name, times in seconds.items()
        }

    def switches(self, rounds: int = 20) -> dict[str, float]:
        """Milliseconds of a switch between two widths: of the one session, first and later, and of making a session."""
        session = Session(self.folder / "onnx_switchable", self.threads)
        start = time.perf_counter()
        session.switch("w4a4")
        first = time.perf_counter() - start
        later, made = [], []
        for turn in range(rounds):
            start = time.perf_counter()
            session.switch(WIDTHS[turn % 2])
            later.append(time.perf_counter() - start)
        for turn in range(5):
            start = time.perf_counter()
            inference_session(self.folder / "onnx_static" / f"{WIDTHS[turn % 2]}.onnx", self.threads)
            made.append(time.perf_counter() - start)
        sizes = {"static": self.folder / "onnx_static" / "w4a4.onnx", "switchable": self.folder / "onnx_switchable"}
        return {
            "first_ms": 1e3 * first,
            "later_ms": 1e3 * statistics.median(later),
            "new_session_ms": 1e3 * statistics.median(made),
            "static_file_MB": sizes["static"].stat().st_size / 1e6,
            "switchable_graph_MB": (sizes["switchable"] / "model.onnx").stat().st_size / 1e6,
            "switchable_widths_MB": (sizes["switchable"] / "widths.safetensors").stat().st_size / 1e6,
        }


def multi_bit(network: nn.Module, name: str) -> MultiBitModel:
    gm = graph.trace(network, (3, SIZE, SIZE))
    fold.fold(gm)
    images = torch.randn(2, 3, SIZE, SIZE)
    model = insert(
        blocks.cut(gm, images, name=name), tuple(map(BitWidth.parse, WIDTHS)), Placement(gelu="table"), StepSize()
    )
    calibrate(model, images)
    return model.eval()


def machine() -> dict[str, Any]:
    import onnxruntime
    import openvino

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {
        "vnni": bool(re.search(r"avx512_vnni|avx_vnni", info)),
        "avx512": "avx512f" in info,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "openvino": openvino.__version__,
    }


def table(found: dict[str, Any]) -> str:
    """Speed-ups over float, a row per way; then what a switch costs."""
    cases = {name: entry for name, entry in found.items() if "batch" in name}
    ways = list(dict.fromkeys(way for entry in cases.values() for way in entry))
    lines = [
        f"Processor with VNNI: {'yes' if found['machine']['vnni'] else 'no'}. Milliseconds (speed-up over eager float; "
        "of ONNX Runtime's integers also over ONNX Runtime's float).",
        "",
    ]
    lines += ["| | " + " | ".join(cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for way in ways:
        cells = [_cell(e, way) if way in e else "-" for e in cases.values()]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    heads = ["", "first switch to a width, ms", "later, ms", "a new session, ms", "static file, MB",
             "switchable graph, MB", "its integers for two widths, MB"]  # fmt: skip
    lines += ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, entry in found.items():
        if "switch" in name:
            lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in entry.values()) + " |")
    return "\n".join(lines) + "\n"


def _cell(entry: dict[str, dict[str, float]], way: str) -> str:
    speedups, runtime_float = f"{entry[way]['speedup']:.1f}x", "ONNX Runtime, float"
    if way.startswith("ONNX Runtime") and way != runtime_float:
        speedups += f"; {entry[runtime_float]['ms'] / entry[way]['ms']:.1f}x"
    return f"{entry[way]['ms']:.1f} ({speedups})"


if __name__ == "__main__":
    main()
