"""One network at every bit-width: blocks in a chain, a table of layers, and a switch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ptmq_lightning.runtime.cache import WeightCache
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.inplace import allow_in_place
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth
from ptmq_lightning.runtime.weights import CommittedWeight

Which = int | str | BitWidth | BitAssignment | Mapping[str, Any]


@dataclass(frozen=True)
class LayerInfo:
    """A row of the layer table. kind: "conv", "linear" or "matmul"; weight_shape (O, ...); pins: fixed widths or None.
    The pin_w of a product is the fixed width of its first factor (attention probabilities)."""

    name: str
    block: int
    kind: str
    weight_shape: tuple[int, ...] | None = None
    pin_w: int | None = None
    pin_a: int | None = None

    @property
    def weights(self) -> int:
        return int(torch.Size(self.weight_shape).numel()) if self.weight_shape else 0

    @property
    def pinned(self) -> bool:
        """True where no drawn or assigned width changes the layer."""
        return (self.pin_w is not None or not self.weights) and self.pin_a is not None

    def width(self, asked: BitWidth) -> BitWidth:
        """The width the layer takes where `asked` is wanted."""
        return BitWidth(self.pin_w or asked.w, self.pin_a or asked.a)


@dataclass(frozen=True)
class ModelBlock:
    """A block of a model: its name, what it computes, (B, ...) -> (B, ...), and its rows of the layer table."""

    name: str
    module: nn.Module
    layers: Mapping[str, LayerInfo]


class MultiBitModel(nn.Module):
    """A chain of blocks that runs at any of its widths; images (B, C, H, W) -> logits (B, classes).

    layers: in order of execution. pairs: the widths it was prepared for. assignments: named mixed ones.
    info: plain values that travel with it (name, preprocessing, ...). cache: weights made ready at the widths used so
    far, within cache.limit bytes. A new model runs as the float network.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        names: Iterable[str],
        layers: Mapping[str, LayerInfo],
        pairs: Iterable[BitWidth],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.block_names = tuple(names)
        self.layers = dict(layers)
        self.pairs = tuple(pairs)
        self.assignments: dict[str, BitAssignment] = {}
        self.info: dict[str, Any] = {}
        self.active: BitAssignment | None = None
        self.cache = WeightCache()
        self._uniform: dict[BitWidth, BitAssignment] = {}

    @property
    def chain(self) -> tuple[ModelBlock, ...]:
        """The blocks in the order of execution, each with its layers."""
        own: list[dict[str, LayerInfo]] = [{} for _ in self.blocks]
        for name, layer in self.layers.items():
            own[layer.block][name] = layer
        return tuple(map(ModelBlock, self.block_names, self.blocks, own))

    @property
    def has_float(self) -> bool:
        """False where a weight was stored as codes alone: switch(None) is refused then."""
        return all(getattr(weight, "has_float", True) for block in self.blocks for _, weight in weights_of(block))

    def handle(self) -> MultiBitModel:
        """A second switch on the same network: integers, cache and ready weights are shared, the active widths are not.

        Handles may run and switch in threads of their own. Moving one to another device ends the sharing.
        """
        shared: list[Any] = [*self.parameters(), *self.buffers(), self.cache]
        shared += [w._active[1] for block in self.blocks for _, w in weights_of(block) if getattr(w, "_active", None)]
        return copy.deepcopy(self, {id(thing): thing for thing in shared})

    def run_in_place(self, allowed: bool = True) -> MultiBitModel:
        """Let activations be quantized in their own memory where nothing else reads them: the same results, sooner.

        Values that a hook keeps of such an activation are overwritten, hence it has to be asked for. Returns the model.
        """
        for block in self.blocks:
            allow_in_place(block, allowed)
        return self

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def resolve(self, which: Which) -> BitAssignment:
        """The assignment meant by 4, "w4a8", a width, the name of an assignment, {layer: width} or an assignment.

        Raises ConfigError for none of these, and for one that does not fit the layers.
        """
        if isinstance(which, str) and which in self.assignments:
            which = self.assignments[which]
        if isinstance(which, BitAssignment):
            self._check_names(dict(which.layers), self.layers)
            return which
        if isinstance(which, Mapping):
            return self._from_mapping(which)
        try:
            width = BitWidth.parse(which)
        except ConfigError:
            known = ", ".join([*map(str, self.pairs), *self.assignments])
            raise ConfigError(f"found the width {which!r}; expected one of {known}, or a number from 2 to 8.") from None
        if width not in self._uniform:
            self._uniform[width] = BitAssignment.uniform(width.w, width.a, self)
        return self._uniform[width]

    def _from_mapping(self, which: Mapping[str, Any]) -> BitAssignment:
        self._check_names(which, [name for name, layer in self.layers.items() if not layer.pinned])
        eight = BitWidth(8, 8)
        return BitAssignment(
            tuple((n, layer.width(BitWidth.parse(which.get(n, eight)))) for n, layer in self.layers.items())
        )

    def _check_names(self, given: Mapping[str, Any], needed: Iterable[str]) -> None:
        unknown = [name for name in given if name not in self.layers]
        missing = [name for name in needed if name not in given]
        if unknown or missing:
            raise ConfigError(
                f"found an assignment with {len(unknown)} unknown and {len(missing)} missing layers, first "
                f"{(unknown + missing)[0]!r}; expected a width for each of the {len(self.layers)} layers. Make it of "
                f"this model's own layers."
            )

    def switch(self, which: Which | None) -> None:
        """Run at `which` from now on; None runs the float network. Nothing but the selection changes.

        A layer's weight is made when a width is first selected and comes from the cache later on.
        """
        assignment = None if which is None else self.resolve(which)
        before = self.active
        try:
            self._select(assignment)
        except BaseException:  # also no memory for a weight, or a key pressed: `active` says what runs
            self._select(before)
            raise
        self.active = assignment

    def _select(self, assignment: BitAssignment | None) -> None:
        widths = None if assignment is None else dict(assignment.layers)
        for block in self.blocks:
            for name, weight in select(block, widths):
                if isinstance(weight, CommittedWeight):
                    weight.use(self.cache.get(name, weight))

    def preprocessing(self) -> dict[str, Any]:
        return dict(self.info.get("preprocessing", {}))


