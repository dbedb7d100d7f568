"""The avatar: canonical Gaussians on the template and beside it, posed by skinning, drawn by a camera."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from visa.networks.body import BodyModel, BodyParams, skin
from visa.networks.compositing import splat, splat_photos
from visa.networks.gaussians import Gaussians, concatenated
from visa.networks.joints import HEAD, HEAD_JOINTS
from visa.networks.lids import Lids, lids_of
from visa.networks.lips import Lips, lips_of
from visa.networks.precision import full_precision
from visa.networks.rasterizer.cpu import riders, skinned
from visa.networks.rasterizer.skinning import Riders
from visa.networks.rotation import quaternion_multiply
from visa.networks.skinning import blended_transforms, blended_turn, joint_turns, mix_corners, unposed
from visa.networks.splat_maps import SplatMaps
from visa.networks.texture import Detail, Pattern, PhotoSet, Texture, view_directions
from visa.networks.view import View

# B people, T frames, N Gaussians of the template, M loose ones, S on its surface.


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
class Carrier:
    """What of a body model carries an avatar's Gaussians.

    Attributes:
        body: the body model.
        model: its vertices that carry the template's Gaussians, one each.
        lids: of those Gaussians.
        lips: of those Gaussians.
        others: `[B,.,55]` skinning weights of the loose Gaussians and of those on triangles, of what there is.
        surface: the latter; None has none.
        people: B.
    """

    body: BodyModel
    model: BodyModel
    lids: Lids
    lips: Lips
    others: list[Tensor]
    surface: Surface | None
    people: int

    def moved(self, canonical: Gaussians, transforms: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """Posed means `[B,T,N+M+S,3]` and rotations `[B,T,N+M+S,4]`.

        On the CPU, where no gradient is asked for, in one pass over the Gaussians.

        Args:
            canonical: `[B,N+M+S,...]`.
            transforms: `[B,T,55,3,4]` of the joints, from the T-pose to the pose.
            added: `[B,T,N,3]` what expressions add to the template's Gaussians in the T-pose.
        """
        joints, start = joint_turns(transforms), canonical.means
        asked = (start, canonical.quats, transforms, added)
        needs_grad = torch.is_grad_enabled() and any(value.requires_grad for value in asked)
        if start.is_cuda or start.dtype != torch.float32 or needs_grad:
            return self.moved_by_tensors(canonical, transforms, added)
        table = torch.cat([transforms.flatten(-2), joints], dim=-1)
        return skinned(self._riders, table, added, start, canonical.quats)

    @cached_property
    def _riders(self) -> Riders:
        template, surface = self.model.lbs_weights, self.surface
        weights = [template.expand(self.people, -1, -1), *self.others]
        return riders(weights) if surface is None else riders(weights, surface.corners, surface.corner_weights)

    def moved_by_tensors(self, canonical: Gaussians, transforms: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """`moved` on any device, with gradients: what its kernel is tested against."""
        joints, first = joint_turns(transforms), added.shape[2]
        start, template = canonical.means[:, None], self.model.lbs_weights
        means = [skin(start[:, :, :first] + added, template, transforms)]
        turns = [blended_turn(template, joints).expand(*joints.shape[:2], -1, -1)]
        for number, weights in enumerate(self.others):
            rest = start[:, :, first : first + weights.shape[1]]
            if self.surface is not None and number == len(self.others) - 1:
                rest = rest + self.surface.mixed(added)
            blended = blended_transforms(weights[:, None], transforms)
            means.append((blended[..., :3] * rest[..., None, :]).sum(-1) + blended[..., 3])
            turns.append(blended_turn(weights[:, None], joints))
            first += weights.shape[1]
        return torch.cat(means, dim=2), quaternion_multiply(torch.cat(turns, dim=2), canonical.quats[:, None])


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
    # How the body model that posed the avatar last carries it: found once, not at every call.
    _carriers: list[Carrier] = field(default_factory=list, init=False, repr=False, compare=False)

    @torch.inference_mode(False)  # it is kept, and a fit, which needs gradients, may be the next to read it
    def _carrier(self, body: BodyModel) -> Carrier:
        """How `body` carries the Gaussians."""
        if not self._carriers or self._carriers[0].body is not body:
            ids, surface = self.vertex_ids, self.surface
            model = body.subset(ids)
            others = [] if self.loose is None else [self.loose.skin_weights]
            if surface is not None:
                others.append(surface.mixed(model.lbs_weights[None, None])[:, 0])
            lids, lips, people = lids_of(body, ids), lips_of(body, ids), len(self.betas)
            self._carriers[:] = [Carrier(body, model, lids, lips, others, surface, people)]
        return self._carriers[0]

    @cached_property
    def pictures(self) -> Detail:
        """Its photos and pattern as it was made of them; ValueError without a texture."""
        texture, pattern = self.texture, None if self.pattern is None else self.pattern.picture
        if texture is None:
            raise ValueError("this avatar has no photo: make it of one")
        if isinstance(texture, PhotoSet):
            return Detail(texture.textures.photo, texture.textures.mask, pattern)
        return Detail(texture.photo[:, None], texture.mask[:, None], pattern)

    def canonical(self) -> Gaussians:
        """All Gaussians in the T-pose, `[B,N+M+S,...]`: the template's, the loose ones, those on its surface."""
        parts = [self.gaussians, *(part.gaussians for part in (self.loose, self.surface) if part is not None)]
        return parts[0] if len(parts) == 1 else concatenated(parts)

    def without_features(self) -> Avatar:
        """The same pictures for less: only the shader reads the Gaussians' features."""
        gaussians = self.canonical()
        return self.with_canonical(replace(gaussians, features=gaussians.features[..., :0]))

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
        carrier = self._carrier(body)
        shaped = replace(params, betas=self.betas[:, None].expand(batch, frames, -1))
        transforms = carrier.model.joint_transforms(shaped)[..., :3, :]
        weights = [carrier.model.lbs_weights, *(weights[:, None] for weights in carrier.others)]
        parts = [blended_transforms(weight, transforms)[..., :3] for weight in weights]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-3)

    def unposed_surface(self, posed: Surface, body: BodyModel, params: BodyParams) -> Surface:
        """Take Gaussians on the template's triangles back to the T-pose: the inverse of what `pose` will do to them.

        Args:
            posed: as in a pose, `[B,S,...]`.
            body: the body model.
            params: the pose, `[B]`.
        """
        model = self._carrier(body).model
        transforms, added = model.motion(replace(params, betas=self.betas))
        weights = posed.mixed(model.lbs_weights[None, None])[:, 0]
        rest = unposed(posed.gaussians, weights, transforms)
        return replace(posed, gaussians=replace(rest, means=rest.means - posed.mixed(added[:, None])[:, 0]))

    @full_precision
    def pose(self, body: BodyModel, params: BodyParams) -> Gaussians:
        """Move the Gaussians by expression and skinning.

        Means follow the blended affine transforms (as LBS moves vertices); rotations follow the blended joint
        quaternions. Gaussians of lids grow as the skin between them is stretched (`Lids`), those of lips as they
        part, which light the teeth (`Lips`).

        Args:
            body: the body model.
            params: `[B,T,...]`; their betas are replaced by the avatar's own.

        Returns:
            Gaussians `[B,T,...]` in the order of `canonical`.
        """
        batch, frames = params.expression.shape[:2]
        carrier, canonical = self._carrier(body), self.canonical()
        lids, lips = carrier.lids, carrier.lips
        shaped = replace(params, betas=self.betas[:, None].expand(batch, frames, -1))
        means, quats = carrier.moved(canonical, *carrier.model.motion(shaped))
        still = _repeat(canonical, frames)
        scales = lips.opened(lids.stretched(canonical, means), canonical, means)
        return replace(still, means=means, quats=quats, scales=scales, colors=lips.lit(still.colors, canonical, means))

    def render(self, body: BodyModel, view: View) -> SplatMaps:
        """Pose and splat.

        Args:
            body: the body model.
            view: `[B,T]` poses and cameras.
        """
        return self.drawn(body, view, self.pose(body, view.body))

    def drawn(self, body: BodyModel, view: View, posed: Gaussians, is_composed: bool = True) -> SplatMaps:
        """Splat what `pose` gave for the view's poses: for pictures of several sizes it is posed once.

        Args:
            body: the body model.
            view: `[B,T]` poses and cameras.
            posed: `[B,T,N+M+S,...]`.
            is_composed: whether the photos are laid over the colours; maps that are enlarged need no more.
        """
        if not isinstance(self.texture, PhotoSet):
            part = None if self.texture is None else self.part(body, self.texture.part[:, None], posed.means)
            pictures = None if self.texture is None else self.pictures
            return splat(posed, view, self.background, self.texture, self.pattern, part, pictures, is_composed)
        positions = self.head_positions(body, view.body, posed.means)
        shares = self.texture.shares(view_directions(posed, view.world_to_camera), positions)
        textures = self.texture.textures
        part = self.part(body, textures.part[:, :1], posed.means)
        shares = shares.detach()
        return splat_photos(
            posed, view, self.background, textures, shares, self.pattern, part, self.pictures, is_composed
        )

    def part(self, body: BodyModel, part: Tensor, means: Tensor) -> Tensor:
        """Part codes `[...,N+M+S]` in a pose, as `Lids.part` and `Lips.part`: of Gaussians at `means [...,N+M+S,3]`."""
        carrier = self._carrier(body)
        return carrier.lips.part(carrier.lids.part(part, means), means)

    def head_positions(self, body: BodyModel, params: BodyParams, means: Tensor) -> Tensor:
        """Posed `means [B,T,N+M+S,3]` in the axes of the posed head; zeros for Gaussians that it does not carry."""
        batch, frames = means.shape[:2]
        carrier = self._carrier(body)
        shaped = replace(params, betas=self.betas[:, None].expand(batch, frames, -1))
        head = carrier.model.joint_transforms(shaped)[..., HEAD, :3, :]
        inside = (means - head[..., None, :, 3]) @ head[..., :3]
        weights = torch.cat([carrier.model.lbs_weights.expand(batch, -1, -1), *carrier.others], dim=1)
        return inside * weights[:, None, :, list(HEAD_JOINTS)].sum(-1, keepdim=True)


def _repeat(gaussians: Gaussians, frames: int) -> Gaussians:
    """`[B,N,...]` -> `[B,T,N,...]`, without a copy."""
    return gaussians.map(lambda value: value[:, None].expand(-1, frames, *value.shape[1:]))
