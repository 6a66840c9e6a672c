"""What a run says at its end to those who keep a summary of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIGURES = ("top1", "top5", "agreement", "logit_error", "sqnr_db", "size_bytes", "bit_ops")


@dataclass(frozen=True)
class End:
    """A finished run.

    Args:
        folder: where its model/ and report.html lie now.
        results: what results.json holds.
        iters: of all its fits.
        card: what explains a model, of its folder and a name for it.
    """

    folder: Path
    results: Mapping[str, Any]
    iters: int = 0
    card: Callable[[Path, str], str] | None = None

    def summary(self) -> dict[str, float]:
        """Its figures by name: "top1/w4a4", "drop/w4a4", "top1/float", "seconds/reconstruct", "memory/peak_bytes"."""
        rows, fp = self.results["rows"], self.results["fp"]
        found = {f"{name}/float": value for name, value in fp.items()}
        for name in FIGURES:
            found |= {f"{name}/{row['config']}": row[name] for row in rows}
        found |= {f"drop/{row['config']}": fp["top1"] - row["top1"] for row in rows}
        seconds = self.results["seconds"]
        found |= {f"seconds/{stage.replace(' ', '_')}": value for stage, value in seconds.items()}
        found |= {"seconds/whole": sum(seconds.values()), "memory/peak_bytes": self.results["peak_memory_bytes"]}
        return {name: float(value) for name, value in found.items() if value is not None}

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """(columns, rows): the float network, then every width."""
        rows, fp = self.results["rows"], self.results["fp"]
        figures = [name for name in FIGURES if any(row[name] is not None for row in rows)]
        first = ["float", 32.0, 32.0, 0.0, *(fp.get(name) for name in figures)]
        lines = [
            [row["config"], row["w_bits"], row["a_bits"], fp["top1"] - row["top1"], *(row[name] for name in figures)]
            for row in rows
        ]
        return ["width", "w_bits", "a_bits", "drop", *figures], [first, *lines]
