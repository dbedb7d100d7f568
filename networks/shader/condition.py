"""What the video shader is told about a clip, and what it means that a signal is dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

Signal = Literal["maps", "semantic", "reference"]
SIGNALS: tuple[Signal, ...] = ("maps", "semantic", "reference")
PICTURE_CHANNELS = 8  # of the maps beside the features: splatted RGB and alpha, textured RGB and the photo's share


@dataclass
class ShaderCondition:
    """What the shader is told about a clip; every tensor leads with the batch.

    guide `[B,C,T,h,w]`: codec latent of the textured splat, g. maps `[B,Tpix,F+8,H,W]`: splatted features, RGB, alpha,
    textured RGB and its share of the photo's pixels, in this order; or already passed through the condition head:
    encoded `[B,Cc,T,h,w]`. reference `[B,C,1,h,w]`: latent of the photo, coded alone; reference_guide and
    reference_maps `[B,1,F+8,H,W]` (or reference_encoded): its own splat. semantic `[B,L,S]`: F_sem tokens. starts_clip:
    whether frame 0 is the first of the video (a codec with temporal stride gives that frame a latent of its own).

    **What "dropped" means** (guidance dropout in training and the unconditional branch in sampling alike), by sample
    `[B]`, True = dropped:
      maps: the guide's input channels become zero and the encoded maps one learned vector (zero at the start);
      semantic: every token becomes one learned vector;
      reference: the reference frame stays in the sequence, its latent and guide channels zero, its encoded maps that
      same vector.
    The skip path k g (g corrected by the head) is never dropped: it only names the coordinates in which the network
    works and cancels in the difference of two branches. A signal that is absent (None) counts as dropped; without
    `reference` there is no reference frame at all.
    """

    guide: Tensor
    maps: Tensor | None = None
    encoded: Tensor | None = None
    reference: Tensor | None = None
    reference_guide: Tensor | None = None
    reference_maps: Tensor | None = None
    reference_encoded: Tensor | None = None
    semantic: Tensor | None = None
    maps_dropped: Tensor | None = None
    semantic_dropped: Tensor | None = None
    reference_dropped: Tensor | None = None
    starts_clip: bool = True

    @property
    def batch_size(self) -> int:
        return self.guide.shape[0]

    @property
    def num_frames(self) -> int:
        """Latent frames."""
        return self.guide.shape[2]

    def map(self, function: Callable[[Tensor], Tensor]) -> ShaderCondition:
        """Apply `function` to every tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        mapped: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **mapped)

    def slice(self, start: int, stop: int) -> ShaderCondition:
        """Latent frames `start:stop`; reference and semantic tokens stay.

        ValueError for maps that are not at latent time: pass them through `VideoShader.encode_condition` first.
        """
        if self.maps is not None and self.maps.shape[1] != self.num_frames:
            raise ValueError("the maps are not at latent time: call VideoShader.encode_condition before slicing")
        return replace(
            self,
            guide=self.guide[:, :, start:stop],
            maps=None if self.maps is None else self.maps[:, start:stop],
            encoded=None if self.encoded is None else self.encoded[:, :, start:stop],
            starts_clip=self.starts_clip and start == 0,
        )

    def drop(self, mask: Tensor | None = None, which: Sequence[Signal] = SIGNALS) -> ShaderCondition:
        """Drop the signals of `which` for the samples where `mask` `[B]` is true (None: for all)."""
        if unknown := set(which) - set(SIGNALS):
            raise ValueError(f"no such signal: {sorted(unknown)}; choose from {SIGNALS}")
        if mask is None:
            mask = torch.ones(self.batch_size, dtype=torch.bool, device=self.guide.device)
        dropped: dict[str, Any] = {}
        for name in which:
            before = getattr(self, f"{name}_dropped")
            dropped[f"{name}_dropped"] = mask if before is None else before | mask
        return replace(self, **dropped)

    @staticmethod
    def cat(conditions: Sequence[ShaderCondition]) -> ShaderCondition:
        """Join along the batch; all must hold the same fields (the `_dropped` masks excepted)."""
        values: dict[str, Any] = {}
        for name in (field.name for field in fields(ShaderCondition) if field.name != "starts_clip"):
            items = [getattr(condition, name) for condition in conditions]
            if name.endswith("_dropped") and any(item is not None for item in items):
                items = [
                    torch.zeros(c.batch_size, dtype=torch.bool, device=c.guide.device) if item is None else item
                    for c, item in zip(conditions, items, strict=True)
                ]
            if any(item is None for item in items) and any(item is not None for item in items):
                raise ValueError(f"conditions differ in '{name}': some have it, some do not")
            values[name] = None if items[0] is None else torch.cat(items)
        return replace(conditions[0], **values)


def replace_dropped(value: Tensor, dropped: Tensor | None, null: Tensor) -> Tensor:
    """Samples of `value` `[B,...]` where `dropped` `[B]` is true become `null`."""
    if dropped is None:
        return value
    return torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), null.to(value.dtype), value)
