"""Do the tests of a room fail when its code is wrong? Break the code on purpose, one place at a time.

    python benchmarks/mutants.py allocate quant --most 25      # try a room
    python benchmarks/mutants.py quant --again                  # after its tests were mended: its survivors once more
    python benchmarks/mutants.py                                # the page alone

A mutant flips a comparison, exchanges + and -, * and /, moves a whole number by one, negates a condition, or drops a
statement. It survives where the room's own quick tests pass all the same. Chosen by seed; the repository itself is not
touched: every mutant runs in a copy. Each result is written at once to benchmarks/results/mutants/ROOM.json, so that a
run that was stopped goes on where it was; what was found of code that is no longer there is dropped.
benchmarks/results/mutants.md is the page of all rooms.

A survivor is `equivalent` where no test could see it; that is a person's word, written into the file by hand with why.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutants"
FLIPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
SECONDS = 240


@dataclass(frozen=True)
class Mutant:
    """file: below the root. line: where it is today. what: was done. text: the changed line of the broken source, which
    with `what` names the mutant when lines have moved. broken: the whole source."""

    file: str
    line: int
    what: str
    text: str
    broken: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.what, self.text

    def row(self) -> dict[str, Any]:
        return {"file": self.file, "line": self.line, "what": self.what, "text": self.text}


def mutants(source: str, file: str) -> Iterator[Mutant]:
    """Every place of a file that can be broken."""
    tree = ast.parse(source)
    whole = ast.unparse(tree).splitlines()
    breakable = (ast.Compare, ast.BinOp, ast.BoolOp, ast.Constant, ast.If, ast.IfExp, ast.FunctionDef)
    for number in [number for number, node in enumerate(ast.walk(tree)) if isinstance(node, breakable)]:
        tree = ast.parse(source)
        node: Any = next(islice(ast.walk(tree), number, None))
        if what := _break(node):
            broken = ast.unparse(tree)
            changed = next((b for a, b in zip_longest(whole, broken.splitlines()) if a != b), "")
            yield Mutant(file, getattr(node, "lineno", 0), what, str(changed).strip(), broken + "\n")


def _break(node: Any) -> str | None:
    """Break a node in its place; what was done."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPS:
        before, node.ops[0] = node.ops[0], FLIPS[type(node.ops[0])]()
        return f"{type(before).__name__} -> {type(node.ops[0]).__name__}"
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in FLIPS:
        before, node.op = node.op, FLIPS[type(node.op)]()
        return f"{type(before).__name__} -> {type(node.op).__name__}"
    if isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
        return f"{node.value - 1} -> {node.value}"
    if isinstance(node, (ast.If, ast.IfExp)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return "condition negated"
    if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
        last = next((i for i, part in enumerate(node.body) if isinstance(part, (ast.Expr, ast.AugAssign))
                     and not isinstance(getattr(part, "value", None), ast.Constant)), None)  # fmt: skip
        if last is not None:
            dropped = ast.unparse(node.body[last])
            node.body[last] = ast.Pass()
            return f"dropped: {dropped.splitlines()[0][:60]}"
    return None


def places(room: str) -> list[Mutant]:
    files = sorted((ROOT / "ptmq_lightning" / room).glob("*.py"))
    return [m for f in files for m in mutants(f.read_text(encoding="utf-8"), f.relative_to(ROOT).as_posix())]


def attempt(room: str, most: int, seed: int) -> None:
    """Break up to `most` places of a room, those that were not tried before; each row says whether it survived."""
    every = places(room)
    chosen = random.Random(seed).sample(every, min(most, len(every)))
    result = so_far(room, every) | {"seed": seed}
    done = {key_of(row) for row in result["tried"]}
    with a_copy() as copy:
        for mutant in (m for m in chosen if m.key not in done):
            result["tried"].append(mutant.row() | {"survived": survives(copy, room, mutant)})
            write(room, result)


def again(room: str) -> None:
    """Try a room's survivors once more: `survived_again` says what its mended tests see."""
    every = places(room)
    result, today = so_far(room, every), {mutant.key: mutant for mutant in every}
    write(room, result)
    with a_copy() as copy:
        for row in result["tried"]:
            if row["survived"] and "equivalent" not in row and row.get("survived_again", True):
                row["survived_again"] = survives(copy, room, today[key_of(row)])
                write(room, result)


def so_far(room: str, every: list[Mutant]) -> dict[str, Any]:
    """What was found of a room's places of today; what was found of code that is no longer there is dropped."""
    before, lines = read(room) or {"tried": []}, {mutant.key: mutant.line for mutant in every}
    rows = [row | {"line": lines[key_of(row)]} for row in before["tried"] if key_of(row) in lines]
    return before | {"places": len(every), "tried": rows}


@contextmanager
def a_copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "outputs", "*.png"))
        yield copy


