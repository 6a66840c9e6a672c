"""Twenty SIGKILLs and what is left of a run: nothing is lost, and the end is byte for byte that of a run nobody killed.

    python benchmarks/kills.py                           (minutes on one core)

A command is killed at a random moment (drawn with seed 0, over the processor time that the whole command takes) and
given again with resume=true until it ends: a run in a new folder, a run over a finished one, one killed in each step of
the exchange of folders, and a sweep of two runs. Counted are the bytes of each model/ that differ from those of an
uninterrupted run, and of the finished run that stood there, as long as the new one was not complete.
Results: benchmarks/results/kills.json, .md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import failures
from benchmarks.failure_setups import SMOKE

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COMMON = ["train", *SMOKE, "recon.iters=8"]
TICK = os.sysconf("SC_CLK_TCK")
NEVER = float("inf")


@dataclass(frozen=True)
class Kind:
    """A command that is killed. kills: how often in all. runs: the folders that it leaves. over: a finished run of
    another seed stands there before. exchange: killed in the steps of the exchange instead of at random moments."""

    name: str
    arguments: tuple[str, ...]
    runs: tuple[str, ...]
    kills: int
    over: bool = False
    exchange: bool = False


RUN = ("hydra.run.dir=run", "seed=0")
SWEEP = ("-m", "seed=0,1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${seed}")
KINDS = (
    Kind("a run in a new folder", RUN, ("run",), 6),
    Kind("a run over a finished one", RUN, ("run",), 3, over=True),
    Kind("the exchange of folders", RUN, ("run",), 5, over=True, exchange=True),
    Kind("a sweep of two runs", SWEEP, ("sweep/0", "sweep/1"), 6),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rest", action="store_true", help="what is missing in the results")
    options = parser.parse_args()
    file = RESULTS / "kills.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if options.rest and file.exists() else []
    for kind in KINDS:
        if not any(row["kind"] == kind.name for row in rows):
            rows += measure([kind], tell=True)
            file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            file.with_suffix(".md").write_text(table(rows), encoding="utf-8")


def measure(kinds: Sequence[Kind], *, tell: bool = False) -> list[dict[str, Any]]:
    """A row for each kill."""
    failures.warm()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        base.mkdir()
        finish(base, [*COMMON, "hydra.run.dir=earlier", "seed=7"])  # it trains the float network too
        rows: list[dict[str, Any]] = []
        for kind in kinds:
            reference = Path(shutil.copytree(base, Path(place) / f"whole{len(rows)}"))
            seconds = finish(reference, command_of(kind))
            found: list[dict[str, Any]] = []
            while len(found) < kind.kills:
                folder = Path(shutil.copytree(base, Path(place) / "tried"))
                found += rounds(kind, folder, reference, seconds, kind.kills - len(found), draw, len(found))
                shutil.rmtree(folder)
            rows += found
            if tell:
                print(*found, sep="\n", flush=True)
        return rows


def rounds(
    kind: Kind, folder: Path, reference: Path, seconds: float, most: int, draw: random.Random, before: int
) -> list[dict[str, Any]]:
    """Kill and resume until the command ends, or `most` kills were made; then let it end and compare.

    before: how many kills of this kind there were, which is the step of the exchange that comes next.
    """
    if kind.over:
        shutil.copytree(folder / "earlier", folder / "run")
    earlier = failures.contents(folder / "run")
    rows: list[dict[str, Any]] = []
    while len(rows) < most:
        step, moment = (before + len(rows), NEVER) if kind.exchange else (None, draw.uniform(0.05, 1) * seconds)
        used, killed = start(folder, again(kind, folder), moment, step)
        if not killed:
            break
        complete = kind.exchange or not kind.over
        lost = 0 if complete else sum(failures.contents(folder / "run").get(k) != v for k, v in earlier.items())
        rows.append({"kind": kind.name, "after": step if kind.exchange else round(used, 1), "earlier_changed": lost})
        if kind.exchange:
            break
    finish(folder, again(kind, folder))
    differ = sum(different(folder / run / "model", reference / run / "model") for run in kind.runs)
    return [row | {"bytes_differ": differ} for row in rows]


def again(kind: Kind, folder: Path) -> list[str]:
    """The command as its user gives it: resume=true once there is something of this run to go on with."""
    begun = any((folder / "run" / name).exists() for name in ("unfinished/config.yaml", "complete"))
    return [*command_of(kind), f"resume={str(begun or not kind.over).lower()}"]


def command_of(kind: Kind) -> list[str]:
    return [COMMON[0], *kind.arguments, *COMMON[1:]]


def finish(folder: Path, command: list[str]) -> float:
    """Run a command to its end; the seconds of processor time it took."""
    code, text, used = failures.forked(command, folder)
    if code != 0:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{text[-3000:]}")
    return float(used["processor"])


def start(folder: Path, command: list[str], moment: float, step: int | None) -> tuple[float, bool]:
    """Run a command and kill it after `moment` seconds of processor time, or in a step of the exchange of folders.

    Returns:
        the processor time it had, and whether it was killed: else it came to its end before.
    """
    child = os.fork()
    if child == 0:
        if step is not None:
            die_in_the_exchange(step)
        failures.become(command, folder, folder / ".output")
    used = 0.0
    while True:
        used = processor_seconds(child) or used
        if used >= moment:
            os.kill(child, signal.SIGKILL)
            moment = NEVER
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return used, os.WIFSIGNALED(status)
        time.sleep(0.01)


def die_in_the_exchange(step: int) -> None:
    """Kill this process before the renaming of that number, once a run is complete."""
    from ptmq_lightning.compose import folder

    rename: Callable[..., Path] = Path.rename
    close, seen = folder.RunFolder.close, [0]

    def counted(self: Path, target: Any) -> Path:
        if seen[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1
        return rename(self, target)

    def closing(self: Any) -> None:
        Path.rename = counted  # type: ignore[method-assign]
        close(self)

    folder.RunFolder.close = closing  # type: ignore[method-assign]


def processor_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK


def different(found: Path, wanted: Path) -> int:
    """How many bytes of the files of two folders differ; a missing file counts whole."""
    count = 0
    for name in {path.name for place in (found, wanted) for path in place.iterdir()}:
        one, other = ((place / name).read_bytes() if (place / name).exists() else b"" for place in (found, wanted))
        count += abs(len(one) - len(other)) + sum(a != b for a, b in zip(one, other, strict=False))
    return count


def table(rows: list[dict[str, Any]]) -> str:
    """benchmarks/results/kills.md."""
    lines = ["| what was killed | kills | bytes of the artifact that differ | files of the earlier run that changed |"]
    lines.append("|---|---:|---:|---:|")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        sums = [sum(row[key] for row in own) for key in ("bytes_differ", "earlier_changed")]
        lines.append(f"| {kind} | {len(own)} | {sums[0]} | {sums[1]} |")
    head = (
        f"# {len(rows)} kills\n\nRuns on the digits network that were killed (SIGKILL) at random moments of their "
        "processor time, or before a renaming\nin the exchange of folders, and given again with resume=true. "
        "Made by `python benchmarks/kills.py`.\n\n"
    )
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
