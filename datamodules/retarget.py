"""Photos of one person + somebody else's motion -> the batch that `predict` paints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from visa.artifacts.photos import is_image
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip, frame_rate, load_track
from visa.datamodules.own_pose import Head, head_turns, with_own_pose
from visa.datamodules.spread import spread_frames
from visa.datamodules.unseen_arms import with_own_arms
from visa.datamodules.windows import WindowReader
from visa.networks.body import BodyModel, BodyParams, rotation_matrices
from visa.networks.joints import HEAD
from visa.networks.rotation import axis_angle

NUM_PHOTOS = 8  # taken from a clip unless told otherwise


def read_motion(driving: str | Path) -> dict[str, np.ndarray]:
    """The track of a motion: a `.track.npz`, or a video with its track beside it."""
    path = Path(driving)
    return load_track(path if path.suffix.lower() == ".npz" else path.with_name(path.stem + ".track.npz"))


def held_frames(valid: np.ndarray) -> np.ndarray:
    """Frame numbers to show, from the first valid to the last: where nobody was found, the one before is held."""
    numbers = np.flatnonzero(valid)
    if len(numbers) == 0:
        return numbers
    shown = np.arange(numbers[0], numbers[-1] + 1)
    return np.maximum.accumulate(np.where(valid[shown], shown, -1))


def open_photos(images: Sequence[str | Path], num_photos: int | None, body: BodyModel) -> list[tuple[Clip, int]]:
    """Photos of one person, each as a clip and its frame; the first is the one that stands for the person.

    Args:
        images: photos, or one clip, their tracks beside them.
        num_photos: how many frames of the clip; None takes NUM_PHOTOS.
        body: the model that the tracks are fits of.

    Raises:
        FileNotFoundError: no such file.
        ValueError: photos and clips are mixed, or `num_photos` does not fit them.
    """
    if num_photos is not None and num_photos < 1:
        raise ValueError(f"--photos is {num_photos}: give the number of frames to take from the clip, 1 or more")
    are_photos = [is_image(image) for image in images]
    if all(are_photos):
        if num_photos is not None:
            raise ValueError(f"--photos chooses frames of a clip, and --image {images[0]} is a photo: leave it away")
        return [(Clip(image).load(), 0) for image in images]
    if len(images) > 1:
        named = images[are_photos.index(False)]
        raise ValueError(f"--image {named} is a clip and not the only file: give one clip, or photos alone")
    clip = Clip(images[0]).load()
    first, valid = clip.reference_frame(), np.flatnonzero(clip.track["frame_valid"])
    return [(clip, number) for number in spread_frames(clip, valid, num_photos or NUM_PHOTOS, first, body)]


def with_further(
    batch: VideoBatch,
    photos: Sequence[tuple[Clip, int]],
    reader: WindowReader,
    resolution: int,
    fine: int | None = None,
) -> VideoBatch:
    """A batch of one window with further photos of its person, frames of clips; `fine` as in `WindowReader.read`."""
    read = [
        reader.read(clip, np.asarray([frame]), frame, resolution, fine=fine, is_cleaned=True) for clip, frame in photos
    ]
    return replace(batch, further=read)


def retarget(
    image: str | Sequence[str],
    driving: str,
    reader: WindowReader,
    resolution: int,
    num_frames: int | None,
    body_model: str,
    num_photos: int | None = None,
    fine: int | None = None,
    head: Head = "photo",
) -> VideoBatch:
    """Put the driver's pose and expression on the photo's person, seen by the photo's camera.

    The person keeps their own shape. In the frame in which the driver rests (`rest_frame`) head, gaze and torso are the
    photo's, and they move from there as the driver's do (`datamodules.own_pose`), so that framing follows the photo.
    Arms that the driver's picture does not hold stay the photo's (`datamodules.unseen_arms`).
    Where the driver's tracker found nobody, the frame before is held, so that the time stays the driver's
    (`held_frames`). Photos lose what lies behind the person (`datamodules.foreground`).

    Args:
        image: the photo or photos, or a clip, their tracks beside them. The first photo is the one whose camera and
            place count.
        driving: `.track.npz` of the motion, or a video with its track beside it.
        reader: reads the photo.
        resolution: side of the output.
        num_frames: at most so many frames; None takes all.
        body_model: the file that both tracks are fits of.
        num_photos: how many frames of a clip are photos, see `open_photos`.
        fine: side in px of the photos for pictures larger than `resolution`; None for none.
        head: "driver" turns head and eyes as the driver's are turned to the camera, whatever the photo shows.

    Returns:
        a batch of one window whose `frames` and `masks` are empty of truth (zeros) and `valid` is False.
    """
    images, body = [image] if isinstance(image, str) else list(image), BodyModel.from_file(body_model)
    photos, motion = open_photos(images, num_photos, body), read_motion(driving)
    numbers = held_frames(motion["frame_valid"])[:num_frames]
    if len(numbers) == 0:
        raise ValueError(f"{driving} has no valid frame to drive with: track another video")
    if num_held := len(numbers) - len(np.unique(numbers)):
        rank_zero_info(f"{driving}: nobody was found in {num_held} of {len(numbers)} frames, which hold the one before")
    name = f"{Path(images[0]).stem}_{Path(driving).name.split('.')[0]}"
    batch = put_motion_on(*photos[0], motion, numbers, reader, resolution, body, name, fine, head)
    return with_further(batch, photos[1:], reader, resolution, fine)


def put_motion_on(
    photo: Clip,
    frame: int,
    motion: Mapping[str, np.ndarray],
    numbers: np.ndarray,
    reader: WindowReader,
    resolution: int,
    body: BodyModel,
    name: str,
    fine: int | None = None,
    head: Head = "photo",
) -> VideoBatch:
    """Frames `numbers` of a track's `motion`, put on the person whom frame `frame` of `photo` shows; see `retarget`."""
    still = reader.read(photo, np.asarray([frame]), frame, resolution, fine=fine, is_cleaned=True)
    own = BodyParams.from_track(photo.track, np.asarray([frame]))
    params = retargeted(motion, numbers, own, still.world_to_camera[0, 0], body, head)
    count = len(numbers)
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
        fps=[frame_rate(motion)],
        fine_reference=still.fine_reference,
        fine_reference_mask=still.fine_reference_mask,
    )


