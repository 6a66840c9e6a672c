"""A multi-bit network that is trained as a whole: its norms are kept and follow the chosen pair of widths.

It is made from the model that `quant.insert` gives for blocks whose BatchNorms were not folded, so that every method
quantizes the same tensors and pins the same layers; at its end each norm is folded into the layer before it, a scale
and a bias per pair. A pinned layer runs at its own width, its norm follows the other layers' pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptmq_lightning.finetune.layers import FoldedWeight, SharedWeight, SwitchNorm
from ptmq_lightning.models.nodes import module_of
from ptmq_lightning.quant.layers import TrainableActivation
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel, quantizers_of, weights_of
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth
from ptmq_lightning.runtime.weights import MultiBitWeight

NewWeight = Callable[[LayerInfo, MultiBitWeight], SharedWeight]


class SharedModel(MultiBitModel):
    """A multi-bit model whose norms (and, once committed, biases) belong to a pair of widths.

    statistics: what re-estimating the norms' statistics took, where that was done.
    """

    any_pair = False
    statistics: dict[str, Any] | None = None

    @classmethod
    def of(cls, model: MultiBitModel) -> SharedModel:
        shared = cls(model.blocks, model.block_names, model.layers, sorted(model.pairs))
        shared.info = model.info
        return shared

    def _select(self, assignment: BitAssignment | None) -> None:
        super()._select(assignment)
        free = self._free(assignment)
        for module in followers(self):
            info = self.layers[str(module.layer)]
            own = assignment is not None and info.pin_w is None and info.pin_a is None
            module.choose(assignment[info.name] if own and assignment is not None else free)

    def _free(self, assignment: BitAssignment | None) -> BitWidth | None:
        """The pair of the first layer that is not pinned; the widest where all are."""
        if assignment is None:
            return None
        free = (pair for name, pair in assignment.items() if _is_free(self.layers[name]))
        return next(free, None)


def _is_free(info: LayerInfo) -> bool:
    return info.pin_w is None and info.pin_a is None and bool(info.weights)


def followers(model: nn.Module) -> Iterator[SwitchNorm | FoldedWeight]:
    """The modules that hold something for each pair."""
    for module in model.modules():
        if isinstance(module, (SwitchNorm, FoldedWeight)):
            yield module


def make_trainable(
    model: MultiBitModel, new_weight: NewWeight, *, shared_norms: bool, learn_step_sizes: bool
) -> SharedModel:
    """The calibrated model with weights, biases, norms and (with learn_step_sizes) activation steps as parameters.

    new_weight: the trainable weight of a layer. shared_norms: one scale and shift for all pairs; statistics are always
    a pair's own. The modules are replaced in place. Raises ModelError for a BatchNorm that follows no layer.
    """
    trained = SharedModel.of(model)
    for block in trained.blocks:
        assert isinstance(block, fx.GraphModule)
        for name, frozen in list(weights_of(block)):
            layer: Any = block.get_submodule(name)
            layer.weight = new_weight(trained.layers[name], frozen)
            if isinstance(layer.bias, Tensor):
                layer.bias = nn.Parameter(layer.bias)
        for path, quantizer in list(quantizers_of(block)):
            activation = TrainableActivation(quantizer, None)
            activation.log_step.requires_grad_(learn_step_sizes)
            block.set_submodule(path, activation)
        for name, path, norm in list(_norms(block, nn.BatchNorm2d)):
            assert isinstance(norm, nn.BatchNorm2d)
            block.set_submodule(path, SwitchNorm(norm, name, trained.pairs, shared=shared_norms))
    return trained


def unnormed(model: MultiBitModel) -> list[str]:
    """Layers with a weight that are not pinned and have no norm behind them."""
    normed = {name for block in model.blocks for name, _, _ in _norms(block, (nn.BatchNorm2d, SwitchNorm))}
    return [name for name, info in model.layers.items() if _is_free(info) and name not in normed]


def _norms(block: nn.Module, kinds: type | tuple[type, ...]) -> Iterator[tuple[str, str, nn.Module]]:
    """(layer name, path, norm) of the norms of a block, each alone behind a layer."""
    assert isinstance(block, fx.GraphModule)
    layers = {name for name, _ in weights_of(block)}
    for node in block.graph.nodes:
        norm = module_of(block, node)
        if norm is None or not isinstance(norm, kinds):
            continue
        source = node.args[0]
        if str(source.target) not in layers or len(source.users) > 1:
            raise ModelError(
                f"the BatchNorm {node.target} does not stand alone behind a layer (it reads {source.target}); expected "
                "a convolution with one BatchNorm behind it, so that it can be folded for every width. Choose another "
                "method for this network."
            )
        yield str(source.target), str(node.target), norm


@torch.no_grad()
def reestimate(model: SharedModel, images: Tensor, pair: BitWidth, *, batch: int = 64) -> None:
    """Statistics of every norm at ``pair``: the mean over the batches of images (N, C, H, W), nothing of the old."""
    norms = [module for module in followers(model) if isinstance(module, SwitchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.switch(pair)
    seen = 0
    try:
        for part in images.split(batch):
            seen += len(part)
            for norm in norms:
                norm.train()
                norm.momentum = len(part) / seen
            model(part)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum


@torch.no_grad()
def commit(model: SharedModel) -> None:
    """Training is over: what is stored takes the place of what learned, and each norm goes into its layer."""
    for block in model.blocks:
        assert isinstance(block, fx.GraphModule)
        norms = list(_norms(block, SwitchNorm))
        behind = {name: norm for name, _, norm in norms}
        for name, weight in list(weights_of(block)):
            layer: Any = block.get_submodule(name)
            norm, committed = behind.get(name), weight.committed()
            if isinstance(norm, SwitchNorm):
                committed = FoldedWeight(committed, norm, layer)
            bias = None if layer.bias is None else layer.bias.detach()
            layer.weight = committed
            del layer.bias
            layer.register_buffer("bias", bias)
        for _, path, _ in norms:
            block.set_submodule(path, nn.Identity())
        for path, quantizer in list(quantizers_of(block)):
            block.set_submodule(path, quantizer.committed())
    model.eval()
    model.switch(None)
