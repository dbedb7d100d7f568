"""Arms that the driver's picture does not hold stay those of the photo."""

import torch
from scipy.spatial.transform import Rotation

from visa.datamodules.unseen_arms import KNUCKLES, with_own_arms
from visa.networks.body import BodyParams
from visa.networks.joints import ELBOWS, SHOULDERS, WRISTS


def pose(count: int, seed: int) -> BodyParams:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "betas": (10,), "expression": (4,), "global_orient": (3,), "transl": (3,), "body_pose": (21, 3),
        "jaw_pose": (3,), "leye_pose": (3,), "reye_pose": (3,), "left_hand_pose": (15, 3), "right_hand_pose": (15, 3),
    }  # fmt: skip
    return BodyParams(**{name: torch.randn(count, *shape, generator=generator) * 0.4 for name, shape in shapes.items()})


def seen_at(rows: dict[int, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Joints `[1,55,3]` in the middle of the picture's width, of `rows` px (others far below), and intrinsics."""
    joints = torch.zeros(1, 55, 3) + torch.tensor([0.0, 1000.0, 1.0])
    for joint, row in rows.items():
        joints[0, joint, 1] = row - 50.0
    camera = torch.eye(3)
    camera[:2, 2] = 50.0  # a picture of 100 x 100 px
    return joints, camera[None]


def test_what_the_picture_does_not_hold_is_the_photos() -> None:
    driven, own = pose(1, 0), pose(1, 1)
    joints, camera = seen_at({ELBOWS[0]: 50.0})  # the left elbow alone
    found = with_own_arms(driven, own, joints, camera)
    rows = [joint - 1 for joint in (*ELBOWS, *WRISTS, SHOULDERS[1])]
    torch.testing.assert_close(found.body_pose[:, rows], own.body_pose[:, rows], atol=1e-5, rtol=0)
    others = [row for row in range(21) if row not in rows]
    torch.testing.assert_close(found.body_pose[:, others], driven.body_pose[:, others], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.left_hand_pose, own.left_hand_pose, atol=1e-5, rtol=0)
    assert torch.equal(found.expression, driven.expression)


def test_a_raised_hand_moves_its_whole_arm() -> None:
    driven, own = pose(1, 0), pose(1, 1)
    joints, camera = seen_at({KNUCKLES[1]: 50.0})  # the elbow below the picture's border
    found = with_own_arms(driven, own, joints, camera)
    for joints_of in (SHOULDERS, ELBOWS, WRISTS):
        row = joints_of[1] - 1
        torch.testing.assert_close(found.body_pose[:, row], driven.body_pose[:, row], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.right_hand_pose, driven.right_hand_pose, atol=1e-5, rtol=0)


def test_at_the_border_an_arm_is_half_way() -> None:
    driven, own = pose(1, 0), pose(1, 1)
    joints, camera = seen_at({ELBOWS[0]: 96.0})  # half of the rim
    found = with_own_arms(driven, own, joints, camera)
    row = SHOULDERS[0] - 1
    first, last, middle = (Rotation.from_rotvec(one.body_pose[0, row].numpy()) for one in (own, driven, found))
    assert abs((first.inv() * middle).magnitude() - (first.inv() * last).magnitude() / 2) < 1e-5
    assert abs((middle.inv() * last).magnitude() - (first.inv() * last).magnitude() / 2) < 1e-5
