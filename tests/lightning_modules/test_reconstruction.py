"""The avatar: posing against the body model's own skinning, what the untrained network already gives, losses, test."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation

from tests.conftest import ROOT, write_clip
from tests.reconstructors import untrained
from visa import cli as train
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.evaluation.evaluation import Prediction, evaluate_rows
from visa.evaluation.novel_motion import orbit
from visa.evaluation.report import folder_means
from visa.evaluation.silhouette import silhouette_iou
from visa.lightning_modules.reconstruction import Reconstruction
from visa.losses.image import ssim_loss
from visa.networks.anatomy import Kind, Region
from visa.networks.anchors import Anchors
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel, BodyParams
from visa.networks.compositing import splat
from visa.networks.gaussians import Gaussians
from visa.networks.projection import project
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.regions import DetailRegions, part_code
from visa.networks.rotation import matrix_to_quaternion, quaternion_multiply
from visa.networks.splat_maps import MatteOptions, SplatMaps
from visa.networks.standing import OTHER_PART, SAME_PART
from visa.networks.template import build_template, part_vertices, refine_template
from visa.networks.texture import Texture
from visa.networks.view import Camera
from visa.runtime.photos import photo_of
from visa.runtime.shipped import build_reconstructor

BODY = ROOT / "assets/body/smplx_anny.npz"


def random_params(body: BodyModel, frames: int) -> BodyParams:
    generator = torch.Generator().manual_seed(0)
    return BodyParams.zeros((1, frames), body.num_expressions).map(
        lambda value: 0.3 * torch.randn(value.shape, generator=generator)
    )


def test_matrix_to_quaternion_agrees_with_scipy() -> None:
    rotations = Rotation.random(200, random_state=0)
    ours = matrix_to_quaternion(torch.from_numpy(rotations.as_matrix()))
    theirs = torch.from_numpy(rotations.as_quat()[:, [3, 0, 1, 2]])
    assert torch.allclose((ours * theirs).sum(-1).abs(), torch.ones(200, dtype=torch.float64))


def test_quaternion_product_agrees_with_scipy() -> None:
    a, b = Rotation.random(50, random_state=1), Rotation.random(50, random_state=2)
    product = quaternion_multiply(
        torch.from_numpy(a.as_quat()[:, [3, 0, 1, 2]]), torch.from_numpy(b.as_quat()[:, [3, 0, 1, 2]])
    )
    expected = torch.from_numpy((a * b).as_quat()[:, [3, 0, 1, 2]])
    assert torch.allclose((product * expected).sum(-1).abs(), torch.ones(50, dtype=torch.float64))


def test_gaussians_on_vertices_move_as_the_body_model_moves_vertices() -> None:
    body = BodyModel.from_file(BODY)
    ids = build_template(body).vertex_ids[::17]
    params = random_params(body, 3)
    betas = params.betas[:, 0]
    params.betas = betas[:, None].expand(1, 3, -1)
    rest = body.rest_vertices(betas, torch.zeros(1, body.num_expressions), ids)
    quats = torch.zeros(1, len(ids), 4)
    quats[..., 0] = 1
    gaussians = Gaussians(rest, quats, rest, rest[..., 0], rest, rest[..., :0])
    posed = Avatar(gaussians, betas, ids, torch.zeros(1, 3)).pose(body, params)
    vertices, _ = body(params, ids)
    assert torch.allclose(posed.means, vertices, atol=1e-5)
    assert torch.allclose(posed.quats.norm(dim=-1), torch.ones(()), atol=1e-5)


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return untrained(remove_neck=True, feature_channels=16)


def test_the_untrained_avatar_has_the_photo_s_colours(reconstructor: GaussianReconstructor, clip_path: object) -> None:
    batch = WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.arange(2), 3, 64)
    with torch.no_grad():
        avatar, tokens = reconstructor(photo_of(batch))
        projection = project(reconstructor.anchors, photo_of(batch))
    seen = projection.visible[0] > 0
    assert 0.1 < seen.float().mean() < 0.6  # a front view shows less than half of the surface
    grid = projection.grid[:, seen][:, :, None]
    photo = torch.nn.functional.grid_sample(batch.reference, grid, align_corners=False)[0, :, :, 0].T
    skin = ~reconstructor.anchors.is_lid[seen]  # lids have colours of their own, see test_lids
    assert torch.allclose(avatar.gaussians.colors[0, seen][skin], photo[skin], atol=1e-5)
    assert tokens.shape == (1, 64, 128)
    assert torch.isfinite(avatar.gaussians.colors).all()


def walls(distances: list[float], scale: float, opacity: float) -> Gaussians:
    """Flat black walls across the optical axis, 57 x 57 round Gaussians 5 cm apart each; two features that are 1."""
    grid = torch.linspace(-1.4, 1.4, 57)
    means = torch.cat([torch.cartesian_prod(grid, grid, torch.tensor([z])) for z in distances])[None, None]
    many = means.shape[:-1]
    quats = torch.tensor([1.0, 0, 0, 0]).expand(*many, 4)
    sizes, opacities = torch.full((*many, 3), scale), torch.full(many, opacity)
    return Gaussians(means, quats, sizes, opacities, torch.zeros(*many, 3), torch.ones(*many, 2))


@pytest.mark.parametrize(("shift", "period", "tolerance"), [(8.0, 16, 0.01), (8.5, 4, 0.03)])
def test_the_texture_is_the_photo_moved_with_the_surface(shift: float, period: int, tolerance: float) -> None:
    """A flat wall of Gaussians before a moved camera: each pixel shows the photo a known shift away.

    Half a pixel from the centres, detail of 4 px a wave would lose 29 % of its amplitude (0.15 at most here) to
    bilinear weights.
    """
    size, distance, focal = 64, 2.0, 64.0
    moved = shift * distance / focal
    posed = walls([distance], 0.03, 0.9)
    num = posed.means.shape[2]
    places = posed.means[:, 0, :, :2] * focal / distance * 2 / size
    still, columns = (torch.sin((torch.arange(size) - by) * 2 * math.pi / period) for by in (0.0, shift))
    photo = (0.5 + 0.25 * still[None, :] + 0.25 * still[:, None]).expand(1, 3, size, size)
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])[None, None]
    world_to_camera = torch.eye(4)
    world_to_camera[0, 3] = moved
    camera = Camera(intrinsics, world_to_camera[None, None], size)
    texture = Texture(
        photo, torch.ones(1, 1, size, size), places, *torch.ones(2, 1, num), torch.zeros(1, num), photo[:, :1] * 0
    )
    maps = splat(posed, camera, torch.full((1, 3), 0.5), texture)
    assert maps.photo_share[..., 10:].min() > 0.95
    assert maps.photo_share[..., :5].max() == 0  # there the flow leads past the photo's border
    middle = (..., slice(10, size - 8))
    expected = (0.5 + 0.25 * columns[None, :] + 0.25 * still[:, None])[middle]
    mixed = maps.photo_share[middle] * expected + (1 - maps.photo_share[middle]) * maps.rgb[middle]
    assert (maps.textured[middle] - mixed).abs().max() < tolerance
    plain = splat(posed, camera, torch.full((1, 3), 0.5))
    assert torch.equal(plain.rgb, maps.rgb)
    assert torch.equal(plain.features, maps.features)
    assert torch.equal(plain.textured, plain.rgb)


def test_the_photo_covers_what_shimmers_through_the_front() -> None:
    """A thin wall that the photo shows before one that it does not; its right half is trusted by a quarter."""
    size, posed = 64, walls([2.0, 2.2], 0.025, 0.6)
    means = posed.means[:, 0]
    shown = (means[..., 2] < 2.1).float()
    trust = 1 - 0.75 * (means[..., 0] > 0).float()
    photo, places = torch.full((1, 3, size, size), 0.7), means[..., :2]
    texture = Texture(photo, torch.ones(1, 1, size, size), places, shown, trust, shown * 0, photo[:, :1] * 0)
    intrinsics = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]])[None, None]
    camera = Camera(intrinsics, torch.eye(4)[None, None], size)
    maps = splat(posed, camera, torch.zeros(1, 3), texture)
    only_shown = replace(posed, features=shown[:, None, :, None])
    weight = splat(only_shown, camera, torch.zeros(1, 3)).features
    middle = slice(8, size - 8)
    assert (weight / maps.alpha)[..., middle, middle].min() < 0.9  # the back does shimmer through
    assert maps.photo_share[..., middle, 8:24].sub(1).abs().max() < 1e-4
    assert maps.photo_share[..., middle, 40:56].sub(0.25).abs().max() < 1e-4
    texture = replace(texture, seen=1 - shown)
    hidden = splat(posed, camera, torch.zeros(1, 3), texture)
    assert hidden.photo_share[..., middle, middle].max() == 0  # what shimmers through is not what the pixel shows


def test_closed_lips_show_no_teeth_of_the_photo() -> None:
    """A wall of two halves that the photo shows 8 px apart, with blue between them."""
    size, posed = 64, walls([2.0], 0.03, 0.9)
    means = posed.means[:, 0]
    is_right = (means[..., 0] > 0).float()
    places = means[..., :2] + torch.stack([is_right * 16 / size, 0 * is_right], dim=-1)
    column = torch.arange(size) + 0.5
    between = ((column > 32) & (column < 40)).float().expand(1, 1, size, size)
    photo = torch.cat([between * 0, between * 0, between], dim=1)
    codes = torch.where(between > 0, torch.tensor(1.5), (column > 40).float())
    texture = Texture(photo, between * 0 + 1, places, *torch.ones(2, *is_right.shape), is_right, codes)
    intrinsics = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]])[None, None]
    camera = Camera(intrinsics, torch.eye(4)[None, None], size)

    def blue(texture: Texture) -> float:
        maps = splat(posed, camera, torch.zeros(1, 3), texture)
        assert maps.photo_share[..., 8:56, 8:24].min() > 0.95  # elsewhere the photo stands
        assert maps.photo_share[..., 8:56, 42:48].min() > 0.95
        return float(maps.textured[0, 0, 2, 8:56, 8:48].max())

    assert blue(replace(texture, part=is_right * 0, photo_part=codes * 0)) > 0.3
    assert blue(texture) < 0.1


def test_part_codes_tell_what_passes_before_what() -> None:
    body = BodyModel.from_file(BODY)
    code = part_code(body)
    inside = body.part != body.part_names.index("skin")
    assert inside.any()
    assert (code[inside] == 1.5).all()
    places = torch.zeros(55)  # of SMPL-X's joints, hands last: 25 to 39 the left, 40 to 54 the right
    places[12], places[[15, 23, 24]], places[22], places[[13, 14, 16, 17]] = 0.25, 0.5, 1.0, -0.5
    places[[18, 20]], places[[19, 21]], places[25:40], places[40:] = -1.5, -1.0, -1.5, -1.0
    torch.testing.assert_close(code[~inside], (body.lbs_weights @ places)[~inside])
    # Where each joint rules most: chest, neck, skull, jaw, left and right hand.
    rulers = [code[body.lbs_weights[:, joint].masked_fill(inside, 0).argmax()] for joint in (9, 12, 15, 22, 20, 21)]
    gaps = torch.pdist(torch.stack(rulers)[:, None], p=1)
    assert gaps.min() > SAME_PART
    skin = ~inside[body.faces].any(dim=1)
    steps = (code[body.faces[skin]] - code[body.faces[skin]].roll(1, dims=1)).abs().amax(dim=1)
    assert torch.quantile(steps, 0.99) < OTHER_PART  # smooth over the skin: neighbours are one part


def test_the_textured_splat_of_the_photo_s_own_pose_is_the_photo(
    reconstructor: GaussianReconstructor, clip_path: Path
) -> None:
    batch = WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.asarray([3]), 3, 64)
    with torch.no_grad():
        avatar, _ = reconstructor(photo_of(batch))
        maps = avatar.render(reconstructor.body, batch.view())
    inside = (maps.photo_share > 0.8).expand_as(maps.rgb)
    assert inside.float().mean() > 0.1
    error = [(image - batch.frames)[inside].square().mean() for image in (maps.textured, maps.rgb)]
    assert error[0] < 0.1 * error[1]
    assert error[0] < 1e-3


def test_visible_anchors_face_the_camera(reconstructor: GaussianReconstructor, clip_path: object) -> None:
    batch = WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.arange(2), 3, 64)
    projection = project(reconstructor.anchors, photo_of(batch))
    assert (projection.normals[0, projection.visible[0] > 0, 2] < 0).float().mean() > 0.95


def test_every_parameter_gets_a_gradient(reconstructor: GaussianReconstructor, clip_path: object) -> None:
    batch = WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.arange(2), 3, 64)
    torch.nn.init.normal_(reconstructor.heads.weight, std=1e-2)  # zero heads pass nothing on
    avatar, tokens = reconstructor(photo_of(batch))
    maps = avatar.render(reconstructor.body, batch.view())
    (maps.textured.square().sum() + maps.features.square().sum() + tokens.square().sum()).backward()
    missing = [name for name, p in reconstructor.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []
    reconstructor.zero_grad()


def read(clip_path: Path, frames: int = 2, size: int = 64) -> VideoBatch:
    return WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.arange(frames), 3, size)


@pytest.mark.slow
def test_refined_anchors_lie_on_the_surface_of_any_shape() -> None:
    body = BodyModel.from_file(BODY)
    plain = build_template(body)
    parts = torch.cat(list(part_vertices(body).values()))
    refined = refine_template(plain, body, torch.ones_like(body.part).index_fill(0, parts, 3))
    fine = torch.isin(plain.vertex_ids, parts)
    triangles_around = torch.bincount(body.faces.flatten(), minlength=len(body.v_template))[plain.vertex_ids[fine]]
    assert len(refined.vertex_ids) == len(plain.vertex_ids) + int(triangles_around.clamp(max=2).sum())
    assert torch.equal(refined.vertex_ids.unique(), plain.vertex_ids.sort().values)
    assert (refined.vertex_ids[refined.mirror[refined.mirror]] == refined.vertex_ids).float().mean() > 0.95
    extra = refined.corners[:, 0] != refined.corners[:, 1]
    triangles = {tuple(sorted(face)) for face in body.faces.tolist()}
    assert all(tuple(sorted(row)) in triangles for row in refined.corners[extra].tolist())
    assert len({tuple(row) for row in refined.corners[extra].tolist()}) == int(extra.sum())  # no two on one spot
    vertices = body.rest_vertices(torch.randn(1, 10), torch.zeros(1, body.num_expressions))
    points, corners = refined.points(vertices)[0].numpy(), vertices[0, refined.corners].numpy()
    expected = corners[:, 0] * 2 / 3 + corners[:, 1] / 6 + corners[:, 2] / 6
    np.testing.assert_allclose(points, expected, atol=1e-6)
    with pytest.raises(ValueError, match="gaussians_per_anchor is 0"):
        Anchors(body, plain, 64, per_vertex=0)


def test_teeth_and_scalp_have_more_gaussians() -> None:
    body = BodyModel.from_file(BODY)
    anchors = Anchors(body, build_template(body), 64)
    assert int(anchors.prior_row.max()) + 1 == anchors.num_vertices  # the weights' rows are those of the vertices
    dense = (anchors.kind == int(Kind.TEETH)) | (anchors.region == int(Region.SCALP))
    counts = torch.bincount(anchors.template.vertex_ids, minlength=len(body.v_template))[anchors.template.vertex_ids]
    assert counts[dense].float().mean() > 5
    assert counts[~dense].max() == 1


@pytest.mark.parametrize("part", ["teeth_upper", "teeth_lower"])
def test_the_edge_of_front_teeth_is_a_line_of_gaussians(part: str) -> None:
    """Half-way between the front teeth's outermost vertices, 9 mm apart, one lies within 1.5 mm."""
    body = BodyModel.from_file(BODY)
    anchors = Anchors(body, build_template(body), 64)
    vertices, is_part = body.v_template, body.part == body.part_names.index(part)
    sign = -1.0 if part == "teeth_upper" else 1.0
    front = vertices[is_part & (vertices[:, 2] > vertices[is_part, 2].max() - 0.012)]
    edge = front[sign * front[:, 1] > (sign * front[:, 1]).max() - 0.002]
    edge = edge[edge[:, 0].argsort()]
    middles = ((edge[1:] + edge[:-1]) / 2)[(edge[1:] - edge[:-1]).norm(dim=1) > 0.005]
    assert len(middles) >= 2
    points = anchors.template.points(vertices)[is_part[anchors.template.vertex_ids]]
    assert torch.cdist(middles, points).amin(dim=1).max() < 0.0015


