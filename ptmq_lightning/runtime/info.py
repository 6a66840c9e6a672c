"""What travels with a model beside its tensors: whose weights it has, how it wants its images, how well it does.

Plain values in frozen dataclasses, each with `to_json` and `from_json`; what is read back is compared with the types
of the fields. Standard library alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any

from ptmq_lightning.runtime.checked import NUMBER, OPTIONAL, check
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.preprocessing import Preprocessing, is_image_size
from ptmq_lightning.runtime.spec import BitGroups

ROW: dict[str, Any] = {
    "config": str,
    "w_bits": NUMBER,
    "a_bits": NUMBER,
    "top1": NUMBER,
    "top5": OPTIONAL,  # None below five classes
    "agreement": NUMBER,
    "sqnr_db": OPTIONAL,  # None where the logits equal the float network's
    "logit_error": NUMBER,
    "size_bytes": int,
    "bit_ops": int,
}
_ACCURACY = {"fp": {"top1": NUMBER, "top5": OPTIONAL}, "rows": list, "images": int}
_INFO: dict[str, Any] = {
    "name": str,
    "source": str,
    "input_size": (list, NoneType),
    "preprocessing": (dict, NoneType),
    "groups": (list, NoneType),
    "data": (str, NoneType),
    "accuracy": (dict, NoneType),
    "classes": list,
}


def figure(value: float | None, digits: int = 2, missing: str = "-") -> str:
    """A figure as tables show it."""
    return missing if value is None else f"{value:,.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One assignment's figures; percent: top1, top5, agreement. None: top5 below 5 classes, sqnr_db of equal logits."""

    config: str
    w_bits: float
    a_bits: float
    top1: float
    top5: float | None
    agreement: float
    sqnr_db: float | None
    logit_error: float
    size_bytes: int
    bit_ops: int


@dataclass(frozen=True)
class Evaluation:
    """The float network's accuracy (percent), one row per assignment, and the number of images."""

    fp: dict[str, float | None]
    rows: list[Row]
    images: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Evaluation:
        """What `to_json` gave. Raises ModelError for anything else, naming the place."""
        check(values, _ACCURACY, "info.accuracy", ModelError)
        for number, row in enumerate(values["rows"]):
            check(row, ROW, f"info.accuracy.rows[{number}]", ModelError)
        return cls(dict(values["fp"]), [Row(**row) for row in values["rows"]], values["images"])


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model.

    Args:
        name, source: of the float network, and where its weights come from; "" where nobody said.
        input_size: (C, H, W) of its images; taken from `preprocessing` where that is known.
        preprocessing: how pictures become such images; None: unknown, it takes tensors alone.
        groups: the groups of pairs that it was calibrated for.
        data: the option of the group `data` that it was evaluated on.
        accuracy: the figures of that evaluation.
        classes: their names, by index; () where they have none.

    Raises:
        ModelError: an input_size that is no image's, or other than that of `preprocessing`.
    """

    name: str = ""
    source: str = ""
    input_size: tuple[int, int, int] | None = None
    preprocessing: Preprocessing | None = None
    groups: BitGroups | None = None
    data: str | None = None
    accuracy: Evaluation | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = self.preprocessing.input_size if self.preprocessing else None
        if self.input_size is None:
            object.__setattr__(self, "input_size", known)  # frozen for everybody else
        elif not is_image_size(self.input_size) or known not in (None, self.input_size):
            raise ModelError(
                f"info.input_size is {self.input_size}; expected (channels, height, width)"
                + (f" as the preprocessing has it, {known}" if known else "")
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, every key."""
        return {
            "name": self.name,
            "source": self.source,
            "input_size": None if self.input_size is None else list(self.input_size),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_json(),
            "groups": None if self.groups is None else self.groups.to_json(),
            "data": self.data,
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
            "classes": list(self.classes),
        }

    @classmethod
    def from_json(cls, values: Any) -> ModelInfo:
        """What `to_json` gave. Raises ModelError, or ConfigError for groups, naming the place that does not fit."""
        check(values, _INFO, "info", ModelError)
        for number, name in enumerate(values["classes"]):
            check(name, str, f"info.classes[{number}]", ModelError)
        size, pictures, groups, accuracy = (values[k] for k in ("input_size", "preprocessing", "groups", "accuracy"))
        return cls(
            name=values["name"],
            source=values["source"],
            input_size=None if size is None else tuple(size),
            preprocessing=None if pictures is None else Preprocessing.from_json(pictures),
            groups=None if groups is None else BitGroups.from_json(groups),
            data=values["data"],
            accuracy=None if accuracy is None else Evaluation.from_json(accuracy),
            classes=tuple(values["classes"]),
        )
