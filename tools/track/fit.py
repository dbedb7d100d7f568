"""Fit the body model to the detections of a clip: one shape and one camera, and a pose and expression a frame, smooth
in time.

All frames are solved together. The head's pose in space is the variable, not the pelvis': the face fixes it to a
fraction of a pixel, while the torso is seen by few points, so the torso has to hang on the head and not the head on
the torso.

Letters in shapes: T frames of the clip, N solved frames, P points, E expression components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from visa.networks.body import BodyModel, BodyParams, rotation_matrices
from visa.tools.track.arms import PALM, ArmPoints, RestArms, arm_rotations
from visa.tools.track.correspond import Landmarks
from visa.tools.track.detect import NUM_FACE_POINTS, Detections
from visa.tools.track.outline import Outline, outline_of
from visa.tools.track.surface import SurfaceMotion, measure_motion

Floats = NDArray[np.float32]

# Joint indices in SMPL-X order; `body_pose` leaves out the pelvis, so joint j is its row j - 1.
SPINE, NECK, HEAD = (3, 6, 9), 12, 15
COLLARS, SHOULDERS, ELBOWS, WRISTS = (13, 14), (16, 17), (18, 19), (20, 21)
ARMS = (SHOULDERS, ELBOWS, WRISTS)
ARM_POINTS = ((11, 13, 15), (12, 14, 16))  # the detector's shoulder, elbow, wrist; left, right
# The world is y-up with the camera at its origin looking along -z, so that a person who faces the camera has no
# global rotation.
WORLD_TO_CAMERA = np.diag([1.0, -1.0, -1.0, 1.0]).astype(np.float32)
# Pairs of face points whose distance is what a viewer sees of speech and blinks: lips' inner rims, lids.
MOUTH_PAIRS = ((13, 14), (82, 87), (312, 317), (81, 178), (311, 402), (80, 88), (310, 318), (78, 308))
EYE_PAIRS = ((159, 145), (158, 153), (160, 144), (386, 374), (385, 380), (387, 373))
# Brows against the corners of their eyes: two in a hundred of the points, and what a viewer sees of surprise or anger.
BROW_PAIRS = (
    (107, 133), (66, 133), (105, 133), (66, 33), (105, 33), (63, 33), (70, 33),
    (336, 362), (296, 362), (334, 362), (296, 263), (334, 263), (293, 263), (300, 263),
)  # fmt: skip
# How stiffly a joint of an arm keeps to its start where what it turns is seen, and where it is not; spine and collars
# are 5, others 1.
STIFF_SEEN, STIFF_UNSEEN = 0.05, 20.0
STEADY_FRAMES = 9  # in most of which a hand is found
MAX_WRIST_START = 1.2  # rad
OUTLINE_REACH = 12.0  # percent of the face's height
OUTLINE_EVERY = 10  # steps after which the outline's nearest surface points are sought anew
MAX_BEND, MAX_TWIST, MAX_WRIST = 2.6, 1.4, 1.0  # rad, of an elbow's hinge, of a forearm about itself, of a wrist
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip


@dataclass(frozen=True)
class FitOptions:
    """Weights of the fit. Residuals are in percent of the face's height, so that they hold at any picture size."""

    focal_per_side: float = (
        1.2  # focal length over the longer side: a field of view of 45 degrees; a face alone cannot tell it
    )
    coarse_stride: int = 5  # shape and a first motion are found from every fifth frame
    max_coarse_frames: int = 400
    num_coarse_steps: int = 250
    num_fine_steps: int = 150
    num_motion_steps: int = 400
    robust_percent: float = 2.0  # residual beyond which a point counts as an outlier
    oval_weight: float = 0.5  # the outline is the detector's weakest part: cheeks hide it
    iris_weight: float = 2.0
    pair_weight: float = 1.0
    body_weight: float = 1.0
    hand_weight: float = 0.4
    outline_weight: float = 1.0  # of the matte's outline
    motion_weight: float = 4.0  # of the surface's motion in the pixels
    shape_prior: float = 0.003
    expression_offset_prior: float = 1.0  # the clip's mean expression stands in for what the shape space lacks
    expression_prior: float = 0.1
    expression_bound_prior: float = 5.0
    pose_prior: float = 0.3
    limit_prior: float = 5.0
    head_smoothness: float = 4.0
    face_smoothness: float = 0.15
    body_smoothness: float = 1.0
    max_gap_seconds: float = 0.2  # a face missing for longer makes its frames invalid
    max_error_percent: float = 6.0  # a frame that fits worse than this shows no face that the model can explain


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


