"""What learns: a weight whose rounding is a variable, and an activation quantizer whose step is one.

Both stand in the place of their runtime twins while a block is reconstructed, and turn back into them at its commit.
Source: PTMQ §1.2 (soft rounding, LSQ), §1.9 (inner drop), §9.1 (offset), §9.4 (learned weight steps).
The autograd functions keep only what the gradient needs; their arithmetic is runtime.grid's.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ptmq_lightning.quant import rounding as soft
from ptmq_lightning.quant.rounding import Rounding
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.switchable import SwitchableActivation, SwitchableWeight
from ptmq_lightning.runtime.weights import MultiBitWeight


class _SoftWeight(torch.autograd.Function):
    """W^ = clip(floor(u) + h(V), low, high) * s with gradients to V and s."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, floor: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        sigmoid = torch.sigmoid(v)
        raw = floor + torch.clamp(sigmoid * (soft.ZETA - soft.GAMMA) + soft.GAMMA, 0, 1)
        q = raw.clamp(low, high)
        ctx.save_for_backward(sigmoid, q, step, raw == q)
        return q * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sigmoid, q, step, inside = ctx.saved_tensors
        stretch = soft.ZETA - soft.GAMMA
        h = sigmoid * stretch + soft.GAMMA
        free = inside & (h > 0) & (h < 1)
        grad_v = grad * step * free * (sigmoid * (1 - sigmoid) * stretch)
        grad_step = (grad * q).flatten(1).sum(1).reshape(step.shape) if ctx.needs_input_grad[2] else None
        return grad_v, None, grad_step, None, None


class _QuantDrop(torch.autograd.Function):
    """LSQ fake quantization with step exp(log s); where `keep` is 1 the input passes as it is (QDrop). With a table
    (256,) the codes 0..top become its levels.

    Masks are floats: multiplying is several times faster than selecting.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_step: Tensor, zero: Tensor, top: int, keep: Tensor | None, table: Tensor | None = None
    ) -> Tensor:
        step = log_step.exp()
        scaled = x / step
        raw = torch.round(scaled).add_(zero)
        q = raw.clamp(0, top)
        inside = torch.eq(raw, q, out=raw)
        if table is not None:
            q = table[q.int()].to(x.dtype)
        q.sub_(zero)
        y = q * step
        slope = q.addcmul_(scaled, inside, value=-1)  # d(x^)/ds: q - x/s inside the range, q at its ends
        if keep is not None:
            y = torch.lerp(y, x, keep)
            slope.addcmul_(slope, keep, value=-1)
            inside = torch.maximum(inside, keep)
        ctx.save_for_backward(inside, slope, step)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, slope, step = ctx.saved_tensors
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        grad_log = torch.dot(grad.flatten(), slope.flatten()) * step if ctx.needs_input_grad[1] else None
        return grad_x, grad_log, None, None, None, None


class MaskBank:
    """Coin flips drawn once; a mask is a slice of them at a random place (a draw per element costs far more)."""

    def __init__(self, seed: int, share: float = 0.5, device: torch.device | str = "cpu", size: int = 1 << 16) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.share, self.device = share, torch.device(device)
        self.bank = self._draw(size)

    def _draw(self, size: int) -> Tensor:
        return (torch.rand(size, generator=self.generator) < self.share).float().to(self.device)

    def __call__(self, shape: torch.Size) -> Tensor:
        """Float mask of a shape: 1 with probability `share`, else 0."""
        count = shape.numel()
        if 2 * count > len(self.bank):  # room for many different slices
            self.bank = self._draw(4 * count)
        first = int(torch.randint(len(self.bank) - count + 1, (), generator=self.generator))
        return self.bank[first : first + count].view(shape)


class LearnedWeight(SwitchableWeight):
    """What every trainable weight has: the frozen MultiBitWeight it stands for, a width, and, where asked for, log
    steps. What is learned about rounding is its subclasses' own."""

    def __init__(self, frozen: MultiBitWeight, how: Rounding, *, learn_steps: bool) -> None:
        super().__init__(frozen.widths)
        self._frozen = [frozen]  # not a submodule: its tensors are no parameters of the fit
        self.how = how
        self.log_gain = nn.ParameterDict(
            {str(bits): nn.Parameter(torch.zeros_like(frozen.latent_step)) for bits in frozen.widths if learn_steps}
        )

    @property
    def frozen(self) -> MultiBitWeight:
        return self._frozen[0]

    def step(self, bits: int) -> Tensor:
        """s_b (O,), learned or frozen."""
        step = self.frozen.steps[self.frozen.widths.index(bits)]
        return step * self.log_gain[str(bits)].exp() if str(bits) in self.log_gain else step

    @abstractmethod
    def learned(self) -> list[nn.Parameter]:
        """The parameters of the rounding."""

    def regularizer(self, drawn: set[int], beta: float) -> Tensor:
        """What pulls the rounding of the drawn widths to its ends, a scalar; 0 where nothing is soft."""
        return self.frozen.latent_step.new_zeros(())

    def undecided(self, widths: set[int]) -> list[Tensor]:
        """The soft roundings h that these widths read, which end at 0 or 1; none where nothing is soft."""
        return []

    @abstractmethod
    def committed(self) -> MultiBitWeight:
        """The runtime weight with what was learned."""


