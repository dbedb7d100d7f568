"""Eyes and mouth: where their boxes lie, and what is measured in them."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import clip_track
from visa.evaluation.evaluation import Prediction, evaluate_rows
from visa.evaluation.image import masked_psnr
from visa.evaluation.regions import face_points, face_regions
from visa.networks.body import BodyModel, BodyParams
from visa.networks.view import View


def _view(num_frames: int = 3, size: int = 96) -> View:
    track = clip_track(num_frames, (size, size))
    numbers = torch.arange(num_frames).numpy()
    cameras = torch.from_numpy(track["world_to_camera"])
    return View(torch.from_numpy(track["intrinsics"]), cameras, size, BodyParams.from_track(track, numbers))


def test_eyes_lie_above_the_mouth_and_boxes_hold_their_points(body: BodyModel) -> None:
    view = _view()
    points = face_points(body, view)
    assert points.shape == (3, 478, 2)
    regions = face_regions(points, view.size)
    rows = torch.arange(view.size) + 0.5
    height = {part: float((mask[0, 0].sum(1) * rows).sum() / mask[0].sum()) for part, mask in regions.items()}
    assert height["eyes"] < height["mouth"]
    assert not (regions["eyes"] * regions["mouth"]).any()
    for part, chosen in (("mouth", (61, 291, 13, 14)), ("eyes", (33, 133, 263, 362, 468, 473))):
        for x, y in points[1, list(chosen)].long().tolist():
            assert regions[part][1, 0, y, x] == 1
    assert 0 < regions["mouth"].mean() < 0.1


def test_another_body_model_has_no_known_places(body: BodyModel) -> None:
    other = body.subset(torch.arange(100))
    with pytest.raises(ValueError, match="shipped body model alone"):
        face_points(replace_faces(other), _view())


def replace_faces(body: BodyModel) -> BodyModel:
    """With too few triangles."""
    body.faces = body.faces[:100]
    return body


def test_an_error_counts_in_its_region_alone(body: BodyModel) -> None:
    view = _view()
    regions = face_regions(face_points(body, view), view.size)
    regions["beside"] = torch.zeros_like(regions["eyes"])
    truth = torch.full((3, 3, 96, 96), 0.5)
    row = truth + 0.1 * regions["mouth"] + 0.001
    measured = evaluate_rows(truth, {"row": Prediction(row)}, measures=["image"], regions=regions)["row"]
    assert measured["psnr_mouth"] == pytest.approx(float(masked_psnr(row, truth, regions["mouth"]).mean()), abs=1e-4)
    assert measured["psnr_mouth"] == pytest.approx(19.914, abs=1e-2)  # -20 log10(0.101)
    assert measured["psnr_eyes"] == pytest.approx(60, abs=0.1)
    assert measured["psnr_beside"] is None
    assert measured["psnr_beside_reason"] == "it lies in no frame"


def test_regions_move_with_the_camera(body: BodyModel) -> None:
    view = _view()
    moved = replace(view, intrinsics=view.intrinsics.clone())
    moved.intrinsics[:, 0, 2] += 7
    torch.testing.assert_close(face_points(body, moved)[..., 0], face_points(body, view)[..., 0] + 7)
