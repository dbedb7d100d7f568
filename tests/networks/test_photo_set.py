"""Several photos -> one avatar: which frames are taken, what each shows, corrected poses, textures, files, errors."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from tests.conftest import ROOT
from tests.reconstructors import untrained
from visa import cli as train
from visa.datamodules.clip import Clip
from visa.datamodules.retarget import open_photos, retarget
from visa.datamodules.spread import CALM, describe_frames, spread_frames
from visa.datamodules.windows import WindowReader
from visa.evaluation.novel_motion import orbit
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel, BodyParams
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.joints import HEAD
from visa.networks.photo import Photo
from visa.networks.photo_set import own_shape, with_photos
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.texture import PhotoSet, Texture, stacked, view_directions
from visa.runtime.avatar_files import load_avatar, save_avatar
from visa.tools.export_avatar import main as export

BODY = ROOT / "assets/body/smplx_anny.npz"
SIZE = 96


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return untrained(remove_neck=False, feature_channels=4).eval()


def photo_at(reconstructor: GaussianReconstructor, yaw: float, colors: Tensor, params: BodyParams) -> Photo:
    """The template with `colors [N,3]` as a photo, from the side `yaw` (radians)."""
    body = reconstructor.body
    camera = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    camera[1, 3], camera[2, 3] = 0.25, 0.9
    camera = orbit(camera, body(params)[1][0, HEAD], yaw)[None]
    focal = 1.5 * SIZE
    intrinsics = torch.tensor([[[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]]])
    blank = torch.zeros(1, 3, SIZE, SIZE)
    photo = Photo(blank, blank[:, :1], params, intrinsics, camera, torch.full((1, 3), 0.5))
    bare = reconstructor.bare(photo)
    avatar = replace(bare, gaussians=replace(bare.gaussians, colors=colors[None]))
    with torch.no_grad():
        maps = avatar.render(body, photo.view())
    return replace(photo, image=maps.rgb[:, 0].clamp(0, 1), mask=maps.alpha[:, 0])


def timed(params: BodyParams) -> BodyParams:
    return params.map(lambda value: value[:, None])


def shown(reconstructor: GaussianReconstructor, avatar: Avatar, photo: Photo) -> Tensor:
    """`[3,H,W]` the avatar as a photo shows it."""
    with torch.no_grad():
        return avatar.render(reconstructor.body, photo.view()).textured[0, 0]


def rest(reconstructor: GaussianReconstructor) -> tuple[BodyParams, Tensor]:
    params = BodyParams.zeros((1,), reconstructor.body.num_expressions)
    return params, reconstructor.anchors(params.betas)[0]


@pytest.fixture(scope="module")
def halves(reconstructor: GaussianReconstructor) -> tuple[Photo, Photo]:
    """Two photos of one person, red on one half and blue on the other, each from the side of one half."""
    params, points = rest(reconstructor)
    left = (points[:, :1] > 0).float()
    colors = left * torch.tensor([0.9, 0.1, 0.1]) + (1 - left) * torch.tensor([0.1, 0.1, 0.9])
    first, second = (photo_at(reconstructor, yaw, colors, params) for yaw in (1.2, -1.2))
    return first, second


def test_photos_of_a_clip_are_calm_frames_and_always_the_same(
    reconstructor: GaussianReconstructor, clip_path: Path
) -> None:
    clip, body = Clip(clip_path), reconstructor.body
    clip.track["jaw_pose"][25] = 0.5  # a tracker's jump: far from all others, and fast
    candidates = np.delete(np.arange(40), 11)
    chosen = spread_frames(clip, candidates, 6, 3, body)
    assert chosen == spread_frames(clip, candidates, 6, 3, body)
    assert chosen[0] == 3
    assert len(set(chosen)) == 6
    assert not {11, 24, 25, 26} & set(chosen)
    described = describe_frames(clip, np.arange(40), body)
    spread = cdist(described[chosen], described[chosen])[np.triu_indices(6, 1)].min()
    evenly = described[np.linspace(0, 39, 6).astype(int)]
    assert spread > cdist(evenly, evenly)[np.triu_indices(6, 1)].min()
    assert len(spread_frames(clip, candidates, 39, 3, body)) == 39  # too few calm ones: all
    assert CALM < 1
    assert spread_frames(clip, np.asarray([3]), 4, 3, body) == [3]


def test_the_photo_that_is_more_alike_counts_more() -> None:
    """Softmax of two penalties by hand; a photo that does not show a Gaussian has no share in it."""
    towards = torch.nn.functional.normalize(torch.tensor([[0.0, 0, 1], [0.02, 0, 1]]), dim=-1)
    flags = torch.tensor([[1.0, 1, 0], [1.0, 0, 0]])[None]
    texture = Texture(flags, flags, flags, flags, flags, flags, flags)
    photos = PhotoSet(texture, towards[None, :, None].expand(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))
    now = torch.tensor([0.0, 0, 1]).expand(1, 1, 3, 3)
    shares = photos.shares(now, torch.zeros(1, 1, 3, 3))
    penalty = (2 - 2 * np.cos(np.arctan(0.02))) / 0.025**2
    assert shares[0, 0, 0].tolist() == pytest.approx([1 / (1 + np.exp(-penalty)), 1, 0], abs=1e-3)
    assert shares.sum(dim=2)[0, 0].tolist() == pytest.approx([1, 1, 0], abs=1e-6)


def test_a_photo_set_of_one_photo_is_that_photo(reconstructor: GaussianReconstructor, halves: tuple) -> None:
    photo = halves[0]
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
    several = with_photos(reconstructor, avatar, [photo], [])
    assert isinstance(several.texture, PhotoSet)
    error = (shown(reconstructor, several, photo) - shown(reconstructor, avatar, photo)).abs()
    assert error.mean() < 1e-3


def test_one_photo_is_the_plain_fit(reconstructor: GaussianReconstructor, halves: tuple) -> None:
    photo, options = halves[0], FitOptions(steps=4)
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
    plain = fit_avatar(reconstructor, avatar, photo, options)
    again = fit_avatar(reconstructor, avatar, photo, options, further=[])
    assert isinstance(again.texture, Texture)
    for f in dataclasses.fields(plain.gaussians):
        assert torch.equal(getattr(plain.gaussians, f.name), getattr(again.gaussians, f.name))
    assert fit_avatar(reconstructor, avatar, photo, FitOptions(steps=0)) is avatar


def test_many_photos_take_more_steps() -> None:
    steps = {photos: FitOptions().num_steps(photos) for photos in (1, 4, 5, 8, 16)}
    assert steps == {1: 80, 4: 80, 5: 80, 8: 120, 16: 240}
    assert FitOptions(steps=0).num_steps(16) == 0


def test_two_photos_that_show_one_half_each_give_an_avatar_of_both(
    reconstructor: GaussianReconstructor, halves: tuple
) -> None:
    first, second = halves
    with torch.no_grad():
        avatar, _ = reconstructor(first)
    options = FitOptions(steps=20)
    alone = fit_avatar(reconstructor, avatar, first, options)
    both = fit_avatar(reconstructor, avatar, first, options, further=[second])

    def error(one: Avatar, photo: Photo) -> float:
        inside = (photo.mask[0] > 0.9).float()
        off = (shown(reconstructor, one, photo) - photo.image[0]).abs().mean(dim=0, keepdim=True)
        return float((off * inside).sum() / inside.sum())

    splat = replace(alone, texture=None), replace(both, texture=None)
    assert error(splat[0], second) > 0.3  # the other half is the mirrored first: red where it is blue
    assert error(splat[1], second) < 0.1
    assert error(alone, second) > 0.3
    assert error(both, second) < 0.06
    assert error(both, first) < 0.06


@pytest.mark.slow
def test_the_fit_brings_a_disturbed_pose_back(reconstructor: GaussianReconstructor) -> None:
    """Mean distance of the Gaussians that photo 2 shows from their true places in it, px."""
    params, points = rest(reconstructor)
    waves = torch.stack([points @ points.new_tensor(axis) for axis in ([70.0, 20, 0], [0, 80.0, 10], [40.0, -60, 30])])
    colors = 0.5 + 0.4 * torch.sin(waves.T)
    first, second = (photo_at(reconstructor, yaw, colors, params) for yaw in (0.0, 0.25))
    turned = params.body_pose.clone()
    turned[:, 14, 1] += 0.06
    disturbed = replace(params, transl=params.transl + torch.tensor([0.012, -0.008, 0.0]), body_pose=turned)
    with torch.no_grad():
        avatar, _ = reconstructor(first)
    given = replace(second, body=disturbed)
    ids, body = avatar.vertex_ids, reconstructor.body

    def places(photo: Photo) -> Tensor:
        return photo.places(body(photo.body, ids)[0])

    fitted = fit_avatar(reconstructor, avatar, first, FitOptions(), further=[given])
    shows = fitted.texture.textures.seen[0, 1, : len(ids)] > 0
    moved = fitted.gaussians.means - avatar.gaussians.means
    count = len(ids)
    corrected = fitted.texture.textures.places[:, 1, :count]
    assert moved.norm(dim=-1).mean() < 0.004

    def off(found: Tensor) -> float:
        return float(((found - places(second))[0, shows].norm(dim=-1) * SIZE / 2).mean())

    assert off(places(given)) > 2
    assert off(corrected) < 0.5 * off(places(given))


def test_another_shape_s_photo_keeps_its_head_in_place(reconstructor: GaussianReconstructor) -> None:
    params, points = rest(reconstructor)
    params = replace(params, betas=params.betas + 0.7, transl=params.transl + 0.1)
    photo = photo_at(reconstructor, 0.0, points * 0 + 0.5, params)
    aligned = own_shape(reconstructor.body, photo, torch.zeros(1, 10))
    assert torch.equal(aligned.body.betas, torch.zeros(1, 10))
    before, after = (reconstructor.body(one.body)[1][:, HEAD] for one in (photo, aligned))
    assert torch.allclose(before, after, atol=1e-5)


def test_directions_are_in_the_gaussians_own_axes(reconstructor: GaussianReconstructor, halves: tuple) -> None:
    """The third axis is the surface's normal: there lies the cosine between normal and view."""
    photo = halves[0]
    posed = reconstructor.bare(photo).pose(reconstructor.body, timed(photo.body))
    directions = view_directions(posed, photo.world_to_camera[:, None])[0, 0]
    eye = -(photo.world_to_camera[0, :3, :3].T @ photo.world_to_camera[0, :3, 3])
    towards = torch.nn.functional.normalize(eye - posed.means[0, 0], dim=-1)
    assert torch.allclose(directions[:, 2], (reconstructor.anchors.normals * towards).sum(-1), atol=1e-4)


