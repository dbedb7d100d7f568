"""ARKit's 52 blendshapes on the body: every one by its name, in the direction that it says."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import ROOT
from visa.live.blendshapes import TURNS, Blendshapes
from visa.live.gestures import ARMS, HEAD, moved_arms, turned_head
from visa.networks.body import BodyModel, BodyParams, rotation_matrices
from visa.runtime.shipped import BODY

# Apple's list (ARFaceAnchor.BlendShapeLocation), apart from what the table says.
SIDED = [
    "eyeBlink",
    "eyeLookDown",
    "eyeLookIn",
    "eyeLookOut",
    "eyeLookUp",
    "eyeSquint",
    "eyeWide",
    "mouthSmile",
    "mouthFrown",
    "mouthDimple",
    "mouthStretch",
    "mouthPress",
    "mouthLowerDown",
    "mouthUpperUp",
    "browDown",
    "browOuterUp",
    "cheekSquint",
    "noseSneer",
]
WHOLE = [
    "jawForward",
    "jawLeft",
    "jawRight",
    "jawOpen",
    "mouthClose",
    "mouthFunnel",
    "mouthPucker",
    "mouthLeft",
    "mouthRight",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
    "browInnerUp",
    "cheekPuff",
    "tongueOut",
]
ARKIT = {*WHOLE, *(name + side for name in SIDED for side in ("Left", "Right"))}


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return BodyModel.from_file(ROOT / BODY)


@pytest.fixture(scope="module")
def shapes(body: BodyModel) -> Blendshapes:
    return Blendshapes(body)


def rest(body: BodyModel) -> BodyParams:
    return BodyParams.zeros((1,), body.num_expressions)


def test_the_names_are_apple_s_52(shapes: Blendshapes) -> None:
    assert len(ARKIT) == 52
    assert set(shapes.names) == ARKIT


@pytest.mark.parametrize("name", sorted(ARKIT))
def test_each_acts_alone_on_its_own_parameter(name: str, body: BodyModel, shapes: Blendshapes) -> None:
    base = rest(body)
    posed = shapes.applied(base, shapes.values({name: 0.5})[None])
    changed = {field for field in vars(base) if not torch.equal(getattr(posed, field), getattr(base, field))}
    if name == "jawForward":
        assert changed == set()
    elif name in TURNS:
        field, axis, angle = TURNS[name]
        assert changed == {field}
        assert float(getattr(posed, field)[0, axis]) == pytest.approx(angle / 2)
    else:
        assert changed == {"expression"}
        assert posed.expression[0].nonzero().flatten().tolist() == [body.expression_names.index(name)]
        assert float(posed.expression.sum()) == 0.5


def looking(body: BodyModel, shapes: Blendshapes, name: str, side: int) -> torch.Tensor:
    """Where the eye of joint 23 + side looks, in the body's axes."""
    posed = shapes.applied(rest(body), shapes.values({name: 1.0})[None])
    return body.joint_transforms(posed)[0, 23 + side, :3, 2]


@pytest.mark.parametrize(
    ("name", "side", "axis", "sign"),
    [
        ("eyeLookUpLeft", 0, 1, 1), ("eyeLookDownRight", 1, 1, -1), ("eyeLookInLeft", 0, 0, -1),
        ("eyeLookOutLeft", 0, 0, 1), ("eyeLookInRight", 1, 0, 1), ("eyeLookOutRight", 1, 0, -1),
    ],
)  # fmt: skip
def test_eyes_look_where_the_name_says(
    name: str, side: int, axis: int, sign: int, body: BodyModel, shapes: Blendshapes
) -> None:
    """x leads to the person's left, y up."""
    assert sign * float(looking(body, shapes, name, side)[axis]) > 0.3


def test_the_jaw_opens_and_goes_to_the_left(body: BodyModel, shapes: Blendshapes) -> None:
    teeth = (body.part == body.part_names.index("teeth_lower")).nonzero()[:, 0]
    still = body(rest(body), teeth)[0].mean(1)[0]

    def moved(name: str) -> torch.Tensor:
        return body(shapes.applied(rest(body), shapes.values({name: 1.0})[None]), teeth)[0].mean(1)[0] - still

    assert float(moved("jawOpen")[1]) < -0.01
    assert float(moved("jawLeft")[0]) > 0.003
    assert float(moved("jawRight")[0]) < -0.003


def test_wrong_names_and_values_are_named(shapes: Blendshapes) -> None:
    assert float(shapes.values({"JawOpen": 2.0}).max()) == 1.0  # Live Link Face writes a capital
    with pytest.raises(ValueError, match="earWiggle is no ARKit blendshape"):
        shapes.values({"earWiggle": 1.0})
    with pytest.raises(ValueError, match="not finite"):
        shapes.values({"jawOpen": float("nan")})


def test_the_head_turns_by_the_whole_angle(body: BodyModel) -> None:
    turn = torch.tensor([[0.1, 0.4, -0.2]])
    posed = turned_head(rest(body), turn)
    found = body.joint_transforms(posed)[0, HEAD, :3, :3]
    torch.testing.assert_close(found, rotation_matrices(turn)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in ARMS if "up" in name])
def test_arms_rise(name: str, body: BodyModel) -> None:
    wrist = 20 if name.startswith("left") else 21
    still, up = body(rest(body))[1][0, wrist], body(moved_arms(rest(body), {name: 0.5}))[1][0, wrist]
    assert float(up[1] - still[1]) > 0.1


@pytest.mark.parametrize("name", [name for name in ARMS if "up" not in name])
def test_arms_and_elbows_come_forward(name: str, body: BodyModel) -> None:
    wrist = 20 if name.startswith("left") else 21
    still, there = body(rest(body))[1][0, wrist], body(moved_arms(rest(body), {name: 0.5}))[1][0, wrist]
    assert float(there[2] - still[2]) > 0.08
