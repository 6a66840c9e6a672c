"""What fewer bits and one file for every width cost and save in ONNX Runtime: bytes, opening, latency, a switch.

    python benchmarks/one_file.py
    python benchmarks/one_file.py --networks resnet18 --batches 1 --rounds 11
    python benchmarks/one_file.py --networks deit_s --batches            # the files alone

Random weights, images of noise: none of these changes a size or a time. "whole": a byte for each weight, as files below
8 bits were before; "packed": their bits alone; "multi": one file for 2 to 8 bits. Opening is seconds of one processor
core, and memory, of a process that does nothing else: at once, at the peak, and behind glibc's malloc_trim(0), which
`Session` calls. Latencies are medians of interleaved rounds of processor time on one thread. Results:
benchmarks/results/one_file.json, .md.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from random_models import random_model

from ptmq_lightning.device.bench import interleaved
from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.one_file import opening
from ptmq_lightning.export.parity import FLOAT_KERNELS, branch_kernels, kernels
from ptmq_lightning.export.session import inference_session
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import MultiBitModel

FILE = Path(__file__).resolve().parent / "results" / "one_file.json"
NETWORKS = {"resnet18": "ResNet-18", "deit_s": "DeiT-S", "tf_efficientnet_lite0": "EfficientNet-Lite0"}
ALONE = (8, 4, 3, 2)  # widths of static files
FREE = tuple(range(2, 8))  # widths whose steps are tied to no other
PLANES = {2: 0, 3: 1, 4: 2}  # of method=ptmq; the other widths are rounded to nearest
CLOCK = time.process_time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32], help="none: latencies stay")
    parser.add_argument("--rounds", type=int, default=11, help="of batch 1; a third of it for larger ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            files = written(name, Path(folder))
            entry = found.setdefault(name, {})
            entry |= {"machine": machine(), "weights": files.pop("weights"), "files": costs(files)}
            entry["latency"] = {} if options.batches else entry.get("latency", {})
            written_down(found)
            for batch in options.batches:
                rounds = options.rounds if batch == 1 else max(3, options.rounds // 3)
                entry["latency"][str(batch)] = latency(files, batch, rounds)
                written_down(found)
    print(report(found))


def written_down(found: Mapping[str, Any]) -> None:
    write_atomically(FILE, json.dumps(found, indent=1) + "\n")
    write_atomically(FILE.with_suffix(".md"), report(found))


def written(name: str, folder: Path) -> dict[str, Any]:
    """The files of a network by what they hold, and the number of its weights."""
    model = random_model(name)
    images = torch.randn(2, 3, 224, 224)
    draft = drafted(model, images)
    files: dict[str, Any] = {"weights": sum(layer.weights for layer in model.layers.values())}
    for bits in ALONE:
        for kind, pack in (("whole", False), ("packed", True)):
            if bits < 8 or not pack:
                files[f"{bits} {kind}"] = saved(draft.static(f"w{bits}a{bits}", pack=pack), folder / f"{bits}{kind}")
    files["multi nested"] = saved(draft.multi(), folder / "nested")
    del draft, model
    latent = random_model(name, free=FREE, plane_of=PLANES)
    files["multi latent"] = saved(drafted(latent, images).multi(), folder / "latent")
    return files


def drafted(model: MultiBitModel, images: torch.Tensor) -> Draft:
    return Draft(model, images, [f"w{bits}a{bits}" for bits in range(2, 9)])


def saved(network: Any, file: Path) -> Path:
    file.write_bytes(network.SerializeToString())
    return file


def costs(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Bytes, what opening takes, and how many convolutions and products run in float in any branch."""
    made = {}
    for kind, file in files.items():
        branches = branch_kernels(file).values() if kind.startswith("multi") else [kernels(file)]
        in_float = max(sum(own[kernel] for kernel in FLOAT_KERNELS) for own in branches)
        made[kind] = {"bytes": file.stat().st_size, **opening(file), "float_kernels": in_float}
    return made


