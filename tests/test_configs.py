"""Every option composes, presets give way to explicit options, and wrong names are answered with the right ones."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from ptmq_lightning.compose import cli
from ptmq_lightning.compose.cli import configuration, explain, main, with_dashes
from ptmq_lightning.compose.words import PATHS, quoted_paths, run_label, run_name
from ptmq_lightning.config.declared import every_key
from ptmq_lightning.config.schema import Config
from ptmq_lightning.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted((ROOT / "conf").iterdir())
    if folder.is_dir() and not folder.name.startswith("_")
}
NEEDED = {
    "model=timm": ["model.name=resnet34"], "model=own": ["model.name=mine.py:Net"],
    **{f"export={name}": ["artifact=DIR"] for name in ("coreml", "ethosu", "litert", "onnx", "openvino", "qonnx")},
    **{f"finetune={baseline}": [f"method={baseline}"] for baseline in ("any_precision", "multiquant", "robustquant")},
}  # fmt: skip
UNNAMED = ("experiment", "placement")  # whose options are no key


@pytest.fixture(autouse=True)
def data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTMQ_DATA", "DIR")


def command(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, in ``folder``; PTMQ_DATA is set only where given."""
    inherited = {key: value for key, value in os.environ.items() if key != "PTMQ_DATA"}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configuration(overrides)
    return str(caught.value)


def test_the_groups_are_those_of_the_design() -> None:
    assert set(GROUPS) == {
        "model", "data", "bits", "allocate", "placement", "mixer", "loss", "rounding", "step_size", "recon", "method",
        "finetune", "trainer", "logger", "export", "experiment",
    }  # fmt: skip


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in GROUPS[group]])
def test_every_option_composes_and_knows_its_name(group: str, option: str) -> None:
    config = configuration([f"{group}={option}", *NEEDED.get(f"{group}={option}", [])])
    if group == "placement":
        assert config.placement.edge == option
    elif option in ("fim", "aph"):
        assert (config.loss.name, config.loss.weight) == ("gd_direct", option)
    elif group != "experiment" and option not in ("timm", "own"):
        assert getattr(config, group).name == option


def chosen(config: Config, group: str) -> str:
    """The option that a configuration has."""
    name = getattr(config, group).name
    return config.loss.weight if group == "loss" and config.loss.weight != "none" else str(name)


METHOD_GROUPS = ("method", "mixer", "loss", "rounding", "step_size")


def covering() -> list[tuple[str, ...]]:
    """Combinations of options, a hundred of thousands, in which every two options of two groups stand together."""
    every = [tuple(itertools.combinations(zip(METHOD_GROUPS, options, strict=True), 2))
             for options in itertools.product(*(GROUPS[group] for group in METHOD_GROUPS))]  # fmt: skip
    left, chosen = set(itertools.chain.from_iterable(every)), []
    for least in range(len(every[0]), 0, -1):  # first those that bring only new pairs, at last those that bring one
        for pairs in every:
            if len(left.intersection(pairs)) >= least:
                left.difference_update(pairs)
                chosen.append(tuple(dict(itertools.chain.from_iterable(pairs)).values()))
    return chosen


def test_every_pair_of_options_of_the_method_groups_composes_as_asked() -> None:
    for options in covering():
        config = configuration([f"{group}={option}" for group, option in zip(METHOD_GROUPS, options, strict=True)])
        assert tuple(chosen(config, group) for group in METHOD_GROUPS) == options


SINGLE = ("adaround", "brecq", "qdrop", "flexround", "genie")


@pytest.mark.parametrize("method", SINGLE)
def test_a_single_pair_method_takes_one_pair_anywhere_in_the_command(method: str) -> None:
    assert configuration([f"method={method}"]).bits.groups == (("w4a4",),)
    for overrides in (["bits=w3a3", f"method={method}"], [f"method={method}", "bits=w3a3"]):
        config = configuration(overrides)
        assert (config.bits.groups, config.bits.evaluate) == ((("w3a3",),), ("w3a3",))


@pytest.mark.parametrize("experiment", ["cifar_resnet20", "cifar_vit", "imagenet_vit_t", "imagenet_mobileone"])
def test_an_experiment_takes_one_pair_too(experiment: str) -> None:
    config = configuration([f"experiment={experiment}", "method=qdrop", "bits=w4a6"])
    assert (config.bits.groups, config.bits.evaluate, config.bits.extra) == ((("w4a6",),), ("w4a6",), ())


