"""A sweep that is killed three times and started again ends in the table of one that nobody touched; under joblib too.

    PTMQ_DATA=... python benchmarks/sweep_kills.py                           (tens of minutes on one core)

The mixer cases over three seeds on ResNet-20, with so few iterations and images that accuracy is not the point. The
sweep runs three times, each in a root of its own: undisturbed; killed (SIGKILL to the whole process group) after a time
drawn with seed 0, three times, and given again word for word until it ends; and undisturbed under the joblib launcher
with two jobs at once. Compared with the undisturbed one are the answer tables, all but their seconds, the numbers and
folders of the jobs, and every byte of the twelve models. What is finished is skipped when this script is started again.
Results: benchmarks/results/sweep_kills.json, .md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kills import different, processor_seconds
from ptmq_lightning.report.sweeps import THERE, read_sweep
from ptmq_lightning.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "outputs" / "sweep_kills"
SWEPT = ("mixer=none,case1,case2,case3", "seed=0,1,2")
BRIEF = (
    "experiment=cifar_resnet20", "recon=smoke", "recon.iters=6", "data.calibration_images=32", "data.val_images=100",
    "bits.evaluate=[w2a4,w4a4,w8a8]",
)  # fmt: skip
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
RUNS, KILLS = 12, 3
EARLIEST, LATEST = 0.05, 0.3  # of the undisturbed sweep's processor time: three kills fall into it
NEVER = float("inf")


@dataclass(frozen=True)
class Way:
    """How the sweep is run. kills: how often it is killed."""

    name: str
    folder: str
    words: tuple[str, ...] = ()
    kills: int = 0


WHOLE = Way("undisturbed", "whole")
OTHERS = (Way("killed three times", "killed", kills=KILLS), Way("joblib, two jobs at once", "joblib", JOBLIB))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    command = ["-m", *SWEPT, *BRIEF]
    measure(command, WHOLE, NEVER)
    whole = json.loads((WORK / WHOLE.folder / "measured.json").read_text(encoding="utf-8"))
    rows = [row_of(WHOLE, whole)]
    for way in OTHERS:
        rows.append(row_of(way, measure(command, way, whole["processor"])))
        write({"command": ["python", "train.py", *command], "rows": rows, "table": table_of(root_of(WHOLE))})
    print((RESULTS / "sweep_kills.md").read_text(encoding="utf-8"))


def write(record: dict[str, Any]) -> None:
    file = RESULTS / "sweep_kills.json"
    write_atomically(file, json.dumps(record, indent=1) + "\n")
    write_atomically(file.with_suffix(".md"), page(record))


def measure(command: Sequence[str], way: Way, processor: float) -> dict[str, Any]:
    """Run the sweep to its end, or read what was measured of it.

    Args:
        processor: seconds of the undisturbed sweep, over which the kills are drawn.
    """
    place, draw = WORK / way.folder, random.Random(0)
    noted = place / "measured.json"
    if noted.exists():
        found: dict[str, Any] = json.loads(noted.read_text(encoding="utf-8"))
        return found
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    words = [*command, *way.words, "hydra.sweep.dir=sweep"]
    kills = []
    for _ in range(way.kills):
        used, code, text = start(words, place, draw.uniform(EARLIEST, LATEST) * processor)
        if code != -signal.SIGKILL:
            raise SystemExit(f"the sweep ended with {code} before it was killed:\n{text[-2000:]}")
        kills.append({"after": round(used, 1), "finished": finished(place / "sweep")})
        print(way.name, kills[-1], flush=True)
    used, code, text = start(words, place, NEVER)
    if code != 0:
        raise SystemExit(f"the sweep ended with {code}:\n{text[-3000:]}")
    found = {"processor": round(used, 1), "kills": kills}
    write_atomically(noted, json.dumps(found) + "\n")
    return found


def start(words: Sequence[str], place: Path, moment: float) -> tuple[float, int, str]:
    """Run the sweep and kill its process group after `moment` seconds of processor time.

    Returns:
        the processor time of the command's own process, its exit code, what was printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output, used = place / "output.txt", 0.0
    with output.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *words], cwd=place, env=environment, stdout=stream,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        while process.poll() is None:
            used = processor_seconds(process.pid) or used
            if used >= moment:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(0.02)
    return used, process.returncode, output.read_text(encoding="utf-8", errors="replace")


