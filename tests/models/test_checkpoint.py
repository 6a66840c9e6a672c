"""A checkpoint is read as people have it, or refused with what was tried."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from ptmq_lightning.models import zoo
from ptmq_lightning.models.cifar import CifarResNet20
from ptmq_lightning.runtime.errors import ModelError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return CifarResNet20().state_dict()


def built(content: Any, folder: Path, **options: Any) -> State:
    torch.save(content, folder / "net.pt")
    return zoo.build("cifar_resnet20", checkpoint=folder / "net.pt", **options).module.state_dict()


def message(content: Any, folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        built(content, folder, **options)
    return str(caught.value)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


NESTED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    **{prefix: prefixed(prefix) for prefix in ("module.", "_orig_mod.", "model.", "net.", "backbone.")},
    "two prefixes": prefixed("module._orig_mod."),
    **{
        nest: lambda state, nest=nest: {nest: state, "epoch": 3}  # type: ignore[misc]
        for nest in ("state_dict", "state_dict_ema", "model_ema", "ema", "net", "model")
    },
    "nested twice": lambda state: {"model": {"state_dict": state, "step": 1}},
    "Lightning": lambda state: {
        "state_dict": prefixed("model.")(state) | {"criterion.weight": torch.ones(10)},
        "hyper_parameters": {"lr": 0.1},
    },
    "timm": lambda state: {
        "epoch": 3, "arch": "resnet20", "args": argparse.Namespace(lr=0.1, output=Path("out")), "state_dict": state,
        "state_dict_ema": {name: tensor + 1 for name, tensor in state.items()}, "optimizer": {"param_groups": []},
        "metric": np.float64(71.5),
    },
}  # fmt: skip


@pytest.mark.parametrize("form", NESTED)
def test_the_weights_are_found_in_what_stands_around_them(form: str, state: State, tmp_path: Path) -> None:
    found = built(NESTED[form](state), tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_extra_heads_are_named_and_left_out_on_request(state: State, tmp_path: Path) -> None:
    more = state | {"projector.weight": torch.ones(3)}
    assert "projector.weight" in message(more, tmp_path) and "model.drop_extra=true" in message(more, tmp_path)
    assert torch.equal(built(more, tmp_path, drop_extra=True)["linear.weight"], state["linear.weight"])


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("layer1.0.conv1.weight", lambda t: torch.full_like(t, torch.nan), "no finite numbers"),
        ("bn1.running_var", lambda t: -t, "a variance of -1"),
        ("linear.weight", lambda t: t.to(torch.int8), "torch.int8"),
    ],
)
def test_a_tensor_that_no_trained_network_holds_is_named(
    name: str, change: Callable[[Tensor], Tensor], named: str, state: State, tmp_path: Path
) -> None:
    found = message(state | {name: change(state[name])}, tmp_path)
    assert f"'{name}'" in found and named in found


def test_a_checkpoint_of_another_network_says_what_was_tried(state: State, tmp_path: Path) -> None:
    other = {name: tensor for name, tensor in state.items() if name != "conv1.weight"}
    other |= {"extra": torch.zeros(1), "linear.bias": torch.zeros(3)}
    found = message({"model": prefixed("module.")(other)}, tmp_path)
    for part in ("1 missing (first: conv1.weight)", "1 unexpected (first: extra)", "model without 'module.'"):
        assert part in found
    assert "1 of another shape (first: linear.bias)" in found


class Foreign:
    """Something that only full unpickling would bring back."""


def test_a_file_that_needs_full_unpickling_is_refused_by_the_name_of_what_it_holds(
    state: State, tmp_path: Path
) -> None:
    found = message({"state_dict": state, "trainer": Foreign()}, tmp_path)
    assert "Foreign" in found and "module.state_dict()" in found


@pytest.mark.parametrize("content", [b"hello", b"", pickle.dumps({"a": 1})[:-3]], ids=["text", "empty", "cut"])
def test_a_file_that_is_no_checkpoint_is_one_message(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot read the checkpoint 'notes\.pt'"):
        zoo.build("cifar_resnet20", checkpoint=tmp_path / "notes.pt")


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    assert "a dict of 'epoch', no state dict" in message({"epoch": 3}, tmp_path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no checkpoint at '.*none.pt'"):
        zoo.build("resnet18", checkpoint=tmp_path / "none.pt")


def test_the_reparameterized_form_is_loaded_where_only_it_fits(tmp_path: Path) -> None:
    own = zoo.build("mobileone_s0", pretrained=False).module.state_dict()
    safetensors.torch.save_file(own, tmp_path / "net.safetensors")
    found = zoo.build("mobileone_s0", checkpoint=tmp_path / "net.safetensors").module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


TEN = [f"kind {index}" for index in range(10)]


@pytest.mark.parametrize(
    "beside",
    [
        {"classes": TEN}, {"class_names": tuple(TEN)}, {"class_to_idx": {name: i for i, name in enumerate(TEN)}},
        {"idx_to_class": dict(enumerate(TEN))},
    ],
    ids=lambda beside: next(iter(beside)),
)  # fmt: skip
def test_names_of_classes_beside_the_tensors_are_read(beside: dict[str, Any], state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, **beside}, tmp_path / "net.pt")
    assert list(zoo.build("cifar_resnet20", checkpoint=tmp_path / "net.pt").classes) == TEN


@pytest.mark.parametrize("beside", [{}, {"classes": 10}, {"classes": [1, 2]}, {"class_to_idx": {"a": 1, "b": 2}}])
def test_what_are_no_names_of_classes_is_left_alone(beside: dict[str, Any], state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, **beside}, tmp_path / "net.pt")
    assert zoo.build("cifar_resnet20", checkpoint=tmp_path / "net.pt").classes == ()
