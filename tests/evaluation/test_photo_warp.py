"""The photo pulled by the mesh: scipy's spline, the photo's own pose, and a camera that moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator

from tests.conftest import ROOT
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.evaluation.image import psnr
from visa.evaluation.photo_warp import control_points, seen_points, thin_plate, warped_photo
from visa.networks.body import BodyModel


@pytest.fixture(scope="module")
def batch() -> VideoBatch:
    """A rendered person's photo as the only frames of a window, and a later frame."""
    clip = Clip(ROOT / "assets/captures/test/person_25.mp4")
    return WindowReader((0.5, 0.5, 0.5)).read(clip, np.array([0, 20]), 0, 96)


@pytest.mark.parametrize("stiffness", [0.0, 25.0])
def test_the_spline_is_scipys(stiffness: float) -> None:
    rng = np.random.default_rng(0)
    source, target, places = rng.uniform(0, 128, (40, 2)), rng.uniform(0, 128, (40, 2)), rng.uniform(-20, 150, (60, 2))
    scipys = RBFInterpolator(source, target, kernel="thin_plate_spline", degree=1, smoothing=stiffness)
    ours = thin_plate(*(torch.from_numpy(x) for x in (source, target, places)), stiffness)
    np.testing.assert_allclose(ours.numpy(), scipys(places), atol=1e-6 * 128)
    if stiffness == 0:
        through = thin_plate(*(torch.from_numpy(x) for x in (source, target, source)), 0.0)
        np.testing.assert_allclose(through.numpy(), target, atol=1e-6)
    with pytest.raises(ValueError, match="needs 3 points, got 2"):
        thin_plate(torch.rand(2, 2), torch.rand(2, 2), torch.rand(1, 2))


def test_points_that_face_away_are_not_seen(body: BodyModel, batch: VideoBatch) -> None:
    points = control_points(body)
    view = replace(batch.view(), body=batch.body.map(lambda value: value[0]))
    view = replace(view, intrinsics=batch.intrinsics[0], world_to_camera=batch.world_to_camera[0])
    places, is_seen = seen_points(body, points, view)
    assert places.shape == (2, len(points.corners), 2)
    on_body = is_seen[0, :160].float().mean()
    assert 0.2 < float(on_body) < 0.7  # the back is half of it
    assert float(is_seen[0, 160:].float().mean()) > 0.6  # lips, lids and brows from the front; rims turn inwards


def test_the_photos_own_pose_is_the_photo_and_another_pose_is_nearer_than_a_still(
    body: BodyModel, batch: VideoBatch
) -> None:
    frames, masks = warped_photo(body, control_points(body), batch)
    assert frames.shape == (2, 3, 96, 96)
    torch.testing.assert_close(frames[0], batch.reference[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(masks[0], batch.reference_mask[0], atol=2e-3, rtol=0)
    still = psnr(batch.reference.clamp(0, 1), batch.frames[0, 1:])
    assert psnr(frames[1:], batch.frames[0, 1:]) > still + 0.5


def test_a_camera_that_moves_takes_the_photo_along(body: BodyModel, batch: VideoBatch) -> None:
    moved = batch.cut(slice(0, 1))
    moved = replace(moved, intrinsics=moved.intrinsics.clone())
    moved.intrinsics[..., 0, 2] += 5
    moved.intrinsics[..., 1, 2] += 8
    frames, masks = warped_photo(body, control_points(body), moved)
    torch.testing.assert_close(frames[0, :, 8:, 5:], batch.reference[0, :, :-8, :-5], atol=5e-3, rtol=0)
    assert not masks[0, 0, :7].any()  # nobody is above the photo
