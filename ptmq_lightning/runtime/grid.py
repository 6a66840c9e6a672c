"""The arithmetic of the integer grid: the one that is trained, stored and shipped.

Source: PTMQ §1.2 (quantisers) and §2 (latent grid). A weight is an 11-bit integer n with a step s_L per output channel;
for width b the position on its grid is u_b = n * rho_b with rho_b = s_L / s_b, one correctly rounded float32 product.
Weights are symmetric and signed per output channel, activations unsigned with a zero point per tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

LATENT_BITS = 11
OFFSET_BITS = 5
TABLE_BITS = 8
EPS = 1e-8


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


def position(n: Tensor, rho: Tensor) -> Tensor:
    """u_b = n * rho_b, float32 (O, ...): one rounded product, the same bits on every machine."""
    return n.float() * per_channel(rho, n)


def code(n: Tensor, rho: Tensor, bits: int, rounding: Tensor | None = None) -> Tensor:
    """q_b = clip(floor(u_b) + R): int8 codes (O, ...). rounding R: 0 or 1 (O, ...); None rounds to nearest, half up."""
    if rounding is None:
        return code_offset(n, rho, bits, torch.full((), 0.5, dtype=torch.float64, device=n.device))
    low, high = limits(bits)
    return (torch.floor(position(n, rho)) + rounding.float()).clamp(low, high).to(torch.int8)


def code_offset(n: Tensor, rho: Tensor, bits: int, tau: Tensor) -> Tensor:
    """q_b = clip(floor(u_b + tau)): int8 codes (O, ...). tau in [0, 1] (O, ...); the sum is taken in float64."""
    low, high = limits(bits)
    return torch.floor(position(n, rho).double() + tau.double()).clamp(low, high).to(torch.int8)


def quantize_activation(x: Tensor, step: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Fake-quantised activations, shape of x: (clip(round(x / s) + z, 0, 2^a - 1) - z) * s (PTMQ §1.2)."""
    q = torch.round(x / step).add_(zero_point).clamp_(0, 2**bits - 1)
    return q.sub_(zero_point).mul_(step)


def look_up_activation(x: Tensor, step: Tensor, zero_point: Tensor, table: Tensor) -> Tensor:
    """Fake-quantised activations, shape of x, whose levels are chosen ones of the uniform 8-bit grid:
    (table[clip(round(x / s) + z, 0, 255)] - z) * s. table: uint8 (256,), code -> level."""
    q = torch.round(x / step).add_(zero_point).clamp_(0, 2**TABLE_BITS - 1)
    return table[q.int()].to(x.dtype).sub_(zero_point).mul_(step)
