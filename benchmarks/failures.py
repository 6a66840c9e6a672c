"""More than a hundred ways to go wrong, provoked through the real commands beside a finished run.

    python benchmarks/failures.py                        (minutes on one core)
    python benchmarks/failures.py --only "full disk"     (measured anew, by a pattern of the situation)

benchmarks/failure_cases.py is the table: a situation, how it is set up, the command, what its message must name, its
exit code. Everything is imported once; each case is a fork of that process in a folder of its own, which holds a
finished run, one that was killed, two exports and pictures. Recorded are the exit code, the last message, whether a
traceback was printed, whether the finished run is byte for byte what it was, the seconds (without those in which the
processor was somebody else's) and the peak of memory.
Results: benchmarks/results/failures.json, docs/failures.md.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import failure_setups as setups
from benchmarks.failure_cases import CASES, Case

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "failures.json", ROOT / "docs" / "failures.md"
SECONDS, BYTES, PATIENCE = 10.0, 2 << 30, 300.0  # of a case; wall seconds after which it is killed as hanging
IMPORTS = (
    *("compose.cli", "compose.pipeline", "compose.export", "device.cli", "device.predict", "device.bench_cli"),
    *(
        "device.export_cli",
        "device.allocate_cli",
        "device.demo",
        "device.info",
        "artifact.verify",
        "report.page",
        "report.command",
    ),
)
PACKAGES = ("lightning.pytorch", "timm", "PIL.PngImagePlugin", "onnx", "onnxruntime", "wandb", "safetensors.torch")
EXPORT = ["ptmq", "export", "run/model", "--images", "images.npy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="a pattern of the situation's words: measured anew")
    parser.add_argument("--rest", action="store_true", help="what is missing or wrong in the results")
    options = parser.parse_args()
    kept = (
        {row["situation"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))} if RESULTS.exists() else {}
    )
    asked = [case for case in CASES if re.search(options.only or "", case.situation)]
    if options.rest:
        asked = [case for case in asked if case.situation not in kept or wrong(kept[case.situation])]
    found: list[dict[str, Any]] = []
    for row in run(asked, tell=True):
        kept[row["situation"]] = row
        found = [kept[case.situation] for case in CASES if case.situation in kept]
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        PAGE.write_text(page(found), encoding="utf-8")
    print(summary(found), *(row for row in found if wrong(row)), sep="\n")


def run(cases: Iterable[Case], *, tell: bool = False) -> Iterator[dict[str, Any]]:
    """A row for each case, in order."""
    warm()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        prepare(base)
        for case in cases:
            folder = Path(place) / "case"
            row, text = provoke(case, base, folder)
            shutil.rmtree(folder)
            if tell:
                print(f"{row['code']!s:>4}  {row['seconds']:5.1f} s  {case.situation}: {row['message']}", flush=True)
                print(text[-3000:] if wrong(row) else "", end="", flush=True)
            yield row


def warm() -> None:
    """Import once what the cases need; one thread, or a fork would wait for threads that it has not."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    for name in IMPORTS:
        importlib.import_module(f"ptmq_lightning.{name}")
    for name in PACKAGES:
        importlib.import_module(name)


def prepare(base: Path) -> None:
    """The folder that each case gets a copy of: run/, killed/, onnx/, multi/, pictures/, cat.png, outputs/."""
    base.mkdir()
    setups.pictures(base)
    for command in (
        ["train", *setups.SMOKE, "hydra.run.dir=run"],
        ["killed", *setups.SMOKE, "hydra.run.dir=killed"],
        [*EXPORT, "--bits", "w8a8", "--out", "onnx"],
        [*EXPORT, "--bits", "w8a8,w4a4", "--out", "multi", "--form", "multi"],
    ):
        code, text, _ = forked(command, base)
        if code not in (0, 9):
            raise SystemExit(f"{' '.join(command)} ended with {code}:\n{text}")


def provoke(case: Case, base: Path, folder: Path) -> tuple[dict[str, Any], str]:
    """The row of a case, and what was printed."""
    shutil.copytree(base, folder, symlinks=True)
    with setups.prepared(folder, case.setup) as at:
        before = contents(folder / "run")
        code, text, used = forked(case.command, folder, at)
        lost = contents(folder / "run") != before
    lines = [line for line in text.replace(str(folder.resolve()), ".").splitlines() if line.strip()]
    said = [line for line in lines if re.search(r"\berror: |^ptmq: |WARNING|resume: ", line)] or lines[-1:] or [""]
    message = re.sub(r"^\d\d:\d\d:\d\d ", "", said[-1] if code else said[0])  # what was mended is told first
    row = {
        "situation": case.situation,
        "command": shown(case.command),
        "code": code,
        "expected": case.code,
        "message": message,
        "named": case.named in message,
        "traceback": "Traceback (most recent" in text,
        "lost": lost,
        **used,
    }
    return row, text