def select(
    block: nn.Module, widths: Mapping[str, BitWidth] | None, *, activations: bool = True
) -> list[tuple[str, Any]]:
    """Set the widths of a block's layers by name; None sets every layer to float, activations=False its inputs.

    Returns what `weights_of` gives.
    """
    weights = []
    module: Any
    for _, _, module, name in _switched(block):
        if name is None:
            module.select(widths[module.owner].a if activations and widths is not None else None)
        else:
            module.select(None if widths is None else widths[name].w)
            weights.append((name, module))
    return weights


Slot = tuple[dict[str, nn.Module | None], str, nn.Module, str | None]  # where a module hangs, it, its layer's name
_SLOTS: WeakKeyDictionary[nn.Module, list[Slot]] = WeakKeyDictionary()


def _switched(block: nn.Module) -> list[Slot]:
    """Activation quantizers (no name) and weight modules (their layer's) of a block; every switch comes here, hence
    the walk is remembered until one of them was exchanged."""
    slots = _SLOTS.get(block)
    if slots is None or not all(place.get(key) is module for place, key, module, _ in slots):
        slots = _SLOTS[block] = [*_walk(block)]
    return slots


def _walk(module: nn.Module, path: str = "") -> Iterator[Slot]:
    for name, child in module._modules.items():
        if child is None:
            continue
        switched = hasattr(type(child), "select")
        if switched and "owner" in child.__dict__:
            yield module._modules, name, child, None
        elif switched and name == "weight":
            yield module._modules, name, child, path
        else:
            yield from _walk(child, f"{path}.{name}" if path else name)


def weights_of(block: nn.Module) -> Iterator[tuple[str, Any]]:
    """(layer name, weight module) of a block."""
    for path, module in block.named_modules():
        if path.endswith(".weight") and hasattr(module, "select"):
            yield path.removesuffix(".weight"), module


def quantizers_of(block: nn.Module) -> Iterator[tuple[str, Any]]:
    """(module path, activation quantizer) of a block."""
    for path, module in block.named_modules():
        if hasattr(module, "owner"):
            yield path, module


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors are: the CPU, where it has none."""
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))


@contextmanager
def at_bits(model: MultiBitModel, which: Which | None) -> Iterator[MultiBitModel]:
    """Run at `which` inside the block, and as before after it, whatever happens; None: the float network."""
    before = model.active
    model.switch(which)
    try:
        yield model
    finally:
        model.switch(before)


def passthrough(model: MultiBitModel) -> Any:
    """Context in which every quantizer is off: the float network."""
    return at_bits(model, None)
