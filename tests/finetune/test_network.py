"""A network trained as a whole: the same layers and tensors as every method's, norms that follow the pair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.evaluation.cost import size_bytes
from ptmq_lightning.finetune.any_precision import AnyPrecision
from ptmq_lightning.finetune.fit import FinetuneKeys, FineTuning
from ptmq_lightning.finetune.layers import LsqWeight, SwitchNorm
from ptmq_lightning.finetune.multiquant import MultiQuant
from ptmq_lightning.finetune.network import SharedModel, commit, followers, make_trainable, reestimate
from ptmq_lightning.models import blocks, graph
from ptmq_lightning.quant.insert import Placement, insert
from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.runtime.errors import ConfigError, ModelError
from ptmq_lightning.runtime.model import MultiBitModel
from tests.finetune.networks import PAIRS, images, inserted, labels, network

Method = type[FineTuning]
METHODS: list[Method] = [AnyPrecision, MultiQuant]


def trained(method: Method, steps: int = 2) -> SharedModel:
    """A few steps by hand, so that every pair has statistics of its own."""
    module = method(method.trainable(inserted()), FinetuneKeys(epochs=1), steps)
    optimizer = torch.optim.SGD(module.network.parameters(), lr=1e-3)
    module.train()
    for _ in range(steps):
        for _, loss in module.losses(images(), labels()):
            loss.backward()
        optimizer.step()
    model = module.eval().network
    assert isinstance(model, SharedModel)
    return model


@torch.no_grad()
def logits(model: MultiBitModel) -> dict[str, Tensor]:
    found = {}
    for pair in model.pairs:
        model.switch(pair)
        found[str(pair)] = model(images())
    return found


def test_multiquant_starts_as_the_calibrated_model_with_its_norms_kept() -> None:
    expected = logits(inserted(norms=True))
    model = MultiQuant(MultiQuant.trainable(inserted()), FinetuneKeys(epochs=1), 1).eval().network
    assert isinstance(model, SharedModel)
    for pair, found in logits(model).items():
        assert distance(found, expected[pair]) < 0.02, pair


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative; 0.02 leaves room for the few codes so near a tie that 11 bits or a rounding move them by one."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", METHODS)
def test_a_committed_model_computes_what_was_trained(method: Method) -> None:
    model = trained(method)
    before = logits(model)
    commit(model)
    for pair, found in logits(model).items():
        assert distance(found, before[pair]) < 0.02, pair


@pytest.mark.parametrize("method", METHODS)
def test_switching_back_restores_the_logits_bitwise(method: Method) -> None:
    model = trained(method)
    for _ in range(2):  # while it trains, and committed
        first, second = logits(model), logits(model)
        assert all(torch.equal(first[pair], second[pair]) for pair in first)
        assert not torch.equal(first["w2a4"], first["w4a4"])
        if any(isinstance(module, SwitchNorm) for module in followers(model)):
            commit(model)


def test_the_norm_of_a_pinned_layer_follows_the_other_layers() -> None:
    model = trained(AnyPrecision)
    stem = next(module for module in followers(model) if module.layer == "conv1")
    for row, pair in enumerate(PAIRS):
        model.switch(pair)
        assert (model.layers["conv1"].pin_w, stem.row) == (8, row)


def test_a_pair_of_known_widths_that_was_not_trained_is_refused_and_changes_nothing() -> None:
    model = trained(MultiQuant)
    model.switch("w4a4")
    expected = model(images())
    with pytest.raises(ConfigError, match="was not trained at w4a8"):
        model.switch("w4a8")
    assert torch.equal(model(images()), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_committed_model_is_as_large_as_any_methods_at_a_width(method: Method) -> None:
    model, folded = trained(method), inserted(norms=False)
    commit(model)
    for pair in PAIRS:
        model.switch(pair)
        assert size_bytes(model, model.resolve(pair)) == size_bytes(folded, folded.resolve(pair))


def test_statistics_are_re_estimated_for_the_chosen_width_alone() -> None:
    model = trained(MultiQuant)
    stem = next(module for module in followers(model) if isinstance(module, SwitchNorm) and module.layer == "conv1")
    before = stem.mean.clone()
    reestimate(model, images(), PAIRS[1], batch=16)
    model.switch(PAIRS[1])
    with torch.no_grad():
        output = model.blocks[0].get_submodule("conv1")(images())
    torch.testing.assert_close(stem.mean[1], output.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-5)  # float32 sums
    assert torch.equal(stem.mean[[0, 2]], before[[0, 2]])
    assert (stem.training, stem.momentum) == (False, 0.1)


def test_re_estimated_statistics_are_the_mean_over_batches_of_any_length() -> None:
    model = trained(MultiQuant)
    stem = next(module for module in followers(model) if isinstance(module, SwitchNorm) and module.layer == "conv1")
    reestimate(model, images(), PAIRS[0], batch=16)
    whole = stem.mean[0].clone()
    reestimate(model, images(), PAIRS[0], batch=5)
    torch.testing.assert_close(stem.mean[0], whole, atol=1e-5, rtol=1e-5)  # float32 sums in another order


def test_a_norm_without_a_layer_of_its_own_is_refused() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.relu(self.norm(x))).mean(dim=(2, 3))

    gm = graph.trace(Early().eval(), (3, 16, 16))
    model = insert(blocks.cut(gm, images(2)), PAIRS, Placement(), StepSize())
    with pytest.raises(ModelError) as caught:
        MultiQuant.trainable(model)
    assert str(caught.value) == (
        "the BatchNorm norm does not stand alone behind a layer (it reads x); expected a convolution with one "
        "BatchNorm behind it, so that it can be folded for every width. Choose another method for this network."
    )


def test_biases_learn_and_are_plain_tensors_again_at_the_end() -> None:
    model = MultiQuant(MultiQuant.trainable(inserted(network())), FinetuneKeys(epochs=1), 1).network
    assert isinstance(model, SharedModel)
    head = model.blocks[-1].get_submodule("fc")
    assert isinstance(head.bias, nn.Parameter)
    commit(model)
    assert not list(model.parameters())
    assert not head.bias.requires_grad


def test_activation_steps_learn_only_where_asked() -> None:
    for learn in (True, False):
        model = make_trainable(
            inserted(), lambda info, frozen: LsqWeight(frozen), shared_norms=True, learn_step_sizes=learn
        )
        steps = [p for name, p in model.named_parameters() if "quantizers" in name]
        assert steps and {p.requires_grad for p in steps} == {learn}
