"""When the arithmetic of the fits is compiled."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.compiling import compiles, values_per_image
from ptmq_lightning.config import parts
from ptmq_lightning.quant import kernels
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import MultiBitModel, quantizers_of
from tests.networks import images, small_model


@pytest.fixture
def fit() -> tuple[MultiBitModel, torch.Tensor, Recipe]:
    model, calibration = small_model(), images()
    return model, calibration, parts.recipes(configuration(["recon.iters=10"]), model)[0]


def test_a_short_fit_is_not_compiled_and_a_long_one_is(fit, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    model, calibration, recipe = fit
    monkeypatch.setattr(kernels, "failure", lambda _device: None)
    with caplog.at_level(logging.INFO):
        assert not compiles("auto", model, calibration, [recipe])
        assert compiles("auto", model, calibration, [replace(recipe, schedule=replace(recipe.schedule, iters=10**9))])
        assert compiles("auto", model, calibration, [recipe], last=10**9)
    assert "not compiled" in caplog.text
    assert not compiles("never", model, calibration, [replace(recipe, schedule=replace(recipe.schedule, iters=10**9))])


def test_without_a_compiler_auto_goes_on_and_always_is_refused(fit, monkeypatch, caplog) -> None:
    model, calibration, recipe = fit
    monkeypatch.setattr(kernels, "compiler", lambda: None)
    long = replace(recipe, schedule=replace(recipe.schedule, iters=10**9))
    with caplog.at_level(logging.INFO):
        assert not compiles("auto", model, calibration, [long])
    assert "no C++ compiler" in caplog.text
    with pytest.raises(ConfigError, match=r"trainer\.compile=always.*no C\+\+ compiler"):
        compiles("always", model, calibration, [recipe])


def test_a_compiler_that_does_not_work_is_found_out_before_the_fits(fit, monkeypatch, caplog) -> None:
    """Python's headers are missing, say: what torch then raises would end the run in its first block."""
    model, calibration, recipe = fit

    def refuse(_v: torch.Tensor) -> None:
        raise RuntimeError("C++ compile error\nfatal error: Python.h: No such file or directory")

    monkeypatch.setattr(kernels, "compiler", lambda: "g++")
    monkeypatch.setattr(kernels, "rectify", refuse)
    long = replace(recipe, schedule=replace(recipe.schedule, iters=10**9))
    with caplog.at_level(logging.INFO):
        assert not compiles("auto", model, calibration, [long])
    assert "not compiled" in caplog.text and "C++ compile error" in caplog.text
    with pytest.raises(ConfigError, match=r"trainer\.compile=always.*C\+\+ compile error"):
        compiles("always", model, calibration, [recipe])


def test_every_value_that_a_quantizer_reads_counts(fit) -> None:
    model, calibration, _ = fit
    read = []
    for _, quantizer in quantizers_of(model):
        quantizer.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0][0].numel()))
    model(calibration[:3])
    once = sum(read)
    assert values_per_image(model, calibration) == once
