"""What the fit's optimiser moves, and how fast.

Letters in shapes: N solved frames, E expression components.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Learning rates of Adam; of the fine stage a third.
FRAME_RATES = {
    "expression": 0.02,
    "head_turn": 0.01,
    "head_position": 0.01,
    "global_orient": 0.01,
    "body_pose": 0.01,
    "jaw_pose": 0.01,
    "eye_pose": 0.02,
    "hand_pose": 0.02,
}
CLIP_RATES = {"betas": 0.03, "expression_offset": 0.02}


@dataclass
class Variables:
    """What the optimiser moves. Rotations are axis-angle increments on the start values."""

    betas: Tensor  # [10]
    expression_offset: Tensor  # [E]
    expression: Tensor  # [N, E]
    head_start: Tensor  # [N, 3, 3] constant
    body_start: Tensor  # [N, 21, 3] constant; what joints that are not seen keep to
    head_turn: Tensor  # [N, 3]
    head_position: Tensor  # [N, 3] m, of the head joint in the world
    global_orient: Tensor  # [N, 3]
    body_pose: Tensor  # [N, 21, 3]; the head's row is not used
    jaw_pose: Tensor  # [N, 3]
    eye_pose: Tensor  # [N, 2, 3]
    hand_pose: Tensor  # [N, 2, 15, 3]
