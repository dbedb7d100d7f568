"""Skin and cloth: hands before the chest are not the chest's, and what is not seen takes the right one of both."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from tests.reconstructors import untrained
from visa.networks.anatomy import Kind, Region
from visa.networks.body import BodyParams
from visa.networks.loose import FOREARMS
from visa.networks.photo import Photo
from visa.networks.photo_colour import colour_sources
from visa.networks.projection import project
from visa.networks.rasterizer.mesh import view_mesh
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.skin import SkinTone, before_trunk, skin_tone
from visa.networks.splat_maps import SplatMaps

SIZE = 128
SKIN, CLOTH, HAIR, GREY = (0.75, 0.52, 0.42), (0.2, 0.4, 0.8), (0.1, 0.08, 0.06), (0.5, 0.5, 0.5)
LEFT_SHOULDER, RIGHT_SHOULDER = 15, 16  # of the body's joints but the pelvis


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return untrained(False, 4, 64).eval().requires_grad_(False)


def colored(*colors: tuple[float, float, float]) -> Tensor:
    return torch.tensor([colors])


@pytest.fixture(scope="module")
def clothed(reconstructor: GaussianReconstructor) -> Photo:
    """The template from the hips up, arms hanging down: face, neck and hands of SKIN, scalp of HAIR, the rest CLOTH."""
    body = BodyParams.zeros((1,), reconstructor.body.num_expressions)
    body.body_pose[0, LEFT_SHOULDER, 2], body.body_pose[0, RIGHT_SHOULDER, 2] = -1.2, 1.2
    vertices, joints = reconstructor.body(body)
    camera = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))[None]
    camera[0, :3, 3] = torch.tensor([-float(joints[0, 9, 0]), float(joints[0, 9, 1]), 2.0])
    intrinsics = torch.tensor([[[230.0, 0, 64], [0, 230, 64], [0, 0, 1]]])
    view = view_mesh(vertices, reconstructor.body.faces, intrinsics, camera, SIZE, SIZE)
    is_neck = (reconstructor.body.lbs_weights[:, 12] > 0.5)[reconstructor.body.faces[:, 0]]
    looks = torch.tensor([SKIN, HAIR, CLOTH, SKIN, CLOTH])[reconstructor.anchors.face_region]
    looks[is_neck] = torch.tensor(SKIN)
    is_drawn = (view.face >= 0)[..., None]
    image = torch.where(is_drawn, looks[view.face.clamp_min(0)], torch.tensor(GREY)).permute(0, 3, 1, 2)
    return Photo(image, is_drawn[..., 0][:, None].float(), body, intrinsics, camera, torch.tensor([GREY]))


def with_hand(photo: Photo) -> tuple[Photo, slice, slice]:
    """A block of SKIN before the belly, where the template has no hand."""
    rows, columns = slice(80, 96), slice(56, 72)
    image = photo.image.clone()
    image[..., rows, columns] = torch.tensor(SKIN)[:, None, None]
    return replace(photo, image=image), rows, columns


def render(reconstructor: GaussianReconstructor, photo: Photo, avatar: object, lift: float = 0.0) -> SplatMaps:
    """The photo's own pose, or with both arms lifted by so many radians."""
    body = photo.body.map(torch.clone)
    body.body_pose[0, LEFT_SHOULDER, 2] += lift
    body.body_pose[0, RIGHT_SHOULDER, 2] -= lift
    with torch.no_grad():
        return avatar.render(reconstructor.body, replace(photo, body=body).view())


def test_skin_is_what_has_the_chromaticity_of_the_face() -> None:
    """Half and one and a half times as bright it still is; a third as bright, and in another hue, it is not."""
    colors = colored(SKIN, SKIN, SKIN, HAIR, CLOTH)
    tone = skin_tone(colors, torch.tensor([[True, True, True, True, False]]))
    np.testing.assert_allclose(tone.chroma[0], np.array(SKIN[:2]) / sum(SKIN), atol=1e-6)
    np.testing.assert_allclose(tone.luminance[0], np.mean(SKIN), atol=1e-6)
    skin = torch.tensor(SKIN)
    asked = torch.stack([skin, skin / 2, skin * 1.3, skin / 3, torch.tensor(CLOTH), torch.ones(3)])[None]
    assert tone.is_skin(asked).tolist() == [[True, True, True, False, False, False]]


