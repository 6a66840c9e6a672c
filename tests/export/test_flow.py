"""A network as one list of operations."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from ptmq_lightning.export.flow import CONSTANT, operations
from ptmq_lightning.runtime.model import MultiBitModel


class Biased(nn.Module):
    """Adds a table's rows, read in a fixed order, as a Swin does."""

    table: Tensor
    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0).reshape(3, 2))
        self.register_buffer("index", torch.tensor([2, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[self.index]


def test_what_is_made_of_constants_alone_is_a_constant() -> None:
    model = MultiBitModel([fx.symbolic_trace(Biased())], ["block"], {}, [])
    image, rows, total = operations(model, torch.zeros(2, 2, 2))
    assert (image.key, rows.key, total.key) == ("image", CONSTANT, "add")
    assert torch.equal(rows.value, torch.tensor([[4.0, 5.0], [0.0, 1.0]]))  # type: ignore[arg-type]
    assert total.args == (image, rows) and rows.users == [total]


def test_an_operation_tells_its_own_name_and_not_the_network() -> None:
    model = MultiBitModel([fx.symbolic_trace(Biased())], ["block"], {}, [])
    assert repr(operations(model, torch.zeros(2, 2, 2))[-1]) == "Op(0.add, add)"
