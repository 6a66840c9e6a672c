"""Tables over runs: mean and spread of each figure, per bit-width and per setting."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptmq_lightning.report.runs import Record, require_alike, setting
from ptmq_lightning.runtime.errors import ConfigError

VALUES = ("top1", "drop", "agreement", "logit_error", "seconds")
DIGITS = {
    "top1": 2, "top5": 2, "drop": 2, "agreement": 2, "sqnr_db": 2, "logit_error": 4, "size_bytes": 0, "bit_ops": 0,
    "seconds": 0,
}  # fmt: skip
FLOAT = "float"


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (None for a single run) of one figure over ``runs`` runs."""

    mean: float
    spread: float | None
    runs: int


@dataclass(frozen=True)
class Line:
    """One line of a table: the settings' values, the bit-width's name ("float" of the float network), a cell per
    figure."""

    settings: tuple[str, ...]
    config: str
    cells: dict[str, Cell | None]

    @property
    def runs(self) -> int:
        return max((cell.runs for cell in self.cells.values() if cell), default=0)


def summarize(
    records: Sequence[Record],
    *,
    by: Sequence[str],
    values: Sequence[str] = VALUES,
    rows: Sequence[str] | None = None,
    over: Sequence[str] = ("seed",),
) -> list[Line]:
    """Group the records by settings and bit-width, settings in order of appearance; ``rows`` keeps only those
    bit-widths.

    Raises:
        ConfigError: unknown rows or figures, or runs in one line that differ in more than ``over``.
    """
    groups: dict[tuple[tuple[str, ...], str], list[Record]] = {}
    for record in records:
        if rows is None or record["config"] in rows:
            key = (tuple(setting(record, name) for name in by), record["config"])
            groups.setdefault(key, []).append(record)
    if not groups:
        found = ", ".join(dict.fromkeys(str(record["config"]) for record in records)) or "none"
        raise ConfigError(f"no rows {', '.join(rows or [])} in these runs; they hold {found}")
    for members in groups.values():
        require_alike(members, by, over)
    order = list(dict.fromkeys(settings for settings, _ in groups))
    return [
        Line(settings, config, {value: _mean(members, value) for value in values})
        for (settings, config), members in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    ]


def floats(records: Sequence[Record], by: Sequence[str], values: Sequence[str] = VALUES) -> list[Line]:
    """The float network's line: one, with "" for the settings, where all runs share a network and its accuracy, else
    one for each setting."""
    known: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for record in records:
        known.setdefault(tuple(setting(record, name) for name in by), record["float"])
    if len({tuple(fp.items()) for fp in known.values()}) == 1:
        known = {("",) * len(by): next(iter(known.values()))}
    return [
        Line(settings, FLOAT, {v: Cell(fp[v], None, 1) if fp.get(v) is not None else None for v in values})
        for settings, fp in known.items()
    ]


def whole(
    records: Sequence[Record],
    *,
    by: Sequence[str],
    values: Sequence[str] = VALUES,
    rows: Sequence[str] | None = None,
    over: Sequence[str] = ("seed",),
) -> list[Line]:
    """The float network's lines and then those of `summarize`, each setting's behind its own."""
    lines = summarize(records, by=by, values=values, rows=rows, over=over)
    baseline = floats(records, by, values)
    if len(baseline) == 1:
        return [*baseline, *lines]
    shown = dict.fromkeys(line.settings for line in lines)
    return [line for settings in shown for line in (*baseline, *lines) if line.settings == settings]


def _mean(members: Sequence[Record], value: str) -> Cell | None:
    if value not in members[0] or value not in DIGITS:
        raise ConfigError(f"{value} is not a figure of results.json; expected one of {', '.join(DIGITS)}")
    numbers = [float(member[value]) for member in members if member[value] is not None]
    if not numbers:
        return None
    return Cell(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))


def text_of(cell: Cell | None, value: str) -> str:
    """Such as "91.50 ± 0.35"; "-" where there is nothing."""
    if cell is None:
        return "-"
    digits = DIGITS.get(value, 3)
    spread = "" if cell.spread is None else f" ± {cell.spread:.{digits}f}"
    return f"{cell.mean:z.{digits}f}{spread}"  # z: no minus before a zero
