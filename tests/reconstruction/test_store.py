"""Features are the same wherever they are kept, take the room that was predicted, and leave nothing behind."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ptmq_lightning.reconstruction.cache import predict_bytes, widest_stream
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.reconstruction.reconstruct import reconstruct_model
from ptmq_lightning.reconstruction.store import InMemory, Kept, OnDisk, OnHost, Rows, Store
from ptmq_lightning.runtime.errors import ConfigError, ModelError
from tests.networks import GROUPS, RECIPE, images, mixer, objective, small_model, trainer

CPU = torch.device("cpu")
RECIPES = {
    "blend": RECIPE,
    "widths": replace(RECIPE, mixer=mixer("matched"), objective=objective("gd_direct", relative=True)),
    "layers": replace(RECIPE, unit="layer", schedule=replace(RECIPE.schedule, iters=2)),
    "biases": replace(RECIPE, bias_correction="during"),
    "fisher": replace(RECIPE, objective=objective("gd_direct", weight="fim")),
}


class Apart(InMemory):
    """Every tensor has its own room, and no stream is written over another: how it was done before."""

    def kept(self, room: Tensor) -> Kept:
        return torch.empty(room.shape)


class Watched(InMemory):
    """Adds up what is held."""

    def __init__(self) -> None:
        self.held = self.most = 0

    def room(self, count: int, width: int, like: Tensor) -> Tensor:
        room = super().room(count, width, like)
        self.held += room.nbytes
        self.most = max(self.most, self.held)
        weakref.finalize(room.untyped_storage(), self.gone, room.nbytes)
        return room

    def gone(self, size: int) -> None:
        self.held -= size


def learned(recipe: Recipe, store: Store) -> dict[str, Tensor]:
    model = small_model()
    reconstruct_model(model, images(), recipe, trainer, store=store)
    return model.state_dict()


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize(
    "store",
    [lambda _: InMemory(), lambda _: OnHost(CPU), lambda folder: OnDisk(folder, CPU, resident=1000)],
    ids=["over each other", "beside the device", "on disk"],
)
def test_where_features_are_kept_changes_no_tensor(kind: str, store: Callable[[Path], Store], tmp_path: Path) -> None:
    apart, found = learned(RECIPES[kind], Apart()), learned(RECIPES[kind], store(tmp_path))
    assert all(torch.equal(tensor, found[key]) for key, tensor in apart.items())


@pytest.mark.parametrize("kind", ["blend", "widths", "layers"])
def test_the_cache_is_as_large_as_predicted(kind: str) -> None:
    recipe, store, x = RECIPES[kind], Watched(), images()
    model = small_model()
    predicted = predict_bytes(model, x, recipe)
    reconstruct_model(model, x, recipe, trainer, store=store)
    gc.collect()
    assert store.held == 0
    # the images of the first block are the caller's: predicted, not held by the walk
    assert predicted - x.nbytes <= store.most <= predicted


def test_streams_take_one_room_for_the_whole_network() -> None:
    model, x = small_model(), images()
    few, many = (replace(RECIPE, mixer=mixer(name)) for name in ("float", "matched"))
    more = predict_bytes(model, x, many) - predict_bytes(model, x, few)
    assert more == len(GROUPS.pairs) * widest_stream(model, x) * len(x) * 4


def test_files_have_no_name_while_they_are_used_and_are_gone_with_the_features(tmp_path: Path) -> None:
    store = OnDisk(tmp_path, CPU)
    kept = store.empty(4, torch.ones(1, 3))
    assert isinstance(kept, Rows) and list(tmp_path.iterdir()) == [] and len(store.maps) == 1
    del kept
    gc.collect()
    assert len(store.maps) == 0


def test_a_fit_that_fails_leaves_no_file_and_no_map(tmp_path: Path) -> None:
    store = OnDisk(tmp_path, CPU)
    wild = replace(RECIPE, schedule=replace(RECIPE.schedule, lr_activation=1e30, lr_rounding=1e30))
    with pytest.raises(ModelError):
        reconstruct_model(small_model(), images(), wild, trainer, store=store)
    gc.collect()
    assert list(tmp_path.iterdir()) == [] and len(store.maps) == 0


KILLED = """
import os, sys, torch
from pathlib import Path
from ptmq_lightning.reconstruction.store import OnDisk
kept = OnDisk(Path(sys.argv[1]), torch.device("cpu")).empty(4, torch.ones(1, 3))
kept[:] = torch.ones(4, 3)
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == -9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a map")
def test_pages_beyond_the_limit_are_let_go_and_keep_what_was_written(tmp_path: Path) -> None:
    store = OnDisk(tmp_path, CPU, resident=2**22)
    kept = store.empty(64, torch.ones(1, 2**18))  # 64 MiB
    most = 0
    for first in range(64):
        kept[first : first + 1] = torch.full((1, 2**18), float(first))
        most = max(most, _file_pages())
    assert most < 2**23  # the limit, and what was touched before it was reached
    assert torch.equal(kept[torch.arange(64)][:, 0], torch.arange(64.0))


def _file_pages() -> int:
    """Bytes of unnamed (deleted) files that this process holds in memory."""
    ours, size = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = "(deleted)" in line
        elif ours and line.startswith("Rss:"):
            size += int(line.split()[1]) * 1024
    return size


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(mmap, "mmap", lambda *_: pytest.fail("mapped"))
    with pytest.raises(ConfigError) as error:
        OnDisk(tmp_path, CPU).empty(4, torch.ones(1, 3))
    assert str(tmp_path) in str(error.value) and os.strerror(errno.ENOSPC) in str(error.value)
