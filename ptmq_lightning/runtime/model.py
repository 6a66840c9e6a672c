"""One network at every bit-width: blocks in a chain, a table of layers, and a switch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ptmq_lightning.runtime.cache import WeightCache
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.inplace import allow_in_place
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth
from ptmq_lightning.runtime.switchable import SwitchableActivation, slots_of, walk
from ptmq_lightning.runtime.turns import Turns
from ptmq_lightning.runtime.weights import CommittedWeight

Which = int | str | BitWidth | BitAssignment | Mapping[str, Any]


@dataclass(frozen=True)
class LayerInfo:
    """A row of the layer table.

    block: the index of its block. kind: "conv", "conv_transpose", "linear" or "matmul". weight_shape: (O, ...), None
    for a matmul. pin_w, pin_a: fixed widths, or None where the layer follows the switch; the pin_w of a matmul is the
    fixed width of its first factor (attention probabilities).
    """

    name: str
    block: int
    kind: str
    weight_shape: tuple[int, ...] | None = None
    pin_w: int | None = None
    pin_a: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A row of a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> LayerInfo:
        """What `to_json` gave. Raises TypeError or KeyError for anything else."""
        shape = row["weight_shape"]
        return cls(**{**row, "weight_shape": tuple(shape) if shape else None})

    @property
    def weights(self) -> int:
        """How many weights it has; 0 for a matmul."""
        return math.prod(self.weight_shape) if self.weight_shape else 0

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
    info: what is known of it and travels with it. cache: weights made ready at the widths used so far, within
    cache.limit bytes. any_pair: a layer runs at every combination of its widths, not at `pairs` alone. A new model runs
    as the float network.
    """

    any_pair: ClassVar[bool] = True

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
        self.info = ModelInfo()
        self.active: BitAssignment | None = None
        self.cache = WeightCache()
        self._turns = Turns()
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
        return all(weight.has_float for _, weight in weights_of(self))

    def handle(self) -> MultiBitModel:
        """A second switch on the same network: integers, cache and ready weights are shared, the active widths are not.

        Handles may run and switch in threads of their own; one model that several threads switch is refused with an
        error. Moving a handle to another device ends the sharing.
        """
        shared: list[Any] = [*self.parameters(), *self.buffers(), self.cache]
        shared += [ready for _, weight in weights_of(self) if (ready := weight.ready()) is not None]
        return copy.deepcopy(self, {id(thing): thing for thing in shared})

    def run_in_place(self, allowed: bool = True) -> MultiBitModel:
        """Let activations be quantized in their own memory where nothing else reads them: the same results, sooner.

        Values that a hook keeps of such an activation are overwritten, hence it has to be asked for. Returns the model.
        """
        for block in self.blocks:
            allow_in_place(block, allowed)
        return self

    def forward(self, x: Tensor) -> Tensor:
        with nullcontext() if torch.compiler.is_compiling() else self._turns.running():  # a lock stops a compiler
            for block in self.blocks:
                x = block(x)
            return x

    def resolve(self, which: Which) -> BitAssignment:
        """The assignment meant by 4, "w4a8", a width, the name of an assignment, {layer: width} or an assignment.

        A number n is the pair wnan, or where it has none the one pair with n bits for weights. Raises ConfigError for
        none of these, for a number that several pairs have, and for an assignment that does not fit the layers.
        """
        if isinstance(which, str) and which in self.assignments:
            which = self.assignments[which]
        if isinstance(which, BitAssignment):
            self._check_names(dict(which.layers), self.layers)
            return which
        if isinstance(which, Mapping):
            return self._from_mapping(which)
        try:
            width = self._paired(which) if isinstance(which, int) else BitWidth.parse(which)
        except ConfigError:
            bits = [pair.w for pair in self.pairs]
            numbers = ", ".join(str(w) for w in sorted(set(bits)) if bits.count(w) == 1 or (w, w) in self.pairs)
            known = ", ".join([*map(str, self.pairs), *self.assignments])
            raise ConfigError(
                f"found the width {which!r}; expected one of {known}, or a number of weight bits that one pair has "
                f"({numbers})."
            ) from None
        if width not in self._uniform:
            self._uniform[width] = BitAssignment.uniform(width.w, width.a, self)
        return self._uniform[width]

    def _paired(self, bits: int) -> BitWidth:
        """The pair meant by a number of weight bits."""
        same, pairs = BitWidth.parse(bits), [pair for pair in self.pairs if pair.w == bits]
        if same in pairs or not pairs:
            return same
        if len(pairs) > 1:
            raise ConfigError(f"{bits} bits are several pairs: {', '.join(map(str, pairs))}")
        return pairs[0]

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

        A layer's weight is made when a width is first selected and comes from the cache later on. Raises ConfigError
        for what `resolve` refuses, and ModelError where another thread is running the model: see `handle`.
        """
        assignment = None if which is None else self.resolve(which)
        with self._turns.switching():
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


def select(
    block: nn.Module, widths: Mapping[str, BitWidth] | None, *, activations: bool = True
) -> list[tuple[str, Any]]:
    """Set the widths of a block's layers.

    Args:
        widths: layer name -> width; None: every layer in float.
        activations: False leaves the inputs of the layers in float.

    Returns:
        what `weights_of` gives.
    """
    weights = []
    module: Any
    for _, _, module, name in slots_of(block):
        if name is None:
            module.select(widths[module.owner].a if activations and widths is not None else None)
        else:
            module.select(None if widths is None else widths[name].w)
            weights.append((name, module))
    return weights


def weights_of(block: nn.Module) -> Iterator[tuple[str, Any]]:
    """(layer name, SwitchableWeight) of a block, typed loosely: most callers know of which kind its weights are."""
    for _, _, module, name in walk(block):
        if name is not None:
            yield name, module


def quantizers_of(block: nn.Module) -> Iterator[tuple[str, Any]]:
    """(module path, SwitchableActivation) of a block."""
    for path, module in block.named_modules():
        if isinstance(module, SwitchableActivation):
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
