"""The loop's batches, augmentation and parameter groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ptmq_lightning.finetune.any_precision import AnyPrecision
from ptmq_lightning.finetune.fit import Batches, FinetuneKeys, FineTuning, augment, fit
from ptmq_lightning.finetune.multiquant import MultiQuant
from ptmq_lightning.runtime.errors import DataError
from ptmq_lightning.runtime.layout import channels_last
from tests.finetune.networks import images, inserted, labels
from tests.networks import trainer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_epoch_shows_each_image_at_most_once_and_drops_the_rest() -> None:
    numbers = torch.arange(10)
    batches = Batches(torch.zeros(10, 3, 4, 4), numbers, FinetuneKeys(epochs=2, batch=3))
    first, second = (torch.cat([batches[e * 3 + i][1] for i in range(3)]) for e in (0, 1))
    assert len(batches) == 6
    assert len(set(first.tolist())) == len(set(second.tolist())) == 9
    assert first.tolist() != second.tolist()


def test_a_step_has_the_same_batch_whenever_it_is_asked_for() -> None:
    batches = Batches(images(), labels(), FinetuneKeys(epochs=2, batch=4, crop=2, flip=True), seed=3)
    one, other = batches[5][0], batches[5][0]
    assert torch.equal(one, other)
    assert not torch.equal(one, batches[4][0])


def test_another_seed_has_other_batches() -> None:
    first, second = (Batches(images(), labels(), FinetuneKeys(epochs=1, batch=8), seed)[0][1] for seed in (0, 1))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("width", [3, 16])
def test_batches_have_their_channels_last_where_a_cpu_can_train_so(width: int) -> None:
    class Seen(FineTuning):
        def losses(self, images: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
            seen.append(channels_last(images))
            yield "float", cross_entropy(self.network(images), labels)

    seen: list[bool] = []
    keys = FinetuneKeys(epochs=1, batch=4)
    network = nn.Sequential(nn.Conv2d(width, 4, 1, stride=2), nn.Flatten(), nn.Linear(64, 3))
    fit(Seen(network, keys, 2), Batches(torch.randn(8, width, 8, 8), torch.zeros(8).long(), keys), trainer())
    assert seen == [width == 16] * 2


def test_too_few_images_for_a_batch_are_answered_with_the_keys() -> None:
    with pytest.raises(DataError) as caught:
        Batches(images(3), labels(3), FinetuneKeys(epochs=1, batch=4))
    assert str(caught.value) == (
        "3 labeled images do not fill a batch of 4; set data.calibration_images higher or finetune.batch lower"
    )


def test_without_shift_and_mirror_images_stay_as_they_are() -> None:
    assert torch.equal(augment(images(), 0, False, generator()), images())


def test_a_mirrored_image_is_the_image_or_its_mirror() -> None:
    for image, found in zip(images(), augment(images(), 0, True, generator()), strict=True):
        assert torch.equal(found, image) or torch.equal(found, image.flip(-1))


def test_a_shifted_image_is_a_window_of_the_padded_one() -> None:
    x = images(4)
    padded = torch.nn.functional.pad(x, (2,) * 4, mode="replicate")
    for wide, found in zip(padded, augment(x, 2, False, generator()), strict=True):
        windows = [wide[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
        assert any(torch.equal(found, window) for window in windows)


@pytest.mark.parametrize("method", [AnyPrecision, MultiQuant])
def test_weights_decay_and_norms_biases_and_steps_do_not(method: type[FineTuning]) -> None:
    module = method(
        method.trainable(inserted()), FinetuneKeys(epochs=1, lr=0.1, lr_step_size=0.2, weight_decay=0.3), 10
    )
    names = {id(p): n for n, p in module.network.named_parameters()}
    groups = module.configure_optimizers()["optimizer"].param_groups
    kinds = [{name.rpartition(".")[2] if "log_step" not in name else "step" for p in group["params"]
              for name in [names[id(p)]]} for group in groups]  # fmt: skip
    assert kinds == [{"value"}, {"scale", "shift", "bias"}, {"step"}]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.0]
    assert [group["initial_lr"] for group in groups] == [0.1, 0.1, 0.2]
