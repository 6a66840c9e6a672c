"""Do the tests of a room fail when its code is wrong? Break the code on purpose, one place at a time.

    python benchmarks/mutants.py allocate quant --most 20

A mutant flips a comparison, exchanges + and -, * and /, moves a whole number by one, negates a condition, or drops a
statement. It survives where the room's own tests pass all the same. Chosen by seed; the repository itself is not
touched: every mutant runs in a copy. Results go to benchmarks/results/mutants.json and mutants.md, room by room.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "benchmarks" / "results" / "mutants.json"
FLIPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
SECONDS = 300


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, what was done, the broken source) of every place that can be broken."""
    count = len(list(ast.walk(ast.parse(source))))
    for number in range(count):
        tree = ast.parse(source)
        node: Any = list(ast.walk(tree))[number]
        if what := _break(node):
            yield getattr(node, "lineno", 0), what, ast.unparse(tree)


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


def survivors(room: str, most: int, seed: int) -> dict[str, Any]:
    """Break up to `most` places of a room; those that its tests do not see."""
    places = [
        (file.relative_to(ROOT), line, what, broken)
        for file in sorted((ROOT / "ptmq_lightning" / room).glob("*.py"))
        for line, what, broken in mutants(file.read_text(encoding="utf-8"))
    ]
    chosen = random.Random(seed).sample(places, min(most, len(places)))
    left = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "outputs", "*.png"))
        for file, line, what, broken in chosen:
            whole = (copy / file).read_text(encoding="utf-8")
            (copy / file).write_text(broken, encoding="utf-8")
            if passes(copy, room):
                left.append({"place": f"{file}:{line}", "what": what})
            print(f"{file}:{line}: {what}: {'SURVIVED' if left and left[-1]['place'] == f'{file}:{line}' else 'found'}")
            (copy / file).write_text(whole, encoding="utf-8")
    return {"places": len(places), "tried": len(chosen), "survived": left, "seed": seed}


def passes(copy: Path, room: str) -> bool:
    """Whether the room's quick tests pass in a copy of the repository; one that hangs has failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", f"tests/{room}"]
    try:
        done = subprocess.run(
            command, cwd=copy, capture_output=True, timeout=SECONDS, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def page(found: dict[str, Any]) -> str:
    lines = [
        "# Mutants",
        "",
        "`python benchmarks/mutants.py ROOM... --most N`: places of a room broken on purpose, and those that its own "
        "quick tests did not see.",
        "",
        "| room | places | tried | survived |",
        "|---|---:|---:|---:|",
    ]
    lines += [f"| {room} | {r['places']} | {r['tried']} | {len(r['survived'])} |" for room, r in sorted(found.items())]
    for room, result in sorted(found.items()):
        if result["survived"]:
            lines += ["", f"## {room}", ""]
            lines += [f"- `{item['place']}`: {item['what']}" for item in result["survived"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="+")
    parser.add_argument("--most", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for room in options.rooms:
        found[room] = survivors(room, options.most, options.seed)
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        FILE.with_suffix(".md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
