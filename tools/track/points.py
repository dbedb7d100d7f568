"""Points of the body model in the world and in the picture, as the fit's variables place them.

The head's pose in space is the variable, not the pelvis': the face fixes it to a fraction of a pixel, while the torso
is seen by few points, so the torso has to hang on the head and not the head on the torso.

Letters in shapes: N solved frames, P points, S surface points.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visa.networks.body import BodyModel, BodyParams, rotation_matrices
from visa.networks.joints import HEAD, NECK, SPINE
from visa.tools.track.correspond import Landmarks
from visa.tools.track.detect import NUM_FACE_POINTS
from visa.tools.track.skeleton import matrix_to_axis_angle
from visa.tools.track.variables import Variables

Floats = NDArray[np.float32]

# The world is y-up with the camera at its origin looking along -z, so that a person who faces the camera has no
# global rotation.
WORLD_TO_CAMERA = np.diag([1.0, -1.0, -1.0, 1.0]).astype(np.float32)


class Points(NamedTuple):
    """World points of the body in N frames, m."""

    face: Tensor  # [N, 478, 3]
    joints: Tensor  # [N, 55, 3]
    body: Tensor  # [N, P, 3]
    hands: Tensor  # [N, 2, 21, 3]
    outline: Tensor  # [N, S, 3] held against the matte
    surface: Tensor  # [N, S, 3] followed through the pixels


class PosedPoints:
    """The body's points under one camera.

    Args:
        body: the whole body model.
        landmarks: which of its points the detector finds.
        intrinsics: `[3,3]` px.
        outline: `[S]` vertices that are held against the matte.
        surface: `[S]` vertices that are followed through the pixels.
    """

    def __init__(
        self, body: BodyModel, landmarks: Landmarks, intrinsics: Floats, outline: Tensor, surface: Tensor
    ) -> None:
        self.landmarks = landmarks
        self.intrinsics = torch.from_numpy(intrinsics)
        self.num_outline = len(outline)
        self.body = point_model(body, landmarks, torch.cat([outline, surface]))
        vertices, joints = self.body(BodyParams.zeros((1,), body.num_expressions))
        self.rest_face = vertices[0, :NUM_FACE_POINTS]
        self.rest_joints = joints[0]
        self.face_size = float((self.rest_face[10] - self.rest_face[152]).norm())  # m

    def project(self, points: Tensor) -> Tensor:
        """World points [..., 3] (m) to px [..., 2]."""
        camera = points * points.new_tensor([1.0, -1.0, -1.0])
        depth = camera[..., 2:].clamp_min(0.05)
        return camera[..., :2] / depth * self.intrinsics[(0, 1), (0, 1)] + self.intrinsics[:2, 2]

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

    def __call__(self, variables: Variables) -> tuple[BodyParams, Points]:
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
