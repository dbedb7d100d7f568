"""Anchors: the places on the template that carry Gaussians, and what is constant of each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visa.networks.anatomy import Kind, Region, read_anatomy
from visa.networks.body import BodyModel
from visa.networks.farthest import farthest_points
from visa.networks.lips import FOLD_SHARE
from visa.networks.regions import part_code
from visa.networks.rotation import matrix_to_quaternion
from visa.networks.template import Template, part_vertices, refine_template

# N anchors, K clusters of anchors, F triangles of the body model.

LEAST_SCALE = 1e-3  # m
# Anchors a vertex where the body's mesh is coarser than what a picture shows: teeth of one are pearls, not a row.
TEETH_COUNT, SCALP_COUNT = 7, 7
TEETH_SIZE = 1.4  # of what covers the mesh: they cover one side of it
FRONT_OF_TOOTH = 0.3  # cosine between a triangle's normal and the way out of the arch of teeth
CAVITY_INSET = 0.004  # m: a smile draws the mouth's wall to the cheek, and its dark through the skin
FOREARM_JOINTS = (18, 19)
CHEST_JOINTS = (0, 3, 6, 9)  # without shoulders and neck: what lies before these is hair or their own skin


class Anchors(nn.Module):
    """The template's anchors on a body model. Buffers only, none of them in the state dict.

    Args:
        body: the body model (held outside the state dict; its file is its own asset).
        template: one anchor a vertex, see `networks.template`.
        num_clusters: K at most.
        per_vertex: anchors of each vertex of face and hands, see `refine_template`; teeth and scalp have more.

    Attributes:
        template: of the N anchors.
        num_vertices: vertices that carry them.
        prior_row: `[N]` int64, each one's vertex among these.
        frames: `[N,4]` rotations of flat Gaussians in the T-pose, whose third axis is the normal.
        normals: `[N,3]` unit normals in the T-pose.
        inset: `[N,3]` m, from the body's surface to the anchor: the mouth's cavity lies behind its wall.
        log_scale: `[N,3]` logarithm of the Gaussians' sizes (m) that cover the template.
        mirror: `[N]` int64, the left-right counterpart.
        neighbours: `[N,6]` int64, the nearest others of the same part and region.
        cluster_points: `[K,3]` m, centres of the clusters.
        cluster_of: `[N]` int64, the nearest one.
        blend_index, blend_weight: `[N,4]` the nearest clusters, and their weights.
        spread: `[4,K,K]` weights between clusters by distance, ever wider.
        corner_rows: `[F,3]` int64, anchors on each triangle's corners; -1 where there is none.
        part: `[N]` codes (`networks.regions.part_code`).
        label, face_label: `[N]` and `[F]` index of the body model's part.
        kind: `[N]` a `Kind`.
        region, face_region: `[N]` and `[F]`, a `Region`.
        is_lid, is_fold, is_inner: `[N]` bool, see `Anatomy`.
        prior_color: `[N,3]`, see `Anatomy`.
        offset_bound: `[N]` m, how far a Gaussian may lie from its anchor.
        least_opacity: `[N]`.
        is_trunk: `[N]` bool, torso and upper arms.
        is_chest: `[F]` bool.
    """

    prior_row: Tensor
    frames: Tensor
    normals: Tensor
    inset: Tensor
    log_scale: Tensor
    mirror: Tensor
    neighbours: Tensor
    cluster_points: Tensor
    cluster_of: Tensor
    blend_index: Tensor
    blend_weight: Tensor
    spread: Tensor
    corner_rows: Tensor
    part: Tensor
    label: Tensor
    face_label: Tensor
    kind: Tensor
    region: Tensor
    face_region: Tensor
    is_lid: Tensor
    is_fold: Tensor
    is_inner: Tensor
    prior_color: Tensor
    offset_bound: Tensor
    least_opacity: Tensor
    is_trunk: Tensor
    is_chest: Tensor

    def __init__(self, body: BodyModel, template: Template, num_clusters: int, per_vertex: int = 1) -> None:
        super().__init__()
        self._body = [body]  # in a list: a submodule's buffers would enter every checkpoint
        vertices = template.vertex_ids
        counts = _anchor_counts(body, per_vertex)
        is_plain = bool((counts == 1).all())
        self.template = template if is_plain else refine_template(template, body, counts, _fronts_of_teeth(body))
        self.num_vertices = len(vertices)
        points = self.template.points(body.v_template)
        self._keep_shapes(points)
        self._keep_rows(vertices)
        self._keep_clusters(points, body.v_template[vertices], num_clusters)
        self._keep_anatomy(points)

    @property
    def body(self) -> BodyModel:
        """The body model, moved to the anchors' device."""
        if self._body[0].v_template.device != self.normals.device:
            self._body[0] = self._body[0].to(self.normals.device)
        return self._body[0]

    def forward(self, betas: Tensor) -> Tensor:
        """Anchors `[B,N,3]` of people of shape `betas [B,10]` in the T-pose, metres."""
        neutral = betas.new_zeros(*betas.shape[:-1], self.body.num_expressions)
        if self.template.corners is None:
            return self.body.rest_vertices(betas, neutral, self.template.vertex_ids) + self.inset
        return self.template.points(self.body.rest_vertices(betas, neutral)) + self.inset

    def _keep(self, **constants: Tensor) -> None:
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def _keep_shapes(self, points: Tensor) -> None:
        """Frames and sizes of the Gaussians at the anchors `points [N,3]`."""
        body, ids = self._body[0], self.template.vertex_ids
        anatomy = read_anatomy(body)
        normals = vertex_normals(body.v_template, body.faces)[ids]
        spacing = _vertex_spacing(body.v_template, body.faces)[ids]
        if self.template.share is not None:
            spacing = spacing / self.template.share.to(spacing).sqrt()  # together they cover what one would
        flat = spacing[:, None] * points.new_tensor([0.5, 0.5, 0.2])
        frames = matrix_to_quaternion(_tangent_frames(normals))
        is_teeth = (anatomy.kind == int(Kind.TEETH))[ids, None]
        flat = torch.where(is_teeth, TEETH_SIZE * flat, flat)
        flat = torch.where(anatomy.is_fold[ids, None], FOLD_SHARE * flat, flat.clamp_min(LEAST_SCALE))
        inset = anatomy.is_mouth[ids, None] * points.new_tensor([0.0, 0.0, -CAVITY_INSET])
        self._keep(
            frames=frames, normals=normals, inset=inset, log_scale=flat.clamp(FOLD_SHARE * LEAST_SCALE, 3e-2).log()
        )

    def _keep_rows(self, vertices: Tensor) -> None:
        """Which anchors belong to which vertex, triangle and side of the body."""
        body, ids = self._body[0], self.template.vertex_ids
        row = torch.zeros(len(body.v_template), dtype=torch.long).index_put_((vertices,), torch.arange(len(vertices)))
        first = torch.full((len(body.v_template),), len(ids)).scatter_reduce(0, ids, torch.arange(len(ids)), "amin")
        corner_rows = torch.where(first < len(ids), first, -1)[body.faces]
        self._keep(prior_row=row[ids], corner_rows=corner_rows, mirror=self.template.mirror)

    def _keep_clusters(self, points: Tensor, vertices: Tensor, num_clusters: int) -> None:
        """Clusters of the anchors `points [N,3]`, and how values spread among them.

        They are made of the template's `vertices [V,3]` alone: they are the same however many anchors a vertex has.
        """
        centres = vertices[farthest_points(vertices, num_clusters)]
        nearest = torch.cdist(points, centres).topk(4, largest=False)
        weights = torch.softmax(-nearest.values / nearest.values.mean(dim=1, keepdim=True).clamp_min(1e-4) * 2, dim=1)
        between = torch.cdist(centres, centres)
        spread = torch.stack([torch.exp(-((between / sigma) ** 2)) for sigma in (0.02, 0.06, 0.2, 0.8)])
        self._keep(cluster_points=centres, cluster_of=nearest.indices[:, 0], spread=spread)
        self._keep(blend_index=nearest.indices, blend_weight=weights)

    def _keep_anatomy(self, points: Tensor) -> None:
        """What each anchor is part of: bounds, colours of what is hidden, and its neighbours."""
        body, ids = self._body[0], self.template.vertex_ids
        anatomy, first = read_anatomy(body), body.faces[:, 0]
        label, region = body.part[ids], anatomy.region[ids]
        self._keep(part=part_code(body)[ids], kind=anatomy.kind[ids], is_lid=anatomy.is_lid[ids])
        self._keep(is_fold=anatomy.is_fold[ids], is_inner=anatomy.is_inner[ids], prior_color=anatomy.prior_color[ids])
        self._keep(offset_bound=anatomy.offset_bound[ids], least_opacity=anatomy.least_opacity[ids])
        self._keep(label=label, face_label=body.part[first], region=region, face_region=anatomy.region[first])
        chest = body.lbs_weights[:, list(CHEST_JOINTS)].sum(dim=1) > 0.5
        forearms = body.lbs_weights[:, list(FOREARM_JOINTS)].sum(dim=1) > 0.5  # sleeves end, nobody knows where
        trunk = (anatomy.region == int(Region.TORSO)) | ((anatomy.region == int(Region.ARMS)) & ~forearms)
        neighbours = _neighbours(points, label * len(Region) + region)
        self._keep(is_chest=chest[first], is_trunk=trunk[ids], neighbours=neighbours)


