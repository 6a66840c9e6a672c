"""A whole run on a GPU, where there is one: every method ends with an artifact that the CPU reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptmq_lightning.artifact.artifact import load
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.library import quantize, reconstruct
from ptmq_lightning.compose.pipeline import run
from ptmq_lightning.models.zoo import build
from ptmq_lightning.report.record import read_results

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

TINY = [
    "trainer=gpu", "recon=smoke", "data.val_images=50", "data.step_size_images=32", "bits.evaluate=[w3a3,w8a8]",
]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the float digits network is trained once."""
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("method", ["ptmq", "ptmq_paper", "rtn"])
def test_a_multi_bit_run_ends_with_an_artifact_that_the_cpu_reads(
    method: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    run(configuration([*TINY, f"method={method}", "bits.groups=[[w3a3,w4a4],[w8a8]]"]), tmp_path)
    model = load(tmp_path / "model")
    assert all(not tensor.is_cuda for tensor in model.state_dict().values())
    rows = {row["config"]: row["top1"] for row in read_results(tmp_path / "results.json")["rows"]}
    assert set(rows) == {"w3a3", "w8a8"}


@pytest.mark.parametrize("method", ["adaround", "brecq", "qdrop", "flexround", "genie"])
def test_a_method_of_one_pair_of_widths_runs(
    method: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    run(configuration([*TINY[:4], f"method={method}", "bits=w3a3"]), tmp_path)
    assert load(tmp_path / "model").pairs


@pytest.mark.parametrize("method", ["any_precision", "multiquant", "robustquant"])
def test_a_method_that_trains_runs(method: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    run(configuration([*TINY, f"method={method}", "bits.groups=[[w3a3,w4a4],[w8a8]]"]), tmp_path)
    assert (tmp_path / "finetune.json").exists()


def test_the_library_works_where_the_images_are() -> None:
    network = build("digits_resnet", pretrained=False).module
    images = torch.randn(24, 3, 16, 16, device="cuda")
    model = quantize(network, images, bits=[["w3a3", "w4a4"], [(8, 8)]])
    reconstruct(model, images, iters=3, overrides=["recon.batch=8"])
    model.switch(3)
    assert model(images).is_cuda
