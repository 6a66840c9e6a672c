"""The images of a fit's iterations: the same from the same seed, and divided where several processes fit together."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist

from ptmq_lightning.reconstruction.features import ImageSampler
from ptmq_lightning.runtime.errors import ConfigError


def batches(batch: int = 8) -> list[list[int]]:
    return [numbers.tolist() for numbers in ImageSampler(20, batch, 3, seed=1, device=torch.device("cpu"))]


def test_processes_divide_every_batch_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, shares = batches(), []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shares.append(batches())
    assert [sorted(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == [
        sorted(numbers) for numbers in alone
    ]
    assert {len(numbers) for share in shares for numbers in share} == {2}
    with pytest.raises(ConfigError) as caught:
        batches(batch=6)
    assert str(caught.value).startswith("recon.batch=6 does not divide among 4 processes")
