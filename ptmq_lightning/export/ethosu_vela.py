"""Vela as a command, and the tables of what it estimates."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.files import csv_text
from ptmq_lightning.runtime.spec import BitAssignment

SUFFIX = "_vela.tflite"
_COMMAND = "import sys; from ethosu.vela.vela import main; sys.exit(main())"
# "  54 -  55:  0xb030 -  0xf200:  16848:  16848: Unknown : layer3.0.conv2.weight", of the list of constants
_CONSTANT = re.compile(r"^\s*\d+ -\s+\d+:\s+0x[0-9a-f]+ -\s+0x[0-9a-f]+:\s+(\d+):\s+\d+: \S+\s*: (.*)\.weight\s*$")


@dataclass(frozen=True)
class Compiled:
    """What Vela makes of a file and estimates for it. weights: layer -> bytes, encoded with their scales and biases;
    cycles: name of a tensor -> cycles of the operators that make it; cpu_operators: that the device does not run."""

    file_bytes: int
    weight_bytes: int
    sram_bytes: int
    total_cycles: int
    cpu_operators: int
    weights: dict[str, int]
    cycles: dict[str, int]

    def layer_cycles(self, layer: str) -> int:
        """Of a layer, with its padding and the bounds of its output."""
        own = re.compile(rf"{re.escape(layer)}(\.\d+|\.padded)?")
        return sum(cycles for name, cycles in self.cycles.items() if own.fullmatch(name))


def compiled(file: Path, device: str) -> Compiled:
    """Compile a .tflite for a device and leave NAME_vela.tflite beside it.

    Raises:
        ExportError: Vela refuses the file, or says other things than this was written for.
    """
    with tempfile.TemporaryDirectory() as place:
        options = ["--accelerator-config", device, "--output-dir", place]
        options += ["--verbose-performance", "--verbose-allocation"]
        done = subprocess.run([sys.executable, "-c", _COMMAND, str(file), *options], capture_output=True, text=True)
        made = Path(place) / f"{file.stem}{SUFFIX}"
        if done.returncode or not made.exists():
            said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
            raise ExportError(f"Vela cannot compile {file.name} for {device}: {said[-1][:300]}. Choose another device.")
        file.with_name(made.name).write_bytes(made.read_bytes())
        try:
            (summary,) = read_rows(next(Path(place).glob(f"{file.stem}_summary_*.csv")))
            layers = read_rows(Path(place) / f"{file.stem}_per-layer.csv")
            return _read(summary, layers, done.stdout, made.stat().st_size)
        except (StopIteration, LookupError, ValueError, OSError) as error:
            raise ExportError(
                f"Vela tells of {file.name} in another form than that of its release 5.2 ({type(error).__name__}: "
                f"{error}). Install ethos-u-vela 5.2."
            ) from error


def _read(summary: Mapping[str, str], layers: Sequence[Mapping[str, str]], said: str, size: int) -> Compiled:
    weights = {match[2]: int(match[1]) for line in said.splitlines() if (match := _CONSTANT.match(line))}
    cycles: dict[str, int] = {}
    for row in layers:
        cycles[row["Name"]] = cycles.get(row["Name"], 0) + int(row["Op Cycles"])
    return Compiled(
        file_bytes=size,
        weight_bytes=int(summary["total_npu_encoded_weights"]),
        sram_bytes=round(float(summary["sram_memory_used"]) * 1024),
        total_cycles=int(summary["cycles_total"]),
        cpu_operators=sum(row["Target"] == "CPU" for row in layers),
        weights=weights,
        cycles=cycles,
    )


def write_networks(path: Path, found: Mapping[str, Compiled], device: str) -> None:
    """A row per width."""
    head = ("width", "device", "file_bytes", "weight_bytes", "sram_bytes", "cycles", "cpu_operators")
    rows = (
        (name, device, c.file_bytes, c.weight_bytes, c.sram_bytes, c.total_cycles, c.cpu_operators)
        for name, c in found.items()
    )
    _write(path, head, rows)


def write_prices(
    path: Path, found: Mapping[str, Compiled], assignments: Mapping[str, BitAssignment], layers: Sequence[str]
) -> None:
    """A row per layer and pair, as `allocate` reads prices; a pair that several widths give a layer stands once."""
    rows: dict[tuple[str, str], tuple[int, int]] = {}
    for name, of in found.items():
        widths = dict(assignments[name].layers)
        for layer in layers:
            rows.setdefault((layer, str(widths[layer])), (of.weights.get(layer, 0), of.layer_cycles(layer)))
    _write(path, ("layer", "pair", "bytes", "cycles"), ((*key, *rows[key]) for key in sorted(rows)))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.write_text(csv_text(head, rows), encoding="utf-8", newline="")
