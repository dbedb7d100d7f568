"""The 52 blendshapes of ARKit as the body's own parameters, by one table.

Forty are actions of the body model by the same name. Jaw and eyes are joints there: their sculpted doubles turn them.
Left is the person's own. (Apple, ARFaceAnchor.BlendShapeLocation.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from visa.networks.body import BodyModel, BodyParams

# rad that a whole action turns: the sculpted jaw, and eyes as far as people look without the head.
OPEN, SIDEWAYS, ASIDE, UP_DOWN = 0.35, 0.10, 0.52, 0.42
# Positive turns about x look down and open the mouth, about y lead to the person's left.
TURNS: dict[str, tuple[str, int, float]] = {
    "jawOpen": ("jaw_pose", 0, OPEN),
    "jawLeft": ("jaw_pose", 1, SIDEWAYS),
    "jawRight": ("jaw_pose", 1, -SIDEWAYS),
    "jawForward": ("jaw_pose", 0, 0.0),  # a jaw that turns cannot be pushed forward
    "eyeLookUpLeft": ("leye_pose", 0, -UP_DOWN),
    "eyeLookDownLeft": ("leye_pose", 0, UP_DOWN),
    "eyeLookInLeft": ("leye_pose", 1, -ASIDE),
    "eyeLookOutLeft": ("leye_pose", 1, ASIDE),
    "eyeLookUpRight": ("reye_pose", 0, -UP_DOWN),
    "eyeLookDownRight": ("reye_pose", 0, UP_DOWN),
    "eyeLookInRight": ("reye_pose", 1, ASIDE),
    "eyeLookOutRight": ("reye_pose", 1, -ASIDE),
}
FIELDS = ("jaw_pose", "leye_pose", "reye_pose")


class Blendshapes:
    """From names and values to parameters of one body model.

    Args:
        body: it must name its actions as ARKit does.

    Raises:
        ValueError: it does not.
    """

    def __init__(self, body: BodyModel) -> None:
        names = body.expression_names
        if "eyeBlinkLeft" not in names:
            raise ValueError("the body model names no ARKit actions: drive assets/body/smplx_anny.npz by blendshapes")
        self.names = sorted({*names, *TURNS})
        self._known = {name.lower(): name for name in self.names}
        self._rows = {name: index for index, name in enumerate(self.names)}
        self._expression = torch.zeros(len(self.names), len(names))
        for column, name in enumerate(names):
            self._expression[self._rows[name], column] = 1.0
        self._turns = {field: torch.zeros(len(self.names), 3) for field in FIELDS}
        for name, (field, axis, angle) in TURNS.items():
            self._turns[field][self._rows[name], axis] = angle

    def values(self, given: Mapping[str, float]) -> Tensor:
        """Values `[52]` in the order of `names`, of those that are given by name in any case; others are 0.

        Raises:
            ValueError: a name that is none, or a value that is not finite.
        """
        row = torch.zeros(len(self.names))
        for name, value in given.items():
            known = self._known.get(name.lower())
            if known is None:
                raise ValueError(f"{name} is no ARKit blendshape: give names such as jawOpen")
            row[self._rows[known]] = float(value)
        if not bool(row.isfinite().all()):
            raise ValueError("a blendshape's value is not finite: this pose is left out")
        return row.clamp(0, 1)

    def applied(self, base: BodyParams, values: Tensor) -> BodyParams:
        """Poses `[t]` with actions `values [t,52]` on top of their own: actions end at 1, joints turn on."""
        turned = {field: getattr(base, field) + values @ matrix for field, matrix in self._turns.items()}
        return replace(base, expression=(base.expression + values @ self._expression).clamp(max=1.0), **turned)
