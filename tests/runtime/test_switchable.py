"""A switch reaches whatever subclasses the two bases, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import quantizers_of, select, weights_of
from ptmq_lightning.runtime.spec import BitWidth
from ptmq_lightning.runtime.switchable import SwitchableActivation, SwitchableWeight


class Weight(SwitchableWeight):
    def forward(self) -> Tensor:
        return torch.ones(1)


class Held(Weight):
    """A weight that holds another one, which is not a layer's."""

    def __init__(self) -> None:
        super().__init__((2, 8))
        self.weight = Weight((2, 8))


class Activation(SwitchableActivation):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Lookalike(nn.Module):
    """Named like one of them, but none."""

    owner = "fc"

    def select(self, bits: int | None) -> None:
        raise AssertionError("it was switched")


def block(weight: Weight) -> nn.Module:
    layer, whole = nn.Module(), nn.Module()
    layer.add_module("weight", weight)
    whole.add_module("fc", layer)
    whole.add_module("input", Activation((4, 8), "fc", None))
    whole.add_module("pinned", Activation((8,), "fc", 8))
    whole.add_module("other", Lookalike())
    return whole


@pytest.mark.parametrize("weight", [Weight((2, 8)), Held()])
def test_weights_and_quantizers_are_found_by_their_base(weight: Weight) -> None:
    whole = block(weight)
    names = [(path, type(quantizer)) for path, quantizer in quantizers_of(whole)]
    assert names == [("input", Activation), ("pinned", Activation)]
    assert list(weights_of(whole)) == [("fc", weight)]
    assert select(whole, {"fc": BitWidth(2, 4)}) == [("fc", weight)]
    assert (weight.bits, [quantizer.bits for _, quantizer in quantizers_of(whole)]) == (2, [4, 8])
    select(whole, None)
    assert (weight.bits, [quantizer.bits for _, quantizer in quantizers_of(whole)]) == (None, [None, None])


def test_a_width_it_was_not_prepared_for_is_refused_by_name() -> None:
    for module, says in (
        (Weight((2, 8)), "the weight has no width of 3 bits; it was prepared for 2, 8"),
        (Activation((4, 8), "fc", None), "the input of fc has no width of 3 bits; it was prepared for 4, 8"),
    ):
        module.select(4 if isinstance(module, Activation) else 2)
        with pytest.raises(ConfigError) as error:
            module.select(3)
        assert str(error.value).startswith(says)
        assert module.bits in (2, 4), "the selection stays"