def test_any_pair_is_an_option() -> None:
    config = configuration(["method=qdrop", "bits=w3a7"])
    assert (config.bits.name, config.bits.groups, config.bits.evaluate) == ("w3a7", (("w3a7",),), ("w3a7",))


def test_a_single_pair_method_refuses_several_pairs() -> None:
    text = message("method=qdrop", "bits=uniform")
    assert text.startswith("method=qdrop learns one pair of widths at a time, but bits.groups holds 7; set bits=w2a4")


def test_activation_steps_cannot_be_learned_where_activations_stay_in_float() -> None:
    assert message("method.quantize=weights") == (
        "method.quantize=weights leaves activations in float, so that method.activation=joint has nothing to "
        "learn; set method.activation=fixed or second_phase, or method.quantize=all"
    )


def test_methods_that_learn_have_the_same_number_of_steps_per_unit() -> None:
    steps = {configuration([f"method={method}", "recon=fast"]).recon.iters for method in (*SINGLE, "ptmq")}
    assert steps == {500}


def test_a_method_chooses_the_options_of_its_groups() -> None:
    config = configuration(["method=ptmq_paper"])
    chosen = (config.mixer.name, config.loss.name, config.rounding.name, config.step_size.name, config.step_size.learn)
    assert chosen == ("case3", "gd_figure", "shared", "free", False)


def test_an_explicit_option_wins_over_the_method_wherever_it_stands() -> None:
    for overrides in (["mixer=none", "method=ptmq_paper"], ["method=ptmq_paper", "mixer=none"]):
        config = configuration(overrides)
        assert (config.mixer.name, config.loss.name) == ("none", "gd_figure")


def test_an_explicit_method_wins_in_an_experiment() -> None:
    config = configuration(["experiment=cifar_resnet20", "method=ptmq_paper"])
    assert (config.model.name, config.method.name, config.mixer.name) == ("cifar_resnet20", "ptmq_paper", "case3")


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
def test_an_explicit_recon_wins_in_an_experiment(experiment: str) -> None:
    smoke, found = configuration(["recon=smoke"]), configuration([f"experiment={experiment}", "recon=smoke"])
    assert (found.recon, found.data.calibration_images) == (smoke.recon, smoke.data.calibration_images)


def test_a_loss_is_a_form_with_or_without_a_weight() -> None:
    asked = (["loss=mse"], ["loss=fim"], ["loss=gd_figure", "loss.weight=aph"], ["loss=gd_chain", "loss.weight=aph"])
    losses = [configuration(overrides).loss for overrides in asked]
    assert [(loss.name, loss.weight) for loss in losses] == [
        ("mse", "none"), ("gd_direct", "fim"), ("gd_figure", "aph"), ("gd_chain", "aph"),
    ]  # fmt: skip


def test_an_explicit_key_wins_over_the_method() -> None:
    assert configuration(["step_size.learn=false"]).step_size.learn is False


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "experiment"])
def test_an_unknown_option_is_answered_with_the_nearest_ones(group: str) -> None:
    wanted = GROUPS[group][-1]
    wrong = wanted + "x"
    text = message(f"{group}={wrong}")
    assert text.startswith(f"{group}={wrong} is no option (nearest: {wanted}")
    pairs = " or any pair w2a2 to w8a8" if group == "bits" else ""
    assert text.endswith(f"; expected {group}={'|'.join(GROUPS[group])}{pairs}")


def test_an_unknown_key_is_answered_with_the_nearest_ones_and_its_siblings() -> None:
    assert message("step_size.anker=3") == (
        "step_size.anker is no key (nearest: step_size.anchor); the keys of step_size are name, anchor, free_widths, "
        "learn, p, zero_points"
    )


def test_an_unknown_group_is_answered_with_the_nearest_one() -> None:
    assert message("mixr=case3") == (
        "mixr is no key (nearest: mixer); the groups and keys are model, data, bits, allocate, placement, mixer, loss, "
        "rounding, step_size, finetune, method, trainer, logger, export, recon, tune, fold, artifact, seed, resume, "
        "experiment"
    )


