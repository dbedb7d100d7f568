"""The overlays of real people, as shipped: folders of tracked clips train two steps, and strangers are tested."""

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, write_clip
from visa import cli as train

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `people`: one who trains, one who validates, two strangers."""
    for name in ("assets", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    splits = {
        "train": "",
        "validation": "validation: [[4, 8]]\nreference: 0\ntrain: false\n",
        "test": "test: [[4, 8]]\nreference: 0\ntrain: false\n",
    }
    for seed, (kind, name) in enumerate([("train", "anna"), ("validation", "bert"), ("test", "cleo"), ("test", "dan")]):
        place = tmp_path / "people" / kind
        place.mkdir(parents=True, exist_ok=True)
        path = write_clip(place, name, num_frames=12, seed=seed)
        if splits[kind]:
            path.with_name(f"{name}.splits.yaml").write_text(splits[kind])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")
    return tmp_path


@pytest.mark.slow
def test_people_train_and_others_validate(folder: Path) -> None:
    schedule = [{"start": 0, "resolution": 64, "num_frames": 1, "batch_size": 2}]
    cli = train.main(
        [
            "fit", "-c", "configs/reconstruction.yaml", "-c", "configs/data/people.yaml", "--data.num_steps=2",
            f"--data.schedule={json.dumps(schedule)}", "--data.resolution=64", "--data.validation_windows=1",
            "--trainer.val_check_interval=2", *QUIET,
        ]
    )  # fmt: skip
    module = cli.datamodule
    trained = {clip.name for clip in module.training_windows().clips}
    assert "anna" in trained
    assert not trained & {"bert", "cleo", "dan"}
    assert {batch.names[0] for batch in module.val_dataloader()} == {"bert"}
    assert (next((folder / "runs/reconstruction").glob("version_*")) / "weights.safetensors").is_file()


@pytest.mark.slow
def test_strangers_are_tested_from_their_photo(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(
        [
            "test", "-c", "configs/reconstruction.yaml", "-c", "configs/data/strangers.yaml", "--weights=shipped",
            "--data.resolution=64", "--model.init_args.test_larger=96", *QUIET,
        ]
    )  # fmt: skip
    printed = capsys.readouterr().out
    rows = json.loads(Path(printed.strip().splitlines()[-1]).read_text())["rows"]
    assert (folder / "people").is_dir()
    for name in ("textured (cleo)", "textured (dan)", "feed-forward splat (mean of 2 in people/test)"):
        assert rows[name]["psnr"] > 5
        assert rows[name]["own_perceptual"] >= 0
        assert 0 <= rows[name]["turned_holes"] <= 1
    assert rows["textured (cleo)"]["own_psnr"] > rows["feed-forward splat (cleo)"]["own_psnr"]
    assert "better than freeze" in printed
