"""The drift of a long rollout: the passes it compares show the same frames."""

import pytest
import torch

from benchmarks.drift import passes
from benchmarks.shader import bounce
from metrics.image import psnr


def test_passes_compare_the_same_frames_whichever_way_they_run() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(4, 3, 32, 32, generator=generator)
    order = bounce(14, 4)  # there, back, there and back again, and a rest that is no whole pass
    painted = truth[order].clone()
    painted[6:10] = (painted[6:10] + 0.1).clamp(0, 1)  # the third pass, with the frames at which it turns
    found = passes(painted.half(), truth, order)
    assert len(found) == 4
    true = truth[order[6:10]]
    assert found[2]["psnr"] == pytest.approx(float(psnr(painted[6:10].half().float(), true).mean()))
    assert found[2]["perceptual"] > 100 * found[0]["perceptual"]
    assert found[0]["psnr"] > 60
