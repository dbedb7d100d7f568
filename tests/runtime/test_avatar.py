"""The avatar on disk: save and load, and splat files read by other people's readers and rendered again."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import gsply
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.conftest import ROOT
from visa.artifacts.provenance import SYNTHETIC
from visa.networks.avatar import Avatar, Loose
from visa.networks.body import BodyModel, BodyParams
from visa.networks.compositing import splat
from visa.networks.gaussians import Gaussians
from visa.networks.rasterizer import rasterize
from visa.networks.template import build_template
from visa.networks.texture import Texture
from visa.networks.view import Camera
from visa.runtime.avatar_files import load_avatar, save_avatar
from visa.runtime.splat_files import SH_DC, read_splat, write_splat
from visa.tools.export_avatar import main

BODY = ROOT / "assets/body/smplx_anny.npz"
SIZE = 96


@pytest.fixture(scope="module")
def avatar(body: BodyModel) -> Avatar:
    """Gaussians on the upper body with shape, size, turn and colour of their own, some colours out of range."""
    generator = torch.Generator().manual_seed(0)
    ids = build_template(body).vertex_ids[::3]
    betas = torch.randn(1, 10, generator=generator)
    rest = body.rest_vertices(betas, torch.zeros(1, body.num_expressions), ids)

    def uniform(*shape: int, count: int = len(ids)) -> Tensor:
        return torch.rand(1, count, *shape, generator=generator)

    def some(means: Tensor) -> Gaussians:
        count = means.shape[1]
        return Gaussians(
            means=means + 0.01 * (uniform(3, count=count) - 0.5),
            quats=torch.nn.functional.normalize(uniform(4, count=count) - 0.5, dim=-1),
            scales=0.003 + 0.02 * uniform(3, count=count),
            opacities=0.05 + 0.9 * uniform(count=count),
            colors=1.2 * uniform(3, count=count) - 0.1,
            features=uniform(5, count=count),
        )

    gaussians, loose = some(rest), Loose(some(rest[:, :40]), torch.softmax(uniform(55, count=40), dim=-1))
    photo, mask = torch.rand(1, 4, 32, 32, generator=generator).split([3, 1], dim=1)
    both = len(ids) + 40
    texture = Texture(
        photo, mask, 2 * uniform(2, count=both) - 1, (uniform(count=both) > 0.5).float(), uniform(count=both),
        uniform(count=both), mask - 0.5,
    )  # fmt: skip
    return Avatar(gaussians, betas, ids, background=torch.full((1, 3), 0.5), texture=texture, loose=loose)


def first(gaussians: Gaussians) -> Gaussians:
    return Gaussians(**{f.name: getattr(gaussians, f.name)[0] for f in dataclasses.fields(Gaussians)})


def camera() -> tuple[Tensor, Tensor]:
    """Intrinsics and world-to-camera of a camera in front of the upper body (y up, z backward)."""
    intrinsics = torch.tensor([[1.2 * SIZE, 0, SIZE / 2], [0, 1.2 * SIZE, SIZE / 2], [0, 0, 1]])
    view = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    view[:3, 3] = torch.tensor([0.0, 0.2, 1.4])
    return intrinsics, view


def picture(gaussians: Gaussians) -> Tensor:
    """RGB and alpha `[4,H,W]` of one set `[N,...]`."""
    intrinsics, view = camera()
    one = Gaussians(**{f.name: getattr(gaussians, f.name)[None, None] for f in dataclasses.fields(Gaussians)})
    maps = splat(one, Camera(intrinsics[None, None], view[None, None], SIZE), torch.zeros(1, 3))
    return torch.cat([maps.rgb, maps.alpha], dim=2)[0, 0]


def test_the_record_is_frozen(avatar: Avatar) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        avatar.betas = torch.zeros(1, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        avatar.gaussians.means = torch.zeros(1, 1, 3)


def test_gaussians_follow_pose_offsets_where_the_body_has_them(body: BodyModel) -> None:
    generator = torch.Generator().manual_seed(1)
    small = body.subset(torch.arange(0, len(body.v_template), 40))
    bent = BodyModel(
        small.v_template, small.blendshapes, small.joint_template, small.joint_blendshapes, small.lbs_weights,
        small.parents.tolist(), small.faces,
        posedirs=0.01 * torch.randn(len(small.v_template), 3, 486, generator=generator),
    )  # fmt: skip
    params = BodyParams.zeros((1, 2), bent.num_expressions).map(
        lambda value: 0.3 * torch.randn(value.shape, generator=generator)
    )
    params.betas = params.betas[:, :1].expand(1, 2, -1)
    ids = torch.arange(5, len(bent.v_template), 2)
    rest = bent.rest_vertices(params.betas[:, 0], torch.zeros(1, bent.num_expressions), ids)
    quats = torch.zeros(1, len(ids), 4)
    quats[..., 0] = 1
    record = Avatar(Gaussians(rest, quats, rest, rest[..., 0], rest, rest), params.betas[:, 0], ids, torch.zeros(1, 3))
    vertices, _ = bent(params, ids)
    assert torch.allclose(record.pose(bent, params).means, vertices, atol=1e-5)
    assert not torch.allclose(record.pose(small, params).means, vertices, atol=1e-3)  # another body: cut out anew


def test_saved_and_loaded_is_the_same_avatar(avatar: Avatar, body: BodyModel, tmp_path: Path) -> None:
    path = save_avatar(tmp_path / "person.safetensors", avatar, body, BODY.name)
    again = load_avatar(path, body)
    for f in dataclasses.fields(Gaussians):
        assert torch.equal(getattr(again.gaussians, f.name), getattr(avatar.gaussians, f.name))
        assert torch.equal(getattr(again.loose.gaussians, f.name), getattr(avatar.loose.gaussians, f.name))
    assert torch.equal(again.loose.skin_weights, avatar.loose.skin_weights)
    assert torch.equal(again.betas, avatar.betas)
    assert torch.equal(again.vertex_ids, avatar.vertex_ids)
    assert torch.equal(again.background, avatar.background)
    for f in dataclasses.fields(Texture):
        assert torch.equal(getattr(again.texture, f.name), getattr(avatar.texture, f.name))
    plain = dataclasses.replace(avatar, texture=None, loose=None)
    plain = load_avatar(save_avatar(path, plain, body, BODY.name), body)
    assert plain.texture is None
    assert plain.loose is None
    assert [p.name for p in tmp_path.iterdir()] == ["person.safetensors"]


def test_an_avatar_is_refused_with_another_body(avatar: Avatar, body: BodyModel, tmp_path: Path) -> None:
    path = save_avatar(tmp_path / "person.safetensors", avatar, body, BODY.name)
    other = BodyModel.from_file(BODY)
    other.lbs_weights[0, 0] += 0.5
    said = rf"^.*person.safetensors was made on another body model than the one given, {BODY.name}.*$"
    with pytest.raises(ValueError, match=said):
        load_avatar(path, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no avatar at"), (b"nonsense", "not a readable avatar"), ("weights", "no avatar of this version:")],
)
def test_bad_avatar_files_are_one_line_errors(
    content: bytes | str | None, message: str, body: BodyModel, tmp_path: Path
) -> None:
    path = tmp_path / "person.safetensors"
    if content == "weights":
        shutil.copy(ROOT / "assets/weights/codec_statistics.safetensors", path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_avatar(path, body)
    assert "\n" not in str(caught.value)


def read_ply(path: Path) -> np.ndarray:
    """The vertices of a binary little-endian PLY of floats, as a record array by its header alone."""
    data = path.read_bytes()
    end = data.index(b"end_header\n") + len(b"end_header\n")
    magic, form, *lines = data[:end].decode("ascii").splitlines()[:-1]
    assert (magic, form) == ("ply", "format binary_little_endian 1.0")
    element, *properties = [line.split() for line in lines if not line.startswith("comment")]
    assert element[:2] == ["element", "vertex"]
    assert {tuple(words[:-1]) for words in properties} == {("property", "float")}
    fields = np.dtype([(words[-1], "<f4") for words in properties])
    assert len(data) - end == int(element[2]) * fields.itemsize
    return np.frombuffer(data, fields, offset=end)


def test_files_say_that_they_are_synthetic(avatar: Avatar, body: BodyModel, tmp_path: Path) -> None:
    ply = write_splat(tmp_path / "person.ply", first(avatar.gaussians)).read_bytes()
    assert f"\ncomment {SYNTHETIC}\n".encode() in ply[: ply.index(b"end_header")]
    path = save_avatar(tmp_path / "person.safetensors", avatar, body, "x")
    with safe_open(str(path), framework="pt") as archive:
        assert json.loads(archive.metadata()["avatar"])["generator"] == SYNTHETIC


def test_the_ply_is_the_3dgs_layout(avatar: Avatar, tmp_path: Path) -> None:
    gaussians = first(avatar.gaussians)
    vertex = read_ply(write_splat(tmp_path / "a.ply", gaussians))
    # As the original implementation names and orders them: viewers look for these.
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    assert vertex.dtype.names == tuple(names.split())

    def column(name: str) -> np.ndarray:
        return vertex[name].astype(np.float64)

    means = np.stack([column("x"), -column("y"), -column("z")], axis=1)  # stored y down, z forward
    np.testing.assert_allclose(means, gaussians.means, atol=1e-6)
    for channel in range(3):
        np.testing.assert_allclose(
            0.5 + SH_DC * column(f"f_dc_{channel}"), gaussians.colors[:, channel].numpy(), atol=1e-6
        )
        np.testing.assert_allclose(np.exp(column(f"scale_{channel}")), gaussians.scales[:, channel].numpy(), rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-column("opacity"))), gaussians.opacities.numpy(), atol=1e-6)
    assert abs(SH_DC - 0.5 / np.sqrt(np.pi)) < 1e-15
    data = gsply.plyread(str(tmp_path / "a.ply"))  # someone else's reader finds the same in it
    for theirs, ours in (
        (data.means, ("x", "y", "z")),
        (data.sh0, ("f_dc_0", "f_dc_1", "f_dc_2")),
        (data.opacities, ("opacity",)),
        (data.scales, ("scale_0", "scale_1", "scale_2")),
        (data.quats, ("rot_0", "rot_1", "rot_2", "rot_3")),
    ):
        np.testing.assert_array_equal(theirs.squeeze(), np.stack([vertex[name] for name in ours], axis=1).squeeze())


def test_a_viewer_of_the_ply_shows_the_same_picture(avatar: Avatar, tmp_path: Path) -> None:
    """The file's own numbers, drawn by a camera in the file's axes, against the avatar drawn in the body's."""
    gaussians = first(avatar.gaussians)
    write_splat(tmp_path / "a.ply", gaussians)
    data = gsply.plyread(str(tmp_path / "a.ply"))
    intrinsics, view = camera()
    view = view @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))  # the file's y points down, its z forward
    drawn = rasterize(
        torch.tensor(data.means)[None],
        torch.tensor(data.quats)[None],
        torch.tensor(data.scales).exp()[None],
        torch.tensor(data.opacities).sigmoid()[None],
        torch.tensor(gsply.sh2rgb(data.sh0))[None],
        intrinsics[None],
        view[None],
        SIZE,
        SIZE,
    )
    expected = picture(gaussians)
    assert expected[3].max() > 0.9
    assert torch.allclose(drawn.image[0].permute(2, 0, 1), expected[:3], atol=1e-4)
    assert torch.allclose(drawn.alpha[0, ..., 0], expected[3], atol=1e-4)


