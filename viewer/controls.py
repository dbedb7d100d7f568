"""The sliders of one client, and the pose that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from visa.live.blendshapes import Blendshapes
from visa.live.gestures import ARMS, moved_arms, turned_head
from visa.networks.body import BodyParams

GROUPS = {
    "Brows and eyes": ("brow", "eyeBlink", "eyeSquint", "eyeWide"),
    "Mouth": ("mouth", "tongue"),
    "Jaw, cheeks, nose": ("jaw", "cheek", "nose"),
}
TURNS = ("nod", "look left", "lean right")  # rotation about x, y, z
MOST_TURN, MOST_ARM = 0.8, 1.2  # rad
STILL = "jawForward"  # the body's jaw cannot be pushed forward


class Controls:
    """Sliders by ARKit's names, for head, gaze and arms.

    Args:
        gui: viser's, of the client.
        shapes: of the person's body model.
        changed: called when a slider is moved.
    """

    def __init__(self, gui: Any, shapes: Blendshapes, changed: Callable[[], None]) -> None:
        self.shapes, self._changed = shapes, changed
        self._shapes: dict[str, Any] = {}
        with gui.add_folder("Head, gaze and arms"):
            self._turns = [self._slider(gui, name, -MOST_TURN, MOST_TURN) for name in TURNS]
            self._gaze = [self._slider(gui, name, -1.0, 1.0) for name in ("gaze left", "gaze up")]
            self._arms = {name: self._slider(gui, name, -MOST_ARM, MOST_ARM) for name in ARMS}
        for title, starts in GROUPS.items():
            with gui.add_folder(title, expand_by_default=title == "Mouth"):
                for name in shapes.names:
                    if name.startswith(starts) and name != STILL:
                        self._shapes[name] = self._slider(gui, name, 0.0, 1.0)
        gui.add_button("Sliders to rest").on_click(lambda _: self.reset())

    def _slider(self, gui: Any, name: str, low: float, high: float) -> Any:
        slider = gui.add_slider(name, min=low, max=high, step=0.01, initial_value=0.0)
        slider.on_update(lambda _: self._changed())
        return slider

    def reset(self) -> None:
        """All to rest."""
        for slider in [*self._turns, *self._gaze, *self._arms.values(), *self._shapes.values()]:
            slider.value = 0.0
        self._changed()

    def applied(self, base: BodyParams) -> BodyParams:
        """A pose `[1]` with the sliders on top."""
        given = {name: slider.value for name, slider in self._shapes.items()}
        left, up = (slider.value for slider in self._gaze)
        given |= {"eyeLookOutLeft": max(left, 0), "eyeLookInRight": max(left, 0)}
        given |= {"eyeLookInLeft": max(-left, 0), "eyeLookOutRight": max(-left, 0)}
        for side in ("Left", "Right"):
            given |= {f"eyeLookUp{side}": max(up, 0), f"eyeLookDown{side}": max(-up, 0)}
        posed = self.shapes.applied(base, self.shapes.values(given)[None])
        posed = turned_head(posed, torch.tensor([[slider.value for slider in self._turns]]))
        return moved_arms(posed, {name: slider.value for name, slider in self._arms.items()})
