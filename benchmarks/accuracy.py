"""Who wins: methods x widths on one network, with mean and spread over seeds, and what each method costs.

    python benchmarks/accuracy.py cifar_resnet20 --bits w2a4 w3a3 w4a4 --seeds 0 1 2
    python benchmarks/accuracy.py cifar_resnet20 --methods qdrop ptmq ptmq+rounding=ste --set recon.iters=300
    python benchmarks/accuracy.py cifar_resnet20 --set recon.iters=300 --only-table

A cell is one run of train.py in a process and a folder of its own: for a method that learns one pair of widths at a
time (method.single_pair) one per width and seed, for every other method one per seed, which gives all widths. What is
done is skipped, what was killed continues. A method's name may carry overrides behind plus signs. The results hold
every finished cell of the experiment with the same --set, in benchmarks/results/accuracy_EXPERIMENT.{json,csv,md,png}
(with --set: accuracy_EXPERIMENT_SETTINGS), and keep what they held of runs that are no longer there; a cell whose
command means something else by now is left out.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy_figure import TITLES, draw  # noqa: E402
from ptmq_lightning.compose import cli  # noqa: E402
from ptmq_lightning.compose.folder import RunFolder  # noqa: E402
from ptmq_lightning.config.declared import default_of, every_value  # noqa: E402
from ptmq_lightning.config.parts import activation_iters  # noqa: E402
from ptmq_lightning.config.reads import unread  # noqa: E402
from ptmq_lightning.config.schema import Config  # noqa: E402
from ptmq_lightning.report.record import read_results  # noqa: E402
from ptmq_lightning.report.tables import DIGITS, Line, summarize  # noqa: E402
from ptmq_lightning.runtime.errors import ConfigError  # noqa: E402
from ptmq_lightning.runtime.files import csv_text, write_atomically  # noqa: E402

BASELINES = ("rtn", "adaround", "brecq", "qdrop", "flexround", "genie", "ptmq")
VALUES = ("top1", "agreement", "logit_error")
FITTED = "fine-tune", "insert", "calibrate", "reconstruct", "tune"  # stages that are the method's own cost
SHARED = ("model", "data", "evaluation_images", "fp", "versions")  # of results.json: the same in every cell
CELL, RESULTS, TRAINED = "cell.json", "results.json", "finetune.json"  # the last: of methods that train with labels


IDLE = "logger", "trainer", "export", "allocate", "artifact", "resume"  # change no figure of a cell
HYDRA = Lock()  # it composes one configuration at a time


def configuration(overrides: Sequence[str]) -> Any:
    with HYDRA:
        return cli.configuration(overrides)


@dataclass(frozen=True)
class Cell:
    """One run. bits: the pair it learns; None: all of the method's."""

    experiment: str
    label: str
    bits: str | None
    seed: int
    settings: tuple[str, ...]

    def folder(self, work: Path) -> Path:
        return home(work, self.experiment, self.settings) / self.label / (self.bits or "all") / f"seed{self.seed}"

    def overrides(self) -> list[str]:
        method, *changes = self.label.split("+")
        bits = [f"bits={self.bits}"] if self.bits else []
        start = [f"experiment={self.experiment}", f"method={method}", *bits]
        return [*start, *read_by(tuple(start), self.settings), *changes, f"seed={self.seed}"]

    def run(self, work: Path) -> str | None:
        """Run train.py unless it is done; the last lines of what went wrong, if it did: a run of another
        configuration that lies there is an error."""
        folder = self.folder(work)
        if (folder / RESULTS).exists():
            try:
                with RunFolder(folder, configuration([*self.overrides(), "resume=true"])) as place:
                    place.finished()
            except ConfigError as error:
                return str(error)
            return None
        fresh = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        command = ["train.py", *self.overrides()]
        with (folder / "process.log").open("w") as output:
            run = [*command, "resume=true", f"hydra.run.dir='{folder}'"]
            code, cpu_seconds = timed(run, stdout=output, stderr=subprocess.STDOUT)
        if code:
            return "\n".join((folder / "process.log").read_text().splitlines()[-5:])
        note = {
            "experiment": self.experiment, "settings": self.settings, "method": self.label, "bits": self.bits,
            "seed": self.seed,
            "command": " ".join(["python", *command]),
            "cpu_seconds": cpu_seconds if fresh else None,  # a continued run's are not all here
        }  # fmt: skip
        write_atomically(folder / CELL, json.dumps(note | {"meaning": meaning(note)}) + "\n")
        return None


