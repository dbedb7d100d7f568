"""Gaussians and the avatar: canonical Gaussians on the template, posed by skinning, splatted to a camera."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.losses.smoothing import b3_smooth
from visa.networks.anatomy import read_anatomy
from visa.networks.body import BodyModel, BodyParams
from visa.networks.continuation import REACH
from visa.networks.precision import full_precision
from visa.networks.rasterizer import rasterize
from visa.networks.template import HEAD_JOINTS

# B people, T frames, N Gaussians, C feature channels.

Record = TypeVar("Record")

# A photo's pixel is one of the surface asked for where their part codes (`networks.regions.part_code`) differ by less
# than the first, is none from the second on; chosen on validation windows.
SAME_PART, OTHER_PART = 0.1, 0.25
# The photo's matte ends a person, not the Gaussians' soft rim: from this alpha on the photo stands as a whole.
FULL_ALPHA = 0.2
# Of several photos each counts 1/e less where a Gaussian has turned (rad) or moved with the expression (m) so far;
# chosen on validation people.
ALIKE_ANGLE, ALIKE_SHAPE = 0.025, 0.002
COHERENT = 20.0  # how much more the mean move of the head counts than a Gaussian's own: lips of one photo, not of two
SHARPNESS = 2.0  # power of the photos' shares in a pixel: a mean of two is a blurred one
LEAST_AGREEING = 0.25  # share of the photos, from which on they stand for the others whose part is another one
LEAST_PATTERN = 1 / 42  # share of the picture's side: half the width of what shows a pattern; narrower is a rim
MOST_GROWN = 4.0  # closed lids grow to 2.5 times their size; more is a Gaussian gone astray


@dataclass(frozen=True)
class Gaussians:
    """3D Gaussians with leading shape [...].

    Attributes:
        means: `[...,N,3]` metres.
        quats: `[...,N,4]` unit quaternions, w first.
        scales: `[...,N,3]` standard deviations in metres.
        opacities: `[...,N]` in [0,1].
        colors: `[...,N,3]` RGB in [0,1].
        features: `[...,N,C]` 3D-aware features.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    features: Tensor


@dataclass(frozen=True)
class Loose:
    """Gaussians that no vertex carries: hair and cloth that the photo shows beside the template (`networks.loose`).

    Attributes:
        gaussians: `[B,M,...]` in the T-pose.
        skin_weights: `[B,M,55]` of each on the joints, their sum 1; expressions do not move them.
    """

    gaussians: Gaussians
    skin_weights: Tensor


@dataclass(frozen=True)
class Surface:
    """Gaussians on the template's triangles, as dense as the photo's pixels are (`networks.surface`).

    Attributes:
        gaussians: `[B,S,...]` in the T-pose.
        corners: `[B,S,3]` int64, the template's Gaussians at the corners of each one's triangle.
        corner_weights: `[B,S,3]` barycentric coordinates in it: skinning weights and expressions are those of the
            corners, mixed by them.
    """

    gaussians: Gaussians
    corners: Tensor
    corner_weights: Tensor

    def mixed(self, values: Tensor) -> Tensor:
        """`[B,T,S,D]` barycentric means of values `[B,T,N,D]` of the template's Gaussians."""
        return mix_corners(values, self.corners, self.corner_weights)


@dataclass(frozen=True)
class Texture:
    """The photo as the avatar's texture: where each Gaussian lies in it.

    Gaussians are a coarse sampling of the surface, a few pixels apart; the photo holds the detail between them. Their
    motion from the picture to the photo, splatted like a colour, is a smooth flow that leads from each pixel to the
    photo's own (inverse texture mapping).

    N counts all Gaussians in the order of `Avatar.canonical`.

    Attributes:
        photo: `[B,3,H,W]` in [0,1].
        mask: `[B,1,H,W]` soft foreground of the photo; what lies behind the person is nobody's texture.
        places: `[B,N,2]` x, y in the photo as `grid_sample` counts them (-1 to 1, align_corners false).
        seen: `[B,N]` 1 where the photo shows the Gaussian, else 0.
        trust: `[B,N]` in [0,1], learned: how far the photo's pixels stand for a Gaussian that it shows (little for a
            mouth that will open).
        part: `[B,N]` the code of the part of the body that carries each Gaussian (`networks.regions.part_code`).
        photo_part: `[B,1,H,W]` the code of what the photo shows at each pixel (`shown_part`).
    """

    photo: Tensor
    mask: Tensor
    places: Tensor
    seen: Tensor
    trust: Tensor
    part: Tensor
    photo_part: Tensor


@dataclass(frozen=True)
class Pattern:
    """Cloth beyond what the photo shows, in the photo's own picture plane (`networks.continuation`).

    Attributes:
        picture: `[B,3,rows,columns]` in [0,1], which has REACH times the photo's sides and its centre.
        places: `[B,N,2]` of the template's Gaussians as `Texture.places`, -REACH to REACH.
        weight: `[B,N]` 1 for Gaussians that have the pattern, else 0.
    """

    picture: Tensor
    places: Tensor
    weight: Tensor


