"""What a reconstruction costs on a GPU, in one call of a few minutes.

    python benchmarks/gpu.py                 # writes benchmarks/results/gpu.{json,md}
    python benchmarks/gpu.py --device cpu --steps 2 --blocks resnet20 --networks    # does it run at all

Of a ResNet-18, a ResNet-20 and a DeiT-S block with random weights: milliseconds of a step of the default method as it
is, with compiled kernels, and with forward and backward passes of one draw of widths replayed as a CUDA graph; and the
kernels that a step launches. The graph is of one batch, one draw and one place of the masks: it is what a graph for
each draw could reach, not a fit.

Of ResNet-18 and DeiT-S at 224 px: the minutes of a whole run at recon=fast and recon=paper, on the line through two
short runs of the command of different lengths. Weights are random and images are noise, which changes no cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.layers import set_fused_attn
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import cost, speed  # noqa: E402  (of the source tree, not of the package)
from ptmq_lightning.compose.cli import configuration  # noqa: E402
from ptmq_lightning.quant import kernels  # noqa: E402
from ptmq_lightning.runtime.files import write_atomically  # noqa: E402

FILE = ROOT / "benchmarks" / "results" / "gpu.json"
BLOCKS = ("resnet18", "resnet20", "deit_s")
NETWORKS = ("resnet18", "deit_s")
LENGTHS = (20, 60)  # iterations per block of the two short runs
SCHEDULES = ("fast", "paper")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--blocks", nargs="*", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=1024, help="of calibration, for the networks")
    parser.add_argument("--json", default=str(FILE), help="a file; - prints to the standard output")
    options = parser.parse_args()
    set_fused_attn(False)
    found: dict[str, Any] = {"torch": torch.__version__, "device": device_name(options.device)}
    found["blocks"] = {name: of_block(name, options.device, options.steps) for name in options.blocks}
    found["networks"] = {name: of_network(name, options.device, options.images) for name in options.networks}
    text = json.dumps(found, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return
    write_atomically(Path(options.json), text)
    write_atomically(Path(options.json).with_suffix(".md"), table(found))
    print(table(found))


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def of_block(name: str, device: str, steps: int) -> dict[str, Any]:
    """Milliseconds of each kind of step, and what one launches; None where there is no such kind."""
    torch.manual_seed(0)
    step = speed.Step(speed.fit_of(name, [], device)[0])
    found: dict[str, Any] = {"eager": milliseconds(step, device, steps)}
    found |= {"operations": speed.operations(step), "kernels": kernels_of(step) if device == "cuda" else None}
    with kernels.compiled(True):
        found["compiled"] = milliseconds(step, device, steps) if device == "cuda" or kernels.compiler() else None
    found["graph"] = milliseconds(as_graph(step), device, steps) if device == "cuda" else None
    return found


def milliseconds(run: Callable[[], None], device: str, steps: int) -> float:
    """Median wall time of a call, its kernels included."""
    times = []
    for _ in range(steps + 3):  # the first ones find kernels and memory
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def kernels_of(step: Callable[[], None]) -> int:
    """What a step launches on the GPU, copies included."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in seen.events())


def as_graph(step: speed.Step) -> Callable[[], None]:
    """The step with forward and backward passes as one CUDA graph, and Adam behind it."""
    batch, graph, stream = next(step.batches), torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def passes() -> None:
        loss = step.module.training_step(batch, step.index)
        assert loss is not None
        loss.backward()

    step.optimizer.zero_grad()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a capture needs libraries that are warm
        passes()
    torch.cuda.current_stream().wait_stream(stream)
    step.optimizer.zero_grad()
    with torch.cuda.graph(graph):
        passes()

    def run() -> None:
        graph.replay()
        step.optimizer.step()

    return run


def of_network(name: str, device: str, images: int) -> dict[str, Any]:
    """Minutes of a whole run at each schedule."""
    with tempfile.TemporaryDirectory() as folder:
        noise = cost.make_noise(Path(folder) / "noise", images)
        runs = []
        for iters in LENGTHS:
            command = [*cost.CASES[name], f"recon.iters={iters}", f"data.calibration_images={images}"]
            command += ["trainer=gpu"] if device == "cuda" else []
            runs.append(cost.measure(command, noise, Path(folder) / str(iters)))
    seconds = [sum(run["seconds"].values()) for run in runs]
    each = (seconds[1] - seconds[0]) / (LENGTHS[1] - LENGTHS[0])  # of an iteration in every block
    iters = {schedule: configuration([f"recon={schedule}"]).recon.iters for schedule in SCHEDULES}
    return {
        "images": images,
        "blocks": runs[0]["blocks"],
        "milliseconds": 1e3 * each / runs[0]["blocks"],
        "minutes": {schedule: (seconds[0] + each * (n - LENGTHS[0])) / 60 for schedule, n in iters.items()},
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
    }


def table(found: dict[str, Any]) -> str:
    """The results in Markdown."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    lines = [
        f"{found['device']}, torch {found['torch']}. Medians of a step at four widths, batch {speed.BATCH}, in ms.",
        "",
        "| block | eager | compiled kernels | CUDA graph of one draw | operations | kernels |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in found["blocks"].items():
        times = " | ".join(shown(row[kind]) for kind in ("eager", "compiled", "graph"))
        lines.append(f"| {name} | {times} | {row['operations']} | {row['kernels'] or '-'} |")
    head = " | ".join(f"recon={schedule}, min" for schedule in SCHEDULES)
    lines += ["", f"| network | images | blocks | ms a step | {head} | peak, MiB |", "|---" + "|--:" * 6 + "|"]
    for name, row in found["networks"].items():
        minutes = " | ".join(f"{row['minutes'][schedule]:.1f}" for schedule in SCHEDULES)
        lines.append(
            f"| {name} | {row['images']} | {row['blocks']} | {row['milliseconds']:.2f} | {minutes} | "
            f"{row['peak_memory_bytes'] / 2**20:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
