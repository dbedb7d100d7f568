"""The drift of a long rollout: the passes it compares show the same frames."""

import pytest
import torch

from visa.benchmarks.drift import first_and_last, passes
from visa.benchmarks.shader import bounce
from visa.evaluation.image import psnr


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


def test_the_sheet_shows_the_same_frames_of_first_and_last_pass() -> None:
    truth = torch.linspace(0, 1, 9)[:, None, None, None].expand(-1, 3, 32, 32)
    for length in (26, 36):  # the last whole pass runs forth, then back
        shown = first_and_last(truth[bounce(length, 9)].half(), truth)
        rows = shown.unflatten(1, (3, 34))[:, :, 4:28, -270:]  # pictures of 32 px, lines of 2 between them
        torch.testing.assert_close(rows[:, 1], rows[:, 2], atol=1e-3, rtol=0)
