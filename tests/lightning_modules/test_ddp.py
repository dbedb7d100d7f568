"""Two processes: ranks draw different batches, run the same number of passes, and end with equal weights.

Every stage, started by Lightning or by torchrun, and once with avatars from a folder that both fill.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.lightning_modules.test_stages import STAGES, small
from tests.runtime.test_avatar_cache import cached

REPORT = """
import lightning, torch
from pathlib import Path
class ReportRank(lightning.Callback):
    def __init__(self, folder: str):
        self.folder, self.seen = Path(folder), []
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(batch.frame_numbers.clone())
    def on_fit_end(self, trainer, pl_module):
        state = {n: p.detach() for n, p in pl_module.named_parameters() if p.requires_grad}
        torch.save({"state": state, "seen": torch.stack(self.seen)}, self.folder / f"rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "is_cached", "launcher"),
    [
        ("reconstruction", False, "torchrun"),
        ("teacher", False, "torchrun"),
        ("ode", False, "torchrun"),
        ("shader", False, "lightning"),
        ("adversarial", False, "lightning"),
        ("shader", True, "lightning"),
    ],
)
def test_two_ranks_end_equal(stage: str, is_cached: bool, launcher: str, clip_path: Path, tmp_path: Path) -> None:
    (tmp_path / "report_rank.py").write_text(REPORT)
    callback = f"{{class_path: report_rank.ReportRank, init_args: {{folder: {tmp_path}}}}}"
    sizes = cached(clip_path, tmp_path / "avatars", num_steps=3) if is_cached else small(clip_path, num_steps=3)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [
        sys.executable, *(torchrun if launcher == "torchrun" else []), "train.py", "fit", *STAGES[stage], *sizes,
        "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp_find_unused_parameters_true",
        f"--trainer.callbacks+={callback}",
    ]  # fmt: skip
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "VISA_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [name for name, value in first["state"].items() if not torch.equal(value, second["state"][name])] == []
    assert not torch.equal(first["seen"], second["seen"])
    entries = [path.name for path in (tmp_path / "avatars").rglob("*.safetensors")]
    assert len(entries) == (2 if is_cached else 0)
