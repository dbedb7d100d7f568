"""The tracker's start of arms by inverse kinematics, and its terms of the matte's outline."""

from __future__ import annotations

import numpy as np
import torch

from visa.networks.body import BodyModel, BodyParams, rotation_matrices
from visa.networks.joints import ARMS, COLLARS
from visa.tools.track.arms import PALM, ArmPoints, RestArms, arm_rotations, bone_directions, rigid_rotation
from visa.tools.track.correspond import Landmarks
from visa.tools.track.detect import Detections
from visa.tools.track.outline import Outline, outline_of
from visa.tools.track.skeleton import matrix_to_axis_angle

SCALE = 500.0  # px a metre


def palm_of(landmarks: Landmarks, joints: torch.Tensor) -> torch.Tensor:
    """`[N,2,5,3]`; fingertips are not of the palm."""
    return landmarks.hand_points(joints, joints.new_zeros(len(joints), 2, 5, 3))[:, :, list(PALM)]


def rest_arms(body: BodyModel, landmarks: Landmarks) -> RestArms:
    joints = body(BodyParams.zeros((1,), body.num_expressions))[1]
    return RestArms(joints[0, torch.tensor(ARMS).T], palm_of(landmarks, joints)[0])


def gestures(body: BodyModel, count: int = 20) -> BodyParams:
    """Arms anywhere before the body, elbows bent as hinges, forearms and wrists turned."""
    torch.manual_seed(0)
    params = BodyParams.zeros((count,), body.num_expressions)
    for side, shoulder, elbow, wrist in ((1, 16, 18, 20), (-1, 17, 19, 21)):
        params.body_pose[:, shoulder - 1] = torch.tensor([0.0, -0.3 * side, -0.6 * side]) + 0.4 * torch.randn(count, 3)
        bend = rotation_matrices(torch.tensor([0.0, -1.0 * side, 0.0]) * (0.5 + 1.4 * torch.rand(count, 1)))
        twist = rotation_matrices(torch.tensor([1.0, 0.0, 0.0]) * (torch.rand(count, 1) - 0.5))
        params.body_pose[:, elbow - 1] = matrix_to_axis_angle(bend @ twist)
        params.body_pose[:, wrist - 1] = 0.4 * torch.randn(count, 3)
    return params


def seen_from_afar(body: BodyModel, landmarks: Landmarks, params: BodyParams) -> ArmPoints:
    joints = body(params)[1]
    return ArmPoints(
        arms=joints[:, torch.tensor(ARMS).T] * SCALE,
        palm=palm_of(landmarks, joints) * SCALE,
        has_palm=torch.ones(len(joints), 2, dtype=torch.bool),
        scale=torch.full((len(joints),), SCALE),
    )


def laid(params: BodyParams, turns: torch.Tensor) -> BodyParams:
    """`params` with local rotation matrices `[N,2,3,3,3]` in its arms."""
    pose = params.body_pose.clone()
    for row, pair in enumerate(ARMS):
        pose[:, torch.tensor(pair) - 1] = matrix_to_axis_angle(turns[:, :, row])
    return BodyParams(**{**vars(params), "body_pose": pose})


def test_arms_are_laid_on_the_points_that_the_body_shows(body: BodyModel, landmarks: Landmarks) -> None:
    params = gestures(body)
    points = seen_from_afar(body, landmarks, params)
    collar = body.joint_transforms(params)[:, list(COLLARS), :3, :3]
    found = laid(params, arm_rotations(points, rest_arms(body, landmarks), collar))
    again = seen_from_afar(body, landmarks, found)
    assert (again.arms - points.arms).norm(dim=-1).max() / SCALE < 0.002  # m
    assert (again.palm - points.palm).norm(dim=-1).max() / SCALE < 0.004
    # The hinge: elbows turn about no other axis than their own and the forearm's.
    elbows = rotation_matrices(found.body_pose[:, [17, 18]])
    assert elbows[..., 1, 0].abs().max() < 1e-3