def finished(root: Path) -> int:
    """How many runs of a sweep have their results."""
    return len(list(root.glob("*/results.json")))


def root_of(way: Way) -> Path:
    return WORK / way.folder / "sweep"


def table_of(root: Path) -> list[dict[str, Any]]:
    """The lines of the answer, without the seconds."""
    rows = json.loads((root / "table.json").read_text(encoding="utf-8"))["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def row_of(way: Way, found: dict[str, Any]) -> dict[str, Any]:
    """What a way of running the sweep left, beside the undisturbed one."""
    root, whole = root_of(way), root_of(WHOLE)
    sweep, other = read_sweep(root), read_sweep(whole)
    assert sweep is not None and other is not None
    mine, theirs = table_of(root), table_of(whole)
    jobs, others = ([(job.number, job.folder) for job in each.jobs] for each in (sweep, other))
    return {
        "way": way.name,
        "words": list(way.words),
        "kills": found["kills"],
        "runs": finished(root),
        "skipped": sum(job.state == THERE for job in sweep.jobs),
        "lines": len(mine),
        "lines_differ": abs(len(mine) - len(theirs)) + sum(a != b for a, b in zip(mine, theirs, strict=False)),
        "jobs_differ": len(set(jobs) ^ set(others)),
        "bytes_differ": sum(different(root / job.folder / "model", whole / job.folder / "model") for job in other.jobs),
    }


def page(record: dict[str, Any]) -> str:
    """benchmarks/results/sweep_kills.md."""
    rows = ["| the sweep | kills | runs finished at the kills | runs skipped at the last start | runs in the end | "
            "lines of the table that differ | jobs that differ | bytes of the models that differ |",
            "|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in record["rows"]:
        at = ", ".join(str(kill["finished"]) for kill in row["kills"]) or "-"
        cells = [row["way"], len(row["kills"]), at, row["skipped"], row["runs"],
                 f"{row['lines_differ']} of {row['lines']}", row["jobs_differ"], row["bytes_differ"]]  # fmt: skip
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return f"{HEAD.format(command=' '.join(record['command']))}{chr(10).join(rows)}\n\n{answer(record['table'])}"


def answer(lines: Sequence[dict[str, Any]]) -> str:
    """The answer of the undisturbed sweep, in short."""
    rows = ["Its answer:\n", "| mixer | width | top-1 (%) | drop | logit error |", "|---|---|---:|---:|---:|"]
    for line in lines:
        cells = [_figure(line[key], digits) for key, digits in (("top1", 2), ("drop", 2), ("logit_error", 4))]
        rows.append(f"| {' | '.join([*line['settings'].values(), line['config'], *cells])} |")
    return "\n".join(rows) + "\n"


def _figure(cell: dict[str, Any] | None, digits: int) -> str:
    if cell is None:
        return "-"
    spread = "" if cell["std"] is None else f" ± {cell['std']:.{digits}f}"
    return f"{cell['mean']:.{digits}f}{spread}"


HEAD = """# A sweep, killed and resumed

    {command}

The mixer cases over three seeds on ResNet-20 (CIFAR-10). The settings are as small as they can be: what is shown is
that a sweep goes on where it was stopped, and **the accuracy says nothing about the mixers**. The sweep was run
undisturbed; again in a fresh root, killed (SIGKILL to the whole process group) at random times and started with the
same command until it ended; and undisturbed with `hydra/launcher=joblib hydra.launcher.n_jobs=2`. Compared are all
figures of the table but the seconds, the numbers and folders of the jobs, and the bytes of the twelve models. Made by
`python benchmarks/sweep_kills.py`.

"""


if __name__ == "__main__":
    main()
