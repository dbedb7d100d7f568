"""What the command lines of the programs have in common."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


def one_line_errors(main: Callable[P, int]) -> Callable[P, int]:
    """A program's `main`, whose ValueError or OSError becomes one line on standard error, and 1 the exit code."""

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 1

    return guarded


def at_least_one(text: str) -> int:
    """The value of an option that counts."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value
