"""torchvision beside a torch that its compiled operators do not fit, such as a CPU-only build.

torchvision then leaves its operators undefined, registers a fake ``torchvision::nms`` all the same and fails with
"operator torchvision::nms does not exist". So do timm, torchmetrics and lightning, which import torchvision and need
none of its operators. The cure declares the two operators and runs the import again.

It is a hook on the import of torchvision, because that costs nothing before anyone asks for torchvision (trying the
import would cost seconds at every start, and would load it where it is not needed), and because the failed import
itself is the only reliable sign: operators declared up front collide with a compiled library that does load.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "torchvision"
SYMPTOM = "operator torchvision::nms does not exist"
SCHEMAS = tuple(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for op in ("nms", "qnms"))

_alive: list[Any] = []  # torch.library.Library: its operators disappear with the object


class TorchvisionFinder(MetaPathFinder):
    """Finds torchvision where the other finders do, and lets ``execute`` run it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if fullname != NAME:
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, TorchvisionFinder))
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Put the hook in front of Python's own finders, once. Where torchvision is whole or absent it changes nothing."""
    if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())


def execute(run: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Run torchvision's ``module``; on the one error that is cured here, declare the operators and run it again."""
    try:
        run(module)
    except RuntimeError as error:
        if SYMPTOM not in str(error):
            raise
        for name in [name for name in sys.modules if name.startswith(f"{NAME}.")]:
            del sys.modules[name]  # half imported
        _declare()
        run(module)


def _declare() -> None:
    from torch.library import Library  # torchvision has imported torch: this module does not

    library = Library(NAME, "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _alive.append(library)
