"""The library: the pipeline's stages as functions on a network and images in memory.

    model = quantize(network, images)
    reconstruct(model, images, mixer="case3", loss="gd_figure", iters=2000)
    evaluate(model, loader, ["w8a8", "w4a4"])

Every other key of the command is set by ``overrides``, as on the command line: ["recon.batch=16", "fold.rotate=false"].
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from ptmq_lightning.compose import pipeline, process
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.learning import learn
from ptmq_lightning.config.options import option
from ptmq_lightning.evaluation.accuracy import measure_accuracy
from ptmq_lightning.models.zoo import Network, timm_preprocessing
from ptmq_lightning.quant.roundings import ROUNDINGS
from ptmq_lightning.quant.steps import calibrate
from ptmq_lightning.reconstruction.losses import LOSSES
from ptmq_lightning.reconstruction.mixer import MIXERS
from ptmq_lightning.reconstruction.reconstruct import BlockResult
from ptmq_lightning.runtime.errors import ConfigError, DataError
from ptmq_lightning.runtime.info import Evaluation
from ptmq_lightning.runtime.model import MultiBitModel, Which, device_of
from ptmq_lightning.runtime.preprocessing import Preprocessing
from ptmq_lightning.runtime.registry import Registry
from ptmq_lightning.runtime.spec import BitGroups, BitWidth

Groups = Sequence[Sequence[Any]]
VARIANTS: dict[str, Registry[Any]] = {"mixer": MIXERS, "loss": LOSSES, "rounding": ROUNDINGS}


def quantize(
    network: Network | nn.Module,
    images: Tensor,
    *,
    bits: str | Groups | BitGroups = "uniform",
    preprocessing: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> MultiBitModel:
    """Fold, cut, insert, calibrate: a model that runs at every pair, rounded to nearest. ``network`` stays as it is.

    Args:
        network: fp32, images (B, C, H, W) -> logits (B, classes); taken in eval mode.
        images: calibration images (N, C, H, W), preprocessed; the model is made on their device.
        bits: an option of the group ``bits``, or groups of pairs such as [["w3a3", "w4a4"], [(8, 8)]].
        preprocessing: how ``images`` were made of pictures: mean, std, interpolation, crop_pct, crop_mode. It travels
            with the artifact, for whoever feeds it files; what is left out is bicubic, 0.875 and center. None: what a
            network of timm says of itself, else unknown.
        classes: their names, by index, for who loads it.
        seed: of the values that the search of the activation steps looks at.
        overrides: further keys as on the command line.

    Raises:
        ConfigError: an unknown or wrong setting.  ModelError: a network that cannot be traced.  DataError: images that
            are no such tensor.
    """
    _require_images(images)
    config = configuration([*_bits(bits), f"seed={seed}", *overrides])
    named, known = _named(network, images, preprocessing)
    blocks = pipeline.prepare(named, images.to(device_of(named.module)), config.fold)
    model = pipeline.quantize(blocks, config, named).to(images.device)
    model.info = replace(model.info, classes=tuple(classes))
    if not known:
        model.info = replace(model.info, preprocessing=None)  # the size of the images stays
    calibrate(model, images[: config.data.step_size_images], p=config.step_size.p, seed=seed)
    return model


def reconstruct(
    model: MultiBitModel,
    images: Tensor,
    *,
    method: str = "ptmq",
    mixer: str | None = None,
    loss: str | None = None,
    rounding: str | None = None,
    iters: int | None = None,
    seed: int = 0,
    loggers: Sequence[Logger] = (),
    overrides: Sequence[str] = (),
) -> list[BlockResult]:
    """Learn rounding and steps of every block of ``model`` in place; images (N, C, H, W) as for ``quantize``.

    Args:
        method, mixer, loss, rounding: options of the groups of these names, or variants that joined from outside; None:
            the method's.
        iters: iterations per block; None: recon's.
        loggers: Lightning loggers that receive the losses.
        overrides: further keys as on the command line. Pairs, steps (but for step_size.learn), placement and folding
            are the model's own, chosen when it was quantized: give `quantize` the same method in its overrides.

    Raises:
        ConfigError: an unknown or wrong setting, or a method that trains with labels.  DataError: images that are no
            such tensor.
    """
    _require_images(images)
    given = [f"method={method}", f"seed={seed}"] + ([] if iters is None else [f"recon.iters={iters}"])
    for group, name in (("mixer", mixer), ("loss", loss), ("rounding", rounding)):
        given += [] if name is None else _variant(group, name)
    if images.is_cuda and not any(override.startswith("trainer=") for override in overrides):
        given.append("trainer=gpu")
    if model.info.groups is None:
        raise ConfigError("the model does not tell its groups of pairs; expected info.groups: make it with quantize")
    config = configuration([*_bits(model.info.groups), *given, *overrides])
    if config.finetune.name != "none":
        raise ConfigError(
            f"method={method} trains with labels, and reconstruct has images alone; run it as a command: "
            f"python train.py method={method}"
        )
    with process.as_before():
        process.prepare(config.trainer, seed)
        return learn(model, images, config, loggers)


def evaluate(
    model: MultiBitModel, loader: Iterable[tuple[Tensor, Tensor]], which: Which | Sequence[Which]
) -> Evaluation:
    """Accuracy, agreement and logit error at each of ``which``: 4, "w4a8", "mixed_4.0"; one of them or several.

    Args:
        loader: batches of images (B, C, H, W) and labels (B,).

    Raises:
        ConfigError: a width the model does not have.  DataError: no images, or labels beyond its classes.
    """
    if isinstance(which, str | BitWidth) or not isinstance(which, Sequence):
        which = [which]
    return measure_accuracy(model, loader, which)


def _bits(bits: str | Groups | BitGroups) -> list[str]:
    """The overrides that choose these widths."""
    if isinstance(bits, str):
        return [f"bits={bits}"]
    groups = bits if isinstance(bits, BitGroups) else BitGroups.of(bits)
    listed = ",".join(f"[{','.join(map(str, group))}]" for group in groups.groups)
    return [f"bits.groups=[{listed}]", "bits.extra=[]"]


def _variant(group: str, name: str) -> list[str]:
    """The overrides that choose a variant: the option of that name, or the name alone for one that joined its registry
    from outside and has no file in conf/."""
    outside = name in VARIANTS[group] and option(group, name) is None
    return [f"{group}.name={name}" if outside else f"{group}={name}"]


def _require_images(images: Any) -> None:
    """Raises DataError."""
    if isinstance(images, Tensor) and images.dim() == 4 and len(images) and images.is_floating_point():
        return
    found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
    raise DataError(
        f"found images of {found}; expected one float tensor (N, C, H, W) of preprocessed images. Gather the batches "
        "of a loader: images = torch.cat([x for x, _ in loader])"
    )


def _named(
    network: Network | nn.Module, images: Tensor, preprocessing: Mapping[str, Any] | None
) -> tuple[Network, bool]:
    """The network with its preprocessing, and whether more of that is known than the images' size."""
    size = {"input_size": list(images.shape[1:])}
    given = dict(preprocessing or {})
    if isinstance(network, Network):
        own, module, name, source = network.preprocessing.to_json(), network.module, network.name, network.source
    else:
        module = network if not network.training else copy.deepcopy(network).eval()
        own = timm_preprocessing(module).to_json() if hasattr(module, "pretrained_cfg") else {}
        name, source = type(module).__name__, "in memory"
    channels = images.shape[1]
    blank = {"mean": [0.0] * channels, "std": [1.0] * channels}
    whole = Preprocessing.from_json({**blank, **own, **given, **size})
    return Network(module, name, whole, source), bool(own or given)