def survives(copy: Path, room: str, mutant: Mutant) -> bool:
    """Whether the room's quick tests pass although the code is broken; the tests of the file go first."""
    path, folder = copy / mutant.file, copy / "tests" / room
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutant.broken, encoding="utf-8")
    tests = sorted(folder.glob("test_*.py"), key=lambda test: test.stem != f"test_{path.stem}")
    try:
        survived = passes(copy, [str(test.relative_to(copy)) for test in tests])
    finally:
        path.write_text(whole, encoding="utf-8")
    print(f"{mutant.file}:{mutant.line}: {mutant.what}: {'SURVIVED' if survived else 'found'}", flush=True)
    return survived


def passes(copy: Path, tests: list[str]) -> bool:
    """Whether the quick tests pass in a copy of the repository; those that hang have failed. A fork of this process has
    the libraries already; the package itself it imports anew, from the copy."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(pytest.main(["-q", "-x", "-n", "0", "-m", "not slow", "-p", "no:cacheprovider", *tests]))
    for _ in range(SECONDS * 5):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def warm() -> None:
    """Import the libraries, and of our package nothing that stays."""
    torch.set_num_threads(1)
    for name in ("ptmq_lightning", "lightning", "hydra", "timm", "safetensors.torch", "torchmetrics"):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ptmq_lightning"]:
        del sys.modules[name]
    gc.freeze()


def key_of(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["file"], row["what"], row["text"]


def read(room: str) -> dict[str, Any] | None:
    path = RESULTS / f"{room}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write(room: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{room}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def page(found: dict[str, Any]) -> str:
    """Of every room: how many survived before and after its tests were mended, and those that are left."""
    lines = [
        "# Mutants",
        "",
        "`python benchmarks/mutants.py ROOM... --most N`: places of a room broken on purpose, and those that its own "
        "quick tests did not see. After: once the tests were mended. Equivalent: no test could see it, for the reason "
        "given.",
        "",
        "| room | places | tried | survived before | after | equivalent |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for room, result in sorted(found.items()):
        before = [row for row in result["tried"] if row["survived"]]
        same = [row for row in before if "equivalent" in row]
        cells = (room, result["places"], len(result["tried"]), len(before), len(left(result)), len(same))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for room, result in sorted(found.items()):
        rows = left(result) + [row for row in result["tried"] if "equivalent" in row]
        lines += ["", f"## {room}", ""] if rows else []
        lines += [
            f"- `{row['file']}`, {row['what']}: `{row['text']}`"
            + (f" (equivalent: {row['equivalent']})" if "equivalent" in row else "")
            for row in rows
        ]
    return "\n".join(lines) + "\n"


def left(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The survivors that are still there."""
    return [
        row for row in result["tried"]
        if row["survived"] and "equivalent" not in row and row.get("survived_again", True)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*")
    parser.add_argument("--most", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="only the survivors of the last time")
    options = parser.parse_args()
    if options.rooms:
        warm()
    for room in options.rooms:
        if options.again:
            again(room)
        else:
            attempt(room, options.most, options.seed)
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    text = page(found)
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
