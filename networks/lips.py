"""Lips grow as they part: found once an avatar, applied in every pose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visa.networks.anatomy import read_anatomy
from visa.networks.body import BodyModel
from visa.networks.gaussians import Gaussians
from visa.networks.joints import JAW

# B people, T frames, N Gaussians of the template, R of them where the lips touch.

FOLD_SHARE = 0.3  # of the full size, where lips touch: larger ones would reach over the gap as it opens
OPEN = 0.006  # m that the lips have parted when they have their full size


@dataclass(frozen=True)
class LipFolds:
    """Gaussians on the skin of each lip that the other one touches when the mouth is closed.

    Small ones leave gaps in a lip that an open mouth shows, and the dark of the mouth comes through them.

    Attributes:
        fold: `[R]` Gaussians of such skin.
        across: `[R]` the Gaussian of the other lip that each lies nearest to.
    """

    fold: Tensor
    across: Tensor

    def opened(self, scales: Tensor, canonical: Gaussians, means: Tensor) -> Tensor:
        """`scales [B,T,N,3]`, grown to the full size where Gaussians at `means [B,T,N,3]` have parted.

        `canonical [B,N,...]` are the Gaussians in the T-pose, whose mouth is closed.
        """
        if len(self.fold) == 0:
            return scales
        parted = (self._gap(means) - self._gap(canonical.means[:, None])) / OPEN
        growth = 1 + (1 / FOLD_SHARE - 1) * parted.clamp(0, 1)
        return scales.index_copy(2, self.fold, scales[:, :, self.fold] * growth[..., None])

    def _gap(self, means: Tensor) -> Tensor:
        """`[B,T,R]` m to the other lip."""
        return (means[:, :, self.fold] - means[:, :, self.across]).norm(dim=-1)


@torch.inference_mode(False)  # they are kept, and a fit, which needs gradients, may be the next to read them
def lip_folds(body: BodyModel, vertex_ids: Tensor) -> LipFolds:
    """Where the lips of `body` touch, among Gaussians that the vertices `vertex_ids [N]` carry."""
    fold = torch.nonzero(read_anatomy(body).is_fold.to(vertex_ids.device)[vertex_ids])[:, 0]
    if len(fold) == 0:
        return LipFolds(fold, fold)
    points, is_lower = body.v_template[vertex_ids[fold]], body.lbs_weights[vertex_ids[fold], JAW] > 0.5
    is_same = is_lower[:, None] == is_lower[None]
    return LipFolds(fold, fold[torch.cdist(points, points).masked_fill(is_same, torch.inf).argmin(dim=1)])
