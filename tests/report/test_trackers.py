"""Metrics reach metrics.csv whatever happens, and W&B or TensorBoard where they are asked for."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.wandb_offline import read_offline
from ptmq_lightning.report import wandb_run
from ptmq_lightning.report.end import End
from ptmq_lightning.report.keys import LoggerKeys
from ptmq_lightning.report.trackers import CsvTracker, log_end, open_trackers
from ptmq_lightning.runtime.errors import ConfigError

GROUPS = {"model": {"name": "digits_resnet"}, "method": {"name": "qdrop"}, "mixer": {"name": "case1"}}
LINE = {"loss/w4a4": 0.5, "loss/rounding": 2.0, "beta": 20.0, "settled": 0.25, "block": 0, "block_name": "stem"}


@pytest.fixture(autouse=True)
def quiet_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield


def opened(folder: Path, kind: str = "csv", **keys: Any) -> Any:
    settings = LoggerKeys(kind, **{"mode": "offline"} | keys.pop("settings", {}))
    return open_trackers(
        folder,
        settings,
        run=folder,
        widths=["w4a4", "w8a8"],
        hyperparameters={"seed": 0, "recon": {"iters": 3}, **GROUPS},
        **keys,
    )


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_header_is_known_before_anything_is_drawn(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    assert (tmp_path / "metrics.csv").read_text() == (
        "iter,block,block_name,loss/w4a4,loss/w8a8,loss/rounding,beta,settled\n"
    )


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    with opened(tmp_path) as loggers:
        loggers[0].log_metrics({**LINE, "iter": 7}, step=7)
        assert lines(tmp_path) == [
            {"iter": "7", "block": "0", "block_name": "stem", "loss/w4a4": "0.5", "loss/w8a8": "",
             "loss/rounding": "2.0", "beta": "20.0", "settled": "0.25"}
        ]  # fmt: skip


def test_a_new_metric_gets_a_column_and_loses_nothing(tmp_path: Path) -> None:
    tracker = CsvTracker(tmp_path / "metrics.csv", ["iter", "block_name"])
    tracker.log_metrics({"block_name": 'a "quoted", name'}, step=0)
    tracker.log_metrics({"extra": 1}, step=1)
    assert lines(tmp_path) == [
        {"iter": "0", "block_name": 'a "quoted", name', "extra": ""},
        {"iter": "1", "block_name": "", "extra": "1"},
    ]


def test_a_resumed_run_drops_the_lines_of_the_unfinished_block(tmp_path: Path) -> None:
    with opened(tmp_path) as loggers:
        for step in range(5):
            loggers[0].log_metrics(LINE, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("5,1,he")
    with opened(tmp_path, resume_step=3) as loggers:
        loggers[0].log_metrics(LINE, step=3)
    assert [line["iter"] for line in lines(tmp_path)] == ["0", "1", "2", "3"]


def test_a_fresh_run_empties_the_file(tmp_path: Path) -> None:
    with opened(tmp_path) as loggers:
        loggers[0].log_metrics(LINE, step=0)
    with opened(tmp_path):
        assert lines(tmp_path) == []


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_csv_is_written_beside_every_other_tracker(kind: str, tmp_path: Path) -> None:
    with opened(tmp_path, kind) as loggers:
        for logger in loggers:
            logger.log_metrics({**LINE, "iter": 0}, step=0)
    assert len(loggers) == 2
    assert len(lines(tmp_path)) == 1


def test_tensorboard_keeps_one_curve_over_all_blocks(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened(tmp_path, "tensorboard") as loggers:
        for step in range(4):
            loggers[1].log_metrics({**LINE, "iter": step}, step=step)
            loggers[1].finalize("success")  # as Lightning does after each block's fit
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/w4a4")] == [0, 1, 2, 3]


def test_tensorboard_keeps_one_file_with_the_accuracy_of_every_width(tmp_path: Path, results: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened(tmp_path, "tensorboard") as loggers:
        for step in range(3):
            loggers[1].log_metrics({**LINE, "iter": step}, step=step)
            loggers[1].finalize("success")
        log_end(loggers, End(tmp_path, results, iters=3))
    (file,) = (tmp_path / "tensorboard").glob("events.*")
    events = EventAccumulator(str(file)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("top1/w4a4")] == [(3, 90.0)]


@pytest.fixture
def finished(tmp_path: Path, results: dict[str, Any]) -> End:
    """A run with a page and a model's folder."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    (tmp_path / "report.html").write_text("<p>a page</p>")
    Image.new("L", (4, 4)).save(tmp_path / "sensitivity.png")
    return End(tmp_path, results, iters=4, card=lambda folder, name: f"# {name}")


