"""The body model: our skinning against the `smplx` package, and the shipped file against the SMPL-X conventions."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from visa.networks.body import EXPRESSION_COLUMN, NUM_BETAS, BodyModel, BodyParams, rotation_matrices

MODEL_PATH = ROOT / "assets/body/smplx_anny.npz"


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(MODEL_PATH, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name != "posedirs"}


def random_params(body: BodyModel, count: int, seed: int = 0) -> BodyParams:
    generator = torch.Generator().manual_seed(seed)
    params = BodyParams.zeros((count,), body.num_expressions)
    scale = {"betas": 1.5, "expression": 0.5, "transl": 1.0, "global_orient": 1.0}
    return BodyParams(**{
        field.name: torch.randn(getattr(params, field.name).shape, generator=generator) * scale.get(field.name, 0.4)
        for field in dataclasses.fields(params)
    })  # fmt: skip


def smplx_model(path: Path, count: int, num_expressions: int) -> torch.nn.Module:
    smplx = pytest.importorskip("smplx", reason="the reference implementation is in the extra `smplx`")
    return smplx.create(
        str(path), model_type="smplx", ext="npz", use_pca=False, flat_hand_mean=True, num_betas=10,
        num_expression_coeffs=num_expressions, batch_size=count, dtype=torch.float64,
    )  # fmt: skip


def assert_equals_smplx(path: Path, params: BodyParams) -> None:
    """Vertices, joints and the gradients of all parameters agree to 1e-6, and in float32 the values to 1e-5."""
    ours = BodyModel.from_file(path)
    count = len(params.transl)
    reference = smplx_model(path, count, ours.num_expressions)
    single_vertices, single_joints = ours(params)
    ours = ours.double()
    mine = params.map(lambda t: t.double().requires_grad_())
    theirs = params.map(lambda t: t.double().requires_grad_())
    vertices, joints = ours(mine)
    output = reference(**{f.name: getattr(theirs, f.name).flatten(1) for f in dataclasses.fields(theirs)})
    torch.testing.assert_close(vertices, output.vertices, atol=1e-6, rtol=0)
    torch.testing.assert_close(joints, output.joints[:, :55], atol=1e-6, rtol=0)
    torch.testing.assert_close(single_vertices.double(), output.vertices, atol=1e-5, rtol=0)
    torch.testing.assert_close(single_joints.double(), output.joints[:, :55], atol=1e-5, rtol=0)
    probe = torch.randn(vertices.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ((vertices * probe).sum() + joints.square().sum()).backward()
    ((output.vertices * probe).sum() + output.joints[:, :55].square().sum()).backward()
    for field in dataclasses.fields(mine):
        gradient, expected = getattr(mine, field.name).grad, getattr(theirs, field.name).grad
        # Relative to the field's largest gradient; `smplx` itself adds 1e-8 to every rotation vector.
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradient / scale, expected / scale, atol=1e-6, rtol=0, msg=field.name)


def test_equals_smplx(body: BodyModel) -> None:
    assert_equals_smplx(MODEL_PATH, random_params(body, 3))


def test_equals_smplx_at_zero_pose(body: BodyModel) -> None:
    assert_equals_smplx(MODEL_PATH, BodyParams.zeros((2,), body.num_expressions))


def test_equals_smplx_with_pose_offsets(body: BodyModel, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """A file as the licensed ones are: pose-dependent offsets, no expression names, so ten expressions."""
    rng = np.random.default_rng(0)
    licensed = {k: v for k, v in arrays.items() if k not in ("expression_names", "part", "part_names", "face_part")}
    # One noise row for all vertices keeps the file quick to write.
    row = rng.normal(0, 1e-3, (1, 3, 486)).astype(np.float32)
    licensed["posedirs"] = np.broadcast_to(row, (len(arrays["part"]), 3, 486))
    path = tmp_path / "SMPLX_NEUTRAL.npz"
    np.savez(path, **licensed)
    model = BodyModel.from_file(path)
    assert model.num_expressions == 10
    assert BodyModel.from_file(path, num_expressions=40).num_expressions == 40
    eyeballs = [(model.part == model.part_names.index(f"eyeball_{side}")).sum() for side in ("left", "right")]
    assert eyeballs == [(body.part == body.part_names.index(f"eyeball_{side}")).sum() for side in ("left", "right")]
    assert_equals_smplx(path, random_params(model, 2))


def test_rotations_near_zero() -> None:
    """Values and gradients against the matrix exponential, from exactly zero to past pi."""
    axis = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.8]]), dim=-1)
    for angle in (0.0, 1e-7, 1e-4, 9e-4, 1.1e-3, 0.1, 3.1, 3.2):
        vector = (axis * angle).double().requires_grad_()

        def exponential(v: torch.Tensor) -> torch.Tensor:
            x, y, z = v.unbind(-1)
            o = torch.zeros_like(x)
            return torch.linalg.matrix_exp(torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3)))

        jacobian = torch.autograd.functional.jacobian(rotation_matrices, vector)
        expected = torch.autograd.functional.jacobian(exponential, vector)
        torch.testing.assert_close(rotation_matrices(vector), exponential(vector), atol=1e-9, rtol=0)
        torch.testing.assert_close(jacobian, expected, atol=1e-7, rtol=0)
        assert rotation_matrices(vector.float()).isfinite().all()


def test_leading_dims_subset_and_transforms(body: BodyModel) -> None:
    params = random_params(body, 6)
    vertices, joints = body(params)
    ids = torch.arange(0, len(body.v_template), 23)
    grid = params.map(lambda t: t.reshape(2, 3, *t.shape[1:]))
    some, grid_joints = body(grid, ids)
    torch.testing.assert_close(some, vertices[:, ids].reshape(2, 3, -1, 3), atol=2e-6, rtol=0)
    torch.testing.assert_close(grid_joints, joints.reshape(2, 3, -1, 3), atol=2e-6, rtol=0)
    torch.testing.assert_close(body.subset(ids)(params)[0], vertices[:, ids], atol=2e-6, rtol=0)
    torch.testing.assert_close(body(params[4])[0], vertices[4], atol=2e-6, rtol=0)
    transforms = body.joint_transforms(params)
    blended = torch.einsum("vj,bjmn->bvmn", body.lbs_weights, transforms)
    rest = torch.nn.functional.pad(body.rest_vertices(params.betas, params.expression), (0, 1), value=1.0)
    torch.testing.assert_close((blended @ rest[..., None])[..., :3, 0], vertices, atol=2e-6, rtol=0)
    shared = dataclasses.replace(params, betas=params.betas[:1])
    assert body(shared)[0].shape == vertices.shape


def test_params_from_track(body: BodyModel) -> None:
    params = random_params(body, 5)
    track = {field.name: getattr(params, field.name).numpy() for field in dataclasses.fields(params)}
    track["betas"] = track["betas"][0]
    loaded = BodyParams.from_track(track)
    assert loaded.batch_shape == (5,)
    assert torch.equal(loaded.betas[3], params.betas[0])
    assert torch.equal(BodyParams.from_track(track, 2).body_pose, params.body_pose[2])
    assert BodyParams.stack([params[0], params[1]]).batch_shape == (2,)
    assert BodyParams.cat([params, params]).batch_shape == (10,)
    del track["jaw_pose"]
    with pytest.raises(ValueError, match=r"no field jaw_pose: .*tools\.track"):
        BodyParams.from_track(track)


def test_file_conventions(body: BodyModel, arrays: dict[str, np.ndarray]) -> None:
    """Metres, y up, facing +z, left at +x, straight arms, proper weights; joints within the body."""
    names = pytest.importorskip("smplx.joint_names").JOINT_NAMES
    joints = dict(zip(names, body.joint_template.numpy(), strict=False))
    height = np.ptp(arrays["v_template"][:, 1])
    assert 1.6 < height < 1.85
    assert joints["head"][1] > joints["spine3"][1] > joints["pelvis"][1] > joints["left_ankle"][1]
    assert joints["left_shoulder"][0] > 0.1 > -0.1 > joints["right_shoulder"][0]
    for name in ("elbow", "wrist", "middle1", "middle3"):
        assert np.abs(joints[f"left_{name}"] - joints["left_shoulder"])[1:].max() < 0.015, name
        np.testing.assert_allclose(joints[f"left_{name}"] * [-1, 1, 1], joints[f"right_{name}"], atol=5e-3)
    assert joints["left_foot"][2] > joints["left_ankle"][2] + 0.08
    assert joints["left_index1"][2] > joints["left_pinky1"][2] + 0.04  # palms down
    weights, regressor = arrays["weights"], arrays["J_regressor"]
    assert weights.min() >= 0
    np.testing.assert_array_equal(weights.sum(axis=1), 1.0)
    assert regressor.min() >= 0
    np.testing.assert_allclose(regressor.sum(axis=1), 1.0, atol=1e-4)
    shapedirs = arrays["shapedirs"]
    assert shapedirs.shape[1:] == (3, 400)
    assert len(arrays["expression_names"]) == body.num_expressions == 40
    assert not shapedirs[:, :, 10:EXPRESSION_COLUMN].any()
    assert not shapedirs[:, :, EXPRESSION_COLUMN + 40 :].any()
    assert (np.abs(shapedirs[:, :, EXPRESSION_COLUMN : EXPRESSION_COLUMN + 40]).max(axis=(0, 1)) > 1e-3).all()
    assert body.joint_blendshapes[..., 10:].abs().max() == 0  # the skeleton stands still while the face acts
    assert MODEL_PATH.stat().st_size < 6e6


def test_faces_point_outward(body: BodyModel) -> None:
    """Every closed part has a positive volume."""
    corners = body.v_template[body.faces]
    volume = torch.linalg.det(corners) / 6
    face_part = body.part[body.faces].amax(dim=1)
    for name in ("skin", "eyeball_left", "eyeball_right", "tongue"):
        members = face_part == body.part_names.index(name)
        centre = corners[members].mean(dim=(0, 1))
        assert (torch.linalg.det(corners[members] - centre) / 6).sum() > 0, name
    assert 0.05 < float(volume.sum()) < 0.1  # m^3


def test_extra_joint_ids_mean_their_places(body: BodyModel) -> None:
    """The fixed vertex ids of the `smplx` package sit at nose, eyes, ears, toes, heels and finger tips."""
    vertex_ids = pytest.importorskip("smplx.vertex_ids").vertex_ids["smplx"]
    v = {name: body.v_template[index].numpy() for name, index in vertex_ids.items()}
    j = body.joint_template.numpy()
    names = body.part_names
    assert names[body.part[vertex_ids["leye"]]] == "eyeball_left"
    assert names[body.part[vertex_ids["reye"]]] == "eyeball_right"
    for name, joint in {"leye": 23, "reye": 24}.items():
        np.testing.assert_allclose(v[name][:2], j[joint][:2], atol=4e-3)
        assert 0.01 < v[name][2] - j[joint][2] < 0.02
    head = body.v_template[(body.part == 0) & (body.lbs_weights[:, [15, 22]].sum(dim=1) > 0.9)].numpy()
    assert v["nose"][2] > head[:, 2].max() - 1e-4
    assert abs(v["nose"][0]) < 2e-3
    assert v["lear"][0] > 0.06 > -0.06 > v["rear"][0]
    for side, sign, tips in (("l", 1, (39, 27, 30, 36, 33)), ("r", -1, (54, 42, 45, 51, 48))):
        for finger, joint in zip(("thumb", "index", "middle", "ring", "pinky"), tips, strict=True):
            assert 0.01 < np.linalg.norm(v[side + finger] - j[joint]) < 0.045, finger
            assert sign * (v[side + finger] - j[joint])[0] > 0.01
        ankle = j[7 if side == "l" else 8]
        assert v[f"{side.upper()}Heel"][2] < ankle[2] < v[f"{side.upper()}SmallToe"][2] < v[f"{side.upper()}BigToe"][2]
        assert sign * (v[f"{side.upper()}SmallToe"] - v[f"{side.upper()}BigToe"])[0] > 0.03


def test_face_landmarks(body: BodyModel, arrays: dict[str, np.ndarray]) -> None:
    """The 51 face points in iBUG order: the right side first, brows above lids above nose above lips; symmetric."""
    corners = arrays["v_template"][arrays["f"][arrays["lmk_faces_idx"]]]
    points = (corners * arrays["lmk_bary_coords"][..., None]).sum(axis=1)
    brows, nose, right_lids, left_lids, lips = np.split(points, [10, 19, 25, 31])
    assert (brows[:5, 0] < -0.005).all()
    assert (brows[5:, 0] > 0.005).all()
    for lids, eye in ((right_lids, 24), (left_lids, 23)):
        assert np.linalg.norm(lids - body.joint_template[eye].numpy(), axis=1).max() < 0.025
    assert brows[:, 1].min() > right_lids[:, 1].max() > nose[4:, 1].max() > lips[:, 1].max()
    np.testing.assert_allclose(brows[:5] * [-1, 1, 1], brows[:4:-1], atol=1e-3)
    np.testing.assert_allclose(lips[0] * [-1, 1, 1], lips[6], atol=1e-3)
    assert 0.035 < lips[6, 0] - lips[0, 0] < 0.07
    jaw = body.lbs_weights.numpy()[arrays["f"][arrays["lmk_faces_idx"]], 22]
    jaw = (jaw * arrays["lmk_bary_coords"]).sum(axis=1)[31:]
    assert jaw[[13, 14, 15]].max() < 0.5 < jaw[[17, 18, 19]].min()  # inner lips part with the jaw


def part_mean(body: BodyModel, vertices: torch.Tensor, name: str) -> torch.Tensor:
    return vertices[body.part == body.part_names.index(name)].mean(dim=0)


def test_jaw_opens(body: BodyModel) -> None:
    """A positive turn about x drops lower teeth, tongue and chin, and leaves upper teeth, eyes and skull alone."""
    params = BodyParams.zeros((), body.num_expressions)
    closed = body(params)[0]
    params.jaw_pose[0] = 0.35
    opened = body(params)[0]
    moved = opened - closed
    assert part_mean(body, moved, "teeth_lower")[1] < -0.015
    assert part_mean(body, moved, "tongue")[1] < -0.01
    assert moved.norm(dim=-1).max() > 0.03
    for name in ("teeth_upper", "eyeball_left", "eyeball_right"):
        assert part_mean(body, moved.abs(), name).max() == 0, name
    crown = closed[:, 1] > body.joint_template[23, 1] + 0.03
    assert moved[crown].abs().max() < 1e-6


def test_limbs_turn_as_in_smplx(body: BodyModel) -> None:
    """Signs that motion files rely on: arms, elbows, knees, head, fingers and eyes."""

    def joint_shift(joint: int, **pose: tuple[int, list[float]]) -> torch.Tensor:
        params = BodyParams.zeros((), body.num_expressions)
        for name, (index, turn) in pose.items():
            target = getattr(params, name)
            (target[index] if target.dim() > 1 else target)[:] = torch.tensor(turn)
        return body(params)[1][joint] - body.joint_template[joint]

    assert joint_shift(20, body_pose=(15, [0, 0, -1.0]))[1] < -0.3  # left arm down
    assert joint_shift(21, body_pose=(16, [0, 0, 1.0]))[1] < -0.3  # right arm down
    assert joint_shift(20, body_pose=(17, [0, -1.0, 0]))[2] > 0.15  # left forearm forward
    assert joint_shift(7, body_pose=(3, [1.0, 0, 0]))[2] < -0.3  # left heel back
    assert joint_shift(23, body_pose=(14, [0.4, 0, 0]))[1] < -0.02  # nod
    assert joint_shift(27, left_hand_pose=(0, [0, 0, -1.2]))[1] < -0.02  # left index curls to the palm
    assert joint_shift(42, right_hand_pose=(0, [0, 0, 1.2]))[1] < -0.02
    params = BodyParams.zeros((), body.num_expressions)
    params.leye_pose[1] = 0.3
    pupil = 9448
    shift = body(params)[0][pupil] - body(BodyParams.zeros((), body.num_expressions))[0][pupil]
    assert shift[0] > 0.003  # looks to its left


def test_expressions_do_what_they_say(body: BodyModel) -> None:
    """Blinking lowers the upper lid by the eye's opening; a smile widens and lifts the mouth; sides are sides."""
    index = {name: i for i, name in enumerate(body.expression_names)}
    directions = body.blendshapes[..., NUM_BETAS:]
    blink = directions[..., index["eyeBlinkLeft"]]
    assert -0.018 < blink[:, 1].min() < -0.006
    assert blink[body.v_template[:, 0] < -0.02].abs().max() < 2e-3
    smile = directions[..., index["mouthSmileRight"]]
    strongest = smile.norm(dim=-1).argmax()
    assert body.v_template[strongest, 0] < 0
    assert smile[strongest, 0] < 0 < smile[strongest, 1]
    assert not any(name.startswith(("jaw", "eyeLook")) for name in index)


