"""Loose Gaussians: lifted where the photo shows what the template does not, and carried by skinning."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.conftest import ROOT
from tests.reconstructors import untrained
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.networks.avatar import Avatar
from visa.networks.gaussians import Gaussians
from visa.networks.loose import LEAST
from visa.networks.photo import Photo
from visa.networks.rasterizer.mesh import view_mesh
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.photos import photo_of

BODY = ROOT / "assets/body/smplx_anny.npz"
RED = (0.9, 0.1, 0.1)


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return untrained(remove_neck=False, feature_channels=16)


@pytest.fixture(scope="module")
def bare(reconstructor: GaussianReconstructor, clip_path: Path) -> Photo:
    """The test clip's photo at 64 px with the posed mesh's own silhouette as its matte: the template covers it."""
    photo = photo_of(WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.asarray([3]), 3, 64))
    fine = photo.intrinsics.clone()
    fine[:, :2] *= 8
    vertices, _ = reconstructor.body(photo.body)
    view = view_mesh(vertices, reconstructor.body.faces, fine, photo.world_to_camera, 512, 512)
    return replace(photo, mask=torch.nn.functional.avg_pool2d((view.face >= 0).float()[:, None], 8))


def as_in(photo: Photo, avatar: Avatar, reconstructor: GaussianReconstructor, pose: Photo) -> object:
    """Maps of an avatar seen by the photo's camera, in a photo's pose."""
    return avatar.render(reconstructor.body, replace(photo, body=pose.body).view())


def with_hair(photo: Photo) -> tuple[Photo, torch.Tensor]:
    """A red block 8 px wide beside the head, from its silhouette outwards; and where it is, `[H,W]`."""
    mask = photo.mask[0, 0]
    row = int(torch.nonzero(mask.sum(dim=1) > 4)[0]) + 10  # within the head
    first = int(torch.nonzero(mask[row] > 0.5)[-1]) + 1
    block = torch.zeros_like(mask, dtype=torch.bool)
    block[row - 4 : row + 4, first : first + 8] = True
    image = torch.where(block, torch.tensor(RED)[:, None, None], photo.image[0])
    return replace(photo, image=image[None], mask=torch.where(block, 1.0, mask)[None, None]), block


def test_a_photo_that_the_template_covers_lifts_nothing(reconstructor: GaussianReconstructor, bare: Photo) -> None:
    with torch.no_grad():
        avatar, _ = reconstructor(bare)
    assert avatar.loose.gaussians.means.shape[1] == 0
    with torch.no_grad():
        plain, _ = reconstructor(bare, use_heads=False)
        maps, without = (
            as_in(bare, one, reconstructor, bare)
            for one in (avatar, replace(avatar, loose=None, texture=plain.texture))
        )
    assert torch.equal(maps.rgb, without.rgb)


def test_what_lies_beside_the_template_is_in_the_avatar(reconstructor: GaussianReconstructor, bare: Photo) -> None:
    photo, block = with_hair(bare)
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
        maps = as_in(photo, avatar, reconstructor, photo)
        before = as_in(photo, reconstructor(bare)[0], reconstructor, photo)
    assert LEAST < 0.5
    assert maps.alpha[0, 0, 0][block].mean() > 0.85 > 0.3 > before.alpha[0, 0, 0][block].mean()
    error = (maps.textured[0, 0] - photo.image[0]).abs().mean(dim=0)[block]
    assert error.mean() < 0.06
    assert (before.textured[0, 0] - photo.image[0]).abs().mean(dim=0)[block].mean() > 0.2


def test_loose_gaussians_move_by_their_skinning_weights(reconstructor: GaussianReconstructor, bare: Photo) -> None:
    """Against skinning in float64 numpy, in the photo's pose and with the head turned and a hand raised."""
    photo, block = with_hair(bare)
    body = reconstructor.body
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
    loose, count = avatar.loose, avatar.gaussians.means.shape[1]
    used = loose.gaussians.opacities[0] > 0
    assert 8 <= int(used.sum()) <= 2 * int(block.sum())
    torch.testing.assert_close(loose.skin_weights.sum(-1), torch.ones_like(loose.skin_weights[..., 0]))
    assert loose.skin_weights[0, used][:, 15].mean() > 0.5  # beside the head: joint 15 carries it
    turned = photo.body.map(torch.clone)
    turned.body_pose[:, 14] += torch.tensor([0.1, 0.6, 0.0])
    turned.body_pose[:, 17] += torch.tensor([0.0, 0.0, 0.5])
    turned.expression[:, 3] += 1.0  # moves the skin, not the hair
    for params in (photo.body, turned):
        posed = avatar.pose(body, params.map(lambda value: value[:, None]))
        transforms = body.joint_transforms(params)[0].double().numpy()
        blended = np.einsum("mj,jrc->mrc", loose.skin_weights[0].double().numpy(), transforms)
        points = np.c_[loose.gaussians.means[0].double().numpy(), np.ones(len(used))]
        expected = np.einsum("mrc,mc->mr", blended[:, :3], points)
        np.testing.assert_allclose(posed.means[0, 0, count:].numpy(), expected, atol=1e-5)
    moved = Gaussians(**{name: value[0, 0, count:][used] for name, value in vars(posed).items()})
    head = Rotation.from_matrix(transforms[15, :3, :3]).inv() * Rotation.from_quat(moved.quats.numpy()[:, [1, 2, 3, 0]])
    still = Rotation.from_quat(loose.gaussians.quats[0, used].numpy()[:, [1, 2, 3, 0]])
    assert np.median((head.inv() * still).magnitude()) < 0.3  # turned by 0.6 with the head


