"""What the reconstruction shows where there is no truth: somebody else's motion, and a photo turned and speaking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from visa.artifacts.media import sheet, write_image
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.retarget import put_motion_on
from visa.datamodules.video import VideoDataModule
from visa.evaluation.identity import FaceIdentity, detection_rate, mean_distance
from visa.evaluation.report import TestReport
from visa.networks.body import BodyModel, rotation_matrices
from visa.networks.fit import FitOptions, fitted_avatar
from visa.networks.joints import HEAD
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.photos import photo_of

IDENTITY_EVERY = 8  # frames, as in the rows that have a truth
NO_TRUTH = "another person's motion: there is no true frame"
TURN, HEAD_TURN, JAW = 0.6, 0.5, 0.35  # radians


def cross_motion_batches(
    module: VideoDataModule, body: BodyModel, most_people: int | None = None, num_drivers: int = 1
) -> list[VideoBatch]:
    """Clips that never train, each from its photo with the motion of the next ones' test blocks; none for one clip.

    Args:
        module: its `extra_clips` are the people.
        body: the body model of the tracks.
        most_people: the first so many are driven; None drives all.
        num_drivers: so many of the clips after each drive it.
    """
    clips = [clip for clip in module.extra_clips if clip.splits.test]
    batches = []
    for k, person in enumerate(clips[:most_people]):
        for driver in (clips[(k + step) % len(clips)] for step in range(1, min(num_drivers, len(clips) - 1) + 1)):
            numbers = np.concatenate(module.test_blocks(driver))
            numbers = numbers[driver.track["frame_valid"][numbers]]
            name = f"{person.name} moved by {driver.name}"
            reference = person.reference_frame()
            batches.append(
                put_motion_on(
                    person,
                    reference,
                    driver.track,
                    numbers,
                    module.reader,
                    module.resolution,
                    body,
                    name,
                    head="driver",
                )
            )
    return batches


def identity_to_photo(frames: Tensor, photo: Tensor) -> dict[str, float | str | None]:
    """Columns `identity_photo` and `detection_rate` of frames `[T,3,H,W]` and a photo `[3,H,W]`, or why not."""
    try:
        faces = FaceIdentity()
    except ValueError as error:
        reasons = {"identity_photo_reason": str(error), "detection_rate_reason": str(error)}
        return {"identity_photo": None, "detection_rate": None, **reasons}
    found = faces.embed_all(frames[::IDENTITY_EVERY])
    distance = mean_distance(found, [faces.embed(photo)] * len(found))
    figures: dict[str, float | str | None] = {"identity_photo": distance, "detection_rate": detection_rate(found)}
    if distance is None:
        figures["identity_photo_reason"] = "no face found in the photo or the frames"
    return figures


@torch.no_grad()
def add_cross_motion(
    reconstructor: GaussianReconstructor, fit: FitOptions, report: TestReport, most_people: int | None, num_drivers: int
) -> None:
    """A row for each pair of person and driver, and `cross_motion.png`: the photo, then frames of the driven avatar.

    Args:
        reconstructor: photo -> avatar.
        fit: how avatars are fitted to their photos.
        report: to which the rows are added.
        most_people, num_drivers: as in `cross_motion_batches`.
    """
    rows, columns = {}, 7
    body, fitted = reconstructor.body, {}
    for batch in cross_motion_batches(report.data, body, most_people, num_drivers):
        batch = move_data_to_device(batch, report.device)
        person = batch.names[0].partition(" moved by ")[0]
        if person not in fitted:  # drivers of one person come one after the other
            fitted = {person: fitted_avatar(reconstructor, photo_of(batch), fit)}
        avatar = fitted[person]
        maps = avatar.render(body, batch.view())
        frames = maps.textured[0].clamp(0, 1).cpu()
        figures = identity_to_photo(frames, batch.reference[0].cpu())
        report.say(f"{batch.names[0]}: {len(frames)} frames")
        report.add_measured(f"textured ({batch.names[0]})", figures, NO_TRUTH)
        chosen = torch.linspace(0, len(frames) - 1, columns).round().long()
        rows[batch.names[0]] = torch.cat([batch.reference.cpu(), frames[chosen]])
    if rows:
        write_image(report.directory / "cross_motion.png", sheet(rows, ["photo", *[""] * columns]))


def orbit(camera: Tensor, centre: Tensor, angle: float, pitch: float = 0.0) -> Tensor:
    """The camera `[4,4]` (world to camera) moved about the vertical axis of its picture through `centre [3]`, radians.

    The person seems to turn by `angle`, to the left side of the picture where it is positive, and then to nod by
    `pitch`, about the picture's horizontal axis.
    """
    turn = torch.eye(4, dtype=camera.dtype, device=camera.device)
    turn[:3, :3] = rotation_matrices(camera.new_tensor([pitch, 0.0, 0.0])) @ rotation_matrices(
        camera.new_tensor([0.0, angle, 0.0])
    )
    seen = camera[:3, :3] @ centre + camera[:3, 3]
    turn[:3, 3] = seen - turn[:3, :3] @ seen
    return turn @ camera


@torch.no_grad()
def photo_sheet(reconstructor: GaussianReconstructor, fit: FitOptions, path: str, report: TestReport) -> Tensor:
    """`[3,H',W']`: the photo and its avatar, as it is, from both sides, with the head turned, with an open mouth."""
    clip, module = Clip(path).load(), report.data
    batch = module.reader.read(clip, np.zeros(1, dtype=np.int64), 0, module.resolution)
    batch = move_data_to_device(batch, report.device)
    body, own, camera = reconstructor.body, batch.body, batch.world_to_camera[0, 0]
    head = body(own)[1][0, 0, HEAD]
    jaw, pose = own.jaw_pose.clone(), own.body_pose.clone()
    jaw[..., 0] += JAW
    pose[..., HEAD - 1, 1] += HEAD_TURN
    views = {
        "avatar": (own, camera),
        "turned left": (own, orbit(camera, head, TURN)),
        "turned right": (own, orbit(camera, head, -TURN)),
        "head turned": (replace(own, body_pose=pose), camera),
        "mouth open": (replace(own, jaw_pose=jaw), camera),
        "both": (replace(own, jaw_pose=jaw), orbit(camera, head, TURN)),
    }
    photo = photo_of(batch)
    fitted, projected = fitted_avatar(reconstructor, photo, fit), reconstructor(photo, use_heads=False)[0]
    rows = {}
    for label, avatar in (
        ("splat", replace(fitted, texture=None)),
        ("textured", fitted),
        ("projected", replace(projected, texture=None)),
    ):
        pictures = [batch.reference]
        for params, camera in views.values():
            view = replace(batch.view(), body=params, world_to_camera=camera[None, None])
            pictures.append(avatar.render(body, view).textured[0])
        rows[label] = torch.cat(pictures)
    return sheet(rows, ["photo", *views])
