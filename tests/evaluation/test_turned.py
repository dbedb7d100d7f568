"""Figures of turned views, on avatars whose figures are known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reconstructors import untrained
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.evaluation.novel_motion import orbit
from visa.evaluation.turned import VIEWS, turned_figures
from visa.networks.avatar import Avatar, Loose
from visa.networks.gaussians import Gaussians
from visa.networks.joints import HEAD
from visa.networks.photo import Photo
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.photos import photo_of

SIZE = 64


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return untrained(False, 4, 64).eval()


@pytest.fixture(scope="module")
def photo(clip_path: Path) -> Photo:
    """In the T-pose; a checkerboard of 0.5 +- 0.2 as the person."""
    photo = photo_of(WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.asarray([3]), 3, SIZE))
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    board = 0.5 + 0.2 * ((rows + columns) % 2 * 2 - 1)
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 8:-8, 8:-8] = 1
    return replace(photo, image=board.expand(1, 3, SIZE, SIZE), mask=mask, body=photo.body.map(torch.zeros_like))


@pytest.fixture(scope="module")
def bare(reconstructor: GaussianReconstructor, photo: Photo) -> Avatar:
    """The template, as grey as the background."""
    avatar = reconstructor.bare(photo)
    return replace(avatar, gaussians=replace(avatar.gaussians, colors=avatar.gaussians.colors + 0.5))


def test_the_template_itself_has_no_spikes_no_holes_and_is_smooth(
    reconstructor: GaussianReconstructor, bare: Avatar, photo: Photo
) -> None:
    figures = turned_figures(reconstructor, bare, photo)
    assert figures["turned_outside"] < 1e-3
    assert figures["turned_holes"] < 0.02
    assert figures["turned_roughness"] < 1e-3


def test_an_avatar_that_is_not_there_is_all_hole(
    reconstructor: GaussianReconstructor, bare: Avatar, photo: Photo
) -> None:
    gone = replace(bare, gaussians=replace(bare.gaussians, opacities=0 * bare.gaussians.opacities))
    figures = turned_figures(reconstructor, gone, photo)
    assert figures == {"turned_outside": 0.0, "turned_holes": 1.0, "turned_roughness": 0.0}


def test_a_ball_that_floats_beside_the_person_is_a_spike_of_its_own_area(
    reconstructor: GaussianReconstructor, bare: Avatar, photo: Photo
) -> None:
    """A Gaussian's splatted alpha sums up to opacity 2 pi sigma^2, in px; the picture's low-pass adds 0.3 px^2."""
    _, joints = reconstructor.body(photo.body)
    head = joints[0, HEAD]
    place, sigma, opacity = head + torch.tensor([0.0, -0.02, 0.0]) + torch.tensor([0.0, 0.45, 0.0]), 0.03, 0.9
    camera = photo.world_to_camera.clone()
    camera[0, 1, 3] += 0.2  # room above the head
    photo = replace(photo, world_to_camera=camera)
    ball = Gaussians(
        place[None, None], torch.tensor([[[1.0, 0, 0, 0]]]), torch.full((1, 1, 3), sigma), torch.full((1, 1), opacity),
        torch.full((1, 1, 3), 0.5), torch.zeros(1, 1, 0),
    )  # fmt: skip
    weights = torch.nn.functional.one_hot(torch.tensor([[HEAD]]), 55).float()
    figures = turned_figures(reconstructor, replace(bare, loose=Loose(ball, weights)), photo)

    focal = float(photo.intrinsics[0, 0, 0])
    expected = []
    for yaw, pitch in VIEWS:
        view = orbit(camera[0], head, yaw, pitch)
        x, y, z = (view[:3, :3] @ place + view[:3, 3]).tolist()
        u, v = focal * x / z + SIZE / 2, focal * y / z + SIZE / 2
        assert 6 < u < SIZE - 6
        assert 6 < v < SIZE - 6
        alpha = bare.render(reconstructor.body, replace(photo.view(), world_to_camera=view[None, None])).alpha
        area = opacity * 2 * math.pi * ((focal * sigma / z) ** 2 + 0.3)
        expected.append(area / int((alpha > 0.5).sum()))
    assert figures["turned_outside"] == pytest.approx(np.mean(expected), rel=0.05)


def test_roughness_is_relative_to_the_photo_s(
    reconstructor: GaussianReconstructor, bare: Avatar, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkerboard differs by 8/9 of its amplitude from its neighbourhood: half the amplitude is half as rough."""
    board = photo.image
    drawn = bare.render(reconstructor.body, photo.view())
    ones = torch.ones_like(drawn.alpha)
    painted = replace(drawn, textured=0.5 + (board[:, None] - 0.5) / 2, alpha=ones * photo.mask[:, None])
    monkeypatch.setattr(Avatar, "render", lambda *_: painted)
    assert turned_figures(reconstructor, bare, photo)["turned_roughness"] == pytest.approx(0.5, abs=1e-5)