def test_wandb_has_a_section_of_losses_for_each_block_and_one_axis_for_all(tmp_path: Path) -> None:
    with opened(tmp_path, "wandb") as loggers:
        for iteration in range(4):  # two blocks of two iterations each
            where = {"block": iteration // 2, "block_name": f"layer{iteration // 2}.0", "iter": iteration}
            loggers[1].log_metrics({**LINE, **where}, step=iteration)
        loggers[1].log_block({"block": 1, "step_sizes/a4": 0.9})
    (run,) = read_offline(tmp_path)
    second = "losses_02_layer1-0/w4a4"
    assert [(row["block_iter"], row[second]) for row in run.history if second in row] == [(0, 0.5), (1, 0.5)]
    assert [row["iter"] for row in run.history if "loss/w4a4" in row] == [0, 1, 2, 3]
    assert all("fit/settled" in row and "fit/rounding" in row for row in run.history if "loss/w4a4" in row)
    assert run.axes["losses_*"] == "block_iter" and run.axes["*"] == "iter" and run.axes["step_sizes/*"] == "block"
    assert [row["step_sizes/a4"] for row in run.history if "step_sizes/a4" in row] == [0.9]


def test_wandb_ends_with_summary_table_chart_page_and_model(tmp_path: Path, finished: End) -> None:
    with opened(tmp_path, "wandb") as loggers:
        log_end(loggers, finished)
    (run,) = read_offline(tmp_path)
    assert run.summary["top1/w4a4"] == 90.0 and run.summary["drop/w4a4"] == 1.5
    assert {"top1/float", "size_bytes/w4a4", "agreement/w4a4", "seconds/whole", "memory/peak_bytes"} <= set(run.summary)
    assert run.tables["widths"]["columns"][:4] == ["width", "w_bits", "a_bits", "drop"]
    assert [row[0] for row in run.tables["widths"]["data"]][:2] == ["float", "w4a4"]
    assert {"top1_per_width_table", "drop_per_width_table"} <= set(run.tables)
    assert run.summary["report/_type"] == "html-file" and run.summary["iter"] == 4
    assert run.summary["sensitivity/_type"] == "image-file"
    assert run.artifacts["model"] == {"README.md", "manifest.json"}


def test_wandb_keeps_the_model_to_the_run_where_it_is_told_so(tmp_path: Path, finished: End) -> None:
    with opened(tmp_path, "wandb", settings={"log_model": False}) as loggers:
        log_end(loggers, finished)
    (run,) = read_offline(tmp_path)
    assert "model" not in run.artifacts and "top1/w4a4" in run.summary


def test_wandb_names_and_groups_runs_by_their_folders_and_keeps_its_id(tmp_path: Path) -> None:
    folder = tmp_path / "ablation_mixer" / "mixer=none,seed=0"
    folder.mkdir(parents=True)
    seen = set()
    for _ in range(2):
        with opened(folder, "wandb") as loggers:
            run = loggers[1].experiment
            seen.add((run.name, run.group, run.id, run.job_type, run.tags))
    assert {item[:2] for item in seen} == {("mixer=none,seed=0", "ablation_mixer")}
    assert len(seen) == 1 and {item[3:] for item in seen} == {("qdrop", ("digits_resnet", "qdrop", "case1"))}


def test_wandb_is_finished_when_the_run_fails(tmp_path: Path) -> None:
    import wandb

    with pytest.raises(RuntimeError, match="broken"), opened(tmp_path, "wandb") as loggers:
        loggers[1].log_metrics(LINE, step=0)
        raise RuntimeError("broken")
    assert wandb.run is None


def test_wandb_disabled_writes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, "wandb", settings={"mode": "disabled"}) as loggers:
        loggers[1].log_metrics(LINE, step=0)
    assert {item.name for item in tmp_path.iterdir()} == {"metrics.csv"}


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught, opened(tmp_path, "mlflow"):
        pass
    assert str(caught.value) == "logger=mlflow is not known; expected csv, wandb or tensorboard"


@pytest.mark.parametrize(("key", "answers", "mode", "said"), [
    (False, True, "offline", "no API key"), (True, False, "offline", "does not answer"), (True, True, "online", ""),
])  # fmt: skip
def test_wandb_goes_offline_where_it_cannot_be_reached(
    key: bool, answers: bool, mode: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    monkeypatch.setattr(wandb, "login", lambda prompt: key)
    monkeypatch.setattr(wandb_run, "_answers", lambda address: answers)
    assert wandb_run.usable_mode("online") == mode
    told = [record for record in caplog.records if record.name == wandb_run.__name__]
    assert said in caplog.text and len(told) == bool(said)


def test_a_service_that_dies_ends_no_fit(
    tmp_path: Path, finished: End, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def died(*_: Any, **__: Any) -> None:
        raise BrokenPipeError("the service is gone")

    with opened(tmp_path, "wandb") as loggers:
        with monkeypatch.context() as patch:
            patch.setattr(loggers[1].experiment, "log", died)
            for step in range(2):
                for logger in loggers:
                    logger.log_metrics(LINE, step=step)
        log_end(loggers, finished)
        loggers[1].lost = False  # so that this process's service is closed
    told = [record for record in caplog.records if record.name == wandb_run.__name__]
    assert len(lines(tmp_path)) == 2 and len(told) == 1 and "the service is gone" in told[0].getMessage()
