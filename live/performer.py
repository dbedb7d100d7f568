"""A person drawn live, pose by pose, in one of three looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.live.shading import Shading
from visa.networks.body import BodyParams
from visa.networks.detail import detail_of, enlarged
from visa.networks.rasterizer.cpu import kernels_alone
from visa.person import Person
from visa.runtime.stream import AvatarStream, PoseQueue, view_of

Look = Literal["splat", "textured", "shaded"]
LOOKS: tuple[Look, ...] = ("splat", "textured", "shaded")  # from the cheapest to the dearest


class Performer:
    """Poses in, pictures out. Clients have one each: nothing is shared but the person's and the shader's tensors.

    Args:
        person: who is drawn.
        look: "splat" draws the Gaussians' own colours, "textured" the photo's pixels too, "shaded" lets the shader
            paint.
        size: px of the pictures.
        shading: the shader, for the look "shaded".
        geometry: px at which geometry is drawn; None takes the person's resolution. Less is faster and less sharp.

    Raises:
        ValueError: a size or look that cannot be had.
    """

    def __init__(
        self,
        person: Person,
        look: Look = "textured",
        size: int = 512,
        shading: Shading | None = None,
        geometry: int | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size is {size}: give 1 px or more")
        geometry = min(size, person.resolution if geometry is None else geometry)
        self.person, self.look, self.size, self.geometry = person, look, size, geometry
        self.stream: AvatarStream | None = None
        self._camera = person.photos[0].view().resized(geometry)
        self._poses = PoseQueue(person.body.num_expressions)
        if look == "shaded":
            if shading is None:
                raise ValueError("the look shaded needs a shader: give load_shading()")
            self.stream = shading.stream(person, size, geometry)
            return
        avatar = person.avatar.without_features()
        self._avatar = replace(avatar, texture=None, pattern=None) if look == "splat" else avatar

    @property
    def chunk(self) -> int:
        """Poses that the next picture waits for."""
        return 1 if self.stream is None else self.stream.chunk_length()

    @torch.no_grad()
    def push(self, body: BodyParams) -> Tensor:
        """Poses `[t]` in the photo's world -> `[n,3,P,P]` in [0,1]; a shader's pictures come by whole chunks.

        Raises:
            ValueError: a parameter that is not finite or of another shape; the next push goes on as if it had not been.
        """
        if self.stream is not None:
            return self.stream.push(body).clamp_(0, 1)
        self._poses.add(body)
        pictures = [torch.empty(0, 3, self.size, self.size)]
        with kernels_alone():
            while (pose := self._poses.take(1)) is not None:  # pictures of one frame fit into the processor's cache
                pictures.append(self._draw(pose))
        return pictures[-1] if len(pictures) == 2 else torch.cat(pictures)

    def _draw(self, pose: BodyParams) -> Tensor:
        body, view, is_larger = self.person.body, view_of(self._camera, pose), self.size != self.geometry
        maps = self._avatar.drawn(body, view, self._avatar.pose(body, view.body), is_composed=not is_larger)
        if not is_larger:
            return maps.textured[0].clamp_(0, 1)
        if self.look == "splat":
            return F.interpolate(maps.rgb[0], (self.size, self.size), mode="bilinear").clamp_(0, 1)
        return enlarged(maps, detail_of(self.person.avatar), self.size).textured[0].clamp_(0, 1)