@dataclass(frozen=True)
class PhotoSet:
    """Several photos as one avatar's texture: for each Gaussian of a frame, the photos that show it most alike.

    A photo is the better the less the surface has turned to the view since, and the less its shape has changed with
    the expression: the penalties of unstructured lumigraphs (Buehler et al., 2001), by a soft choice, so that nothing
    jumps from frame to frame.

    Attributes:
        textures: of the K photos, its fields `[B,K,...]`.
        directions: `[B,K,N,3]` from each Gaussian to the photo's camera, in the Gaussian's own axes.
        positions: `[B,K,N,3]` metres, of each Gaussian in the head's axes as in the photo; zeros off the head.
    """

    textures: Texture
    directions: Tensor
    positions: Tensor

    def shares(self, directions: Tensor, positions: Tensor) -> Tensor:
        """`[B,T,K,N]` how far each photo stands for each Gaussian; their sum is 1 where any shows it, else 0.

        Args:
            directions: `[B,T,N,3]` as the attribute, of the frames.
            positions: `[B,T,N,3]`.
        """
        turned = 2 - 2 * (self.directions[:, None] * directions[:, :, None]).sum(-1)
        moved = (self.positions[:, None] - positions[:, :, None]).square().sum(-1)
        on_head = (positions != 0).any(-1)[:, :, None]
        together = (moved * on_head).sum(-1, keepdim=True) / on_head.sum(-1, keepdim=True).clamp_min(1)
        penalty = turned / ALIKE_ANGLE**2 + (moved + COHERENT * together * on_head) / ALIKE_SHAPE**2
        seen = self.textures.seen[:, None]
        return torch.softmax(-penalty - 1e4 * (1 - seen), dim=2) * seen


@dataclass(frozen=True)
class Detail:
    """An avatar's photos at a finer resolution than it was made at, for pictures of that size (`networks.detail`).

    Attributes:
        photo: `[B,K,3,P,P]` in [0,1], in the order of the texture's.
        mask: `[B,K,1,P,P]` soft foreground.
        pattern: `[B,3,rows,columns]` as `Pattern.picture`; None without a pattern.
    """

    photo: Tensor
    mask: Tensor
    pattern: Tensor | None = None


@dataclass(frozen=True)
class Layers:
    """What is read of K pictures at each pixel.

    Attributes:
        moved: `[B,T,K,2,H,W]` motion from each pixel to its place in the picture, times `weight`.
        weight: `[B,T,K,1,H,W]`.
        share: `[B,T,K,1,H,W]` of the picture's pixel in the frame.
    """

    moved: Tensor
    weight: Tensor
    share: Tensor


@dataclass(frozen=True)
class MatteOptions:
    """What of a painted picture stands beside the textured splat.

    Attributes:
        margin: share of the frame's side that painting may reach beyond the silhouette, for loose hair and cloth; 2 px
            at 128.
        octaves_shown: finest octaves of what painting changes that are left out where the photo shows the surface.
        octaves_else: the same, elsewhere.
    """

    margin: float = 1 / 64
    octaves_shown: int = 1
    octaves_else: int = 0


@dataclass
class SplatMaps:
    """What one rasterization gives, `[B,T,...]`.

    Attributes:
        rgb: `[B,T,3,H,W]` over the background colour.
        alpha: `[B,T,1,H,W]`.
        features: `[B,T,C,H,W]`, premultiplied by alpha.
        textured: `[B,T,3,H,W]` `rgb` with the photo's own pixels where the photo shows the surface, and the pattern's
            where cloth goes on; `rgb` itself for an avatar without texture.
        seen: `[B,T,1,H,W]` share of the photo's pixels in `textured`.
        coverage: `[B,T,1,H,W]` alpha of `textured`: the photo's matte where its pixels stand, else `alpha`.
        layers: how `textured` reads its photos; None without a texture.
        pattern: how it reads the pattern below them; None without a pattern.
    """

    rgb: Tensor
    alpha: Tensor
    features: Tensor
    textured: Tensor
    seen: Tensor
    coverage: Tensor
    layers: Layers | None = None
    pattern: Layers | None = None

    def gaussian_maps(self) -> Tensor:
        """`[B,T,C+4,H,W]`: features, RGB in [-1,1] and alpha: what the Gaussians alone say."""
        return torch.cat([self.features, self.rgb * 2 - 1, self.alpha], dim=2)

    def condition(self) -> Tensor:
        """`[B,T,C+8,H,W]`: the Gaussians' maps, textured RGB in [-1,1] and its share: the shader's condition maps."""
        return torch.cat([self.gaussian_maps(), self.textured * 2 - 1, self.seen], dim=2)

    def matted(self, painted: Tensor, options: MatteOptions = MatteOptions()) -> Tensor:
        """Painted frames `[B,T,3,H,W]` where the avatar is and a margin around it; `textured` elsewhere.

        A latent patch that holds the silhouette cannot leave its other pixels alone: beyond the margin stands the
        plain background, not what the patch left there. And where the photo's own pixels stand, their finest octave
        does too: painting changes what is coarser, and where it differs from pixel to pixel it is mostly wrong
        (docs/results.md).
        """
        reach = round(options.margin * painted.shape[-1])
        near = F.max_pool2d(self.coverage.flatten(0, 1), 2 * reach + 1, 1, reach).view_as(self.coverage)
        change = painted.to(self.textured.dtype) - self.textured
        shown, other = (full_precision(_coarse)(change, n) for n in (options.octaves_shown, options.octaves_else))
        return self.textured + near * torch.lerp(other, shown, self.seen)


def _coarse(change: Tensor, octaves: int) -> Tensor:
    """`[B,T,3,H,W]` without so many finest octaves (Starck and Murtagh's a trous transform)."""
    for octave in range(octaves):
        change = b3_smooth(change.flatten(0, 1), 2**octave).view_as(change)
    return change