def test_a_short_bone_points_where_the_detector_says(body: BodyModel, landmarks: Landmarks) -> None:
    rest = rest_arms(body, landmarks)
    length = rest.joints.diff(dim=1).norm(dim=-1)  # [2,2]
    arms = torch.zeros(1, 2, 3, 3)
    arms[0, :, 1, 0] = 0.6 * length[:, 0] * SCALE  # to the right, at 0.6 of its length
    arms[0, 0, 1, 2], arms[0, 1, 1, 2] = 1.0, -1.0  # towards the camera, away; by how much is not believed
    arms[0, :, 2] = arms[0, :, 1]
    arms[0, :, 2, 1] = 2 * length[:, 1] * SCALE  # longer than it can be: in the picture's plane
    points = ArmPoints(arms, torch.zeros(1, 2, 5, 3), torch.zeros(1, 2, dtype=torch.bool), torch.tensor([SCALE]))
    found = bone_directions(points, rest)[0]
    torch.testing.assert_close(found[:, 0], torch.tensor([[0.6, 0.0, 0.8], [0.6, 0.0, -0.8]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 1], torch.tensor([[0.0, 1.0, 0.0]]).expand(2, 3), atol=1e-4, rtol=0)


def test_straight_arms_without_hands_keep_their_twist(body: BodyModel, landmarks: Landmarks) -> None:
    params = BodyParams.zeros((1,), body.num_expressions)
    points = seen_from_afar(body, landmarks, params)._replace(has_palm=torch.zeros(1, 2, dtype=torch.bool))
    collar = body.joint_transforms(params)[:, list(COLLARS), :3, :3]
    turns = arm_rotations(points, rest_arms(body, landmarks), collar)
    torch.testing.assert_close(turns, torch.eye(3).expand_as(turns), atol=0.05, rtol=0)


def test_rigid_rotation_is_the_one_that_was_applied() -> None:
    torch.manual_seed(1)
    source, turn = torch.randn(6, 5, 3), rotation_matrices(torch.randn(6, 3))
    moved = source @ turn.mT + torch.randn(6, 1, 3)
    torch.testing.assert_close(rigid_rotation(source, moved), turn, atol=1e-5, rtol=0)


def box_outline(body: BodyModel) -> Outline:
    """Of a person that is a box, 40 to 160 of 240 px wide and from row 60 down, in a clip twice the mask's size."""
    nothing = np.full((1, 21, 3), np.nan, np.float32)
    face = np.full((1, 478, 3), 100.0, np.float32)
    pose = np.full((1, 33, 4), np.nan, np.float32)
    mask = np.zeros((1, 120, 120), np.uint8)
    mask[:, 30:, 20:80] = 255
    detections = Detections(face, pose, nothing, nothing, mask, np.zeros(1, np.int64), 240, 240, 25.0)
    return outline_of(detections, np.array([0]), body)


def test_points_beyond_the_matte_are_as_far_as_they_are(body: BodyModel) -> None:
    outline = box_outline(body)
    points = torch.tensor([[[100.0, 150.0], [180.0, 150.0], [100.0, 40.0], [-30.0, 150.0]]])
    # Inside; 20 px right of it; 20 px above it; outside of the picture, where nobody knows.
    torch.testing.assert_close(outline.beyond(points), torch.tensor([[0.0, 20.0, 20.0, 0.0]]), atol=2.0, rtol=0)


def test_the_outline_has_no_places_at_the_picture_s_border(body: BodyModel) -> None:
    places = box_outline(body).places[0]
    places = places[places.isfinite().all(-1)]
    away = torch.stack([(places[:, 0] - 40).abs(), (places[:, 0] - 160).abs(), (places[:, 1] - 60).abs()]).amin(0)
    assert len(places) > 50
    assert away.max() <= 2


def test_places_beside_the_head_do_not_count(body: BodyModel) -> None:
    outline = box_outline(body)
    points = torch.full((1, len(outline.vertex_ids), 2), 1e4)
    head, other = int(outline.is_head.nonzero()[0]), int((~outline.is_head).nonzero()[0])
    points[0, head], points[0, other] = torch.tensor([100.0, 60.0]), torch.tensor([160.0, 200.0])
    index, counts = outline.nearest(points)
    places = outline.places.isfinite().all(-1)
    assert set(index[places].tolist()) == {head, other}
    assert not counts[index == head].any()
    assert counts[places & (index == other)].all()
