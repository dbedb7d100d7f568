"""The last step of reconstruction: the avatar's Gaussians are fitted to the photo that it was made of.

A feed-forward network gives an avatar in one pass, near the person but not the person. Drawn with the photo's own pose
and camera it should be the photo; some tens of Adam steps through the rasterizer bring it there, without any training.
What the photo does not show follows what it shows (colour spreads over the template's surface) or stays where it was.

Further photos of the person join in: two photos a step, and each further one's tracked pose is corrected together with
the avatar, for a millimetre between two photos' poses is a blurred face.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from visa.losses.image import StructuralSimilarity
from visa.networks.anatomy import Kind, Region
from visa.networks.avatar import Avatar
from visa.networks.gaussians import Gaussians
from visa.networks.joints import HEAD, NECK
from visa.networks.photo import Photo
from visa.networks.photo_colour import colour_sources, diffused
from visa.networks.photo_set import own_shape, shown_by, with_photos
from visa.networks.precision import full_precision
from visa.networks.projection import project
from visa.networks.rasterizer import rasterize
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.records import copied
from visa.networks.rotation import quaternion_multiply
from visa.networks.texture import Texture, with_places

# B people, N Gaussians of the template, M loose ones.

_MOST_OPAQUE = 0.99  # of a start, so that its logit can still move
_LEAST_OPAQUE = 1e-3  # below it a Gaussian is not drawn, at the start or ever
_MOST_SPREAD = 0.03  # of a change of colour: what a Gaussian gives for its neighbours' gaps is nobody else's
# Of skin of faces, whose colour the photo gave, and of body, hair and cloth: more makes up for the rim beside it.
_MOST_RECOLOURED, _MOST_OF_LIDS, _MOST_OF_FOLDS, _MOST_ELSEWHERE = 0.1, 0.06, 0.03, 0.2
_SLANTED, _UPRIGHT = 0.6, 0.95  # cosines of normal and view: skin seen at the first keeps its colour, by the other less
_LEAST_DRAWN = 3 / 8  # of `steps`: so often each photo is drawn at least
_LEAST_WEIGHT = 1.0  # px that a Gaussian colours: less does not show its colour, only what its neighbours lack
_MOST_GROWN = 0.4  # change of its scale's logarithm
_PIXELS = 128**2  # of a photo for which the pulls stand as they are
_COOL_DOWN = 0.3  # share of the steps over which the rates fall to nothing


@dataclass
class FitOptions:
    """How an avatar is fitted to its photo; chosen on the six people of `benchmarks.fit`.

    Attributes:
        steps: of Adam, up to five photos; more photos take more, see `num_steps`. 0 leaves the Gaussians as they are.
        opacity_rate, color_rate, scale_rate, offset_rate, rotation_rate: learning rates of the opacity's logit, the
            colour, the logarithm of the scale, the place (m) and the rotation (rad).
        alpha_weight: of the L1 of alpha and matte, beside that of colour.
        ssim_weight: of 1 - SSIM, as if each pixel had an error of that much.
        opacity_pull, color_pull, scale_pull, offset_pull, rotation_pull: weight of the squared change of each Gaussian,
            against the summed error of all pixels: what the photo barely shows stays where it is.
        turn_rate, shift_rate, gain_rate: of a further photo's pose, its joints' turns (rad) and its place (m), and of
            the logarithm of its light.
        turn_pull, shift_pull, gain_pull: weight of their squared changes.
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
    color_pull: float = 1.0
    scale_pull: float = 0.02
    offset_pull: float = 60.0
    rotation_pull: float = 0.1
    turn_rate: float = 2e-3
    shift_rate: float = 5e-4
    gain_rate: float = 5e-3
    turn_pull: float = 1e3
    shift_pull: float = 1e4
    gain_pull: float = 1e2

    def num_steps(self, num_photos: int) -> int:
        """Steps of a fit to so many photos: each is drawn in at least 3/8 as many as `steps` (30 of 80)."""
        return max(self.steps, math.ceil(_LEAST_DRAWN * num_photos / 2 * self.steps))


_CHANGES = ("opacity", "color", "scale", "offset", "rotation")
_CORRECTIONS = ("turn", "shift", "gain")
_TURNED = (NECK, HEAD)  # joints whose turns are corrected beside the pelvis and the jaw