def test_shape_components(body: BodyModel) -> None:
    """Ten independent components of one standard deviation; joints follow the surface."""
    shapes = body.shapedirs.flatten(0, 1)
    singular = torch.linalg.svdvals(shapes)
    assert singular[-1] > 1e-3 * singular[0]
    assert 0.02 < body.shapedirs[..., 0].norm(dim=-1).max() < 0.2
    for component in range(10):
        betas = torch.zeros(10)
        betas[component] = 2.0
        vertices = body.rest_vertices(betas, torch.zeros(body.num_expressions))
        joints = body(dataclasses.replace(BodyParams.zeros((), body.num_expressions), betas=betas))[1]
        for joint, name in ((23, "eyeball_left"), (24, "eyeball_right")):
            ball = vertices[body.part == body.part_names.index(name)]
            centre = 0.5 * (ball.amin(dim=0) + ball.amax(dim=0))
            assert (joints[joint] - centre).norm() < 1e-3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"not an archive", "is no plain npz archive"),
        ({"v_template": np.zeros((3, 3))}, "has no shapedirs, posedirs"),
        ("pickle", "is no plain npz archive .*pickle"),
    ],
)
def test_wrong_file(content: object, message: str, tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "wrong.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content == "pickle":
        np.savez(path, **{**arrays, "posedirs": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match=message) as caught:
        BodyModel.from_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "SMPLX_NEUTRAL.npz" in str(caught.value)
