"""Checkpoints on disk: written straight to their place, and looked through before anything is built on them."""

# ruff: noqa: ARG002 (the signature is Lightning's)

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

BROKEN = "{} is no whole checkpoint: start the run without --ckpt_path, or from another file"
FOREIGN = "{} is a checkpoint of something else ({}): give the config that it was made with, or no --ckpt_path"
KEYS = ("step", "state_dict", "pytorch-lightning_version", "loops")


class CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint to the very path that it is given.

    Lightning's own makes it in memory, then in the system's folder for temporary files, and moves it from there: twice
    the memory, and a process that is killed leaves as many bytes behind as a checkpoint has, where nobody looks.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write, and wait until the disk has it; OSError where it cannot be written."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch tells of a full disk in a page of its own
            path.unlink(missing_ok=True)
            raise OSError(f"the checkpoint {path} cannot be written: is the disk full?") from error


def check_checkpoint(path: Path, own: Mapping[str, Tensor], frozen: tuple[str, ...], is_whole: bool = True) -> None:
    """Look through a checkpoint before it is loaded; nothing in it runs.

    Args:
        path: of the file.
        own: state of the module that is to take it.
        frozen: prefixes of names that checkpoints leave out.
        is_whole: whether the module takes all of it; else it may hold more, as where `validate` reads the student.

    Raises:
        ValueError: one line: not a whole checkpoint, or one of another module; names the first tensor that differs.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("no zip archive")
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # whatever an unpickler stumbles over
        raise ValueError(BROKEN.format(path)) from error
    if not isinstance(held, dict) or not isinstance(held.get("state_dict"), dict):
        raise ValueError(FOREIGN.format(path, "it holds no state of a run"))
    if missing := [key for key in KEYS if key not in held]:
        raise ValueError(FOREIGN.format(path, f"it has no {missing[0]}"))
    state: dict[Any, Any] = held["state_dict"]
    wanted = {name: value.shape for name, value in own.items() if not name.startswith(frozen)}
    odd = [name for name, shape in wanted.items() if getattr(state.get(name), "shape", None) != shape]
    odd += [str(name) for name in state if name not in own] if is_whole else []
    if odd:
        raise ValueError(FOREIGN.format(path, f"first difference: {odd[0]}"))
