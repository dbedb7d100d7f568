"""How a video moves, compared with the truth. Frames are [T, 3, H, W] in [0, 1], consecutive."""

from torch import Tensor


def temporal_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """[T-1]: mean absolute difference between the frame-to-frame changes of prediction and truth, in [0, 1] units.

    No optical flow is needed: both show the same motion at the same time, so a change that the truth lacks is an error
    (flicker, swimming texture), and so is a change that the prediction lacks (stiffness).
    """
    return (prediction.diff(dim=0) - truth.diff(dim=0)).abs().mean(dim=(1, 2, 3))


def unrest(frames: Tensor) -> Tensor:
    """[T-2]: mean absolute second difference in time, in [0, 1] units: what alternates from frame to frame."""
    return frames.diff(n=2, dim=0).abs().mean(dim=(1, 2, 3))


def tlp(prediction_steps: Tensor, truth_steps: Tensor) -> Tensor:
    """[T-1]: tLP of Chu et al. 2020 (TecoGAN, arXiv:1811.09393, eq. 8), without their factor 100.

    Args:
        prediction_steps: [T-1] perceptual distance of each predicted frame to the predicted frame before.
        truth_steps: the same of the truth.
    """
    return (prediction_steps - truth_steps).abs()


def motion_energy(frames: Tensor) -> Tensor:
    """[T-1]: mean absolute change from frame to frame, in [0, 1] units: how much moves at all."""
    return frames.diff(dim=0).abs().mean(dim=(1, 2, 3))


def drift(figures: Tensor) -> float:
    """Mean of a figure over the last third of consecutive frames minus that over the first third; `figures` [T].

    NaN with fewer than three frames. A video that grows worse the longer it runs has a negative drift in dB; so has
    one whose motion grows: compare with the row that remembers nothing.
    """
    third = len(figures) // 3
    return float(figures[-third:].mean() - figures[:third].mean()) if third else float("nan")