@pytest.mark.slow
def test_several_gaussians_an_anchor_start_with_the_photo_s_colours(clip_path: Path) -> None:
    torch.manual_seed(0)
    options = ReconstructorOptions(num_clusters=64, gaussians_per_anchor=2, use_hull=False)
    dense = build_reconstructor(str(BODY), True, 4, options)
    photo = photo_of(read(clip_path))
    with torch.no_grad():
        avatar, _ = dense(photo)
        projection = project(dense.anchors, photo)
    gaussians = avatar.gaussians
    assert gaussians.means.shape[1] == len(dense.anchors.template.vertex_ids) > 15000
    assert torch.allclose(gaussians.means, dense.anchors(avatar.betas), atol=1e-6)
    seen = projection.visible[0] > 0
    sampled = torch.nn.functional.grid_sample(photo.image, projection.grid[:, seen][:, :, None], align_corners=False)
    skin = ~dense.anchors.is_lid[seen]  # lids have colours of their own, see test_lids
    assert torch.allclose(gaussians.colors[0, seen][skin], sampled[0, :, :, 0].T[skin], atol=1e-5)
    first = torch.nonzero(
        (dense.anchors.template.share == 2)
        & (dense.anchors.template.corners[:, 0] == dense.anchors.template.corners[:, 1])
    )
    covered = gaussians.scales[0, first[:, 0]].log() - gaussians.scales[0, first[:, 0] + 1].log()
    assert torch.allclose(covered, torch.zeros_like(covered), atol=1e-6)


