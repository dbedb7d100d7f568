"""Start values of the fit: the head by Procrustes, arms where they are seen, everything else at rest.

Letters in shapes: N solved frames.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visa.networks.body import BodyParams
from visa.networks.joints import ARMS, COLLARS, HEAD
from visa.tools.track.arms import PALM, RestArms, arm_rotations
from visa.tools.track.detect import Detections
from visa.tools.track.points import PosedPoints
from visa.tools.track.skeleton import matrix_to_axis_angle, rest_pose
from visa.tools.track.targets import Targets, arm_points, arms_seen, interpolate
from visa.tools.track.variables import CLIP_RATES, FRAME_RATES, Variables

Floats = NDArray[np.float32]

MAX_WRIST_START = 1.2  # rad


def start_values(model: PosedPoints, targets: Targets, detections: Detections) -> Variables:
    """Start values: the head by Procrustes, everything else at rest."""
    count = len(targets.frames)
    focal, centre = float(model.intrinsics[0, 0]), (float(model.intrinsics[0, 2]), float(model.intrinsics[1, 2]))
    rotation, origin = rigid_start(model.rest_face.numpy(), interpolate(detections.face[targets.frames]), focal, centre)
    head = torch.from_numpy(rotation) @ model.rest_joints[HEAD] + torch.from_numpy(origin)
    num_expressions = model.body.num_expressions
    variables = Variables(
        betas=torch.zeros(10),
        expression_offset=torch.zeros(num_expressions),
        expression=torch.zeros(count, num_expressions),
        head_start=torch.from_numpy(rotation),
        body_start=rest_pose().repeat(count, 1, 1),
        head_turn=torch.zeros(count, 3),
        head_position=head,
        global_orient=torch.zeros(count, 3),
        body_pose=rest_pose().repeat(count, 1, 1),
        jaw_pose=torch.zeros(count, 3),
        eye_pose=torch.zeros(count, 2, 3),
        hand_pose=torch.zeros(count, 2, 15, 3),
    )
    pose = with_arms(model, variables, targets, detections)
    return replace(variables, body_start=pose, body_pose=pose.clone())


def with_arms(model: PosedPoints, variables: Variables, targets: Targets, detections: Detections) -> Tensor:
    """`variables.body_pose [N,21,3]` with shoulders, elbows and wrists laid where the arms are seen.

    Where the next point along the arm is not seen for a while, a joint goes over from how it was to how it will
    be; one that is never seen stays at rest.
    """
    pose = variables.body_pose.clone()
    seen = torch.from_numpy(arms_seen(detections)[targets.frames]) > 0.5  # [N, 2, 3]
    if not seen.any():
        return pose
    collar = model.body.joint_transforms(model.params(variables))[:, list(COLLARS), :3, :3]
    zero = BodyParams.zeros((1,), model.body.num_expressions)
    joints = model.body(zero)[1]
    palm = model.landmarks.hand_points(joints, joints.new_zeros(1, 2, 5, 3))[0, :, list(PALM)]
    rest = RestArms(joints[0, torch.tensor(ARMS).T], palm)
    scale = targets.face_height / model.face_size
    turns = matrix_to_axis_angle(arm_rotations(arm_points(detections, targets.frames, scale), rest, collar))
    # What the detector makes of a hand edge-on can be any turn: no wrist goes farther than this.
    far = turns[:, :, 2].norm(dim=-1, keepdim=True)
    turns[:, :, 2] *= (MAX_WRIST_START / far.clamp_min(1e-6)).clamp(max=1)
    for row, pair in enumerate(ARMS):
        for side, joint in enumerate(pair):
            known = seen[:, side, row]
            if known.any():
                turn = torch.where(known[:, None], turns[:, side, row], torch.nan)
                pose[:, joint - 1] = torch.from_numpy(interpolate(turn.numpy()))
    return pose


def rigid_start(rest: Floats, face: Floats, focal: float, centre: tuple[float, float]) -> tuple[Floats, Floats]:
    """Head rotation [N, 3, 3] and the world position [N, 3] of the template's origin from the detector's own relative
    depth.

    Weak-perspective Procrustes of `rest` [478, 3] (m) on `face` [N, 478, 3] (px): Umeyama, "Least-squares estimation of
    transformation parameters between two point patterns", 1991.
    """
    target = np.stack(
        [face[..., 0] - centre[0], centre[1] - face[..., 1], -face[..., 2]], -1
    )  # px, y-up, towards the camera
    source = rest - rest.mean(0)
    middle = target.mean(1)
    u, s, vt = np.linalg.svd(np.einsum("npi,pj->nij", target - middle[:, None], source))
    flip = np.stack([np.ones(len(u)), np.ones(len(u)), np.sign(np.linalg.det(u @ vt))], -1)
    rotation = (u * flip[:, None]) @ vt
    scale = (s * flip).sum(-1) / (source**2).sum()  # px per metre
    origin = np.concatenate([middle[:, :2] / scale[:, None], -focal / scale[:, None]], -1)
    return rotation.astype(np.float32), (origin - rotation @ rest.mean(0)).astype(np.float32)


def refined_start(
    coarse: Variables, coarse_start: Variables, start: Variables, at: NDArray[np.int64], frames: NDArray[np.int64]
) -> Variables:
    """Start values for `frames` from a solution at the frames `at`: its difference from the start values,
    interpolated.
    """
    moved = {name: getattr(coarse, name) for name in CLIP_RATES}
    moved |= {"head_start": start.head_start, "body_start": start.body_start}
    for name in FRAME_RATES:
        base = getattr(start, name)
        change = (getattr(coarse, name) - getattr(coarse_start, name)).flatten(1).numpy()
        columns = [np.interp(frames, at, column) for column in change.T]
        moved[name] = base + torch.from_numpy(np.stack(columns, -1).astype(np.float32)).view_as(base)
    return Variables(**moved)
