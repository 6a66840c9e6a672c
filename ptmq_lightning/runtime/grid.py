"""The arithmetic of the integer grid: the one that is trained, stored and shipped.

Source: PTMQ §1.2 (quantizers) and §2 (latent grid). A weight is an 11-bit integer n with a step s_L per output channel;
for width b the position on its grid is u_b = n * rho_b with rho_b = s_L / s_b, one correctly rounded float32 product.
Weights are signed per output channel and, where a channel has no zero point, symmetric; activations are unsigned with a
zero point per tensor.

A zero point z of a weight is counted in half levels: W^ = (q - z/2) s with z = 0, -1 or -2, so that the levels of 2
bits are -2 to 1, -1.5 to 1.5 or -1 to 2: at few bits most of what the asymmetric grids of PTMQ §1.2 gain. As whole
numbers, which is how integer kernels take it: 2q - z times s/2 where z is odd, else q - z/2 times s (`multiples`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmq_lightning.runtime.layout import flat, is_dense
from ptmq_lightning.runtime.spec import HELD_BITS
from ptmq_lightning.runtime.spec import LATENT_BITS as LATENT_BITS
from ptmq_lightning.runtime.spec import OFFSET_BITS as OFFSET_BITS
from ptmq_lightning.runtime.spec import TABLE_BITS as TABLE_BITS

EPS = 1e-8
PIECE = 1 << 17  # values worked on at once: as float32 they stay in a core's cache


def limits(bits: int) -> tuple[int, int]:
    """Smallest and largest signed code of a width."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(O,) -> (O, 1, ...) so that it multiplies a weight (O, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def latent(weight: Tensor, bits: int = LATENT_BITS) -> tuple[Tensor, Tensor]:
    """Folded weight (O, ...) -> integers n int16 (O, ...) and steps s_L float32 (O,); the network is n * s_L from then
    on.

    A channel of zeros gets the smallest step and zeros.
    """
    top = 2 ** (bits - 1) - 1
    peak = weight.detach().abs().flatten(1).amax(dim=1).double()
    step = (peak / top).clamp_min(EPS).float()
    n = torch.round(weight.detach().double() / per_channel(step.double(), weight)).clamp(-top, top)
    return n.to(torch.int16), step


def ratio(latent_step: Tensor, step: Tensor) -> Tensor:
    """rho_b = s_L / s_b, (O,), divided in float64 and stored in float32."""
    return (latent_step.double() / step.double()).float()


def half_levels(zero: Tensor, like: Tensor) -> Tensor:
    """z/2, float32 (O, 1, ...), of zero points z int8 (O,)."""
    return per_channel(zero, like) * 0.5