def test_the_shipped_weights_fit_the_default_options() -> None:
    reconstructor = untrained(True, 16)
    reconstructor.load_state_dict(load_file(ROOT / "assets/weights/reconstruction.safetensors"), strict=True)


def test_boxes_hold_the_projected_parts(clip_path: Path) -> None:
    body, batch = BodyModel.from_file(BODY), read(clip_path)
    boxes = DetailRegions(body, every=1, margin=0.0).boxes(batch.view())
    vertices, _ = body(batch.body)
    for number, ids in enumerate(part_vertices(body).values()):
        points = vertices[0, 1, ids].numpy()
        camera = batch.world_to_camera[0, 1].numpy()
        inside = points @ camera[:3, :3].T + camera[:3, 3]
        projected = inside @ batch.intrinsics[0, 1].numpy().T
        pixels = projected[:, :2] / projected[:, 2:]
        expected = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])
        np.testing.assert_allclose(boxes[0, 1, number].numpy(), expected, atol=1e-2)
    behind = batch.world_to_camera.clone()
    behind[..., 2, 3] -= 10
    hidden = DetailRegions(body).boxes(replace(batch.view(), world_to_camera=behind))
    assert ((hidden[..., 2:] - hidden[..., :2]) == 0).all()


def test_region_and_ssim_terms_by_hand_and_their_gradients(clip_path: Path) -> None:
    batch = read(clip_path)
    torch.manual_seed(0)
    stage = Reconstruction(body_model=str(BODY), loss_weights={"l1": 1.0, "region": 2.0, "ssim": 0.5}, test_photo=None)
    with torch.no_grad():
        avatar, maps = stage.render(batch)
    rgb = maps.rgb.clone().requires_grad_()
    weight = torch.ones_like(maps.alpha)
    weight[..., :20] = 0
    inputs = (avatar, replace(maps, rgb=rgb), rgb, weight, batch)
    terms = stage._terms(*inputs)
    inside = stage.regions.mask(batch.view())
    assert 0 < inside.mean() < 0.5
    error, counted = (rgb.detach() - batch.frames).abs().numpy(), (inside * weight).numpy()
    expected = [np.average(e, weights=np.broadcast_to(w, e.shape)) for e, w in zip(error[0], counted[0], strict=True)]
    assert terms["region"].item() == pytest.approx(np.mean(expected), rel=1e-4)
    (gradient,) = torch.autograd.grad(terms["region"], rgb, retain_graph=True)
    assert gradient[(inside * weight).expand_as(rgb) == 0].abs().max() == 0
    inner = (inside * weight).expand_as(rgb) > 0
    count = (inside * weight).sum(dim=(2, 3, 4), keepdim=True).expand_as(rgb) * 3 * 2
    assert torch.allclose(gradient[inner].abs(), (1 / count)[inner], rtol=1e-4)
    whole = rgb.detach() * weight + batch.frames * (1 - weight)
    assert terms["ssim"].item() == pytest.approx(float(ssim_loss(whole[0], batch.frames[0]).mean()), rel=1e-5)
    (gradient,) = torch.autograd.grad(terms["ssim"], rgb)
    assert gradient[..., :20].abs().max() == 0
    better = rgb.detach() - 0.05 * gradient / gradient.abs().max()
    assert stage._terms(avatar, replace(maps, rgb=better), *inputs[2:])["ssim"] < terms["ssim"]
    stage.loss_weights = {"l1": 1.0}
    assert not {"region", "ssim"} & set(stage._terms(*inputs))


