"""Every full-size config is built without memory, and fits the GPUs that it is meant for."""

import json

import pytest

from tests.conftest import ROOT
from visa.benchmarks import rehearsal


@pytest.mark.slow
def test_every_full_size_config_is_rehearsed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="DINOv2 comes through transformers (extra dinov2)")
    monkeypatch.chdir(ROOT)
    rehearsal.main(["--json"])
    figures = json.loads(capsys.readouterr().out)
    named = {path.stem for path in (ROOT / "configs/scale").glob("wan_1_3b_*.yaml")}
    rehearsed = {
        path.rsplit("/", 1)[-1].removesuffix(".yaml") for paths in rehearsal.CONFIGS.values() for path in paths
    }
    assert named <= rehearsed
    shader = figures["trained_teacher"]
    assert 1.4e9 < shader < 1.5e9
    assert figures["trained_shader"] == 2 * figures["trained_shader_ode"] == 2 * shader  # student and critic
    assert figures["trained_adversarial"] > figures["trained_shader"]
    assert 0 < figures["trained_reconstruction"] < figures["frozen_reconstruction"]
    assert all(0 < figures[f"gib_{stage}"] < figures["gpu_gib"] for stage in rehearsal.CONFIGS)
    with pytest.raises(SystemExit, match="more than a RTX-4090 holds"):
        rehearsal.main(["--gpu", "RTX-4090", "--num_gpus", "1"])
