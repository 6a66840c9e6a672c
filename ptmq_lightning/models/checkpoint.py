"""Checkpoints as people have them: safetensors, state dicts, and the files that training scripts write.

What stands around the weights is taken off where that makes every tensor of the network fit: a level of nesting
(`state_dict`, `model_ema`, ...) and prefixes of names (`module.` of DataParallel, `_orig_mod.` of torch.compile,
`model.` of Lightning, ...). Files are read with torch's own list of harmless types and the few of `HARMLESS`, never
unpickled whole.
"""

from __future__ import annotations

import argparse
import collections
import logging
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ptmq_lightning.runtime.errors import ModelError

log = logging.getLogger(__name__)

State = dict[str, Tensor]
NESTS = ("state_dict", "model", "model_state_dict", "net", "module", "weights", "model_ema", "state_dict_ema", "ema")
CLASSES = ("classes", "class_names", "class_to_idx", "idx_to_class", "names")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "ema_model.", "student.")
_SCALAR = np.float64(0).__reduce__()[0]  # what numpy pickles its scalars with, under an old and a new name
HARMLESS: list[Any] = [  # what timm, DeiT and Lightning put beside weights
    *(argparse.Namespace, collections.OrderedDict, collections.defaultdict, dict),
    *(pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath),
    *(np.dtype, np.ndarray, np.dtypes.Float32DType, np.dtypes.Float64DType, np.dtypes.Int64DType),
    *((_SCALAR, "numpy._core.multiarray.scalar"), (_SCALAR, "numpy.core.multiarray.scalar")),
]


@dataclass(frozen=True)
class Checkpoint:
    """Every mapping of names to tensors that a file holds; the key is the nest it stands in, "" for the file itself.

    classes: the names of the classes that stand beside the tensors, by index; () where there are none.
    """

    file: str
    states: dict[str, State]
    classes: tuple[str, ...] = ()

    def fitting(self, own: Mapping[str, Tensor], *, drop_extra: bool = False) -> State:
        """The state that fills a network whose state dict is `own`.

        Args:
            own: name -> tensor, for names and shapes.
            drop_extra: tensors that the network does not have are left out instead of refused.

        Raises:
            ModelError: no state fits, with what was tried; or a tensor that no trained network holds.
        """
        for nest, state in self.states.items():
            for prefix, found in _stripped(state):
                if not _missing(own, found) and not _misshapen(own, found):
                    return self._accepted(own, found, nest, prefix, drop_extra)
        raise self._refused(own)

    def _accepted(self, own: Mapping[str, Tensor], found: State, nest: str, prefix: str, drop_extra: bool) -> State:
        extra = [name for name in found if name not in own]
        if extra and not drop_extra:
            raise ModelError(
                f"the checkpoint '{self.file}' fills the network, but holds {len(extra)} more tensors (first: "
                f"{', '.join(extra[:3])}); expected none. Set model.drop_extra=true to leave them out, or choose the "
                f"network they belong to."
            )
        if extra:
            log.info("checkpoint: %d tensors left out, such as %s", len(extra), ", ".join(extra[:3]))
        if nest or prefix:
            told = [f"of its {nest!r}" if nest else "", f"without the prefix {prefix!r}" if prefix else ""]
            log.info("checkpoint: tensors %s", ", ".join(part for part in told if part))
        if others := [key for key in self.states if key != nest]:
            log.info("checkpoint: not used: %s", ", ".join(repr(key) for key in others))
        state = {name: found[name] for name in own if name in found}
        self._check_numbers(own, state)
        return state

    def _check_numbers(self, own: Mapping[str, Tensor], state: State) -> None:
        for name, tensor in state.items():
            wrong = None
            if own[name].is_floating_point() and not tensor.is_floating_point():
                wrong, expected = f"is of {tensor.dtype}", "floating point"
            elif tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                wrong, expected = f"holds {int((~tensor.isfinite()).sum())} values that are no finite numbers", "none"
            elif name.endswith("running_var") and bool((tensor < 0).any()):
                wrong, expected = f"holds a variance of {float(tensor.min()):g}", "none below 0"
            if wrong is not None:
                raise ModelError(
                    f"the tensor '{name}' of the checkpoint '{self.file}' {wrong}; expected {expected}. The file is "
                    f"damaged, or its training diverged: take an earlier one."
                )

    def _refused(self, own: Mapping[str, Tensor]) -> ModelError:
        """With the nearest of what was tried."""
        tried = [(nest, prefix, found) for nest, state in self.states.items() for prefix, found in _stripped(state)]
        found = min((state for *_, state in tried), key=lambda s: len(_missing(own, s)) + len(_misshapen(own, s)))
        extra = [name for name in found if name not in own]
        parts = (("missing", _missing(own, found)), ("unexpected", extra), ("of another shape", _misshapen(own, found)))
        told = "; ".join(f"{len(keys)} {what} (first: {', '.join(keys[:3])})" for what, keys in parts if keys)
        ways = ", ".join(sorted({f"{n or 'the file itself'}{f' without {p!r}' if p else ''}" for n, p, _ in tried}))
        return ModelError(
            f"the checkpoint '{self.file}' does not fit the network: {told}. Expected the network's own names and "
            f"shapes; tried {ways}. Check model.name, model.num_classes and the file."
        )


