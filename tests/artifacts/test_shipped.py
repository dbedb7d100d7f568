"""What the package ships is found from any working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from visa.artifacts.files import shipped
from visa.runtime.shipped import BODY, WEIGHTS, load_reconstructor


@pytest.mark.slow
def test_defaults_hold_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped(BODY).resolve() == ROOT / BODY
    assert shipped("configs/shader.yaml").is_file()
    load_reconstructor(BODY, WEIGHTS)


def test_own_files_come_first_and_unknown_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets/body").mkdir(parents=True)
    (tmp_path / BODY).write_bytes(b"mine")
    assert shipped(BODY) == Path(BODY)
    assert shipped("assets/nothing.npz") == Path("assets/nothing.npz")
    assert shipped(tmp_path / "none") == tmp_path / "none"
