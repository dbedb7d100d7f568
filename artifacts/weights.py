"""Weights on disk: safetensors with half-precision values and their provenance in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from visa.artifacts.files import atomic_path, shipped


def save_weights(path: str | Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
    """Write a state dict, floating tensors as float16, whole or not at all.

    Args:
        path: of the file.
        state: names to tensors.
        metadata: JSON-able provenance (stage, config, commit, metrics), kept in the header.

    Raises:
        ValueError: a tensor is not finite, or float16 cannot hold it (names the first); nothing is written.
        OSError: the disk does not take it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value.to(torch.float16) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in state.items()
    }
    if bad := [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise ValueError(f"{path} is not written: {bad[0]} is not finite, or beyond float16's 65504")
    with atomic_path(path) as scratch:
        try:
            save_file(tensors, str(scratch), metadata={"provenance": json.dumps(metadata)})
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written ({error}): is the disk full?") from error
        scratch.chmod(0o644)  # the library writes files that only their owner may read
    return path


def read_weights(path: str | Path, made_by: str) -> dict[str, Tensor]:
    """Read a state dict as float32.

    Args:
        path: of the file.
        made_by: the command that makes it, for the error message.

    Raises:
        FileNotFoundError: no such file; names the command that makes it.
        ValueError: not a safetensors file.
    """
    path = shipped(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: make them with `{made_by}`")
    try:
        with safe_open(str(path), framework="pt") as archive:
            state = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}): make it again with `{made_by}`") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def load_weights(module: nn.Module, path: str | Path, made_by: str) -> None:
    """Load a file into a module, strictly.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`; or the names or shapes differ from the module's (names the
            first).
    """
    state = read_weights(path, made_by)
    own = module.state_dict()
    odd = sorted(set(own) ^ set(state)) or [name for name in own if own[name].shape != state[name].shape]
    if odd:
        raise ValueError(
            f"{path} does not fit this config (first: {odd[0]}): "
            f"use the config it was made with, or make it again with `{made_by}`"
        )
    module.load_state_dict(state)
