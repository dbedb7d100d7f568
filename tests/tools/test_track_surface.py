"""Motion of the surface in the pixels: measured against known shifts, and what it is worth to the fit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.tools.detected import quiet, synthetic
from visa.networks.body import BodyModel, BodyParams
from visa.tools.track.correspond import Landmarks
from visa.tools.track.fit import fit
from visa.tools.track.options import FitOptions
from visa.tools.track.render import shade
from visa.tools.track.surface import _Follower, _key_frames, _spread, measure_motion
from visa.tools.track.write import VideoWriter

needs_opencv = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="the extra `track` is not installed")


def texture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth random grey [1,1,H,W] in [0,1]."""
    noise = torch.rand(1, 1, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)


def shifted(picture: torch.Tensor, shift: tuple[float, float]) -> np.ndarray:
    """uint8 [H,W] whose content has moved by `shift` px."""
    height, width = picture.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([(columns - shift[0]) / width, (rows - shift[1]) / height], -1) * 2 - 1
    moved = F.grid_sample(picture, grid[None], mode="bicubic", padding_mode="border", align_corners=False)
    return (moved[0, 0].clamp(0, 1) * 255).round().byte().numpy()


@needs_opencv
def test_a_known_shift_is_measured_and_what_is_covered_is_not_trusted() -> None:
    picture = texture(120, 160)
    before, after = shifted(picture, (0, 0)), shifted(picture, (3.4, -1.7))
    after[20:60, 30:70] = shifted(texture(120, 160, seed=1), (0, 0))[20:60, 30:70]
    x, y = np.meshgrid(np.arange(12, 148, 8), np.arange(12, 108, 8))
    points = np.stack([x.ravel(), y.ravel()], -1).astype(np.float32)
    seen = np.ones((1, len(points)), bool)
    seen[0, :5] = False
    everywhere = np.ones((120, 160), np.float32)
    follower = _Follower([before], points[None], seen, tolerance=0.5)
    shift, trust = follower(0, after, everywhere, everywhere)
    end = points + np.float32([3.4, -1.7])
    hidden = ((end > (30, 20)) & (end < (70, 60))).all(-1)
    near = ((end > (18, 8)) & (end < (82, 72))).all(-1)
    assert not trust[:5].any()
    free = ~near & seen[0]
    assert np.median(trust[free]) > 0.8
    assert np.abs(shift[free] - (3.4, -1.7)).max() < 0.15
    assert trust[hidden].mean() < 0.2
    assert not follower(0, after, everywhere, 0 * everywhere)[1].any()  # nobody there


def test_key_frames_lie_near_every_frame_of_their_shot() -> None:
    time = np.linspace(0, 1, 60)
    places = np.zeros((60, 5, 2), np.float32)
    places[..., 0] = (100 + 30 * np.sin(6 * time))[:, None]
    shot = np.repeat([0, 1], 30)
    keys, distance = _key_frames(places, shot, height=100)
    assert set(shot[keys]) == {0, 1}
    assert distance.min(0).max() < 4.0
    assert np.isinf(distance[shot[keys] == 0][:, 30:]).all()
    still, _ = _key_frames(np.zeros((20, 5, 2), np.float32), np.zeros(20, np.int64), height=100)
    assert len(still) == 1


def test_points_spread_over_what_is_allowed() -> None:
    points = np.random.default_rng(0).random((2000, 3)).astype(np.float32)
    allowed = points[:, 0] < 0.5
    chosen = _spread(points, allowed)
    assert allowed[chosen].all()
    gaps = np.linalg.norm(points[allowed][:, None] - points[chosen][None], axis=-1).min(1)
    assert gaps.max() < 0.16  # 200 points in half a cube


def film(path: Path, body: BodyModel, params: BodyParams) -> None:
    """The body of `synthetic`'s camera (320 x 240 px, focal length 384 px) in speckled skin, as a video."""
    vertices = body(params)[0].numpy() * np.float32([1, -1, -1])
    colours = np.random.default_rng(0).random((len(vertices[0]), 3)).astype(np.float32)
    writer = VideoWriter(path, 25.0, 320, 240, crf=8)
    for points in vertices:
        writer.write(shade(points, body.faces.numpy(), colours, focal=384, size=320)[40:280])
    writer.close()


@needs_opencv
@pytest.mark.slow
def test_a_torso_without_landmarks_follows_its_pixels(body: BodyModel, landmarks: Landmarks, tmp_path: Path) -> None:
    detections, truth = synthetic(body, landmarks, count=14)
    head = body(truth)[1][:, 15]
    time = torch.linspace(0, 1, 14)
    truth.body_pose[:, 2, 2] = 0.12 * torch.sin(6 * time)  # leans aside, the head nearly as before: its landmarks stay
    truth.body_pose[:, 14, 2] = -truth.body_pose[:, 2, 2]
    truth.transl += head - body(truth)[1][:, 15]
    detections.pose[..., 3] = 0  # no body point is seen
    detections.mask[:] = 255
    film(tmp_path / "clip.mp4", body, truth)
    options = FitOptions(num_coarse_steps=120, num_fine_steps=10, num_motion_steps=400)
    torso = torch.nonzero(body.lbs_weights[:, [9, 13, 14]].sum(-1) > 0.9)[:, 0]

    def motion_error(params: BodyParams) -> float:
        def moved(of: BodyParams) -> torch.Tensor:
            places = body(of, torso)[0]
            pixels = places[..., :2] / -places[..., 2:] * 384
            return pixels - pixels.mean(0)

        return float((moved(params) - moved(truth)).norm(dim=-1).mean())

    alone = fit(detections, body, landmarks, options, progress=quiet)
    followed = fit(detections, body, landmarks, options, progress=quiet, source=tmp_path / "clip.mp4")
    assert alone.motion_error_percent is None
    assert followed.motion_error_percent < 2
    assert motion_error(followed.params) < 0.5 * motion_error(alone.params)
    still = np.zeros(1, np.int64)
    one = followed.params.map(lambda value: value if value.dim() == 1 else value[:1])
    video = tmp_path / "clip.mp4"
    assert measure_motion(video, detections, still, body, one, followed.intrinsics, quiet) is None
    detections.shot[1:] = 1  # two frames, a cut between them
    two = followed.params.map(lambda value: value if value.dim() == 1 else value[:2])
    assert measure_motion(video, detections, np.arange(2), body, two, followed.intrinsics, quiet) is None
