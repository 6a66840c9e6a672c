"""Serving one artifact: every request gets the width that its deadline and the free memory allow.

    python train.py                                                   # leaves the artifact, offline
    python examples/serving.py outputs/digits_resnet/default/model
    python examples/serving.py DIR --data cifar10 --root FOLDER --out serving

The rungs are the float network and the artifact's widths, all in ONNX Runtime with one thread, so that what differs
is the integers and not the runtime. Known of a rung are its latency, the median of interleaved runs at the start, times
the machine's present slowdown, seen in the requests served; its agreement with the float network and its bytes, from
the artifact's table. (Agreement, for top-1 of 1,000 images has a standard error of a point: too coarse to rank 5 to 8
bits.) Of the rungs within both limits the one that agrees most is taken, of equals the smaller.

An x86 CPU has no kernels below 8 bits: all widths take the same time, and the deadline chooses between float and
integers alone. A narrower width saves memory, counted with the weights packed at their width, as a device stores or
fetches them; ONNX Runtime unpacks them to a byte each. --form switchable holds one session for all widths instead of
one for each, but prepares the weights in every call: a small network at batch 1 then loses what its integers gain.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from serving_report import picture, report

import ptmq_lightning as ptmq
from ptmq_lightning.data.module import calibration_images, draw_calibration
from ptmq_lightning.data.sources import open_data, permutation
from ptmq_lightning.device.bench import interleaved
from ptmq_lightning.device.pictures import preprocessing_of
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session, inference_session
from ptmq_lightning.export.targets import forms
from ptmq_lightning.runtime.model import MultiBitModel

Run = Callable[[Any], Any]  # image (1, C, H, W) -> logits (1, classes), numpy
ROUNDS = 200  # that measure the rungs at the start
RECENT = 15  # requests that tell the machine's slowdown
EXPORT_IMAGES = 64


@dataclass(frozen=True)
class Rung:
    """A way to answer. agreement: percent of images with the float network's class; ms: median at the start."""

    name: str
    top1: float
    agreement: float
    bytes: int
    ms: float


@dataclass(frozen=True)
class Phase:
    """Requests under the same limits."""

    name: str
    requests: int
    deadline_ms: float
    memory_bytes: float


class Chooser:
    """The policy. One slowdown serves all rungs, so that those not in use keep a present estimate. It is a median, for
    a single stall of the machine is no reason to change, and at least 1: luck is no promise."""

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self.rungs = rungs
        self._recent = deque([1.0], maxlen=RECENT)

    def expected_ms(self, rung: Rung) -> float:
        return rung.ms * max(1.0, statistics.median(self._recent))

    def choose(self, deadline_ms: float, memory_bytes: float) -> Rung:
        """Memory is a wall: where nothing fits, the smallest. A deadline is a wish: where none keeps it, what comes
        within a tenth of the fastest, so that noise does not choose among equals."""
        held = [rung for rung in self.rungs if rung.bytes <= memory_bytes]
        held = held or [min(self.rungs, key=lambda rung: rung.bytes)]
        deadline_ms = max(deadline_ms, 1.1 * min(map(self.expected_ms, held)))
        fits = [rung for rung in held if self.expected_ms(rung) <= deadline_ms]
        return max(fits, key=lambda rung: (rung.agreement, -rung.bytes))

    def served(self, rung: Rung, ms: float) -> None:
        self._recent.append(ms / rung.ms)


