"""Tables over runs: groups by settings and bit-width, mean and sample spread."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptmq_lightning.report import forms
from ptmq_lightning.report.command import main
from ptmq_lightning.report.record import write_results
from ptmq_lightning.report.runs import apart, collect
from ptmq_lightning.report.tables import VALUES, Cell, summarize, text_of, whole
from ptmq_lightning.runtime.errors import ConfigError

MakeRun = Callable[..., Path]


def table(records: Any, by: list[str], values: Any = VALUES, rows: Any = None) -> str:
    return forms.markdown(summarize(records, by=by, values=values, rows=rows), by, values)


def csv_table(records: Any, by: list[str], values: Any = VALUES, rows: Any = None) -> str:
    return forms.comma(summarize(records, by=by, values=values, rows=rows), by, values)


@pytest.fixture
def run(tmp_path: Path, results: dict[str, Any]) -> MakeRun:
    """Make a run folder of one mixer and seed with a top-1 at W4A4."""

    def make(mixer: Any, seed: int, top1: float, **changes: Any) -> Path:
        folder = tmp_path / "runs" / f"{seed}-{top1}"
        first, second = results["rows"]
        write_results(folder, {**results, "seed": seed, "rows": [{**first, "top1": top1}, second], **changes})
        (folder / "config.yaml").write_text(yaml.safe_dump({"mixer": mixer, "loss": {"name": "mse"}}))
        return folder

    return make


def test_runs_of_one_setting_give_mean_and_sample_spread(run: MakeRun) -> None:
    folders = [run("case3", 0, 90.0), run("case3", 1, 92.0), run("none", 0, 80.0)]
    assert table(collect(folders), by=["mixer"], values=["top1", "logit_error"], rows=["w4a4"]) == (
        "| mixer | config | top1 | logit_error | runs |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| case3 | w4a4 | 91.00 ± 1.41 | 0.0300 ± 0.0000 | 2 |\n"
        "| none | w4a4 | 80.00 | 0.0300 | 1 |\n"
    )


def test_a_folder_of_runs_stands_for_its_runs(run: MakeRun, tmp_path: Path) -> None:
    folders = [run("case3", 0, 90.0), run("case3", 1, 92.0)]
    assert table(collect([tmp_path / "runs"]), by=["mixer"]) == table(collect(folders), by=["mixer"])


def test_a_group_is_called_by_its_name_and_a_dotted_key_by_its_value(run: MakeRun) -> None:
    records = collect([run({"name": "case3", "p": 0.5}, 0, 90.0)])
    assert "| case3 | mse | 0 | w4a4 |" in table(records, by=["mixer", "loss.name", "seed"], values=["top1"])


def test_a_figure_without_a_value_is_a_dash(run: MakeRun) -> None:
    assert "| w3a3 | - | 0 |" in table(collect([run("none", 0, 90.0)]), by=[], values=["sqnr_db"])


def test_csv_holds_the_same_figures_in_full(run: MakeRun) -> None:
    records = collect([run("case3", 0, 90.0), run("case3", 1, 92.0)])
    lines = list(csv.DictReader(io.StringIO(csv_table(records, by=["mixer"], values=["top1"], rows=["w4a4"]))))
    assert [line["top1_mean"] for line in lines] == ["91.0"]
    assert float(lines[0]["top1_std"]) == pytest.approx(2**0.5, rel=1e-12)  # |92 - 90| / sqrt(2)


@pytest.mark.parametrize("form", ["text", "md", "csv", "json"])
def test_the_command_prints_the_table_with_the_float_network_in_every_form(
    form: str, run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("case3", 0, 90.0)
    assert main([str(folder), "--by", "mixer", "--rows", "w3a3,w4a4", "--values", "top1", "--form", form]) == 0
    out = capsys.readouterr().out
    assert [word in out for word in ("float", "91.5", "case3", "w4a4", "w3a3", "top", "logit")] == [True] * 6 + [False]


def test_a_pivot_has_the_widths_across_and_the_float_network_first(
    run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [run("case3", 0, 90.0), run("case3", 1, 92.0), run("none", 0, 80.0)]
    assert main([*map(str, folders), "--pivot", "top1"]) == 0
    assert capsys.readouterr().out == (
        "| mixer | w4a4 | w3a3 |\n| --- | ---: | ---: |\n| float | 91.50 | 91.50 |\n"
        "| case3 | 91.00 ± 1.41 | 80.00 ± 0.00 |\n| none | 80.00 | 80.00 |\n"
    )


def test_the_command_draws_the_table(run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("case3", 0, 90.0)
    assert main([str(folder), "--plot", str(tmp_path / "figure.svg")]) == 0
    assert str(tmp_path / "figure.svg") in capsys.readouterr().err
    assert "case3" not in (text := (tmp_path / "figure.svg").read_text()) and "w4a4" in text  # one line has no legend
    assert main([str(folder), "--plot", str(tmp_path / "figure.pdf")]) == 2
    assert ".png or .svg" in capsys.readouterr().err


def test_what_tells_runs_apart_is_found_and_a_group_stands_for_its_keys(run: MakeRun) -> None:
    folders = [run({"name": "case3", "p": 0.5}, 0, 90.0), run({"name": "none", "p": 0.0}, 1, 92.0)]
    assert apart(collect(folders)) == ["mixer"]
    assert apart(collect(folders[:1])) == []
    records = collect([*folders, run({"name": "none", "p": 0.5}, 2, 91.0)])
    assert apart(records) == ["mixer", "mixer.p"]


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged_unless_told_so(run: MakeRun) -> None:
    records = collect([run({"name": "case3", "p": p}, seed, 90.0) for seed, p in enumerate((0.25, 0.5))])
    with pytest.raises(ConfigError) as error:
        summarize(records, by=["mixer"])
    assert "mixer.p (0.25, 0.5)" in str(error.value) and "--by mixer,mixer.p" in str(error.value)
    assert "--over seed,mixer.p" in str(error.value)
    assert summarize(records, by=["mixer"], over=["seed", "mixer.p"])[0].runs == 2


def test_networks_with_other_accuracies_have_float_lines_of_their_own(run: MakeRun) -> None:
    records = collect([run("none", 0, 90.0), run("none", 1, 70.0, model="vit", fp={"top1": 75.0, "top5": None})])
    lines = whole(records, by=["model"], values=["top1"], rows=["w4a4"])
    assert [(line.settings[0], line.config, line.cells["top1"].mean) for line in lines if line.cells["top1"]] == [
        ("resnet20", "float", 91.5), ("resnet20", "w4a4", 90.0), ("vit", "float", 75.0), ("vit", "w4a4", 70.0),
    ]  # fmt: skip


def test_a_terminal_has_at_most_100_columns_and_keeps_the_seconds(run: MakeRun) -> None:
    records = collect([run("a" * 60, 0, 90.0)])
    values = ["top1", "drop", "agreement", "logit_error", "sqnr_db", "size_bytes", "bit_ops", "seconds"]
    text = forms.plain(whole(records, by=["mixer", "loss"], values=values), ["mixer", "loss"], values)
    assert max(map(len, text.splitlines())) <= 100
    assert "seconds" in text and "bit ops" not in text


@pytest.mark.parametrize(
    "names", [("/home/me/networks/of/mine/%s.py:Net"), ("%s" + "a" * 40), ("a" * 40 + "%s" + "b" * 40)]
)
def test_settings_with_long_names_stay_apart_in_a_terminal(run: MakeRun, names: str) -> None:
    records = collect([run(names % "first", 0, 90.0), run(names % "second", 1, 91.0)])
    text = forms.plain(whole(records, by=["mixer"], values=["top1"]), ["mixer"], ["top1"])
    shown = [line.split()[0] for line in text.splitlines() if "w4a4" in line and not line.startswith(" ")]
    assert len(set(shown)) == len(shown) == 2 or ("first" in text and "second" in text)


def test_a_loss_of_nothing_has_no_sign() -> None:
    assert text_of(Cell(-0.001, 0.2, 2), "drop") == "0.00 ± 0.20" and text_of(Cell(-0.1, None, 1), "drop") == "-0.10"


def test_the_command_ends_with_the_message_of_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    expected = f"error: no results.json under {tmp_path}; give run folders, or folders that hold them\n"
    assert capsys.readouterr().err == expected


def test_a_key_that_no_config_has_is_an_error(run: MakeRun) -> None:
    folder = run("case3", 0, 90.0)
    with pytest.raises(ConfigError) as error:
        table(collect([folder]), by=["loss.shape"])
    said = f"loss.shape is not in {folder}/config.yaml (nearest: loss.name); give a dotted key of it with --by"
    assert str(error.value) == said
    with pytest.raises(ConfigError, match=r"\(nearest: mixer\)"):
        table(collect([folder]), by=["mixr"])


def test_a_mean_over_a_key_that_no_config_has_is_an_error(run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run("case3", 0, 90.0))
    assert main([folder, "--over", "sed"]) == 2
    assert "sed is no key" in capsys.readouterr().err
    assert main([folder, "--over", "seed,mixer"]) == 0


@pytest.mark.parametrize("text", ["a: [", "- a", ""])
def test_a_configuration_that_cannot_be_read_is_named(
    text: str, run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := run("case3", 0, 90.0) / "config.yaml").write_text(text)
    assert main([str(file.parent)]) == 2
    assert f"error: {file} cannot be read" in capsys.readouterr().err


def test_a_figure_that_the_system_refuses_is_one_line(run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("case3", 0, 90.0)
    assert main([str(folder), "--plot", str(folder / "config.yaml" / "figure.png")]) == 1
    assert "config.yaml" in (text := capsys.readouterr().err) and text.count("\n") == 1


def test_a_bit_width_that_no_run_has_is_an_error(run: MakeRun) -> None:
    with pytest.raises(ConfigError) as error:
        table(collect([run("case3", 0, 90.0)]), by=[], rows=["w2a2"])
    assert str(error.value) == "no rows w2a2 in these runs; they hold w4a4, w3a3"


def test_an_unknown_figure_is_an_error(run: MakeRun) -> None:
    with pytest.raises(ConfigError) as error:
        table(collect([run("case3", 0, 90.0)]), by=[], values=["top2"])
    assert str(error.value) == (
        "top2 is not a figure of results.json; expected one of top1, top5, drop, agreement, "
        "sqnr_db, logit_error, size_bytes, bit_ops, seconds"
    )


def test_networks_are_not_averaged_together(run: MakeRun) -> None:
    folders = [run("case3", 0, 90.0), run("case3", 1, 70.0, model="vit_t")]
    with pytest.raises(ConfigError) as error:
        table(collect(folders), by=["mixer"])
    assert str(error.value) == ("these runs differ in model (resnet20, vit_t); add model to --by or give fewer folders")