def test_silhouette_is_intersection_over_union() -> None:
    coverage, masks = torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    coverage[0, 0, :4], masks[0, 0, 2:6] = 0.9, 0.8  # 2 rows of 6 in common
    coverage[1, 0, :4], masks[1, 0, :4] = 0.6, 1.0
    masks[1, 0, 4:] = 0.4  # too faint to count
    assert silhouette_iou(coverage, masks).tolist() == pytest.approx([1 / 3, 1, 1])
    frames = torch.rand(3, 3, 8, 8)
    rows = {"drawn": Prediction(frames, coverage=coverage.half()), "painted": Prediction(frames)}
    figures = evaluate_rows(1 - frames, rows, masks=masks, measures=["image"])
    assert figures["drawn"]["silhouette"] == pytest.approx(7 / 9)
    assert "silhouette" not in figures["painted"]


def test_an_orbit_keeps_the_centre_and_turns_the_person() -> None:
    camera = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    camera[1, 3], camera[2, 3] = 0.25, 1.2
    head, nose = torch.tensor([0.0, 0.3, 0.0]), torch.tensor([0.0, 0.3, 0.1])
    turned = orbit(camera, head, 0.5)

    def see(point: torch.Tensor) -> torch.Tensor:
        return turned[:3, :3] @ point + turned[:3, 3]

    assert torch.allclose(see(head), camera[:3, :3] @ head + camera[:3, 3], atol=1e-6)
    offset = see(nose) - see(head)
    np.testing.assert_allclose(offset.numpy(), [-0.1 * np.sin(0.5), 0, -0.1 * np.cos(0.5)], atol=1e-6)  # to the left


