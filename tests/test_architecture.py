"""docs/architecture.md and docs/decisions name files, functions and imports that are those of the code."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ptmq_lightning"
PAGE = ROOT / "docs" / "architecture.md"
PAGES = [PAGE, *sorted((ROOT / "docs" / "decisions").glob("*.md"))]
ROOMS = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}


@cache
def defined(file: Path) -> set[str]:
    """The names of every function, method and class that a file defines."""
    return {n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def imported(room: str) -> set[str]:
    """The other rooms that a room imports."""
    found = set()
    for file in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
                modules += [f"{PACKAGE.name}.{alias.name}" for alias in node.names]
            found |= {module.split(".")[1] for module in modules if module.startswith(f"{PACKAGE.name}.")}
    return found & ROOMS - {room}


def table(head: str) -> list[list[str]]:
    """The rows of the table of the page that begins with ``head``."""
    body = PAGE.read_text().split(head)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    files = re.findall(r"`([\w/]+\.(?:py|yaml))`", page.read_text())
    assert [file for file in files if not (PACKAGE / file).exists() and not (ROOT / file).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_function_that_a_page_names_exists(page: Path) -> None:
    everything = set().union(*(defined(file) for file in PACKAGE.rglob("*.py")))
    assert [name for name in re.findall(r"`(\w+)\(\)`", page.read_text()) if name not in everything] == []


def test_the_tour_names_functions_in_the_files_that_hold_them() -> None:
    rows = table("\n| | file |")
    assert len(rows) > 15
    for _, file, functions, _ in rows:
        wanted = re.findall(r"`(\w+)\(\)`", functions)
        assert wanted
        assert set(wanted) <= defined(PACKAGE / file.strip("`")), file


def test_a_class_that_the_page_places_in_a_file_is_there() -> None:
    placed = re.findall(r"`([A-Z]\w+)`(?:\*\*)?\s+\(`([\w/]+\.py)`\)", PAGE.read_text())
    assert len(placed) > 4
    assert [(name, file) for name, file in placed if name not in defined(PACKAGE / file)] == []


def test_the_table_of_rooms_has_every_room() -> None:
    assert {row[0].strip("`") for row in table("\n| room |")} == ROOMS


def test_no_room_imports_more_than_the_table_allows() -> None:
    for room, _, allowed in table("\n| room |"):
        room = room.strip("`")
        if not allowed.startswith("every room"):
            assert imported(room) <= set(re.findall(r"`(\w+)`", allowed)), room
    assert "compose" not in imported("config")
