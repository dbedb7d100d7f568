"""Parametric body in SMPL-X format: parameters, shape and expression blending, linear blend skinning.

Shapes: `[...]` any leading dims, V vertices, J = 55 joints, E expression coefficients. Metres, radians,
axis-angle rotations.
SMPL-X: Pavlakos et al., "Expressive Body Capture: 3D Hands, Face, and Body from a Single Image", CVPR 2019.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from visa.artifacts.arrays import read_arrays
from visa.artifacts.files import shipped

NUM_JOINTS = 55
NUM_BETAS = 10
# Licensed SMPL-X files hold 300 shape and then 100 expression columns; older ones 10 and 10.
EXPRESSION_COLUMN = 300
# Of a file that does not name its expressions, the first ten are used, as the `smplx` package does.
DEFAULT_NUM_EXPRESSIONS = 10
LEFT_EYE_JOINT, RIGHT_EYE_JOINT = 23, 24
FIELD_SHAPES: dict[str, tuple[int, ...]] = {
    "betas": (NUM_BETAS,),
    "expression": (-1,),
    "global_orient": (3,),
    "transl": (3,),
    "body_pose": (21, 3),
    "jaw_pose": (3,),
    "leye_pose": (3,),
    "reye_pose": (3,),
    "left_hand_pose": (15, 3),
    "right_hand_pose": (15, 3),
}


@dataclasses.dataclass
class BodyParams:
    """Shape, expression and pose of bodies. Leading dims `[...]` may differ between fields if they broadcast."""

    betas: Tensor  # [...,10] shape, about one standard deviation a unit
    expression: Tensor  # [...,E]
    global_orient: Tensor  # [...,3] rotation of the pelvis about itself
    transl: Tensor  # [...,3] metres
    body_pose: Tensor  # [...,21,3] joints 1-21
    jaw_pose: Tensor  # [...,3] positive x opens
    leye_pose: Tensor  # [...,3]
    reye_pose: Tensor  # [...,3]
    left_hand_pose: Tensor  # [...,15,3] full rotations from the flat hand
    right_hand_pose: Tensor  # [...,15,3]

    @classmethod
    def zeros(
        cls,
        batch_shape: Sequence[int],
        num_expressions: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> BodyParams:
        """The rest pose of the mean body, leading shape `batch_shape`."""
        fields = {}
        for name, shape in FIELD_SHAPES.items():
            shape = (num_expressions,) if name == "expression" else shape
            fields[name] = torch.zeros(*batch_shape, *shape, device=device, dtype=dtype)
        return cls(**fields)

    @classmethod
    def from_track(
        cls, track: Mapping[str, np.ndarray], index: int | slice | Sequence[int] | np.ndarray | None = None
    ) -> BodyParams:
        """Parameters of a track's frames: float32, leading shape [T] (or what `index` leaves of it).

        The track holds one `betas` [10] for all frames and the rest per frame. Raises ValueError for a missing field.
        """
        missing = [name for name in FIELD_SHAPES if name not in track]
        if missing:
            raise ValueError(f"track has no field {', '.join(missing)}: make it again with python -m visa.tools.track")
        fields = {}
        for name in FIELD_SHAPES:
            values = np.asarray(track[name], dtype=np.float32)
            if name == "betas" and values.ndim == 1:
                values = np.broadcast_to(values, (len(track["transl"]), NUM_BETAS))
            fields[name] = torch.from_numpy(np.array(values if index is None else values[index]))
        return cls(**fields)

    @staticmethod
    def stack(items: Sequence[BodyParams], dim: int = 0) -> BodyParams:
        """Join equal-shaped parameters along a new leading dim."""
        return BodyParams(*(torch.stack(values, dim) for values in zip(*map(BodyParams.tensors, items), strict=True)))

    @staticmethod
    def cat(items: Sequence[BodyParams], dim: int = 0) -> BodyParams:
        """Join parameters along an existing leading dim."""
        return BodyParams(*(torch.cat(values, dim) for values in zip(*map(BodyParams.tensors, items), strict=True)))

    def tensors(self) -> tuple[Tensor, ...]:
        """The ten tensors in the order of the fields."""
        return tuple(getattr(self, name) for name in FIELD_SHAPES)

    def map(self, fn: Callable[[Tensor], Tensor]) -> BodyParams:
        """Apply `fn` to every tensor."""
        return BodyParams(*map(fn, self.tensors()))

    def __getitem__(self, index: int | slice | Tensor | tuple[int | slice | None, ...]) -> BodyParams:
        """Index the leading dims (of every field, so they must agree)."""
        return self.map(lambda tensor: tensor[index])

    @property
    def batch_shape(self) -> torch.Size:
        """The leading shape that all fields broadcast to."""
        return torch.broadcast_shapes(
            *(
                tensor.shape[: tensor.dim() - len(shape)]
                for tensor, shape in zip(self.tensors(), FIELD_SHAPES.values(), strict=True)
            )
        )

    def full_pose(self) -> Tensor:
        """All joint rotations [...,55,3] in SMPL-X order."""
        batch = self.batch_shape
        parts = (
            self.global_orient.unsqueeze(-2), self.body_pose, self.jaw_pose.unsqueeze(-2), self.leye_pose.unsqueeze(-2),
            self.reye_pose.unsqueeze(-2), self.left_hand_pose, self.right_hand_pose,
        )  # fmt: skip
        return torch.cat([part.expand(*batch, *part.shape[-2:]) for part in parts], dim=-2)


def rotation_matrices(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula: axis-angle [...,3] to rotation matrices [...,3,3], with exact gradients at zero."""
    squared = (axis_angle * axis_angle).sum(-1)
    is_small = squared < 1e-6
    # The untaken branch must stay differentiable too, or its NaN leaks through `where`.
    angle = torch.where(is_small, torch.ones_like(squared), squared).sqrt()
    sine = torch.where(is_small, 1.0 - squared / 6.0, angle.sin() / angle)
    half = (0.5 * angle).sin() / (0.5 * angle)  # (1 - cos a) / a^2 without cancellation
    cosine = torch.where(is_small, 0.5 - squared / 24.0, 0.5 * half * half)
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    outer = axis_angle.unsqueeze(-1) * axis_angle.unsqueeze(-2)
    # skew^2 = v v^T - |v|^2 I
    eye = torch.eye(3, device=axis_angle.device, dtype=axis_angle.dtype)
    squares = outer - squared[..., None, None] * eye
    return eye + sine[..., None, None] * skew + cosine[..., None, None] * squares


