"""Every key of a run: its type, default, range, choices and help, declared once (`runtime.keys.key`).

A group is a frozen dataclass; a field that was not made by ``key`` is no key. Hydra merges conf/ into what
`config.build` makes of them, the checks of `config.check`, --help and docs/configuration.md read them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ptmq_lightning.runtime.keys import key
from ptmq_lightning.runtime.spec import MAX_BITS, MIN_BITS


@dataclass(frozen=True)
class ModelConfig:
    name: str = key(help="of models/zoo.py, or any timm name")
    checkpoint: str | None = key(None, "safetensors or a plain state dict")
    pretrained: bool = key(True, "timm's weights where no checkpoint is given; false: random ones")
    num_classes: int | None = key(None, "classes that the network tells apart; null: its own number", least=1)
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
    seed: int = key(0, "of the evaluation subset: the same for every seed of the run")


@dataclass(frozen=True)
class BitsConfig:
    name: str = key(help="of the option")
    groups: tuple[tuple[str, ...], ...] = key(
        help="groups of pairs, low to high: [[w3a3,w4a4],[w8a8]]; an iteration draws one pair of each"
    )
    extra: tuple[str, ...] = key((), "pairs that are calibrated and usable, never drawn: [w2a4]")
    evaluate: tuple[str, ...] = key((), "pairs to evaluate; empty: all of groups and extra")


@dataclass(frozen=True)
class LayerOverride:
    pattern: str = key(help="shell pattern of layer names: blocks.0.*")
    w: int | None = key(None, "weight bits; null: as the edge rule has it", least=MIN_BITS, most=MAX_BITS)
    a: int | None = key(None, "activation bits; null: as the edge rule has it", least=MIN_BITS, most=MAX_BITS)


@dataclass(frozen=True)
class PlacementConfig:
    edge: str = key("qdrop", "which first and last layers stay at 8 bits", choices=("qdrop", "brecq", "8bit", "none"))
    softmax: int | None = key(
        8, "bits of the attention probabilities; null: the drawn pair's", least=MIN_BITS, most=MAX_BITS
    )
    gelu: str = key("uniform", "levels of what leaves a GELU, SiLU or the like", choices=("uniform", "table"))
    overrides: tuple[LayerOverride, ...] = key((), "layers at bits of their own; the first pattern that fits wins")


@dataclass(frozen=True)
class AllocateConfig:
    name: str = key("none", "how bits are chosen per layer under a budget", choices=("none", "greedy"))
    averages: tuple[float, ...] = key((3.0, 4.0, 5.0, 6.0), "average weight bits, an assignment each: mixed_4.0")
    sensitivity_images: int = key(32, "of the calibration images: what tells layers apart", least=1)


@dataclass(frozen=True)
class MixerConfig:
    name: str = key(help="how a block's input is mixed of features")
    p: float = key(0.5, "share of float features in the mix", least=0, most=1)
    weights: tuple[float, ...] = key((), "of the groups, low to high; empty: 0.4 and the rest in equal parts")


@dataclass(frozen=True)
class LossConfig:
    name: str = key(
        help="what the outputs at the drawn pairs are held against",
        choices=("gd_figure", "gd_direct", "gd_chain", "mse"),
    )
    weight: str = key("none", "of every squared error", choices=("none", "fim", "aph"))
    norm: str = key(
        "auto", "auto: token where blocks with attention are fitted without a weight", choices=("none", "token", "auto")
    )
    tokens: str = key(
        "fisher", "under the norm token: a token counts by what the logits mind, or even", choices=("fisher", "even")
    )
    gammas: tuple[float, ...] = key((1.0, 1.0, 1.0), "weights of gd_figure's terms, the mixture's first")
    chain_k: float = key(0.5, "gd_chain: share of the term against the next higher pair", least=0, most=1)
    stop_gradient: bool = key(False, "gd_figure: on the highest pair's output")


@dataclass(frozen=True)
class RoundingConfig:
    name: str = key(help="which weight widths share rounding variables")
    planes: tuple[tuple[int, ...], ...] = key((), "per_group: sets of weight widths")
    init_width: int = key(4, "whose fractions the rounding variables start from", least=MIN_BITS, most=MAX_BITS)
    rate: float = key(1.0, "factor on recon.lr_rounding", least=0)


@dataclass(frozen=True)
class StepSizeConfig:
    name: str = key(help="how the weight step sizes of the widths hang together")
    anchor: int = key(4, "nested: the width that the others are tied to", least=MIN_BITS, most=MAX_BITS)
    free_widths: tuple[int, ...] = key((), "nested: weight widths that are not tied")
    learn: bool = key(False, "learn the weight step sizes of the drawn pairs")
    p: float = key(2.4, "norm of the error in the search of the step sizes", least=0)


@dataclass(frozen=True)
class ReconConfig:
    name: str = key(help="of the schedule")
    iters: int = key(500, "of the fit of each block, or layer", least=1)
    activation_iters: int | None = key(
        None, "of the second phase (method.activation); null: a quarter of iters", least=1
    )
    batch: int = key(32, "images of an iteration", least=1)
    lr_rounding: float = key(1e-2, "Adam's rate for rounding variables", least=0)
    lr_activation: float = key(1e-3, "of the logarithm of activation step sizes", least=0)
    lr_weight_step_size: float = key(1e-3, "of the logarithm of weight step sizes", least=0)
    lambda_rounding: float = key(0.01, "weight of the rounding regularizer", least=0)
    warmup: float = key(0.2, "share of the iterations without the regularizer", least=0, most=1)
    beta_start: float = key(20.0, "exponent of the regularizer after the warmup", least=0)
    beta_end: float = key(2.0, "and in the end", least=0)
    log_every: int = key(50, "iterations between two lines of metrics.csv", least=1)


@dataclass(frozen=True)
class FinetuneConfig:
    name: str = key(
        "none",
        "training with labels, of the method of that name",
        choices=("none", "any_precision", "multiquant", "robustquant"),
    )
    epochs: int = key(10, "over the calibration images", least=1)
    batch: int = key(32, "images of a step", least=1)
    lr: float = key(1e-3, "of weights, biases and norms", least=0)
    lr_step_size: float = key(
        1e-3, "of log step sizes: multiquant's, those of any_precision's first and last layer", least=0
    )
    weight_decay: float = key(1e-4, "AdamW's, of weights alone", least=0)
    crop: int = key(0, "random shifts of up to so many pixels", least=0)
    flip: bool = key(False, "random mirror images")
    kurtosis_weight: float = key(1.0, "robustquant: of its regularizer", least=0)
    statistics_images: int = key(512, "multiquant: calibration images for the norms after a switch", least=1)
    log_every: int = key(20, "steps between two lines of metrics.csv", least=1)


@dataclass(frozen=True)
class MethodConfig:
    name: str = key(help="under which the run is recorded")
    single_pair: bool = key(False, "learns one pair at a time")
    unit: str = key("block", "what one fit is about; layer: with its activation function", choices=("block", "layer"))
    quantize: str = key(
        "all",
        "what is quantized while rounding is learned, in the unit and before it; weights: activations stay in float",
        choices=("all", "weights"),
    )
    activation: str = key(
        "joint",
        "activation step sizes: learned with rounding, as calibrated, or learned alone after it",
        choices=("joint", "fixed", "second_phase"),
    )
    drop: float = key(0.5, "share of activations that pass unquantized inside the unit", least=0, most=1)
    bias_correction: bool = key(
        False, "take the mean error of a layer's rounding off its bias, a bias per weight width"
    )


@dataclass(frozen=True)
class TrainerConfig:
    name: str = key(help="of the option")
    accelerator: str = key("cpu", "Lightning's", choices=("cpu", "gpu", "cuda", "auto"))
    devices: int | str = key(1, "a number, or auto")
    num_nodes: int = key(1, "machines", least=1)
    strategy: str = key("auto", "Lightning's")
    deterministic: bool = key(True, "the same tensors for the same seed")
    threads: int | None = key(None, "of torch on a CPU; null: torch's own choice", least=1)


@dataclass(frozen=True)
class LoggerConfig:
    name: str = key(help="besides metrics.csv", choices=("csv", "wandb", "tensorboard"))
    mode: str = key("online", "of wandb", choices=("online", "offline", "disabled"))
    project: str = key("ptmq", "of wandb")
    entity: str | None = key(None, "of wandb")
    group: str | None = key(None, "of wandb; null: the runs of one sweep together")
    run_name: str | None = key(None, "of wandb; null: the run folder's name")
    tags: tuple[str, ...] = key((), "of wandb")


@dataclass(frozen=True)
class FoldConfig:
    equalize: bool = key(False, "balance channel ranges over ReLU; the same function, easier to quantize")
    reparam: bool = key(False, "one range for all channels behind a LayerNorm; likewise")


@dataclass(frozen=True)
class ExportConfig:
    name: str = key("none", "no run, the artifact is written for this runtime", choices=("none", "onnx", "openvino"))
    form: str = key("static", "switchable: one graph for all widths (onnx)", choices=("static", "switchable"))
    weights: str = key(
        "signed",
        "portable: exact on every processor, without any setting of the runtime",
        choices=("signed", "portable"),
    )
    bits: tuple[str, ...] = key((), "pairs and named assignments; empty: all")
    images: int = key(64, "of the calibration images: for ranges and the check", least=2)
    out: str | None = key(None, "null: export/ in the run's folder")


@dataclass(frozen=True)
class Config:
    """A run. The order is that of --help and of config.yaml."""

    model: ModelConfig = key(help="the network")
    data: DataConfig = key(help="calibration and evaluation images")
    bits: BitsConfig = key(help="the pairs of weight and activation bits, to learn and to evaluate")
    allocate: AllocateConfig = key(help="bits per layer under a budget")
    placement: PlacementConfig = key(help="which bits a layer may take, and which levels an activation")
    mixer: MixerConfig = key(help="how a block's input is mixed of features")
    loss: LossConfig = key(help="what the outputs at the drawn pairs are held against")
    rounding: RoundingConfig = key(help="which weight widths share rounding variables")
    step_size: StepSizeConfig = key(help="how the weight step sizes of the widths hang together")
    finetune: FinetuneConfig = key(help="training with labels, in place of a reconstruction")
    method: MethodConfig = key(help="what makes a method, and its options of the groups above")
    trainer: TrainerConfig = key(help="hardware")
    logger: LoggerConfig = key(help="where metrics go besides metrics.csv")
    export: ExportConfig = key(help="no run, but artifact=DIR written for a runtime")
    recon: ReconConfig = key(help="the schedule of each fit")
    fold: FoldConfig = key(help="what is done to the float network before it is cut")
    artifact: str | None = key(None, "folder of the artifact that is exported")
    seed: int = key(0, "of the calibration draw and of everything random in the fit")
    resume: bool = key(False, "continue behind the last finished block of the same command")
