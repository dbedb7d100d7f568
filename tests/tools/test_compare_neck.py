"""The comparison of templates with and without the neck band, on networks that have learned nothing."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.reconstructors import untrained
from visa.artifacts.weights import save_weights
from visa.networks.body import BodyModel
from visa.tools.compare_neck import BODY, band_region, errors, main, read_frames


def test_errors_are_those_of_the_region() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    picture = truth.clone()
    picture[:, :, 0] = 0.1
    top = torch.zeros(2, 1, 4, 4)
    top[:, :, 0] = 1
    result = errors(picture, truth, {"top": top, "all": torch.ones_like(top)})
    assert result["top_l1"] == pytest.approx(0.1)
    assert result["top_psnr"] == pytest.approx(20.0, abs=1e-3)
    assert result["all_l1"] == pytest.approx(0.025)


def test_the_band_lies_between_chin_and_shoulders(clip_path: Path) -> None:
    batch, body = read_frames(str(clip_path), None, 96, 1), BodyModel.from_file(ROOT / BODY)
    assert batch.frame_numbers.tolist() == [[18, 19, 25, 26]]  # the gaps beside the test block 20-24
    rows = torch.nonzero(band_region(body, batch)[:, 0])[:, 1].float()
    joints = body(batch.body.map(lambda value: value[0]), torch.zeros(1, dtype=torch.long))[1]
    seen = torch.einsum("tij,tnj->tni", batch.world_to_camera[0, :, :3, :3], joints)
    seen = torch.einsum("tij,tnj->tni", batch.intrinsics[0], seen + batch.world_to_camera[0, :, None, :3, 3])
    heights = (seen[..., 1] / seen[..., 2]).mean(dim=0)
    assert len(rows) > 20
    assert heights[22] < rows.mean() < heights[9]  # below the jaw, above the chest


@pytest.mark.slow
def test_an_untrained_network_is_its_bare_template(
    clip_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    paths = []
    for remove_neck in (False, True):
        reconstructor = untrained(remove_neck, 16)
        paths.append(save_weights(tmp_path / f"{remove_neck}.safetensors", reconstructor.state_dict(), {}))
    figure = tmp_path / "neck.png"
    command = ["--with_neck", str(paths[0]), "--neck_removed", str(paths[1]), "--clip", str(clip_path)]
    teacher = "assets/weights/teacher.safetensors"
    command += ["--with_neck_teacher", teacher, "--neck_removed_teacher", teacher]
    assert main([*command, "--size", "64", "--stride", "2", "--json", "--figure", str(figure)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert figure.stat().st_size > 1000
    for name in ("with_neck_band_l1", "neck_removed_around_psnr", "neck_removed_elsewhere_l1"):
        assert result[f"template_{name}"] == result[f"trained_{name}"]
        assert result[f"painted_{name}"] != result[f"trained_{name}"]
    assert main(["--with_neck", str(paths[1]), "--neck_removed", str(paths[1]), "--clip", str(clip_path)]) == 1
    assert "--model.remove_neck false" in capsys.readouterr().err
