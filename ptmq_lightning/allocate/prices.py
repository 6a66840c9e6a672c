"""Tables of a price for each layer and pair, as a target's compiler or a measurement gives them: bytes, cycles, time.

    layer,pair,price
    layer1.0.conv1,w4a8,18432

A CSV file with this header, or a JSON file with a list of {"layer": ..., "pair": ..., "price": ...}. Sensitivities are
stored in the same form.
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
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth

COLUMNS = ("layer", "pair", "price")
Table = dict[str, dict[BitWidth, float]]


def read_prices(path: Path) -> Table:
    """The prices in a file, layer -> pair -> price.

    Raises:
        ConfigError: a file that is no such table; it names the row.
    """
    table: Table = {}
    for number, row in enumerate(_rows(path), 1):
        try:
            layer, pair, price = str(row["layer"]), BitWidth.parse(str(row["pair"])), float(row["price"])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise _no_table(path, f"row {number} is {row!r}") from error
        if not math.isfinite(price) or price < 0:
            raise _no_table(path, f"row {number} has the price {price:g}")
        if pair in table.setdefault(layer, {}):
            raise _no_table(path, f"row {number} is the second one of {layer} at {pair}")
        table[layer][pair] = price
    return table


def csv_text(table: Mapping[str, Mapping[BitWidth, float]]) -> str:
    """A CSV file that `read_prices` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((layer, str(pair), price) for layer, prices in table.items() for pair, price in prices.items())
    return text.getvalue()


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
            f"unknown ones, first {(missing + unknown)[0]!r}; expected rows {','.join(COLUMNS)} for every layer of "
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
        f"cannot read prices of '{path}' ({why}); expected a CSV file with the header {','.join(COLUMNS)} and rows "
        "such as conv1,w4a8,18432, each pair of a layer once and no price below 0, or a JSON list of such objects"
    )