def retargeted(
    motion: Mapping[str, np.ndarray],
    numbers: np.ndarray,
    own: BodyParams,
    photo_camera: torch.Tensor,
    body: BodyModel,
    head: Head = "photo",
) -> BodyParams:
    """Frames `numbers [T]` of a track's motion as parameters `[T]` of the person whom a photo shows; see `retarget`.

    Args:
        motion: the driver's track.
        numbers: frames of it.
        own: the photo's parameters `[1]`.
        photo_camera: `[4,4]` world to camera.
        body: the model that both are fits of.
        head: see `retarget`.
    """
    numbers = np.concatenate([[rest_frame(motion, body)], numbers])
    params = BodyParams.from_track(motion, numbers)
    params = with_own_arms(params, own, *_driver_joints(params, motion, numbers, body))
    params.betas = own.betas.expand(len(numbers), -1).contiguous()
    _orient_for_camera(params, torch.from_numpy(motion["world_to_camera"][numbers]), photo_camera)
    heads = _head(body, params)
    params = with_own_pose(params, own, head)
    # The head is what the photo frames: it rests where the photo has it, and moves as the driver's moves.
    params.transl = params.transl + _head(body, own) + heads - heads[:1] - _head(body, params)
    return params[1:]


def rest_frame(motion: Mapping[str, np.ndarray], body: BodyModel) -> int:
    """The valid frame of a track whose head and gaze, as the camera sees them, are nearest to their medians.

    Turns in rad, the head's place in m: of people in front of a camera they are of one size.
    """
    numbers = np.flatnonzero(motion["frame_valid"])
    params = BodyParams.from_track(motion, numbers)
    camera = torch.from_numpy(motion["world_to_camera"][numbers])
    joints, turns = body.joints(params)[:, HEAD], head_turns(params)
    gaze = (params.leye_pose + params.reye_pose) / 2
    place = torch.einsum("tij,tj->ti", camera[:, :3, :3], joints) + camera[:, :3, 3]
    # Of one who faces the camera, whose axes point down and away, the turn is none: its vector counts all axes alike.
    facing = torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ camera[:, :3, :3] @ turns
    told = torch.cat([axis_angle(facing), gaze, place], dim=1)
    return int(numbers[(told - told.median(dim=0).values).square().sum(dim=1).argmin()])


def _head(body: BodyModel, params: BodyParams) -> torch.Tensor:
    """`[T,3]` m, the head's joint."""
    return body.joints(params)[:, HEAD]


def _driver_joints(
    params: BodyParams, motion: Mapping[str, np.ndarray], numbers: np.ndarray, body: BodyModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Joints `[T,J,3]` in the axes of the driver's camera, and its intrinsics `[T,3,3]`."""
    intrinsics, camera = (torch.from_numpy(motion[name][numbers]) for name in ("intrinsics", "world_to_camera"))
    return body.joints(params) @ camera[:, :3, :3].mT + camera[:, None, :3, 3], intrinsics


def _orient_for_camera(params: BodyParams, driver_camera: torch.Tensor, photo_camera: torch.Tensor) -> None:
    """Turn the root so that the photo's camera sees the body as the driver's camera did (in place).

    Args:
        params: driver's parameters `[T]`.
        driver_camera: `[T,4,4]` world to camera.
        photo_camera: `[4,4]` world to camera.
    """
    turn = photo_camera[:3, :3].T @ driver_camera[:, :3, :3]
    params.global_orient = axis_angle(turn @ rotation_matrices(params.global_orient))
    params.transl = torch.einsum("tij,tj->ti", turn, params.transl)