def test_without_a_face_nothing_is_skin() -> None:
    tone = skin_tone(colored(SKIN, CLOTH), torch.zeros(1, 2, dtype=torch.bool))
    assert not tone.is_skin(colored(SKIN, CLOTH)).any()


def test_hands_are_skin_before_the_trunk_that_no_skin_joins_to_the_head() -> None:
    """Against scipy's labels: a hand with its rim; not the neckline, a lock, nor what is as large as the head."""
    head, trunk, skin = (torch.zeros(1, SIZE, SIZE, dtype=torch.bool) for _ in range(3))
    head[0, 10:40, 50:80] = True
    trunk[0, 40:] = True
    skin[0, 15:50, 60:70] = True  # face and neckline
    skin[0, 80:90, 30:45] = True  # a hand
    skin[0, 60:100, 100:103] = True  # a lock
    found = before_trunk(skin, head, trunk)[0].numpy()
    labels, count = scipy.ndimage.label(skin[0].numpy(), np.ones((3, 3)))
    assert count == 3
    hand = labels == labels[85, 35]
    np.testing.assert_array_equal(found, scipy.ndimage.binary_dilation(hand, np.ones((5, 5))))
    skin[0, 80:120, 20:60] = True  # larger than the head: a skirt
    assert not before_trunk(skin, head, trunk).any()


def test_a_hand_before_the_chest_leaves_no_trace_on_it(reconstructor: GaussianReconstructor, clothed: Photo) -> None:
    """It is there in the photo's own pose, and where it was the cloth stands once the arms are lifted."""
    photo, rows, columns = with_hand(clothed)
    with torch.no_grad():
        projection = project(reconstructor.anchors, photo)
        avatar, _ = reconstructor(photo)
    pixels = (projection.grid[0] + 1) / 2 * SIZE
    is_behind = (pixels[:, 0] > columns.start) & (pixels[:, 0] < columns.stop)
    is_behind &= (
        (pixels[:, 1] > rows.start) & (pixels[:, 1] < rows.stop) & (reconstructor.anchors.region == int(Region.TORSO))
    )
    assert project(reconstructor.anchors, clothed).visible[0, is_behind].sum() > 10
    assert projection.visible[0, is_behind].sum() == 0
    cloth = torch.tensor(CLOTH)
    torch.testing.assert_close(
        avatar.gaussians.colors[0, is_behind], cloth.expand(int(is_behind.sum()), 3), atol=0.02, rtol=0
    )
    own, lifted = (render(reconstructor, photo, avatar, lift).textured[0, 0, :, rows, columns] for lift in (0.0, 1.5))
    inside = (slice(None), slice(3, -3), slice(3, -3))
    assert (own[inside] - torch.tensor(SKIN)[:, None, None]).abs().mean() < 0.05
    assert (lifted[inside] - cloth[:, None, None]).abs().mean() < 0.03


def test_a_hand_before_the_chest_moves_with_a_forearm(reconstructor: GaussianReconstructor, clothed: Photo) -> None:
    """As one piece, and it lies before the chest."""
    photo, rows, columns = with_hand(clothed)
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
    first, count = len(reconstructor.anchors.kind), avatar.loose.gaussians.means.shape[1]
    places = (avatar.texture.places[0, first : first + count] + 1) / 2 * SIZE
    held = (places[:, 0] > columns.start) & (places[:, 0] < columns.stop)
    held &= (places[:, 1] > rows.start) & (places[:, 1] < rows.stop)
    assert held.sum() == (rows.stop - rows.start) * (columns.stop - columns.start) // 4  # a cell is 2 x 2 px
    weights = avatar.loose.skin_weights[0, held]
    assert (weights[:, list(FOREARMS)].amax(dim=1) == 1).all()
    assert (weights.sum(dim=1) == 1).all()


