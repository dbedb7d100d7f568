"""Weights and lengths of the tracker's fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FitOptions:
    """Weights of the fit. Residuals are in percent of the face's height, so that they hold at any picture size."""

    focal_per_side: float = (
        1.2  # focal length over the longer side: a field of view of 45 degrees; a face alone cannot tell it
    )
    coarse_stride: int = 5  # shape and a first motion are found from every fifth frame
    max_coarse_frames: int = 400
    num_coarse_steps: int = 250
    num_fine_steps: int = 80
    num_motion_steps: int = 150
    robust_percent: float = 2.0  # residual beyond which a point counts as an outlier
    oval_weight: float = 0.5  # the outline is the detector's weakest part: cheeks hide it
    iris_weight: float = 2.0
    pair_weight: float = 1.0
    body_weight: float = 1.0
    hand_weight: float = 0.4
    outline_weight: float = 1.0  # of the matte's outline
    motion_weight: float = 4.0  # of the surface's motion in the pixels
    shape_prior: float = 0.003
    expression_offset_prior: float = 1.0  # the clip's mean expression stands in for what the shape space lacks
    expression_prior: float = 0.1
    expression_bound_prior: float = 5.0
    pose_prior: float = 0.3
    limit_prior: float = 5.0
    head_smoothness: float = 4.0
    face_smoothness: float = 0.15
    body_smoothness: float = 1.0
    head_motion: float = 1.0  # percent a frame a frame, from which a change of speed is a motion and no noise
    body_motion: float = 12.0  # the same of the body, whose points jump by 3 to 8
    max_gap_seconds: float = 0.2  # a face missing for longer makes its frames invalid
    max_error_percent: float = 6.0  # a frame that fits worse than this shows no face that the model can explain
