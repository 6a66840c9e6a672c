"""The last pass: step sizes and biases of every width, learned through the whole network while all integers stay.

Blocks are fitted one by one, each to its own output; what their errors add up to behind the last of them no fit has
seen. Step sizes and biases can take part of it back, and every weight width has its own, so that none pays for another.

Source: the end-to-end training of quantization parameters of EfficientQAT (Chen et al. 2024, §3.3), which learns the
steps of one width with labels. What is ours: all widths, biases too, no labels: the loss is the relative squared error
of the logits. (A divergence of probabilities fits a network whose calibration images it was trained on to answers that
it is sure of anyway.) Rates are in levels of each width. The pass is undone where held-out images are no better for
it: mirrored, as no fit has seen them, for the blocks were fitted on all calibration images, a few hundred of which they
may know by heart.

N calibration images, B batch, O output channels.
"""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptmq_lightning.quant.kept import KeptCodes
from ptmq_lightning.quant.layers import TrainableActivation
from ptmq_lightning.reconstruction.block import cosine
from ptmq_lightning.reconstruction.commit import commit
from ptmq_lightning.reconstruction.features import FeatureBatch, Features, loader, map_batches
from ptmq_lightning.reconstruction.fit import NewTrainer
from ptmq_lightning.reconstruction.place import Place
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.reconstruction.store import ChannelsLast
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.hooks import watched_calls
from ptmq_lightning.runtime.keys import key
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, passthrough, quantizers_of, select, weights_of
from ptmq_lightning.runtime.spec import BitWidth

HELD_OUT, MOST_HELD_OUT = 8, 128  # one image in so many is not learned from, and no more than that
ENOUGH = 500  # iterations for each group, where nobody asks for a number
NOTHING = 1e-12  # so that a network without logits, or a width without an error, divides nothing by zero
SHARE = 0.5  # of the free memory, for what a pass forward keeps for the pass back
LEARNED = ("log_gain", "log_step", "shift")  # step sizes of weights and activations, biases: a parameter per width
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneKeys:
    """How long the last pass is, and how fast."""

    iters: int | None = key(
        0, f"iterations for each group of widths; null: recon.iters, at most {ENOUGH}; 0: no such pass", least=0
    )
    rate: float = key(0.01, "of step sizes and biases, in levels of each width, on a cosine to 0", least=0)

    def iterations(self, recipe: Recipe) -> int:
        """Of the whole pass."""
        each = min(recipe.schedule.iters, ENOUGH) if self.iters is None else self.iters
        return each * len(recipe.groups.groups)


