"""One photo + somebody else's motion -> the batch that `predict` paints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from datamodules.batch import VideoBatch
from datamodules.clip import Clip, load_track
from networks.body import BodyModel, BodyParams, rotation_matrices
from networks.gaussians import matrix_to_quaternion

if TYPE_CHECKING:
    from datamodules.video import WindowReader

HEAD_JOINT = 15


def open_photo(path: str | Path, body_model: str) -> Clip:
    """Open a photo with the track beside it; one without is tracked now, if the `track` extra is installed.

    The new track lands in a folder `NAME_tracked` beside the photo and is found there the next time.
    """
    photo = Path(path)
    if not photo.is_file():
        raise FileNotFoundError(f"no photo at {photo}: check --image")
    if photo.with_name(photo.stem + ".track.npz").is_file():
        return Clip(photo).load()
    folder = photo.with_name(photo.stem + "_tracked")
    if not (folder / f"{photo.stem}.track.npz").is_file():
        from tools.track.__main__ import track_file
        from tools.track.correspond import DEFAULT_LANDMARKS

        track_file(photo, folder, Path(body_model), DEFAULT_LANDMARKS)
    return Clip(folder / f"{photo.stem}.png").load()


def retarget(
    image: str, driving: str, reader: WindowReader, resolution: int, num_frames: int | None, body_model: str
) -> VideoBatch:
    """Put the driver's pose and expression on the photo's person, seen by the photo's camera.

    The person keeps their own shape. Rotations are the driver's, seen from the camera; the head starts where the
    photo's head is, and moves as the driver's moves, so that framing follows the photo. Frames that the driver's
    tracker marked invalid are left out.

    Args:
        image: the photo, tracked.
        driving: `.track.npz` of the motion.
        reader: reads the photo.
        resolution: side of the output.
        num_frames: at most so many frames; None takes all.
        body_model: the file that both tracks are fits of.

    Returns:
        a batch of one window whose `frames` and `masks` are empty of truth (zeros) and `valid` is False.
    """
    photo, motion = open_photo(image, body_model), load_track(driving)
    numbers = np.flatnonzero(motion["frame_valid"])[:num_frames]
    if len(numbers) == 0:
        raise ValueError(f"{driving} has no valid frame to drive with: track another video")
    name = f"{Path(image).stem}_{Path(driving).name.split('.')[0]}"
    return put_motion_on(photo, 0, motion, numbers, reader, resolution, BodyModel.from_file(body_model), name)


def put_motion_on(
    photo: Clip,
    frame: int,
    motion: Mapping[str, np.ndarray],
    numbers: np.ndarray,
    reader: WindowReader,
    resolution: int,
    body: BodyModel,
    name: str,
) -> VideoBatch:
    """Frames `numbers` of a track's `motion`, put on the person whom frame `frame` of `photo` shows; see `retarget`."""
    still = reader.read(photo, np.asarray([frame]), frame, resolution)
    params = BodyParams.from_track(motion, numbers)
    own = BodyParams.from_track(photo.track, np.asarray([frame]))
    count = len(numbers)
    params.betas = own.betas.expand(count, -1).contiguous()
    _orient_for_camera(params, torch.from_numpy(motion["world_to_camera"][numbers]), still.world_to_camera[0, 0])
    # The head is what the photo frames: start it where the photo has it.
    start = body(params[:1])[1][0, HEAD_JOINT]
    goal = body(own)[1][0, HEAD_JOINT]
    params.transl = params.transl + (goal - start)
    return VideoBatch(
        frames=torch.zeros(1, count, 3, resolution, resolution),
        masks=torch.zeros(1, count, 1, resolution, resolution),
        body=params.map(lambda value: value[None]),
        intrinsics=still.intrinsics.expand(1, count, 3, 3),
        world_to_camera=still.world_to_camera.expand(1, count, 4, 4),
        valid=torch.zeros(1, count, dtype=torch.bool),
        reference=still.reference,
        reference_mask=still.reference_mask,
        reference_body=still.reference_body,
        reference_intrinsics=still.reference_intrinsics,
        reference_world_to_camera=still.reference_world_to_camera,
        plain_reference=still.plain_reference,
        plain_background=still.plain_background,
        colour=still.colour,
        background=still.background,
        names=[name],
        frame_numbers=torch.from_numpy(numbers)[None],
        reference_numbers=still.reference_numbers,
    )


def _orient_for_camera(params: BodyParams, driver_camera: torch.Tensor, photo_camera: torch.Tensor) -> None:
    """Turn the root so that the photo's camera sees the body as the driver's camera did (in place).

    Args:
        params: driver's parameters `[T]`.
        driver_camera: `[T,4,4]` world to camera.
        photo_camera: `[4,4]` world to camera.
    """
    turn = photo_camera[:3, :3].T @ driver_camera[:, :3, :3]
    quaternion = matrix_to_quaternion(turn @ rotation_matrices(params.global_orient))
    angle = 2 * torch.atan2(quaternion[:, 1:].norm(dim=-1), quaternion[:, 0])
    params.global_orient = F.normalize(quaternion[:, 1:], dim=-1) * angle[:, None]
    params.transl = torch.einsum("tij,tj->ti", turn, params.transl)
