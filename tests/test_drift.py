"""The drift of a long rollout: the passes it compares show the same frames."""

import pytest
import torch

from benchmarks.drift import passes
from benchmarks.shader import bounce
from metrics.image import psnr


def test_passes_compare_the_same_frames_whichever_way_they_run() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(9, 3, 32, 32, generator=generator)
    order = bounce(36, 9)  # there, back, there and back again, and a rest that is no whole pass
    painted = truth[order].clone()
    painted[16:25] = (painted[16:25] + 0.1).clamp(0, 1)  # the third pass, with the frames at which it turns
    found = passes(painted.half(), truth, order)
    assert len(found) == 4
    true = truth[order[16:25:4]]
    assert found[2]["psnr"] == pytest.approx(float(psnr(painted[16:25:4].half().float(), true).mean()))
    assert found[2]["perceptual"] > 100 * found[0]["perceptual"]
    assert found[0]["psnr"] > 60
