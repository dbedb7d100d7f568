"""Photos as an avatar's texture: where its Gaussians lie in them, and how their pixels are read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.gaussians import Gaussians
from visa.networks.photo import Photo
from visa.networks.precision import full_precision
from visa.networks.rasterizer import rasterize
from visa.networks.rasterizer.cpu import readable
from visa.networks.rotation import quaternion_multiply

# B people, T frames, K photos, N Gaussians.

# Of several photos each counts 1/e less where a Gaussian has turned (rad) or moved with the expression (m) so far;
# chosen on validation people.
ALIKE_ANGLE, ALIKE_SHAPE = 0.025, 0.002
COHERENT = 20.0  # how much more the mean move of the head counts than a Gaussian's own: lips of one photo, not of two


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
        part: `[B,N]` the code of the part of the body that carries each Gaussian (`networks.regions.part_code`), with
            open eyes.
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

    @cached_property
    def photo_pixels(self) -> Tensor:
        """Photos and mattes as `networks.rasterizer.cpu.compose` reads them."""
        return readable(torch.cat([self.photo, self.mask], dim=2))

    @cached_property
    def pattern_pixels(self) -> Tensor:
        """The same of the pattern; the first photo's without one."""
        if self.pattern is None:
            return self.photo_pixels[:, 0]
        return readable(F.pad(self.pattern, (0, 0, 0, 0, 0, 1)))


def stacked(textures: list[Texture]) -> Texture:
    """Textures `[B,...]` as one `[B,K,...]`."""
    names = [f.name for f in fields(Texture)]
    return Texture(**{name: torch.stack([getattr(texture, name) for texture in textures], dim=1) for name in names})


def view_directions(posed: Gaussians, world_to_camera: Tensor) -> Tensor:
    """Unit vectors `[...,N,3]` from each Gaussian to the cameras `[...,4,4]`, in the Gaussian's own axes."""
    eye = -(world_to_camera[..., :3, :3].mT @ world_to_camera[..., :3, 3:])[..., 0]
    towards = F.normalize(eye[..., None, :] - posed.means, dim=-1)
    turned = quaternion_multiply(
        quaternion_multiply(posed.quats * posed.quats.new_tensor([1, -1, -1, -1]), F.pad(towards, (1, 0))), posed.quats
    )
    return turned[..., 1:]


def mean_part(part: Tensor, shown: Tensor) -> Tensor:
    """Part code of some Gaussians, from the splats of their codes `part` and of ones, `shown`."""
    return part / shown.clamp_min(1e-3)


@full_precision
def shown_part(posed: Gaussians, seen: Tensor, part: Tensor, photo: Photo) -> Tensor:
    """The part code that a photo shows at each pixel, `[B,1,H,W]`; 0 where it shows no Gaussian.

    Args:
        posed: as in the photo, `[B,N,...]`.
        seen: `[B,N]` as `Texture.seen`.
        part: `[B,N]` as `Texture.part`, in the photo's pose (`Avatar.part`).
        photo: of the same people.
    """
    maps = rasterize(
        posed.means,
        posed.quats,
        posed.scales,
        posed.opacities,
        torch.stack([seen * part, seen], dim=-1),
        photo.intrinsics,
        photo.world_to_camera,
        width=photo.image.shape[-1],
        height=photo.image.shape[-2],
    ).image.permute(0, 3, 1, 2)
    return mean_part(maps[:, :1], maps[:, 1:])


def with_places(texture: Texture, posed: Gaussians, part: Tensor, photo: Photo) -> Texture:
    """The texture of Gaussians that have moved: where they, `posed [B,N,...]` as in its photo, now lie in it.

    `part [B,N]` are their codes in that pose.
    """
    photo_part = shown_part(posed, texture.seen, part, photo)
    return replace(texture, places=photo.places(posed.means), photo_part=photo_part)


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
