"""What the benchmark of faults decides by: states that differ, files that are half, tables that count."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from visa.benchmarks.faults import Ended, Tally, first_difference, half_files


def test_states_are_equal_bit_for_bit_or_not() -> None:
    state = {"a": [torch.tensor([1.0, 2.0]), {"b": 3}], "c": (None, "x")}
    assert first_difference(state, {"a": [torch.tensor([1.0, 2.0]), {"b": 3}], "c": (None, "x")}) is None
    for other, place in (
        ({"a": [torch.tensor([1.0, 2.0 + 1e-6]), {"b": 3}], "c": (None, "x")}, "a/0/tensor"),
        ({"a": [torch.tensor([1.0, 2.0], dtype=torch.float64), {"b": 3}], "c": (None, "x")}, "a/0/tensor"),
        ({"a": [torch.tensor([1.0, 2.0]), {"b": 4}], "c": (None, "x")}, "a/1/b/3 and 4"),
        ({"a": [torch.tensor([1.0, 2.0]), {}], "c": (None, "x")}, "a/1/b"),
        ({"a": [torch.tensor([1.0, 2.0]), {"b": 3}], "c": (None, "y")}, "c/1/x and y"),
    ):
        assert first_difference(state, other) == place


def test_half_files_are_seen_and_hidden_ones_are_not(tmp_path: Path) -> None:
    torch.save({"optimizer_states": [], "weights": torch.zeros(500)}, tmp_path / "last.ckpt")
    (tmp_path / "config.yaml").write_text("model: {class_path: x}\n")
    (tmp_path / "hparams.yaml").write_text("")
    assert half_files(tmp_path) == []
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "config_2.yaml").write_text("mod")
    (tmp_path / ".last.partial.ckpt").write_bytes(b"")
    assert [line.split()[0] for line in half_files(tmp_path)] == ["config_2.yaml", "last.ckpt"]


def test_the_table_counts() -> None:
    tally = Tally()
    tally.add("kill", [])
    tally.add("kill", ["something was lost"])
    tally.add("full disk", [])
    assert tally.table().splitlines()[1].split() == ["kill", "2", "1"]
    assert tally.figures() == {
        "kill_injected": 2, "full_disk_injected": 1, "kill_survived": 1, "full_disk_survived": 1,
    }  # fmt: skip


def test_one_line_is_one_line() -> None:
    assert Ended(1, "INFO: x\nerror: the disk is full\n", 1.0).is_one_line()
    assert not Ended(0, "error: x\n", 1.0).is_one_line()
    assert not Ended(1, "Traceback (most recent call last):\nerror: x\n", 1.0).is_one_line()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_and_an_ended_run_go_on() -> None:
    # Runs are forks: of a process of one thread, which the one of the tests is not.
    command = [sys.executable, "-m", "visa.benchmarks.faults", "--stages", "teacher", "--only", "signals"]
    command += ["--kills", "1", "--terms", "1", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    for fault in ("SIGKILL_teacher", "SIGTERM_teacher", "SIGTERM_predict"):
        assert figures[f"{fault}_survived"] == figures[f"{fault}_injected"] == 1
