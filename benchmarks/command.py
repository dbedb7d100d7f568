"""The command line that benchmarks share: figures for people on standard error, one JSON object on standard output.

Imports no network: a benchmark may train for hours before it loads the code that measures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from visa.artifacts.command_line import at_least_one

Figure = float | int | str | None


def command_line(description: str | None, allow_abbrev: bool = True) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring and knows `--json`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=allow_abbrev
    )
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on standard output")
    return parser


def add_clips(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """`--clips`, to be read by `clip_paths`."""
    parser.add_argument(
        "--clips", nargs="+", default=list(default), help="clips, folders or patterns (default: %(default)s)"
    )


def add_stride(parser: argparse.ArgumentParser, default: int) -> None:
    """`--stride`, at least 1."""
    parser.add_argument(
        "--stride", type=at_least_one, default=default, help="measure every n-th frame (default: %(default)s)"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """`--threads`, or None."""
    parser.add_argument("--threads", type=at_least_one, default=None, help="threads (default: as many as torch takes)")


def clip_paths(sources: Sequence[str]) -> list[Path]:
    """The clips that `--clips` names; FileNotFoundError or ValueError where there is none."""
    from visa.datamodules.sources import clip_files  # imports networks

    return [path for source in sources for path in clip_files(source)[0]]


def say(text: str) -> None:
    """Standard output is for the JSON object alone."""
    print(text, file=sys.stderr, flush=True)


def say_figures(figures: Mapping[str, Figure]) -> None:
    """A row a figure."""
    width = max(map(len, figures))
    for name, value in figures.items():
        say(f"{name:{width}} {f'{value:,.4f}' if isinstance(value, float) else value!s:>12}")


def print_json(figures: Mapping[str, Figure], wanted: bool, digits: int = 4) -> None:
    """The flat object, floats rounded, where `--json` asks for it."""
    if wanted:
        print(json.dumps({n: round(v, digits) if isinstance(v, float) else v for n, v in figures.items()}))


def run(main: Callable[[], None]) -> None:
    """A benchmark as a program: what is wrong with its input is told in one line."""
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
