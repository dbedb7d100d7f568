"""Render and compare: `python -m visa.tools.track.refine CLIP...` refines the poses of tracked clips by their pixels.

Landmarks see a shoulder or a forearm to a few percent of the face's height, the person's own avatar sees them to a
pixel. An avatar is made of some of the clip's frames and held against every few of the others through the rasterizer:
torso, arms and head move until its colours and its silhouette are the picture's. The torso hangs on the head, not the
head on the torso. What lies between two compared frames takes the corrections of both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from visa.artifacts.command_line import one_line_errors
from visa.artifacts.files import atomic_path
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip, load_track
from visa.datamodules.sources import clip_files
from visa.datamodules.spread import spread_frames
from visa.datamodules.windows import WindowReader
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel, BodyParams, rotation_matrices
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.joints import COLLARS, ELBOWS, HEAD, NECK, SHOULDERS, SPINE, WRISTS
from visa.networks.rasterizer import rasterize
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.photos import photo_of
from visa.runtime.shipped import BACKGROUND, BODY, WEIGHTS, load_reconstructor
from visa.tools.track.skeleton import matrix_to_axis_angle

PLACE = 0.1  # m: a head moves as readily by a centimetre as a joint turns by 0.1 rad
HEAD_STIFFNESS = 2.0
ERRORS = ("picture_error", "refined_picture_error")  # of a report: mean L1 of colour and alpha, before and after
FIELDS = ("transl", "global_orient", "body_pose")  # of a track, that a refinement changes


@dataclass(frozen=True)
class RefineOptions:
    """How a clip's poses are refined.

    Attributes:
        size: of the compared pictures, px.
        num_photos: frames that the avatar is made of.
        stride: every n-th frame is compared.
        batch_size: frames that are compared at once.
        steps: of Adam, for each batch.
        rate: its learning rate, rad.
        alpha_weight: of the L1 of alpha and matte, beside that of colour.
        pull: weight of the squared corrections (rad) against the mean error of all pixels.
        smoothness: of the squared differences between the corrections of compared frames.
    """

    size: int = 128
    num_photos: int = 4
    stride: int = 3
    batch_size: int = 12
    steps: int = 40
    rate: float = 0.02
    alpha_weight: float = 1.0
    pull: float = 0.004
    smoothness: float = 0.01


# Rows of a correction: joints whose axis-angles change, then the head's turn in the world and its place. What is stiff
# moves less: the pull counts so many times.
_JOINTS = (0, *SPINE, *COLLARS, *SHOULDERS, *ELBOWS, *WRISTS)
_STIFFNESS = torch.tensor([4.0] * 6 + [1.0] * 6 + [HEAD_STIFFNESS] * 2)[:, None]
_NUM_ROWS = len(_STIFFNESS)


def moved(body: BodyModel, params: BodyParams, change: Tensor) -> BodyParams:
    """Turn torso and arms under the head, and move the head.

    Args:
        body: the body model.
        params: `[T,...]`.
        change: `[T,R,3]` rad, added to the axis-angles of pelvis, spine, collars, shoulders, elbows and wrists; the
            head's turn in the world; and how far its joint moves, in units of `PLACE` m.
    """
    rows = torch.tensor([joint - 1 for joint in _JOINTS[1:]])
    pose = params.body_pose.index_add(1, rows, change[:, 1 : len(_JOINTS)])
    orient = params.global_orient + change[:, 0]
    torso = rotation_matrices(orient)
    for joint in (*SPINE, NECK):
        torso = torso @ rotation_matrices(pose[:, joint - 1])
    none = torch.zeros(0, dtype=torch.long)
    head = rotation_matrices(change[:, -2]) @ body.joint_transforms(params)[:, HEAD, :3, :3]
    local = matrix_to_axis_angle(torso.mT @ head)
    pose = torch.cat([pose[:, : HEAD - 1], local[:, None], pose[:, HEAD:]], dim=1)
    result = replace(params, global_orient=orient, body_pose=pose)
    place = body(params, none)[1][:, HEAD] + PLACE * change[:, -1]
    return replace(result, transl=params.transl + place - body(result, none)[1][:, HEAD])


class _Comparison:
    """A clip's avatar against frames of the clip.

    Args:
        reconstructor: made the avatar.
        avatar: of the clip's person, `[1,...]`.
        options: see `RefineOptions`.
    """

    def __init__(self, reconstructor: GaussianReconstructor, avatar: Avatar, options: RefineOptions) -> None:
        self.body, self.avatar, self.options = reconstructor.body, avatar, options

    def errors(self, params: BodyParams, batch: VideoBatch) -> Tensor:
        """`[T]` mean L1 of colour and alpha over a frame's pixels, with the poses `params [T,...]`."""
        posed = self.avatar.pose(self.body, params.map(lambda value: value[None]))
        gaussians = {name: value.flatten(0, 1) for name, value in vars(posed).items()}
        size = batch.frames.shape[-1]
        maps = rasterize(
            gaussians["means"],
            gaussians["quats"],
            gaussians["scales"],
            gaussians["opacities"],
            gaussians["colors"],
            batch.intrinsics[0],
            batch.world_to_camera[0],
            width=size,
            height=size,
        )
        image, alpha = (value.permute(0, 3, 1, 2) for value in (maps.image, maps.alpha))
        image = image + batch.background[0][:, None, None] * (1 - alpha)
        error = (image - batch.frames[0]).abs().mean(dim=1)
        return (error + self.options.alpha_weight * (alpha - batch.masks[0]).abs()[:, 0]).mean(dim=(1, 2))

    def refine(self, batch: VideoBatch, before: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Find the corrections of T frames.

        Args:
            batch: the frames, `[1,T,...]`.
            before: `[R,3]` the correction of the frame before them; None for the first.

        Returns:
            corrections `[T,R,3]` (see `moved`), and the errors `[T]` without and with them.
        """
        options, params = self.options, batch.body[0]
        count = params.transl.shape[0]
        start = torch.zeros(_NUM_ROWS, 3) if before is None else before
        change = start.expand(count, -1, -1).clone().requires_grad_()
        optimizer = torch.optim.Adam([change], lr=options.rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        for _ in range(options.steps):
            optimizer.zero_grad()
            steps = change.diff(dim=0, prepend=(change[:1].detach() if before is None else before[None]))
            pull = options.pull * (_STIFFNESS * change.square()).sum() + options.smoothness * steps.square().sum()
            (self.errors(moved(self.body, params, change), batch).sum() + pull).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            first, last = (
                self.errors(moved(self.body, params, value), batch) for value in (0 * change, change.detach())
            )
        return change.detach(), first, last


def refine_clip(
    clip: Clip,
    reconstructor: GaussianReconstructor,
    options: RefineOptions | None = None,
    progress: Callable[..., Iterable[Any]] = tqdm,
) -> tuple[dict[str, np.ndarray], dict[str, float | None]]:
    """Refine the poses of a tracked clip.

    Args:
        clip: tracked; one with a single valid frame stays as it is.
        reconstructor: makes the avatar.
        options: see `RefineOptions`.
        progress: as `tqdm`.

    Returns:
        the track's changed arrays (`transl`, `global_orient`, `body_pose`; none where that made nothing better), and
        the mean error of the compared frames before and after (None for a single frame).
    """
    options = options or RefineOptions()
    valid = np.flatnonzero(clip.track["frame_valid"])
    numbers = valid[np.unique(np.r_[np.arange(0, len(valid), options.stride), len(valid) - 1])]
    if len(numbers) < 2:
        return {}, dict.fromkeys(ERRORS)
    reader, body = WindowReader(BACKGROUND), reconstructor.body
    first = clip.reference_frame() if clip.sidecar(".splits.yaml").is_file() else int(valid[0])
    photos = [
        photo_of(reader.read(clip, np.asarray([frame]), frame, options.size))
        for frame in spread_frames(clip, valid, options.num_photos, first, body)
    ]
    with torch.no_grad():
        avatar, _ = reconstructor(photos[0])
    avatar = fit_avatar(reconstructor, avatar, photos[0], FitOptions(), further=photos[1:])
    compare = _Comparison(reconstructor, avatar, options)
    changes: list[Tensor] = []
    figures: list[Tensor] = []
    for start in progress(range(0, len(numbers), options.batch_size), desc="refine", unit="batch"):
        rows = numbers[start : start + options.batch_size]
        batch = reader.read(clip, rows, first, options.size)
        change, *pair = compare.refine(batch, changes[-1][-1] if changes else None)
        changes.append(change)
        figures.append(torch.stack(pair))
    before, after = torch.cat(figures, dim=1).mean(dim=1).tolist()
    errors: dict[str, float | None] = dict(zip(ERRORS, (before, min(after, before)), strict=True))
    if after >= before:
        return {}, errors
    known = torch.cat(changes).flatten(1).numpy()
    between = np.stack([np.interp(valid, numbers, column) for column in known.T], axis=-1).astype(np.float32)
    params = BodyParams.from_track(clip.track, valid)
    with torch.no_grad():
        refined = moved(body, params, torch.from_numpy(between).unflatten(1, (_NUM_ROWS, 3)))
    arrays = {name: np.array(clip.track[name]) for name in FIELDS}
    for name, value in arrays.items():
        value[valid] = getattr(refined, name).numpy()
    return arrays, errors


def refine_file(
    path: Path, reconstructor: GaussianReconstructor, options: RefineOptions | None = None
) -> dict[str, float | None]:
    """Refine the track beside a clip, in place; the errors are returned, and written into its report if it has one."""
    clip = Clip(path)
    arrays, figures = refine_clip(clip, reconstructor, options)
    # A clip in memory is cropped to its person: what it does not change is taken from the file.
    track = load_track(clip.sidecar(".track.npz")) | arrays
    with atomic_path(clip.sidecar(".track.npz")) as scratch, open(scratch, "wb") as file:
        np.savez_compressed(file, **track)
    report = clip.sidecar(".report.json")
    if report.is_file():
        with atomic_path(report) as scratch:
            scratch.write_text(json.dumps(json.loads(report.read_text()) | figures, indent=1) + "\n")
    return figures


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m visa.tools.track.refine", description=__doc__)
    parser.add_argument("clips", nargs="+", help="tracked clips, or folders or patterns of them; tracks are replaced")
    parser.add_argument("--body", default=BODY, help="body model of the tracks (default: %(default)s)")
    parser.add_argument("--weights", default=WEIGHTS, help="of the reconstruction (default: %(default)s)")
    given = parser.parse_args(arguments)
    paths = [path for source in given.clips for path in clip_files(source)[0]]
    reconstructor = load_reconstructor(given.body, given.weights)
    for path in paths:
        figures = refine_file(path, reconstructor)
        errors = [f"{value:.4f}" for value in figures.values() if value is not None]
        print(f"{path}: {' -> '.join(errors) or 'one frame, left as it is'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