def quaternion_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of quaternions `[...,4]`, w first."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Rotation matrices `[...,3,3]` to unit quaternions `[...,4]`, w first.

    Of the four equivalent formulas the one with the largest divisor is taken, so that none divides by zero.
    """
    m = matrix
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    squares = torch.stack([trace, 2 * m[..., 0, 0] - trace, 2 * m[..., 1, 1] - trace, 2 * m[..., 2, 2] - trace], dim=-1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    p, q, r = m[..., 1, 0] + m[..., 0, 1], m[..., 2, 0] + m[..., 0, 2], m[..., 2, 1] + m[..., 1, 2]
    w, x, y, z = (1 + squares).unbind(-1)
    candidates = torch.stack(
        [
            torch.stack([w, a, b, c], dim=-1),
            torch.stack([a, x, p, q], dim=-1),
            torch.stack([b, p, y, r], dim=-1),
            torch.stack([c, q, r, z], dim=-1),
        ],
        dim=-2,
    )
    best = squares.argmax(dim=-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    return F.normalize(candidates.gather(-2, best)[..., 0, :], dim=-1)


def concatenated(parts: list[Gaussians]) -> Gaussians:
    """Sets of Gaussians of one leading shape as one set."""
    names = vars(parts[0])
    axes = {name: -1 if name == "opacities" else -2 for name in names}
    return Gaussians(**{name: torch.cat([getattr(part, name) for part in parts], axes[name]) for name in names})


def mix_corners(values: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """Barycentric means `[B,T,S,D]` of `values [B,T,N,D]` at triangles' `corners [B,S,3]`, by `weights [B,S,3]`."""
    shape = (len(corners), values.shape[1], corners.shape[1], values.shape[-1])
    values = values.expand(len(corners), -1, -1, -1)
    mean = values.new_zeros(())
    for k in range(3):  # one corner after the other: all three at once would be thrice the memory
        index = corners[:, None, :, k, None].expand(shape)
        mean = mean + weights[:, None, :, k, None] * values.gather(2, index)
    return mean


def _repeat(gaussians: Gaussians, frames: int) -> Gaussians:
    """`[B,N,...]` -> `[B,T,N,...]`, without a copy."""
    return Gaussians(
        **{name: value[:, None].expand(-1, frames, *value.shape[1:]) for name, value in vars(gaussians).items()}
    )


def joint_turns(transforms: Tensor) -> Tensor:
    """Rotations of joints' transforms `[...,55,3,4]` as quaternions `[...,55,4]` of one half sphere, to be blended."""
    joints = matrix_to_quaternion(transforms[..., :3])
    # q and -q are one rotation: bring all to the pelvis's half sphere before blending.
    return joints * torch.where((joints * joints[..., :1, :]).sum(-1, keepdim=True) < 0, -1.0, 1.0)


def blended_turn(skin_weights: Tensor, joints: Tensor) -> Tensor:
    """Rotation `[...,N,4]` of points with `skin_weights [...,N,55]`, of joints as `joint_turns` gives them."""
    return F.normalize(skin_weights @ joints, dim=-1)


def blended_transforms(skin_weights: Tensor, transforms: Tensor) -> Tensor:
    """Transforms `[...,N,3,4]` of points with `skin_weights [...,N,55]`, from joints' `transforms [...,55,3,4]`."""
    return (skin_weights @ transforms.flatten(-2)).unflatten(-1, (3, 4))


def unposed(posed: Gaussians, skin_weights: Tensor, transforms: Tensor) -> Gaussians:
    """Take Gaussians `[B,M,...]` back to the T-pose: the inverse of what skinning will do to them.

    Args:
        posed: `[B,M,...]`.
        skin_weights: `[B,M,55]`.
        transforms: `[B,55,3,4]` of the joints, from the T-pose to the pose.
    """
    blended = blended_transforms(skin_weights, transforms)
    means = torch.linalg.solve(blended[..., :3], (posed.means - blended[..., 3])[..., None])[..., 0]
    turn = blended_turn(skin_weights, joint_turns(transforms))
    back = turn * turn.new_tensor([1, -1, -1, -1])
    return replace(posed, means=means, quats=quaternion_multiply(back, posed.quats))


@dataclass(frozen=True)
class LidEdges:
    """The mesh's edges around Gaussians of lids, which a blink stretches.

    A lid that lies folded above the open eye is drawn down over the eyeball by a blink; Gaussians as large as the fold
    would leave gaps through which the eyeball shows.

    Attributes:
        lid: `[R]` Gaussians of lids.
        ends: `[R,K,2]` the Gaussians at both ends of each edge; those of a missing edge are equal.
    """

    lid: Tensor
    ends: Tensor

    def stretched(self, canonical: Gaussians, means: Tensor) -> Tensor:
        """Scales `[B,T,N,3]`: those of `canonical [B,N,...]` grown as the edges to their neighbours at `means` are.

        By the square of the edges' mean growth: lids are stretched one way, so that half of the edges grow.
        """
        scales = canonical.scales[:, None].expand(-1, means.shape[1], -1, -1)
        if len(self.lid) == 0:
            return scales
        stretch = self._length(means) / self._length(canonical.means[:, None]).clamp_min(1e-6)
        grown = scales[:, :, self.lid] * stretch.square().clamp(1, MOST_GROWN)[..., None]
        return scales.index_copy(2, self.lid, grown)

    def _length(self, means: Tensor) -> Tensor:
        """`[B,T,R]` sum of the edges' lengths around each Gaussian."""
        first, second = means[:, :, self.ends].unbind(-2)
        return (first - second).norm(dim=-1).sum(dim=-1)


