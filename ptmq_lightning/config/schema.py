"""Every key of a run with its type and default.

Hydra merges conf/ into these dataclasses, so that a wrong type and an unknown key are errors. What types cannot express
stands in `config.check`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ModelConfig:
    name: str = MISSING  # of models/zoo.py, or any timm name
    checkpoint: str | None = None  # safetensors or a plain state dict
    pretrained: bool = True  # timm's weights where no checkpoint is given; false: random ones
    num_classes: int | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)  # of the network: +model.kwargs.img_size=32
    preprocessing: dict[str, Any] = field(default_factory=dict)  # values other than the network's own


@dataclass
class DataConfig:
    name: str = MISSING
    root: str | None = None  # holds train.tar or train/ or calib.tar, val.tar or val/, class_map.txt
    train: str | None = None  # calibration source: a folder of class folders, a tar of them, hfds/NAME:SPLIT
    val: str | None = None  # evaluation source, likewise
    class_map: str | None = None  # text file, a class folder's name a line
    val_images: int | None = None  # a seeded subset; all where null
    calibration_images: int = 1024
    step_size_images: int = 256  # of the calibration images: for the search of the step sizes
    eval_batch: int = 100
    workers: int = 0  # processes that decode evaluation images
    seed: int = 0  # of the evaluation subset: the same for every seed of the run


@dataclass
class LayerOverride:
    pattern: str = MISSING  # shell pattern of layer names: "blocks.0.*"
    w: int | None = None  # pinned weight width
    a: int | None = None  # pinned activation width


@dataclass
class BitsConfig:
    name: str = MISSING
    groups: list[list[list[int]]] = MISSING  # groups of [w, a], low to high; one pair of each is drawn per step
    extra: list[list[int]] = field(default_factory=list)  # [w, a] calibrated and usable, never drawn
    evaluate: list[str] = MISSING  # names such as w4a8
    mixed_averages: list[float] = field(default_factory=list)  # average weight bits of per-layer assignments
    sensitivity_images: int = 32  # of the calibration images, for those assignments
    w: int | None = None  # bits=pair: weight bits of the one pair
    a: int | None = None  # bits=pair: activation bits of the one pair
    edge: str = "qdrop"  # first and last layer: qdrop, brecq, 8bit, none
    softmax: int | None = 8  # width of the attention probabilities; null: the drawn width
    overrides: list[LayerOverride] = field(default_factory=list)  # the first pattern that fits wins


@dataclass
class MixerConfig:
    name: str = MISSING
    p: float = 0.5  # share of float features in the mix
    # of the groups, low to high; for another number than three the default is 0.4 and the rest in equal parts
    weights: list[float] = field(default_factory=lambda: [0.4, 0.3, 0.3])


@dataclass
class LossConfig:
    name: str = MISSING
    form: str = "${loss.name}"  # gd_figure, gd_direct, gd_chain, mse
    weight: str = "none"  # of every squared error: none, fim, aph
    norm: str = "auto"  # none, token, auto: token where there is attention and no weight
    tokens: str = "fisher"  # under the norm token: fisher (a token counts by what the logits mind), even
    gammas: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])  # gd_figure
    chain_k: float = 0.5  # gd_chain
    stop_gradient: bool = False  # gd_figure: on the widest width's output


@dataclass
class RoundingConfig:
    name: str = MISSING
    planes: list[list[int]] = field(default_factory=list)  # per_group: sets of weight widths
    init_width: int = 4  # whose fractions the rounding variables start from
    rate: float = 1.0  # factor on recon.lr_rounding


@dataclass
class StepSizeConfig:
    name: str = MISSING
    anchor: int = 4  # nested: the width the others are tied to
    free_widths: list[int] = field(default_factory=list)  # nested: weight widths that are not tied
    learn: bool = False  # the weight steps of the drawn widths
    p: float = 2.4  # norm of the error in the search of the steps


@dataclass
class ReconConfig:
    name: str = MISSING
    iters: int = MISSING  # iterations per block
    batch: int = 32
    lr_rounding: float = 1e-2
    lr_activation: float = 1e-3  # of the logarithm of the step
    lr_weight_step_size: float = 1e-3  # of the logarithm of the step
    lambda_rounding: float = 0.01
    warmup: float = 0.2  # share of the iterations without the rounding regularizer
    beta_start: float = 20.0
    beta_end: float = 2.0
    drop: float = 0.5  # share of activations that pass unquantized inside the block
    bias_correction: bool = False  # the mean error of a layer's rounding off its bias, a bias per weight width
    unit: str = "block"  # what one fit is about: block, or layer (with its activation function)
    quantize: str = "all"  # while rounding is learned, in the unit and before it: all, weights (activations in float)
    activation: str = "joint"  # the steps: joint (learned with rounding), fixed, second_phase (learned alone after it)
    activation_iters: int | None = None  # of the second phase, per unit; null: a quarter of iters
    log_every: int = 50
    calibration_images: int | None = None  # at most so many of data.calibration_images


@dataclass
class MethodConfig:
    name: str = MISSING
    single_pair: bool = False  # learns one pair of widths at a time


@dataclass
class TrainerConfig:
    name: str = MISSING
    accelerator: str = "cpu"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    deterministic: bool = True
    threads: int | None = None  # of torch on a CPU; null: torch's own choice


@dataclass
class LoggerConfig:
    name: str = MISSING
    mode: str = "online"  # wandb: online, offline, disabled
    project: str = "ptmq"
    entity: str | None = None
    group: str | None = None  # null: the runs of one sweep together
    run_name: str | None = None  # null: the run folder's name
    tags: list[str] = field(default_factory=list)


@dataclass
class FoldConfig:
    equalize: bool = False  # balance channel ranges over ReLU
    reparam: bool = False  # one range for all channels behind a LayerNorm


@dataclass
class QuantConfig:
    gelu: str = "uniform"  # levels of what leaves a GELU, SiLU or the like: uniform, table


@dataclass
class FinetuneConfig:
    name: str = "none"  # training with labels: none, any_precision, multiquant, robustquant
    epochs: int = 10
    batch: int = 32
    lr: float = 1e-3  # of weights, biases and norms
    lr_step_size: float = 1e-3  # of the logarithm of the steps: multiquant; of first and last layer: any_precision
    weight_decay: float = 1e-4
    crop: int = 0  # random shifts of up to so many pixels
    flip: bool = False  # random mirror images
    kurtosis_weight: float = 1.0  # robustquant
    statistics_images: int = 512  # of the calibration images, for norms after a switch: multiquant
    log_every: int = 20


@dataclass
class ExportConfig:
    name: str = "none"  # onnx, openvino: no run, the artifact is written for this runtime
    form: str = "static"  # switchable: one graph for all widths (onnx)
    weights: str = "signed"  # portable: exact on every processor, without any setting of the runtime
    bits: list[str] = field(default_factory=list)  # widths and named assignments; all where empty
    images: int = 64  # of the calibration images: for ranges and the check
    out: str | None = None  # null: export/ in the run's folder


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    bits: BitsConfig = field(default_factory=BitsConfig)
    mixer: MixerConfig = field(default_factory=MixerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    rounding: RoundingConfig = field(default_factory=RoundingConfig)
    step_size: StepSizeConfig = field(default_factory=StepSizeConfig)
    recon: ReconConfig = field(default_factory=ReconConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    fold: FoldConfig = field(default_factory=FoldConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    artifact: str | None = None  # folder of the artifact that is exported
    seed: int = 0
    resume: bool = False


def register() -> None:
    """Make the schema known to Hydra under the name that conf/config.yaml lists first."""
    ConfigStore.instance().store(name="schema", node=Config)
