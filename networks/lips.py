"""Lips grow as they part and leave the photo as they close, and teeth lie in their shade: found once an avatar."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visa.networks.anatomy import Kind, read_anatomy
from visa.networks.body import BodyModel
from visa.networks.gaussians import Gaussians
from visa.networks.joints import JAW

# B people, T frames, N Gaussians of the template, R of them where the lips touch.

FOLD_SHARE = 0.3  # of the full size, where lips touch: larger ones would reach over the gap as it opens
# A mouth as narrow as the first share of its width at rest leaves the teeth in the shade, in light from lips and
# tongue; one as wide as the second is a smile. Of nine people who talk, where their tracks have the gap of the lips.
NARROW, WIDE = 0.95, 1.25
SHADE = (0.70, 0.57, 0.52)
OPEN = 0.006  # m that the lips have parted when they have their full size
LEAVING = 1.0  # by how much the part code of closed lips differs from that of open ones
PARTED = 0.006  # m that the lips have parted when they have the code of open ones
REACH = 0.006  # m from where lips touch: there the code of skin leaves by half as much, and at 1.5 REACH by nothing


@dataclass(frozen=True)
class Lips:
    """Gaussians on the skin of each lip that the other one touches when the mouth is closed, and the teeth behind them.

    Small ones leave gaps in a lip that an open mouth shows, and the dark of the mouth comes through them. In a photo
    that smiles, the flow of a closed mouth leads from lip to lip over what lies between: teeth, and dark corners.

    Attributes:
        fold: `[R]` Gaussians of such skin.
        across: `[R]` the Gaussian of the other lip that each lies nearest to.
        corners: `[2,K]` those at each of the mouth's corners, the outermost tenth on its side; K 0 where there is none.
        teeth: `[Q]` Gaussians of teeth.
        touching: `[R]` m to `across` in the body model's closed mouth.
        near: `[M]` Gaussians of a lip and the skin around it, `fold` among them.
        of: `[M]` the number in `fold` that each lies nearest to, of its own lip.
        share: `[M]` in (0,1], by how much it goes with that one.
    """

    fold: Tensor
    across: Tensor
    corners: Tensor
    teeth: Tensor
    touching: Tensor
    near: Tensor
    of: Tensor
    share: Tensor

    def part(self, part: Tensor, means: Tensor) -> Tensor:
        """Part codes `[...,N]` of Gaussians at `means [...,N,3]`, whose codes with open lips are `part`.

        Those of lips leave the codes of open lips as they close, as `Lids.part` does.
        """
        part = part.expand(means.shape[:-1])
        if len(self.fold) == 0:
            return part
        closed = 1 - ((self._gap(means) - self.touching) / PARTED).clamp(0, 1)
        return part.index_copy(-1, self.near, part[..., self.near] - LEAVING * self.share * closed[..., self.of])

    def opened(self, scales: Tensor, canonical: Gaussians, means: Tensor) -> Tensor:
        """`scales [B,T,N,3]`, grown to the full size where Gaussians at `means [B,T,N,3]` have parted.

        `canonical [B,N,...]` are the Gaussians in the T-pose, whose mouth is closed.
        """
        if len(self.fold) == 0:
            return scales
        parted = (self._gap(means) - self._gap(canonical.means[:, None])) / OPEN
        growth = 1 + (1 / FOLD_SHARE - 1) * parted.clamp(0, 1)
        return scales.index_copy(2, self.fold, scales[:, :, self.fold] * growth[..., None])

    def lit(self, colors: Tensor, canonical: Gaussians, means: Tensor) -> Tensor:
        """Colours `[B,T,N,3]` of Gaussians at `means [B,T,N,3]`, those of teeth in the lips' shade.

        `canonical [B,N,...]` are the Gaussians in the T-pose, and `colors [B,T,N,3]` theirs, as in a smile.
        """
        if self.corners.numel() == 0 or len(self.teeth) == 0:
            return colors
        width = self._width(means) / self._width(canonical.means)[:, None].clamp_min(1e-6)
        smile = ((width - NARROW) / (WIDE - NARROW)).clamp(0, 1)[..., None, None]
        light = torch.lerp(colors.new_tensor(SHADE), colors.new_tensor(1.0), smile)
        return colors.index_copy(2, self.teeth, colors[:, :, self.teeth] * light)

    def _gap(self, means: Tensor) -> Tensor:
        """`[...,R]` m to the other lip, at `means [...,N,3]`."""
        return (means[..., self.fold, :] - means[..., self.across, :]).norm(dim=-1)

    def _width(self, means: Tensor) -> Tensor:
        """`[...]` m from corner to corner of the mouth, at `means [...,N,3]`."""
        first, second = means[..., self.corners, :].mean(dim=-2).unbind(-2)
        return (first - second).norm(dim=-1)


@torch.inference_mode(False)  # they are kept, and a fit, which needs gradients, may be the next to read them
def lips_of(body: BodyModel, vertex_ids: Tensor) -> Lips:
    """Where the lips of `body` touch, and its teeth, among Gaussians that the vertices `vertex_ids [N]` carry."""
    anatomy = read_anatomy(body)
    fold = torch.nonzero(anatomy.is_fold.to(vertex_ids.device)[vertex_ids])[:, 0]
    teeth = torch.nonzero(anatomy.kind.to(vertex_ids.device)[vertex_ids] == int(Kind.TEETH))[:, 0]
    if len(fold) == 0:
        none = torch.zeros(0, device=vertex_ids.device)
        return Lips(fold, fold, fold.expand(2, 0), teeth, none, fold, fold, none)
    rest, is_low = body.v_template[vertex_ids], body.lbs_weights[vertex_ids, JAW] > 0.5
    points, is_lower = rest[fold], is_low[fold]
    is_same = is_lower[:, None] == is_lower[None]
    across = fold[torch.cdist(points, points).masked_fill(is_same, torch.inf).argmin(dim=1)]
    outward, count = points[:, 0].argsort(), max(1, len(fold) // 20)  # of both sides
    corners = fold[torch.stack([outward[:count], outward[-count:]])]
    is_skin = (anatomy.kind <= int(Kind.RIM)) & ~anatomy.is_lid & ~anatomy.is_mouth
    skin = torch.nonzero(is_skin.to(vertex_ids.device)[vertex_ids])[:, 0]
    is_other = is_low[skin, None] != is_lower[None]
    far, of = torch.cdist(rest[skin], points).masked_fill(is_other, torch.inf).min(dim=1)
    share = (1.5 - far / REACH).clamp(0, 1)
    is_near = share > 0
    touching = (points - rest[across]).norm(dim=-1)
    return Lips(fold, across, corners, teeth, touching, skin[is_near], of[is_near], share[is_near])
