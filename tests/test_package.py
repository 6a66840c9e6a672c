"""What is built from the tree is whole: the wheel and the source package, and what they say of themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("ptmq_lightning", "conf", "README.md", "LICENSE", "pyproject.toml", "CHANGELOG.md")
BUILD = "import sys, setuptools.build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source package of a copy of the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("out")
    for name in KEPT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_an_index_would_take_both_packages(built: Path) -> None:
    pytest.importorskip("twine")
    files = sorted(map(str, built.iterdir()))
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_every_option(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {file.relative_to(ROOT).as_posix() for file in (ROOT / "ptmq_lightning").rglob("*.py")}
    options = {f"ptmq_lightning/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert modules | options <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
def test_the_packages_carry_the_version_and_no_address_that_is_nobodys(built: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        about = archive.extractfile(f"{source.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert about is not None
        head = about.read().decode().split("\n\n")[0]
    assert f"Version: {project['version']}" in head and "License-Expression: MIT" in head
    assert "Home-page:" not in head and "Project-URL:" not in head and "Author-email:" not in head