def test_the_spz_says_the_same_to_another_reader(avatar: Avatar, tmp_path: Path) -> None:
    path = write_splat(tmp_path / "a.spz", first(avatar.gaussians))
    ours, theirs = read_splat(path), gsply.read_spz(str(path))
    np.testing.assert_allclose(ours.means, theirs.means, atol=1e-6)
    np.testing.assert_allclose(ours.scales.log(), theirs.scales, atol=1e-5)
    np.testing.assert_allclose(ours.colors, gsply.sh2rgb(theirs.sh0), atol=1e-5)
    np.testing.assert_allclose(ours.opacities, 1 / (1 + np.exp(-theirs.opacities)), atol=1e-5)
    quats = theirs.quats / np.linalg.norm(theirs.quats, axis=1, keepdims=True)
    assert np.abs((quats * ours.quats.numpy()).sum(axis=1)).min() > 1 - 1e-6


def test_we_read_the_spz_of_another_writer(avatar: Avatar, tmp_path: Path) -> None:
    write_splat(tmp_path / "a.ply", first(avatar.gaussians))
    data = gsply.plyread(str(tmp_path / "a.ply"))
    gsply.write_spz(str(tmp_path / "b.spz"), data, version=3)
    read = read_splat(tmp_path / "b.spz")  # that writer changes no axes
    np.testing.assert_allclose(read.means, data.means, atol=1 / 4096)
    np.testing.assert_allclose(read.colors, gsply.sh2rgb(data.sh0), atol=0.005)


