"""From Python: photos in, an avatar and its moving pictures out, without a command line.

from visa.person import Person

person = Person.from_photos("me.jpg")            # tracked, reconstructed and fitted: some seconds
person.export("me.ply")                          # for splat viewers; .spz too
person.save("me.safetensors")                    # Person.load gives it back
for frame in person.frames("talk.mp4"):          # [3,512,512] in [0,1], one a frame of the video
    ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visa.datamodules.clip import frame_rate
from visa.datamodules.own_pose import Head
from visa.datamodules.retarget import held_frames, open_photos, read_motion, retargeted
from visa.datamodules.windows import WindowReader
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel, BodyParams
from visa.networks.detail import LEAST_GEOMETRY, detail_of, enlarged, geometry_size, with_detail
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.photo import Photo
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.view import View
from visa.runtime.person_files import load_person, save_person
from visa.runtime.shipped import BACKGROUND, BODY, WEIGHTS, load_reconstructor
from visa.runtime.stream import view_of
from visa.tools.export_avatar import export, read_photos
from visa.tools.track.on_demand import tracked

CHUNK = 4  # frames that are drawn at a time
LEAST_ALPHA = 1 / 255  # below it a pixel has no colour of its own


@dataclass(frozen=True)
class Person:
    """An avatar fitted to photos of one person, as reconstruction shows it; `AvatarStream.begin` lets the shader paint.

    Attributes:
        avatar: of one person; its `detail` are the photos at the size of its pictures.
        photos: what it was made of; the first one's camera and place are those of `frames`.
        reconstructor: the network, with the body model that poses the avatar.
    """

    avatar: Avatar
    photos: tuple[Photo, ...]
    reconstructor: GaussianReconstructor

    @classmethod
    def from_photos(
        cls,
        *images: str | Path,
        num_photos: int | None = None,
        resolution: int | None = None,
        size: int = 512,
        fit: FitOptions = FitOptions(),  # noqa: B008
        weights: str = WEIGHTS,
    ) -> Person:
        """Reconstruct and fit.

        Args:
            images: photos of one person, or one clip; a file without a track is tracked first (extra `track`).
            num_photos: frames of a clip that are taken as photos; None takes 8.
            resolution: px at which geometry is made and drawn; None takes `networks.detail.geometry_size`.
            size: px of the pictures, for which the photos are kept in detail where it is larger.
            fit: how the avatar is fitted to the photos.
            weights: of the reconstruction.

        Raises:
            FileNotFoundError, ValueError: one line that says what to mend.
        """
        reconstructor = load_reconstructor(BODY, weights)
        resolution = geometry_size(size) if resolution is None else resolution
        names = [str(image) for image in images]
        photo, *further = read_photos(names, num_photos, BODY, reconstructor.body, resolution)
        with torch.no_grad():
            avatar, _ = reconstructor(photo)
        avatar = fit_avatar(reconstructor, avatar, photo, fit, further=further)
        if size > resolution:
            fine = _fine_photos(names, num_photos, reconstructor.body, resolution, size)
            avatar = with_detail(reconstructor, avatar, photo, fine)
        return cls(avatar, (photo, *further), reconstructor)

    @classmethod
    def load(cls, path: str | Path, weights: str = WEIGHTS) -> Person:
        """Read what `save` has written; ValueError (one line) for another file."""
        reconstructor = load_reconstructor(BODY, weights)
        return cls(*load_person(path, reconstructor.body), reconstructor)

    @classmethod
    def open(cls, images: Sequence[str], size: int = 512) -> Person:
        """What command lines are given: one `.safetensors` file of `save`, or else photos or a clip."""
        if len(images) == 1 and Path(images[0]).suffix == ".safetensors":
            return cls.load(images[0])
        return cls.from_photos(*images, size=size)

    def save(self, path: str | Path) -> Path:
        """Write avatar and photos as one `.safetensors` file, the photos' detail in 8 bits."""
        return save_person(path, self.avatar, self.photos, self.body, Path(BODY).name)

    def export(self, path: str | Path, pose: str | None = None) -> Path:
        """Write `.ply` or `.spz`, in the T-pose or with `pose` "photo" as the first photo; `.safetensors` is `save`."""
        if Path(path).suffix == ".safetensors":
            return self.save(path)
        return export(self.avatar, self.body, self.photos[0], Path(path), pose, Path(BODY).name)

    @property
    def body(self) -> BodyModel:
        """The body model that poses the avatar."""
        return self.reconstructor.body

    @property
    def resolution(self) -> int:
        """px at which geometry is drawn."""
        return self.photos[0].image.shape[-1]

    @property
    def quick_resolution(self) -> int:
        """px at which geometry is drawn where time is short."""
        return min(self.resolution, LEAST_GEOMETRY)

    @property
    def size(self) -> int:
        """px of the pictures: the photos' in detail."""
        return self.resolution if self.avatar.detail is None else self.avatar.detail.photo.shape[-1]

    @torch.no_grad()
    def render(self, view: View) -> Tensor:
        """Pictures `[B,T,3,P,P]` in [0,1] of any poses and cameras `[B,T]` (`self.photos[0].view()` is the photo's)."""
        return self.avatar.render(self.body, view).textured.clamp(0, 1)

    @torch.no_grad()
    def motion(
        self, driving: str | Path, num_frames: int | None = None, head: Head = "photo"
    ) -> tuple[BodyParams, float]:
        """A driver's motion `[T]` as this person's in the photo's place (`datamodules.retarget`), and frames a second.

        Args:
            driving: a video, tracked first where it is not, or a `.track.npz`.
            num_frames: at most so many; None takes all.
            head: "photo": head and eyes rest as the photo's and turn from there as the driver's; "driver": they turn to
                the camera as the driver's do.
        """
        track = read_motion(tracked(driving, BODY, "driving"))
        numbers = held_frames(track["frame_valid"])[:num_frames]
        if len(numbers) == 0:
            raise ValueError(f"{driving} has no valid frame to drive with: track another video")
        photo = self.photos[0]
        return retargeted(track, numbers, photo.body, photo.world_to_camera[0], self.body, head), frame_rate(track)

    @torch.no_grad()
    def frames(
        self,
        driving: str | Path,
        size: int | None = None,
        num_frames: int | None = None,
        has_alpha: bool = False,
        head: Head = "photo",
    ) -> Iterator[Tensor]:
        """The person in the motion of a video (or `.track.npz`), frame by frame, `[3,size,size]` in [0,1].

        Drawn at the avatar's resolution and composed with the photo at `size` px; `self.size` without it. With
        `has_alpha` `[4,size,size]`: the person's own colours, not premultiplied, and alpha.
        `head` is that of `motion`.
        """
        size = self.size if size is None else size
        if size < 1:
            raise ValueError(f"size is {size}: give 1 px or more")
        geometry = min(size, self.resolution)
        camera = self.photos[0].view().resized(geometry)
        motion, _ = self.motion(driving, num_frames, head)
        for first in range(0, len(motion.transl), CHUNK):
            maps = self.avatar.render(self.body, view_of(camera, motion[first : first + CHUNK]))
            drawn = maps if size == geometry else enlarged(maps, detail_of(self.avatar), size)
            pictures, alpha = drawn.textured[0], drawn.coverage[0].clamp(0, 1)
            if has_alpha:
                behind = self.avatar.background[0, :, None, None] * (1 - alpha)
                pictures = torch.cat([(pictures - behind) / alpha.clamp_min(LEAST_ALPHA), alpha], dim=1)
            yield from pictures.clamp(0, 1)


def _fine_photos(
    images: list[str], num_photos: int | None, body: BodyModel, resolution: int, size: int
) -> list[tuple[Tensor, Tensor]]:
    """Pictures and mattes of `size` px of what `read_photos` reads, without the fringe of their background."""
    reader, found = WindowReader(BACKGROUND), []
    for clip, frame in open_photos([tracked(image, BODY, "--image") for image in images], num_photos, body):
        read = reader.read(clip, np.asarray([frame]), frame, resolution, fine=size, is_cleaned=True)
        assert read.fine_reference is not None  # it was asked for
        assert read.fine_reference_mask is not None
        found.append((read.fine_reference, read.fine_reference_mask))
    return found