# Found once for a body and a template: it takes most of a second.
_found_edges: weakref.WeakKeyDictionary[BodyModel, list[tuple[Tensor, LidEdges]]] = weakref.WeakKeyDictionary()


def lid_edges(body: BodyModel, vertex_ids: Tensor) -> LidEdges:
    """Edges of `body` around its lids, between Gaussians that the vertices `vertex_ids [N]` carry."""
    found = _found_edges.setdefault(body, [])
    for known, edges in found:
        if known.device == vertex_ids.device and torch.equal(known, vertex_ids):
            return edges
    found.append((vertex_ids, _find_lid_edges(body, vertex_ids)))
    return found[-1][1]


@torch.inference_mode(False)  # they are kept, and a fit, which needs gradients, may be the next to read them
def _find_lid_edges(body: BodyModel, vertex_ids: Tensor) -> LidEdges:
    device = vertex_ids.device
    carried = torch.full((len(body.v_template),), -1, device=device)
    carried[vertex_ids] = torch.arange(len(vertex_ids), device=device)
    is_lid = read_anatomy(body).is_lid.to(device)
    lid = torch.nonzero(is_lid[vertex_ids])[:, 0]
    around: dict[int, set[int]] = {}
    for a, b, c in carried[body.faces[is_lid[body.faces].any(dim=1)]].tolist():
        for one, other in ((a, b), (b, c), (c, a)):
            if min(one, other) >= 0:
                around.setdefault(one, set()).add(other)
                around.setdefault(other, set()).add(one)
    centres = carried[vertex_ids[lid]].tolist()  # several Gaussians may share a vertex: one of them stands for it
    rows = [[[centre, other] for other in sorted(around.get(centre, ()))] for centre in centres]
    most = max(map(len, rows), default=0)
    rows = [row + [[centre, centre]] * (most - len(row)) for row, centre in zip(rows, centres, strict=True)]
    return LidEdges(lid, torch.tensor(rows, dtype=torch.long, device=device).view(len(lid), most, 2))


