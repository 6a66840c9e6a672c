"""A package that is not installed is named with the extra that brings it."""

from __future__ import annotations

import pytest

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.extras import require


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(ConfigError) as caught:
        require("onnx", "torch", "no_such_package", "nor_this_one")
    assert str(caught.value) == (
        "no_such_package and nor_this_one cannot be imported; expected the extra 'onnx': pip install "
        "'ptmq-lightning[onnx]'."
    )


def test_what_is_there_is_enough() -> None:
    require("onnx", "torch", "numpy")