class _FurtherPhoto:
    """A photo beside the avatar's own: what it shows, and the corrections of its tracked pose and light.

    Args:
        reconstructor: made the avatar.
        avatar: the start of the fit.
        photo: of the same people, `[B,...]`.
        options: see `FitOptions`.
    """

    def __init__(self, reconstructor: GaussianReconstructor, avatar: Avatar, photo: Photo, options: FitOptions) -> None:
        self.options = options
        self.photo = own_shape(reconstructor.body, photo, avatar.betas)
        with torch.no_grad():
            texture = reconstructor(photo)[0].texture
        self.trust = texture.trust[:, : avatar.gaussians.means.shape[1]]
        self.shown = shown_by(reconstructor, avatar, self.photo, self.trust)
        batch = avatar.betas.shape[0]
        sizes = {"turn": (batch, 2 + len(_TURNED), 3), "shift": (batch, 3), "gain": (batch, 3)}
        self.changes = {name: avatar.betas.new_zeros(size).requires_grad_() for name, size in sizes.items()}

    def corrected(self) -> Photo:
        """The photo with the pose corrected so far."""
        body, turn = self.photo.body, self.changes["turn"]
        index = torch.tensor([joint - 1 for joint in _TURNED], device=turn.device)
        params = replace(
            body,
            global_orient=body.global_orient + turn[:, 0],
            transl=body.transl + self.changes["shift"],
            body_pose=body.body_pose.index_add(1, index, turn[:, 1:-1]),
            jaw_pose=body.jaw_pose + turn[:, -1],
        )
        return replace(self.photo, body=params)

    def lit(self, gaussians: Gaussians, is_own: Tensor) -> Gaussians:
        """Posed Gaussians in this photo's light; colours learn from it only where `is_own [B,N+M]`."""
        colors = torch.where(is_own[..., None], gaussians.colors, gaussians.colors.detach())
        return replace(gaussians, colors=colors * self.changes["gain"][:, None].exp())

    def pull(self) -> Tensor:
        """`[B]` of the corrections to nothing."""
        squares = {name: value.square().flatten(1).sum(1) for name, value in self.changes.items()}
        return torch.stack([getattr(self.options, f"{name}_pull") * squares[name] for name in squares]).sum(dim=0)


