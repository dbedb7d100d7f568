"""Captures: seeded people, motion, geometry, track and mask; the shipped set; and, where Mitsuba is, the renderer."""

import types
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation

from tests.conftest import ROOT
from visa.artifacts.media import read_video
from visa.datamodules.clip import Clip, load_track
from visa.networks.body import BodyModel, BodyParams
from visa.tools.make_captures.__main__ import BODY, LANDMARKS, Settings, is_done, numbers_of, splits_text
from visa.tools.make_captures.anatomy import Anatomy, inside_distance
from visa.tools.make_captures.cloth import follow
from visa.tools.make_captures.meshes import midpoint_matrix, smoothing_matrix, vertex_normals
from visa.tools.make_captures.motion import make_motion
from visa.tools.make_captures.person import draw_person
from visa.tools.make_captures.scene import BLIND_DISTANCE, EXPOSURE, blind_boxes, finish
from visa.tools.make_captures.stage import WARM_UP, Stage, place_camera

SHIPPED = sorted((ROOT / "assets" / "captures").glob("**/person_*.track.npz"))
SEED = 0


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return Anatomy.load(ROOT / BODY, ROOT / LANDMARKS)


@pytest.fixture(scope="module")
def stage(anatomy: Anatomy) -> Stage:
    return Stage(draw_person(SEED, 24), anatomy, num_frames=4)  # long hair, seen from near


def test_people_depend_on_seed_and_number_alone() -> None:
    assert draw_person(3, 7) == draw_person(3, 7)
    assert draw_person(3, 7) != draw_person(4, 7)
    people = [draw_person(SEED, index) for index in range(28)]
    assert len({person.betas for person in people}) == 28
    assert len({person.hair.kind for person in people}) == 6
    assert len({person.garments[0].pattern for person in people}) == 7
    assert {len(person.garments) for person in people} == {1, 2}
    assert {person.shows_hands for person in people} == {True, False}


def test_motion_is_seeded_smooth_and_starts_as_a_photo(anatomy: Anatomy) -> None:
    names = anatomy.body.expression_names
    for index in range(28):
        person = draw_person(SEED, index)
        motion, again = (make_motion(person, 48, names, WARM_UP) for _ in range(2))
        for name, value in motion.items():
            np.testing.assert_array_equal(value, again[name])
            assert np.isfinite(value).all()
        turns = motion["body_pose"].reshape(-1, 3)
        steps = Rotation.from_rotvec(turns).as_matrix().reshape(48 + WARM_UP, 21, 3, 3)
        angle = np.linalg.norm(steps[1:] - steps[:-1], axis=(-1, -2)) / np.sqrt(2)
        assert angle.max() < 0.25  # rad a frame: 360 degrees a second is a quick gesture
        assert np.abs(np.diff(motion["transl"], axis=0)).max() < 0.02
        assert motion["expression"].min() >= 0
        assert motion["expression"].max() <= 1
        assert motion["jaw_pose"][:, 0].min() >= 0
        assert motion["jaw_pose"][:, 0].max() < 0.3
        lids = motion["expression"][:, names.index("eyeBlinkLeft")]
        assert lids[WARM_UP] == 0
        head = motion["body_pose"][WARM_UP, 11] + motion["body_pose"][WARM_UP, 14]
        assert np.linalg.norm(head) < 0.3


def test_midpoint_subdivision_keeps_the_surface() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    matrix, fine = midpoint_matrix(faces, 4, levels=2)
    assert len(fine) == 4 * 16
    assert matrix.shape[0] == len(fine) // 2 + 2

    def area(points: np.ndarray, triangles: np.ndarray) -> float:
        corner = points[triangles]
        return float(np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1).sum())

    assert area(matrix @ vertices, fine) == pytest.approx(area(vertices, faces))
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1)
    normals = vertex_normals(matrix @ vertices, fine)
    assert ((matrix @ vertices - 0.25) * normals).sum(axis=1).min() > 0  # outward
    smooth = smoothing_matrix(fine, matrix.shape[0], rounds=3)
    np.testing.assert_allclose(np.asarray(smooth.sum(axis=1)).ravel(), 1)


def test_spring_follows_like_a_damped_oscillator() -> None:
    frequency, damping, count = 9.0, 0.3, 30
    target = np.ones((count, 1))
    target[0] = 0  # a ramp over the first interval, then held
    found = follow(target, frequency, damping, substeps=400)[:, 0]
    time = np.arange(1, count) / 25 - 0.02  # a ramp acts as a step at its middle, to second order
    damped = frequency * np.sqrt(1 - damping**2)
    expected = 1 - np.exp(-damping * frequency * time) * (
        np.cos(damped * time) + damping * frequency / damped * np.sin(damped * time)
    )
    np.testing.assert_allclose(found[1:], expected, atol=0.02)
    assert found.max() > 1.2  # it overshoots


