"""Widths per layer against one width everywhere, at the same average of weight bits: what each part of it is worth.

    python benchmarks/allocation.py                                  # ResNet-20 on CIFAR-10, of the folder PTMQ_DATA
    python benchmarks/allocation.py --seeds 0 1 2 --swap-seconds 60
    python benchmarks/allocation.py --experiment imagenet_mobileone --runs DIR --images 64 --judges 350
    python benchmarks/allocation.py --table                          # the table anew, of what was measured

A cell is a network and a seed: a run of train.py under outputs/allocation (made where it is missing, 300 iterations a
block), or a finished one, whose calibration images decide and whose evaluation images judge. Rows that are there are
kept, so that a benchmark which was stopped goes on. Seconds are those of the processor.
Results: benchmarks/results/allocation.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from scipy.stats import spearmanr
from torch import Tensor

from ptmq_lightning.allocate.baselines import or_uniform
from ptmq_lightning.allocate.judge import Judge
from ptmq_lightning.allocate.keys import AllocateKeys
from ptmq_lightning.allocate.problem import Budget, Choice, Problem
from ptmq_lightning.allocate.rules import complete, weight_bits
from ptmq_lightning.allocate.searches import SEARCHES
from ptmq_lightning.allocate.swaps import SURE, below, swap
from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose import pipeline
from ptmq_lightning.compose.folder import CONFIG
from ptmq_lightning.config.check import typed
from ptmq_lightning.config.declared import completed
from ptmq_lightning.config.schema import Config
from ptmq_lightning.device.allocation import Allocation
from ptmq_lightning.device.pictures import spread
from ptmq_lightning.evaluation.cost import bit_ops, layer_macs, size_bytes
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.sealed import sha256_of
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "benchmarks" / "results" / "allocation.json"
RUNS = ROOT / "outputs" / "allocation"
AVERAGES = (3.0, 3.5, 4.0, 4.5, 5.0)
IMAGES, DRAWS, RANDOM, ITERS = 256, 200, 3, 300
ENDS = (AVERAGES[0], AVERAGES[-1])  # of the averages of assignments drawn at random
METHODS = ("random", "greedy", "milp", "milp or uniform", "milp + any swap", "milp + swaps")
OPS = "bit operations too"  # two budgets
LEARNED = f"milp, learned pairs, {OPS}"
FREE = (f"milp, {OPS}", f"milp + any swap, {OPS}", f"milp + swaps, {OPS}")  # any activation width
ALL = (*METHODS, LEARNED, *FREE)


class Cell:
    """A finished model, the images that decide, and the images that judge.

    Args:
        folder: of the run.
        images: how many of its calibration images decide.
        judges: how many of its evaluation images judge, evenly spread; None: all.
    """

    def __init__(self, folder: Path, *, images: int, judges: int | None, swap_seconds: float) -> None:
        self.swap_seconds = swap_seconds
        config = typed(
            OmegaConf.create(completed(Config, yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))))
        )
        self.model = artifact.load(folder / "model")
        sources, indices = pipeline.find(config)
        sources, calibration = pipeline.load(config, pipeline.build(config.model), sources, indices)
        self.images = calibration[:images]
        chosen = spread(len(sources.val), judges or len(sources.val))
        self.judge = judge_on(self.model, sources.val, chosen)
        self.macs = layer_macs(self.model, self.images[:1])
        counts = {"iters": config.recon.iters, "decide": len(self.images), "judge": len(chosen)}
        self.bits = "" if config.bits.name == "uniform" else f" bits={config.bits.name}"
        self.run = {"seed": config.seed, **counts, "model": sha256_of(folder / "model" / "model.safetensors")[:8]}

    @cached_property
    def tied(self) -> Allocation:
        return self.of("tied")

    @cached_property
    def free(self) -> Allocation:
        return self.of("free")

    def of(self, activations: str, sensitivity: str = "divergence") -> Allocation:
        keys = AllocateKeys(
            name="milp",
            activations=activations,
            sensitivity=sensitivity,
            sensitivity_images=len(self.images),
            swap_images=len(self.images),
        )
        return Allocation(self.model, self.images, keys)

    def divergence(self, choice: Choice) -> Tensor:
        """On each of the images that decide."""
        return self.tied.judge.divergences(complete(self.model, choice))

    def uniform(self, average: float) -> BitWidth:
        """The widest pair of no more weight bits."""
        return max(pair for pair in self.model.pairs if pair.w <= average)

    def uniform_ops(self, average: float) -> float:
        """Bit operations of the uniform pairs, between two of them in proportion."""
        low, high = (self.uniform(math.floor(average)), self.uniform(math.ceil(average)))
        part, macs = average - math.floor(average), self.macs
        of_low, of_high = (bit_ops(macs, self.model.resolve(p), self.model.layers) for p in (low, high))
        return of_low + part * (of_high - of_low)

    def row(self, assignment: BitAssignment, **more: Any) -> dict[str, Any]:
        """What an assignment costs and how it answers on the evaluation images."""
        w_bits, a_bits = assignment.average(self.model)
        costs = {
            "w_bits": round(w_bits, 3),
            "a_bits": round(a_bits, 3),
            "bytes": size_bytes(self.model, assignment),
            "bit_ops": bit_ops(self.macs, assignment, self.model.layers),
        }
        answers = asdict(self.judge.ask(assignment))
        return costs | {name: round(value, 5) for name, value in answers.items()} | more


def judge_on(model: MultiBitModel, pictures: Any, chosen: Iterable[int]) -> Judge:
    """What asks the model about the chosen of these labelled pictures."""
    shown = [pictures[index] for index in chosen]
    labels = torch.tensor([int(label) for _, label in shown])
    return Judge(model, torch.stack([image for image, _ in shown]), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="cifar_resnet20")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of runs that are made here")
    parser.add_argument("--runs", nargs="+", type=Path, help="folders of finished runs of the experiment instead")
    parser.add_argument("--images", type=int, default=IMAGES, help="calibration images that decide")
    parser.add_argument("--judges", type=int, help="evaluation images that judge (all)")
    parser.add_argument("--methods", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--swap-seconds", type=float, default=20.0)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    if not options.table:
        for folder in options.runs or [made(options.experiment, seed) for seed in options.seeds]:
            cell = Cell(folder, images=options.images, judges=options.judges, swap_seconds=options.swap_seconds)
            kept = found.setdefault(f"{options.experiment}{cell.bits}/{cell.run['seed']}", {})
            if kept.setdefault("run", cell.run) != cell.run:
                sys.exit(f"{FILE} has this cell of another run, {kept['run']}, not of {cell.run}: take that one out")
            measure(cell, options.methods, kept, found)
    write_atomically(FILE.with_suffix(".md"), table(found))


def made(experiment: str, seed: int) -> Path:
    """The folder of a short run, which is made where it is missing."""
    folder = RUNS / experiment / f"seed{seed}"
    if not (folder / "model" / "manifest.json").exists():
        overrides = [f"experiment={experiment}", f"recon.iters={ITERS}", f"seed={seed}"]
        command = [sys.executable, "train.py", *overrides, f"hydra.run.dir={folder}", "resume=true"]
        subprocess.run(command, cwd=ROOT, check=True)
    return folder


def measure(cell: Cell, methods: Sequence[str], kept: dict[str, Any], found: dict[str, Any]) -> None:
    """Every part of a cell that is not there yet; each is written when it is done."""
    for name, part in parts(cell, methods):
        if name not in kept:
            kept[name] = part()
            print(name, kept[name], flush=True)
            write_atomically(FILE, json.dumps(found, indent=1) + "\n")


def parts(cell: Cell, methods: Sequence[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "sensitivity", lambda: seconds_of_sensitivity(cell, free=bool({*methods} & {*FREE}))
    for average in AVERAGES:
        yield f"uniform {average}", lambda a=average: cell.row(cell.model.resolve(cell.uniform(a)))
        for method in methods:
            yield f"{method} {average}", lambda m=method, a=average: allocated(cell, m, a)
    yield "rank correlation", lambda: correlations(cell)


def seconds_of_sensitivity(cell: Cell, free: bool) -> dict[str, float]:
    """Processor seconds of each measure on the images that decide; all layers and pairs."""
    asked = {"divergence": cell.tied, "fisher": cell.of("tied", "fisher")}
    if free:
        asked["divergence, weights and activations apart"] = cell.free
    return {name: round(timed(lambda a=allocation: a.sensitivity)[1], 2) for name, allocation in asked.items()}


def correlations(cell: Cell) -> dict[str, float]:
    """Spearman's between the sum of the layers' harm and the true divergence, over assignments drawn at random."""
    draw = random.Random(0)
    choices = [at_random(cell, draw.uniform(*ENDS), draw) for _ in range(DRAWS)]
    true = [float(cell.divergence(choice).mean()) for choice in choices]
    harms = {"divergence": cell.tied.sensitivity, "fisher": cell.of("tied", "fisher").sensitivity}
    scores = {n: [sum(h[name][p] for name, p in choice.items()) for choice in choices] for n, h in harms.items()}
    return {name: round(float(spearmanr(score, true).statistic), 3) for name, score in scores.items()}


def at_random(cell: Cell, average: float, draw: random.Random) -> Choice:
    """Pairs drawn one by one, drawn again for a layer at random until the average is within a twentieth of a bit."""
    harm, budget = cell.tied.sensitivity, weight_bits(cell.model, cell.model.pairs, average)
    choice = {name: draw.choice(cell.model.pairs) for name in harm}
    away = budget.spent(choice) - budget.limit
    while abs(away) > 0.05 * budget.unit:
        name = draw.choice(list(harm))
        changed = choice | {name: draw.choice(cell.model.pairs)}
        if abs(left := budget.spent(changed) - budget.limit) <= abs(away):
            choice, away = changed, left
    return choice


def allocated(cell: Cell, method: str, average: float) -> dict[str, Any]:
    """One method under the average of weight bits; some under the uniform pairs' bit operations as well."""
    allocation = cell.free if method in FREE else cell.tied
    budgets: list[Budget] = [weight_bits(cell.model, allocation.pairs, average)]
    if OPS in method:
        budgets.append(replace(allocation.bit_ops(0.0), limit=cell.uniform_ops(average)))
    problem = Problem(allocation.sensitivity, tuple(budgets))
    if method == "random":
        rows = [cell.row(complete(cell.model, SEARCHES[method](problem, seed))) for seed in range(RANDOM)]
        return {key: round(statistics.mean(row[key] for row in rows), 5) for key in rows[0]}
    choice, seconds = timed(lambda: SEARCHES[re.split(" or | \\+ |,", method)[0]](problem, 0))
    if "swap" in method or "uniform" in method:
        choice = or_uniform(problem, choice, cell.divergence)
    if "swap" not in method:
        return cell.row(complete(cell.model, choice), search_seconds=round(seconds, 3))
    sure = 0.0 if "any swap" in method else SURE  # any that lowers the mean
    course = Course(cell.divergence, sure)
    choice = swap(problem, choice, course, cell.swap_seconds, sure=sure, clock=time.process_time)
    return cell.row(complete(cell.model, choice), course=course.told)


