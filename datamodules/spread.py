"""Which frames of a tracked clip serve as photos of its person: calm ones, spread over pose and expression."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from visa.datamodules.clip import Clip
from visa.networks.body import BodyModel, BodyParams
from visa.networks.farthest import farthest_points
from visa.networks.joints import HEAD_JOINTS, WRISTS

# What a difference counts: of the head's turn to the camera, the wrists', the jaw's (rad) and expressions.
HEAD_WEIGHT, WRIST_WEIGHT, JAW_WEIGHT, EXPRESSION_WEIGHT = 2.0, 0.5, 5.0, 1.0
CALM = 0.75  # share of the frames that may be photos, the slowest: what moves fast is blurred and tracked worst


@torch.no_grad()
def describe_frames(clip: Clip, numbers: np.ndarray, body: BodyModel) -> Tensor:
    """Pose and expression `[n,D]` of frames, in which photos that look alike lie near each other."""
    device = body.v_template.device
    params = BodyParams.from_track(clip.track, numbers).map(lambda value: value.to(device))
    transforms = body.joint_transforms(params)[..., :3, :3]
    camera = torch.from_numpy(clip.track["world_to_camera"][numbers])[:, None, :3, :3].to(device)
    head, wrists = (camera @ transforms[:, list(joints)] for joints in (HEAD_JOINTS[:1], WRISTS))
    parts = [
        HEAD_WEIGHT * head.flatten(1),
        WRIST_WEIGHT * wrists.flatten(1),
        JAW_WEIGHT * params.jaw_pose,
        EXPRESSION_WEIGHT * params.expression,
    ]
    return torch.cat(parts, dim=1).cpu()


def spread_frames(clip: Clip, candidates: np.ndarray, count: int, first: int, body: BodyModel) -> list[int]:
    """Choose photos among a clip's frames; the same for the same input.

    Args:
        clip: tracked.
        candidates: frame numbers, of which the calmest are looked at, or all if those are too few.
        count: K; fewer where there are fewer candidates.
        first: frame number of the first photo.
        body: the model that the track is a fit of.
    """
    described = describe_frames(clip, np.arange(clip.num_frames), body)
    step = (described[1:] - described[:-1]).norm(dim=1)
    speed = torch.maximum(torch.nn.functional.pad(step, (0, 1)), torch.nn.functional.pad(step, (1, 0)))
    others = candidates[candidates != first]
    of_others = speed[others]
    if len(others):
        calm = others[(of_others <= of_others.quantile(CALM)).numpy()]
        others = calm if len(calm) >= count - 1 else others
    numbers = np.concatenate([[first], others])
    return [int(numbers[i]) for i in farthest_points(described[numbers], count)]