def timed(command: Sequence[str], **streams: Any) -> tuple[int, float]:
    """The exit code and the CPU seconds of a Python process, its children's included."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, **streams)
    _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def home(work: Path, experiment: str, settings: Sequence[str]) -> Path:
    return work / experiment / (",".join(settings) or "default")


def cells(options: argparse.Namespace) -> list[Cell]:
    """Every run that the command asks for; seed by seed, so that a first table is early there."""
    found = []
    for seed in options.seeds:
        for label in options.methods:
            single = configuration([f"method={label.split('+')[0]}"]).method.single_pair
            for bits in options.bits if single else [None]:
                found.append(Cell(options.experiment, label, bits, seed, tuple(options.set)))
    return found


def finished(place: Path) -> list[dict[str, Any]]:
    """Every finished cell below ``place`` that its command would make again: its note, what the table takes of its
    results, its flat rows."""
    found = []
    for file in sorted(place.rglob(CELL)):
        note, results = json.loads(file.read_text()), read_results(file.with_name(RESULTS))
        if note["meaning"] != meaning(note):
            continue
        trained = file.with_name(TRAINED)
        found.append(
            {
                **note,
                # earlier runs have no "tune": it was part of "reconstruct"
                "seconds": sum(results["seconds"].get(stage, 0.0) for stage in FITTED),
                "labels": json.loads(trained.read_text())["labels"] if trained.exists() else 0,
                **{key: results[key] for key in ("peak_memory_bytes", "calibration_images", *SHARED)},
                "rows": [{key: row[key] for key in ("config", *VALUES)} for row in results["rows"]],
            }
        )
    return found


def kept(file: Path, there: Sequence[dict[str, Any]], settings: Sequence[str]) -> list[dict[str, Any]]:
    """The cells of the results file whose runs are gone and whose command still means the same."""
    record = json.loads(file.read_text()) if file.exists() else {"settings": None}
    if record["settings"] != list(settings):
        return []
    mine = {identity(cell) for cell in there}
    return [cell for cell in record["cells"] if identity(cell) not in mine and meaning(cell) == cell["meaning"]]


def identity(note: dict[str, Any]) -> tuple[Any, ...]:
    return note["experiment"], note["method"], note["bits"], note["seed"], *note["settings"]


def meaning(note: dict[str, Any]) -> str:
    """A hash of the configuration that a cell's command composes now, wherever the data lie; "" where it is refused.

    Keys at their declared values are left out, so that a new key whose value changes nothing leaves a cell as it is.
    """
    try:
        return meaning_of(overrides_of(note))
    except ConfigError:
        return ""


@functools.cache
def meaning_of(overrides: tuple[str, ...]) -> str:
    values = every_value(Config, asdict(resolved(overrides)))
    chosen = {name: value for name, field, value in values if value != default_of(field)}
    text = json.dumps({name: chosen[name] for name in chosen if name.split(".")[0] not in IDLE}, sort_keys=True)
    return hashlib.sha256(text.replace(os.environ["PTMQ_DATA"], "PTMQ_DATA").encode()).hexdigest()[:16]


def overrides_of(note: dict[str, Any]) -> tuple[str, ...]:
    experiment, method, bits, seed, *settings = identity(note)
    return tuple(Cell(experiment, method, bits, seed, tuple(settings)).overrides())


@functools.cache
def read_by(command: tuple[str, ...], settings: tuple[str, ...]) -> list[str]:
    """Those of the common settings that a method reads: nearest rounding has no iterations."""
    try:
        config = resolved(command)
    except ConfigError:  # which says why when the cell is run
        return list(settings)
    return [setting for setting in settings if not list(unread(config, [setting]))]


@functools.cache
def resolved(overrides: tuple[str, ...]) -> Any:
    return configuration(overrides)


def length(note: dict[str, Any]) -> str:
    """How long a cell's command fits: iterations of each block or layer, and at how many widths each one runs."""
    config = resolved(overrides_of(note))
    recon, groups = config.recon, len(config.bits.groups)
    if config.finetune.name != "none":
        return f"{config.finetune.epochs} epochs"
    if config.rounding.name == "nearest":
        return "-"
    second = f" + {activation_iters(recon)}" if config.method.activation == "second_phase" else ""
    return f"{recon.iters}{second} a {config.method.unit}" + (f", {groups} widths each" if groups > 1 else "")


def order(config: str) -> tuple[int, ...]:
    return tuple(int(part) for part in config[1:].split("a"))


