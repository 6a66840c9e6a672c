"""Every key of a run: its type, default, range, choices and help, declared once (`runtime.keys.key`).

A group is a frozen dataclass, that of the room which takes it where there is one; a field that was not made by ``key``
is no key. Hydra merges conf/ into what
`config.build` makes of them, the checks of `config.check`, --help and docs/configuration.md read them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ptmq_lightning.allocate.keys import AllocateKeys
from ptmq_lightning.export.folder import WEIGHTS
from ptmq_lightning.export.targets import backends, forms
from ptmq_lightning.finetune.baselines import FinetuneKeys
from ptmq_lightning.quant.insert import Placement
from ptmq_lightning.quant.roundings import RoundingKeys
from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.reconstruction.losses import LossKeys
from ptmq_lightning.reconstruction.mixer import MixerKeys
from ptmq_lightning.reconstruction.recipe import MethodKeys, Schedule
from ptmq_lightning.reconstruction.tuning import TuneKeys
from ptmq_lightning.report.keys import LoggerKeys
from ptmq_lightning.runtime.keys import key

MOST_SEED = 2**32 - 1  # that numpy takes


@dataclass(frozen=True)
class ModelConfig:
    name: str = key(help="of models/zoo.py, any timm name, or FILE.py:NAME")
    checkpoint: str | None = key(None, "safetensors or a plain state dict")
    pretrained: bool = key(True, "timm's weights where no checkpoint is given; false: random ones")
    num_classes: int | None = key(None, "classes that the network tells apart; null: its own number", least=1)
    classes: Any = key(
        None,
        "names of its classes, by index: a list, or a text file with a name a line; null: the checkpoint's or data's",
    )
    drop_extra: bool = key(False, "leave out tensors of the checkpoint that the network does not have")
    expected_top1: float | None = key(
        None, "of the float network, in percent: less is refused before the fit", least=0, most=100
    )
    kwargs: dict[str, Any] = key(factory=dict, help="of the network: +model.kwargs.img_size=32")
    preprocessing: dict[str, Any] = key(factory=dict, help="values other than the network's own: +model.preprocessing.")


@dataclass(frozen=True)
class DataConfig:
    name: str = key(help="of data/sources.py")
    root: str | None = key(None, "holds train.tar or train/ or calib.tar, val.tar or val/, class_map.txt")
    train: str | None = key(None, "calibration source: a folder of class folders, a tar of them, hfds/NAME:SPLIT")
    val: str | None = key(None, "evaluation source, likewise")
    class_map: str | None = key(None, "text file, a class folder's name a line")
    val_images: int | None = key(None, "a seeded subset of the evaluation images; all where null", least=1)
    calibration_images: int = key(1024, "how many images the model is made of", least=1)
    step_size_images: int = key(256, "of the calibration images: for the search of the step sizes", least=1)
    eval_batch: int = key(100, "evaluation images that run at once", least=1)
    workers: int = key(0, "processes that decode evaluation images", least=0)
    seed: int = key(0, "of the evaluation subset: the same for every seed of the run", least=0, most=MOST_SEED)


@dataclass(frozen=True)
class BitsConfig:
    name: str = key(help="of the option")
    groups: tuple[tuple[str, ...], ...] = key(
        help="groups of pairs, low to high: [[w3a3,w4a4],[w8a8]]; an iteration draws one pair of each"
    )
    extra: tuple[str, ...] = key((), "pairs that are calibrated and usable, never drawn: [w2a4]")
    evaluate: tuple[str, ...] = key((), "pairs to evaluate; empty: all of groups and extra")


@dataclass(frozen=True, kw_only=True)
class ReconConfig(Schedule):
    name: str = key(help="of the schedule")


@dataclass(frozen=True, kw_only=True)
class MethodConfig(MethodKeys):
    name: str = key(help="under which the run is recorded")
    single_pair: bool = key(False, "learns one pair at a time")


@dataclass(frozen=True)
class TrainerConfig:
    name: str = key(help="of the option")
    accelerator: str = key("cpu", "Lightning's", choices=("cpu", "gpu", "cuda", "auto"))
    devices: int | str = key(1, "a number, or auto")
    num_nodes: int = key(1, "machines", least=1)
    strategy: str = key("auto", "Lightning's")
    deterministic: bool = key(True, "the same tensors for the same seed")
    threads: int | None = key(None, "of torch on a CPU; null: torch's own choice", least=1)
    compile: str = key(
        "auto",
        "torch.compile for the element-wise arithmetic of the fits; auto: on a CPU with a C++ compiler, where the fits "
        "are so long that it pays",
        choices=("auto", "always", "never"),
    )
    channels_last: str = key(
        "auto",
        "features of the fits lie in memory with their channels last, as a CPU's convolutions want them; auto: on a "
        "CPU; never where the network has a convolution whose gradient that breaks",
        choices=("auto", "always", "never"),
    )
    cache: str = key(
        "auto",
        "where the features of the calibration images are kept during the fits; auto: in memory where they take at "
        "most 70 % of what is free, else in files in the run's folder",
        choices=("auto", "memory", "disk"),
    )


@dataclass(frozen=True)
class FoldConfig:
    equalize: bool = key(
        False, "balance channel ranges over ReLU by a few images; the same function, easier to quantize"
    )
    reparam: bool = key(False, "one range for all channels behind a LayerNorm; likewise")
    rotate: bool = key(False, "spread large channels of queries, keys and values over their head; likewise")


@dataclass(frozen=True)
class ExportConfig:
    name: str = key(
        "none",
        "write the run's model for this runtime too; with artifact=DIR that one, without a run",
        choices=lambda: ("none", *backends()),
    )
    form: str = key(
        "static",
        "multi: one file for all widths, an input chooses; switchable: one graph, its weights are inputs (both onnx)",
        choices=forms,
    )
    packed: bool = key(True, "false: weights narrower than 8 bits take a byte each in a static file (onnx)")
    weights: str = key(
        "signed",
        "portable: exact on every processor, without any setting of the runtime",
        choices=WEIGHTS,
    )
    device: str | None = key(
        None, "the processor that export=ethosu compiles for, such as ethos-u85-512; null: ethos-u55-256"
    )
    bits: tuple[str, ...] = key((), "pairs and named assignments; empty: all")
    images: int = key(64, "of the calibration images: for ranges and the check", least=2)
    out: str | None = key(
        None,
        "null: model-NAME/ (model-onnx/) beside the run's model/; of artifact=DIR export/ in the run's folder",
    )


@dataclass(frozen=True)
class Config:
    """A run. The order is that of --help and of config.yaml."""

    model: ModelConfig = key(help="the network")
    data: DataConfig = key(help="calibration and evaluation images")
    bits: BitsConfig = key(help="the pairs of weight and activation bits, to learn and to evaluate")
    allocate: AllocateKeys = key(help="bits per layer under a budget")
    placement: Placement = key(help="which bits a layer may take, and which levels an activation")
    mixer: MixerKeys = key(help="how a block's input is mixed of features")
    loss: LossKeys = key(help="what the outputs at the drawn pairs are held against")
    rounding: RoundingKeys = key(help="which weight widths share rounding variables")
    step_size: StepSize = key(help="how the weight step sizes of the widths hang together")
    finetune: FinetuneKeys = key(help="training with labels, in place of a reconstruction")
    method: MethodConfig = key(help="what makes a method, and its options of the groups above")
    trainer: TrainerConfig = key(help="hardware")
    logger: LoggerKeys = key(help="where metrics go besides metrics.csv")
    export: ExportConfig = key(help="the model written for another runtime, or artifact=DIR without a run")
    recon: ReconConfig = key(help="the schedule of each fit")
    tune: TuneKeys = key(help="a last pass over the whole network: step sizes and biases by the error of its logits")
    fold: FoldConfig = key(help="what is done to the float network before it is cut")
    artifact: str | None = key(None, "folder of the artifact that is exported")
    seed: int = key(0, "of the calibration draw and of everything random in the fit", least=0, most=MOST_SEED)
    resume: bool = key(False, "continue behind the last finished block of the same command")
