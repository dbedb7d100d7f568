"""What a perfect detector would see of a known body, for the tests of the tracker."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from visa.networks.body import BodyModel, BodyParams
from visa.networks.joints import HEAD
from visa.tools.track.correspond import Landmarks
from visa.tools.track.detect import Detections

needs_mediapipe = pytest.mark.skipif(
    importlib.util.find_spec("mediapipe") is None, reason="the extra `track` is not installed"
)


def quiet(items: Iterable[Any], **_: object) -> Iterable[Any]:
    """No progress bar."""
    return items


def face_points(body: BodyModel, landmarks: Landmarks, params: BodyParams) -> np.ndarray:
    """[T, 478, 3] by the full mesh, not by the fitter's own point model."""
    vertices = body(params)[0].numpy()
    corners = body.faces.numpy()[landmarks.face_index]
    return (vertices[:, corners] * landmarks.face_barycentric[..., None]).sum(2)


def synthetic(body: BodyModel, landmarks: Landmarks, count: int = 16) -> tuple[Detections, BodyParams]:
    """What a perfect detector would see of a talking, nodding, blinking body at 1.1 m, 320 x 240 px, focal 384 px."""
    time = torch.linspace(0, 1, count)
    params = BodyParams.zeros((count,), body.num_expressions)
    params.body_pose[:, 14, 1] = 0.5 * torch.sin(4 * time)
    params.body_pose[:, 14, 0] = 0.15 * torch.cos(5 * time)
    params.body_pose[:, 15, 2], params.body_pose[:, 16, 2] = -1.1, 1.1
    params.jaw_pose[:, 0] = 0.15 * (1 - torch.cos(9 * time))
    for name in ("eyeBlinkLeft", "eyeBlinkRight"):
        params.expression[:, body.expression_names.index(name)] = 0.35 * (1 - torch.cos(7 * time))
    for name in ("browInnerUp", "browOuterUpLeft", "browOuterUpRight"):
        params.expression[:, body.expression_names.index(name)] = 0.3 * (1 - torch.cos(6 * time))
    head = body(params)[1][:, HEAD]
    params.transl = torch.tensor([0.02, 0.0, -1.1]) - head[:1] + 0.03 * torch.stack([time, -time, time], -1)
    joints = body(params)[1].numpy()

    def view(points: np.ndarray) -> np.ndarray:
        depth = -points[..., 2]
        relative = (depth - depth[..., :1]) / depth.mean() * 384
        return np.stack([points[..., 0] / depth * 384 + 160, 120 - points[..., 1] / depth * 384, relative], -1)

    pose = np.full((count, 33, 4), np.nan, np.float32)
    turns = body.joint_transforms(params)[:, landmarks.pose_joint, :3, :3].numpy()
    where = joints[:, landmarks.pose_joint] + (turns @ landmarks.pose_offset[..., None])[..., 0]
    pose[..., 3] = 0
    pose[:, landmarks.pose_index, :3] = view(where)
    pose[:, (11, 12), 3] = 1.0
    hand = np.full((count, 21, 3), np.nan, np.float32)
    face = view(face_points(body, landmarks, params)).astype(np.float32)
    mask = np.zeros((count, 192, 256), np.uint8)
    mask[:, 40:, 60:200] = 255
    return Detections(face, pose, hand, hand.copy(), mask, np.zeros(count, np.int64), 320, 240, 25.0), params