@dataclass
class Targets:
    """Detections of the N solved frames as tensors; absent points have weight 0 and no NaN."""

    frames: NDArray[np.int64]  # [N] index into the clip
    face: Tensor  # [N, 478, 2] px
    face_weight: Tensor  # [N, 478]
    pose: Tensor  # [N, P, 2] px, rows of `Landmarks.pose_index`
    pose_weight: Tensor  # [N, P]
    hands: Tensor  # [N, 2, 21, 2] px, left then right
    hand_weight: Tensor  # [N, 2]
    arm_seen: Tensor  # [N, 6, 1] see `arms_seen`, in the order of ARMS
    face_height: Tensor  # [N] px
    triples: Tensor  # [M, 3] consecutive solved frames of one shot, for second differences


@dataclass
class Variables:
    """What the optimiser moves. Rotations are axis-angle increments on the start values."""

    betas: Tensor  # [10]
    expression_offset: Tensor  # [E]
    expression: Tensor  # [N, E]
    head_start: Tensor  # [N, 3, 3] constant
    body_start: Tensor  # [N, 21, 3] constant; what joints that are not seen keep to
    head_turn: Tensor  # [N, 3]
    head_position: Tensor  # [N, 3] m, of the head joint in the world
    global_orient: Tensor  # [N, 3]
    body_pose: Tensor  # [N, 21, 3]; the head's row is not used
    jaw_pose: Tensor  # [N, 3]
    eye_pose: Tensor  # [N, 2, 3]
    hand_pose: Tensor  # [N, 2, 15, 3]