def shown(command: list[str]) -> str:
    """The command without what all runs share."""
    name = {"train": "train.py", "report": "python -m ptmq_lightning.report"}.get(command[0], command[0])
    return " ".join([name, *(part for part in command[1:] if part not in (*setups.SMOKE, "hydra.run.dir=run"))])


def contents(place: Path) -> dict[str, str]:
    """What an earlier run left: its files without those of the present one."""
    files = (
        (path for path in place.rglob("*") if path.is_file() and "unfinished" not in path.parts)
        if place.is_dir()
        else ()
    )
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def forked(command: list[str], folder: Path, at: setups.At | None = None) -> tuple[int | None, str, dict[str, Any]]:
    """Exit code (None: killed as hanging), what was printed, seconds and peak memory of a command in a folder."""
    output = folder / ".output"
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        become(command, folder, output, at)
    delay, status, usage = 0.0, None, None
    while usage is None and time.perf_counter() - started < PATIENCE:
        delay = _waited(child) or delay
        if at is not None and at.interrupt and at.interrupt in _text(output):
            os.kill(child, signal.SIGINT)
            at.interrupt = None
        pid, status, used = os.wait4(child, os.WNOHANG)
        usage = used if pid else None
        time.sleep(0.02)
    if usage is None:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        code = None
    else:
        code = os.waitstatus_to_exitcode(status or 0)
    seconds = max(0.0, time.perf_counter() - started - delay)
    text = _text(output)
    output.unlink(missing_ok=True)
    processor = round(usage.ru_utime + usage.ru_stime, 2)
    return code, text, {"seconds": round(seconds, 1), "processor": processor, "megabytes": usage.ru_maxrss // 1024}


def _waited(process: int) -> float:
    """Seconds in which it was ready and the processor was somebody else's."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _text(output: Path) -> str:
    return output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""


def become(command: list[str], folder: Path, output: Path, at: setups.At | None = None) -> None:
    """In the fork: run the command with this folder as the working directory, and leave."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    code = 1
    try:
        file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(file), "w", buffering=1) for _ in range(2))
        os.chdir(folder)
        if at is not None and at.file_bytes:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (at.file_bytes, at.file_bytes))
        code = setups.call(command)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        traceback.print_exc()
    finally:
        os._exit(code)


def wrong(row: dict[str, Any], seconds: float = SECONDS) -> bool:
    fits = row["code"] == row["expected"] and row["named"] and not row["traceback"] and not row["lost"]
    return not fits or row["seconds"] > seconds or row["megabytes"] << 20 > BYTES


def summary(found: list[dict[str, Any]]) -> str:
    count = {key: sum(bool(row[key]) for row in found) for key in ("traceback", "lost")}
    late = sum(row["code"] is None or row["seconds"] > SECONDS for row in found)
    large = sum(row["megabytes"] << 20 > BYTES for row in found)
    other = sum(row["code"] != row["expected"] or not row["named"] for row in found)
    return (
        f"{len(found)} failures: {count['traceback']} tracebacks, {count['lost']} finished runs lost or changed, "
        f"{late} took longer than {SECONDS:.0f} s beyond the start, {large} more than {BYTES >> 30} GB of memory, "
        f"{other} with another exit code or without naming what is wrong. The longest took "
        f"{max(row['seconds'] for row in found):.1f} s, the largest {max(row['megabytes'] for row in found):,} MB."
    )


HEAD = """# What is said when something goes wrong

Every command ends with an exit code and one message on stderr, which says what was found, what was expected and what to
do. A run that fails leaves the earlier run in its folder as it was.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | what the command was given cannot be used: a damaged file, images, a network, a full disk |
| 2 | what was typed is wrong: an unknown or impossible setting, a configuration that does not fit |
| 130 | interrupted (Ctrl-C); `resume=true` goes on behind the last finished block |

"""
EXPLAINED = """
Below: what `python benchmarks/failures.py` provoked beside a finished run (`run/`), with the beginning of each message.
`train.py` runs in that folder too (`hydra.run.dir=run`) where nothing else is said, and briefly (`recon=smoke`).
Seconds count from the start of the command with everything imported. A row with exit code 0 is a fault that the command
mends by itself.

"""


def page(found: list[dict[str, Any]]) -> str:
    """docs/failures.md."""
    lines = ["| situation | command | message | exit code |", "|---|---|---|---:|"]
    for row in found:
        cells = (row["situation"], f"`{short(row['command'], 70)}`", short(row["message"], 150), str(row["code"]))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEAD + summary(found) + "\n" + EXPLAINED + "\n".join(lines) + "\n"


def short(text: str, most: int) -> str:
    text = re.sub(r"[<>*_\[\]]", lambda mark: "\\" + mark[0], text) if most > 100 else text
    return text if len(text) <= most else text[: most - 3] + "..."


if __name__ == "__main__":
    main()