def test_in_the_photo_loose_gaussians_face_the_camera_at_their_pixels(
    reconstructor: GaussianReconstructor, bare: Photo
) -> None:
    photo, block = with_hair(bare)
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
        posed = avatar.pose(reconstructor.body, photo.body.map(lambda value: value[:, None]))
    count = avatar.gaussians.means.shape[1]
    used = avatar.loose.gaussians.opacities[0] > 0
    means, quats = posed.means[0, 0, count:][used].numpy(), posed.quats[0, 0, count:][used].numpy()
    camera = photo.world_to_camera[0].numpy()
    inside = means @ camera[:3, :3].T + camera[:3, 3]
    pixels = inside @ photo.intrinsics[0].numpy().T
    x, y = (pixels[:, :2] / pixels[:, 2:]).T
    assert block[np.floor(y).astype(int), np.floor(x).astype(int)].float().mean() > 0.95
    torch.testing.assert_close(
        avatar.loose.gaussians.colors[0, used].median(dim=0).values, torch.tensor(RED), atol=0.02, rtol=0
    )
    axes = Rotation.from_quat(quats[:, [1, 2, 3, 0]]).as_matrix()[..., 2] @ camera[:3, :3].T
    assert np.abs(axes[:, 2]).min() > 0.999  # the thin axis is the camera's


def test_what_is_lifted_does_not_scatter_with_the_fingers(reconstructor: GaussianReconstructor, bare: Photo) -> None:
    """A red thing beside every raised hand: it goes with forearms and wrists, whatever the fingers do."""
    raised = bare.body.map(torch.clone)
    raised.body_pose[:, 16 - 1, 2], raised.body_pose[:, 18 - 1, 1] = -0.9, -2.2
    raised.body_pose[:, 17 - 1, 2], raised.body_pose[:, 19 - 1, 1] = 0.9, 2.2
    photo = replace(bare, body=raised, mask=torch.ones_like(bare.mask))
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
    weights = avatar.loose.skin_weights
    assert weights[..., 25:].sum() == 0
    assert weights[..., 18:22].sum() > 1  # arms do carry some of it
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    closed = raised.map(torch.clone)
    closed.left_hand_pose[..., 2], closed.right_hand_pose[..., 2] = -1.0, 1.0
    count = avatar.gaussians.means.shape[1]
    places = [
        avatar.pose(reconstructor.body, params.map(lambda value: value[:, None])).means[0, 0, count:]
        for params in (raised, closed)
    ]
    torch.testing.assert_close(*places, atol=1e-5, rtol=0)


def test_hair_between_head_and_shoulder_bends_and_does_not_tear(
    reconstructor: GaussianReconstructor, bare: Photo
) -> None:
    """Hair that falls beside the face, 8 px wide down to the picture's border, while the head turns by 0.6 rad."""
    mask = bare.mask[0, 0]
    row = int(torch.nonzero(mask.sum(dim=1) > 4)[0]) + 10  # within the head
    first = int(torch.nonzero(mask[row] > 0.5)[-1]) + 1
    fall = torch.zeros_like(mask, dtype=torch.bool)
    fall[row:, first : first + 8] = True
    photo = replace(
        bare,
        image=torch.where(fall, torch.tensor(RED)[:, None, None], bare.image[0])[None],
        mask=torch.where(fall, 1.0, mask)[None, None],
    )
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
    count, turned = avatar.gaussians.means.shape[1], photo.body.map(torch.clone)
    turned.body_pose[:, 14] += torch.tensor([0.0, 0.6, 0.0])
    used = avatar.loose.gaussians.opacities[0] > 0
    limbs = avatar.loose.skin_weights[0, :, [18, 19, 20, 21]].sum(dim=-1) > 0.2  # not mixed
    posed = [avatar.pose(reconstructor.body, one.map(lambda value: value[:, None])) for one in (photo.body, turned)]
    places = [photo.places(one.means[:, 0, count:][:, used & ~limbs])[0] for one in posed]
    now, then = (torch.cdist(one, one) for one in places)
    beside = (now < 1.2 * now.fill_diagonal_(1.0).min()).nonzero().unbind(dim=1)
    assert len(beside[0]) > 200
    stretched = then[beside] / now[beside]
    assert stretched.max() < 1.3  # without mixing 2.1