def _anchor_counts(body: BodyModel, per_vertex: int) -> Tensor:
    """`[V]` int64, how many anchors each vertex of the body model has; ValueError (one line) for less than one."""
    if per_vertex < 1:
        raise ValueError(f"gaussians_per_anchor is {per_vertex}: give 1 or more")
    counts, anatomy = torch.ones_like(body.part), read_anatomy(body)
    counts[torch.cat(list(part_vertices(body).values()))] = per_vertex
    counts[anatomy.kind == int(Kind.TEETH)] = max(per_vertex, TEETH_COUNT)
    counts[anatomy.region == int(Region.SCALP)] = max(per_vertex, SCALP_COUNT)
    return counts


def _fronts_of_teeth(body: BodyModel) -> Tensor:
    """`[F]` bool: triangles of teeth that face lips and cheeks; their edge is seen as a line."""
    is_teeth = (read_anatomy(body).kind == int(Kind.TEETH))[body.faces].all(dim=1)
    found = torch.zeros_like(is_teeth)
    if not bool(is_teeth.any()):
        return found
    a, b, c = body.v_template[body.faces[is_teeth]].unbind(dim=1)
    normals, middles = F.normalize(torch.cross(b - a, c - a, dim=-1), dim=-1), (a + b + c) / 3
    # the middle of the arch that they stand in: of its depth, behind the front teeth
    outward = middles - middles.new_tensor([0.0, 0.0, float(middles[:, 2].min())])
    outward = F.normalize(outward * outward.new_tensor([1.0, 0.0, 1.0]), dim=-1)
    found[is_teeth] = (normals * outward).sum(dim=-1) > FRONT_OF_TOOTH
    return found


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Area-weighted unit normals `[...,V,3]` of a mesh of `vertices [...,V,3]` and `faces [F,3]`."""
    a, b, c = (vertices[..., faces[:, k], :] for k in range(3))
    face_normals = torch.cross(b - a, c - a, dim=-1)
    total = torch.zeros_like(vertices)
    for k in range(3):
        total.index_add_(-2, faces[:, k], face_normals)
    return F.normalize(total, dim=-1)


def _vertex_spacing(vertices: Tensor, faces: Tensor) -> Tensor:
    """`[V]` mean length of the edges at each vertex, metres."""
    total, count = vertices.new_zeros(len(vertices)), vertices.new_zeros(len(vertices))
    for k in range(3):
        first, second = faces[:, k], faces[:, (k + 1) % 3]
        length = (vertices[first] - vertices[second]).norm(dim=-1)
        for end in (first, second):
            total.index_add_(0, end, length)
            count.index_add_(0, end, torch.ones_like(length))
    return total / count.clamp_min(1)


def _neighbours(points: Tensor, label: Tensor, count: int = 6) -> Tensor:
    """`[N,count]` the nearest other anchors of the same part of the body."""
    found = []
    for first in range(0, len(points), 2048):
        distance = torch.cdist(points[first : first + 2048], points)
        distance = distance + 10.0 * (label[first : first + 2048, None] != label[None])
        found.append(distance.topk(count + 1, largest=False).indices[:, 1:])
    return torch.cat(found)


def _tangent_frames(normals: Tensor) -> Tensor:
    """`[N,3,3]` rotations whose third column is the normal."""
    helper = torch.where(
        normals[:, 1:2].abs() < 0.9, normals.new_tensor([[0.0, 1.0, 0.0]]), normals.new_tensor([[1.0, 0.0, 0.0]])
    )
    first = F.normalize(torch.cross(helper, normals, dim=-1), dim=-1)
    return torch.stack([first, torch.cross(normals, first, dim=-1), normals], dim=-1)