@dataclass(frozen=True)
class Avatar:
    """A person's canonical Gaussians, `[B,...]`: the record that one photo gives.

    `runtime.avatar_files` saves and loads it; `runtime.splat_files` exports Gaussians for other viewers.

    Attributes:
        gaussians: in the T-pose with the person's shape and a neutral expression.
        betas: `[B,10]` the person's shape.
        vertex_ids: `[N]` the template vertex that carries each Gaussian.
        background: `[B,3]` colour behind the person.
        texture: the photo or photos it was made of; None renders from the Gaussians' colours alone.
        loose: M Gaussians beside the template; None has none.
        surface: S Gaussians on the template's triangles; None has none.
        pattern: of cloth that the photo does not show, drawn with a texture alone; None leaves the Gaussians'
            colours there.
        detail: the photos at a finer resolution; None has none.
    """

    gaussians: Gaussians
    betas: Tensor
    vertex_ids: Tensor
    background: Tensor
    texture: Texture | PhotoSet | None = None
    loose: Loose | None = None
    surface: Surface | None = None
    pattern: Pattern | None = None
    detail: Detail | None = None
    # The body model that posed the avatar last, its vertices that carry Gaussians and their edges at lids: cut out
    # once, not at every call.
    _carriers: list[tuple[BodyModel, BodyModel, LidEdges]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def _carrier(self, body: BodyModel) -> tuple[BodyModel, LidEdges]:
        """The part of `body` that carries the Gaussians, one vertex each, and the edges of its lids."""
        if not self._carriers or self._carriers[0][0] is not body:
            self._carriers[:] = [(body, body.subset(self.vertex_ids), lid_edges(body, self.vertex_ids))]
        return self._carriers[0][1:]

    def canonical(self) -> Gaussians:
        """All Gaussians in the T-pose, `[B,N+M+S,...]`: the template's, the loose ones, those on its surface."""
        parts = [self.gaussians, *(part.gaussians for part in (self.loose, self.surface) if part is not None)]
        return parts[0] if len(parts) == 1 else concatenated(parts)

    def with_canonical(self, gaussians: Gaussians) -> Avatar:
        """The avatar with other Gaussians in the T-pose, `[B,N+M+S,...]` as `canonical` gives them."""
        axes = {name: -1 if name == "opacities" else -2 for name in vars(gaussians)}
        first = self.gaussians.means.shape[1]

        def cut(start: int, count: int) -> Gaussians:
            return Gaussians(
                **{name: value.narrow(axes[name], start, count) for name, value in vars(gaussians).items()}
            )

        changed, start = replace(self, gaussians=cut(0, first)), first
        for name in ("loose", "surface"):
            part = getattr(self, name)
            if part is not None:
                count = part.gaussians.means.shape[1]
                changed, start = replace(changed, **{name: replace(part, gaussians=cut(start, count))}), start + count
        changed._carriers[:] = self._carriers
        return changed

    def _others(self, carrier: BodyModel, added: Tensor | None = None) -> list[tuple[Gaussians, Tensor, Tensor | None]]:
        """What no single vertex carries: Gaussians, their skinning weights, and what expressions add `[B,T,...,3]`.

        `added [B,T,N,3]` is what they add to the template's Gaussians.
        """
        found: list[tuple[Gaussians, Tensor, Tensor | None]] = []
        if self.loose is not None:
            found.append((self.loose.gaussians, self.loose.skin_weights[:, None], None))
        if self.surface is not None:
            weights = self.surface.mixed(carrier.lbs_weights[None, None])
            found.append((self.surface.gaussians, weights, None if added is None else self.surface.mixed(added)))
        return found

    def over(self, background: Tensor) -> Avatar:
        """The avatar before another background `[B,3]`: its photo is matted over that one."""
        texture, change = self.texture, (background - self.background)[:, :, None, None]
        if isinstance(texture, PhotoSet):
            photos = texture.textures
            texture = replace(
                texture, textures=replace(photos, photo=photos.photo + change[:, None] * (1 - photos.mask))
            )
        elif texture is not None:
            texture = replace(texture, photo=texture.photo + change * (1 - texture.mask))
        detail = self.detail
        if detail is not None:
            detail = replace(detail, photo=detail.photo + change[:, None] * (1 - detail.mask))
        return replace(self, background=background, texture=texture, detail=detail)

    def linear_part(self, body: BodyModel, params: BodyParams) -> Tensor:
        """`[B,T,N+M+S,3,3]` what skinning does to a small change of each canonical mean, see `pose`."""
        batch, frames = params.expression.shape[:2]
        carrier, _ = self._carrier(body)
        transforms = carrier.joint_transforms(replace(params, betas=self.betas[:, None].expand(batch, frames, -1)))
        transforms = transforms[..., :3, :]
        weights = [carrier.lbs_weights, *(weights for _, weights, _ in self._others(carrier))]
        parts = [blended_transforms(weight, transforms)[..., :3] for weight in weights]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-3)

    def unposed_surface(self, posed: Surface, body: BodyModel, params: BodyParams) -> Surface:
        """Take Gaussians on the template's triangles back to the T-pose: the inverse of what `pose` will do to them.

        Args:
            posed: as in a pose, `[B,S,...]`.
            body: the body model.
            params: the pose, `[B]`.
        """
        carrier, _ = self._carrier(body)
        _, transforms, added = carrier.carry(self.gaussians.means.detach(), replace(params, betas=self.betas))
        weights = posed.mixed(carrier.lbs_weights[None, None])[:, 0]
        rest = unposed(posed.gaussians, weights, transforms)
        return replace(posed, gaussians=replace(rest, means=rest.means - posed.mixed(added[:, None])[:, 0]))

    @full_precision
    def pose(self, body: BodyModel, params: BodyParams) -> Gaussians:
        """Move the Gaussians by expression and skinning.

        Means follow the blended affine transforms (as LBS moves vertices); rotations follow the blended joint
        quaternions. Gaussians of lids grow as the skin between them is stretched (`LidEdges`).

        Args:
            body: the body model.
            params: `[B,T,...]`; their betas are replaced by the avatar's own.

        Returns:
            Gaussians `[B,T,...]` in the order of `canonical`.
        """
        batch, frames = params.expression.shape[:2]
        (carrier, lids), canonical = self._carrier(body), self.gaussians
        shaped = replace(params, betas=self.betas[:, None].expand(batch, frames, -1))
        means, transforms, added = carrier.carry(canonical.means[:, None], shaped)
        joints = joint_turns(transforms)
        quats = quaternion_multiply(blended_turn(carrier.lbs_weights, joints), canonical.quats[:, None])
        scales = lids.stretched(canonical, means)
        parts = [replace(_repeat(canonical, frames), means=means, quats=quats, scales=scales)]
        for other, weights, moved in self._others(carrier, added):
            start = other.means[:, None] if moved is None else other.means[:, None] + moved
            blended = blended_transforms(weights, transforms)
            means = (blended[..., :3] @ start[..., None])[..., 0] + blended[..., 3]
            quats = quaternion_multiply(blended_turn(weights, joints), other.quats[:, None])
            parts.append(replace(_repeat(other, frames), means=means, quats=quats))
        return parts[0] if len(parts) == 1 else concatenated(parts)

    def render(
        self, body: BodyModel, params: BodyParams, intrinsics: Tensor, world_to_camera: Tensor, size: int
    ) -> SplatMaps:
        """Pose and splat.

        Args:
            body: the body model.
            params: `[B,T,...]`.
            intrinsics: `[B,T,3,3]` pixels of the `size` x `size` picture.
            world_to_camera: `[B,T,4,4]` OpenCV.
            size: side of the picture in pixels.
        """
        posed = self.pose(body, params)
        if not isinstance(self.texture, PhotoSet):
            return splat(posed, intrinsics, world_to_camera, size, self.background, self.texture, self.pattern)
        positions = self.head_positions(body, params, posed.means)
        shares = self.texture.shares(view_directions(posed, world_to_camera), positions)
        photos = self.texture.textures
        return splat_photos(
            posed, intrinsics, world_to_camera, size, self.background, photos, shares.detach(), self.pattern
        )

    def head_positions(self, body: BodyModel, params: BodyParams, means: Tensor) -> Tensor:
        """Posed `means [B,T,N+M,3]` in the axes of the posed head; zeros for Gaussians that it does not carry."""
        batch, frames = means.shape[:2]
        carrier, _ = self._carrier(body)
        shaped = replace(params, betas=self.betas[:, None].expand(batch, frames, -1))
        head = carrier.joint_transforms(shaped)[..., HEAD_JOINTS[0], :3, :]
        inside = (means - head[..., None, :, 3]) @ head[..., :3]
        weights = carrier.lbs_weights[None].expand(batch, -1, -1)
        if self.loose is not None:
            weights = torch.cat([weights, self.loose.skin_weights], dim=1)
        return inside * weights[:, None, :, list(HEAD_JOINTS)].sum(-1, keepdim=True)


