"""Arms of a comparison: each is one `train.py fit` in a folder of its own, kept when done, resumed when cut off.

Imports no network: a benchmark may train for hours before it loads the code that measures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from visa.artifacts.files import atomic_path
from visa.benchmarks.command import add_stride, at_least_one, command_line, say


def trained_weights(folder: Path, stage: str) -> Path | None:
    """The weights of a finished training of `stage` in `folder`."""
    found = sorted((folder / stage).glob("version_*/weights.safetensors"))
    return found[-1] if found else None


def fit_arm(
    folder: Path, stage: str, arm: str, seed: int, num_steps: int, arguments: Sequence[str], options: Sequence[str]
) -> Path:
    """Train one arm, from the start or from where an earlier call was cut off; its weights.

    Args:
        folder: of this training alone; holds its run and its log.
        stage: as `Stage.stage`, the name of the run's folder.
        arm: named in messages.
        seed: of what starts at random; that of the data is among `arguments`.
        num_steps: training batches; the only validation follows the last.
        arguments: of `train.py fit`.
        options: of the user; they come last, so that they win.

    Raises:
        ValueError: the training failed; names its log.
    """
    if (done := trained_weights(folder, stage)) is not None:
        return done
    command = [
        sys.executable, "train.py", "fit", *arguments, f"--seed_everything={seed}",
        f"--trainer.val_check_interval={num_steps}", "--trainer.enable_progress_bar=false", *options,
    ]  # fmt: skip
    if any((folder / stage).glob("version_*/checkpoints/last.ckpt")):
        command.append("--ckpt_path=last")
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{arm}, seed {seed}: training, log in {folder / 'fit.log'}")
    with (folder / "fit.log").open("a") as log:
        environment = {**os.environ, "VISA_RUNS": str(folder.resolve())}
        code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code != 0 or (done := trained_weights(folder, stage)) is None:
        raise ValueError(f"training '{arm}' with seed {seed} failed: see {folder / 'fit.log'}")
    return done


def check_options(out: Path, config: str, options: Sequence[str]) -> None:
    """ValueError where the folder holds networks that were trained with other options."""
    record, own = out / "options.json", {"config": config, "options": list(options)}
    if record.is_file() and json.loads(record.read_text()) != own:
        raise ValueError(f"{out} holds networks trained with other options ({record}): choose another --out")
    with atomic_path(record) as scratch:
        scratch.write_text(json.dumps(own, indent=2) + "\n")


def split_options(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's own words, and those after `--`, which go to `train.py`."""
    own = list(given)
    if "--" not in own:
        return own, []
    return own[: own.index("--")], own[own.index("--") + 1 :]


def comparison(description: str | None, arms: Sequence[str], num_seeds: int, out: str) -> argparse.ArgumentParser:
    """The command line of a comparison of `arms`: what is trained, where it lies and what is measured."""
    parser = command_line(description)
    parser.add_argument("--seeds", type=at_least_one, default=num_seeds, help="trainings of each arm")
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms), help="which to train")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the results")
    parser.add_argument("--test", action="store_true", help="measure on the test blocks, not on the validation block")
    add_stride(parser, 1)
    return parser
