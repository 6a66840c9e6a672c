"""What a switch of the bit-width reaches: the weight modules of layers, and the quantizers of activations.

Whatever stands in such a place, committed or learning, is a subclass of one of the two: so the walk over a network
finds it, and `select` means the same everywhere.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Iterator
from typing import ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ptmq_lightning.runtime.errors import ConfigError


def index_of(bits: int, widths: tuple[int, ...], what: str) -> int:
    """Row of a width; ConfigError where the model was not prepared for it."""
    if bits not in widths:
        have = ", ".join(map(str, widths))
        raise ConfigError(f"{what} has no width of {bits} bits; it was prepared for {have}. Choose one of these.")
    return widths.index(bits)


class Switchable(nn.Module, ABC):
    """A module that runs at a selected number of bits.

    widths: the numbers of bits it was prepared for, low to high. bits: the selected one; None: float.
    """

    def __init__(self, widths: Iterable[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.bits: int | None = None

    @property
    def called(self) -> str:
        """How a message calls it."""
        return "the weight"

    def select(self, bits: int | None) -> None:
        """Run at `bits` from now on; None: in float. Raises ConfigError for a width that it was not prepared for."""
        if bits is not None and bits not in self.widths:
            index_of(bits, self.widths, self.called)
        self.__dict__["bits"] = bits  # a switch sets hundreds of these, and nn.Module's own way is slow

    def fixed_step(self) -> Tensor | None:
        """The step size of what an integer runtime holds at the selected width, of a weight (O,); None in float and
        while it is learned."""
        return None


class SwitchableWeight(Switchable):
    """A layer's `weight` module: called without arguments, it gives the weight (O, ...) at the selected width."""

    has_float: ClassVar[bool] = True  # False: the float network's weight is not in it

    def ready(self) -> Tensor | None:
        """The tensor that later calls at this width return again, where there is one."""
        return None


class SwitchableActivation(Switchable):
    """A quantizer of the activations that a layer reads.

    owner: the name of the layer whose width it follows. pin: a width that it has whatever is selected, or None.
    """

    def __init__(self, widths: Iterable[int], owner: str, pin: int | None) -> None:
        super().__init__(widths)
        self.owner, self.pin = owner, pin

    @property
    def called(self) -> str:
        return f"the input of {self.owner}"

    def select(self, bits: int | None) -> None:
        """Run at `bits`, or where it is pinned at its own width; None: the input passes as it is."""
        super().select(bits if bits is None else self.pin or bits)


# The modules beside it, its own name there, the module, and of a weight its layer's name.
Slot = tuple[dict[str, nn.Module | None], str, nn.Module, str | None]
_SLOTS: WeakKeyDictionary[nn.Module, list[Slot]] = WeakKeyDictionary()


def slots_of(block: nn.Module) -> list[Slot]:
    """Activation quantizers (no name) and weight modules (their layer's) of a block; every switch comes here, hence
    the walk is remembered until one of them was exchanged."""
    slots = _SLOTS.get(block)
    if slots is None or not all(place.get(key) is module for place, key, module, _ in slots):
        slots = _SLOTS[block] = [*walk(block)]
    return slots


def walk(module: nn.Module, path: str = "") -> Iterator[Slot]:
    """The same, looked for anew; what a switchable module holds itself belongs to it and is passed over."""
    for name, child in module._modules.items():
        if child is None:
            continue
        if isinstance(child, SwitchableActivation):
            yield module._modules, name, child, None
        elif isinstance(child, SwitchableWeight):
            yield module._modules, name, child, path
        else:
            yield from walk(child, f"{path}.{name}" if path else name)
