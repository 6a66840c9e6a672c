"""Tokens count by what the logits mind of them, and one backward tells it of every block."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.reconstruction import tokens as of_tokens
from ptmq_lightning.reconstruction.reconstruct import reconstruct_model
from ptmq_lightning.reconstruction.tokens import Tokens, look_at_tokens, token_weight
from ptmq_lightning.runtime.gradients import block_gradients
from tests.networks import RECIPE, images, objective, small_model, trainer

N, T, C, CLASSES = 6, 3, 4, 5


class ClassToken(nn.Module):
    """Logits that read the first token at full strength, the second at a tenth of it and no other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(C, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[:, 0] + 0.1 * x[:, 1])


@pytest.fixture
def x() -> Tensor:
    """(B, T, C) with tokens of equal spread."""
    x = torch.randn(N, T, C, generator=torch.Generator().manual_seed(2))
    return x / x.std(-1, keepdim=True)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def look(x: Tensor, head: nn.Module) -> Tokens:
    return look_at_tokens([nn.Identity(), head], x, draws())[0]


def test_a_token_counts_by_its_fisher_information(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_tokens, "EVENLY", 0.0)
    weight = look(x, ClassToken()).weight
    assert weight is not None and weight.shape == (1, T, 1)
    shares = (weight / weight.sum()).flatten()
    torch.testing.assert_close(shares, torch.tensor([1 / 1.01, 0.01 / 1.01, 0.0]))  # squares of 1, 0.1 and 0


def test_half_of_the_weight_is_spread_over_the_tokens_that_are_read(x: Tensor) -> None:
    weight = look(x, ClassToken()).weight
    assert weight is not None
    torch.testing.assert_close(weight.flatten(), torch.tensor([0.5 + 1 / 1.01, 0.5 + 0.01 / 1.01, 0.0]))


def test_tokens_that_nothing_reads_are_found(x: Tensor) -> None:
    read = look(x, ClassToken()).read
    assert read is not None and read.tolist() == [0, 1]
    assert look(x, nn.Flatten()).read is None


def test_feature_maps_and_logits_have_no_tokens() -> None:
    network = [nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))]
    assert look_at_tokens(network, torch.randn(N, 3, 8, 8), draws()) == [Tokens(), Tokens()]


def test_a_network_that_minds_nothing_weighs_nothing(x: Tensor) -> None:
    assert token_weight(x, torch.zeros_like(x)) is None


def test_the_gradients_are_those_of_every_rest_of_the_network_taken_alone() -> None:
    model, shown = small_model(), images(4)
    model.switch(None)
    blocks = list(model.blocks)
    for index, (output, gradient) in enumerate(block_gradients(blocks, shown, lambda logits: logits.square().sum())):
        z = nn.Sequential(*blocks[: index + 1])(shown).detach().requires_grad_(True)
        (expected,) = torch.autograd.grad(nn.Sequential(*blocks[index + 1 :])(z).square().sum(), z)
        torch.testing.assert_close(output, z.detach())
        torch.testing.assert_close(gradient, expected)


class Counted(nn.Module):
    """A block that counts how often it runs."""

    def __init__(self, runs: list[int]) -> None:
        super().__init__()
        self.runs = runs

    def forward(self, x: Tensor) -> Tensor:
        self.runs[0] += 1
        return 1.5 * x


def chain(depth: int, runs: list[int]) -> Iterator[nn.Module]:
    yield from (Counted(runs) for _ in range(depth))
    yield ClassToken()


def test_the_time_grows_with_the_depth_and_not_with_its_square(x: Tensor) -> None:
    runs = {depth: [0] for depth in (5, 10)}
    for depth, count in runs.items():
        look_at_tokens(chain(depth, count), x, draws())
    assert runs[10][0] <= 2.5 * runs[5][0]


def test_a_pass_over_the_network_looks_at_the_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(blocks: object, shown: Tensor, generator: torch.Generator, *, weigh: bool) -> list[Tokens]:
        calls.append(weigh)
        return look_at_tokens(small.blocks, shown, generator, weigh=weigh)

    small = small_model()
    monkeypatch.setattr("ptmq_lightning.reconstruction.reconstruct.look_at_tokens", counted)
    reconstruct_model(small, images(8), RECIPE, trainer)
    assert calls == [RECIPE.objective.error_weight.of_tokens]
    assert objective(norm="token", tokens="fisher").error_weight.of_tokens


def test_behind_a_head_of_zeros_every_token_is_read() -> None:
    head = nn.Sequential(nn.Flatten(1), nn.Linear(T * C, CLASSES))
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    (tokens, _) = look_at_tokens([nn.Identity(), head], torch.randn(N, T, C), draws())
    assert tokens.read is None
