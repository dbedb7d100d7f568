"""What the template's vertices are (lids, lips, teeth, scalp, ...), and what that forbids a Gaussian and lends it.

A photo rarely shows teeth, tongue or the back of an eyeball, and a closed mouth or eye shows none of them: they take
the colour that such a part has on anybody, as bright as the person's skin. And anatomy bounds how far a Gaussian may
leave its anchor: hair stands centimetres off the scalp, an eyeball does not leave its socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from visa.networks.body import NUM_BETAS, BodyModel
from visa.networks.joints import HAND_JOINTS, HEAD, HEAD_JOINTS, JAW, NECK


class Kind(IntEnum):
    """What a vertex belongs to."""

    BODY = 0  # scalp, neck, torso, limbs
    FACE = 1  # skin that expressions move
    RIM = 2  # lids and lips
    EYEBALL = 3
    TEETH = 4
    TONGUE = 5
    CAVITY = 6  # of the mouth, and the sockets behind the eyeballs


class Region(IntEnum):
    """Where colour spreads: what the photo does not show of a region takes its colour from what it shows of it.

    So that a chest takes the collar's cloth and not the neck's skin, and the back of a head takes hair.
    """

    FACE = 0  # with ears, throat, neck and all that lids and lips hide
    SCALP = 1
    TORSO = 2  # with legs
    HANDS = 3
    ARMS = 4


# Kind -> how far a Gaussian may lie from its anchor, m; least opacity of what is not hidden by the photo's matte.
OFFSET_BOUNDS = {
    Kind.BODY: 0.12, Kind.FACE: 0.008, Kind.RIM: 0.002, Kind.EYEBALL: 0.001, Kind.TEETH: 0.001, Kind.TONGUE: 0.001,
    Kind.CAVITY: 0.002,
}  # fmt: skip
LEAST_OPACITY = {kind: 0.0 if kind is Kind.BODY else 0.95 for kind in Kind}
# Colour of what the photo does not show, for skin of luminance 1/2; it is scaled by the person's own. Of 31 people who
# talk, by where the track has each part (docs/reconstruction.md): in the shade of lids and lips all are darker than in
# the light. Upper teeth are those of a smile: means of all that is there in their place look like none.
PRIOR_COLORS = {
    Kind.EYEBALL: (0.55, 0.48, 0.44), Kind.TEETH: (0.80, 0.74, 0.70), Kind.TONGUE: (0.52, 0.33, 0.32),
    Kind.CAVITY: (0.17, 0.07, 0.06),
}  # fmt: skip
LOWER_TEETH_COLOR = (0.56, 0.46, 0.42)  # behind the lower lip, which moves with them
IRIS_COLOR = (0.20, 0.15, 0.13)
FRONT, SHADED, SHADE = 0.004, 0.02, 0.5  # m behind the foremost tooth: in the light up to there, darkest so far beyond
IRIS_ANGLE = 0.5  # radians from an eyeball's axis of sight
INNER = tuple(PRIOR_COLORS)  # what lids and lips hide
RIM_REACH = 0.012  # m from the mouth's inside: skin that mouth shapes move and that lies so near is lips
LID_REACH = 0.004  # m from an eyeball: skin that lies so near is lids, the lower ones too, which a blink hardly moves
FOLD = 0.004  # m from the other lip
MOVED = 0.0005  # m at a full expression: skin that moves so far is face
EAR = (0.058, 0.02, 0.05, -0.005, 0.04)  # m from the head's joint: beyond x; y and its reach; z and its reach
ARM_JOINTS = (16, 17, 18, 19)  # upper arms and forearms
BARE_NECK = 0.4  # skinning weight of the neck's joint: a bare neck is skin above any collar
CROWN = 0.08  # m above the head's joint: no face so high
_MOUTH_SHAPES = ("mouthRollLower", "mouthRollUpper", "mouthPucker", "mouthShrugLower", "mouthShrugUpper")


@dataclass(frozen=True)
class Anatomy:
    """What each vertex of a body model is.

    Attributes:
        kind: `[V]` int64, a `Kind`.
        region: `[V]` int64, a `Region`.
        iris: `[V]` bool, the vertices of an eyeball that its iris covers.
        prior_color: `[V,3]` for skin of luminance 1/2; zeros for skin.
        is_lid: `[V]` bool, the rims that a blink moves or that lie on an eyeball.
        is_fold: `[V]` bool, skin of each lip that the other one touches when the mouth is closed.
        is_mouth: `[V]` bool, the mouth's cavity.
    """

    kind: Tensor
    region: Tensor
    iris: Tensor
    prior_color: Tensor
    is_lid: Tensor
    is_fold: Tensor
    is_mouth: Tensor

    @property
    def offset_bound(self) -> Tensor:
        """`[V]` metres."""
        return _table(OFFSET_BOUNDS, self.kind)

    @property
    def least_opacity(self) -> Tensor:
        """`[V]` in [0,1]."""
        return _table(LEAST_OPACITY, self.kind)

    @property
    def is_inner(self) -> Tensor:
        """`[V]` bool: eyeballs and the mouth's inside."""
        return self.kind >= int(INNER[0])


def _table(values: dict[Kind, float], kind: Tensor) -> Tensor:
    return torch.tensor([values[k] for k in Kind], device=kind.device)[kind]


