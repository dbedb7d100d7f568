"""Fit the body model to the detections of a clip: one shape and one camera, and a pose and expression a frame, smooth
in time. All frames are solved together, first every few of them.

Letters in shapes: T frames of the clip, N solved frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from visa.networks.body import BodyModel, BodyParams
from visa.tools.track.correspond import Landmarks
from visa.tools.track.detect import Detections
from visa.tools.track.options import FitOptions
from visa.tools.track.outline import outline_of
from visa.tools.track.start import refined_start, start_values
from visa.tools.track.surface import measure_motion
from visa.tools.track.targets import Targets, coarse_frames, solved_frames, targets_of
from visa.tools.track.terms import Objective
from visa.tools.track.variables import CLIP_RATES, FRAME_RATES, Variables

Floats = NDArray[np.float32]

OUTLINE_EVERY = 10  # steps after which the outline's nearest surface points are sought anew


@dataclass
class Track:
    """Result of a fit: the clip contract's arrays and the fitted points for overlay and report."""

    params: BodyParams  # leading dimension T; one `betas` [10]
    frame_valid: NDArray[np.bool_]  # [T]
    intrinsics: Floats  # [3, 3] px
    face: Floats  # [T, 478, 2] px
    pose: Floats  # [T, 33, 2] px; NaN where no counterpart on the body is fitted
    pose_weight: Floats  # [T, 33] how much each detected body point counted, in [0, 1]
    hands: Floats  # [T, 2, 21, 2] px, left then right; NaN in frames that are not valid
    hand_weight: Floats  # [T, 2] how much each detected hand counted, in [0, 1]
    motion_error_percent: float | None = None  # of surface points against the pixels' motion; None if not followed


def fit(
    detections: Detections,
    body: BodyModel,
    landmarks: Landmarks,
    options: FitOptions | None = None,
    progress: Callable[..., Any] = tqdm,
    source: Path | None = None,
) -> Track:
    """Fit `body` to `detections`; ValueError if no frame shows a face.

    Given the video `source` of the detections, the fit also follows the motion of its pixels.
    """
    options = options or FitOptions()
    frames = solved_frames(detections, options)
    if len(frames) == 0:
        raise ValueError("no person found: no frame shows a face that the detector knows")
    focal = options.focal_per_side * max(detections.width, detections.height)
    intrinsics = np.array([[focal, 0, detections.width / 2], [0, focal, detections.height / 2], [0, 0, 1]], np.float32)
    outline = outline_of(detections, frames, body)
    at = coarse_frames(frames, detections, options)
    rows = torch.from_numpy(np.searchsorted(frames, at))
    objective = Objective(body, landmarks, intrinsics, options, outline=outline.rows(rows))
    targets = targets_of(detections, landmarks, at, options)
    variables = start_values(objective.model, targets, detections)
    coarse_start = replace(variables, **{name: getattr(variables, name).clone() for name in FRAME_RATES})
    minimise(objective, variables, targets, FRAME_RATES | CLIP_RATES, options.num_coarse_steps, progress, "fit shape")
    rates = {name: rate / 3 for name, rate in FRAME_RATES.items()}
    if len(at) < len(frames):
        targets = targets_of(detections, landmarks, frames, options)
        objective = Objective(body, landmarks, intrinsics, options, outline=outline)
        start = start_values(objective.model, targets, detections)
        variables = refined_start(variables, coarse_start, start, at, frames)
        minimise(objective, variables, targets, rates, options.num_fine_steps, progress, "fit motion")
    if source is not None:
        with torch.no_grad():
            params = objective.model(variables)[0]
        motion = measure_motion(source, detections, frames, body, params, intrinsics, progress)
        if motion is not None:
            # The outline has done its part for shape and arms; without its points a step takes half the time.
            objective = Objective(body, landmarks, intrinsics, options, motion)
            minimise(objective, variables, targets, rates, options.num_motion_steps, progress, "fit surface")
    return track_of(objective, variables, targets, detections)


def minimise(
    objective: Objective,
    variables: Variables,
    targets: Targets,
    rates: dict[str, float],
    num_steps: int,
    progress: Callable[..., Iterable[int]],
    title: str,
) -> None:
    """Adam with a learning rate for each variable in `rates`, falling to zero along a cosine. In place."""
    for name in rates:
        getattr(variables, name).requires_grad_(True)
    optimizer = torch.optim.Adam([{"params": [getattr(variables, name)], "lr": rate} for name, rate in rates.items()])
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps, eta_min=0)
    for step in progress(range(num_steps), desc=title, unit="step"):
        if step % OUTLINE_EVERY == 0:
            objective.nearest = None
        optimizer.zero_grad()
        loss = sum(objective.terms(variables, targets).values(), start=torch.zeros(()))
        loss.backward()
        optimizer.step()
        falling.step()
    for name in rates:
        getattr(variables, name).requires_grad_(False)


def track_of(objective: Objective, variables: Variables, targets: Targets, detections: Detections) -> Track:
    """Spread the solved frames over the clip; frames that no face explains are invalid and hold zeros."""
    model = objective.model
    with torch.no_grad():
        params, points = model(variables)
        face, body, hands = (model.project(part) for part in (points.face, points.body, points.hands))
        motion, motion_error = objective.motion, None
        if motion is not None:
            off = objective.motion_off(motion, points.surface, 100 / targets.face_height[:, None])
            motion_error = float(motion.mean(off.norm(dim=-1)))
    error = (face - targets.face).norm(dim=-1).mean(-1) / targets.face_height * 100
    seen = targets.face_weight.sum(-1) > 0
    good = (~seen | (error < objective.options.max_error_percent)).numpy()
    count, index = detections.num_frames, targets.frames[good]
    if len(index) == 0:
        raise ValueError("no person found: what the detector takes for a face cannot be one")

    def spread(value: Tensor) -> Tensor:
        full = torch.zeros(count, *value.shape[1:])
        full[index] = value[torch.from_numpy(good)]
        return full

    whole = params.map(lambda value: value if value.dim() == 1 else spread(value))
    frame_valid = np.zeros(count, bool)
    frame_valid[index] = True
    columns = model.landmarks.pose_index

    def drawn(values: Tensor, shape: tuple[int, ...], fill: float, at: NDArray[np.int64] | None = None) -> Floats:
        full = np.full((count, *shape), fill, np.float32)
        full[index if at is None else np.ix_(index, at)] = values.numpy()[good]
        return full

    return Track(
        whole,
        frame_valid,
        model.intrinsics.numpy(),
        face=drawn(face, (478, 2), np.nan),
        pose=drawn(body, (33, 2), np.nan, columns),
        pose_weight=drawn(targets.pose_weight, (33,), 0.0, columns),
        hands=drawn(hands, (2, 21, 2), np.nan),
        hand_weight=drawn(targets.hand_weight, (2,), 0.0),
        motion_error_percent=motion_error,
    )