class Points(NamedTuple):
    """World points of the body in N frames, m."""

    face: Tensor  # [N, 478, 3]
    joints: Tensor  # [N, 55, 3]
    body: Tensor  # [N, P, 3]
    hands: Tensor  # [N, 2, 21, 3]
    outline: Tensor  # [N, S, 3] held against the matte
    surface: Tensor  # [N, S, 3] followed through the pixels


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] to vectors [..., 3] (rad), for angles well below pi; differentiable at the
    identity.
    """
    skew = torch.stack(
        [
            matrix[..., 2, 1] - matrix[..., 1, 2],
            matrix[..., 0, 2] - matrix[..., 2, 0],
            matrix[..., 1, 0] - matrix[..., 0, 1],
        ],
        -1,
    )  # 2 sin(angle) axis
    sine = ((skew * skew).sum(-1) + 1e-12).sqrt() / 2
    cosine = (matrix.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return skew * (torch.atan2(sine, cosine) / (2 * sine))[..., None]


def solved_frames(detections: Detections, options: FitOptions) -> NDArray[np.int64]:
    """Frames with a face, and gaps between them that are short and within one shot."""
    has_face, shot = detections.has_face, detections.shot
    keep = has_face.copy()
    seen = np.flatnonzero(has_face)
    for start, stop in pairwise(seen):
        if 1 < stop - start <= options.max_gap_seconds * detections.fps + 1 and shot[start] == shot[stop]:
            keep[start:stop] = True
    return np.flatnonzero(keep)


def targets_of(detections: Detections, landmarks: Landmarks, frames: NDArray[np.int64], options: FitOptions) -> Targets:
    """Gather the detections of `frames`, weighted by how far each point can be trusted."""
    known = detections.has_face[frames]
    face = np.nan_to_num(detections.face[frames, :, :2])
    weight = np.ones((len(frames), NUM_FACE_POINTS), np.float32)
    weight[:, list(FACE_OVAL)] = options.oval_weight
    height = interpolate(detections.face_height[frames])
    for iris, (upper, lower) in ((range(468, 473), (159, 145)), (range(473, 478), (386, 374))):
        opening = np.linalg.norm(face[:, upper] - face[:, lower], axis=-1) / height
        # Behind a closing lid the detector guesses the iris.
        weight[:, list(iris)] = options.iris_weight * np.clip((opening - 0.01) / 0.02, 0, 1)[:, None]
    for hand in (detections.left_hand, detections.right_hand):
        # A hand before the face is found in some frames only: distrust what it covers a few frames before and after,
        # too.
        near = [np.clip(frames + shift, 0, detections.num_frames - 1) for shift in (-6, -4, -2, 0, 2, 4, 6)]
        weight *= 1 - 0.9 * np.max([covered(face, hand[index, :, :2]) for index in near], axis=0)
    weight *= known[:, None]

    visibility = np.nan_to_num(detections.pose[:, landmarks.pose_index, 3])
    visibility = median_in_time(np.clip((visibility - 0.5) / 0.4, 0, 1))[frames]
    pose = np.nan_to_num(detections.pose[frames][:, landmarks.pose_index, :2])
    outside = ((pose < 0) | (pose > (detections.width, detections.height))).any(-1)
    hands = np.stack([detections.left_hand[frames, :, :2], detections.right_hand[frames, :, :2]], 1)
    hand_weight = np.isfinite(hands[:, :, 0, 0]) * hands_seen(detections)[frames]
    arm_seen = arms_seen(detections)[frames].transpose(0, 2, 1).reshape(len(frames), 6, 1)
    steps = (np.diff(frames) == 1) & (np.diff(detections.shot[frames]) == 0)
    first = np.flatnonzero(steps[:-1] & steps[1:])
    return Targets(
        frames=frames,
        face=torch.from_numpy(face),
        face_weight=torch.from_numpy(weight.astype(np.float32)),
        pose=torch.from_numpy(pose),
        pose_weight=torch.from_numpy((visibility * np.where(outside, 0.3, 1)).astype(np.float32)),
        hands=torch.from_numpy(np.nan_to_num(hands)),
        hand_weight=torch.from_numpy(hand_weight.astype(np.float32)),
        arm_seen=torch.from_numpy(arm_seen),
        face_height=torch.from_numpy(height.astype(np.float32)),
        triples=torch.from_numpy(np.stack([first, first + 1, first + 2], -1)),
    )


def interpolate(values: Floats) -> Floats:
    """Fill NaN rows of [N, ...] linearly from their neighbours: start values and scales only, never results."""
    flat = values.reshape(len(values), -1).copy()
    known = np.isfinite(flat).all(1)
    for column in range(flat.shape[1]):
        flat[~known, column] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), flat[known, column])
    return flat.reshape(values.shape)


def median_in_time(values: Floats, radius: int = 4) -> Floats:
    """Running median of [N, ...] along the first axis, so that a limb does not flicker in and out."""
    padded = np.pad(values, ((radius, radius), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=0), axis=-1)


def covered(points: Floats, hand: Floats) -> NDArray[np.bool_]:
    """Which of `points` [N, P, 2] lie within a finger's width of the bones of `hand` [N, 21, 2] (NaN rows cover
    nothing).
    """
    bones = [(i, i + 1) for i in range(20) if (i + 1) % 4 != 1] + [
        (0, 5),
        (0, 9),
        (0, 13),
        (0, 17),
        (5, 9),
        (9, 13),
        (13, 17),
    ]
    width = 0.35 * np.linalg.norm(hand[:, 5] - hand[:, 17], axis=-1)
    result = np.zeros(points.shape[:2], bool)
    for i, j in bones:
        start, along = hand[:, None, i], (hand[:, j] - hand[:, i])[:, None]
        position = ((points - start) * along).sum(-1) / np.maximum((along * along).sum(-1), 1e-6)
        distance = np.linalg.norm(points - start - np.clip(position, 0, 1)[..., None] * along, axis=-1)
        result |= distance < width[:, None]
    return result


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


def rest_pose() -> Tensor:
    """[21, 3] what unseen joints fall back to: standing, arms hanging a little away from the body."""
    pose = torch.zeros(21, 3)
    for side, (collar, shoulder, elbow) in zip((-1, 1), zip(COLLARS, SHOULDERS, ELBOWS, strict=True), strict=True):
        pose[collar - 1, 2] = 0.1 * side
        pose[shoulder - 1, 2] = 1.1 * side
        pose[elbow - 1, 1] = 0.2 * side
    return pose


def point_model(body: BodyModel, landmarks: Landmarks, surface: Tensor) -> BodyModel:
    """A model whose "vertices" are the 478 face points, the 10 fingertips and the vertices `surface` [S].

    Blending each triangle's skinning weights first is exact where they are constant over the triangle; elsewhere the
    error is of second order in the triangle's size (under 0.1 mm), and the model is a third of the size.
    """
    corners = body.faces[torch.from_numpy(landmarks.face_index)]  # [478, 3]
    whole = torch.cat([torch.from_numpy(landmarks.fingertips).flatten(), surface])
    corners = torch.cat([corners, whole.view(-1, 1).expand(-1, 3)])
    one = torch.tensor([[1.0, 0.0, 0.0]]).expand(len(whole), -1)
    mix = torch.cat([torch.from_numpy(landmarks.face_barycentric), one])

    def blend(values: Tensor) -> Tensor:
        return torch.einsum("pk,pk...->p...", mix, values[corners])

    return BodyModel(
        blend(body.v_template),
        blend(body.blendshapes),
        body.joint_template,
        body.joint_blendshapes,
        blend(body.lbs_weights),
        body.parents.tolist(),
        body.faces[:0],
        posedirs=None if body.posedirs is None else blend(body.posedirs),
        expression_names=body.expression_names,
    )


def hands_seen(detections: Detections) -> Floats:
    """[T, 2] in [0, 1]: how surely a hand is where the detector says: it answers where no hand is, but then the wrist
    is not seen, and not in most frames around.
    """
    found = np.isfinite(np.stack([detections.left_hand, detections.right_hand], 1)[:, :, 0, 0])
    wrists = np.nan_to_num(detections.pose[:, (15, 16), 3])
    steady = ndimage.uniform_filter1d(found.astype(np.float32), STEADY_FRAMES, axis=0, mode="nearest")
    return np.clip(np.maximum((wrists - 0.5) / 0.4, (steady - 0.6) / 0.3), 0, 1).astype(np.float32)


def arms_seen(detections: Detections) -> Floats:
    """[T, 2, 3] in [0, 1]: how surely the detector sees what shoulder, elbow and wrist turn, and not for a moment
    only: the elbow, the wrist and the hand; left and right.
    """
    visibility = np.nan_to_num(detections.pose[:, list(ARM_POINTS), 3])[..., 1:]  # [T, 2, 2]
    steady = median_in_time(visibility.reshape(len(visibility), -1)).reshape(visibility.shape)
    elbow, wrist = np.moveaxis(np.clip((steady - 0.3) / 0.4, 0, 1), -1, 0)
    found = np.isfinite(np.stack([detections.left_hand, detections.right_hand], 1)[:, :, 0, 0])
    hand = hands_seen(detections) * (median_in_time(found.astype(np.float32)) > 0.5)
    return np.stack([np.maximum(elbow, hand), np.maximum(wrist, hand), hand], -1).astype(np.float32)


def arm_points(detections: Detections, frames: NDArray[np.int64], scale: Tensor) -> ArmPoints:
    """What the detector says of the arms in `frames [N]`, its jumps taken out; `scale [N]` px a metre."""
    towards = np.array([1, -1, -1], np.float32)
    pose = interpolate(detections.pose[:, list(ARM_POINTS), :3])  # [T, 2, 3, 3]
    hands = np.stack([detections.left_hand, detections.right_hand], 1)
    has_palm = np.isfinite(hands[:, :, list(PALM)]).all((-1, -2))
    pose[:, :, 2, :2] = np.where(has_palm[..., None], hands[:, :, 0, :2], pose[:, :, 2, :2])  # nearer than the body's
    pose = median_in_time(pose.reshape(len(pose), -1), 2).reshape(pose.shape)
    return ArmPoints(
        arms=torch.from_numpy((pose * towards)[frames].astype(np.float32)),
        palm=torch.from_numpy((np.nan_to_num(hands[:, :, list(PALM)]) * towards)[frames]),
        has_palm=torch.from_numpy(has_palm[frames]),
        scale=scale,
    )


class ClipFitter:
    """The objective: the body model's points against `Targets`, plus priors. `fit()` is the entry point."""

    def __init__(
        self,
        body: BodyModel,
        landmarks: Landmarks,
        intrinsics: Floats,
        options: FitOptions,
        motion: SurfaceMotion | None = None,
        outline: Outline | None = None,
    ) -> None:
        self.landmarks, self.options, self.motion, self.outline = landmarks, options, motion, outline
        self.intrinsics = torch.from_numpy(intrinsics)
        none = torch.zeros(0, dtype=torch.long)
        beside = none if outline is None else outline.vertex_ids
        self.num_outline = len(beside)
        followed = none if motion is None else torch.from_numpy(motion.vertex_ids)
        self.body = point_model(body, landmarks, torch.cat([beside, followed]))
        self.nearest: tuple[Tensor, Tensor] | None = None  # see `Outline.nearest`; sought anew every few steps
        zero = BodyParams.zeros((1,), body.num_expressions)
        vertices, joints = self.body(zero)
        self.rest_face = vertices[0, :NUM_FACE_POINTS]
        self.rest_joints = joints[0]
        self.face_size = float((self.rest_face[10] - self.rest_face[152]).norm())  # m
        self.rest_pose = rest_pose()

    def project(self, points: Tensor) -> Tensor:
        """World points [..., 3] (m) to px [..., 2]."""
        camera = points * points.new_tensor([1.0, -1.0, -1.0])
        depth = camera[..., 2:].clamp_min(0.05)
        return camera[..., :2] / depth * self.intrinsics[(0, 1), (0, 1)] + self.intrinsics[:2, 2]

    def start(self, targets: Targets, detections: Detections) -> Variables:
        """Start values: the head by Procrustes, everything else at rest."""
        count = len(targets.frames)
        focal, centre = float(self.intrinsics[0, 0]), (float(self.intrinsics[0, 2]), float(self.intrinsics[1, 2]))
        rotation, origin = rigid_start(
            self.rest_face.numpy(), interpolate(detections.face[targets.frames]), focal, centre
        )
        head = torch.from_numpy(rotation) @ self.rest_joints[HEAD] + torch.from_numpy(origin)
        num_expressions = self.body.num_expressions
        variables = Variables(
            betas=torch.zeros(10),
            expression_offset=torch.zeros(num_expressions),
            expression=torch.zeros(count, num_expressions),
            head_start=torch.from_numpy(rotation),
            body_start=self.rest_pose.repeat(count, 1, 1),
            head_turn=torch.zeros(count, 3),
            head_position=head,
            global_orient=torch.zeros(count, 3),
            body_pose=self.rest_pose.repeat(count, 1, 1),
            jaw_pose=torch.zeros(count, 3),
            eye_pose=torch.zeros(count, 2, 3),
            hand_pose=torch.zeros(count, 2, 15, 3),
        )
        pose = self.with_arms(variables, targets, detections)
        return replace(variables, body_start=pose, body_pose=pose.clone())

    def with_arms(self, variables: Variables, targets: Targets, detections: Detections) -> Tensor:
        """`variables.body_pose [N,21,3]` with shoulders, elbows and wrists laid where the arms are seen.

        Where the next point along the arm is not seen for a while, a joint goes over from how it was to how it will
        be; one that is never seen stays at rest.
        """
        pose = variables.body_pose.clone()
        seen = torch.from_numpy(arms_seen(detections)[targets.frames]) > 0.5  # [N, 2, 3]
        if not seen.any():
            return pose
        collar = self.body.joint_transforms(self.params(variables))[:, list(COLLARS), :3, :3]
        zero = BodyParams.zeros((1,), self.body.num_expressions)
        joints = self.body(zero)[1]
        palm = self.landmarks.hand_points(joints, joints.new_zeros(1, 2, 5, 3))[0, :, list(PALM)]
        rest = RestArms(joints[0, torch.tensor(ARMS).T], palm)
        scale = targets.face_height / self.face_size
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

    def params(self, variables: Variables) -> BodyParams:
        """Body parameters of the variables, before the translation that puts the head in its place."""
        count = len(variables.head_turn)
        torso = rotation_matrices(variables.global_orient)
        for joint in (*SPINE, NECK):
            torso = torso @ rotation_matrices(variables.body_pose[:, joint - 1])
        head = rotation_matrices(variables.head_turn) @ variables.head_start
        local = matrix_to_axis_angle(torso.transpose(-1, -2) @ head)
        pose = torch.cat([variables.body_pose[:, : HEAD - 1], local[:, None], variables.body_pose[:, HEAD:]], 1)
        return BodyParams(
            betas=variables.betas,
            expression=variables.expression_offset + variables.expression,
            global_orient=variables.global_orient,
            transl=torch.zeros(count, 3),
            body_pose=pose,
            jaw_pose=variables.jaw_pose,
            leye_pose=variables.eye_pose[:, 0],
            reye_pose=variables.eye_pose[:, 1],
            left_hand_pose=variables.hand_pose[:, 0],
            right_hand_pose=variables.hand_pose[:, 1],
        )

    def points(self, variables: Variables) -> tuple[BodyParams, Points]:
        """Parameters and world points."""
        params = self.params(variables)
        vertices, joints = self.body(params)
        shift = variables.head_position - joints[:, HEAD]
        vertices, joints = vertices + shift[:, None], joints + shift[:, None]
        turns = self.body.joint_transforms(params)[:, self.landmarks.pose_joint, :3, :3]
        body = joints[:, self.landmarks.pose_joint]
        body = body + (turns @ torch.from_numpy(self.landmarks.pose_offset)[..., None])[..., 0]
        ends = (NUM_FACE_POINTS, NUM_FACE_POINTS + 10, NUM_FACE_POINTS + 10 + self.num_outline)
        face, tips, outline, surface = vertices.tensor_split(ends, 1)
        hands = self.landmarks.hand_points(joints, tips.unflatten(1, (2, 5)))
        return replace(params, transl=shift), Points(face, joints, body, hands, outline, surface)

    def terms(self, variables: Variables, targets: Targets) -> dict[str, Tensor]:
        """The weighted terms of the objective, each a scalar; residuals in percent of the face's height."""
        options = self.options
        params, points = self.points(variables)
        percent = 100 / targets.face_height[:, None]
        off = (self.project(points.face) - targets.face) * percent[..., None]
        weight = targets.face_weight
        terms = {"face": (weight * self.robust(off)).sum(1).mean() / NUM_FACE_POINTS}
        for name, pairs in (("mouth", MOUTH_PAIRS), ("eyes", EYE_PAIRS), ("brows", BROW_PAIRS)):
            i, j = (list(side) for side in zip(*pairs, strict=True))
            both = torch.minimum(weight[:, i], weight[:, j])
            terms[name] = options.pair_weight * (both * self.robust(off[:, i] - off[:, j])).mean()
        off = (self.project(points.body) - targets.pose) * percent[..., None]
        terms["body"] = options.body_weight * (targets.pose_weight * self.robust(off, 5)).mean()
        off = (self.project(points.hands) - targets.hands) * percent[..., None, None]
        terms["hands"] = options.hand_weight * (targets.hand_weight[..., None] * self.robust(off, 3)).mean()
        if self.outline is not None:
            terms["outline"] = options.outline_weight * self.outline_off(self.outline, points.outline, percent)
        if self.motion is not None:
            off = self.motion_off(self.motion, points.surface, percent)
            terms["motion"] = options.motion_weight * self.motion.mean(self.robust(off))
        terms |= self.priors(variables, targets, params)
        if len(targets.triples):
            terms |= self.smoothness(variables, targets, points.face, points.joints)
        return terms

    def outline_off(self, outline: Outline, surface: Tensor, percent: Tensor) -> Tensor:
        """How far the surface points [N, S, 3] reach beyond the matte, and its outline beyond them."""
        places = self.project(surface)
        if self.nearest is None:
            self.nearest = outline.nearest(places)
        index, counts = self.nearest
        beyond = self.robust(torch.stack([outline.beyond(places) * percent, torch.zeros_like(places[..., 0])], -1))
        off = (places.gather(1, index[..., None].expand(-1, -1, 2)) - outline.places) * percent[..., None]
        off = torch.where(counts[..., None], off, 0.0)
        far = (off.detach().square().sum(-1, keepdim=True) + 1e-9).sqrt()
        within = 100 * outline.spacing / 2 / self.face_size  # between two surface points
        # What lies far off is hair, a skirt or a thing in the hand: it does not pull.
        trust = 1 / (1 + (far / OUTLINE_REACH) ** 4)
        missed = self.robust(off * torch.relu(1 - within / far)) * trust[..., 0]
        return beyond.mean() + missed.sum() / counts.sum().clamp_min(1)

    def motion_off(self, motion: SurfaceMotion, surface: Tensor, percent: Tensor) -> Tensor:
        """By how much [L, S, 2] the surface points [N, S, 3] move otherwise than the picture does."""
        places = self.project(surface)
        return (places[motion.frame] - places[motion.key] - motion.shift) * percent[motion.frame][..., None]

    def robust(self, off: Tensor, width: float = 1) -> Tensor:
        """Pseudo-Huber of residuals [..., 2] -> [...]: square near zero, linear beyond `width * robust_percent`."""
        scale = (self.options.robust_percent * width) ** 2
        return 2 * scale * ((1 + (off * off).sum(-1) / scale).sqrt() - 1)

    def priors(self, variables: Variables, targets: Targets, params: BodyParams) -> dict[str, Tensor]:
        """What is likely without looking at the picture."""
        options = self.options
        expression = params.expression
        beyond = torch.relu(-expression - 0.1) + torch.relu(expression - 1.1)
        pose = params.body_pose - variables.body_start
        stiffness = pose.new_ones(len(pose), 21, 1)
        stiffness[:, [joint - 1 for joint in (*SPINE, *COLLARS)]] = 5.0
        stiffness[:, [joint - 1 for pair in ARMS for joint in pair]] = (
            STIFF_UNSEEN + (STIFF_SEEN - STIFF_UNSEEN) * targets.arm_seen
        )
        turn = variables.global_orient * variables.global_orient.new_tensor([3.0, 0.5, 3.0])
        jaw, eyes = variables.jaw_pose, variables.eye_pose
        left, right = (variables.body_pose[:, joint - 1] for joint in ELBOWS)
        wrists = variables.body_pose[:, [joint - 1 for joint in WRISTS]]
        # An elbow is a hinge that opens to straight, and twists with the forearm.
        bent = torch.stack([left[:, 1], -right[:, 1]])
        twist, off = (torch.stack([left[:, axis], right[:, axis]]) for axis in (0, 2))
        limits = torch.relu(bent).square() + torch.relu(-bent - MAX_BEND).square()
        limits = limits + off.square() + torch.relu(twist.abs() - MAX_TWIST).square()
        return {
            "limits": options.limit_prior * (limits.mean() + torch.relu(wrists.abs() - MAX_WRIST).square().mean()),
            "shape": options.shape_prior * (variables.betas**2).sum(),
            "expression_offset": options.expression_offset_prior * (variables.expression_offset**2).sum(),
            "expression": options.expression_prior * (variables.expression**2).sum(-1).mean(),
            "expression_bound": options.expression_bound_prior * (beyond**2).sum(-1).mean(),
            "pose": options.pose_prior * ((stiffness * pose**2).sum((-1, -2)).mean() + (turn**2).sum(-1).mean()),
            "jaw": (20 * jaw[:, 1:] ** 2).sum(-1).mean() + 50 * (torch.relu(-jaw[:, 0]) ** 2).mean(),
            "eye_pose": 0.2 * (eyes[..., :2] ** 2).sum((-1, -2)).mean()
            + 10 * (eyes[..., 2] ** 2).sum(-1).mean()
            + 5 * ((eyes[:, 0] - eyes[:, 1]) ** 2).sum(-1).mean(),
            "hand_pose": 0.05 * (variables.hand_pose**2).sum((-1, -2, -3)).mean(),
        }

    def smoothness(self, variables: Variables, targets: Targets, face: Tensor, joints: Tensor) -> dict[str, Tensor]:
        """Second differences in percent of the face's height: of the head, of the face in the head's frame, of the
        body.
        """
        before, now, after = targets.triples.unbind(-1)

        def bend(points: Tensor) -> Tensor:
            change = (points[before] - 2 * points[now] + points[after]) * (100 / self.face_size)
            return (change**2).sum(-1).mean()

        head = rotation_matrices(variables.head_turn) @ variables.head_start  # [N, 3, 3]
        position = variables.head_position
        anchors = position[:, None] + 0.1 * torch.cat([head.transpose(-1, -2), -head.transpose(-1, -2)], 1)
        # Depth is seen by the change of size alone, so its noise is larger and hurts less.
        anchors = anchors * anchors.new_tensor([1.0, 1.0, 0.5])
        local = (face - position[:, None]) @ head
        moved = joints[:, [NECK, *COLLARS, *SHOULDERS, *ELBOWS, *WRISTS, 0]] - position[:, None]
        options = self.options
        terms = {
            "head_smoothness": options.head_smoothness * bend(anchors),
            "face_smoothness": options.face_smoothness * bend(local),
            "body_smoothness": options.body_smoothness * bend(moved),
            "eye_smoothness": 0.02 * bend(variables.eye_pose * (self.face_size / 10)),
        }
        return terms

    def minimise(
        self,
        variables: Variables,
        targets: Targets,
        rates: dict[str, float],
        num_steps: int,
        progress: Callable[..., Iterable[int]],
        title: str,
    ) -> None:
        """Adam with a learning rate for each variable in `rates`, falling to a twentieth along a cosine. In place."""
        for name in rates:
            getattr(variables, name).requires_grad_(True)
        optimizer = torch.optim.Adam(
            [{"params": [getattr(variables, name)], "lr": rate} for name, rate in rates.items()]
        )
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps, eta_min=0)
        for step in progress(range(num_steps), desc=title, unit="step"):
            if step % OUTLINE_EVERY == 0:
                self.nearest = None
            optimizer.zero_grad()
            loss = sum(self.terms(variables, targets).values())
            loss.backward()
            optimizer.step()
            falling.step()
        for name in rates:
            getattr(variables, name).requires_grad_(False)


