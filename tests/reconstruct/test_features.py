"""The rows of a fit's steps: the same from the same seed, and divided where several processes fit together."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist

from ptmq_lightning.reconstruct.features import StepSampler
from ptmq_lightning.runtime.errors import ConfigError


def batches(batch: int = 8) -> list[list[int]]:
    return [rows.tolist() for rows in StepSampler(20, batch, 3, seed=1, device=torch.device("cpu"))]


def test_processes_divide_every_batch_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, shares = batches(), []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shares.append(batches())
    assert [sorted(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == [sorted(rows) for rows in alone]
    assert {len(rows) for share in shares for rows in share} == {2}
    with pytest.raises(ConfigError) as caught:
        batches(batch=6)
    assert str(caught.value).startswith("recon.batch=6 does not divide among 4 processes")