def copied(record: Record) -> Record:
    """A record with copies of its tensors, and of those of records in it, without history.

    Gradients may flow to a copy made outside of inference mode, wherever the original was made.
    """
    values = {f.name: getattr(record, f.name) for f in fields(record) if f.init}
    return replace(
        record,
        **{
            name: value.detach().clone() if isinstance(value, Tensor) else copied(value)
            for name, value in values.items()
            if value is not None
        },
    )


@full_precision
def splat(
    gaussians: Gaussians,
    intrinsics: Tensor,
    world_to_camera: Tensor,
    size: int,
    background: Tensor,
    texture: Texture | None = None,
    pattern: Pattern | None = None,
) -> SplatMaps:
    """Rasterize `[B,T]` sets of Gaussians; colours are laid over `background [B,3]`.

    Without a texture nothing is read of a pattern.
    """
    batch, frames = gaussians.means.shape[:2]
    channels = torch.cat([gaussians.colors, gaussians.features], dim=-1)
    if texture is not None:
        now = image_places(gaussians.means.detach(), intrinsics, world_to_camera, (size, size))
        seen = texture.seen[:, None, :, None].expand(-1, frames, -1, -1)
        trust, part = (value[:, None, :, None] for value in (texture.trust, texture.part))
        moved = (texture.places[:, None] - now) * seen
        beyond = _pattern_channels(pattern, now)
        channels = torch.cat([channels, *beyond, moved, seen, part.expand_as(seen), seen * trust], dim=-1)
    result = rasterize(
        gaussians.means.flatten(0, 1),
        gaussians.quats.flatten(0, 1),
        gaussians.scales.flatten(0, 1),
        gaussians.opacities.flatten(0, 1),
        channels.flatten(0, 1),
        intrinsics.flatten(0, 1),
        world_to_camera.flatten(0, 1),
        width=size,
        height=size,
    )
    image = result.image.permute(0, 3, 1, 2).unflatten(0, (batch, frames))
    alpha = result.alpha.permute(0, 3, 1, 2).unflatten(0, (batch, frames))
    rgb = image[:, :, :3] + background[:, None, :, None, None] * (1 - alpha)
    if texture is None:
        return SplatMaps(rgb, alpha, image[:, :, 3:], textured=rgb, seen=torch.zeros_like(alpha), coverage=alpha)
    widths = [gaussians.features.shape[-1], *(3 for _ in beyond), 2, 1, 1, 1]
    features, *beyond, flow, shown, part, trusted = image[:, :, 3:].split(widths, dim=2)
    moved, shown_still = flow.detach(), shown.detach()
    flow = moved / shown_still.clamp_min(1e-4)
    # Between pixel centres bilinear weights blur: of the finest octave 3 to 4 dB are lost, with cubic ones 2 to 3.
    pixels = read_photo(texture.photo, flow, "bicubic").clamp(0, 1)
    where = read_photo(torch.cat([texture.mask, texture.photo_part], dim=1), flow, "bilinear")
    inside, read_part = where.split(1, dim=2)
    seen = _share_of_photo(shown, trusted, alpha)
    # The flow leads past a part's end there (a lip's, a lid's, the chin's), to what lay beside it in the photo only:
    # the teeth of a mouth that has closed since.
    # All Gaussians count for the part in front, seen or not: teeth that no photo showed are no lips.
    between = (read_part - _mean_part(part.detach(), alpha.detach())).abs()
    seen = seen * ((OTHER_PART - between) / (OTHER_PART - SAME_PART)).clamp(0, 1)
    # The photo was matted over the same background: where the flow leads out of the person, the background stands.
    coverage = torch.lerp(alpha, inside, seen)
    layers = Layers(moved[:, :, None], shown_still[:, :, None], seen.detach()[:, :, None])
    below = _pattern_layers(pattern, beyond, alpha)
    textured = torch.lerp(_with_pattern(rgb, pattern, below), pixels, seen)
    return SplatMaps(rgb, alpha, features, textured, seen, coverage, layers, below)


