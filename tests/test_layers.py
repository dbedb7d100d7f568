"""The rooms of the repository stand in one order: what a room imports stands before it, also for type checkers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Each imports only what stands to its left (docs/architecture.md).
ROOMS = ("artifacts", "losses", "networks", "datamodules", "runtime", "evaluation", "lightning_modules")
# These stand beside them: nothing of ROOMS imports them.
BESIDE = {
    "callbacks": {"artifacts"},
    "exports": {*ROOMS, "person"},
    "tools": {*ROOMS, "tools", "cli"},
    "live": {*ROOMS, "live", "tools", "cli", "person"},
    "viewer": {*ROOMS, "viewer", "live", "tools", "cli", "person"},
    "benchmarks": {*ROOMS, "benchmarks", "live", "tools", "cli", "person"},
}
ALLOWED = {room: set(ROOMS[: place + 1]) for place, room in enumerate(ROOMS)} | {
    room: {room, *allowed} for room, allowed in BESIDE.items()
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    files = {path for room in ALLOWED for path in (ROOT / room).rglob("*.py")} | set((ROOT / "visa").glob("*.py"))
    names = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "visa" else ("visa", *parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def test_every_import_points_to_an_earlier_room() -> None:
    known = modules()
    wrong = [
        f"{name} imports {target}"
        for name, path in known.items()
        if (room := name.split(".")[1] if "." in name else None) in ALLOWED
        for target in imports(path, known)
        if [*target.split("."), ""][1] not in ALLOWED[room]
    ]
    assert wrong == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    known = modules()
    arrows = {name: set(imports(path, known)) - {name} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            pytest.fail("circle: " + " -> ".join((*path[path.index(name) :], name)))
        if name not in done:
            for target in sorted(arrows[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(arrows):
        visit(name, ())


def test_rooms_are_imported_by_the_package_name_alone() -> None:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports relatively"
                assert (node.module or "").split(".")[0] not in ALLOWED, f"{name}: write visa.{node.module}"


def test_every_folder_of_modules_is_a_package_that_is_installed() -> None:
    folders = {path.parent for path in modules().values()} - {ROOT}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []
