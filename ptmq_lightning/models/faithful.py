"""The traced, folded and cut chain against the user's own module, on real images.

Tracing follows the path that an image of zeros takes. A network whose forward looks at the values of its input takes
another one on real images, which nothing but this comparison would show.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ptmq_lightning.models.blocks import Block
from ptmq_lightning.models.unwrap import only_tensor
from ptmq_lightning.runtime.errors import ModelError

DRAW = 8  # images of a draw
# Of the output's norm. Folding in float64 leaves 1e-7 to 1e-5 in every family of timm; another path changes percents.
TOLERANCE = 1e-3


def require_same(network: nn.Module, blocks: Sequence[Block], images: Tensor, *, name: str = "network") -> float:
    """The largest relative difference (2-norms) of the chain from the network over two draws, the first and the last
    of ``images`` (N, C, H, W). Raises ModelError above `TOLERANCE`."""
    chain = nn.Sequential(*[block.module for block in blocks])
    largest = 0.0
    network.eval()
    for draw, images_drawn in (("first", images[:DRAW]), ("last", images[-DRAW:])):
        with torch.no_grad():
            wanted, made = only_tensor(network(images_drawn)), chain(images_drawn)
        error = float((made - wanted).norm() / wanted.norm().clamp_min(1e-12))
        if not error <= TOLERANCE:  # NaN too
            raise ModelError(
                f"the network '{name}', traced and folded, differs by {100 * error:.3g} % from what its module "
                f"computes on the {draw} {len(images_drawn)} calibration images; expected at most "
                f"{100 * TOLERANCE:g} %. Its forward looks at the values of its input (an `if` on a tensor, a random "
                f"number) or keeps a state; write it without that, or quantize the part that does not."
            )
        largest = max(largest, error)
    return largest