def latency(files: Mapping[str, Path], batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a pass, by file and width; of the multi file also right behind a pass at another width."""
    x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    sessions = {kind: inference_session(file, 1) for kind, file in files.items() if kind != "multi latent"}
    multi = sessions.pop("multi nested")

    def alone(session: Any) -> Callable[[], Any]:
        return lambda: session.run(None, {"images": x})

    def at(bits: int) -> Callable[[], Any]:
        return lambda: multi.run(None, {"images": x, "bits": np.array(bits)})

    def behind(before: int, bits: int) -> Callable[[], float]:
        def case() -> float:
            at(before)()
            start = CLOCK()
            at(bits)()
            return CLOCK() - start

        return case

    cases = {kind: alone(session) for kind, session in sessions.items()}
    cases |= {f"{bits} multi": at(bits) for bits in ALONE}
    cases |= {"4 behind 4": behind(4, 4), "4 behind 8": behind(8, 4)}
    return interleaved(cases, rounds, CLOCK)


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {"vnni": bool(re.search(r"avx512_vnni|avx_vnni", info)), "onnxruntime": onnxruntime.__version__}


def report(found: Mapping[str, Any]) -> str:
    """The files, then latencies as ratios to files of whole weights."""
    vnni = "with" if next(iter(found.values()))["machine"]["vnni"] else "without"
    versions = ", ".join(sorted({entry["machine"]["onnxruntime"] for entry in found.values()}))
    lines = ["# Fewer bits, and one file for every width, in ONNX Runtime", ""]
    lines += [f"ONNX Runtime {versions} on a processor {vnni} VNNI, one thread, random weights.", ""]
    lines += ["## Files", "", *table(["network", "file", "bits per weight", "MB", "opening, s", "memory, MB",
              "at the peak, MB", "trimmed, MB", "float convolutions and products"], file_rows(found)), ""]  # fmt: skip
    lines += ["## Latency, ms", "", *table(["network", "batch", "bits", "whole", "packed", "multi"],
              latency_rows(found)), ""]  # fmt: skip
    lines += ["In brackets: the time over that of the file of whole weights.", "", "## A switch, ms of a pass", ""]
    lines += table(["network", "batch", "4 bits behind 4 bits", "4 bits behind 8 bits"], switch_rows(found))
    return "\n".join(lines) + "\n"


def table(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def file_rows(found: Mapping[str, Any]) -> Iterable[list[str]]:
    shown = {"multi nested": "2 to 8 bits, tied steps", "multi latent": "2 to 8 bits, free steps, three planes"}
    for name, entry in found.items():
        for kind, own in entry["files"].items():
            bits = 8 * own["bytes"] / entry["weights"]
            text = shown.get(kind, kind.replace(" ", " bits, "))
            found_bytes = (own.get(key) for key in ("bytes", "held", "peak", "trimmed"))
            size, held, peak, trimmed = ("-" if value is None else f"{value / 1e6:.1f}" for value in found_bytes)
            seconds, in_float = f"{own['seconds']:.2f}", str(own["float_kernels"])
            yield [NETWORKS.get(name, name), text, f"{bits:.2f}", size, seconds, held, peak, trimmed, in_float]


def latency_rows(found: Mapping[str, Any]) -> Iterable[list[str]]:
    for name, entry in found.items():
        for batch, own in entry["latency"].items():
            for bits in ALONE:
                base = own[f"{bits} whole"]
                cells = (own.get(f"{bits} {kind}") for kind in ("packed", "multi"))
                shown = [f"{base:.1f}", *("-" if ms is None else f"{ms:.1f} ({ms / base:.2f})" for ms in cells)]
                yield [NETWORKS.get(name, name), batch, str(bits), *shown]


def switch_rows(found: Mapping[str, Any]) -> Iterable[list[str]]:
    for name, entry in found.items():
        for batch, own in entry["latency"].items():
            same, other = own["4 behind 4"], own["4 behind 8"]
            yield [NETWORKS.get(name, name), batch, f"{same:.1f}", f"{other:.1f} ({other / same:.2f})"]


if __name__ == "__main__":
    main()
