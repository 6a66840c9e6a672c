"""Tables of prices: read as they were written, and what is wrong with one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptmq_lightning.allocate.prices import price_in, read_prices, table_text
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.spec import BitWidth

TABLE = {"a": {BitWidth(4, 8): 18432.0, BitWidth(8, 8): 3e4}, "b": {BitWidth(2, 2): 0.5}}


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "cycles.csv").write_text(table_text(TABLE))
    rows = [{"layer": n, "pair": str(p), "price": price} for n, of in TABLE.items() for p, price in of.items()]
    (tmp_path / "cycles.json").write_text(json.dumps(rows))
    assert read_prices(tmp_path / "cycles.csv") == read_prices(tmp_path / "cycles.json") == TABLE


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("layer,pair\na,w4a4\n", "row 1"),
        ("layer,cycles\na,1\n", "row 1"),
        ("layer,pair,price\na,w4a4,many\n", "many"),
        ("layer,pair,price\na,4 bits,1\n", "4 bits"),
        ("layer,pair,price\na,w4a4,1\na,w4a4,2\n", "row 2"),
        ("layer,pair,price\na,w4a4,-1\n", "-1"),
        ("layer,pair,price\na,w4a4,inf\n", "inf"),
        ("layer,pair,price\n", "no rows"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_prices(tmp_path / "bad.csv")
    assert named in str(error.value) and "layer,pair,cycles" in str(error.value)


def test_of_several_prices_one_is_asked_for_by_name(tmp_path: Path) -> None:
    (tmp_path / "u55.csv").write_text("layer,pair,bytes,cycles\na,w4a4,2,7\n")
    assert read_prices(tmp_path / "u55.csv", "cycles") == {"a": {BitWidth(4, 4): 7.0}}
    assert read_prices(tmp_path / "u55.csv", "bytes") == {"a": {BitWidth(4, 4): 2.0}}
    for column in (None, "milliseconds"):
        with pytest.raises(ConfigError, match=r"bytes, cycles.*--price"):
            read_prices(tmp_path / "u55.csv", column)


@pytest.mark.parametrize("text", ["{", "{}", "[3]"])
def test_json_that_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ConfigError, match="layer,pair,cycles"):
        read_prices(tmp_path / "bad.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.csv"):
        read_prices(tmp_path / "nothing.csv")


def test_layers_that_lack_a_price_and_unknown_ones_are_named(model: Any) -> None:
    with pytest.raises(ConfigError) as error:
        price_in({"a": {}, "nobody": {}}, model, Path("cycles.csv"))
    assert "lacks 2 of the 3" in str(error.value) and "1 unknown" in str(error.value)


def test_a_pair_that_the_table_lacks_has_no_price_and_other_layers_cost_what_they_may(model: Any) -> None:
    eight = BitWidth(8, 8)
    table = {name: {eight: 1.0} for name in "abc"} | {"stem": {BitWidth(8, 4): 7.0}}
    price = price_in(table, model, Path("cycles.csv"))
    assert price("a", eight) == 1.0 and price("a", BitWidth(4, 4)) is None
    assert price("stem", eight) == 7.0 and price("scores", eight) == 0.0