class _Fit:
    """One fit: the start, the changes that are learned, and what the photos say.

    Args:
        reconstructor: made the avatar; its template says what bounds a Gaussian and where colour spreads.
        avatar: the start, `[B,...]`.
        photo: what it was made of.
        options: see `FitOptions`.
        further: photos of the same people.
    """

    def __init__(
        self,
        reconstructor: GaussianReconstructor,
        avatar: Avatar,
        photo: Photo,
        options: FitOptions,
        further: Sequence[Photo] = (),
    ) -> None:
        self.reconstructor, self.avatar, self.photo, self.options = reconstructor, avatar, photo, options
        assert isinstance(avatar.texture, Texture)
        params = photo.view().body
        self.ratio = photo.mask[0].numel() / _PIXELS
        self.start, self.posed = avatar.canonical(), _first(avatar.pose(reconstructor.body, params))
        # Of a colour, by the pose: 1 but for teeth, and where there is no colour to compare.
        self.light = torch.where(self.start.colors > 1e-3, self.posed.colors / self.start.colors.clamp_min(1e-3), 1.0)
        self.moves = avatar.linear_part(reconstructor.body, params)[:, 0]  # of a change in the T-pose, [B,N+M,3,3]
        self.seen = avatar.texture.seen
        self.is_drawn = self.start.opacities >= _LEAST_OPAQUE
        self.logit = torch.logit(self.start.opacities.clamp(_LEAST_OPAQUE, _MOST_OPAQUE))
        count = avatar.gaussians.means.shape[1]
        least = torch.minimum(self.start.opacities[:, :count], reconstructor.anchors.least_opacity)
        self.lowest = torch.logit(least.clamp(_LEAST_OPAQUE, _MOST_OPAQUE)) - self.logit[:, :count]
        self.rest = reconstructor.anchors(avatar.betas)
        started = (self.start.means[:, :count] - self.rest).norm(dim=-1, keepdim=True)  # as its outline asked for
        self.farthest = torch.maximum(reconstructor.anchors.offset_bound[:, None], started)
        self.similarities = [StructuralSimilarity(one.image) for one in (photo, *further)]
        # Of the change of a scale's logarithm: lids that shrank would not cover the eye, and a face that shrank to its
        # outline in the photo has holes when it turns.
        anchors, smallest = reconstructor.anchors, torch.full_like(self.rest[0, :, 0], -torch.inf)
        smallest[anchors.region == int(Region.FACE)] = 0.0
        self.smallest = smallest[:, None]
        shapes = {"opacity": self.logit, "color": self.start.colors} | dict.fromkeys(_CHANGES[2:], self.start.means)
        self.changes = {name: torch.zeros_like(shapes[name]).requires_grad_() for name in _CHANGES}
        self.is_finite = torch.ones(len(self.rest), dtype=torch.bool, device=self.rest.device)
        self.further = [_FurtherPhoto(reconstructor, avatar, one, options) for one in further]
        is_shown = self._weights() >= _LEAST_WEIGHT
        self.seen = self.seen * is_shown
        # What is barely seen through a gap would grow until it fills it: a haze around the body once it moves.
        self.largest = torch.where(is_shown, torch.inf, _MOST_GROWN)[..., None]
        with torch.no_grad():
            facing = project(anchors, photo).facing
        self.sources = self._sources(facing)
        # At a face's outline a colour makes up for what lies beside it: turned to the camera it is a stain.
        is_outline = (anchors.region == int(Region.FACE)) & ~anchors.is_inner & (self.sources == 0)
        self.seen[:, :count] *= ~is_outline
        # Nor do they move, shrink or turn to fill its rim: the mouth's inside would show through a turned cheek.
        self.is_skin = (anchors.kind == int(Kind.FACE)).expand(len(self.rest), -1)
        is_held = self.is_skin & ((self.sources == 0) | (self.seen[:, :count] == 0))
        self.is_held = F.pad(is_held, (0, self.seen.shape[1] - count))
        self.recolouring = self._recolouring(facing)
        if self.further:
            self._share_out()

    def _weights(self) -> Tensor:
        """`[B,N+M]` px of the photo that each Gaussian colours: the derivative of all its pixels by the colour."""
        now, photo, size = self.posed, self.photo, self.photo.image.shape[-2:]
        colors = now.colors.detach().requires_grad_()
        maps = rasterize(
            now.means, now.quats, now.scales, now.opacities, colors,
            photo.intrinsics, photo.world_to_camera, width=size[1], height=size[0],
        )  # fmt: skip
        return torch.autograd.grad(maps.image.sum(), colors)[0].mean(dim=-1)

    @torch.no_grad()
    def _sources(self, facing: Tensor) -> Tensor:
        """`[B,N]` 1 where the colour that the photo gives may stand for others; `facing [B,N]` as of `Projection`."""
        anchors, texture, count = self.reconstructor.anchors, self.avatar.texture, self.rest.shape[1]
        assert isinstance(texture, Texture)
        places, seen = texture.places[:, :count], texture.seen[:, :count]
        return colour_sources(anchors, self.photo, places, self.start.colors[:, :count], seen, facing)

    def _recolouring(self, facing: Tensor) -> Tensor:
        """`[B,N+M,1]` by how much a colour may change: skin by how upright the photo sees it, `facing [B,N]`.

        A change makes up for what lies beside it; of what is seen at a slant it faces the camera when the head turns,
        and beside lids lies the iris, which they would carry over the eye as they close, and where lips touch the dark
        between them. Eyes, the rest of lips and what they uncover are free.
        """
        anchors, upright = self.reconstructor.anchors, ((facing - _SLANTED) / (_UPRIGHT - _SLANTED)).clamp(0, 1)
        bounds = torch.full_like(facing, 1.0).masked_fill(anchors.kind == int(Kind.BODY), _MOST_ELSEWHERE)
        bounds = torch.where(self.is_skin, _MOST_RECOLOURED * upright, bounds)
        bounds = bounds.masked_fill(anchors.is_lid, _MOST_OF_LIDS)
        bounds = bounds.masked_fill(anchors.is_fold, _MOST_OF_FOLDS)
        return F.pad(bounds, (0, self.seen.shape[1] - facing.shape[1]), value=_MOST_ELSEWHERE)[..., None]

    @torch.no_grad()
    def _share_out(self) -> None:
        """Say which photos each Gaussian learns its colour from, and take what only further photos show from them.

        Eyeballs and the mouth's inside learn from one photo alone: gaze and tongue differ.
        """
        weight = torch.stack([self.seen, *(view.shown.seen * view.shown.facing for view in self.further)])
        is_inner = F.pad(self.reconstructor.anchors.is_inner, (0, self.seen.shape[1] - self.rest.shape[1]))
        best = torch.where(self.seen > 0, 0, weight.argmax(dim=0))
        is_best = torch.arange(len(weight), device=best.device)[:, None, None] == best
        self.is_own = is_best | ~is_inner
        weight = (weight * self.is_own)[1:]
        colors = torch.stack([view.shown.colors for view in self.further])
        mean = (colors * weight[..., None]).sum(dim=0) / weight.sum(dim=0).clamp_min(1e-6)[..., None]
        is_new = (self.seen == 0) & (weight.sum(dim=0) > 0)
        self.changes["color"].copy_((mean - self.start.colors) * is_new[..., None])
        self.seen = torch.where(is_new, 1.0, self.seen)
        self.is_held &= ~is_new
        self.largest = torch.where(is_new[..., None], torch.inf, self.largest)
        shown = F.pad(self.is_skin, (0, is_new.shape[1] - self.rest.shape[1])) & (weight.sum(dim=0) > 0)
        self.recolouring = torch.where(shown[..., None], _MOST_RECOLOURED, self.recolouring)
        # What hid it in the first photo says little of its colour.
        self.recolouring = torch.where(is_new[..., None], 1.0, self.recolouring)

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
            colors=base.colors + change["color"] * (1.0 if moves is None else self.light),
            features=base.features,
        )

    def loss(self, step: int = 0) -> Tensor:
        """`[B]` mean unlikeness of a step's photos, two or the only one, with the pulls to the start."""
        count = 1 + len(self.further)
        chosen = [(2 * step + i) % count for i in range(min(count, 2))]
        errors = torch.stack([self._unlikeness(number) for number in chosen]).mean(dim=0)
        options = self.options
        pulls = [getattr(options, f"{name}_pull") * self._strain(self.changes[name]) for name in _CHANGES]
        pulls += [self.ratio * self.further[number - 1].pull() for number in chosen if number > 0]
        return errors + torch.stack(pulls).sum(dim=0)

    def _strain(self, change: Tensor) -> Tensor:
        """`[B]` of a change `[B,N+M,...]`, squared: the template's Gaussians cover more pixels of a larger photo."""
        template, others = change.square().split([self.rest.shape[1], change.shape[1] - self.rest.shape[1]], dim=1)
        return self.ratio * template.flatten(1).sum(dim=1) + others.flatten(1).sum(dim=1)

    def _unlikeness(self, number: int) -> Tensor:
        """`[B]` summed L1 of colour and alpha in a photo's view, and what SSIM says of it."""
        photo, options = self.photo, self.options
        if number == 0:
            now = self.changed(self.posed, self.moves)
        else:
            view = self.further[number - 1]
            photo = view.corrected()
            avatar = self.avatar.with_canonical(self.changed(self.start))
            posed = avatar.pose(self.reconstructor.body, photo.view().body)
            now = view.lit(_first(posed), self.is_own[number])
        camera, size = (photo.intrinsics, photo.world_to_camera), photo.image.shape[-2:]
        maps = rasterize(
            now.means, now.quats, now.scales, now.opacities, now.colors, *camera, width=size[1], height=size[0]
        )
        image, alpha = (value.permute(0, 3, 1, 2) for value in (maps.image, maps.alpha))
        image = image + photo.background[:, :, None, None] * (1 - alpha)
        error = (image - photo.image).abs().mean(dim=1) + options.alpha_weight * (alpha - photo.mask).abs()[:, 0]
        unlike = options.ssim_weight * error[0].numel() * (1 - self.similarities[number](image))
        return error.flatten(1).sum(dim=1) + unlike

    @torch.no_grad()
    def hold(self) -> None:
        """Take the gradients of what the photo does not tell: hidden colours, and the shape of a face's hidden side."""
        is_told = {"color": self.seen} | dict.fromkeys(("scale", "offset", "rotation"), ~self.is_held)
        for name, told in is_told.items():
            grad = self.changes[name].grad
            assert grad is not None
            grad *= told[..., None]

    @torch.no_grad()
    def bound(self) -> None:
        """Keep each Gaussian to its part of the body, lids and face opaque and no smaller, and colours in [0,1]."""
        count, change = self.rest.shape[1], self.changes
        color = change["color"]
        color.copy_(torch.minimum(torch.maximum(color, -self.recolouring), self.recolouring))
        change["color"].copy_((self.start.colors + change["color"]).clamp(0, 1) - self.start.colors)
        away = self.start.means[:, :count] + change["offset"][:, :count] - self.rest
        far = away.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        within = (self.farthest / far).clamp(max=1)
        change["offset"][:, :count] += away * (within - 1)
        change["opacity"][:, :count].clamp_(min=self.lowest)
        change["scale"][:, :count].clamp_(min=self.smallest)
        change["scale"].clamp_(max=self.largest)

    @torch.no_grad()
    def drop_diverged(self) -> None:
        """Take people whose Gaussians are no numbers any more back to the start: the rest of the batch goes on."""
        numbers = self.changes | {"scale": self.changes["scale"].exp()}
        sums = torch.stack([value.flatten(1).sum(dim=1) for value in numbers.values()])
        self.is_finite &= torch.isfinite(sums).all(dim=0)
        for change in self.changes.values():
            change[~self.is_finite] = 0.0

    def run(self, show_progress: bool) -> Avatar:
        """Fit, and put the result together."""
        options, steps = self.options, self.options.num_steps(1 + len(self.further))
        rates = {name: getattr(options, f"{name}_rate") for name in _CHANGES}
        groups = [{"params": [self.changes[name]], "lr": rates[name]} for name in _CHANGES]
        if self.further:
            rates |= {name: getattr(options, f"{name}_rate") for name in _CORRECTIONS}
            groups += [{"params": [view.changes[name] for view in self.further], "lr": 0.0} for name in _CORRECTIONS]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        with torch.no_grad():
            first = self.loss()
        for step in tqdm(range(steps), desc="fit", leave=False, disable=not show_progress):
            cool = min(1.0, (steps - step) / (_COOL_DOWN * steps))
            for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
                group["lr"] = rate * cool
            optimizer.zero_grad()
            self.loss(step).sum().backward()
            self.hold()
            optimizer.step()
            self.bound()
            self.drop_diverged()
        with torch.no_grad():
            last = self.loss()
        return self._result(first, last)

    def _spread(self, change: Tensor, seen: Tensor) -> Tensor:
        """Changes `[B,N,3]` of colour, with those of what is not `seen [B,N]` filled from the rest."""
        texture, count = self.avatar.texture, seen.shape[1]
        assert isinstance(texture, Texture)
        sources = torch.where(texture.seen[:, :count] > 0, self.sources, seen)  # what further photos show
        spread = diffused(self.reconstructor.anchors, change.clamp(-_MOST_SPREAD, _MOST_SPREAD), sources)
        return torch.where(seen[..., None] > 0, change, spread)

    @torch.no_grad()
    def _result(self, first: Tensor, last: Tensor) -> Avatar:
        count = self.rest.shape[1]
        color = self.changes["color"]
        color[:, :count] = self._spread(color[:, :count], self.seen[:, :count])
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
        posed = _first(avatar.pose(self.reconstructor.body, self.photo.view().body))
        assert isinstance(avatar.texture, Texture)
        part = avatar.part(self.reconstructor.body, avatar.texture.part, posed.means)
        texture = with_places(avatar.texture, posed, part, self.photo)
        avatar = replace(avatar, texture=texture)
        if not self.further:
            return avatar
        photos = [self.photo, *(view.corrected() for view in self.further)]
        return with_photos(self.reconstructor, avatar, photos, [view.trust for view in self.further])


