"""From Python: photos in, an avatar and its moving pictures out, without a command line.

from visa.person import Person

person = Person.from_photos("me.jpg")            # tracked, reconstructed and fitted: some seconds
person.export("me.ply")                          # for splat viewers; .spz and .safetensors too
for frame in person.frames("talk.mp4"):          # [3,512,512] in [0,1], one a frame of the video
    ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from visa.datamodules.retarget import retarget
from visa.datamodules.windows import WindowReader
from visa.networks.avatar import Avatar
from visa.networks.detail import enlarged, with_detail
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.photo import Photo
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.view import View
from visa.runtime.conditioner import photo_of
from visa.runtime.shipped import BACKGROUND, BODY, WEIGHTS, load_reconstructor
from visa.runtime.stream import fine_photos
from visa.tools.export_avatar import export, read_photos
from visa.tools.track.on_demand import tracked

CHUNK = 4  # frames that are drawn at a time


@dataclass(frozen=True)
class Person:
    """An avatar fitted to photos of one person, as reconstruction shows it; the shader paints through `predict`.

    Attributes:
        avatar: of one person.
        photos: what it was made of; the first one's camera and place are those of `frames`.
        images: the files.
        num_photos: of a clip, how many frames were photos; None for photos.
        reconstructor: the network, with the body model that poses the avatar.
    """

    avatar: Avatar
    photos: tuple[Photo, ...]
    images: tuple[str, ...]
    num_photos: int | None
    reconstructor: GaussianReconstructor

    @classmethod
    def from_photos(
        cls,
        *images: str | Path,
        num_photos: int | None = None,
        resolution: int = 128,
        fit: FitOptions = FitOptions(),  # noqa: B008
        weights: str = WEIGHTS,
    ) -> Person:
        """Reconstruct and fit.

        Args:
            images: photos of one person, or one clip; a file without a track is tracked first (extra `track`).
            num_photos: frames of a clip that are taken as photos; None takes 8.
            resolution: px at which geometry is made and drawn.
            fit: how the avatar is fitted to the photos.
            weights: of the reconstruction.

        Raises:
            FileNotFoundError, ValueError: one line that says what to mend.
        """
        reconstructor = load_reconstructor(BODY, weights)
        names = [str(image) for image in images]
        photo, *further = read_photos(names, num_photos, BODY, reconstructor.body, resolution)
        with torch.no_grad():
            avatar, _ = reconstructor(photo)
        avatar = fit_avatar(reconstructor, avatar, photo, fit, further=further)
        return cls(avatar, (photo, *further), tuple(names), num_photos, reconstructor)

    def export(self, path: str | Path, pose: str | None = None) -> Path:
        """Write `.ply` or `.spz` (in the T-pose, or with `pose` "photo" as the first photo), or `.safetensors`."""
        return export(self.avatar, self.reconstructor.body, self.photos[0], Path(path), pose, Path(BODY).name)

    @torch.no_grad()
    def render(self, view: View) -> Tensor:
        """Pictures `[B,T,3,P,P]` in [0,1] of any poses and cameras `[B,T]` (`self.photos[0].view()` is the photo's)."""
        return self.avatar.render(self.reconstructor.body, view).textured.clamp(0, 1)

    @torch.no_grad()
    def frames(self, driving: str | Path, size: int = 512, num_frames: int | None = None) -> Iterator[Tensor]:
        """The person in the motion of a video (or `.track.npz`), frame by frame, `[3,size,size]` in [0,1].

        Drawn at the avatar's resolution and composed with the photo at `size` px, which is no smaller.
        """
        resolution = self.photos[0].image.shape[-1]
        if size < resolution:
            raise ValueError(f"size is {size}: give {resolution} px or more, the size that the avatar is drawn at")
        motion = str(tracked(driving, BODY, "driving"))
        reader, fine = WindowReader(BACKGROUND), size if size > resolution else None
        images = [str(tracked(image, BODY, "images")) for image in self.images]
        batch = retarget(images, motion, reader, resolution, num_frames, BODY, self.num_photos, fine)
        avatar = self.avatar
        if fine is not None:
            avatar = with_detail(self.reconstructor, avatar, photo_of(batch), fine_photos(batch))
        for first in range(0, batch.intrinsics.shape[1], CHUNK):
            part = batch.cut(slice(first, first + CHUNK))
            maps = avatar.render(self.reconstructor.body, part.view())
            drawn = maps if avatar.detail is None else enlarged(maps, avatar.detail, size)
            yield from drawn.textured[0].clamp(0, 1)
