"""Each weight is made once and shared; handles at different widths do not disturb each other."""

from __future__ import annotations

import copy
import functools
import threading

import pytest
import torch

from ptmq_lightning.runtime.cache import WeightCache
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, weights_of
from ptmq_lightning.runtime.weights import CommittedWeight, MultiBitWeight
from tests.networks import images, small_model

BASE = functools.cache(small_model)


def fresh() -> MultiBitModel:
    """The small model; making it anew for every test would cost seconds."""
    return copy.deepcopy(BASE())


def all_weights(model: MultiBitModel) -> dict[str, MultiBitWeight]:
    return {name: weight for block in model.blocks for name, weight in weights_of(block)}


def test_a_weight_is_made_once_per_layer_and_width(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, make = fresh(), [], CommittedWeight.made

    def counted(weight: CommittedWeight) -> torch.Tensor:
        made.append(weight.bits)
        return make(weight)

    monkeypatch.setattr(CommittedWeight, "made", counted)
    for which in (3, 8, None, 3, 8, None, "w3a4"):
        model.switch(which)
        model(images(1))
    layers = all_weights(model).values()
    assert len(made) == sum(2 if w.widths == (8,) else 3 for w in layers)  # float, 3 and 8; pinned layers have only 8


def test_a_switch_exchanges_references_and_writes_nothing() -> None:
    model = fresh()
    model.switch(3)
    first = {name: weight() for name, weight in all_weights(model).items()}
    before = {name: tensor.clone() for name, tensor in first.items()}
    model.switch(8)
    model.switch(3)
    for name, weight in all_weights(model).items():
        assert weight() is first[name] and torch.equal(first[name], before[name]), name


def test_beyond_its_limit_the_cache_forgets_what_was_used_longest_ago() -> None:
    model = fresh()
    weights = sum(weight.latent.numel() for weight in all_weights(model).values())
    model.cache.limit = 2 * 4 * weights
    model.switch(3)
    at_three = all_weights(model)["layer1.0.conv1"]()
    for which in (4, 8, 5):
        model.switch(which)
        assert model.cache.bytes <= model.cache.limit
    model.switch(8)
    model.switch(3)
    again = all_weights(model)["layer1.0.conv1"]()
    assert again is not at_three and torch.equal(again, at_three)


def test_a_lower_limit_holds_from_the_next_switch_also_where_all_is_ready() -> None:
    model = fresh()
    for which in (3, 8, 4):
        model.switch(which)
    at_four = {name: weight() for name, weight in all_weights(model).items()}
    model.cache.limit = model.cache.bytes // 2
    model.switch(4)
    assert 0 < model.cache.bytes <= model.cache.limit
    for name, weight in all_weights(model).items():
        assert weight() is at_four[name], "what runs stays, and no other width was made"


def test_without_any_memory_it_still_switches() -> None:
    model, x = fresh(), images(2)
    with at_bits(model, 4):
        expected = model(x)
    other = fresh()
    other.cache.limit = 0
    with at_bits(other, 4):
        assert torch.equal(other(x), expected)
    assert other.cache.bytes == 0


@pytest.mark.parametrize("change", ["rounding", "steps", "written in place"])
def test_a_weight_that_changed_is_made_anew(change: str) -> None:
    model = fresh()
    model.switch(4)
    weight = all_weights(model)["layer1.0.conv1"]
    before = weight()
    if change == "rounding":
        ones = torch.ones((1, *weight.latent.shape), dtype=torch.uint8)
        weight.set_rounding("planes", ones, dict.fromkeys(weight.widths, 0))
    elif change == "steps":
        weight.steps = weight.steps * 2
    else:
        weight.steps.mul_(2)
    model.switch(8)
    model.switch(4)
    assert not torch.equal(weight(), before) and torch.equal(weight(), weight.at(4))


def test_two_handles_share_integers_and_ready_weights() -> None:
    model = fresh()
    handle = model.handle()
    model.switch(4)
    handle.switch(4)
    for name, weight in all_weights(handle).items():
        mine = all_weights(model)[name]
        assert weight is not mine and weight.latent is mine.latent and weight() is mine()
    handle.switch(8)
    assert model.active == model.resolve(4) and handle.active == model.resolve(8)


def test_two_handles_in_two_threads_never_disturb_each_other() -> None:
    """Both switch and run all the time, on a cache too small for two widths, so that weights come and go under them."""
    model, x, rounds = fresh(), images(2), 12
    model.cache.limit = 4 * sum(weight.latent.numel() for weight in all_weights(model).values()) * 3 // 2
    widths = (3, 4, "w5a5", 8)
    expected = {}
    for which in widths:
        with at_bits(model, which), torch.no_grad():
            expected[which] = model(x)
    wrong: list[object] = []

    def run(handle: MultiBitModel, start: int) -> None:
        for step in range(rounds):
            which = widths[(start + step * (1 + start)) % len(widths)]
            with torch.no_grad():
                handle.switch(which)
                for _ in range(3):
                    if not torch.equal(handle(x), expected[which]):
                        wrong.append(which)

    threads = [threading.Thread(target=run, args=(model.handle(), start)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_deep_copy_shares_nothing() -> None:
    model = fresh()
    model.switch(4)
    twin = copy.deepcopy(model)
    assert twin.cache is not model.cache and isinstance(twin.cache, WeightCache)
    assert torch.equal(twin(images(2)), model(images(2)))
