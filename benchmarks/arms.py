"""The command line of benchmarks that compare trained arms (`tools.ablate.training` trains them).

Imports no network: a benchmark may train for hours before it loads the code that measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from visa.benchmarks.command import add_stride, at_least_one, command_line


def comparison(description: str | None, arms: Sequence[str], num_seeds: int, out: str) -> argparse.ArgumentParser:
    """The command line of a comparison of `arms`: what is trained, where it lies and what is measured."""
    parser = command_line(description)
    parser.add_argument("--seeds", type=at_least_one, default=num_seeds, help="trainings of each arm")
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms), help="which to train")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the results")
    parser.add_argument("--test", action="store_true", help="measure on the test blocks, not on the validation block")
    add_stride(parser, 1)
    return parser