def test_surface_gaussians_leave_out_hands(reconstructor: GaussianReconstructor, clothed: Photo) -> None:
    photo, rows, columns = with_hand(clothed)
    try:
        reconstructor.options.pixels_per_gaussian = 2
        with torch.no_grad():
            avatar, _ = reconstructor(photo)
    finally:
        reconstructor.options.pixels_per_gaussian = None
    count = avatar.surface.gaussians.means.shape[1]
    places = (avatar.texture.places[0, -count:] + 1) / 2 * SIZE
    inside = (places[:, 0] > columns.start) & (places[:, 0] < columns.stop)
    inside &= (places[:, 1] > rows.start) & (places[:, 1] < rows.stop)
    assert count > 500
    assert inside.sum() == 0


def test_an_unseen_trunk_takes_cloth_and_unseen_arms_too(reconstructor: GaussianReconstructor, clothed: Photo) -> None:
    """A photo that ends at the chest: belly and forearms take the cloth, hands the skin, whatever the neck shows."""
    camera = clothed.intrinsics.clone()
    camera[:, 1, 2] += 60  # the picture is cut off below the chest
    image, mask = (torch.roll(value, 60, dims=2) for value in (clothed.image, clothed.mask))
    image[:, :, :60], mask[:, :, :60] = clothed.background[:, :, None, None], 0.0
    photo = replace(clothed, image=image, mask=mask, intrinsics=camera)
    with torch.no_grad():
        projection = project(reconstructor.anchors, photo)
        colors = reconstructor(photo, use_heads=False)[0].gaussians.colors[0]
    visible, region, is_below = projection.visible[0] > 0, reconstructor.anchors.region, projection.grid[0, :, 1] > 1
    assert (visible & (region == int(Region.TORSO))).sum() > 50
    for part, color in ((Region.TORSO, CLOTH), (Region.ARMS, CLOTH), (Region.HANDS, SKIN)):
        chosen = (region == int(part)) & is_below
        assert chosen.sum() > 100
        error = (colors[chosen] - torch.tensor(color)).abs().amax(dim=1)
        assert (error < 0.03).float().mean() > 0.95, part


def test_a_few_wrong_pixels_do_not_colour_a_hand(reconstructor: GaussianReconstructor, clothed: Photo) -> None:
    """A hand whose pixels in the photo are not skin is a hand that the template has elsewhere: it takes the face's."""
    with torch.no_grad():
        projection = project(reconstructor.anchors, clothed)
        colors = torch.where(
            (reconstructor.anchors.region == int(Region.HANDS))[:, None], torch.tensor(CLOTH), torch.tensor(SKIN)
        )[None]
        visible, facing = projection.visible, projection.facing
        sources = colour_sources(reconstructor.anchors, clothed, projection.grid, colors, visible, facing)
    is_hand, is_face = reconstructor.anchors.region == int(Region.HANDS), reconstructor.anchors.kind == int(Kind.FACE)
    assert sources[0, is_hand].sum() == 0
    assert 50 < sources[0, is_face].sum() < visible[0, is_face].sum()
    assert (sources <= visible * (facing > 0.35))[0, is_face].all()  # not the rim of the head


def test_the_edge_of_an_arm_colours_nothing_else(reconstructor: GaussianReconstructor, clothed: Photo) -> None:
    """One pixel at the matte's edge is left out for arms, by scipy's erosion."""
    with torch.no_grad():
        projection = project(reconstructor.anchors, clothed)
        colors = torch.tensor(CLOTH).expand(1, len(reconstructor.anchors.kind), 3)
        visible, facing = projection.visible, projection.facing
        sources = colour_sources(reconstructor.anchors, clothed, projection.grid, colors, visible, facing)[0] > 0
    eroded = scipy.ndimage.binary_erosion(clothed.mask[0, 0].numpy() > 0.8, np.ones((3, 3)), border_value=1)
    visible = projection.visible[0] > 0
    arm = visible & (reconstructor.anchors.region == int(Region.ARMS))
    columns, rows = ((projection.grid[0, arm] + 1) / 2 * SIZE).floor().long().T.numpy()
    assert 0 < sources[arm].sum() < arm.sum()
    assert eroded[rows, columns][sources[arm].numpy()].all()


def test_a_tone_holds_one_person_of_a_batch_each() -> None:
    tone = SkinTone(torch.tensor([[0.45, 0.3], [0.2, 0.3]]), torch.tensor([0.5, 0.5]))
    same = torch.tensor([[[0.675, 0.45, 0.375]]]).expand(2, 1, 3)
    assert tone.is_skin(same).tolist() == [[True], [False]]
