"""Lines of progress in real, tiny Lightning runs."""

from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from tests.callbacks.test_callbacks import Clips, Toy
from visa.callbacks.progress import ProgressLines


def run(folder: Path, lines: ProgressLines, checkpoint: Path | None = None) -> None:
    kept = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        limit_train_batches=6,
        limit_val_batches=1,
        val_check_interval=3,
        num_sanity_val_steps=1,
        max_epochs=1,
        logger=False,
        callbacks=[lines, kept],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Toy(), DataLoader(Clips(), batch_size=2), DataLoader(Clips(), batch_size=2), ckpt_path=checkpoint)


def test_a_line_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ProgressLines(seconds=0))
    lines = [line for line in capsys.readouterr().err.splitlines() if "s] " in line]
    said = [line.partition("] ")[2] for line in lines]
    assert [line.partition(",")[0] for line in said if line.startswith("batch")] == [
        f"batch {k} of 6" for k in range(1, 7)
    ]
    assert said[0] == "validation after batch 0, window 1"
    assert said[1].endswith(" min left")
    assert said[4] == "validation after batch 3, window 1"
    assert all(float(line.strip("[").partition(" s]")[0]) < 600 for line in lines)  # since the run began


def test_a_resumed_run_counts_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ProgressLines(seconds=0))
    capsys.readouterr()
    run(tmp_path, ProgressLines(seconds=0), tmp_path / "step=2.ckpt")
    said = capsys.readouterr().err
    assert "batch 2 of 6" not in said
    assert "batch 3 of 6" in said


def test_lines_are_few_and_none_where_a_terminal_has_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, ProgressLines(seconds=3600))
    assert "batch 1" not in capsys.readouterr().err
    monkeypatch.setattr("visa.callbacks.progress.sys.stderr.isatty", lambda: True)
    run(tmp_path, ProgressLines(seconds=0))
    assert "batch 1" not in capsys.readouterr().err


def test_a_negative_pause_is_refused() -> None:
    with pytest.raises(ValueError, match="give 0 or more"):
        ProgressLines(-1)