def test_an_avatar_of_several_photos_is_saved_and_loaded(
    reconstructor: GaussianReconstructor, halves: tuple, tmp_path: Path
) -> None:
    with torch.no_grad():
        avatar, _ = reconstructor(halves[0])
    avatar = fit_avatar(reconstructor, avatar, halves[0], FitOptions(steps=0), further=[halves[1]])
    path = save_avatar(tmp_path / "person.safetensors", avatar, reconstructor.body, BODY.name)
    again = load_avatar(path, reconstructor.body)
    assert isinstance(again.texture, PhotoSet)
    for f in dataclasses.fields(Texture):
        assert torch.equal(getattr(again.texture.textures, f.name), getattr(avatar.texture.textures, f.name))
    assert torch.equal(shown(reconstructor, again, halves[1]), shown(reconstructor, avatar, halves[1]))
    two = replace(avatar.texture, directions=avatar.texture.directions[:, :1])
    save_avatar(path, replace(avatar, texture=two), reconstructor.body, BODY.name)
    with pytest.raises(ValueError, match=r"^.*person.safetensors: texture\.\w+ does not fit: make it again"):
        load_avatar(path, reconstructor.body)


def test_photos_and_clips_are_opened_or_refused_in_one_line(
    reconstructor: GaussianReconstructor, clip_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    photo, clip, body = "assets/photos/astronaut.png", str(clip_path), reconstructor.body
    assert [frame for _, frame in open_photos([photo, photo], None, body)] == [0, 0]
    frames = [frame for _, frame in open_photos([clip], 5, body)]
    assert len(frames) == 5
    assert frames[0] == 3  # the clip's reference
    assert len(open_photos([clip], None, body)) == 8
    for images, count, message in (
        ([photo], 4, "--photos chooses frames of a clip"),
        ([photo, clip], None, "is a clip and not the only file"),
        ([clip], 0, "--photos is 0: give"),
    ):
        with pytest.raises(ValueError, match=message):
            open_photos(images, count, body)
    with pytest.raises(FileNotFoundError, match=r"no video or image at missing\.png"):
        open_photos([photo, "missing.png"], None, body)


def test_predict_reads_further_photos(clip_path: Path) -> None:
    reader = WindowReader((0.5, 0.5, 0.5))
    driving = str(clip_path.with_name("person.track.npz"))
    batch = retarget(str(clip_path), driving, reader, 32, 2, str(BODY), num_photos=3)
    assert len(batch.further) == 2
    assert int(batch.reference_numbers[0]) == 3
    numbers = {int(one.reference_numbers[0]) for one in batch.further}
    assert len(numbers | {3}) == 3


def test_a_clip_is_exported(clip_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "person.safetensors"
    arguments = [
        "--image",
        str(clip_path),
        "--photos",
        "2",
        "--out",
        str(out),
        "--fit_steps",
        "1",
        "--resolution",
        "48",
    ]
    assert export(arguments) == 0
    assert load_avatar(out, BodyModel.from_file(BODY)).texture.textures.photo.shape == (1, 2, 3, 48, 48)


def test_stacked_textures_keep_their_order(reconstructor: GaussianReconstructor, halves: tuple) -> None:
    with torch.no_grad():
        both = [reconstructor(photo)[0].texture for photo in halves]
    joined = stacked([replace(one, seen=one.seen[:, :9]) for one in both[:1]] * 2)
    assert joined.seen.shape == (1, 2, 9)
    assert torch.equal(joined.photo[:, 1], both[0].photo)


@pytest.mark.slow
def test_predict_takes_one_photo_several_or_frames_of_a_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")
    for images, flags, count in ((["a.png"], [], None), (["a.png", "b.png"], [], None), (["c.mp4"], ["--photos=4"], 4)):
        arguments = ["predict", "--image", *images, *flags, "--driving", "motion.track.npz"]
        given = train.main(arguments, train.BuildOnly).datamodule.predict_input
        assert given.image == images
        assert given.photos == count
