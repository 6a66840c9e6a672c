"""Nothing typed is ignored: what no part of a run reads is refused, what a later choice replaces is said."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config.declared import every_key
from ptmq_lightning.config.options import groups
from ptmq_lightning.config.reads import RULES
from ptmq_lightning.config.schema import Config
from ptmq_lightning.runtime.errors import ConfigError


@pytest.fixture(autouse=True)
def data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTMQ_DATA", "DIR")


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configuration(overrides)
    return str(caught.value)


def said(caplog: pytest.LogCaptureFixture, *overrides: str) -> list[str]:
    """The log of a command."""
    with caplog.at_level(logging.INFO):
        configuration(overrides)
    return caplog.messages


@pytest.mark.parametrize(
    ("command", "because"),
    [
        ("loss.gammas=[1]", "loss=gd_direct"),
        ("loss.chain_k=0.1", "loss=gd_direct"),
        ("loss.tokens=even loss=fim", "loss.weight=fim"),
        ("step_size.anchor=3", "step_size=free"),
        ("rounding.planes=[[2,4]] rounding=shared", "rounding=shared"),
        ("recon.warmup=0.1 rounding=ste", "rounding=ste"),
        ("recon.iters=9 method=rtn", "rounding=nearest and tune.iters=0"),
        ("tune.rate=0.1 method=qdrop", "tune.iters=0"),
        ("tune.iters=9 method=rtn", "rounding=nearest and method.bias_correction=none"),
        ("tune.iters=9 method=multiquant", "finetune=multiquant"),
        ("recon.batch=9 method=rtn", "rounding=nearest and method.bias_correction=none"),
        ("recon.iters=9 method=multiquant", "finetune=multiquant"),
        ("recon.lr_weight_step_size=1 method=qdrop", "step_size.learn=false"),
        ("recon.lr_activation=1 method=adaround", "method.activation=fixed"),
        ("recon.activation_iters=9", "method.activation=joint"),
        ("allocate.activations=free allocate=milp method=any_precision", "finetune=any_precision"),
        ("mixer.p=0.1 mixer=float", "mixer=float"),
        ("mixer.weights=[0.1,0.2,0.3,0.4]", "loss=gd_direct and mixer=matched"),
        ("allocate.averages=[4]", "allocate=none"),
        ("finetune.epochs=3", "finetune=none"),
        ("finetune.kurtosis_weight=3 method=multiquant", "finetune=multiquant"),
        ("logger.project=mine", "logger=csv"),
        ("export.images=9", "export=none"),
        ("artifact=DIR", "export=none"),
        ("export.packed=false export=onnx export.form=multi artifact=DIR", "export.form=multi"),
        ("export.packed=false export=openvino artifact=DIR", "export=openvino"),
        ("placement.deploy=onnx method=any_precision", "finetune=any_precision"),
        ("recon.iters=9 export=onnx artifact=DIR", "export=onnx and artifact=DIR"),
        ("data.calibration_images=9 export=onnx artifact=DIR", "export=onnx and artifact=DIR"),
    ],
)
def test_a_key_that_the_run_does_not_read_is_refused_with_the_choice_that_leaves_it_unread(
    command: str, because: str
) -> None:
    first, *others = command.split()
    assert message(first, *others).startswith(f"{first} would change nothing: with {because} nothing reads it; ")


@pytest.mark.parametrize(
    "command",
    [
        "loss.gammas=[1] loss=gd_figure", "loss.chain_k=0.1 loss=gd_chain", "step_size.anchor=3 step_size=nested",
        "rounding.planes=[[2,4]]", "recon.batch=9 method=rtn method.bias_correction=after",
        "recon.activation_iters=9 method=brecq", "mixer.weights=[0.1,0.2,0.3,0.4] mixer=case3",
        "mixer.weights=[0.1,0.2,0.3,0.4] loss=gd_figure", "allocate.averages=[4] allocate=greedy",
        "finetune.epochs=3 method=robustquant", "placement.deploy=onnx method=robustquant",
        "logger.project=mine logger=wandb",
        "export.images=9 export=onnx artifact=DIR", "recon.iters=9 export=onnx",
    ],
)  # fmt: skip
def test_the_same_key_is_taken_where_something_reads_it(command: str) -> None:
    configuration(command.split())


def test_a_rule_names_keys_and_choices_that_exist() -> None:
    keys, options = [key for key, _, _ in every_key(Config)], groups()
    for rule in RULES:
        assert all(any(rule_key(pattern, key) for key in keys) for pattern in rule.keys), rule
        for key in rule.where:
            assert key in keys
            if key.endswith(".name"):
                known = options[key.removesuffix(".name")]
                assert [value for value in rule.values(key) if value not in known] == [], rule


def rule_key(pattern: str, key: str) -> bool:
    return key == pattern or ("*" in pattern and key.startswith(pattern.split("*")[0]))


def test_an_option_that_changes_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, "method=rtn", "recon=fast") == [
        "recon=fast changes nothing in this run: with rounding=nearest and method.bias_correction=none nothing reads it"
    ]


def test_what_an_experiment_takes_from_a_typed_method_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, "experiment=ablation_mixer", "method=ptmq_paper") == [
        "step_size=nested of experiment=ablation_mixer replaces step_size=free of method=ptmq_paper; for that, say "
        "step_size=free"
    ]


@pytest.mark.parametrize(
    "command",
    [
        "method=ptmq_paper", "experiment=cifar_resnet20 method=ptmq_paper", "method=qdrop bits=w3a3",
        "experiment=imagenet_vit_t recon=smoke", "method=ptmq step_size.learn=false", "bits=mixed allocate=none",
        "experiment=imagenet_mobileone method=ptmq_paper bits=thirds",
    ],
)  # fmt: skip
def test_what_is_typed_replaces_without_a_word(command: str, caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, *command.split()) == []


def test_a_typed_number_of_images_wins_over_the_schedules() -> None:
    assert configuration(["recon=brief"]).data.calibration_images == 256
    assert configuration(["recon=brief", "data.calibration_images=1024"]).data.calibration_images == 1024


@pytest.mark.parametrize("override", ["finetune.name=multiquant", "finetune=multiquant"])
def test_a_training_without_its_method_is_refused(override: str) -> None:
    assert message(override).startswith(
        "finetune=multiquant is not what method=ptmq trains with; set method=multiquant"
    )


def test_a_method_that_trains_is_refused_without_its_training() -> None:
    assert message("method=multiquant", "finetune=none").startswith(
        "finetune=none is not what method=multiquant trains"
    )


@pytest.mark.parametrize("weights", ["[0.4,0.3,0.3]", "[0.5,0.3,0.2]"])
def test_weights_of_another_number_of_groups_are_refused_always(weights: str) -> None:
    assert message("mixer=case3", f"mixer.weights={weights}").endswith("; expected a number per group, low to high")


@pytest.mark.parametrize(
    "override",
    ["bits.groups=[[[3,3],[4,4]],[[8,8]]]", "bits.groups=[[3,3]]", "bits.groups=[[3]]", "bits.extra=[[2,4]]"],
)
def test_pairs_of_numbers_are_answered_with_their_names(override: str) -> None:
    text = message(override)
    assert text.startswith(override.split("=")[0])
    assert text.endswith("write pairs by name: bits.groups=[[w3a3,w4a4],[w8a8]] bits.extra=[w2a4]")


def test_the_root_file_shows_no_value_that_the_default_run_does_not_have() -> None:
    root = (Path(__file__).resolve().parents[2] / "conf" / "config.yaml").read_text()
    assert "gelu" not in root
    assert configuration().placement.gelu == "table"
    assert {name for name, value in dataclasses.asdict(configuration()).items() if value is None} == {"artifact"}
