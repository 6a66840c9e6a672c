"""Features are the same wherever they are kept, take the room that was predicted, and leave nothing behind."""

from __future__ import annotations

import errno
import gc
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
from ptmq_lightning.reconstruction.store import InMemory, Kept, OnDisk, OnHost, Room, Store, TensorRoom
from ptmq_lightning.runtime.errors import ConfigError, ModelError
from ptmq_lightning.runtime.model import MultiBitModel
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
    """No stream is written over another: how it was done before."""

    def room(self, count: int, width: int, like: Tensor) -> Room:
        return Fresh(count)


class Fresh:
    def __init__(self, count: int) -> None:
        self.count = count

    def kept(self, like: Tensor) -> Kept:
        return TensorRoom(torch.empty(self.count, like[0].numel())).kept(like)


class Watched(InMemory):
    """Adds up what is held."""

    def __init__(self) -> None:
        self.held = self.most = 0

    def room(self, count: int, width: int, like: Tensor) -> Room:
        rows = like.new_empty((count, width))
        self.held += rows.nbytes
        self.most = max(self.most, self.held)
        weakref.finalize(rows.untyped_storage(), self.gone, rows.nbytes)
        return TensorRoom(rows)

    def gone(self, size: int) -> None:
        self.held -= size


def learned(recipe: Recipe, store: Store) -> dict[str, Tensor]:
    model = small_model()
    reconstruct_model(model, images(), recipe, trainer, store=store)
    return model.state_dict()


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize(
    "store",
    [lambda _: InMemory(), lambda _: OnHost(CPU), lambda folder: OnDisk(folder, CPU)],
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


def test_a_network_of_one_block_has_no_stream() -> None:
    whole, x = small_model(), images()
    first = {name: layer for name, layer in whole.layers.items() if layer.block == 0}
    model = MultiBitModel(whole.blocks[:1], whole.block_names[:1], first, whole.pairs)
    assert widest_stream(model, x) == 0
    assert predict_bytes(model, x, RECIPE) == x.nbytes + model(x).nbytes  # a block's float input and target alone


def test_files_have_no_name_while_they_are_used_and_are_gone_with_the_features(tmp_path: Path) -> None:
    store = OnDisk(tmp_path, CPU)
    kept = store.empty(4, torch.ones(1, 3))
    assert list(tmp_path.iterdir()) == [] and len(store.rooms) == 1
    del kept
    gc.collect()
    assert len(store.rooms) == 0


def test_a_fit_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    store = OnDisk(tmp_path, CPU)
    wild = replace(RECIPE, schedule=replace(RECIPE.schedule, lr_activation=1e30, lr_rounding=1e30))
    with pytest.raises(ModelError):
        reconstruct_model(small_model(), images(), wild, trainer, store=store)
    gc.collect()
    assert list(tmp_path.iterdir()) == [] and len(store.rooms) == 0


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_file_are_read_as_they_were_written_whatever_else_is_in_their_room(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    x = torch.randn(6, 2, 3).to(dtype)
    store = OnDisk(tmp_path, CPU)
    kept = store.room(6, 10, x).kept(x)
    for first in range(0, 6, 4):
        kept[first : first + 4] = x[first : first + 4]
    (file,), row = [room.file.fileno() for room in store.rooms], 10 * x.element_size()
    # the room is reserved to the byte, and no row waits in a buffer, where a failed write would be told too late
    assert os.fstat(file).st_size == 6 * row
    assert os.pread(file, 6 * x.element_size(), 5 * row) == x[5].view(torch.uint8).numpy().tobytes()
    assert torch.equal(kept[torch.tensor([4, 0, 4])], x[[4, 0, 4]])
    assert torch.equal(kept[1:3], x[1:3]) and torch.equal(kept[:], x)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process")
def test_what_lies_in_files_takes_no_memory_of_the_process(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    row = torch.ones(1, 2**18)
    before, kept = resident(), OnDisk(tmp_path, CPU).empty(128, row)  # 128 MiB
    for first in range(128):
        kept[first : first + 1] = row
    assert float(sum(kept[first : first + 1].sum() for first in range(128))) == 2**25
    assert resident() - before < 2**24


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ConfigError) as error:
        OnDisk(tmp_path, CPU).empty(4, torch.ones(1, 3))
    assert str(tmp_path) in str(error.value) and os.strerror(errno.ENOSPC) in str(error.value)