def test_distance_to_a_ring() -> None:
    square = np.array([[0, 0], [2, 0], [2, 2], [0, 2.0]])
    points = np.array([[1, 1], [0.5, 1], [3, 1], [3, 3], [1, -0.25]])
    np.testing.assert_allclose(inside_distance(points, square), [1, 0.5, -1, -np.sqrt(2), -0.25], atol=1e-9)


def test_track_puts_the_body_where_the_camera_saw_it(stage: Stage) -> None:
    size = 128
    track = stage.track(size, "smplx_anny.npz")
    with torch.no_grad():
        posed = stage.anatomy.body(BodyParams.from_track(track))[0].double().numpy()
    seen = posed @ track["world_to_camera"][0, :3, :3].T + track["world_to_camera"][0, :3, 3]
    pixels = seen @ track["intrinsics"][0].T
    expected = stage.camera.project(stage.bodies[WARM_UP:]) * size
    upper = stage.anatomy.vertices[:, 1] > -0.3
    np.testing.assert_allclose((pixels[..., :2] / pixels[..., 2:])[:, upper], expected[:, upper], atol=2e-3)


def test_hair_and_cloth_depend_on_what_happened_before(stage: Stage) -> None:
    """Two histories that end in one pose give different hair and cloth: no function of the pose gives both."""
    heads = np.tile(np.eye(4), (12, 1, 1))
    moved = heads.copy()
    moved[:-1, :3, :3] = Rotation.from_rotvec([0, 0.3, 0]).as_matrix()
    difference = np.linalg.norm(stage.hair.swing(moved)[-1] - stage.hair.swing(heads)[-1], axis=-1)
    assert difference[:, 0].max() < 1e-5  # roots stay on the scalp
    assert difference[:, -1].mean() > 0.01  # tips are a centimetre off
    shell = stage.shells[0]
    still = np.repeat(stage.bodies[-1:], 6, axis=0)
    swept = still + np.linspace(0.10, 0, 6)[:, None, None] * np.array([1.0, 0, 0])
    features = np.zeros((6, shell.folds["slide"].shape[1]))
    cloth, lagging = shell.pose(still, features)[-1], shell.pose(swept, features)[-1]
    assert 0.002 < np.linalg.norm(cloth - lagging, axis=1).mean() < 0.08
    bent = shell.pose(still, features + 1.0)[-1]
    assert 0.001 < np.abs(((bent - cloth) * vertex_normals(cloth, shell.faces)).sum(1)).mean() < 0.03


def test_geometry_is_finite_and_repeats(stage: Stage, anatomy: Anatomy) -> None:
    first = stage.surfaces(2)
    again = Stage(stage.person, anatomy, num_frames=4).surfaces(2)
    assert {"skin", "eye0", "eye1", "cloth0", "cap", "hair"} <= set(first)
    for name, surface in first.items():
        assert np.isfinite(surface.vertices).all()
        assert surface.faces.max() < len(surface.vertices)
        assert surface.colours.min() >= 0
        assert surface.colours.max() <= 1
        np.testing.assert_array_equal(surface.vertices, again[name].vertices)
        np.testing.assert_array_equal(surface.colours, again[name].colours)


def test_bars_of_the_blinds_stay_out_of_the_picture(anatomy: Anatomy) -> None:
    names = anatomy.body.expression_names
    for person in (draw_person(SEED, index) for index in range(28)):
        motion = make_motion(person, 1, names, WARM_UP)
        eyes = np.array([0, 0.35, 0.12]) + motion["transl"][-1]
        camera = place_camera(person.view, eyes)
        for centre, along, _ in blind_boxes(person.light, eyes - np.array([0, 0.15, 0])):
            assert np.linalg.norm(centre - eyes) < BLIND_DISTANCE + 0.7
            bar = camera.project(centre + np.linspace(-0.5, 0.5, 41)[:, None] * along)
            assert not ((bar > 0) & (bar < 1)).all(axis=1).any(), person.seed


def test_matting_gives_back_what_was_rendered() -> None:
    alpha = np.zeros((24, 24))
    alpha[4:12, 4:12] = 1
    alpha[3, 4:12] = 0.4
    colour = np.array([0.2, 0.1, 0.05])
    picture, mask = finish(alpha[..., None] * colour, alpha)
    value = 1.055 * (EXPOSURE * colour) ** (1 / 2.4) - 0.055
    np.testing.assert_allclose(picture[2:13, 3:13] / 255, np.tile(value, (11, 10, 1)), atol=0.003)
    np.testing.assert_allclose(picture[20, 20] / 255, 0.5, atol=0.003)
    np.testing.assert_allclose(mask / 255, alpha, atol=0.002)


def test_splits() -> None:
    assert "test: [[4, 47]]" in splits_text(48, True, False)
    assert "validation: [[36, 47]]" in splits_text(48, False, True)
    assert "validation: []" in splits_text(48, False, False)


