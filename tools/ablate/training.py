"""Arms of a comparison: each is one `train.py fit` in a folder of its own, kept when done, resumed when cut off.

Imports no network: a comparison may train for hours before it loads the code that measures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from visa.artifacts.files import atomic_path


def say(text: str) -> None:
    """Progress, on standard error: standard output is for results alone."""
    print(text, file=sys.stderr, flush=True)


def run_logged(command: Sequence[str], folder: Path, log: Path) -> int:
    """A command whose runs land in `folder` and whose output is added to `log`; its exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        environment = {**os.environ, "VISA_RUNS": str(folder.resolve())}
        return subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


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
    say(f"{arm}, seed {seed}: training, log in {folder / 'fit.log'}")
    code = run_logged(command, folder, folder / "fit.log")
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