def position(n: Tensor, rho: Tensor, zero: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """u_b = n * rho_b, float32 (O, ...): one rounded product, the same bits on every machine; with zero points z (O,)
    u_b + z/2, rounded once more. Written into `out` where it is given."""
    out = torch.empty(n.shape, device=n.device) if out is None else out
    u = out.copy_(n).mul_(per_channel(rho, n))
    return u if zero is None else u.add_(half_levels(zero, n))


def code(n: Tensor, rho: Tensor, bits: int, rounding: Tensor | None = None, zero: Tensor | None = None) -> Tensor:
    """q_b = clip(floor(u_b) + R): int8 codes (O, ...). rounding R: 0 or 1 (O, ...); None rounds to nearest, half up.
    zero: int8 (O,), None where there is no zero point."""
    return codes(n, rho, bits, rounding, zero).to(torch.int8)


def codes(
    n: Tensor,
    rho: Tensor,
    bits: int,
    rounding: Tensor | None = None,
    zero: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The same as whole numbers in float32 (O, ...), written into `out` where it is given."""
    if rounding is None:
        half = torch.full((), 0.5, dtype=torch.float64, device=n.device)
        found = code_offset(n, rho, bits, half, zero)
        return found.float() if out is None else out.copy_(found)
    return position(n, rho, zero, out).floor_().add_(rounding).clamp_(*limits(bits))


def code_offset(n: Tensor, rho: Tensor, bits: int, tau: Tensor, zero: Tensor | None = None) -> Tensor:
    """q_b = clip(floor(u_b + tau)): int8 codes (O, ...). tau in [0, 1] (O, ...); the sum is taken in float64."""
    low, high = limits(bits)
    return torch.floor(position(n, rho, zero).double() + tau.double()).clamp(low, high).to(torch.int8)


def spread(zero: Tensor) -> tuple[Tensor, Tensor]:
    """m and c of zero points z, int8 (O,): the whole numbers m q - c are 2q - z where z is odd, else q - z/2."""
    odd = zero % 2
    return 1 + odd, torch.where(odd == 1, zero, zero // 2)


def multiples(code: Tensor, zero: Tensor) -> Tensor:
    """Codes int8 (O, ...) and zero points int8 (O,) -> whole numbers int8 whose product with `whole_step` is exactly
    the weight."""
    times, less = spread(zero)
    return code * per_channel(times, code) - per_channel(less, code)


def whole_step(step: Tensor, zero: Tensor | None) -> Tensor:
    """What 1 stands for in `multiples`, (O,): s/2 where z is odd, else s."""
    return step if zero is None else step / (1 + zero % 2)


def held_step(step: Tensor, bits: int) -> Tensor:
    """What 1 stands for once an integer runtime has given narrow integers of so many bits 7 of them, (O,): step over
    2^(7 - bits)."""
    return step * 0.5 ** max(0, HELD_BITS - bits)


def quantize_activation(x: Tensor, step: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Fake-quantized activations, shape of x: (clip(round(x / s) + z, 0, 2^a - 1) - z) * s (PTMQ §1.2)."""
    q = torch.round(x / step).add_(zero_point).clamp_(0, 2**bits - 1)
    return q.sub_(zero_point).mul_(step)


def whole_bias(bias: Tensor, input_step: Tensor, step: Tensor) -> Tensor:
    """A bias (O,) as an integer runtime adds it to its sums of products: a whole number of s_a * s_w, s_w (O,) being
    the `held_step` of the weight."""
    unit = (input_step * step).double()
    return torch.round(bias.double() / unit).mul_(unit).float()


@dataclass(frozen=True)
class LookUp:
    """Fake-quantized activations whose levels are chosen ones of the uniform 8-bit grid:
    (table[clip(round(x / s) + z, 0, 255)] - z) * s.

    step, zero_point: scalars on the device; values: (table - z) * s of every code, float32 (256,).
    """

    step: Tensor
    zero_point: Tensor
    values: Tensor

    @classmethod
    def of(cls, step: Tensor, zero_point: Tensor, table: Tensor) -> LookUp:
        """table: uint8 (256,), code -> level."""
        return cls(step, zero_point, (table.float() - zero_point) * step)

    def __call__(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """Shape of x, without gradients; in_place: into x."""
        return _in_pieces(self._into, x, in_place)

    def _into(self, out: Tensor | None, x: Tensor) -> Tensor:
        q = torch.div(x, self.step, out=out).round_().add_(self.zero_point).clamp_(0, 2**TABLE_BITS - 1)
        codes = q.flatten().int()
        if q.is_contiguous() and not q.requires_grad:  # a pass over memory less
            torch.index_select(self.values, 0, codes, out=q.view(-1))
            return q
        return q.copy_(torch.index_select(self.values, 0, codes).view(q.shape))


@dataclass(frozen=True)
class LeanActivation:
    """`quantize_activation` at one width with the same bits in the result and half of the passes over memory.

    (clip(r + z, 0, N) - z) * s is clip(r, -z, N - z) * s for whole numbers r, z. What is added at the end is zero: it
    takes the sign off a -0, as subtracting z does. step, zero: scalars on the device; low, high: -z and N - z.
    """

    step: Tensor
    zero: Tensor
    low: float
    high: float
    factor: float

    @classmethod
    def of(cls, step: Tensor, zero_point: Tensor, bits: int) -> LeanActivation:
        z = float(zero_point)
        return cls(step, torch.zeros_like(step), -z, 2**bits - 1 - z, float(step))

    def __call__(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """Shape of x, without gradients; in_place: into x."""
        return _in_pieces(self._into, x, in_place)

    def _into(self, out: Tensor | None, x: Tensor) -> Tensor:
        q = torch.div(x, self.step, out=out).round_().clamp_(self.low, self.high)
        return torch.add(self.zero, q, alpha=self.factor, out=q)


def _in_pieces(into: Callable[[Tensor | None, Tensor], Tensor], x: Tensor, in_place: bool) -> Tensor:
    """An element-wise function of x; a large tensor goes piece by piece through a core's cache."""
    if x.numel() <= PIECE or not is_dense(x):
        return into(x if in_place else None, x)
    out = x if in_place else torch.empty_like(x)
    for part, target in zip(flat(x).split(PIECE), flat(out).split(PIECE), strict=True):
        into(target, part)
    return out
