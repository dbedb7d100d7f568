"""Torso, head and gaze rest as in the photo and move as the driver's; the head is left to the driver where asked."""

import pytest
import torch
from scipy.spatial.transform import Rotation

from visa.datamodules.own_pose import with_own_pose
from visa.networks.body import BodyParams
from visa.networks.joints import COLLARS, HEAD, NECK, SPINE

FRAMES = 3


def pose(count: int, seed: int) -> BodyParams:
    generator = torch.Generator().manual_seed(seed)
    zeros = BodyParams.zeros((count,), 4)
    turned = {
        name: 0.3 * torch.randn(getattr(zeros, name).shape, generator=generator)
        for name in ("global_orient", "body_pose", "leye_pose", "reye_pose")
    }
    return BodyParams(**{**vars(zeros), **turned})


def turns(params: BodyParams, joints: tuple[int, ...]) -> Rotation:
    """World rotations `[T]` of the last of some joints that hang on each other, from the pelvis on."""
    found = Rotation.from_rotvec(params.global_orient.numpy())
    for joint in joints:
        found = found * Rotation.from_rotvec(params.body_pose[:, joint - 1].numpy())
    return found


def angle(first: Rotation, second: Rotation) -> float:
    return float((first.inv() * second).magnitude().max())


@pytest.fixture
def found() -> tuple[BodyParams, BodyParams, BodyParams]:
    driven, own = pose(FRAMES, 0), pose(1, 1)
    return driven, own, with_own_pose(driven, own)


def test_the_torso_starts_as_the_photos_and_moves_as_the_drivers(found: tuple[BodyParams, ...]) -> None:
    driven, own, new = found
    torso, other = turns(new, SPINE), turns(driven, SPINE)
    assert angle(torso[:1], turns(own, SPINE)) < 1e-5
    for t in range(FRAMES):
        assert angle(torso[t] * torso[0].inv(), other[t] * other[0].inv()) < 1e-5


def test_the_head_rests_as_the_photos_and_turns_as_the_drivers(found: tuple[BodyParams, ...]) -> None:
    driven, own, new = found
    chain = (*SPINE, NECK, HEAD)
    head, other = turns(new, chain), turns(driven, chain)
    assert angle(head[:1], turns(own, chain)) < 1e-5
    for t in range(FRAMES):
        assert angle(head[t] * head[0].inv(), other[t] * other[0].inv()) < 1e-5


@pytest.mark.parametrize("name", ["leye_pose", "reye_pose"])
def test_eyes_rest_as_the_photos_and_turn_as_the_drivers(found: tuple[BodyParams, ...], name: str) -> None:
    driven, own, new = found
    torch.testing.assert_close(getattr(new, name)[:1], getattr(own, name), atol=1e-5, rtol=0)
    still, moved = (Rotation.from_rotvec(getattr(one, name).numpy()) for one in (driven, new))
    for t in range(FRAMES):
        assert angle(moved[t] * moved[0].inv(), still[t] * still[0].inv()) < 1e-5


def test_the_head_is_the_drivers_where_asked() -> None:
    driven, own = pose(FRAMES, 0), pose(1, 1)
    new = with_own_pose(driven, own, "driver")
    chain = (*SPINE, NECK, HEAD)
    assert angle(turns(new, chain), turns(driven, chain)) < 1e-5
    assert torch.equal(new.leye_pose, driven.leye_pose)


def test_the_photos_own_pose_gives_itself() -> None:
    own = pose(1, 1)
    new = with_own_pose(own, own)
    torch.testing.assert_close(new.body_pose, own.body_pose, atol=1e-5, rtol=0)
    torch.testing.assert_close(new.global_orient, own.global_orient, atol=1e-5, rtol=0)


def test_shoulders_are_raised_from_where_the_photo_has_them(found: tuple[BodyParams, ...]) -> None:
    driven, own, new = found
    for joint in COLLARS:
        torch.testing.assert_close(new.body_pose[:1, joint - 1], own.body_pose[:, joint - 1], atol=1e-5, rtol=0)
        still, moved = (Rotation.from_rotvec(one.body_pose[:, joint - 1].numpy()) for one in (driven, new))
        assert angle(still * still[0].inv(), moved * moved[0].inv()) < 1e-5


def test_what_else_there_is_stays_the_drivers(found: tuple[BodyParams, ...]) -> None:
    driven, _, new = found
    touched = {joint - 1 for joint in (*SPINE, *COLLARS, NECK, HEAD)}
    rest = [row for row in range(21) if row not in touched]
    torch.testing.assert_close(new.body_pose[:, rest], driven.body_pose[:, rest], atol=1e-5, rtol=0)
    assert torch.equal(new.expression, driven.expression)