class BodyModel(nn.Module):
    """A body in SMPL-X format. Buffers only; results equal the `smplx` package's (flat hands, full hand rotations).

    Attributes: `v_template` [V,3], `blendshapes` [V,3,10+E], `lbs_weights` [V,55], `parents` [55] (-1 at the root),
    `faces` [F,3], `J_regressor` [55,V] (None in a subset), `part` [V] (index into `part_names`; 0 is skin),
    `expression_names`.
    """

    v_template: Tensor
    blendshapes: Tensor
    joint_template: Tensor
    joint_blendshapes: Tensor
    lbs_weights: Tensor
    parents: Tensor
    faces: Tensor
    J_regressor: Tensor | None
    posedirs: Tensor | None
    part: Tensor
    _level_order: Tensor
    _from_level_order: Tensor
    _parent_ranks: Tensor

    def __init__(
        self,
        v_template: Tensor,
        blendshapes: Tensor,
        joint_template: Tensor,
        joint_blendshapes: Tensor,
        lbs_weights: Tensor,
        parents: Sequence[int],
        faces: Tensor,
        J_regressor: Tensor | None = None,
        posedirs: Tensor | None = None,
        part: Tensor | None = None,
        part_names: Sequence[str] = ("skin",),
        expression_names: Sequence[str] = (),
    ) -> None:
        """
        Args:
            joint_template: [55,3] joints of the mean body. joint_blendshapes: [55,3,10+E] their shape blending.
            posedirs: [V,3,486] pose-dependent offsets, None where the model has none.
            For the others see the class.
        """
        super().__init__()
        self.register_buffer("v_template", v_template)
        self.register_buffer("blendshapes", blendshapes)
        self.register_buffer("joint_template", joint_template)
        self.register_buffer("joint_blendshapes", joint_blendshapes)
        # Seen as [V,55], stored as [55,V]: the order in which skinning reads it, four times as fast.
        self.register_buffer("lbs_weights", lbs_weights.T.contiguous().T)
        self.register_buffer("parents", torch.as_tensor(parents, dtype=torch.long))
        self.register_buffer("faces", faces)
        self.register_buffer("J_regressor", J_regressor)
        self.register_buffer("posedirs", posedirs)
        self.register_buffer("part", torch.zeros(len(v_template), dtype=torch.long) if part is None else part)
        self.part_names = list(part_names)
        self.expression_names = list(expression_names)
        self._level_sizes, order, parent_ranks = _tree_levels(parents)
        self.register_buffer("_level_order", order, persistent=False)
        self.register_buffer("_from_level_order", torch.argsort(order), persistent=False)
        self.register_buffer("_parent_ranks", parent_ranks, persistent=False)

    @classmethod
    def from_file(cls, path: str | Path, num_expressions: int | None = None) -> BodyModel:
        """Load an SMPL-X npz file: the embedded one or a licensed SMPLX_*.npz.

        `num_expressions`: how many expression coefficients to use; by default all that the file names, or ten where it
        names none (`SMPLX_NEUTRAL.npz` holds 100, of which the `smplx` package too uses ten by default).
        Raises ValueError (one line) for a file that is no such model.
        """
        arrays = _read_arrays(shipped(path))
        shapedirs, names = arrays["shapedirs"], [str(name) for name in arrays.get("expression_names", ())]
        start = EXPRESSION_COLUMN if shapedirs.shape[-1] > EXPRESSION_COLUMN else NUM_BETAS
        held = shapedirs.shape[-1] - start
        count = num_expressions if num_expressions is not None else len(names) or min(held, DEFAULT_NUM_EXPRESSIONS)
        if count > held:
            raise ValueError(f"{path} holds {held} expression components, not {count}: lower num_expressions")
        blend = np.concatenate([shapedirs[:, :, :NUM_BETAS], shapedirs[:, :, start : start + count]], axis=-1)
        weights, regressor = arrays["weights"], arrays["J_regressor"].astype(np.float64)
        parents = [-1, *arrays["kintree_table"][0, 1:].astype(int).tolist()]
        if "part" in arrays:
            part, part_names = arrays["part"].astype(np.int64), [str(name) for name in arrays["part_names"]]
        else:  # a licensed file: all is skin but the eyeballs, which follow their joints alone
            part_names = ["skin", "eyeball_left", "eyeball_right"]
            part = 1 * (weights[:, LEFT_EYE_JOINT] > 0.99) + 2 * (weights[:, RIGHT_EYE_JOINT] > 0.99)
        posedirs = arrays["posedirs"]

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

        return cls(
            v_template=tensor(arrays["v_template"]),
            blendshapes=tensor(blend),
            joint_template=tensor(regressor @ arrays["v_template"].astype(np.float64)),
            joint_blendshapes=tensor(np.einsum("jv,vkl->jkl", regressor, blend.astype(np.float64), optimize=True)),
            lbs_weights=tensor(weights),
            parents=parents,
            faces=torch.from_numpy(arrays["f"].astype(np.int64)),
            J_regressor=tensor(regressor),
            posedirs=tensor(posedirs) if posedirs.any() else None,
            part=torch.from_numpy(part.astype(np.int64)),
            part_names=part_names,
            expression_names=names[:count] or [f"expression{i}" for i in range(count)],
        )

    @property
    def num_expressions(self) -> int:
        """E."""
        return self.blendshapes.shape[-1] - NUM_BETAS

    @property
    def shapedirs(self) -> Tensor:
        """[V,3,10]"""
        return self.blendshapes[..., :NUM_BETAS]

    def subset(self, vertex_ids: Tensor) -> BodyModel:
        """A model of these vertices [N] alone, same joints: faster than `vertex_ids` where one set is posed often.

        Faces with a vertex outside the set are dropped.
        """
        rank = torch.full((len(self.v_template),), -1, dtype=torch.long, device=self.faces.device)
        rank[vertex_ids] = torch.arange(len(vertex_ids), device=self.faces.device)
        faces = rank[self.faces]
        return BodyModel(
            self.v_template[vertex_ids], self.blendshapes[vertex_ids], self.joint_template, self.joint_blendshapes,
            self.lbs_weights[vertex_ids], self.parents.tolist(), faces[(faces >= 0).all(dim=-1)],
            posedirs=None if self.posedirs is None else self.posedirs[vertex_ids],
            part=self.part[vertex_ids], part_names=self.part_names, expression_names=self.expression_names,
        )  # fmt: skip

    def rest_vertices(self, betas: Tensor, expression: Tensor, vertex_ids: Tensor | None = None) -> Tensor:
        """Vertices [...,V,3] in the T-pose with shape `betas` [...,10] and `expression` [...,E]; no pose offsets."""
        template, blend = self.v_template, self.blendshapes
        if vertex_ids is not None:
            template, blend = template[vertex_ids], blend[vertex_ids]
        return template + _blend(_coefficients(betas, expression), blend)

    def joint_transforms(self, params: BodyParams) -> Tensor:
        """Transforms [...,55,4,4] from the rest pose to the posed space, `transl` included."""
        return _with_last_row(self._pose_joints(params)[0])

    def joints(self, params: BodyParams) -> Tensor:
        """Posed joints [...,55,3], metres, without the vertices."""
        return self._pose_joints(params)[1]

    def forward(self, params: BodyParams, vertex_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Posed vertices [...,V,3] (only `vertex_ids` [N] if given) and joints [...,55,3], metres."""
        transforms, joints, rotations = self._pose_joints(params)
        vertices = self.rest_vertices(params.betas, params.expression, vertex_ids)
        posedirs = self.posedirs if self.posedirs is None or vertex_ids is None else self.posedirs[vertex_ids]
        vertices = self._with_pose_offsets(vertices, rotations, posedirs)
        weights = self.lbs_weights if vertex_ids is None else self.lbs_weights[vertex_ids]
        return skin(vertices, weights, transforms), joints

    def motion(self, params: BodyParams) -> tuple[Tensor, Tensor]:
        """What moves points that ride on this model's vertices, one each, with the person's shape in them already.

        Args:
            params: [...].

        Returns:
            the joints' transforms [...,55,3,4] from rest to posed space, and what expression and pose add to each
            vertex in the T-pose, [...,V,3].
        """
        transforms, _, rotations = self._pose_joints(params)
        # Shape columns times zero: slicing the expression columns out would copy them at every call.
        neutral = torch.zeros_like(params.expression[..., :1]).expand(*params.expression.shape[:-1], NUM_BETAS)
        added = _blend(_coefficients(neutral, params.expression), self.blendshapes)
        return transforms, self._with_pose_offsets(added, rotations, self.posedirs)

    def _with_pose_offsets(self, vertices: Tensor, rotations: Tensor, posedirs: Tensor | None) -> Tensor:
        """Add the pose-dependent offsets [V,3,486] of local joint rotations [...,55,3,3], where the model has them."""
        if posedirs is None:
            return vertices
        eye = torch.eye(3, device=rotations.device, dtype=rotations.dtype)
        return vertices + _blend((rotations[..., 1:, :, :] - eye).flatten(-3), posedirs)

    def _pose_joints(self, params: BodyParams) -> tuple[Tensor, Tensor, Tensor]:
        """Rest-to-posed transforms [...,55,3,4], joints [...,55,3] and local rotations [...,55,3,3]."""
        local = rotation_matrices(params.full_pose())
        rest = self.joint_template + _blend(_coefficients(params.betas, params.expression), self.joint_blendshapes)
        rest = rest.expand(*local.shape[:-2], 3)
        # Joints sorted by depth: parents are known before their children, and one batched product serves a whole level.
        sorted_rest = rest.index_select(-2, self._level_order)
        root = sorted_rest[..., :1, :] + params.transl.unsqueeze(-2)
        bones = sorted_rest[..., 1:, :] - sorted_rest.index_select(-2, self._parent_ranks)
        offsets = torch.cat([root, bones], dim=-2).unsqueeze(-1)
        steps = _with_last_row(torch.cat([local.index_select(-3, self._level_order), offsets], dim=-1))
        levels = [steps[..., :1, :, :]]
        start, above = 1, 0  # where this level and the one above begin
        for size in self._level_sizes[1:]:
            slots = self._parent_ranks[start - 1 : start - 1 + size] - above
            levels.append(levels[-1].index_select(-3, slots) @ steps[..., start : start + size, :, :])
            start, above = start + size, start
        world = torch.cat(levels, dim=-3).index_select(-3, self._from_level_order)
        rotation, position = world[..., :3, :3], world[..., :3, 3]
        shift = position - (rotation @ rest.unsqueeze(-1)).squeeze(-1)
        return torch.cat([rotation, shift.unsqueeze(-1)], dim=-1), position, local


def skin(vertices: Tensor, weights: Tensor, transforms: Tensor) -> Tensor:
    """Linear blend skinning: rest vertices [...,V,3], weights [V,J], transforms [...,J,3,4] (or 4x4) -> [...,V,3].

    One matrix product blends the twelve numbers of the transforms; vertices stay on the last, dense axis to the end.
    """
    columns = nn.functional.linear(transforms[..., :3, :].transpose(-1, -3).contiguous(), weights)  # [...,4,3,V]
    x_axis, y_axis, z_axis, shift = columns.unbind(-3)
    x, y, z = vertices.transpose(-1, -2).split(1, dim=-2)
    posed = torch.addcmul(torch.addcmul(torch.addcmul(shift, x_axis, x), y_axis, y), z_axis, z)
    return posed.transpose(-1, -2).contiguous()


def _coefficients(betas: Tensor, expression: Tensor) -> Tensor:
    """Shape and expression coefficients side by side, [...,10+E]."""
    batch = torch.broadcast_shapes(betas.shape[:-1], expression.shape[:-1])
    return torch.cat([betas.expand(*batch, -1), expression.expand(*batch, -1)], dim=-1)


def _blend(coefficients: Tensor, directions: Tensor) -> Tensor:
    """Offsets [...,N,3] of coefficients [...,L] and directions [N,3,L]."""
    return (coefficients @ directions.flatten(0, 1).T).unflatten(-1, (-1, 3))


def _with_last_row(matrices: Tensor) -> Tensor:
    """Homogeneous [...,4,4] of affine [...,3,4]."""
    last = torch.zeros_like(matrices[..., :1, :])
    last[..., 3] = 1.0
    return torch.cat([matrices, last], dim=-2)


def _tree_levels(parents: Sequence[int]) -> tuple[list[int], Tensor, Tensor]:
    """Joints a level of depth, all joints sorted by depth [J], and the places of their parents in that order [J-1]."""
    depth = [0] * len(parents)
    for joint, parent in enumerate(parents):
        depth[joint] = 0 if parent < 0 else depth[parent] + 1
    order = sorted(range(len(parents)), key=lambda joint: (depth[joint], joint))
    ranks = [order.index(parents[joint]) for joint in order[1:]]
    return [depth.count(level) for level in range(max(depth) + 1)], torch.tensor(order), torch.tensor(ranks)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that a model needs, checked; nothing is unpickled."""
    mend = "give an SMPL-X npz file, such as assets/body/smplx_anny.npz or a licensed SMPLX_NEUTRAL.npz"
    needed = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
    wanted = {*needed, "part", "part_names", "expression_names"}  # licensed files pickle some others: leave those alone
    if not path.is_file():
        raise ValueError(f"body model {path} does not exist: {mend}")
    try:
        arrays = read_arrays(path, "body model", wanted)
    except ValueError as error:
        raise ValueError(f"body model {path} is no plain npz archive ({error.__cause__ or error}): {mend}") from error
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"body model {path} has no {', '.join(missing)}: {mend}")
    num_vertices = len(arrays["v_template"])
    expected = {
        "weights": (num_vertices, NUM_JOINTS), "J_regressor": (NUM_JOINTS, num_vertices),
        "kintree_table": (2, NUM_JOINTS), "posedirs": (num_vertices, 3, 9 * (NUM_JOINTS - 1)),
    }  # fmt: skip
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise ValueError(f"body model {path} has {name} of shape {arrays[name].shape}, not {shape}: {mend}")
    if arrays["shapedirs"].ndim != 3 or arrays["shapedirs"].shape[-1] < NUM_BETAS:
        raise ValueError(f"body model {path} has shapedirs {arrays['shapedirs'].shape} with under 10 shapes: {mend}")
    return arrays
