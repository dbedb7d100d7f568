"""Documents name what exists: commands, configs, modules, options, links and files."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("assets/**/*.md")])
# What the changelog names may be gone.
PRESENT = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and (path.name == ".ci" or path.name[0] != ".")}
# Made by the reader's own commands, and not part of the repository.
FOLDERS -= {"runs", "cache", "weights", "data", "people", "my_clips", "build", "dist"}
COMMAND = re.compile(r"python -m (visa(?:\.\w+)+)((?:[^`\n]|(?<=\\)\n)*)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_file(dotted: str) -> Path | None:
    """The file of a module `visa.X.Y`, or that of its `__main__` where it is a package; None without either."""
    base = ROOT.joinpath(*dotted.split("."))  # by the links of `visa`
    found = [path for path in (base.with_suffix(".py"), base / "__main__.py") if path.is_file()]
    return found[0] if found else None


def commands() -> Iterator[tuple[Path, str, str]]:
    """Document, module and arguments of every `python -m visa.X`, but of files that it tells to write."""
    for path in PRESENT:
        text = re.sub(r"```python\n.*?```", "", path.read_text(), flags=re.DOTALL)
        for module, arguments in COMMAND.findall(text):
            yield path, module, arguments


@cache
def constructor_options(folder: str) -> frozenset[str]:
    """Names of all arguments of constructors in a folder."""
    return frozenset(
        argument.arg
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
        for argument in [*node.args.args, *node.args.kwonlyargs]
    )


def anchors(path: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


def test_readme_opens_with_two_commands_whose_extras_exist() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"(<!-- [^\n]+ -->)?\n```bash\n(.*?)\n```", text, flags=re.DOTALL)[:2]
    assert [marker for marker, _ in blocks] == ["<!-- main command -->", "<!-- test command -->"]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for _, command in blocks:
        subprocess.run(["bash", "-n", "-c", command], check=True)
        extras = re.findall(r'pip install -e "\.\[([\w,]+)\]"', command)
        assert extras, command
        assert set(extras[0].split(",")) <= set(setup["options.extras_require"])


def test_citation_has_the_version_and_licence_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {setup['metadata']['version']}" in lines
    assert f"license: {setup['metadata']['license']}" in lines


def test_the_ci_script_reads_the_test_command() -> None:
    (reader,) = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("command=")]
    read = subprocess.run(["bash", "-c", f'{reader}; printf %s "$command"'], cwd=ROOT, capture_output=True, text=True)
    assert read.stdout.startswith("python3 -m venv")
    assert read.stdout.endswith("python -m pytest -n auto")
    assert "\n" not in read.stdout


def test_configs_that_are_named_exist() -> None:
    named = {
        (name(path), config) for path in PRESENT for config in re.findall(r"\bconfigs/[\w/]+\.yaml", path.read_text())
    }
    assert len(named) > 20
    assert [pair for pair in sorted(named) if not (ROOT / pair[1]).is_file()] == []


def test_modules_that_are_called_have_a_main() -> None:
    called = {(name(path), module) for path, module, _ in commands()}
    assert len(called) > 20
    for document, module in sorted(called):
        file = module_file(module)
        assert file is not None, f"{document} calls {module}, which is no module"
        assert "__name__" in file.read_text(), f"{document} calls {module}, which has no main"


def test_options_of_called_modules_exist() -> None:
    for document, module, arguments in commands():
        file = module_file(module)
        assert file is not None
        folder = file.parent if file.name == "__main__.py" else None
        source = "".join(path.read_text() for path in (folder.rglob("*.py") if folder else [file]))
        for shared in re.findall(r"^from (visa\.benchmarks\.\w+) import", source, re.MULTILINE):  # options in common
            source += module_file(shared).read_text()
        for option in re.findall(r"(?<!\S)\[?(--[\w.-]+)", arguments):
            if "." not in option:  # dotted ones are the stages' (below)
                assert f'"{option}"' in source, f"{name(document)}: {module} has no option {option}"


@pytest.mark.parametrize(("prefix", "folder"), [("data", "datamodules"), ("model", "lightning_modules")])
def test_options_of_the_stages_exist(prefix: str, folder: str) -> None:
    known = constructor_options(folder)
    for path in PRESENT:
        for option in re.findall(rf"(?<!\S)`?--{prefix}\.(?:init_args\.)?(\w+)", path.read_text()):
            assert option in known | {"class_path"}, f"{name(path)}: no option --{prefix}.{option}"


def test_relative_links_lead_to_files_and_headings() -> None:
    wrong = []
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)):
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            target, _, anchor = link.partition("#")
            file = path.parent / target if target else path
            if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
                wrong.append(f"{name(path)}: {link}")
    assert wrong == []


def test_files_in_backticks_exist() -> None:
    wrong = []
    for path in PRESENT:
        for quoted in re.findall(r"`([\w./-]+)`", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)):
            first = quoted.partition("/")[0]
            # Capitals stand for the reader's own names.
            is_file = "/" in quoted and first in FOLDERS and not re.search(r"(?<![a-z_])[A-Z]{2,}", quoted)
            if is_file and not (ROOT / quoted).exists():
                wrong.append(f"{name(path)}: {quoted}")
    assert wrong == []


def test_names_in_backticks_exist() -> None:
    """`networks.codec.BlockCodec`, with or without `visa.`: the module is there and defines the name."""
    rooms = {path.name for path in (ROOT / "visa").iterdir() if path.is_dir()}
    wrong = []
    for path in PRESENT:
        for dotted in re.findall(r"`((?:visa\.)?(?:\w+\.)+\w+)`", path.read_text()):
            parts = dotted.removeprefix("visa.").split(".")
            if parts[0] not in rooms:
                continue
            end = max((n for n in range(1, len(parts) + 1) if is_module(parts[:n])), default=0)
            text = module_text(parts[:end])
            if any(not re.search(rf"\b{part}\b", text) for part in parts[end:]):
                wrong.append(f"{name(path)}: {dotted}")
    assert wrong == []


def python_blocks() -> list[tuple[str, str]]:
    """Document and text of every block of Python."""
    return [
        (name(path), block)
        for path in PRESENT
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
    ]


@pytest.mark.parametrize(("document", "block"), python_blocks())
def test_python_in_documents_names_what_exists(document: str, block: str) -> None:
    """It can be parsed; what it imports is there; calls of what it imports give arguments that are there."""
    tree = ast.parse(block)
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("visa"):
            module = importlib.import_module(str(node.module))
            known |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        target = node.func
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in known:
            called = getattr(known[target.value.id], target.attr)
        elif isinstance(target, ast.Name) and target.id in known:
            called = known[target.id]
        else:
            continue
        names = inspect.signature(called).parameters
        given = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
        assert given <= names.keys(), f"{document}: {ast.unparse(node)}"


def is_module(parts: list[str]) -> bool:
    base = ROOT.joinpath("visa", *parts)
    return base.with_suffix(".py").is_file() or (base.is_dir() and any(base.glob("*.py")))


def module_text(parts: list[str]) -> str:
    """Text of a module; of a package, that of its `__init__`; nothing where there is no such file."""
    base = ROOT.joinpath("visa", *parts)
    found = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
    return found[0].read_text() if found else ""