def serve(
    chooser: Chooser,
    runs: Mapping[str, Run],
    requests: Iterable[tuple[Any, int]],
    phases: Sequence[Phase],
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """A row per request: (image, label) in, the switch to another width included in its time."""
    plan = (phase for phase in phases for _ in range(phase.requests))
    rows = []
    for phase, (image, label) in zip(plan, requests, strict=False):
        start = clock()
        rung = chooser.choose(phase.deadline_ms, phase.memory_bytes)
        answer = runs[rung.name](image).argmax()
        ms = 1000 * (clock() - start)
        chooser.served(rung, ms)
        rows.append({"phase": phase.name, "rung": rung.name, "ms": round(ms, 4), "correct": bool(answer == label)})
    return rows


def open_runs(model: MultiBitModel, images: torch.Tensor, folder: Path, form: str) -> dict[str, Run]:
    """The float network and every width, in ONNX Runtime."""
    write_export(model, folder / "widths", images, form=form)  # compares with the simulation on `images`
    model.switch(None)
    torch.onnx.export(
        model, (images[:1],), str(folder / "float.onnx"), dynamo=False, opset_version=17, input_names=["images"]
    )
    session, full = Session(folder / "widths"), inference_session(folder / "float.onnx", threads=1)

    def at(width: str) -> Run:
        def run(image: Any) -> Any:
            session.switch(width)  # microseconds, once a width has been used
            return session(image)

        return run

    return {"float": lambda image: full.run(None, {"images": image})[0]} | {name: at(name) for name in session.widths}


def ladder(model: MultiBitModel, runs: Mapping[str, Run], image: Any) -> list[Rung]:
    """Float first, then from narrow to wide, with what the artifact's table and a measurement say."""

    def second(run: Run) -> float:  # of two runs in a row: a stream finds its weights in the caches
        run(image)
        start = time.perf_counter()
        run(image)
        return time.perf_counter() - start

    ms = interleaved({name: partial(second, run) for name, run in runs.items()}, ROUNDS)
    found = model.info.accuracy
    if found is None:
        raise SystemExit("the artifact has no figures; serve one that a run of train.py left")
    rungs = [
        Rung("float", found.fp["top1"] or 0.0, 100.0, 4 * sum(i.weights for i in model.layers.values()), ms["float"])
    ]
    rows = [row for row in found.rows if row.config in runs]
    return rungs + [Rung(r.config, r.top1, r.agreement, r.size_bytes, ms[r.config]) for r in rows]


def script(rungs: Sequence[Rung], requests: int) -> list[Phase]:
    """A loose deadline, a tight one, a neighbor that takes memory and gives it back; relative to what was measured."""
    full, *widths = rungs
    loose, tight = 3 * full.ms, max(0.9 * full.ms, 1.5 * min(rung.ms for rung in widths))
    sizes, plenty = [rung.bytes for rung in widths], 1.2 * full.bytes
    limits = {"all free": (loose, plenty), "tight deadline": (tight, plenty), "less memory": (tight, 0.6 * max(sizes)),
              "least memory": (tight, 1.2 * min(sizes)), "memory back": (tight, plenty),
              "free again": (loose, plenty)}  # fmt: skip
    return [Phase(name, requests // len(limits), *limit) for name, limit in limits.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="a run's model/ folder")
    parser.add_argument("--data", help="digits, cifar10, imagenet or imagefolder (the artifact's own)")
    parser.add_argument("--root", help="the images' folder, as data.root of train.py")
    parser.add_argument("--form", choices=forms(), default="static", help="a session per width, or one for all")
    parser.add_argument("--requests", type=int, default=900, help="of the whole trace (900)")
    parser.add_argument("--out", type=Path, default=Path("outputs/serving"), help="writes OUT.json and OUT.png")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = ptmq.load(options.artifact)
    wanted = preprocessing_of(model.info)
    name = options.data or model.info.data or "digits"
    data = open_data(name, preprocessing=wanted, root=options.root, calibration_images=EXPORT_IMAGES)
    images = calibration_images(data.train, draw_calibration(data.train, EXPORT_IMAGES, seed=0))
    drawn = [data.val[index] for index in permutation(len(data.val), 0)[: options.requests]]
    requests = [(image[None].numpy(), label) for image, label in drawn]
    with tempfile.TemporaryDirectory() as folder:
        runs = open_runs(model, images, Path(folder), options.form)
        rungs = ladder(model, runs, requests[0][0])
        phases = script(rungs, len(requests))
        rows = serve(Chooser(rungs), runs, requests, phases)
    machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    record = {
        "network": model.info.name, "data": options.data, "form": options.form, "machine": machine,
        "versions": {name: version(name) for name in ("torch", "onnxruntime")},
        "rungs": [asdict(rung) for rung in rungs], "phases": [asdict(phase) for phase in phases],
        "trace": {key: [row[key] for row in rows] for key in rows[0]},
    }  # fmt: skip
    print(*report(record), sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(record) + "\n")
    picture(record, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
