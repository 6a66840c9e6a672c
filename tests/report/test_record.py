"""The run's record: exactly the published keys, finite figures, whole files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptmq_lightning.report.record import SCHEMA, read_results, write_calibration, write_layers, write_results
from ptmq_lightning.runtime.errors import ConfigError


def test_results_come_back_as_written(tmp_path: Path, results: dict[str, Any]) -> None:
    assert read_results(write_results(tmp_path / "new", results)) == {"schema": SCHEMA, **results}


def test_only_the_named_file_is_left(tmp_path: Path, results: dict[str, Any]) -> None:
    write_results(tmp_path, results)
    write_results(tmp_path, results)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_refused_record_leaves_the_old_file(tmp_path: Path, results: dict[str, Any]) -> None:
    path = write_results(tmp_path, results)
    before = path.read_bytes()
    with pytest.raises(ConfigError):
        write_results(tmp_path, {**results, "seed": "0"})
    assert path.read_bytes() == before


def change(results: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return {**results, "rows": [results["rows"][0], {**results["rows"][1], key: value}]}


def test_a_figure_that_is_not_a_number_is_an_error(tmp_path: Path, results: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        write_results(tmp_path, change(results, "logit_error", float("nan")))
    assert str(error.value) == (
        "rows[1].logit_error is nan, expected a finite number; look for a diverged block in metrics.csv"
    )


def test_a_wrong_type_is_an_error(tmp_path: Path, results: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        write_results(tmp_path, change(results, "top5", "99"))
    assert str(error.value) == "rows[1].top5 is '99' (str), expected int or float or null"


def test_a_truth_value_is_no_number(tmp_path: Path, results: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        write_results(tmp_path, {**results, "seed": True})
    assert str(error.value) == "results.seed is True (bool), expected int"


def test_missing_and_unknown_keys_are_named(tmp_path: Path, results: dict[str, Any]) -> None:
    del results["fp"]["top5"]
    results["fp"]["top3"] = 1.0
    with pytest.raises(ConfigError) as error:
        write_results(tmp_path, results)
    assert str(error.value) == "results.fp lacks top5 and has the unknown top3; expected exactly top1, top5"


def test_a_value_in_the_place_of_keys_is_an_error(tmp_path: Path, results: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        write_results(tmp_path, {**results, "seconds": 3.0})
    assert str(error.value).startswith("results.seconds is 3.0 (float), expected the keys start, data")


def test_another_schema_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"schema": 1}')
    with pytest.raises(ConfigError) as error:
        read_results(path)
    assert str(error.value) == f"{path} has schema 1; expected schema {SCHEMA}; make it again with this version"


def test_layers_are_a_line_each_with_further_columns(tmp_path: Path) -> None:
    layers = {
        "conv1": SimpleNamespace(block=0, kind="conv", weight_shape=(8, 3, 3, 3), pin_w=8, pin_a=8),
        "attn.scores": SimpleNamespace(block=1, kind="matmul", weight_shape=None, pin_w=None, pin_a=None),
    }
    path = write_layers(tmp_path, layers, block_names=["stem", "blocks.0"], columns={"macs": {"conv1": 99}})
    assert path.read_text() == (
        "name,block,kind,weights,pin_w,pin_a,macs\nconv1,stem,conv,216,8,8,99\nattn.scores,blocks.0,matmul,0,,,\n"
    )


def test_the_calibration_indices_keep_their_order(tmp_path: Path) -> None:
    path = write_calibration(tmp_path, [5, 2, 9], {"name": "digits"})
    assert json.loads(path.read_text()) == {"source": {"name": "digits"}, "indices": [5, 2, 9]}