@full_precision
def splat_photos(
    gaussians: Gaussians,
    intrinsics: Tensor,
    world_to_camera: Tensor,
    size: int,
    background: Tensor,
    textures: Texture,
    shares: Tensor,
    pattern: Pattern | None = None,
) -> SplatMaps:
    """`splat` with textures of K photos `[B,K,...]`, of which each has `shares [B,T,K,N]` in each Gaussian.

    Each pixel is a mean of the photos' pixels, mostly of the one with the greatest share, among those that show the
    part of the body that the frame asks for.
    """
    (batch, frames), count = gaussians.means.shape[:2], shares.shape[2]
    now = image_places(gaussians.means.detach(), intrinsics, world_to_camera, (size, size))
    part = textures.part[:, :1, :, None].expand(-1, frames, -1, -1)
    anywhere = textures.seen.amax(dim=1)[:, None, :, None].expand(-1, frames, -1, -1)
    weight = shares[..., None]
    moved = (textures.places[:, None] - now[:, :, None]) * weight
    photo_channels = torch.cat([moved, weight, weight * textures.trust[:, None, ..., None]], dim=-1)  # [B,T,K,N,4]
    beyond = _pattern_channels(pattern, now)
    channels = [gaussians.colors, gaussians.features, *beyond, part, anywhere, *photo_channels.unbind(2)]
    result = rasterize(
        gaussians.means.flatten(0, 1),
        gaussians.quats.flatten(0, 1),
        gaussians.scales.flatten(0, 1),
        gaussians.opacities.flatten(0, 1),
        torch.cat(channels, dim=-1).flatten(0, 1),
        intrinsics.flatten(0, 1),
        world_to_camera.flatten(0, 1),
        width=size,
        height=size,
    )
    image = result.image.permute(0, 3, 1, 2).unflatten(0, (batch, frames))
    alpha = result.alpha.permute(0, 3, 1, 2).unflatten(0, (batch, frames))
    widths = [3, gaussians.features.shape[-1], *(3 for _ in beyond), 1, 1, 4 * count]
    colors, features, *beyond, part, shown, maps = image.split(widths, dim=2)
    rgb = colors + background[:, None, :, None, None] * (1 - alpha)
    moved, weight, trusted = maps.unflatten(2, (count, 4)).split([2, 1, 1], dim=3)  # [B,T,K,.,H,W]
    near_weight, near_trusted = (_near(value.flatten(0, 2)).view_as(value) for value in (weight, trusted))
    front = _mean_part(part.detach(), alpha.detach())
    agreeing, pixels, inside = [], [], []
    for k in range(count):
        flow = (moved[:, :, k] / weight[:, :, k].clamp_min(1e-4)).detach()
        pixels.append(read_photo(textures.photo[:, k], flow, "bicubic").clamp(0, 1))
        where = read_photo(torch.cat([textures.mask[:, k], textures.photo_part[:, k]], dim=1), flow, "bilinear")
        matte, read_part = where.split(1, dim=2)
        inside.append(matte)
        agrees = ((OTHER_PART - (read_part - front).abs()) / (OTHER_PART - SAME_PART)).clamp(0, 1)
        agreeing.append(near_weight[:, :, k] * agrees)
    total, weighed = near_weight.sum(dim=2).clamp_min(1e-4), torch.stack(agreeing, dim=2)
    fraction = (weighed / weighed.amax(dim=2, keepdim=True).clamp_min(1e-4)) ** SHARPNESS
    fraction = fraction / fraction.sum(dim=2, keepdim=True).clamp_min(1e-4)
    trust = near_trusted / near_weight.clamp_min(1e-4)
    whole = covered_by_photo(shown, alpha) * (alpha / FULL_ALPHA).clamp(0, 1)
    whole = whole * (weighed.sum(dim=2) / (LEAST_AGREEING * total)).clamp(0, 1)
    share = fraction * trust * whole[:, :, None]
    seen = share.sum(dim=2)
    below = _pattern_layers(pattern, beyond, alpha)
    textured = _with_pattern(rgb, pattern, below) * (1 - seen) + (share * torch.stack(pixels, dim=2)).sum(dim=2)
    coverage = alpha * (1 - seen) + (share * torch.stack(inside, dim=2)).sum(dim=2)
    layers = Layers(moved.detach(), weight.detach(), share.detach())
    return SplatMaps(rgb, alpha, features, textured, seen, coverage, layers, below)


def view_directions(posed: Gaussians, world_to_camera: Tensor) -> Tensor:
    """Unit vectors `[...,N,3]` from each Gaussian to the cameras `[...,4,4]`, in the Gaussian's own axes."""
    eye = -(world_to_camera[..., :3, :3].mT @ world_to_camera[..., :3, 3:])[..., 0]
    towards = F.normalize(eye[..., None, :] - posed.means, dim=-1)
    turned = quaternion_multiply(
        quaternion_multiply(posed.quats * posed.quats.new_tensor([1, -1, -1, -1]), F.pad(towards, (1, 0))), posed.quats
    )
    return turned[..., 1:]


def stacked(textures: list[Texture]) -> Texture:
    """Textures `[B,...]` as one `[B,K,...]`."""
    names = [f.name for f in fields(Texture)]
    return Texture(**{name: torch.stack([getattr(texture, name) for texture in textures], dim=1) for name in names})


def _mean_part(part: Tensor, shown: Tensor) -> Tensor:
    """Part code of some Gaussians, from the splats of their codes `part` and of ones, `shown`."""
    return part / shown.clamp_min(1e-3)


@full_precision
def shown_part(
    posed: Gaussians, seen: Tensor, part: Tensor, intrinsics: Tensor, world_to_camera: Tensor, size: tuple[int, int]
) -> Tensor:
    """The part code that a photo shows at each pixel, `[B,1,H,W]`; 0 where it shows no Gaussian.

    Args:
        posed: as in the photo, `[B,N,...]`.
        seen: `[B,N]` as `Texture.seen`.
        part: `[B,N]` as `Texture.part`.
        intrinsics: `[B,3,3]` px of the photo.
        world_to_camera: `[B,4,4]`.
        size: height and width of the photo.
    """
    maps = rasterize(
        posed.means,
        posed.quats,
        posed.scales,
        posed.opacities,
        torch.stack([seen * part, seen], dim=-1),
        intrinsics,
        world_to_camera,
        width=size[1],
        height=size[0],
    ).image.permute(0, 3, 1, 2)
    return _mean_part(maps[:, :1], maps[:, 1:])


