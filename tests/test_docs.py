"""Every page keeps its promises: sections, links, keys, options and commands that are named exist."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from ptmq_lightning.artifact import manifest
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config.build import PAIRS
from ptmq_lightning.device import cli
from ptmq_lightning.export import folder
from ptmq_lightning.report import command as report_command
from ptmq_lightning.report import dashboard, record

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# The one names what was, the other what is refused; benchmarks/failures.py runs the latter's commands.
OF_TODAY = [page for page in PAGES if page.name not in ("CHANGELOG.md", "failures.md")]
CONF = ROOT / "conf"


def commands(start: str) -> list[str]:
    """What follows ``start`` in every indented line and every code span of the pages, without comments."""
    found = []
    for page in OF_TODAY:
        text = page.read_text()
        found += re.findall(rf"^ {{4}}{start}(.*)$", text, flags=re.MULTILINE)
        found += re.findall(rf"`{start}([^`]*)`", text)
    return [" ".join(shlex.split(command, comments=True, posix=False)) for command in dict.fromkeys(found)]


def single_runs(command: str) -> Iterator[list[str]]:
    """The overrides of a command but Hydra's own; of a sweep one run for every value, the other keys at their first."""
    words = [word.strip("'") for word in command.split() if not word.startswith("hydra")]
    if "-m" not in words:
        yield words
        return
    swept = {key: values.split(",") for key, values in (word.split("=", 1) for word in words if word != "-m")}
    for key, values in swept.items():
        for value in values:
            yield [f"{other}={value if other == key else rest[0]}" for other, rest in swept.items()]


TRAINING = [command for command in commands(r"python train\.py(?![\w/])") if "--help" not in command]
RUNS = [run for command in TRAINING if "[" not in command[:1] for run in single_runs(command)]


def test_every_section_that_is_cited_is_there() -> None:
    sections = set(re.findall(r"^#+ §([\d.]+)", (ROOT / "docs" / "method.md").read_text(), flags=re.MULTILINE))
    files = [
        file for folder in ("ptmq_lightning", "conf", "tests", "benchmarks") for file in (ROOT / folder).rglob("*")
    ]
    cited = {
        (number.rstrip("."), file.relative_to(ROOT).as_posix())
        for file in files
        if file.suffix in (".py", ".yaml")
        for number in re.findall(r"PTMQ §([\d.]+)", file.read_text())
    }
    cited |= {
        (number.rstrip("."), page.relative_to(ROOT).as_posix())
        for page in PAGES
        for number in re.findall(r"method\.md §([\d.]+)", page.read_text())
    }
    assert len(cited) > 20
    assert [place for place in sorted(cited) if place[0] not in sections] == []


def test_every_link_leads_to_a_file() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    assert links
    assert [link for page, link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_link_to_a_heading_finds_it() -> None:
    broken = []
    for page in PAGES:
        for file, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text()):
            heads = re.findall(r"^#+ (.*)$", (page.parent / file if file else page).read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            broken += [] if anchor in slugs else [(page.name, f"{file}#{anchor}")]
    assert broken == []


def test_every_key_that_is_named_exists() -> None:
    default = configuration()
    parts = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    groups = {name: part for name, part in parts.items() if dataclasses.is_dataclass(part)}
    named = [
        (page.name, f"{group}.{key}")
        for page in OF_TODAY
        for group, key in re.findall(r"`(\w+)\.(\w+)(?:=[^`]*)?`", page.read_text())
        if group in groups and key not in ("py", "md", "yaml")
    ]
    assert len(named) > 10
    exist = {f"{name}.{field.name}" for name, group in groups.items() for field in dataclasses.fields(group)}
    assert [place for place in named if place[1] not in exist] == []


def test_every_option_that_is_named_exists() -> None:
    named = [
        (page.name, group, option)
        for page in OF_TODAY
        for group, options in re.findall(r"`(\w+)=([\w|,]+)`", page.read_text())
        if (CONF / group).is_dir() and options != "NAME"
        for option in re.split(r"[|,]", options)
    ]
    assert len(named) > 10
    without_file = {("bits", pair) for pair in PAIRS}
    files = [place for place in named if place[1:] not in without_file]
    assert [place for place in files if not (CONF / place[1] / f"{place[2]}.yaml").exists()] == []


@pytest.mark.parametrize("overrides", RUNS, ids=" ".join)
def test_every_training_command_composes(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTMQ_DATA", "DIR")
    configuration([word for word in overrides if not word.startswith("--")])


@pytest.mark.parametrize("command", commands("ptmq (?=[a-z]+ DIR)"))
def test_every_command_for_a_device_is_understood(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 1  # there is no DIR here; argparse leaves with 2 for what it does not know
    assert "DIR" in capsys.readouterr().err


def test_every_make_target_and_script_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    known = {target for line in targets for target in line.split()}
    asked = {word.split()[0] for word in commands("make ") if word}
    assert {"run", "test"} <= asked <= known
    scripts = {command.split()[0] for command in commands(r"(?:\S+=\S+ )?python (?=(?:benchmarks|examples)/)")}
    assert scripts
    assert [script for script in sorted(scripts) if not (ROOT / script).exists()] == []


def test_hosted_checks_run_the_commands_of_the_readme() -> None:
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    steps = yaml.safe_load(text)["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make run", "make test"]
    assert "://" not in text


def test_the_citation_names_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f'__version__ = "{project["version"]}"' in (ROOT / "ptmq_lightning" / "__init__.py").read_text()
    assert f"## {project['version']} - " in (ROOT / "CHANGELOG.md").read_text()


def test_the_numbers_of_the_formats_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "releases.md").read_text()
    told = [
        int(number)
        for number in re.findall(r"^\| .*`(?:ARTIFACT|EXPORT|SCHEMA)` in .* \| (\d+) \|$", text, re.MULTILINE)
    ]
    assert told == [manifest.ARTIFACT.version, folder.EXPORT.version, record.SCHEMA]


@pytest.mark.parametrize(
    ("start", "parser"),
    [
        (r"python -m ptmq_lightning\.report ", report_command.parser),
        (r"python -m ptmq_lightning\.report\.dashboard ", dashboard.parser),
    ],
)
def test_every_command_that_compares_runs_is_understood(start: str, parser: Callable[[], ArgumentParser]) -> None:
    found = commands(start)
    assert found
    for command in found:
        parser().parse_args(command.split())