def test_means_over_the_clips_of_a_folder() -> None:
    rows = {
        "splat": {"psnr": 1.0},
        "splat (anna)": {"psnr": 20.0, "num_steps": 0, "identity": 0.4, "bands": ["a"]},
        "splat (bert)": {"psnr": 22.0, "num_steps": 0, "identity": None, "identity_reason": "no face"},
        "splat (carl)": {"psnr": 10.0},
    }
    means = folder_means(rows, [("x/test", "anna"), ("x/test", "bert"), ("real", "carl")])
    expected = {
        "psnr": 21.0, "psnr_interval": [20.0, 22.0], "num_steps": 0, "identity": None, "identity_reason": "no face",
    }  # fmt: skip
    assert means == {"splat (mean of 2 in x/test)": expected}


QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reconstruction", "teacher", "shader"])
def test_stages_train_on_rendered_people(stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")
    schedule = [{"start": 0, "resolution": 64, "num_frames": 4, "batch_size": 1}]
    cli = train.main(
        [
            "fit", "-c", f"configs/{stage}.yaml", "--data.num_steps=2",
            f"--data.schedule={json.dumps(schedule)}", "--data.cache_gb=0", "--data.resolution=64",
            "--trainer.limit_val_batches=0", *QUIET,
        ]
    )  # fmt: skip
    weights = cli.datamodule.training_windows().weights
    people = list(Path("assets/captures").glob("person_*.mp4"))
    people = [path for path in people if not path.name.endswith(".mask.mp4")]
    assert len(weights) == 1 + len(people) == 49
    assert weights[0] == pytest.approx(1 / 3 if stage == "reconstruction" else 1 / 2)  # the real person's share
    assert cli.model.step == 2
    trained = {clip.name for clip in cli.datamodule.clips}
    cli.datamodule.setup("test")
    unseen = {clip.name for clip in cli.datamodule.extra_clips}
    assert {f"person_{number}" for number in range(24, 28)} <= unseen
    assert not trained & unseen


@pytest.mark.slow
def test_test_measures_people_who_never_train(
    clip_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")
    for number, name in enumerate(("anna", "bert")):
        path = write_clip(tmp_path, name, num_frames=12, seed=number + 1)
        path.with_name(f"{name}.splits.yaml").write_text("test: [[4, 8]]\nreference: 0\n")
    train.main(
        [
            "test", "-c", "configs/reconstruction.yaml", f"--data.clips=[{{path: {clip_path}}}]", "--weights=shipped",
            f"--data.test_clips=[{{path: {tmp_path}}}]", "--data.resolution=64",
            "--model.init_args.test_photos=[1,3]", "--model.init_args.fit.steps=20", "--model.init_args.test_larger=96",
            *QUIET,
        ]
    )  # fmt: skip
    path = Path(capsys.readouterr().out.strip().splitlines()[-1])
    rows = json.loads(path.read_text())["rows"]
    for name in ("splat", "projected", "freeze", "feed-forward textured (anna)", "projected (bert)"):
        assert 0 <= rows[name]["silhouette"] <= 1
        assert rows[name]["psnr"] > 5
    assert {"splat, 3 photos", "textured, 3 photos (bert)"} <= set(rows)
    assert "textured, 4 photos" not in rows
    both = rows[f"splat (mean of 2 in {Path(*tmp_path.parts[-2:])})"]
    assert both["psnr"] == pytest.approx((rows["splat (anna)"]["psnr"] + rows["splat (bert)"]["psnr"]) / 2)
    for name in ("textured, 96 px", "textured, bicubic to 96 px (bert)"):
        assert rows[name]["perceptual"] > 0
        assert "measured at 96 px" in rows[name]["silhouette_reason"]
    assert "psnr" in rows[f"textured, 96 px (mean of 2 in {Path(*tmp_path.parts[-2:])})"]
    for name in ("textured (anna moved by bert)", "textured (bert moved by anna)"):
        assert rows[name]["psnr"] is None
        assert "no true frame" in rows[name]["psnr_reason"]
        assert rows[name]["identity_photo"] is not None or rows[name]["identity_photo_reason"]
    for name in ("photo.png", "cross_motion.png", "anna.png", "bert_96.png"):
        assert (path.parent / name).is_file()


@pytest.mark.parametrize("size", [64, 200])
def test_painting_reaches_two_pixels_of_128_beyond_the_silhouette(size: int) -> None:
    reach = round(size / 64)
    generator = torch.Generator().manual_seed(0)
    alpha = (torch.rand(1, 2, 1, size, size, generator=generator) - 0.97).clamp_min(0) / 0.03
    textured, painted = (torch.rand(1, 2, 3, size, size, generator=generator) for _ in range(2))
    maps = SplatMaps(textured, alpha, textured[:, :, :0], textured, torch.zeros_like(alpha), alpha)
    painted.requires_grad_(True)
    matted = maps.matted(painted)

    near = scipy.ndimage.grey_dilation(alpha.numpy(), size=(1, 1, 1, 2 * reach + 1, 2 * reach + 1), mode="nearest")
    expected = near * painted.detach().numpy() + (1 - near) * textured.numpy()
    np.testing.assert_allclose(matted.detach().numpy(), expected, atol=1e-6)
    assert (near == 0).mean() > 0.1  # pixels that are the plain splat's
    matted.sum().backward()
    np.testing.assert_allclose(painted.grad.numpy(), np.broadcast_to(near, painted.shape), atol=1e-6)


def test_where_the_photo_stands_painting_leaves_its_finest_octave_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    textured, painted = (torch.rand(1, 2, 3, 40, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    seen = torch.rand(1, 2, 1, 40, 40, generator=generator, dtype=torch.float64)
    maps = SplatMaps(textured, torch.ones_like(seen), textured[:, :, :0], textured, seen, torch.ones_like(seen))

    change = (painted - textured).numpy()
    coarse = change
    for axis in (3, 4):  # scipy's "mirror" is torch's "reflect"
        coarse = scipy.ndimage.convolve1d(coarse, np.array([1, 4, 6, 4, 1]) / 16, axis=axis, mode="mirror")
    share = seen.numpy()
    expected = textured.numpy() + share * coarse + (1 - share) * change
    np.testing.assert_allclose(maps.matted(painted).numpy(), expected, atol=1e-12)

    none = MatteOptions(octaves_shown=0, octaves_else=0)
    np.testing.assert_allclose(maps.matted(painted, none).numpy(), painted.numpy(), atol=1e-12)
    wider = coarse
    kernel = np.zeros(9)
    kernel[::2] = np.array([1, 4, 6, 4, 1]) / 16
    for axis in (3, 4):
        wider = scipy.ndimage.convolve1d(wider, kernel, axis=axis, mode="mirror")
    options = MatteOptions(octaves_shown=2, octaves_else=1)
    expected_wider = textured.numpy() + share * wider + (1 - share) * coarse
    np.testing.assert_allclose(maps.matted(painted, options).numpy(), expected_wider, atol=1e-12)

    single = SplatMaps(*(value.float() for value in vars(maps).values() if value is not None))
    with torch.autocast("cpu", torch.bfloat16):  # eight bits of a change are too few
        np.testing.assert_allclose(single.matted(painted.float()).numpy(), expected, atol=1e-6)
        assert single.matted(painted.bfloat16()).dtype == torch.float32