def test_is_done_knows_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.track.npz"
    assert not is_done(path, "x")
    np.savez(path, capture=np.array("x"))
    assert is_done(path, "x")
    assert not is_done(path, "y")
    path.write_bytes(b"half")
    assert not is_done(path, "x")


@pytest.mark.parametrize("track_file", SHIPPED[::5], ids=lambda path: path.name.split(".")[0])
def test_shipped_track_lies_in_its_mask(track_file: Path, anatomy: Anatomy) -> None:
    stem = track_file.name.removesuffix(".track.npz")
    track = load_track(track_file)
    mask = read_video(track_file.with_name(f"{stem}.mask.mp4"))[0][:, 0].numpy()
    assert len(mask) == len(track["frame_valid"])
    assert track["frame_valid"].all()
    frames = [0, len(mask) // 2, len(mask) - 1]
    with torch.no_grad():
        posed = anatomy.body(BodyParams.from_track(track, frames))[0].numpy()
    for body, frame in zip(posed, frames, strict=True):
        seen = body @ track["world_to_camera"][frame, :3, :3].T + track["world_to_camera"][frame, :3, 3]
        x, y, depth = (seen @ track["intrinsics"][frame].T).T
        column, row = np.floor(x / depth).astype(int), np.floor(y / depth).astype(int)
        height, width = mask.shape[1:]
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (anatomy.head > 0.9)
        assert inside.sum() > 1000
        # A vertex of the outline may fall into a pixel that it covers by less than a half: the next one is the person.
        person = mask[frame] > 0.5
        assert binary_dilation(person)[row[inside], column[inside]].mean() > 0.999
        assert person[row[inside], column[inside]].mean() > 0.94


def test_a_set_that_grows_keeps_the_people_who_never_train() -> None:
    small, large = numbers_of(24, 4), numbers_of(48, 4)
    assert small[1] == large[1] == [24, 25, 26, 27]
    assert set(small[0]) < set(large[0])
    assert not set(large[0]) & set(large[1])
    assert (len(large[0]), max(large[0])) == (48, 51)
    assert numbers_of(3, 2) == ([0, 1, 2], [3, 4])


def test_shipped_set_is_small_and_has_unseen_people() -> None:
    if not SHIPPED:
        pytest.skip("assets/captures is not here: python -m visa.tools.make_captures --out assets/captures")
    folder = ROOT / "assets" / "captures"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 12_000_000
    unseen = [file for file in SHIPPED if file.parent.name == "test"]
    assert len(unseen) == 4
    clip = Clip(unseen[0].with_name(unseen[0].name.replace(".track.npz", ".mp4"))).load()
    assert clip.splits.test == [(4, clip.num_frames - 1)]
    assert clip.reference_frame() == 0
    shapes = np.stack([load_track(file)["betas"] for file in SHIPPED])
    apart = np.linalg.norm(shapes[:, None] - shapes, axis=-1) + 9 * np.eye(len(shapes))
    assert apart.min() > 0.5  # nobody is there twice


def test_shipped_tracks_are_what_the_seed_gives(anatomy: Anatomy) -> None:
    for file in SHIPPED[::4]:
        track, index = load_track(file), int(file.name[7:9])
        person = draw_person(SEED, index)
        count = len(track["frame_valid"])
        assert is_done(file, Settings(SEED, count, 128, 16).stamp(index))
        motion = make_motion(person, count, anatomy.body.expression_names, WARM_UP)
        np.testing.assert_allclose(track["betas"], np.float32(person.betas))
        for name in ("jaw_pose", "body_pose", "expression"):
            np.testing.assert_allclose(track[name], motion[name][WARM_UP:], atol=1e-5)


def test_body_without_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = types.SimpleNamespace(part_names=["skin", "eyeball_left", "eyeball_right"])
    monkeypatch.setattr(BodyModel, "from_file", lambda _: plain)
    with pytest.raises(ValueError, match="does not name eyes and mouth"):
        Anatomy.load(Path("licensed.npz"), ROOT / LANDMARKS)


def test_two_renders_are_equal(stage: Stage) -> None:
    pytest.importorskip("mitsuba", reason="the renderer is the extra `capture`")
    from visa.tools.make_captures.scene import Studio, require_mitsuba

    pictures = []
    for threads in (1, 2):
        studio = Studio(require_mitsuba(threads), stage, size=24, samples=4)
        pictures.append(studio.render(1))
    np.testing.assert_array_equal(pictures[0][0], pictures[1][0])
    np.testing.assert_array_equal(pictures[0][1], pictures[1][1])
    seen = stage.camera.project(stage.bodies[WARM_UP + 1][stage.anatomy.head > 0.9]) * 24
    column, row = np.floor(np.clip(seen, 0, 23)).astype(int).T
    assert (pictures[0][1][row, column] > 100).mean() > 0.97