class TrainableWeight(LearnedWeight):
    """A MultiBitWeight whose rounding V (and, where asked for, log steps) are parameters; the integers stay frozen.

    Widths that share a plane share one V (O, ...). Kind "offset": V_b = V0(phi_b) + dV with one dV for all widths.
    """

    def __init__(self, frozen: MultiBitWeight, how: Rounding, *, learn_steps: bool) -> None:
        super().__init__(frozen, how, learn_steps=learn_steps)
        self.plane_of = how.plane_of(frozen.widths)
        positions = {b: grid.position(frozen.latent, rho) for b, rho in zip(frozen.widths, frozen.ratios, strict=True)}
        self.floors = {bits: torch.floor(u) for bits, u in positions.items()}
        fractions = {bits: u - self.floors[bits] for bits, u in positions.items()}
        self.offsets: dict[int, Tensor] = {}
        if how.kind == "offset":
            self.offsets = {bits: soft.start(phi) for bits, phi in fractions.items()}
            starts = [torch.zeros_like(next(iter(fractions.values())))]
        else:
            starts = [soft.start(fractions[self._start_width(plane)]) for plane in sorted(set(self.plane_of.values()))]
        self.v = nn.ParameterList(nn.Parameter(s) for s in starts)

    def _start_width(self, plane: int) -> int:
        """The width whose fraction V starts from: init_width where the plane has it, else the plane's lowest."""
        widths = [bits for bits, row in self.plane_of.items() if row == plane]
        return min(widths, key=lambda bits: (bits != self.how.init_width, bits))

    def logits(self, bits: int) -> Tensor:
        """V (O, ...) of a width."""
        v: Tensor = self.v[self.plane_of[bits]]
        return v + self.offsets[bits] if self.how.kind == "offset" else v

    def learned(self) -> list[nn.Parameter]:
        return list(self.v)

    def undecided(self, widths: set[int]) -> list[Tensor]:
        rows = {row for bits, row in self.plane_of.items() if bits in widths} or set(self.plane_of.values())
        return [soft.rectified_sigmoid(self.v[row]) for row in sorted(rows)]

    def regularizer(self, drawn: set[int], beta: float) -> Tensor:
        """sum of 1 - |2h(V) - 1|^beta, once per plane that a drawn width uses; "offset": mean over the drawn widths
        (PTMQ §1.5)."""
        widths = [b for b in self.frozen.widths if b in drawn] or list(self.frozen.widths[-1:])
        if self.how.kind != "offset":
            widths = list({self.plane_of[bits]: bits for bits in widths}.values())
        terms = torch.stack([soft.regularizer(soft.rectified_sigmoid(self.logits(b)), beta) for b in widths])
        return terms.mean() if self.how.kind == "offset" else terms.sum()

    def forward(self) -> Tensor:
        if self.bits is None:
            return self.frozen.at(None)
        floor = self.floors[self.bits]
        step = grid.per_channel(self.step(self.bits), floor)
        limits = grid.limits(self.bits)
        result: Tensor = _SoftWeight.apply(self.logits(self.bits), floor, step, *limits)  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def committed(self) -> MultiBitWeight:
        """The runtime weight with R = [V >= 0] (or tau in 31sts) and the learned steps; the integers are the same."""
        frozen = self.frozen
        steps = torch.stack([self.step(bits) for bits in frozen.widths])
        weight = MultiBitWeight(frozen.latent, frozen.latent_step, frozen.widths, steps, frozen.ratios)
        if self.how.kind == "offset":
            tau = torch.round(soft.rectified_sigmoid(self.v[0]) * (2**grid.OFFSET_BITS - 1)).to(torch.uint8)
            weight.set_rounding("offset", tau.unsqueeze(0), self.plane_of)
        else:
            weight.set_rounding("planes", torch.stack([(v >= 0).to(torch.uint8) for v in self.v]), self.plane_of)
        weight.select(self.bits)
        return weight


class TrainableActivation(SwitchableActivation):
    """An ActivationQuantizer whose log step of each width is a parameter; a share of the elements passes
    unquantized."""

    def __init__(self, frozen: ActivationQuantizer, masks: MaskBank | None) -> None:
        super().__init__(frozen.widths, frozen.owner, frozen.pin)
        self._frozen = [frozen]
        self.masks = masks
        self.log_step = nn.ParameterDict(
            {str(b): nn.Parameter(s.log()) for b, s in zip(frozen.widths, frozen.steps, strict=True)}
        )

    @property
    def frozen(self) -> ActivationQuantizer:
        return self._frozen[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.bits is None:
            return x
        row = self.widths.index(self.bits)
        zero = self.frozen.zero_points[row]
        table = None if self.frozen.tables is None else self.frozen.tables[row]
        mask = self.masks(x.shape) if self.masks is not None and self.training else None
        log_step, top = self.log_step[str(self.bits)], 2 ** (self.bits if table is None else grid.TABLE_BITS) - 1
        result: Tensor = _QuantDrop.apply(x, log_step, zero, top, mask, table)  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def committed(self) -> ActivationQuantizer:
        if not any(log_step.requires_grad for log_step in self.log_step.values()):
            self.frozen.select(self.bits)
            return self.frozen
        tables = self.frozen.tables
        quantizer = ActivationQuantizer(self.widths, self.owner, self.pin, table=tables is not None)
        quantizer.steps = torch.stack([self.log_step[str(bits)].exp() for bits in self.widths])
        quantizer.zero_points = self.frozen.zero_points.clone()
        quantizer.tables = None if tables is None else tables.clone()
        quantizer.select(self.bits)
        return quantizer
