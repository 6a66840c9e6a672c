"""The compiled kernels compute what the plain ones compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ptmq_lightning.quant import kernels


def both(function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    with kernels.compiled(False):
        plain = function(*args)
    with kernels.compiled(True):
        return plain, function(*args)


@pytest.mark.slow
@pytest.mark.skipif(kernels.compiler() is None, reason="no C++ compiler")
def test_compiled_kernels_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    x, grad, keep = torch.randn(70_001), torch.randn(70_001), (torch.rand(70_001) < 0.5).float()
    step, low, high = torch.tensor(0.21), torch.tensor(-7.0), torch.tensor(8.0)
    table = torch.arange(256.0) - 7
    for mask, levels in ((keep, None), (None, None), (keep, table)):
        (y, inside), fast = both(kernels.quantize, x, step, low, high, mask, levels)
        assert torch.equal(y, fast[0]) and torch.equal(inside, fast[1])
        (to_x, to_step), fast = both(kernels.quantize_backward, grad, x, y, inside, step)
        assert torch.equal(to_x, fast[0])
        torch.testing.assert_close(to_step, fast[1], atol=1e-2, rtol=1e-4)  # added in another order
    v, floor = torch.randn(9, 300), torch.randint(-8, 7, (9, 300)).float()
    (h, slope), fast = both(kernels.rectify, v.flatten())
    torch.testing.assert_close(fast, (h, slope))
    soft = h.view(v.shape), slope.view(v.shape)
    limits = torch.tensor(-8.0), torch.tensor(7.0)
    torch.testing.assert_close(*both(kernels.soft_weight, *soft, floor, torch.rand(9, 1), *limits))
    torch.testing.assert_close(*both(kernels.penalty, h, slope, torch.tensor(7.5)), rtol=1e-5, atol=1e-5)


def test_leaving_the_context_brings_back_what_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kernels._on
    with kernels.compiled(True), kernels.compiled(False):
        assert not kernels._on
    with pytest.raises(RuntimeError), kernels.compiled(True):
        raise RuntimeError
    assert not kernels._on


def test_a_kernel_is_not_compiled_anew_for_what_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch gives up after eight compilations of a function; a transformer's last pass once came after the eighth."""
    made = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        made.append(graph)
        return graph.forward

    with monkeypatch.context() as patch:
        plain = torch.compile
        patch.setattr(torch, "compile", lambda function, **keys: plain(function, backend=backend, **keys))
        quantize = kernels.kernel(kernels._quantize.__wrapped__)  # type: ignore[attr-defined]
    steps, limits = torch.rand(5), (torch.tensor(-7.0), torch.tensor(8.0))
    features = [torch.randn(3, 40, 7), torch.randn(6, 40, 14)[:, :, 7:], torch.randn(1, 9), torch.randn(50, 30).T]
    with kernels.compiled(True), torch.no_grad():
        for x in features:
            for learned in (True, False):
                for step in (steps[2], torch.tensor(0.3), steps.clone().requires_grad_()[1]):
                    for levels in (None, torch.arange(256.0)):
                        flat = x.clone().requires_grad_(learned).flatten()
                        for keep in (None, torch.ones(flat.shape)):
                            found = torch.full((2, len(flat)), torch.nan)
                            quantize(flat, step, *limits, keep, levels, *found)
                            assert found.isfinite().all()
    assert 1 <= len(made) <= 4  # with and without the two that may be missing
