"""The quick measure of how much one layer's width hurts: the change of its block's output along what the logits mind.

Source: PTMQ §5's divergence to the second order, KL(softmax f || softmax f') = 1/2 d^T F d for a small change d of a
feature, F Fisher's information. Of each image one draw is taken, v of random signs: F = E[g g^T] for g the gradient of
v^T S f, S = diag(sqrt(p)) - sqrt(p) p^T and p = softmax f (a drawn label would do too, but rarely says anything of an
image that the network is sure of). So an image's harm is 1/2 (g^T d)^2.
What we do otherwise: the gradients of all blocks come from one backward over the float network, and the change is that
of the layer alone, between two runs of its block from float features, the second one from the layer on: the time does
not grow with what lies behind the block. benchmarks/results/sensitivity.md tells how near it is; at 2 bits on a
convolutional network, where changes are not small, it is furthest.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import softmax

from ptmq_lightning.allocate.sensitivity import MEASURES, Measure
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.gradients import block_gradients
from ptmq_lightning.runtime.model import MultiBitModel, passthrough, quantizers_of
from ptmq_lightning.runtime.spec import BitWidth


@MEASURES.register("fisher")
class Fisher(Measure):
    """What `divergence` measures, estimated, less the divergence that all layers at the base cause."""

    batch: ClassVar[int] = 32

    def __init__(
        self, model: MultiBitModel, images: Tensor, base: Mapping[str, BitWidth], batch: int | None = None
    ) -> None:
        super().__init__(model, images, base, batch)
        if not model.has_float:
            raise ModelError(
                "the model was stored without the float network, whose gradients fisher needs; expected packing "
                "latent. Measure by divergence, or save the model with packing latent."
            )
        self.gradients, self.inputs = _float_pass(model, self.images)
        self.index = 0

    @torch.inference_mode()
    def start(self, index: int) -> None:
        self.index, block = index, self.model.blocks[index]
        names = [n for n, info in self.model.layers.items() if info.block == index and info.weight_shape is not None]
        self.behind = {name: behind(block, name) for name in names}
        read = {node for nodes in self.behind.values() for changed in nodes for node in changed.all_input_nodes}
        with self.changed({}):
            self.walks = [Walk(block, x, read) for x in self.inputs[index]]

    def harm(self, name: str, pair: BitWidth) -> float:
        """Mean over images of 1/2 (g^T d)^2 with a layer at a pair."""
        own = self.model.layers[name].width(pair)
        if own == self.base[name]:
            return 0.0
        changes = zip(self._run(name, own), self.walks, self.gradients[self.index], strict=True)
        along = [(g * (y - walk.result)).flatten(1).sum(dim=1, dtype=torch.float64) for y, walk, g in changes]
        return 0.5 * float(torch.cat(along).square().mean())

    @torch.inference_mode()
    def _run(self, name: str, width: BitWidth) -> list[Tensor]:
        """The block's output (B, ...) with a layer at a width."""
        with self.changed({name: width}):
            return [walk.again(self.behind[name]) for walk in self.walks]


class Walk(fx.Interpreter):
    """A block's run on x (B, ...), of which those values are kept that the nodes `read`; result: (B, ...)."""

    def __init__(self, block: nn.Module, x: Tensor, read: Set[fx.Node]) -> None:
        assert isinstance(block, fx.GraphModule)
        super().__init__(block)
        self.read, self.values = read, dict[fx.Node, Any]()
        self.result: Tensor = self.run(x)

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node in self.read:
            self.values[node] = value
        return value

    def again(self, nodes: Set[fx.Node]) -> Tensor:
        """The output with these nodes computed anew, and all others as they were."""
        read, self.read = self.read, frozenset()
        known = {node: self.values.get(node) for node in self.graph.nodes if node not in nodes}
        output: Tensor = self.run(initial_env=known)
        self.read = read
        return output


def behind(block: nn.Module, name: str) -> Set[fx.Node]:
    """The nodes of a block that a layer's width changes: its own, its quantizers', and all that read them. What a
    quantizer overwrites (`run_in_place`) has to be made anew, too."""
    assert isinstance(block, fx.GraphModule)
    quantizers = {path: quantizer for path, quantizer in quantizers_of(block) if quantizer.owner == name}
    found: set[fx.Node] = set()
    for node in block.graph.nodes:
        if (node.op == "call_module" and node.target in {name, *quantizers}) or found.intersection(
            node.all_input_nodes
        ):
            found.add(node)
            if getattr(quantizers.get(str(node.target)), "in_place", False):
                found.update(node.all_input_nodes)
    return found


def _float_pass(model: MultiBitModel, images: list[Tensor]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Gradients at the output, and the input (B, ...), of every block, in batches."""
    generator = torch.Generator().manual_seed(0)
    gradients: list[list[Tensor]] = [[] for _ in model.blocks]
    inputs: list[list[Tensor]] = [[] for _ in model.blocks]
    with passthrough(model):
        for x in images:
            found = block_gradients(model.blocks, x, lambda logits: fisher_score(logits, generator))
            for index, (output, gradient) in enumerate(found):
                gradients[index].append(gradient)
                inputs[index].append(x)
                x = output
    return gradients, inputs


def fisher_score(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A score of logits (B, C) the outer product of whose gradient is on average Fisher's information, per image."""
    p = softmax(logits.detach(), dim=1)
    signs = torch.randint(2, p.shape, generator=generator).to(p) * 2 - 1
    drawn = p.sqrt() * signs
    return ((drawn - p * drawn.sum(dim=1, keepdim=True)) * logits).sum()
