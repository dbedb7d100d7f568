"""Augmentation of training windows: a mirrored window is the window of a mirrored world."""

from pathlib import Path

import numpy as np
import torch

from tests.conftest import ROOT
from visa.datamodules.augment import Augment, draw, mirror_body, mirror_camera, mirrored_expressions
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel, BodyParams
from visa.networks.gaussians import Gaussians
from visa.networks.texture import Texture

BODY = ROOT / "assets/body/smplx_anny.npz"


def test_a_mirrored_body_is_the_mirror_image_of_the_body(body: BodyModel) -> None:
    generator = torch.Generator().manual_seed(0)
    params = BodyParams.zeros((1,), body.num_expressions).map(
        lambda value: 0.2 * torch.randn(value.shape, generator=generator)
    )
    swap = mirrored_expressions(body.expression_names)
    assert torch.equal(swap[swap], torch.arange(body.num_expressions))
    assert body.expression_names[int(swap[body.expression_names.index("eyeBlinkLeft")])] == "eyeBlinkRight"
    straight, mirrored = (body(p)[0][0] for p in (params, mirror_body(params, swap)))
    expected = straight * torch.tensor([-1.0, 1.0, 1.0])
    nearest = torch.cat([torch.cdist(part, mirrored).amin(dim=1) for part in expected.split(2000)])
    # The mesh itself is no exact mirror image of itself: millimetres in the hands.
    assert nearest.mean() < 1e-3
    twice = mirror_body(mirror_body(params, swap), swap)
    for once, again in zip(params.tensors(), twice.tensors(), strict=True):
        assert torch.equal(once, again)


def test_a_mirrored_camera_sees_mirrored_points_at_mirrored_places() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(20, 3, generator=generator)
    camera = torch.eye(4)
    camera[:3, :3] = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    camera[:3, 3] = torch.tensor([0.1, -0.2, 9.0])
    intrinsics = torch.tensor([[80.0, 0, 30], [0, 80, 35], [0, 0, 1]])

    def places(world: torch.Tensor, k: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        projected = (world @ w[:3, :3].T + w[:3, 3]) @ k.T
        return projected[:, :2] / projected[:, 2:]

    straight = places(points, intrinsics, camera)
    mirrored = places(points * torch.tensor([-1.0, 1.0, 1.0]), *mirror_camera(intrinsics, camera, 64))
    torch.testing.assert_close(mirrored, torch.stack([64 - straight[:, 0], straight[:, 1]], dim=1))


def test_background_crop_and_mirror_of_a_window(clip_path: Path, body: BodyModel) -> None:
    clip = Clip(clip_path).load()
    reader = WindowReader((0.5, 0.5, 0.5), mirrored_expressions(body.expression_names))
    augment = Augment(zoom=0.6, colour=0.0, own_crop=True, background=1.0, flip=1.0)

    def read(flip: float) -> object:
        change = Augment(**(vars(augment) | {"flip": flip}))
        return reader.read(clip, np.arange(2), 3, 48, rng=np.random.default_rng(1), augment=change)

    mirrored, straight = read(1.0), read(0.0)
    assert torch.equal(mirrored.frames, straight.frames.flip(-1))
    assert torch.equal(mirrored.reference, straight.reference.flip(-1))
    assert not torch.equal(straight.background, torch.full((1, 3), 0.5))
    outside = (straight.masks == 0).expand_as(straight.frames)
    assert torch.allclose(
        straight.frames[outside], straight.background[:, None, :, None, None].expand_as(straight.frames)[outside]
    )
    assert not torch.equal(straight.intrinsics[0, 0], straight.reference_intrinsics[0])  # a crop of its own


def test_what_is_switched_off_draws_nothing() -> None:
    grey = torch.full((3,), 0.5)
    off = draw(Augment(zoom=0.5, colour=0.1), grey, np.random.default_rng(3))
    on = draw(Augment(zoom=0.5, colour=0.1, background=1.0, flip=1.0), grey, np.random.default_rng(3))
    assert (off.zoom, off.shift) == (on.zoom, on.shift) == (off.photo_zoom, off.photo_shift)
    assert torch.equal(off.colour, on.colour)
    assert on.is_mirrored
    assert not off.is_mirrored
    assert torch.equal(off.background, grey)


def test_an_avatar_before_another_background_has_the_photo_matted_over_it(clip_path: Path) -> None:
    clip = Clip(clip_path).load()
    red, grey = (WindowReader(color).read(clip, np.arange(1), 3, 48) for color in ((0.9, 0.1, 0.1), (0.5, 0.5, 0.5)))
    none = torch.zeros(1, 0, 3)
    empty = Gaussians(none, torch.zeros(1, 0, 4), none, none[..., 0], none, none[..., :0])
    places = torch.zeros(1, 0, 2)
    texture = Texture(grey.reference, grey.reference_mask, places, *[none[..., 0]] * 3, grey.reference_mask)
    avatar = Avatar(empty, torch.zeros(1, 10), torch.zeros(0, dtype=torch.long), grey.background, texture)
    moved = avatar.over(red.background)
    assert torch.equal(moved.background, red.background)
    torch.testing.assert_close(moved.texture.photo, red.reference, rtol=0, atol=1e-6)
