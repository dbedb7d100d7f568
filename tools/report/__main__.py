"""Runs of `fit` and `test` as one HTML page, which opens from disk and needs no other file and no network.

    python -m visa.tools.report RUN... [--out report.html]

A RUN is a folder such as `runs/test/shader/version_0` or `runs/shader/version_0`. The page holds what the folder holds:
tables and per-person rows of `metrics.json`, curves of TensorBoard's event files, sheets, the start of each video,
config, commit, device and seed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visa.artifacts.command_line import one_line_errors
from visa.artifacts.files import atomic_path
from visa.tools.report.page import page
from visa.tools.report.run import read_run


def write_report(folders: list[Path], out: Path, seconds: float) -> Path:
    """The page of some runs' folders, whole or not at all.

    Args:
        folders: each of one run.
        out: the page's file.
        seconds: of each video that are shown, from its start; 0 leaves videos out.

    Raises:
        ValueError: a folder that is none, or holds nothing of a run; a broken file in it.
    """
    text = page([read_run(folder, seconds) for folder in folders])
    with atomic_path(out) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return out


@one_line_errors
def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m visa.tools.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="page to write (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each video, 0 for none (default: %(default)s)")
    given = parser.parse_args()
    path = write_report(given.runs, given.out, given.seconds)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
