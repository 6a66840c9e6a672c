"""The walkthrough of docs/extending.md: a variant of each kind joins from outside the package, and runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.library import quantize, reconstruct
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session
from ptmq_lightning.export.targets import TARGETS, OpenVino, Run, backends
from ptmq_lightning.finetune.baselines import BASELINES, FinetuneKeys, FineTuning
from ptmq_lightning.finetune.fit import Batches, fit
from ptmq_lightning.models.zoo import build
from ptmq_lightning.quant.planes import Shared
from ptmq_lightning.quant.roundings import ROUNDINGS
from ptmq_lightning.reconstruction.fit import Fit
from ptmq_lightning.reconstruction.importance import WEIGHTS, ErrorWeight
from ptmq_lightning.reconstruction.losses import LOSSES, Loss
from ptmq_lightning.reconstruction.mixer import MIXERS, GroupMixer
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, weights_of
from ptmq_lightning.runtime.registry import Registry
from tests.finetune.networks import images as digits
from tests.finetune.networks import labels, network
from tests.networks import trainer


@pytest.fixture
def images() -> Tensor:
    return _images()


def _images() -> Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def quantized() -> MultiBitModel:
    """Made once; a test gets a copy of it."""
    torch.manual_seed(0)
    module = build("digits_resnet", pretrained=False).module
    return quantize(module, _images(), bits=[["w3a3", "w4a4"], ["w8a8"]])


@pytest.fixture
def model(quantized: MultiBitModel) -> MultiBitModel:
    return copy.deepcopy(quantized)


@pytest.fixture(autouse=True)
def leave_no_trace() -> Iterator[None]:
    """What a test registers is gone after it."""
    registries: list[Registry] = [MIXERS, LOSSES, WEIGHTS, ROUNDINGS, BASELINES, TARGETS]
    before = [dict(registry.variants) for registry in registries]
    yield
    for registry, variants in zip(registries, before, strict=True):
        registry.variants.clear()
        registry.variants.update(variants)


def test_a_mixer_from_outside_feeds_every_block(model: MultiBitModel, images: Tensor) -> None:
    asked = []

    @MIXERS.register("lowest")
    class Lowest(GroupMixer):
        def blend(self, features: Sequence[Tensor], chosen: int) -> Tensor:
            asked.append(len(features))
            return features[0]

    reconstruct(model, images, mixer="lowest", iters=1, overrides=["recon.batch=4"])
    assert set(asked) == {2} and len(asked) >= len(model.blocks)


def test_a_loss_from_outside_is_what_is_minimized(model: MultiBitModel, images: Tensor) -> None:
    joined = []

    @LOSSES.register("widest")
    class Widest(Loss):
        def __call__(
            self, outputs: Sequence[Tensor], target: Tensor, own: list[Tensor], far: Callable[[Tensor, Tensor], Tensor]
        ) -> Tensor:
            joined.append(len(outputs))
            return own[-1]

    reconstruct(model, images, loss="widest", iters=1, overrides=["recon.batch=4", "loss.relative=false"])
    assert len(joined) == len(model.blocks)


def test_an_error_weight_from_outside_is_asked_once_for_each_block(model: MultiBitModel, images: Tensor) -> None:
    asked = []

    @WEIGHTS.register("first_image")
    class FirstImage(ErrorWeight):
        def __call__(self, fit: Fit) -> Tensor:
            asked.append(fit.place.name)
            weight = torch.zeros_like(fit.target)
            weight[0] = 1
            return weight

    reconstruct(model, images, iters=1, overrides=["recon.batch=4", "loss.weight=first_image"])
    assert asked == list(model.block_names)


def test_a_rounding_from_outside_is_learned_and_committed(model: MultiBitModel, images: Tensor) -> None:
    @ROUNDINGS.register("downwards")
    class Downwards(Shared):
        def starts(self, fractions: dict[int, Tensor]) -> list[Tensor]:
            return [torch.full_like(start, -5.0) for start in super().starts(fractions)]

    reconstruct(model, images, rounding="downwards", iters=1, overrides=["recon.batch=4"])
    assert all(not weight.rounding.any() for _, weight in weights_of(model))


def test_an_export_target_from_outside_is_written_compared_and_run(
    model: MultiBitModel, images: Tensor, tmp_path: Path
) -> None:
    """onnx's own reference implementation, which reads what OpenVINO reads."""

    def outputs_of(model: bytes, feed: Mapping[str, Any]) -> dict[str, Any]:
        runtime = ReferenceEvaluator(onnx.load_from_string(model))
        return dict(zip(runtime.output_names, runtime.run(None, feed), strict=True))

    @TARGETS.register("reference_static")
    class Reference(OpenVino):
        backend = "reference"
        packages = ()

        def opened(self, model: Path | bytes, threads: int | None) -> Run:
            graph = model if isinstance(model, bytes) else model.read_bytes()
            return lambda x: outputs_of(graph, {"images": x})["logits"]

        def saturates(self) -> bool:
            return False

        def layers(self, graph: Any, given: Mapping[str, Any], portable: bool) -> dict[str, Any]:
            return outputs_of(graph.SerializeToString(), {i.name: given[i.name] for i in graph.graph.input})

        def float_kernels(self, file: Path | bytes, products: set[str], name: str = "") -> dict[str, int]:
            return {}

    out = tmp_path / "export"
    (report,) = write_export(model, out, images[:4], ["w4a4"], backend="reference").values()
    assert report.largest_step is not None and report.logit_error < 0.1
    with at_bits(model, "w4a4"), torch.no_grad():
        assert torch.allclose(Session(out)(images), model(images), atol=0.1)
    config = configuration(["export.name=reference", "artifact=DIR"])
    assert config.export.name in backends() and config.export.form == "static"
    with pytest.raises(ConfigError, match=r"^recon\.iters=3 would change nothing: with export=reference"):
        configuration(["export.name=reference", "artifact=DIR", "recon.iters=3"])


def test_a_baseline_from_outside_trains() -> None:
    @BASELINES.register("plain")
    class Plain(FineTuning):
        before_folding = True

        def losses(self, images: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
            yield "float", cross_entropy(self.network(images), labels)

    assert configuration(["rounding=nearest", "method.name=plain", "finetune.name=plain"]).finetune.name == "plain"
    module, keys = network(), FinetuneKeys("plain", epochs=1, batch=8)
    before = [parameter.clone() for parameter in module.parameters()]
    batches = Batches(digits(), labels(), keys)
    fit(BASELINES["plain"](module, keys, len(batches)), batches, trainer())
    assert not all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))
    assert isinstance(module, nn.Module)
