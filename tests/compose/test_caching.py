"""A run keeps its features in memory where they fit, else in files, else it says before the fits what to do."""

from __future__ import annotations

import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from ptmq_lightning.compose import caching
from ptmq_lightning.compose.caching import SHARE, choose_store
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.free import free_memory, lies_in_memory
from ptmq_lightning.compose.learning import learn
from ptmq_lightning.reconstruction.store import InMemory, OnDisk, OnHost
from ptmq_lightning.runtime.errors import ConfigError
from tests.networks import images, small_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What is free, by type of device; to be changed."""
    found = {"cpu": GIB, "cuda": GIB, "disk": 100 * GIB}
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(caching, "free_memory", lambda device: found[device.type])
    monkeypatch.setattr(caching, "lies_in_memory", lambda folder: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(found["disk"]))
    return found


def test_a_cache_that_fits_into_its_share_of_what_is_free_stays_in_memory(free: dict[str, int], tmp_path: Path) -> None:
    assert isinstance(choose_store("auto", int(SHARE * GIB), CPU, tmp_path), InMemory)


def test_a_larger_one_goes_to_files_and_one_line_says_so(
    free: dict[str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        store = choose_store("auto", 3 * GIB, CPU, tmp_path)
    assert isinstance(store, OnDisk) and store.folder == tmp_path
    (line,) = caplog.messages
    assert "3072 MiB" in line and str(tmp_path) in line and "1024 MiB of memory are free" in line


def test_processes_share_the_memory_of_a_machine(free: dict[str, int], tmp_path: Path) -> None:
    assert isinstance(choose_store("auto", GIB // 2, CPU, tmp_path), InMemory)
    assert isinstance(choose_store("auto", GIB // 2, CPU, tmp_path, processes=2), OnDisk)


def test_what_was_asked_for_is_done(free: dict[str, int], tmp_path: Path) -> None:
    assert isinstance(choose_store("memory", 3 * GIB, CPU, tmp_path), InMemory)
    assert isinstance(choose_store("disk", 1, CPU, tmp_path), OnDisk)


def test_beside_a_small_gpu_the_cache_is_in_the_memory_of_the_cpu_and_then_in_files(
    free: dict[str, int], tmp_path: Path
) -> None:
    free["cpu"] = 4 * GIB
    assert isinstance(choose_store("auto", GIB // 2, GPU, tmp_path), InMemory)
    assert isinstance(choose_store("auto", 2 * GIB, GPU, tmp_path), OnHost)
    assert isinstance(choose_store("auto", 8 * GIB, GPU, tmp_path), OnDisk)


def test_too_small_a_disk_is_refused_with_both_sizes(free: dict[str, int], tmp_path: Path) -> None:
    free["disk"] = 2 * GIB
    with pytest.raises(ConfigError) as error:
        choose_store("auto", 3 * GIB, CPU, tmp_path)
    for named in ("3072 MiB", "2048 MiB", str(tmp_path), "data.calibration_images"):
        assert named in str(error.value)


def test_files_that_would_lie_in_memory_are_refused(
    free: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "lies_in_memory", lambda folder: True)
    with pytest.raises(ConfigError, match="in memory too"):
        choose_store("auto", 3 * GIB, CPU, tmp_path)


def test_a_machine_that_tells_nothing_keeps_the_cache_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "free_memory", lambda device: None)
    assert isinstance(choose_store("auto", 10**15, CPU, tmp_path), InMemory)


def test_learning_with_little_memory_free_leaves_the_same_tensors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = configuration(
        ["recon.iters=2", "recon.batch=8", "bits.groups=[[w3a3,w4a4],[w5a5,w6a6],[w8a8]]", "bits.extra=[]"]
    )
    found = []
    for memory in (10**12, 0):
        monkeypatch.setattr(caching, "free_memory", lambda device, memory=memory: memory)
        model = small_model()
        with caplog.at_level(logging.INFO):
            learn(model, images(), config)
        found.append(model.state_dict())
    assert "in files in" in caplog.text
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 800 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MACHINE, 800 * 1024),
        (MACHINE | {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "9000\n",
                    "sys/fs/cgroup/a/memory.current": "5000\n", "sys/fs/cgroup/a/b/memory.max": "max\n",
                    "sys/fs/cgroup/a/b/memory.current": "100\n"}, 4000),
        (MACHINE | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "9000\n",
                    "sys/fs/cgroup/memory.current": "8000\n",
                    "sys/fs/cgroup/memory.stat": "inactive_file 500\n"}, 1500),
        (MACHINE | {"proc/self/cgroup": "4:memory:/outside\n1:cpu:/\n",
                    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000\n",
                    "sys/fs/cgroup/memory/memory.usage_in_bytes": "8000\n"}, 1000),
        (MACHINE | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "9000\n",
                    "sys/fs/cgroup/memory.current": "9100\n"}, 0),
    ],
    ids=["nothing told", "the machine", "an outer group", "files that are dropped", "version 1", "a full group"],
)  # fmt: skip
def test_free_memory_is_the_least_of_machine_and_groups(
    files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    assert free_memory(CPU, written(tmp_path, files)) == expected


@pytest.mark.parametrize(("folder", "expected"), [("/run/x", True), ("/run/disk/x", False), ("/home", False)])
def test_a_folder_lies_where_the_innermost_mount_is(folder: str, expected: bool, tmp_path: Path) -> None:
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n/dev/b /run/disk ext4 rw 0 0\n"
    assert lies_in_memory(Path(folder), written(tmp_path, {"proc/self/mounts": mounts})) == expected
