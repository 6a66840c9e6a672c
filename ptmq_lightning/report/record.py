"""The record of one run: results.json, layers.csv, calibration.json. Written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptmq_lightning.runtime.checked import NUMBER, OPTIONAL, check
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.files import csv_text, write_atomically
from ptmq_lightning.runtime.info import ROW
from ptmq_lightning.runtime.sealed import difference, read_object

SCHEMA = 2  # of results.json and metrics.csv
# of a run, in order; start: imports and the configuration; report: the page
STAGES = ("start", "data", "build", "check", "fine-tune", "fold and cut", "insert", "calibrate", "reconstruct",
          "tune", "allocate", "evaluate", "save", "report")  # fmt: skip
RESULT: dict[str, Any] = {
    "schema": int,
    "model": str,
    "data": str,
    "method": str,
    "seed": int,
    "versions": dict,
    "calibration_images": int,
    "evaluation_images": int,
    "fp": {"top1": NUMBER, "top5": OPTIONAL},
    "seconds": dict.fromkeys(STAGES, NUMBER),
    "peak_memory_bytes": int,
    "rows": list,
}
LAYER_COLUMNS = ("name", "block", "kind", "weights", "pin_w", "pin_a")


def write_results(folder: Path, results: Mapping[str, Any]) -> Path:
    """Check ``results`` against the schema and write them to results.json; ``schema`` is added here.

    Raises:
        ConfigError: a key is missing, unknown or of the wrong type, or a figure is not finite; it names the place.
    """
    record = {"schema": SCHEMA, **results}
    check(record, RESULT, "results")
    for number, row in enumerate(record["rows"]):
        check(row, ROW, f"rows[{number}]")
    return write_atomically(Path(folder) / "results.json", json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """A results.json of this schema. Raises ConfigError for a file that is none."""
    try:
        record = read_object(Path(path))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); expected what write_results wrote; repeat the run"
        ) from error
    if other := difference(record, {"schema": SCHEMA}):
        raise ConfigError(f"{path} has {other}; make it again with this version")
    return record


def write_layers(
    folder: Path,
    layers: Mapping[str, Any],
    *,
    block_names: Sequence[str],
    columns: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write layers.csv: one line per layer, in the network's order.

    Args:
        layers: layer name -> LayerInfo.
        block_names: the name of each block, by index.
        columns: further columns, title -> layer name -> value (MACs, bits, errors); empty where a layer has none.
    """
    columns = columns or {}
    rows = []
    for name, layer in layers.items():
        weights = math.prod(layer.weight_shape) if layer.weight_shape else 0
        fixed = (name, block_names[layer.block], layer.kind, weights, layer.pin_w, layer.pin_a)
        rows.append([*fixed, *(values.get(name) for values in columns.values())])
    return _write_csv(Path(folder) / "layers.csv", [*LAYER_COLUMNS, *columns], rows)


def write_calibration(folder: Path, indices: Sequence[int], source: Mapping[str, Any]) -> Path:
    """Write calibration.json: which images of which source the run was calibrated on, in the order of use."""
    record = {"source": dict(source), "indices": [int(index) for index in indices]}
    return write_atomically(Path(folder) / "calibration.json", json.dumps(record) + "\n")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    return write_atomically(path, csv_text(header, rows))
