"""The last step of reconstruction: the avatar's Gaussians are fitted to the photo that it was made of.

A feed-forward network gives an avatar in one pass, near the person but not the person. Drawn with the photo's own pose
and camera it should be the photo; some tens of Adam steps through the rasterizer bring it there, without any training.
What the photo does not show follows what it shows (colour spreads over the template's surface) or stays where it was.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from tqdm import tqdm

from networks.gaussians import Avatar, Gaussians, copied, quaternion_multiply, with_places
from networks.precision import full_precision
from networks.rasterizer import rasterize

if TYPE_CHECKING:
    from networks.reconstructor import GaussianReconstructor, Photo

# B people, N Gaussians of the template, M loose ones.

_MOST_OPAQUE = 0.99  # of a start, so that its logit can still move
_LEAST_OPAQUE = 1e-3  # below it a Gaussian is not drawn, at the start or ever
_COOL_DOWN = 0.3  # share of the steps over which the rates fall to nothing


@dataclass
class FitOptions:
    """How an avatar is fitted to its photo; chosen on the six people of `benchmarks.fit`.

    Attributes:
        steps: of Adam; 0 leaves the feed-forward avatar as it is.
        opacity_rate, color_rate, scale_rate, offset_rate, rotation_rate: learning rates of the opacity's logit, the
            colour, the logarithm of the scale, the place (m) and the rotation (rad).
        alpha_weight: of the L1 of alpha and matte, beside that of colour.
        ssim_weight: of 1 - SSIM, as if each pixel had an error of that much.
        opacity_pull, color_pull, scale_pull, offset_pull, rotation_pull: weight of the squared change of each Gaussian,
            against the summed error of all pixels: what the photo barely shows stays where it is.
    """

    steps: int = 80
    opacity_rate: float = 0.05
    color_rate: float = 0.02
    scale_rate: float = 0.03
    offset_rate: float = 3e-4
    rotation_rate: float = 0.02
    alpha_weight: float = 1.0
    ssim_weight: float = 0.5
    opacity_pull: float = 0.1
    color_pull: float = 0.1
    scale_pull: float = 0.02
    offset_pull: float = 60.0
    rotation_pull: float = 0.1


_CHANGES = ("opacity", "color", "scale", "offset", "rotation")


class _Fit:
    """One fit: the start, the changes that are learned, and what the photo says.

    Args:
        reconstructor: made the avatar; its template says what bounds a Gaussian and where colour spreads.
        avatar: the start, `[B,...]`.
        photo: what it was made of.
        options: see `FitOptions`.
    """

    def __init__(self, reconstructor: GaussianReconstructor, avatar: Avatar, photo: Photo, options: FitOptions) -> None:
        self.reconstructor, self.avatar, self.photo, self.options = reconstructor, avatar, photo, options
        assert avatar.texture is not None
        params = photo.body.map(lambda value: value[:, None])
        self.start, self.posed = avatar.canonical(), _first(avatar.pose(reconstructor.body, params))
        self.moves = avatar.linear_part(reconstructor.body, params)[:, 0]  # of a change in the T-pose, [B,N+M,3,3]
        self.seen = avatar.texture.seen
        self.is_drawn = self.start.opacities >= _LEAST_OPAQUE
        self.logit = torch.logit(self.start.opacities.clamp(_LEAST_OPAQUE, _MOST_OPAQUE))
        count = avatar.gaussians.means.shape[1]
        least = torch.minimum(self.start.opacities[:, :count], reconstructor.least_opacity)
        self.lowest = torch.logit(least.clamp(_LEAST_OPAQUE, _MOST_OPAQUE)) - self.logit[:, :count]
        self.rest = reconstructor.anchors(avatar.betas)
        self.smallest = torch.where(reconstructor.is_lid, 0.0, -torch.inf)[
            :, None
        ]  # of the change of a scale's logarithm
        shapes = {"opacity": self.logit, "color": self.start.colors} | dict.fromkeys(_CHANGES[2:], self.start.means)
        self.changes = {name: torch.zeros_like(shapes[name]).requires_grad_() for name in _CHANGES}
        self.is_finite = torch.ones(len(self.rest), dtype=torch.bool, device=self.rest.device)

    def changed(self, base: Gaussians, moves: Tensor | None = None) -> Gaussians:
        """`base` (the start in the T-pose, or as posed with the `moves` of a change) with the changes so far."""
        change = self.changes
        offset = change["offset"] if moves is None else (moves @ change["offset"][..., None])[..., 0]
        turn = torch.cat([torch.ones_like(change["opacity"])[..., None], 0.5 * change["rotation"]], dim=-1)
        return Gaussians(
            means=base.means + offset,
            quats=quaternion_multiply(base.quats, F.normalize(turn, dim=-1)),
            scales=base.scales * change["scale"].exp(),
            opacities=torch.sigmoid(self.logit + change["opacity"]) * self.is_drawn,
            colors=base.colors + change["color"],
            features=base.features,
        )

    def loss(self) -> Tensor:
        """`[B]` summed L1 of colour and alpha in the photo's own view and unlikeness, with the pull to the start."""
        photo, options = self.photo, self.options
        now = self.changed(self.posed, self.moves)
        camera, size = (photo.intrinsics, photo.world_to_camera), photo.image.shape[-2:]
        maps = rasterize(
            now.means, now.quats, now.scales, now.opacities, now.colors, *camera, width=size[1], height=size[0]
        )
        image, alpha = (value.permute(0, 3, 1, 2) for value in (maps.image, maps.alpha))
        image = image + photo.background[:, :, None, None] * (1 - alpha)
        error = (image - photo.image).abs().mean(dim=1) + options.alpha_weight * (alpha - photo.mask).abs()[:, 0]
        pulls = [getattr(options, f"{name}_pull") * self.changes[name].square().flatten(1).sum(1) for name in _CHANGES]
        similarity = structural_similarity_index_measure(image, photo.image, data_range=1.0, reduction="none")
        assert isinstance(similarity, Tensor)
        unlike = options.ssim_weight * error[0].numel() * (1 - similarity)
        return error.flatten(1).sum(dim=1) + unlike + torch.stack(pulls).sum(dim=0)

    @torch.no_grad()
    def bound(self) -> None:
        """Keep each Gaussian to its part of the body, lids and face opaque, and colours in [0,1].

        Lids do not shrink: what a photo of open eyes fits so would not cover them shut.
        """
        count, change = self.rest.shape[1], self.changes
        change["color"].copy_((self.start.colors + change["color"]).clamp(0, 1) - self.start.colors)
        away = self.start.means[:, :count] + change["offset"][:, :count] - self.rest
        far = away.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        within = (self.reconstructor.offset_bound[:, None] / far).clamp(max=1)
        change["offset"][:, :count] += away * (within - 1)
        change["opacity"][:, :count].clamp_(min=self.lowest)
        change["scale"][:, :count].clamp_(min=self.smallest)

    @torch.no_grad()
    def drop_diverged(self) -> None:
        """Take people whose Gaussians are no numbers any more back to the start: the rest of the batch goes on."""
        values = vars(self.changed(self.start)).values()
        self.is_finite &= torch.stack([torch.isfinite(value).flatten(1).all(dim=1) for value in values]).all(dim=0)
        for change in self.changes.values():
            change[~self.is_finite] = 0.0

    def run(self, show_progress: bool) -> Avatar:
        """Fit, and put the result together."""
        options = self.options
        rates = {name: getattr(options, f"{name}_rate") for name in _CHANGES}
        groups = [{"params": [self.changes[name]], "lr": rates[name]} for name in _CHANGES]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        first = last = torch.zeros(())
        for step in tqdm(range(options.steps), desc="fit", leave=False, disable=not show_progress):
            cool = min(1.0, (options.steps - step) / (_COOL_DOWN * options.steps))
            for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
                group["lr"] = rate * cool
            optimizer.zero_grad()
            last = self.loss()
            if step == 0:
                first = last.detach()
            last.sum().backward()
            grad = self.changes["color"].grad
            assert grad is not None
            grad *= self.seen[..., None]  # what the photo does not show takes its colour from its neighbours
            optimizer.step()
            self.bound()
            self.drop_diverged()
        return self._result(first, last.detach())

    @torch.no_grad()
    def _result(self, first: Tensor, last: Tensor) -> Avatar:
        count = self.rest.shape[1]
        color = self.changes["color"]
        color[:, :count] = self.reconstructor.diffuse(color[:, :count], self.seen[:, :count])
        fitted = self.changed(self.start)
        is_better = self.is_finite & (last <= first)
        if not bool(is_better.all()):
            warnings.warn(
                f"the fit to the photo diverged for {int((~is_better).sum())} of {len(is_better)} avatars, which stay "
                "as the network gave them: lower the rates of `fit`, or set fit.steps to 0",
                stacklevel=2,
            )
        kept = Gaussians(
            **{
                name: torch.where(is_better.view(-1, *[1] * (value.dim() - 1)), value, getattr(self.start, name))
                for name, value in vars(fitted).items()
            }
        )
        avatar = self.avatar.with_canonical(kept)
        posed = _first(avatar.pose(self.reconstructor.body, self.photo.body.map(lambda value: value[:, None])))
        assert avatar.texture is not None
        texture = with_places(avatar.texture, posed, self.photo.intrinsics, self.photo.world_to_camera)
        return replace(avatar, texture=texture)


def _first(gaussians: Gaussians) -> Gaussians:
    """Of `[B,T,...]` the first frame."""
    return Gaussians(**{name: value[:, 0] for name, value in vars(gaussians).items()})


@full_precision
def fit_avatar(
    reconstructor: GaussianReconstructor,
    avatar: Avatar,
    photo: Photo,
    options: FitOptions,
    show_progress: bool = False,
) -> Avatar:
    """Fit an avatar to its photo.

    People of a batch are fitted apart. The result is the same for the same input, bit for bit on a CPU.

    Args:
        reconstructor: the network that made the avatar.
        avatar: `[B,...]` with its photo as texture.
        photo: what it was made of, `[B,...]`.
        options: rates, pulls and steps; 0 steps give the avatar back.
        show_progress: draw a bar on standard error.

    Returns:
        the fitted avatar, detached; a fit that diverged leaves the start, with a warning.
    """
    if options.steps == 0:
        return avatar
    # Also under no_grad and inference mode (predict, test): a fit needs gradients of its own.
    with torch.inference_mode(False), torch.enable_grad():
        return _Fit(reconstructor, copied(avatar), copied(photo), options).run(show_progress)