# Learning rates of Adam; of the fine stage a third.
FRAME_RATES = {
    "expression": 0.02,
    "head_turn": 0.01,
    "head_position": 0.01,
    "global_orient": 0.01,
    "body_pose": 0.01,
    "jaw_pose": 0.01,
    "eye_pose": 0.02,
    "hand_pose": 0.02,
}
CLIP_RATES = {"betas": 0.03, "expression_offset": 0.02}


def coarse_frames(frames: NDArray[np.int64], detections: Detections, options: FitOptions) -> NDArray[np.int64]:
    """Every n-th solved frame that shows a face, with the first and last of each shot."""
    seen = frames[detections.has_face[frames]]
    stride = max(options.coarse_stride, -(-len(seen) // options.max_coarse_frames))
    if len(seen) <= 2 * stride:
        return seen
    shot = detections.shot[seen]
    ends = np.flatnonzero(np.r_[True, shot[1:] != shot[:-1]] | np.r_[shot[1:] != shot[:-1], True])
    return seen[np.union1d(np.arange(0, len(seen), stride), ends)]


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
    fitter = ClipFitter(body, landmarks, intrinsics, options, outline=outline.rows(rows))
    targets = targets_of(detections, landmarks, at, options)
    variables = fitter.start(targets, detections)
    coarse_start = replace(variables, **{name: getattr(variables, name).clone() for name in FRAME_RATES})
    fitter.minimise(variables, targets, FRAME_RATES | CLIP_RATES, options.num_coarse_steps, progress, "fit shape")
    rates = {name: rate / 3 for name, rate in FRAME_RATES.items()}
    if len(at) < len(frames):
        targets = targets_of(detections, landmarks, frames, options)
        fitter = ClipFitter(body, landmarks, intrinsics, options, outline=outline)
        variables = refined_start(variables, coarse_start, fitter.start(targets, detections), at, frames)
        fitter.minimise(variables, targets, rates, options.num_fine_steps, progress, "fit motion")
    if source is not None:
        with torch.no_grad():
            params = fitter.points(variables)[0]
        motion = measure_motion(source, detections, frames, body, params, intrinsics, progress)
        if motion is not None:
            # The outline has done its part for shape and arms; without its points a step takes half the time.
            fitter = ClipFitter(body, landmarks, intrinsics, options, motion)
            fitter.minimise(variables, targets, rates, options.num_motion_steps, progress, "fit surface")
    return track_of(fitter, variables, targets, detections)


def track_of(fitter: ClipFitter, variables: Variables, targets: Targets, detections: Detections) -> Track:
    """Spread the solved frames over the clip; frames that no face explains are invalid and hold zeros."""
    with torch.no_grad():
        params, points = fitter.points(variables)
        face, body, hands = (fitter.project(part) for part in (points.face, points.body, points.hands))
        motion, motion_error = fitter.motion, None
        if motion is not None:
            off = fitter.motion_off(motion, points.surface, 100 / targets.face_height[:, None])
            motion_error = float(motion.mean(off.norm(dim=-1)))
    error = (face - targets.face).norm(dim=-1).mean(-1) / targets.face_height * 100
    seen = targets.face_weight.sum(-1) > 0
    good = (~seen | (error < fitter.options.max_error_percent)).numpy()
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
    columns = fitter.landmarks.pose_index

    def drawn(values: Tensor, shape: tuple[int, ...], fill: float, at: NDArray[np.int64] | None = None) -> Floats:
        full = np.full((count, *shape), fill, np.float32)
        full[index if at is None else np.ix_(index, at)] = values.numpy()[good]
        return full

    return Track(
        whole,
        frame_valid,
        fitter.intrinsics.numpy(),
        face=drawn(face, (478, 2), np.nan),
        pose=drawn(body, (33, 2), np.nan, columns),
        pose_weight=drawn(targets.pose_weight, (33,), 0.0, columns),
        hands=drawn(hands, (2, 21, 2), np.nan),
        hand_weight=drawn(targets.hand_weight, (2,), 0.0),
        motion_error_percent=motion_error,
    )
