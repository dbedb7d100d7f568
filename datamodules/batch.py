"""The one typed batch record that every stage consumes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from visa.networks.body import BodyParams
from visa.networks.view import View


@dataclass
class VideoBatch:
    """B windows of T frames, each with one reference photo of the same person.

    Attributes:
        frames: `[B,T,3,H,W]` in [0,1], matted over `background`.
        masks: `[B,T,1,H,W]` soft foreground in [0,1].
        body: parameters `[B,T,...]` (metres, radians; betas repeated over T).
        intrinsics: `[B,T,3,3]` pixels of the H x W picture, pixel centres at +0.5.
        world_to_camera: `[B,T,4,4]` OpenCV (x right, y down, z forward).
        valid: `[B,T]` bool, False where the tracker found nobody.
        reference, reference_mask, reference_body, reference_intrinsics, reference_world_to_camera: the photo, without
            T.
        plain_reference: `[B,3,H,W]` the photo before the augmentation of colours and background.
        plain_background: `[B,3]` the colour behind it.
        colour: `[B,3,3]` that augmentation, `clamp(colour (x - 1/2) + 1/2)` of frames and photo before matting; the
            identity where there is none.
        background: `[B,3]` the colour behind the matte.
        names: B clip names.
        frame_numbers: `[B,T]` int64 frame numbers in the clip.
        reference_numbers: `[B]` int64.
        fps: B frame rates of the clips, or of the motion that is put on a photo.
        further: windows of the same people whose reference photos serve beside this one's; their frames are not read.
        fine_reference, fine_reference_mask: `[B,3,P,P]` and `[B,1,P,P]`, the photo over `background` at the resolution
            of pictures that are larger than `frames`; None where they are not.
    """

    frames: Tensor
    masks: Tensor
    body: BodyParams
    intrinsics: Tensor
    world_to_camera: Tensor
    valid: Tensor
    reference: Tensor
    reference_mask: Tensor
    reference_body: BodyParams
    reference_intrinsics: Tensor
    reference_world_to_camera: Tensor
    plain_reference: Tensor
    plain_background: Tensor
    colour: Tensor
    background: Tensor
    names: list[str]
    frame_numbers: Tensor
    reference_numbers: Tensor
    fps: list[float]
    further: list[VideoBatch] = field(default_factory=list)
    fine_reference: Tensor | None = None
    fine_reference_mask: Tensor | None = None

    def view(self) -> View:
        """Motion and camera of the frames, `[B,T,...]`."""
        return View(self.intrinsics, self.world_to_camera, self.frames.shape[-1], self.body)

    def origin(self) -> str:
        """Where the windows come from, for messages: `anna frames 3 to 11, photo 40` of each, in one line."""
        numbers, photos = self.frame_numbers.tolist(), self.reference_numbers.tolist()
        return "; ".join(
            f"{name} frames {frames[0]} to {frames[-1]}, photo {photo}"
            for name, frames, photo in zip(self.names, numbers, photos, strict=True)
        )

    def cut(self, frames: slice | Tensor) -> VideoBatch:
        """The same windows with some of their frames: a slice, or frame indices `[N]` in any order."""
        return replace(
            self,
            frames=self.frames[:, frames],
            masks=self.masks[:, frames],
            body=self.body.map(lambda value: value[:, frames]),
            intrinsics=self.intrinsics[:, frames],
            world_to_camera=self.world_to_camera[:, frames],
            valid=self.valid[:, frames],
            frame_numbers=self.frame_numbers[:, frames],
        )