def costs(done: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per method, means over seeds: seconds of calibration and fits, CPU seconds of whole processes.

    widths: how many its runs cover, one per run of a method that learns one pair at a time. cpu_seconds_all_widths: of
    as many widths as one run of another method gives, at this method's mean per run.
    """
    rows = []
    for label in dict.fromkeys(cell["method"] for cell in done):
        mine = [cell for cell in done if cell["method"] == label]
        runs = [[cell for cell in mine if cell["bits"] == bits] for bits in dict.fromkeys(c["bits"] for c in mine)]
        walls = [[cell["seconds"] for cell in seeds] for seeds in runs]
        cpus = [[s for cell in seeds if (s := cell["cpu_seconds"]) is not None] for seeds in runs]
        total = sum(map(statistics.fmean, walls))
        widths = len({row["config"] for cell in mine for row in cell["rows"]})
        rows.append(
            {
                "method": label,
                "length": length(mine[0]),
                "runs_for_all_widths": len(runs),
                "widths": widths,
                "seconds_total": total,
                "seconds_per_width": total / widths,
                "cpu_seconds_total": sum(map(statistics.fmean, cpus)) if all(cpus) else None,
                "peak_memory_bytes": max(cell["peak_memory_bytes"] for cell in mine),
                "images": max(cell["calibration_images"] for cell in mine),
                "labels": max(cell["labels"] for cell in mine),
            }
        )
    most = max(row["widths"] for row in rows)
    for row in rows:
        single = all(cell["bits"] for cell in done if cell["method"] == row["method"])
        cpu, times = row["cpu_seconds_total"], most / row["runs_for_all_widths"] if single else 1
        row["cpu_seconds_all_widths"] = None if cpu is None else cpu * times
    return rows


def commands(done: Sequence[dict[str, Any]], widths: Sequence[str]) -> list[str]:
    """The commands that make these cells: one for the methods that share their widths and seeds."""
    asked: dict[tuple[str, str], list[str]] = {}
    for label in dict.fromkeys(cell["method"] for cell in done):
        there = {(cell["seed"], cell["bits"]) for cell in done if cell["method"] == label}
        seeds: dict[str, list[str]] = {}
        for seed in sorted({seed for seed, _ in there}):
            bits = [width for width in widths if (seed, width) in there] or widths
            seeds.setdefault(" ".join(bits), []).append(str(seed))
        for bits_of, seeds_of in seeds.items():
            asked.setdefault((bits_of, " ".join(seeds_of)), []).append(label)
    first, settings = done[0], done[0]["settings"]
    given = f" --set {' '.join(settings)}" if settings else ""
    return [
        f"python benchmarks/accuracy.py {first['experiment']} --methods {shlex.join(methods)} --bits {bits} "
        f"--seeds {seeds}{given}"
        for (bits, seeds), methods in asked.items()
    ]


def behind(done: Sequence[dict[str, Any]], widths: Sequence[str], label: str) -> dict[str, tuple[float, float]]:
    """Width -> ptmq's top-1 minus the method's, and its logit error over the method's: means over the seeds that both
    have."""
    found = {}
    values = {(c["method"], c["seed"], row["config"]): row for c in done for row in c["rows"]}
    for width in widths:
        seeds = [seed for method, seed, config in values if (method, config) == (label, width)]
        pairs = [(values["ptmq", s, width], values[label, s, width]) for s in seeds if ("ptmq", s, width) in values]
        if pairs:
            ours, theirs = (
                [statistics.fmean(pair[side][value] for pair in pairs) for value in ("top1", "logit_error")]
                for side in (0, 1)
            )
            found[width] = (ours[0] - theirs[0], ours[1] / theirs[1])
    return found


def write(options: argparse.Namespace) -> None:
    """The results of every finished cell: JSON, CSV, Markdown and the figure."""
    stem = "_".join(["accuracy", options.experiment, *([",".join(options.set)] if options.set else [])])
    file = {kind: options.results / f"{stem}.{kind}" for kind in ("json", "csv", "md", "png")}
    done = finished(home(options.work, options.experiment, options.set))
    done += kept(file["json"], done, options.set)
    if not done:
        return
    known = {label: number for number, label in enumerate(dict.fromkeys([*options.methods, *BASELINES]))}
    done.sort(key=lambda cell: (known.get(cell["method"], len(known)), cell["method"]))
    widths = sorted({*options.bits, *(cell["bits"] for cell in done if cell["bits"])}, key=order)
    flat = [{**cell, **row, "settings": {}} for cell in done for row in cell["rows"]]
    lines = summarize(flat, by=("method",), values=VALUES, rows=widths)
    spent = costs(done)
    shared = {key: done[0][key] for key in SHARED if key != "model"}
    record = {
        "commands": commands(done, widths),
        "settings": list(options.set),
        "machine": _machine(file["json"], options.only_table),
        **shared,
        "rows": [_row(line) for line in lines],
        "costs": spent,
        "cells": done,
    }  # fmt: skip
    write_atomically(file["json"], json.dumps(record, indent=2) + "\n")
    write_atomically(file["csv"], csv_text(record["rows"][0], (row.values() for row in record["rows"])))
    write_atomically(file["md"], _markdown(record, lines, widths))
    title = ", ".join([TITLES.get(options.experiment, options.experiment), *options.set])
    draw(lines, widths, shared["fp"], title, file["png"])


def _machine(file: Path, only_table: bool) -> dict[str, Any]:
    """Where the cells were run: where the table alone is made, that is what the results say already."""
    if only_table and file.exists():
        found: dict[str, Any] = json.loads(file.read_text())["machine"]
        return found
    return {"processor": _processor(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    return names[0] if names else platform.processor()


def _row(line: Line) -> dict[str, Any]:
    row: dict[str, Any] = {"method": line.settings[0], "bits": line.config}
    for value, cell in line.cells.items():
        assert cell is not None
        row |= {f"{value}_mean": cell.mean, f"{value}_std": cell.spread, "runs": cell.runs}
    return row


def _markdown(record: dict[str, Any], lines: Sequence[Line], widths: Sequence[str]) -> str:
    """A table per figure, methods down and widths across, and one of costs."""
    cells = {(line.settings[0], line.config): line.cells for line in lines}
    methods, fp = list(dict.fromkeys(line.settings[0] for line in lines)), record["fp"]["top1"]
    titles = {
        "top1": "Top-1, %",
        "agreement": "Agreement with the float network, %",
        "logit_error": "Relative logit error",
    }
    parts = [
        "".join(f"    {command}\n" for command in record["commands"])
        + f"\nFloat top-1 {fp:.2f} %, {record['evaluation_images']} images; "
        "mean ± standard deviation over seeds (in brackets: how many, where more than one).\n"
    ]
    for value, title in titles.items():
        parts.append(f"\n{title}\n\n| method | {' | '.join(widths)} |\n| --- |{' ---: |' * len(widths)}\n")
        if value == "top1":
            parts.append(f"| float | {' | '.join([f'{fp:.2f}'] * len(widths))} |\n")
        for method in methods:
            texts = [_text(cells.get((method, width), {}).get(value), value) for width in widths]
            parts.append(f"| {method} | {' | '.join(texts)} |\n")
    parts.append("\nTop-1 of ptmq minus the method's, in points, and in brackets its logit error over the method's\n\n")
    parts.append(f"| method | {' | '.join(widths)} |\n| --- |{' ---: |' * len(widths)}\n")
    for method in (name for name in methods if name != "ptmq"):
        found = behind(record["cells"], widths, method)
        texts = ["{:+.2f} ({:.2f})".format(*found[width]) if width in found else "-" for width in widths]
        parts.append(f"| {method} | {' | '.join(texts)} |\n")
    names = ("method", "iters", "runs", "widths", "s in all", "s per width", "CPU s in all", "CPU s for all widths",
             "peak MiB", "images", "labels")  # fmt: skip
    parts.append("\nCost: seconds of calibration and fits; CPU seconds of whole processes, evaluation included.\n\n")
    parts.append(f"| {' | '.join(names)} |\n| --- | --- |{' ---: |' * (len(names) - 2)}\n")
    for row in record["costs"]:
        numbers = [
            row["seconds_total"],
            row["seconds_per_width"],
            row["cpu_seconds_total"],
            row["cpu_seconds_all_widths"],
            row["peak_memory_bytes"] / 2**20,
        ]
        texts = ["-" if number is None else f"{number:.0f}" for number in numbers]
        whole = [row["length"], row["runs_for_all_widths"], row["widths"], *texts, row["images"], row["labels"]]
        parts.append(f"| {row['method']} | {' | '.join(map(str, whole))} |\n")
    return "".join(parts)


def _text(cell: Any, value: str) -> str:
    if cell is None:
        return "-"
    digits = DIGITS[value]
    return f"{cell.mean:.{digits}f}" + ("" if cell.spread is None else f" ± {cell.spread:.{digits}f} ({cell.runs})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="of conf/experiment; it reads the folder PTMQ_DATA")
    parser.add_argument("--methods", nargs="+", default=list(BASELINES))
    parser.add_argument("--bits", nargs="+", default=["w2a4", "w3a3", "w4a4", "w6a6", "w8a8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for every method")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "accuracy", help="the runs' folders")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--only-table", action="store_true", help="run nothing")
    options = parser.parse_args()
    if "PTMQ_DATA" not in os.environ:  # without it no cell's command means anything
        parser.error("found no PTMQ_DATA in the environment; expected the folder of images and networks")
    options.work = options.work.resolve()
    failed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        asked = [] if options.only_table else cells(options)
        for cell, error in zip(asked, pool.map(lambda cell: cell.run(options.work), asked), strict=True):
            failed += error is not None
            print(cell.label, cell.bits or "all widths", f"seed {cell.seed}:", error or "done", flush=True)
            write(options)
    write(options)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