@lru_cache(maxsize=2)  # every new avatar asks for it
def read_anatomy(body: BodyModel) -> Anatomy:
    """Find the kinds of a body model's vertices, by its labels of parts and by what its expressions move.

    A licensed file labels its eyeballs alone and does not name its expressions: its lips are face.
    """
    directions = body.blendshapes[..., NUM_BETAS:].norm(dim=1)  # [V,E] m
    is_skin = body.part == body.part_names.index("skin")
    kind = torch.where(directions.amax(dim=1) > MOVED, int(Kind.FACE), int(Kind.BODY))
    names = body.expression_names
    blinks = [i for i, name in enumerate(names) if name.startswith("eyeBlink")]
    shapes = [i for i, name in enumerate(names) if name in _MOUTH_SHAPES]
    if blinks:
        kind[directions[:, blinks].amax(dim=1) > 2 * MOVED] = int(Kind.RIM)
    is_lid, inside = is_skin & (kind == int(Kind.RIM)), torch.zeros_like(is_skin)
    for index, name in enumerate(body.part_names):
        of_part = body.part == index
        if name.startswith("eyeball"):
            kind[of_part] = int(Kind.EYEBALL)
        elif name.startswith("teeth"):
            kind[of_part] = int(Kind.TEETH)
        elif name == "tongue":
            kind[of_part] = int(Kind.TONGUE)
        elif name in ("mouth_cavity", "eye_socket"):
            kind[of_part] = int(Kind.CAVITY)
            inside |= of_part & (name == "mouth_cavity")
    eyeballs = kind == int(Kind.EYEBALL)
    if bool(eyeballs.any()):
        near = torch.cdist(body.v_template, body.v_template[eyeballs]).amin(dim=1) < LID_REACH
        is_lid |= is_skin & near
        kind[is_lid] = int(Kind.RIM)
    if shapes and bool(inside.any()):
        near = torch.cdist(body.v_template, body.v_template[inside]).amin(dim=1) < RIM_REACH
        kind[is_skin & near & (directions[:, shapes].amax(dim=1) > 4 * MOVED)] = int(Kind.RIM)
    iris = _iris(body, eyeballs)
    return Anatomy(
        kind=kind,
        region=_regions(body, kind),
        iris=iris,
        prior_color=_prior_colors(body, kind, iris),
        is_lid=is_lid,
        is_fold=_folds(body, is_skin & (kind == int(Kind.RIM)) & ~is_lid),
        is_mouth=inside,
    )


def _folds(body: BodyModel, is_lip: Tensor) -> Tensor:
    """`[V]` bool: lips nearer than FOLD to the other lip, of those that the jaw carries and those that it does not."""
    fold, is_lower = torch.zeros_like(is_lip), body.lbs_weights[:, JAW] > 0.5
    lower, upper = is_lip & is_lower, is_lip & ~is_lower
    if bool(lower.any()) and bool(upper.any()):
        between = torch.cdist(body.v_template[lower], body.v_template[upper])
        fold[lower], fold[upper] = between.amin(dim=1) < FOLD, between.amin(dim=0) < FOLD
    return fold


def _prior_colors(body: BodyModel, kind: Tensor, iris: Tensor) -> Tensor:
    """`[V,3]`: `Anatomy.prior_color`, darker the deeper it lies in the mouth."""
    colors = torch.zeros(len(kind), 3, device=kind.device)
    for one, color in PRIOR_COLORS.items():
        colors[kind == one] = colors.new_tensor(color)
    for index, name in enumerate(body.part_names):
        if name == "teeth_lower":
            colors[body.part == index] = colors.new_tensor(LOWER_TEETH_COLOR)
    colors[iris] = colors.new_tensor(IRIS_COLOR)
    teeth = kind == int(Kind.TEETH)
    if bool(teeth.any()):
        depth = body.v_template[teeth, 2].max() - body.v_template[:, 2]
        light = 1 - (1 - SHADE) * ((depth - FRONT) / SHADED).clamp(0, 1)
        is_shaded = teeth | (kind == int(Kind.TONGUE))
        colors = torch.where(is_shaded[:, None], colors * light[:, None], colors)
    return colors


def _regions(body: BodyModel, kind: Tensor) -> Tensor:
    """`[V]` `Region`s. Scalp is what lies behind the head's joint in the T-pose, or far above it, without the ears."""
    weights = body.lbs_weights
    is_head = weights[:, list(HEAD_JOINTS)].sum(dim=1) > 0.5
    is_hand = torch.stack([weights[:, list(joints)].sum(dim=1) > 0.5 for joints in HAND_JOINTS.values()]).any(dim=0)
    is_arm = weights[:, list(ARM_JOINTS)].sum(dim=1) > 0.5
    x, y, z = (body.v_template - body.joint_template[HEAD]).unbind(dim=1)
    is_ear = (x.abs() > EAR[0]) & ((y - EAR[1]).abs() < EAR[2]) & ((z - EAR[3]).abs() < EAR[4])
    is_scalp = is_head & (kind == int(Kind.BODY)) & ~is_ear & ((z < 0) | (y > CROWN))
    is_neck = weights[:, NECK] > BARE_NECK
    region = torch.where(is_head | is_neck, int(Region.FACE), int(Region.TORSO))
    region[is_scalp] = int(Region.SCALP)
    region[is_arm] = int(Region.ARMS)
    region[is_hand] = int(Region.HANDS)
    return region


def _iris(body: BodyModel, is_eyeball: Tensor) -> Tensor:
    """`[V]` bool: within IRIS_ANGLE of the axis that an eyeball looks along in the T-pose, +z."""
    iris = torch.zeros_like(is_eyeball)
    for is_side in (body.v_template[:, 0] > 0, body.v_template[:, 0] <= 0):
        chosen = is_eyeball & is_side
        if bool(chosen.any()):
            points = body.v_template[chosen]
            beside = points - (points.amin(dim=0) + points.amax(dim=0)) / 2
            iris[chosen] = torch.atan2(beside[:, :2].norm(dim=1), beside[:, 2]) < IRIS_ANGLE
    return iris