def read_checkpoint(path: Path) -> Checkpoint:
    """Every state that a safetensors file or a file of torch.save holds; floating point as fp32.

    Raises ModelError: no such file, one that cannot be read harmlessly, or one without tensors.
    """
    if not path.is_file():
        raise ModelError(
            f"no checkpoint at '{path}'; expected a safetensors file or a state dict. Set model.checkpoint."
        )
    content = _read(path)
    states = dict(_states(content))
    if not states:
        held = type(content).__name__
        if isinstance(content, dict):
            held = f"a dict of {', '.join(map(repr, list(content)[:5]))}" if content else "an empty dict"
        raise ModelError(
            f"the checkpoint '{path.name}' holds {held}, no state dict; expected name -> tensor, by itself or under "
            f"one of {', '.join(NESTS)}. Save module.state_dict() instead."
        )
    return Checkpoint(path.name, states, _classes(content))


def _read(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError:
        pass
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        foreign = _foreign_types(path)
        held = f"it holds {', '.join(foreign[:3])}" if foreign else type(error).__name__
        raise ModelError(
            f"cannot read the checkpoint '{path.name}' ({held}); expected a safetensors file, or tensors and plain "
            f"values saved by torch.save. Convert it where it was made: torch.save(module.state_dict(), FILE)."
        ) from error


def _foreign_types(path: Path) -> list[str]:
    """Types in a file that unpickling would have to trust, by name; none for a file that is no pickle."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # whatever a damaged file leads to
        return []


def _states(content: Any, nest: str = "", depth: int = 2) -> Iterator[tuple[str, State]]:
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors and len(tensors) == len(content):
        yield nest, {key: v.float() if v.is_floating_point() else v for key, v in tensors.items()}
    elif depth:
        for key in NESTS:
            if key in content:
                yield from _states(content[key], f"{nest}.{key}" if nest else key, depth - 1)


def _classes(content: Any) -> tuple[str, ...]:
    """A list of names, or a mapping of names to all indices from 0, or of these to names, that stands in a file."""
    for found in (content[key] for key in CLASSES if isinstance(content, Mapping) and key in content):
        if isinstance(found, Mapping) and all(isinstance(key, str) for key in found):
            found = {index: name for name, index in found.items()}
        if isinstance(found, Mapping) and set(found) == set(range(len(found))):
            found = [found[index] for index in range(len(found))]
        if isinstance(found, list | tuple) and found and all(isinstance(name, str) for name in found):
            return tuple(found)
    return ()


def _stripped(state: State) -> Iterator[tuple[str, State]]:
    """The state as it is, and under every prefix, or two in a row, that some names have."""
    yield "", state
    for first in PREFIXES:
        inner = {name.removeprefix(first): tensor for name, tensor in state.items() if name.startswith(first)}
        if inner:
            yield first, inner
            for second in PREFIXES:
                both = {n.removeprefix(second): tensor for n, tensor in inner.items() if n.startswith(second)}
                if both:
                    yield first + second, both


def _missing(own: Mapping[str, Tensor], found: State) -> list[str]:
    return [name for name in own if name not in found and not name.endswith("num_batches_tracked")]


def _misshapen(own: Mapping[str, Tensor], found: State) -> list[str]:
    return [name for name in own if name in found and own[name].shape != found[name].shape]