def test_a_key_without_its_group_is_answered_with_the_whole_key() -> None:
    assert message("iters=100").startswith("iters is no key (nearest: recon.iters, tune.iters); ")


def test_a_key_that_nothing_reads_cannot_be_added() -> None:
    assert message("+recon.iterz=1").startswith("recon.iterz is no key (nearest: recon.iters); ")


def test_an_option_of_the_network_can_be_added() -> None:
    assert configuration(["+model.kwargs.img_size=32"]).model.kwargs == {"img_size": 32}


def test_what_has_a_key_of_its_own_is_no_option_of_the_network() -> None:
    assert message("+model.kwargs.num_classes=10") == (
        "model.kwargs.num_classes is a key of its own; set model.num_classes=10"
    )


def test_an_own_network_names_its_options_as_it_likes() -> None:
    own = ["model=own", "model.name=net.py:Net", "+model.kwargs.classes=5"]
    assert configuration(own).model.kwargs == {"classes": 5}
    assert "set model.num_classes=5" in message(*own, "+model.kwargs.num_classes=5")


@pytest.mark.parametrize("option", ["bits=4", "mixer=1.5", "loss=true", "export=null"])
def test_an_option_that_is_no_word_is_answered_with_the_words(option: str) -> None:
    group = option.split("=")[0]
    assert message(option).startswith(f"{option} is no option") and f"expected {group}=" in message(option)


def test_a_path_in_place_of_an_option_is_answered_with_the_key_for_paths() -> None:
    assert message("model=./net.py:Net").startswith("model=./net.py:Net is no option; expected model=cifar_resnet20|")
    assert "model.name=FILE.py:NAME" in message("model=./net.py:Net")
    assert "data.root=DIR" in message("data=/home/me/photos")


def test_values_that_commas_separate_are_a_sweep() -> None:
    assert "python train.py -m mixer=none,case3;" in message("mixer=none,case3")


def test_a_setting_that_is_written_as_a_flag_is_answered_with_its_form() -> None:
    assert with_dashes(["-m", "--bits", "w4a4"]) == ("--bits", "bits=w4a4")
    assert with_dashes(["--recon.iters=5"]) == ("--recon.iters=5", "recon.iters=5")
    assert with_dashes(["--mixer", "seed=1"]) == ("--mixer", "mixer=VALUE")
    assert with_dashes(["--cfg", "job", "-m", "--resolve", "mixer=none"]) is None


def test_the_command_runs_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def task(config: Any) -> None:
        found.append(config)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_task", task)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # main sets it; restored afterwards
    main()
    assert [config.method.name for config in found] == ["ptmq"]


def test_a_value_of_the_wrong_type_names_key_and_value() -> None:
    assert message("recon.iters=many") == (
        "Error merging override recon.iters=many; Value 'many' of type 'str' could not be converted to Integer"
    )


def test_a_value_outside_its_choices_is_answered_with_them() -> None:
    assert message("placement.edge=qdrob") == (
        "placement.edge=qdrob is not known (nearest: qdrop); expected qdrop, brecq, 8bit, none"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("recon.iters=0", "recon.iters=0 is out of range; expected 1 or more"),
        ("mixer.p=1.5", "mixer.p=1.5 is out of range; expected 0 to 1"),
        ("placement.softmax=9", "placement.softmax=9 is out of range; expected 2 to 8"),
        ("placement.overrides=[{pattern:fc,w:16}]", "placement.overrides[0].w=16 is out of range; expected 2 to 8"),
    ],
)
def test_a_number_out_of_range_is_answered_with_the_range(override: str, expected: str) -> None:
    assert message(override) == expected


def test_attention_probabilities_may_follow_the_drawn_width() -> None:
    assert configuration(["placement.softmax=null"]).placement.softmax is None


def test_a_wrong_key_of_an_item_is_answered_with_the_right_ones() -> None:
    assert message("placement.overrides=[{patern:fc,w:4}]") == (
        "patern is no key of placement.overrides; its items have the keys pattern, w, a"
    )


def test_a_key_that_must_be_added_says_so() -> None:
    assert message("model.preprocessing={crop_pct:0.9}") == (
        "model.preprocessing has no key crop_pct to be replaced; add it as +model.preprocessing.crop_pct=..."
    )