@pytest.mark.parametrize("suffix", [".ply", ".spz"])
def test_reimported_values_and_pictures_are_within_quantisation(avatar: Avatar, tmp_path: Path, suffix: str) -> None:
    gaussians = first(avatar.gaussians)
    again = read_splat(write_splat(tmp_path / f"a{suffix}", gaussians))
    exact = suffix == ".ply"
    assert (again.means - gaussians.means).abs().max() <= (1e-6 if exact else 0.5 / 2**16 + 1e-7)
    assert (again.scales / gaussians.scales).log().abs().max() <= (1e-5 if exact else 0.5 / 16 + 1e-5)
    assert (again.opacities - gaussians.opacities).abs().max() <= (1e-6 if exact else 0.5 / 255 + 1e-6)
    # a colour step is SH_DC / 0.15 / 255
    assert (again.colors - gaussians.colors).abs().max() <= (1e-6 if exact else 0.5 * SH_DC / 0.15 / 255 + 1e-6)
    cosine = (again.quats * gaussians.quats).sum(-1).abs().clamp(max=1)
    assert 2 * cosine.min().acos() <= (2e-3 if exact else 0.01)  # rad
    assert again.features.shape == (len(gaussians.means), 0)
    difference = (picture(again) - picture(gaussians)).abs()
    assert difference.max() < (1e-4 if exact else 0.03)
    assert difference.mean() < (1e-6 if exact else 2e-3)


