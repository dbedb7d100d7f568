"""The fit's objective: the body's points against the detections, and what is likely without them.

Letters in shapes: N solved frames, L pairs of a key frame and a frame, S surface points.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visa.networks.body import BodyModel, BodyParams, rotation_matrices
from visa.networks.joints import ARMS, COLLARS, ELBOWS, NECK, SHOULDERS, SPINE, WRISTS
from visa.tools.track.correspond import Landmarks
from visa.tools.track.detect import NUM_FACE_POINTS
from visa.tools.track.options import FitOptions
from visa.tools.track.outline import Outline
from visa.tools.track.points import PosedPoints
from visa.tools.track.surface import SurfaceMotion
from visa.tools.track.targets import Targets
from visa.tools.track.variables import Variables

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
OUTLINE_REACH = 12.0  # percent of the face's height
MAX_BEND, MAX_TWIST, MAX_WRIST = 2.6, 1.4, 1.0  # rad, of an elbow's hinge, of a forearm about itself, of a wrist


class Objective:
    """The weighted terms of the fit.

    Args:
        body: the whole body model.
        landmarks: which of its points the detector finds.
        intrinsics: `[3,3]` px.
        options: weights.
        motion: of the surface in the pixels; None leaves its term out.
        outline: of the mattes; None leaves its term out.
    """

    def __init__(
        self,
        body: BodyModel,
        landmarks: Landmarks,
        intrinsics: NDArray[np.float32],
        options: FitOptions,
        motion: SurfaceMotion | None = None,
        outline: Outline | None = None,
    ) -> None:
        self.options, self.motion, self.outline = options, motion, outline
        none = torch.zeros(0, dtype=torch.long)
        beside = none if outline is None else outline.vertex_ids
        followed = none if motion is None else torch.from_numpy(motion.vertex_ids)
        self.model = PosedPoints(body, landmarks, intrinsics, beside, followed)
        self.nearest: tuple[Tensor, Tensor] | None = None  # see `Outline.nearest`; sought anew every few steps

    def terms(self, variables: Variables, targets: Targets) -> dict[str, Tensor]:
        """The weighted terms of the objective, each a scalar; residuals in percent of the face's height."""
        options = self.options
        params, points = self.model(variables)
        percent = 100 / targets.face_height[:, None]
        off = (self.model.project(points.face) - targets.face) * percent[..., None]
        weight = targets.face_weight
        terms = {"face": (weight * self.robust(off)).sum(1).mean() / NUM_FACE_POINTS}
        for name, pairs in (("mouth", MOUTH_PAIRS), ("eyes", EYE_PAIRS), ("brows", BROW_PAIRS)):
            i, j = (list(side) for side in zip(*pairs, strict=True))
            both = torch.minimum(weight[:, i], weight[:, j])
            terms[name] = options.pair_weight * (both * self.robust(off[:, i] - off[:, j])).mean()
        off = (self.model.project(points.body) - targets.pose) * percent[..., None]
        terms["body"] = options.body_weight * (targets.pose_weight * self.robust(off, 5)).mean()
        off = (self.model.project(points.hands) - targets.hands) * percent[..., None, None]
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
        places = self.model.project(surface)
        if self.nearest is None:
            self.nearest = outline.nearest(places)
        index, counts = self.nearest
        beyond = self.robust(torch.stack([outline.beyond(places) * percent, torch.zeros_like(places[..., 0])], -1))
        off = (places.gather(1, index[..., None].expand(-1, -1, 2)) - outline.places) * percent[..., None]
        off = torch.where(counts[..., None], off, 0.0)
        far = (off.detach().square().sum(-1, keepdim=True) + 1e-9).sqrt()
        within = 100 * outline.spacing / 2 / self.model.face_size  # between two surface points
        # What lies far off is hair, a skirt or a thing in the hand: it does not pull.
        trust = 1 / (1 + (far / OUTLINE_REACH) ** 4)
        missed = self.robust(off * torch.relu(1 - within / far)) * trust[..., 0]
        return beyond.mean() + missed.sum() / counts.sum().clamp_min(1)

    def motion_off(self, motion: SurfaceMotion, surface: Tensor, percent: Tensor) -> Tensor:
        """By how much [L, S, 2] the surface points [N, S, 3] move otherwise than the picture does."""
        places = self.model.project(surface)
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

        Squared as long as they are small, as noise is; what is larger is a motion, and costs no more for being quicker
        (Geman and McClure, 1987): else the points, whose own error counts linearly, would be left behind.
        """
        before, now, after = targets.triples.unbind(-1)

        def bend(points: Tensor, motion: float = math.inf) -> Tensor:
            change = (points[before] - 2 * points[now] + points[after]) * (100 / self.model.face_size)
            square = (change**2).sum(-1)
            return (square / (1 + square / motion**2)).mean()

        head = rotation_matrices(variables.head_turn) @ variables.head_start  # [N, 3, 3]
        position = variables.head_position
        anchors = position[:, None] + 0.1 * torch.cat([head.transpose(-1, -2), -head.transpose(-1, -2)], 1)
        # Depth is seen by the change of size alone, so its noise is larger and hurts less.
        anchors = anchors * anchors.new_tensor([1.0, 1.0, 0.5])
        local = (face - position[:, None]) @ head
        moved = joints[:, [NECK, *COLLARS, *SHOULDERS, *ELBOWS, *WRISTS, 0]] - position[:, None]
        options = self.options
        terms = {
            "head_smoothness": options.head_smoothness * bend(anchors, options.head_motion),
            "face_smoothness": options.face_smoothness * bend(local),
            "body_smoothness": options.body_smoothness * bend(moved, options.body_motion),
            "eye_smoothness": 0.02 * bend(variables.eye_pose * (self.model.face_size / 10)),
        }
        return terms
