"""The head goes to the outline of its photo: a face inwards, a scalp outwards."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from tests.reconstructors import untrained
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.networks.anatomy import Region
from visa.networks.avatar import Avatar
from visa.networks.outline import MOST_GROWN, RIM, outlined
from visa.networks.photo import Photo
from visa.networks.projection import project
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.photos import photo_of

SIZE = 96


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return untrained(False, 4, 64)


@pytest.fixture(scope="module")
def photo(clip_path: Path, reconstructor: GaussianReconstructor) -> Photo:
    """The template's own silhouette for a matte, filled and a pixel wider, so that nothing has to move."""
    photo = photo_of(WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.asarray([3]), 3, SIZE))
    depth = project(reconstructor.anchors, photo).depth[0, 0].numpy() > 0
    silhouette = scipy.ndimage.binary_dilation(scipy.ndimage.binary_fill_holes(depth))
    return replace(photo, mask=torch.from_numpy(silhouette)[None, None].float())


def moved(reconstructor: GaussianReconstructor, photo: Photo) -> tuple[Avatar, Tensor, Tensor]:
    """The outlined template, its change in the T-pose `[N,3]`, and its places in the photo `[N,2]`, px."""
    bare, seen = reconstructor.bare(photo), project(reconstructor.anchors, photo).visible
    avatar = outlined(reconstructor.anchors, bare, photo, seen)
    posed = avatar.pose(reconstructor.body, photo.view().body).means[:, 0]
    places = (photo.places(posed)[0] + 1) / 2 * SIZE
    return avatar, (avatar.gaussians.means - bare.gaussians.means)[0], places


def test_a_head_that_fits_its_matte_stays(reconstructor: GaussianReconstructor, photo: Photo) -> None:
    _, change, _ = moved(reconstructor, photo)
    assert change.norm(dim=-1).max() < 0.002  # between two directions


def test_a_face_outside_of_the_matte_is_drawn_in(reconstructor: GaussianReconstructor, photo: Photo) -> None:
    """A matte that ends a pixel within the silhouette: the face's points come to its edge, at their own depth."""
    inner = scipy.ndimage.binary_erosion(photo.mask[0, 0].numpy(), iterations=2, border_value=1)
    tight = replace(photo, mask=torch.from_numpy(inner)[None, None].float())
    avatar, change, places = moved(reconstructor, tight)
    anchors = reconstructor.anchors
    face = anchors.region == int(Region.FACE)
    _, _, before = moved(reconstructor, photo)

    def matte(points: Tensor) -> np.ndarray:
        columns, rows = (points[face].T.numpy() - 0.5).clip(0, SIZE - 1)
        return scipy.ndimage.map_coordinates(inner.astype(float), [rows, columns], order=1)

    outside = [(matte(points) < 0.5).sum() for points in (before, places)]
    assert outside[0] > 100, outside
    assert outside[1] < 0.2 * outside[0], outside  # but for the throat, which lies below
    assert change[~face & (anchors.region != int(Region.SCALP))].abs().max() == 0
    turn = photo.world_to_camera[0, :3, :3]
    posed = [one.pose(reconstructor.body, photo.view().body).means[0, 0] for one in (avatar, reconstructor.bare(photo))]
    assert ((posed[0] - posed[1])[face] @ turn.T)[:, 2].abs().max() < 1e-5
    assert change[face].norm(dim=-1).max() < 0.021


def test_a_scalp_grows_to_the_hair(reconstructor: GaussianReconstructor, photo: Photo) -> None:
    """Hair wherever one looks: the scalp grows as far as it may, along its normals, and its Gaussians with it."""
    avatar, change, _ = moved(reconstructor, replace(photo, mask=torch.ones_like(photo.mask)))
    anchors = reconstructor.anchors
    scalp, most = anchors.region == int(Region.SCALP), MOST_GROWN - RIM
    rest = anchors(avatar.betas)[0]
    far = torch.cdist(rest[scalp], rest[anchors.region == int(Region.FACE)]).amin(dim=1) > 0.03
    grown = change[scalp].norm(dim=-1)
    assert far.sum() > 100
    assert grown.max() < most + 1e-5
    assert grown[far].median() > 0.9 * most
    along = (change[scalp] * anchors.normals[scalp]).sum(dim=-1)
    torch.testing.assert_close(along, grown, atol=1e-6, rtol=0)
    assert change[~scalp].abs().max() == 0
    size = avatar.gaussians.scales / reconstructor.bare(photo).gaussians.scales
    assert (size[0, scalp][far].median() > 1.2) & (size[0, ~scalp] == 1).all()
