"""How a picture becomes a network's input: resize, crop, scale to [0, 1], normalize. Standard library alone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ptmq_lightning.runtime.errors import ModelError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")  # of Pillow
CROP_MODES = ("center", "squash", "border")  # of timm
LARGEST = 4096  # pixels of an edge
LARGEST_RESIZED = 4 * LARGEST  # of an edge before the crop


@dataclass(frozen=True)
class Preprocessing:
    """What timm calls a network's data configuration; its values are checked wherever one is made.

    Args:
        input_size: (C, H, W) of the network's images, 1 to 4096 each.
        mean, std: per channel, of pixels in [0, 1]; finite, std above 0.
        interpolation: one of INTERPOLATIONS.
        crop_pct: the part of the resized picture's edge that is kept, above 0 to 1.
        crop_mode: "center": the shorter edge is resized and the middle cut out; "squash": both edges are resized;
            "border": the longer edge is resized and the rest filled.

    Raises:
        ModelError: a value that no image can be made with.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            fits, expected = _VALUES[key]
            if not fits(value):
                shown = list(value) if isinstance(value, tuple) else value
                raise ModelError(f"preprocessing.{key}={shown} fits no image; expected {expected}")
        channels = self.input_size[0]
        for key, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) != channels:
                raise ModelError(
                    f"preprocessing.{key} holds {len(numbers)} numbers for images of {channels} channels; expected a "
                    f"number per channel"
                )
        if max(self.input_size[1:]) / self.crop_pct > LARGEST_RESIZED:
            raise ModelError(
                f"preprocessing.crop_pct={self.crop_pct} makes pictures of more than {LARGEST_RESIZED} pixels an edge "
                f"for input_size={list(self.input_size)}; expected a larger part"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, lists for tuples."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What `to_json` gave. Raises ModelError for a key that is missing or unknown, and for a value that does not
        fit."""
        known = [field.name for field in fields(cls)]
        if unknown := next((key for key in values if key not in known), None):
            near = difflib.get_close_matches(unknown, known, n=1)
            hint = f" (nearest: {near[0]})" if near else ""
            raise ModelError(f"preprocessing.{unknown} is no key{hint}; expected {', '.join(known)}")
        if missing := next((key for key in ("input_size", "mean", "std") if key not in values), None):
            raise ModelError(f"the network's preprocessing has no {missing}; expected {', '.join(known)}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, (list, tuple)) else v for key, v in values.items()}
        return cls(**plain)

    def pixel_ends(self) -> list[float]:
        """Black and white of each channel after the normalization."""
        return [(end - mean) / std for end in (0.0, 1.0) for mean, std in zip(self.mean, self.std, strict=True)]


def is_image_size(value: Any) -> bool:
    """Whether a value is (C, H, W) of an image."""
    return isinstance(value, tuple) and len(value) == 3 and all(type(v) is int and 1 <= v <= LARGEST for v in value)


def _number(value: Any, above: float = -math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > above


def _numbers(value: Any, above: float = -math.inf) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(_number(v, above) for v in value)


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {  # key -> whether a value fits, and what does
    "input_size": (is_image_size, f"whole numbers (channels, height, width) from 1 to {LARGEST}"),
    "mean": (_numbers, "a finite number per channel, std's above 0"),
    "std": (lambda value: _numbers(value, 0), "a finite number per channel, std's above 0"),
    "interpolation": (lambda value: value in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
    "crop_pct": (lambda value: _number(value, 0) and value <= 1, "a number above 0, at most 1"),
    "crop_mode": (lambda value: value in CROP_MODES, f"one of {', '.join(CROP_MODES)}"),
}