class Course:
    """The divergence of choices, and that of the kept one over time."""

    def __init__(self, divergence: Callable[[Choice], Tensor], sure: float) -> None:
        self.divergence, self.sure, self.started = divergence, sure, time.process_time()
        self.kept: Tensor | None = None
        self.told: list[tuple[float, float]] = []

    def __call__(self, choice: Choice) -> Tensor:
        found = self.divergence(choice)
        if self.kept is None or below(found, self.kept, self.sure):
            self.kept = found
            self.told.append((round(time.process_time() - self.started, 2), round(float(found.mean()), 5)))
        return found


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Its result and its processor seconds."""
    started = time.process_time()
    return call(), time.process_time() - started


def table(found: dict[str, Any]) -> str:
    """The results as Markdown: for each network the means over seeds."""
    lines: list[str] = []
    for experiment in dict.fromkeys(key.split("/")[0] for key in found):
        cells = [cell for key, cell in found.items() if key.split("/")[0] == experiment]
        lines += [f"## {experiment}: mixed against uniform, seeds: {len(cells)}", "", *_rows(cells), ""]
        run = cells[0]["run"]
        told = (
            f"A fit of {run['iters']} iterations. {run['decide']} calibration images decide, {run['judge']} evaluation"
        )
        lines += [f"{told} images judge.", ""]
        lines += [f"## {experiment}: swaps, on the images that decide", "", *_swaps(cells), "", *_others(cells), ""]
    return "\n".join(lines)


def _rows(cells: list[dict[str, Any]]) -> Iterator[str]:
    yield "| asked | method | top-1, % | agreement, % | KL | activation bits | bytes | G bit operations | weight bits |"
    yield "| ---: | --- " + "| ---: " * len(_SHOWN) + "|"
    for average in AVERAGES:
        for method in ("uniform", *ALL):
            rows = [cell[name] for cell in cells if (name := f"{method} {average}") in cell]
            if rows:
                mean = {key: statistics.mean(row[key] for row in rows) for key in rows[0] if key in _SHOWN}
                shown = " | ".join(form.format(mean[key] / unit) for key, (form, unit) in _SHOWN.items())
                yield f"| {average:g} | {method} | {shown} |"


_SHOWN = {
    "top1": ("{:.2f}", 1), "agreement": ("{:.2f}", 1), "divergence": ("{:.4f}", 1), "a_bits": ("{:.2f}", 1),
    "bytes": ("{:,.0f}", 1), "bit_ops": ("{:.3f}", 1e9), "w_bits": ("{:.2f}", 1),
}  # fmt: skip


def _swaps(cells: list[dict[str, Any]]) -> Iterator[str]:
    """The divergence on the deciding images over time."""
    times = (0, 2, 5, 10, 20)
    yield "| asked | swaps | " + " | ".join(f"KL after {t} s" for t in times) + " |"
    yield "| ---: | --- " + "| ---: " * len(times) + "|"
    for average in AVERAGES:
        for method in (name for name in ALL if "swap" in name):
            courses = [cell[name]["course"] for cell in cells if (name := f"{method} {average}") in cell]
            if courses:
                best = [statistics.mean(_at(course, t) for course in courses) for t in times]
                yield f"| {average:g} | {method} | " + " | ".join(f"{value:.4f}" for value in best) + " |"


def _at(course: list[list[float]], seconds: float) -> float:
    return [value for at, value in course if at <= seconds or value == course[0][1]][-1]


def _others(cells: list[dict[str, Any]]) -> Iterator[str]:
    told = {
        "sensitivity": f"Seconds of the sensitivity on {cells[0]['run']['decide']} images",
        "rank correlation": f"Rank correlation of the sum of harm with the true divergence, {DRAWS} random assignments",
    }
    for part, what in told.items():
        keys = cells[0].get(part, {})
        means = {key: statistics.mean(cell[part][key] for cell in cells if part in cell) for key in keys}
        if means:
            yield f"{what}: {', '.join(f'{key} {value:.3g}' for key, value in means.items())}."


if __name__ == "__main__":
    main()