def tune(
    model: MultiBitModel,
    images: Tensor,
    recipe: Recipe,
    keys: TuneKeys,
    new_trainer: NewTrainer,
    place: Place,
    free: int | None = None,
    channels_last: bool = False,
) -> bool:
    """Learn step sizes and biases of a reconstructed model through the whole network, in place.

    Args:
        images: calibration images (N, C, H, W).
        recipe: of the reconstruction: which widths are drawn, which step sizes are learned.
        place: of the pass in the run.
        free: bytes of memory that may be taken; None: not known.
        channels_last: how features are laid out.

    Returns:
        whether what was learned stays; else the model is as it was.
    """
    batch, held = recipe.schedule.batch, max(1, min(len(images) // HELD_OUT, MOST_HELD_OUT))
    seen = slice(held if held < len(images) else 0, None)
    mirrored = images[:held].flip(-1)
    with passthrough(model):
        logits = map_batches(model, images, batch)
        held_out = mirrored, map_batches(model, mirrored, batch)
    before, kept = errors(model, recipe, *held_out), _Before(model)
    units = errors(model, recipe, images[:held], logits[:held])
    module = Tuning(model, recipe, keys, place, units, output_scales(model, images[:batch]))
    kept_bytes = batch * module.bytes_kept(images[:1])
    module.thrifty = free is not None and kept_bytes > SHARE * free
    how = "more than half of what is free, so that blocks are run twice" if module.thrifty else "in memory"
    log.info("whole network: a pass forward keeps %d MiB for the pass back, %s", kept_bytes >> 20, how)
    learned = ChannelsLast(images[seen]) if channels_last else images[seen]
    batches = loader(Features(learned, {}), logits[seen], batch=batch, iters=module.iters, seed=place.unit_seed)
    module.train()  # as Lightning expects; nothing in a folded network minds
    new_trainer().fit(module, batches)
    module.eval()
    module.to(images.device)  # the Trainer leaves it on the CPU
    module.commit()
    after = errors(model, recipe, *held_out)
    stays = statistics.geometric_mean(after[pair] / before[pair] for pair in before) < 1
    told = "  ".join(f"{pair} {before[pair]:.3g} -> {after[pair]:.3g}" for pair in before)
    log.info("%slogit error of %d held-out images, mirrored  %s", "" if stays else "undone: ", held, told)
    if not stays:
        kept.put_back()
    return stays


class Tuning(L.LightningModule):
    """The network with step sizes and biases as parameters; each iteration runs it at one drawn width.

    Args:
        errors: of each pair before: the unit of its loss, so that a step size that two pairs share serves both.
        scales: standard deviation (O,) of each layer's output, by layer name: the unit of its bias.
    """

    def __init__(
        self,
        model: MultiBitModel,
        recipe: Recipe,
        keys: TuneKeys,
        place: Place,
        errors: Mapping[BitWidth, float],
        scales: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.rate, self.place, self.errors = model, recipe, keys.rate, place, errors
        self.iters = keys.iterations(recipe)
        self.widths = {pair: dict(model.resolve(pair).layers) for pair in recipe.groups.pairs}
        self.draws = place.generator()
        self.thrifty = False  # blocks are run again in the pass back, in place of what they would keep for it
        self.latest: dict[str, float] = {}
        self.biases = nn.ModuleList(bias for block in model.blocks for bias in _make_tunable(block, recipe, scales))

    def training_step(self, batch: FeatureBatch, index: int) -> Tensor:
        pair = self.draw(index)
        error = relative_error(self.at(pair, batch.fp), batch.target)
        if not bool(error.isfinite()):
            raise ModelError(
                f"the logit error of the whole network at {pair} is {error.item()} in iteration {index} of "
                f"{self.iters}; expected a finite number. Lower tune.rate ({self.rate:g}), or leave the pass out: "
                "tune.iters=0"
            )
        self.report(index, pair, error.detach())
        return error / self.errors[pair]

    def draw(self, index: int) -> BitWidth:
        """A pair of each group in turn."""
        groups = self.recipe.groups.groups
        group = groups[index % len(groups)]
        return group[int(torch.randint(len(group), (), generator=self.draws))]

    def at(self, pair: BitWidth, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) at a pair of widths."""
        for block in self.model.blocks:

            def run(x: Tensor, block: nn.Module = block) -> Tensor:
                select(block, self.widths[pair])
                output: Tensor = block(x)
                return output

            x = checkpoint(run, x, use_reentrant=False) if self.thrifty else run(x)
        return x

    def bytes_kept(self, images: Tensor) -> int:
        """What a pass forward of these images keeps for the pass back."""
        held: dict[int, int] = {}

        def see(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            self.at(self.recipe.groups.pairs[0], images)
        return sum(held.values())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam; a step size moves by its width's share of a level at the end of the range, a bias likewise."""
        found: dict[int, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.named_parameters():
            *_, kind, bits = name.split(".")
            if kind in LEARNED and parameter.requires_grad:
                found[int(bits)].append(parameter)
        groups = [{"params": own, "lr": self.rate / 2 ** (bits - 1)} for bits, own in sorted(found.items())]
        optimizer = torch.optim.Adam(groups, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(self.iters))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def report(self, index: int, pair: BitWidth, error: Tensor) -> None:
        """The latest error of each pair to the loggers, after every so many rounds through the groups."""
        self.latest[f"loss/{pair}"] = float(error)
        every = self.recipe.schedule.log_every * len(self.recipe.groups.groups)
        if (index + 1) % every and index + 1 < self.iters:
            return
        step = self.place.iteration(index)
        where = {"iter": step, "block": self.place.index, "block_name": self.place.name}
        for logger in self.loggers:
            logger.log_metrics({**self.latest, **where}, step=step)  # type: ignore[dict-item]

    def commit(self) -> None:
        """Freeze what was learned."""
        for bias in self.biases:
            bias.commit()  # type: ignore[operator]
        for block in self.model.blocks:
            commit(block)


class TunedBiases(nn.Module):
    """The biases of a layer as parameters, one for each of its weight's widths: shift (O,), in units of scale (O,)."""

    def __init__(self, layer: Any, scale: Tensor) -> None:
        super().__init__()
        weight, plain = layer.weight, layer.compute
        self._layer, self.scale = [layer], scale  # in a list: it is a submodule of the model already
        start = layer.biases
        if start is None:
            own = torch.zeros_like(scale) if layer.bias is None else layer.bias
            start = own.expand(len(weight.widths), -1)
        self.rows = dict(zip(weight.widths, start, strict=True))
        self.shift = nn.ParameterDict({str(bits): nn.Parameter(torch.zeros_like(scale)) for bits in weight.widths})

        def compute(x: Tensor, found: Tensor, bias: Tensor | None) -> Tensor:
            weight: nn.Module = layer.weight
            bits: int | None = layer.weight.bits
            own = None if bits is None else self.at(bits)
            if own is not None and isinstance(weight, KeptCodes):
                return weight.tell(plain(x, found, own.detach()), own, layer.channel)
            output: Tensor = plain(x, found, bias if own is None else own)
            return output

        layer.compute = compute

    def at(self, bits: int) -> Tensor:
        """(O,)"""
        bias: Tensor = self.rows[bits] + self.shift[str(bits)] * self.scale
        return bias

    @torch.no_grad()
    def commit(self) -> None:
        """Give the layer its biases (K, O)."""
        layer = self._layer[0]
        del layer.compute  # the class's own again
        layer.biases = torch.stack([self.at(bits) for bits in self.rows])


def _make_tunable(block: nn.Module, recipe: Recipe, scales: Mapping[str, Tensor]) -> list[TunedBiases]:
    """Put trainable weights, quantizers and biases in the place of a block's; the biases."""
    biases: list[TunedBiases] = []
    for name, weight in list(weights_of(block)):
        layer: Any = block.get_submodule(name)
        biases.append(TunedBiases(layer, scales[name]))
        if recipe.learn_step_sizes:
            layer.weight = KeptCodes(weight)
    for path, quantizer in list(quantizers_of(block)):
        block.set_submodule(path, TrainableActivation(quantizer, None).requires_grad_(recipe.learn_inputs))
    return biases


class _Before:
    """What the pass would change of a model, as it was."""

    def __init__(self, model: MultiBitModel) -> None:
        self.layers: list[tuple[Any, nn.Module, Tensor | None]] = []
        self.quantizers: list[tuple[nn.Module, str, nn.Module]] = []
        for block in model.blocks:
            for name, weight in weights_of(block):
                layer: Any = block.get_submodule(name)
                self.layers.append((layer, weight, layer.biases))
            self.quantizers += [(block, path, quantizer) for path, quantizer in quantizers_of(block)]

    def put_back(self) -> None:
        for layer, weight, biases in self.layers:
            layer.weight, layer.biases = weight, biases
        for block, path, quantizer in self.quantizers:
            block.set_submodule(path, quantizer)


def relative_error(logits: Tensor, target: Tensor) -> Tensor:
    """sum (y - y')^2 / sum y^2 over the logits y (B, classes) of the float network."""
    return (logits - target).square().sum() / target.square().sum().clamp_min(NOTHING)


@torch.no_grad()
def errors(model: MultiBitModel, recipe: Recipe, images: Tensor, logits: Tensor) -> dict[BitWidth, float]:
    """Relative logit error of each drawn pair on images (N, C, H, W) with these float logits (N, classes)."""
    found = {}
    for pair in recipe.groups.pairs:
        with at_bits(model, pair):
            error = relative_error(map_batches(model, images, recipe.schedule.batch), logits)
            found[pair] = max(float(error), NOTHING)
    return found


@torch.no_grad()
def output_scales(model: MultiBitModel, images: Tensor) -> dict[str, Tensor]:
    """Standard deviation (O,) of each layer's output in the float network, by layer name; images (B, C, H, W)."""
    found: dict[str, Tensor] = {}
    layers: dict[str, Any] = {
        name: block.get_submodule(name) for block in model.blocks for name, _ in weights_of(block)
    }

    def see(name: str, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found[name] = output.movedim(layers[name].channel, -1).flatten(0, -2).std(0, correction=0)

    with passthrough(model), watched_calls(layers, see):
        model(images)
    return found