def test_opaque_and_empty_gaussians_stay_finite(avatar: Avatar, tmp_path: Path) -> None:
    gaussians = first(avatar.gaussians)
    opacities = gaussians.opacities.clone()
    opacities[0], opacities[1] = 1.0, 0.0
    edge = dataclasses.replace(gaussians, opacities=opacities)
    for suffix in (".ply", ".spz"):
        again = read_splat(write_splat(tmp_path / f"a{suffix}", edge)).opacities
        assert torch.allclose(again, opacities, atol=0.003)


def test_the_same_gaussians_give_the_same_bytes(avatar: Avatar, tmp_path: Path) -> None:
    gaussians = first(avatar.gaussians)
    files = [write_splat(tmp_path / name, gaussians).read_bytes() for name in ("a.spz", "b.spz")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ply", b"ply\nformat ascii 1.0\nend_header\n"),
        ("a.ply", b"ply\nformat binary_little_endian 1.0\nelement vertex 2\nproperty float x\nend_header\n"),
        ("a.ply", b"nonsense"),
        ("a.spz", b"nonsense"),
        ("a.spz", gzip.compress(b"12345678901234567890", mtime=0)),
        ("a.obj", b""),
    ],
)
def test_bad_splat_files_are_one_line_errors(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        read_splat(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_truncated_splat_is_an_error(avatar: Avatar, tmp_path: Path) -> None:
    for suffix in (".ply", ".spz"):
        path = write_splat(tmp_path / f"a{suffix}", first(avatar.gaussians))
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ValueError, match="not a readable splat file"):
            read_splat(path)


def test_writing_refuses_what_it_cannot_hold(avatar: Avatar, tmp_path: Path) -> None:
    gaussians = first(avatar.gaussians)
    with pytest.raises(ValueError, match="one set"):
        write_splat(tmp_path / "a.ply", avatar.gaussians)
    with pytest.raises(ValueError, match="suffixes"):
        write_splat(tmp_path / "a.obj", gaussians)
    with pytest.raises(ValueError, match="means has values that are not finite"):
        write_splat(tmp_path / "a.ply", dataclasses.replace(gaussians, means=gaussians.means * torch.nan))
    with pytest.raises(ValueError, match="128 m"):
        write_splat(tmp_path / "a.spz", dataclasses.replace(gaussians, means=gaussians.means + 200))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_photo_is_exported_with_the_shipped_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    image = "assets/photos/astronaut.png"
    assert main(["--image", image, "--out", str(tmp_path / "a.ply"), "--pose", "photo"]) == 0
    gaussians = read_splat(tmp_path / "a.ply")
    assert len(gaussians.means) > 5000
    assert (gaussians.means.amax(dim=0) - gaussians.means.amin(dim=0)).max() < 2.5  # m
    capsys.readouterr()
    for arguments in (["--out", "a.obj"], ["--out", "a.safetensors", "--pose", "photo"]):
        assert main(["--image", image, *arguments]) == 1
        assert capsys.readouterr().err.startswith(f"error: {arguments[1]}: ")
