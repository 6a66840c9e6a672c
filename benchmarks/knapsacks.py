"""How long the exact search of widths takes, by the number of layers, of pairs and of budgets.

    python benchmarks/knapsacks.py

Five random problems each, processor seconds. Results go to benchmarks/results/knapsacks.{json,md}.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ptmq_lightning.allocate.searches import SEARCHES  # noqa: E402
from ptmq_lightning.runtime.files import write_atomically  # noqa: E402
from ptmq_lightning.runtime.spec import BitWidth  # noqa: E402
from tests.allocate.problems import random_problem  # noqa: E402

FILE = ROOT / "benchmarks" / "results" / "knapsacks.json"
FREE = tuple(BitWidth(w, a) for w in range(2, 9) for a in range(2, 9))
TIED = tuple(BitWidth(w, w) for w in range(2, 9))
CASES = ((18, TIED, 1), (54, TIED, 1), (54, TIED, 2), (200, FREE, 1), (200, FREE, 2))


def main() -> None:
    SEARCHES["milp"](random_problem(0), 0)  # scipy is imported
    found = [{"layers": n, "pairs": len(p), "budgets": b, "seconds": seconds(n, p, b)} for n, p, b in CASES]
    write_atomically(FILE, json.dumps(found, indent=1) + "\n")
    lines = ["| layers | pairs | budgets | median, s | longest of 5, s |", "| ---: " * 5 + "|"]
    for row in found:
        took = row["seconds"]
        lines.append(
            f"| {row['layers']} | {row['pairs']} | {row['budgets']} | {statistics.median(took):.2f} | {max(took):.2f} |"
        )
    write_atomically(FILE.with_suffix(".md"), "\n".join(lines) + "\n")


def seconds(layers: int, pairs: tuple[BitWidth, ...], budgets: int) -> list[float]:
    """Of the processor, for five problems."""
    took = []
    for seed in range(5):
        problem = random_problem(seed, layers=layers, pairs=pairs, budgets=budgets)
        started = time.process_time()
        SEARCHES["milp"](problem, 0)
        took.append(round(time.process_time() - started, 3))
    return took


if __name__ == "__main__":
    main()
