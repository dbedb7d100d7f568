"""Weights files: read as written, refused where they are broken or hold no numbers."""

from pathlib import Path

import pytest
import torch

from visa.artifacts.weights import read_weights, save_weights


def test_weights_are_read_as_written(tmp_path: Path) -> None:
    state = {"a": torch.tensor([0.5, 65504.0]), "count": torch.tensor([3])}
    path = save_weights(tmp_path / "new/w.safetensors", state, {"stage": "teacher"})
    read = read_weights(path, "nothing")
    assert torch.equal(read["a"], state["a"])
    assert read["a"].dtype == torch.float32
    assert torch.equal(read["count"], state["count"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7e4])
def test_what_float16_cannot_hold_is_not_written(value: float, tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.safetensors", {"a": torch.ones(2)}, {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"w\.safetensors is not written: b is not finite, or beyond float16's"):
        save_weights(path, {"a": torch.ones(2), "b": torch.tensor([1.0, value])}, {})
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.safetensors", {"a": torch.ones(200)}, {})
    whole = path.read_bytes()
    for length in (0, 5, 60, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"w\.safetensors is not a safetensors file .*make it again") as caught:
            read_weights(path, "a command")
        assert "\n" not in str(caught.value)
