"""What drives an avatar at one moment, from whatever source, and the pose that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from visa.live.blendshapes import Blendshapes
from visa.live.gestures import turned_head
from visa.networks.body import BodyParams

HEAD = ("HeadPitch", "HeadYaw", "HeadRoll")  # Live Link Face's names; rad about x, y, z
MOST_TURN = 1.5  # rad: no head is turned farther against the shoulders
IGNORED = ("LeftEyeYaw", "LeftEyePitch", "LeftEyeRoll", "RightEyeYaw", "RightEyePitch", "RightEyeRoll")  # doubles


@dataclass(frozen=True)
class Signal:
    """One moment, relative to a neutral face that looks ahead.

    Attributes:
        values: `[52]` of ARKit's blendshapes, in the order of `Blendshapes.names`.
        turn: `[3]` rad, rotation vector of the head in its own axes (x nods down, y to the person's left).
        gaze: `[2,2]` rad, turns about x and y of the left and right eye, beside those of `values`.
        shift: `[3]` m that the person has moved, in the camera's axes with y up and z towards it.
    """

    values: Tensor
    turn: Tensor = field(default_factory=lambda: torch.zeros(3))
    gaze: Tensor = field(default_factory=lambda: torch.zeros(2, 2))
    shift: Tensor = field(default_factory=lambda: torch.zeros(3))

    def against(self, neutral: Signal) -> Signal:
        """The same relative to a moment at which the face was neutral."""
        return Signal(
            (self.values - neutral.values).clamp_min(0),
            self.turn - neutral.turn,
            self.gaze - neutral.gaze,
            self.shift - neutral.shift,
        )

    def posed(self, base: BodyParams, shapes: Blendshapes) -> BodyParams:
        """The pose `[1]` of a person whose own neutral one is `base [1]`."""
        pose = turned_head(shapes.applied(base, self.values[None]), self.turn[None])
        eyes = torch.nn.functional.pad(self.gaze, (0, 1))
        return replace(
            pose,
            leye_pose=pose.leye_pose + eyes[:1],
            reye_pose=pose.reye_pose + eyes[1:],
            transl=pose.transl + self.shift,
        )


def named_signal(shapes: Blendshapes, given: Mapping[str, float]) -> Signal:
    """Of blendshapes and turns of the head by their names (any case).

    Raises:
        ValueError: an unknown name, or a value that is not finite or no angle of a head; one line.
    """
    known = {name.lower(): name for name in (*HEAD, *IGNORED)}
    head = {known[name.lower()]: float(value) for name, value in given.items() if name.lower() in known}
    turn = torch.tensor([head.get(name, 0.0) for name in HEAD])
    if not bool((turn.abs() <= MOST_TURN).all()):
        raise ValueError(f"the head's turn is {[round(v, 2) for v in turn.tolist()]}: give rad, at most {MOST_TURN}")
    values = shapes.values({name: value for name, value in given.items() if name.lower() not in known})
    return Signal(values, turn)