def with_places(texture: Texture, posed: Gaussians, intrinsics: Tensor, world_to_camera: Tensor) -> Texture:
    """The texture of Gaussians that have moved: where they, `posed [B,N,...]` as in the photo, now lie in it."""
    size = (texture.photo.shape[-2], texture.photo.shape[-1])
    places = image_places(posed.means, intrinsics, world_to_camera, size)
    part = shown_part(posed, texture.seen, texture.part, intrinsics, world_to_camera, size)
    return replace(texture, places=places, photo_part=part)


def _pattern_channels(pattern: Pattern | None, now: Tensor) -> list[Tensor]:
    """What to splat of a pattern, `[B,T,N,3]`: motion from places `now [B,T,N,2]` to the pattern's, and its weight."""
    if pattern is None:
        return []
    beside = now.shape[2] - pattern.weight.shape[1]  # loose and surface Gaussians are what the photo shows
    places, weight = F.pad(pattern.places, (0, 0, 0, beside))[:, None], F.pad(pattern.weight, (0, beside))
    weight = weight[:, None, :, None].expand(-1, now.shape[1], -1, -1)
    return [torch.cat([(places - now) * weight, weight], dim=-1)]


def _pattern_layers(pattern: Pattern | None, beyond: list[Tensor], alpha: Tensor) -> Layers | None:
    """How the pattern is read, by what was splatted of it: where it stands before all else, but for narrow rims."""
    if pattern is None:
        return None
    moved, weight = beyond[0].detach().split([2, 1], dim=2)
    side = 2 * round(LEAST_PATTERN * alpha.shape[-1]) + 1
    share = covered_by_photo(weight, alpha).flatten(0, 1)
    core = -F.max_pool2d(-share, side, 1, side // 2)
    share = torch.minimum(share, F.max_pool2d(core, side, 1, side // 2)).view_as(alpha) * alpha.detach()
    return Layers(moved[:, :, None], weight[:, :, None], share[:, :, None])


def _with_pattern(rgb: Tensor, pattern: Pattern | None, layers: Layers | None) -> Tensor:
    """`rgb [B,T,3,H,W]` with the pattern; the silhouette stays the Gaussians'."""
    if pattern is None or layers is None:
        return rgb
    flow = layers.moved[:, :, 0] / layers.weight[:, :, 0].clamp_min(1e-4)
    return torch.lerp(rgb, read_photo(pattern.picture, flow, "bicubic", REACH).clamp(0, 1), layers.share[:, :, 0])


def _share_of_photo(shown: Tensor, trusted: Tensor, alpha: Tensor) -> Tensor:
    """How far the photo stands for each pixel `[B,T,1,H,W]`: whether it shows the front surface, times its trust there.

    Args:
        shown: splat of `Texture.seen`, `[B,T,1,H,W]` as the others.
        trusted: splat of `Texture.seen` times `Texture.trust`.
        alpha: splat of ones.
    """
    near_shown, near_trusted = (_near(value.flatten(0, 1)).view_as(value) for value in (shown, trusted))
    is_there = (alpha / FULL_ALPHA).clamp(0, 1)
    return is_there * covered_by_photo(shown, alpha) * near_trusted / near_shown.clamp_min(1e-4)


def covered_by_photo(shown: Tensor, alpha: Tensor) -> Tensor:
    """Share of what each pixel `[...,1,H,W]` shows that the photo shows too.

    What lies behind shimmers through between the front Gaussians, which are pixels apart, and is mostly not in the
    photo. The share of shown Gaussians is therefore taken over a neighbourhood, and from a half on it counts as whole.

    Args:
        shown: splat of `Texture.seen`.
        alpha: splat of ones.
    """
    near_shown, near_alpha = (_near(value.detach().flatten(0, -4)).view_as(value) for value in (shown, alpha))
    return ((near_shown / near_alpha.clamp_min(1e-4) - 0.2) / 0.3).clamp(0, 1)


def _near(maps: Tensor) -> Tensor:
    """Mean of `[M,1,H,W]` over 3 % of the picture's side around each pixel."""
    side = 2 * round(maps.shape[-1] / 64) + 1
    return F.avg_pool2d(maps, side, 1, side // 2)


def image_places(means: Tensor, intrinsics: Tensor, world_to_camera: Tensor, size: tuple[int, int]) -> Tensor:
    """Where `means [...,N,3]` lie in a picture of `size` (height, width): `[...,N,2]` as `grid_sample` counts."""
    inside = means @ world_to_camera[..., :3, :3].mT + world_to_camera[..., None, :3, 3]
    pixels = inside @ intrinsics.mT
    return pixels[..., :2] / pixels[..., 2:].clamp_min(1e-3) / pixels.new_tensor([size[1], size[0]]) * 2 - 1


def read_photo(photo: Tensor, flow: Tensor, mode: str, reach: float = 1.0) -> Tensor:
    """Pixels of `photo [B,D,H,W]` to which `flow [B,T,2,h,w]` leads -> `[B,T,D,h,w]`, borders repeated.

    The photo covers places from -`reach` to `reach`.

    `mode`: "bilinear", or "bicubic" (Keys, "Cubic convolution interpolation", 1981), which overshoots at edges.
    """
    frames, (height, width) = flow.shape[1], flow.shape[-2:]
    rows, columns = (2 * torch.arange(n, device=flow.device, dtype=flow.dtype) / n + 1 / n - 1 for n in (height, width))
    start = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    grid = (start + flow.permute(0, 1, 3, 4, 2).flatten(0, 1)) / reach
    repeated = photo[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
    read = F.grid_sample(repeated, grid, mode=mode, padding_mode="border", align_corners=False)
    return read.unflatten(0, (-1, frames))
