"""What every importer gives, fitted to the body model that will use it, and written as a track."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visa.artifacts.arrays import read_arrays
from visa.artifacts.files import atomic_path
from visa.datamodules.clip import load_track
from visa.networks.body import NUM_BETAS, BodyModel

Floats = NDArray[np.floating]


@dataclass
class Imported:
    """A track in the SMPL-X body's own shape and expression space, T frames.

    Attributes:
        pose: by field name, axis-angle in radians from the flat hand: `global_orient`, `jaw_pose`, `leye_pose`,
            `reye_pose` [T,3], `body_pose` [T,21,3], `left_hand_pose`, `right_hand_pose` [T,15,3].
        transl: [T,3] metres.
        intrinsics: [T,3,3] px at `image_size`.
        world_to_camera: [T,4,4] OpenCV.
        frame_valid: [T].
        image_size: width and height, px.
        fps: frames a second.
        betas: [any] SMPL-X shape, or None where the source's shape is of another body.
        expression: [T,any] SMPL-X expression, or None.
    """

    pose: dict[str, Floats]
    transl: Floats
    intrinsics: Floats
    world_to_camera: Floats
    frame_valid: NDArray[np.bool_]
    image_size: tuple[int, int]
    fps: float
    betas: Floats | None = None
    expression: Floats | None = None


def read_npz(path: Path, needed: Collection[str], mend: str, wanted: Collection[str] = ()) -> dict[str, NDArray]:
    """Arrays of an npz file; others in it may be anything, and stay unread.

    Args:
        path: of the file.
        needed: names of arrays that must be there.
        mend: ends the error.
        wanted: names of further ones, which are read where the file has them.

    Raises:
        ValueError: no npz file, or an array is missing; one line.
    """
    try:
        arrays = read_arrays(path, "npz file", {*needed, *wanted})
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable npz file ({error.__cause__ or error}): {mend}") from error
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: {mend}")
    return arrays


def _columns(values: Floats | None, count: int, num_frames: int | None = None) -> Floats:
    """The first `count` columns, zeros where there are fewer or none."""
    shape = (count,) if num_frames is None else (num_frames, count)
    result = np.zeros(shape, dtype=np.float32)
    if values is not None:
        kept = min(count, values.shape[-1])
        result[..., :kept] = values[..., :kept]
    return result


def has_smplx_space(body: BodyModel) -> bool:
    """Whether SMPL-X shapes and expressions mean something on this body: a file of its own space names its own."""
    return all(name == f"expression{i}" for i, name in enumerate(body.expression_names))


def track_arrays(imported: Imported, body: BodyModel, body_name: str) -> dict[str, NDArray]:
    """The arrays of NAME.track.npz.

    Shape and expression keep their meaning only on an SMPL-X file; a body that names its expressions, as the shipped
    one does, has a space of its own, and gets zeros. Poses mean the same on both.
    """
    num_frames = len(imported.transl)
    betas, expression = (imported.betas, imported.expression) if has_smplx_space(body) else (None, None)
    arrays: dict[str, NDArray] = {name: values.astype(np.float32) for name, values in imported.pose.items()}
    return arrays | {
        "betas": _columns(betas, NUM_BETAS),
        "expression": _columns(expression, body.num_expressions, num_frames),
        "transl": imported.transl.astype(np.float32),
        "intrinsics": imported.intrinsics.astype(np.float32),
        "world_to_camera": imported.world_to_camera.astype(np.float32),
        "frame_valid": imported.frame_valid,
        "fps": np.array(imported.fps, dtype=np.float64),
        "image_size": np.array(imported.image_size),
        "body_model": np.array(body_name),
    }


def write_track(path: Path, arrays: dict[str, NDArray]) -> Path:
    """Write a track, whole or not at all, once it has passed the check that every reader makes."""
    with atomic_path(path) as scratch:
        with open(scratch, "wb") as file:
            np.savez_compressed(file, **arrays)
        load_track(scratch)
    return path
