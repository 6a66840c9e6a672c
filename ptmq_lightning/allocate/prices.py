"""Tables of a price for each layer and pair, as a target's compiler or a measurement gives them: bytes, cycles, time.

    layer,pair,bytes,cycles
    layer1.0.conv1,w4a8,1152,18432

A CSV file with a header, or a JSON file with a list of {"layer": ..., "pair": ..., "cycles": ...}. Every further column
is a price. Sensitivities are stored in the same form.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ptmq_lightning.allocate.sensitivity import free_layers
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.files import csv_text
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth

KEYS = ("layer", "pair")
Table = dict[str, dict[BitWidth, float]]


def read_prices(path: Path, column: str | None = None) -> Table:
    """The prices in a file, layer -> pair -> price.

    Args:
        column: whose prices; None: the only one.

    Raises:
        ConfigError: a file that is no such table, it names the row; a column that is not there, or one of several.
    """
    rows, table = _rows(path), Table()
    column = _column(path, rows[0], column)
    for number, row in enumerate(rows, 1):
        try:
            layer, pair, price = str(row["layer"]), BitWidth.parse(str(row["pair"])), float(row[column])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise _no_table(path, f"row {number} is {row!r}") from error
        if not math.isfinite(price) or price < 0:
            raise _no_table(path, f"row {number} has the price {price:g}")
        if pair in table.setdefault(layer, {}):
            raise _no_table(path, f"row {number} is the second one of {layer} at {pair}")
        table[layer][pair] = price
    return table


def _column(path: Path, row: Any, asked: str | None) -> str:
    """The name of the column that is asked for."""
    there = [name for name in row if name not in KEYS] if isinstance(row, dict) else []
    if not there:
        raise _no_table(path, f"row 1 is {row!r}")
    if asked not in (None, *there) or (asked is None and len(there) > 1):
        raise ConfigError(
            f"found {asked or 'no name'} for the column of prices; expected one of {', '.join(there)}, which '{path}' "
            "has. Set allocate.price, or --price."
        )
    return asked or there[0]


def table_text(table: Mapping[str, Mapping[BitWidth, float]], column: str = "price") -> str:
    """A CSV file that `read_prices` reads."""
    rows = ((layer, str(pair), price) for layer, prices in table.items() for pair, price in prices.items())
    return csv_text((*KEYS, column), rows)


def price_in(table: Table, model: MultiBitModel, path: Path) -> Callable[[str, BitWidth], float | None]:
    """A layer's price at a pair; None: the table has none, and a free layer cannot take the pair. A layer that it does
    not name costs nothing, one that is not free and not named at its own pair what it costs at most.

    Raises:
        ConfigError: a free layer without any price, or a name that no layer has.
    """
    free = free_layers(model)
    missing = [name for name in free if name not in table]
    unknown = [name for name in table if name not in model.layers]
    if missing or unknown:
        raise ConfigError(
            f"'{path}' lacks {len(missing)} of the {len(free)} layers whose width is free and names {len(unknown)} "
            f"unknown ones, first {(missing + unknown)[0]!r}; expected rows {','.join(KEYS)},... for every layer of "
            "`ptmq info DIR --layers`"
        )

    def price(name: str, pair: BitWidth) -> float | None:
        prices = table.get(name, {})
        return prices.get(pair, None if name in free else max(prices.values(), default=0.0))

    return price


def _rows(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(io.StringIO(text)))
    except (OSError, ValueError, csv.Error) as error:
        raise _no_table(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise _no_table(path, "no rows")
    return rows


def _no_table(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"cannot read prices of '{path}' ({why}); expected a CSV file with a header such as {','.join(KEYS)},cycles "
        "and rows such as conv1,w4a8,18432, each pair of a layer once, no price below 0; or a JSON list of such objects"
    )