def test_every_pair_is_evaluated_narrow_to_wide_where_none_is_named() -> None:
    assert configuration(["bits=vit_low"]).bits.evaluate == (
        "w2a4", "w3a3", "w4a4", "w4a6", "w4a8", "w5a5", "w6a6", "w8a8",
    )  # fmt: skip
    assert configuration(["bits.groups=[[w3a3,w4a4],[w8a8]]"]).bits.evaluate == ("w3a3", "w4a4", "w8a8")


def test_an_average_below_the_narrowest_pair_is_refused_before_anything_is_learned() -> None:
    assert message("bits=vit", "allocate=greedy", "allocate.averages=[3]").startswith(
        "allocate.averages asks for 3 weight bits on average, but the narrowest pair has 4; ask for more"
    )


def test_a_width_to_evaluate_must_be_prepared() -> None:
    assert message("bits=vit", "bits.evaluate=[w4a8]") == (
        "bits.evaluate names w4a8, which is in no group (nearest: w8a8, w4a6, w7a7); expected some of w4a6, w5a6, "
        "w6a6, w7a7, w8a8: add the pair to bits.groups or bits.extra"
    )


def test_an_extra_pair_may_not_stand_in_a_group_too() -> None:
    assert message("bits.extra=[w4a4]") == "w4a4 of bits.extra stands more than once in bits; expected it once"


def test_model_timm_wants_a_name() -> None:
    assert message("model=timm") == "model.name has no value; set it: model.name=..."


def test_an_experiment_without_its_data_folder_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PTMQ_DATA")
    assert message("experiment=cifar_resnet20") == (
        "the environment variable PTMQ_DATA is not set; this experiment reads its images and weights below the folder "
        "it names (cifar10/, imagenet/): PTMQ_DATA=DIR python train.py experiment=..."
    )


def test_a_run_name_follows_from_the_overrides_and_not_from_resume() -> None:
    choices = {"model": "vit_t", "experiment": None}
    assert run_name(choices, ["model=vit_t"]) == "vit_t/default"
    assert run_name(choices, ["model=vit_t", "seed=1", "resume=true"]) == "vit_t/seed-1"
    assert run_name({"model": "vit_t", "experiment": "figure"}, ["experiment=figure", "seed=1"]) == "figure/seed-1"


def test_run_names_of_different_commands_differ() -> None:
    choices = {"model": "vit_t"}
    commands = [["data.root=/a/b"], ["data.root=/a-b"], ["data.root=-a-b"], ["bits.groups=[[w3a3]]"], ["data.root=a=b"],
                ["bits.groups=[[w3a4]]"], ["x=" + "y" * 300], ["x=" + "y" * 301], ["seed=1"], ["seed=-1"],
                ["x=1_seed-0"], ["x=1", "seed=0"], ["x=1-2_seed-0"], ["x=1-2", "seed=0"], ["x=a-"], ["x=a"],
                ["x=ä"], ["x=ö"], ["~x"], ["x="]]  # fmt: skip
    names = [run_name(choices, command) for command in commands]
    assert len(set(names)) == len(commands)
    assert all("/" not in name.removeprefix("vit_t/") and len(name) < 200 for name in names)


def test_lines_of_a_sweep_begin_with_the_jobs_number_and_those_of_a_single_run_with_nothing() -> None:
    layout = OmegaConf.load(ROOT / "conf" / "config.yaml").hydra.job_logging.formatters.simple
    OmegaConf.register_new_resolver("run_label", run_label, replace=True)
    for job, label in (({"num": 3}, "#3 "), ({"num": "???"}, ""), ({}, "")):
        whole = OmegaConf.create({"hydra": {"job": job}, "format": layout._get_node("format")._value()})
        assert whole.format == f"%(asctime)s {label}%(message)s"


def test_run_names_need_no_quotes_in_a_shell_or_in_hydra() -> None:
    commands = [
        ["mixer=case3", "seed=0"],
        ["+model.kwargs.width=24"],
        ['data.root="/a=b c/ä"'],
        ["bits.groups=[[w3a3]]"],
    ]
    names = [run_name({"model": "own"}, command) for command in commands]
    assert names[:2] == ["own/mixer-case3_seed-0", "own/model.kwargs.width-24"]
    assert [name for name in names if shlex.quote(name) != name] == []
    assert [configuration([f"data.root={name}"]).data.root for name in names] == names


