"""All widths in one file, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ptmq_lightning.finetune import store
from ptmq_lightning.finetune.any_precision import AnyPrecision
from ptmq_lightning.finetune.fit import FinetuneKeys, FineTuning
from ptmq_lightning.finetune.multiquant import MultiQuant
from ptmq_lightning.finetune.network import SharedModel, commit
from ptmq_lightning.finetune.switching import switch_milliseconds
from ptmq_lightning.runtime.errors import ArtifactError
from tests.finetune.networks import PAIRS, images, inserted, network


def committed(method: type[FineTuning] = AnyPrecision, seed: int = 0, pairs: tuple = PAIRS) -> SharedModel:
    model = method(method.trainable(inserted(network(seed), pairs=pairs)), FinetuneKeys(epochs=1), 1).eval().network
    commit(model)
    return model


@pytest.mark.parametrize("method", [AnyPrecision, MultiQuant])
def test_a_restored_model_is_the_saved_one_bitwise_at_every_pair(method: type[FineTuning], tmp_path: Path) -> None:
    saved, other = committed(method, seed=0), committed(method, seed=1)
    store.save(saved, tmp_path)
    for pair in other.pairs:  # what it has made of its own tensors must not outlive them
        other.switch(pair)
        other(images())
    store.restore(other, tmp_path)
    for pair in PAIRS:
        saved.switch(pair)
        other.switch(pair)
        assert torch.equal(saved(images()), other(images()))


def test_any_precision_stores_a_byte_per_weight_and_no_bias_twice(tmp_path: Path) -> None:
    tensors = load_file(store.save(committed(), tmp_path))
    codes = [tensor for name, tensor in tensors.items() if name.endswith(".code")]
    assert codes and all(tensor.dtype == torch.uint8 for tensor in codes)
    biases = [name for name in tensors if name.endswith(".bias")]
    assert [name.rpartition("fc")[1:] for name in biases] == [("fc", ".bias")]  # the head has no norm


def test_a_file_of_another_configuration_is_refused(tmp_path: Path) -> None:
    store.save(committed(pairs=PAIRS[1:]), tmp_path)
    with pytest.raises(ArtifactError) as caught:
        store.restore(committed(), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'trained.safetensors'} does not fit the model: ")
    assert str(caught.value).endswith("; make the model with the configuration that stands beside the file")


def test_measuring_a_switch_leaves_the_model_as_it_was() -> None:
    model = committed()
    model.switch(PAIRS[1])
    before = model.active
    assert switch_milliseconds(model, model.pairs) > 0
    assert model.active == before