def _first(gaussians: Gaussians) -> Gaussians:
    """Of `[B,T,...]` the first frame."""
    return gaussians.map(lambda value: value[:, 0])


@full_precision
def fit_avatar(
    reconstructor: GaussianReconstructor,
    avatar: Avatar,
    photo: Photo,
    options: FitOptions,
    show_progress: bool = False,
    further: Sequence[Photo] = (),
) -> Avatar:
    """Fit an avatar to its photo, and to further ones of the same people.

    People of a batch are fitted apart. The result is the same for the same input, bit for bit on a CPU.

    Args:
        reconstructor: the network that made the avatar.
        avatar: `[B,...]` with its photo as texture.
        photo: what it was made of, `[B,...]`.
        options: rates, pulls and steps; 0 steps leave the avatar of one photo as it is, and of several take colours
            and texture alone.
        show_progress: draw a bar on standard error.
        further: other photos of the people, `[B,...]` each, of the first one's size.

    Returns:
        the fitted avatar, detached; a fit that diverged leaves the start, with a warning.
    """
    if options.steps == 0 and not further:
        return avatar
    # Also under no_grad and inference mode (predict, test): a fit needs gradients of its own.
    with torch.inference_mode(False), torch.enable_grad():
        return _Fit(reconstructor, copied(avatar), copied(photo), options, [copied(one) for one in further]).run(
            show_progress
        )


def fitted_avatar(reconstructor: GaussianReconstructor, photo: Photo, options: FitOptions) -> Avatar:
    """The avatar of a photo as the network gives it, fitted to that photo; shapes and errors as in `fit_avatar`."""
    return fit_avatar(reconstructor, reconstructor(photo)[0], photo, options)