ODD = ["/a=b", "/a b/c", "/fotos/Käfer", "/a,b", "/it's", '/say "x"', "/a(1)", "C:\\photos\\", "/a#b", "/a&b;c"]


@pytest.mark.parametrize("path", ODD)
def test_paths_of_any_signs_are_taken_as_they_are(path: str) -> None:
    config = configuration([f"data.root={path}", f"model.checkpoint={path}", f"data.class_map={path}"])
    assert (config.data.root, config.model.checkpoint, config.data.class_map) == (path, path, path)


@pytest.mark.parametrize("path", ODD)
def test_paths_that_are_quoted_for_hydra_stay_so(path: str) -> None:
    words = quoted_paths([f"{key}={path}" for key in PATHS])
    assert quoted_paths(words) == words
    parsed = OverridesParser.create().parse_overrides(words)
    assert [override.value() for override in parsed] == [path] * len(PATHS)


def test_in_a_sweep_commas_separate_paths() -> None:
    assert quoted_paths(["-m", "data.root=/a,/b", "data.val=/ä"]) == ["-m", "data.root=/a,/b", 'data.val="/ä"']


@pytest.mark.parametrize("value", ["Käfer", "a=b", "/a&b"])
def test_other_values_that_hydra_cannot_read_are_answered_with_their_quotes(value: str) -> None:
    assert f"""'+model.kwargs.act="{value}"'""" in message(f"+model.kwargs.act={value}")
    assert configuration([f'+model.kwargs.act="{value}"']).model.kwargs == {"act": value}


def test_a_run_folder_may_have_any_name(tmp_path: Path) -> None:
    done = command("data=imagefolder", "data.root=no=where ä", "hydra.run.dir=out=put ü, 1", folder=tmp_path)
    assert done.returncode == 1 and "no=where ä" in done.stderr
    assert (tmp_path / "out=put ü, 1" / ".ptmq-run").exists()


def test_help_gives_every_group_option_and_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    main()
    told = capsys.readouterr().out
    words = re.findall(r"\w+", told)
    for group, options in GROUPS.items():
        assert [line for line in told.splitlines() if line.startswith(f"  {group} ")], group
        assert [option for option in options if option not in words] == [], group
    assert [key for key, _, _ in every_key(Config) if f" {key}=" not in told] == []


def test_a_wrong_command_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    done = command("mixer=case9", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wrong", ["recon.iterz=1", "recon.iters=many"])
def test_a_wrong_key_or_value_ends_so_too(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: what differs is what Hydra raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", wrong])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # main sets it; restored afterwards
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1) and err.startswith("error: ")


def test_a_value_that_is_missing_ends_so_too(tmp_path: Path) -> None:
    """Hydra has made the folder and its log by then: in a process of its own."""
    done = command("model=timm", folder=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1) and "error: " in done.stderr


def test_a_wrong_option_in_a_sweep_is_answered_too(tmp_path: Path) -> None:
    done = command("-m", "mixer=none,cas1", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: mixer=cas1 is no option (nearest: case1, ")


def test_averages_that_no_assignment_can_have_are_refused() -> None:
    greedy = "allocate=greedy"
    assert message(greedy, "allocate.averages=[9]").startswith("allocate.averages asks for 9 weight bits on average")
    assert message(greedy, "allocate.averages=[4,4.0]").startswith("allocate.averages=[4.0, 4.0] holds a value twice")


def test_a_table_of_prices_and_its_limits_come_together() -> None:
    assert "allocate.price_limits" in message("allocate=greedy", "allocate.prices=cycles.csv")
    assert "allocate.prices=None" in message("allocate=greedy", "allocate.price_limits=[100]")


@pytest.mark.parametrize(("word", "named"), [("mixer", "KEY=VALUE"), ("bits.groups=[", "cannot read bits.groups=[")])
def test_what_cannot_be_parsed_is_named_with_its_cure(word: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        configuration([word])
    assert named in str(error.value) and "expected" in str(error.value)


def test_of_an_option_with_a_wrong_key_the_key_is_named() -> None:
    message = "In 'rounding/mine': ConfigKeyError raised while composing:\nKey 'shap' not in 'RoundingKeys'\n  more"
    assert explain(ConfigCompositionException(message)).endswith("composing: Key 'shap' not in 'RoundingKeys'")
