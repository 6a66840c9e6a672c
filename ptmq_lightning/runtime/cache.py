"""Weights made ready to run, kept for the next switch: each layer and width is made once, within a budget of memory."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any

from torch import Tensor

from ptmq_lightning.runtime.weights import CommittedWeight, Snapshot

LIMIT = 1 << 30  # bytes; DeiT-S takes 0.7 GiB at all widths


class WeightCache:
    """Weights by layer and width; beyond `limit` bytes those that were asked for longest ago are forgotten.

    What is forgotten is freed once no layer runs on it. An entry serves only while the weight has the very tensors
    that it was made of and these were not written to: a new rounding, new steps, another device make it anew. Safe to
    use from many threads.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._kept = 0
        self._entries: OrderedDict[tuple[str, int | None], tuple[Tensor, Snapshot]] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> Any:
        return WeightCache, (self.limit,)  # a copy starts empty

    def get(self, name: str, weight: CommittedWeight) -> Tensor:
        """The weight of layer `name` at its selected width."""
        key, sources = (name, weight.bits), [tensor for tensor in weight._buffers.values() if tensor is not None]
        with self._lock:
            found = self._entries.get(key)
            if found is not None and found[1].holds(*sources):
                self._entries.move_to_end(key)
                self._trim()  # the limit may be lower than it was
                return found[0]
            self._kept -= self._entries.pop(key)[0].nbytes if found else 0
            made = weight.made()
            self._entries[key] = made, Snapshot(*sources)
            self._kept += made.nbytes
            self._trim()
            return made

    @property
    def bytes(self) -> int:
        """What is kept now."""
        return self._kept

    def _trim(self) -> None:
        while self._kept > self.limit:
            _, (tensor, _) = self._entries.popitem(last=False)
            self._kept -= tensor.nbytes
