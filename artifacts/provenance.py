"""What made a result: revision of the code and machine."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import torch


def git_commit() -> str:
    """Revision of this source tree, `+changed` where tracked files differ from it, `unknown` outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        # The tree must be the repository itself: an installed copy inside somebody's other repository is not that
        # revision.
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != root:
            return "unknown"
        revision = _git(root, "rev-parse", "HEAD")
        return revision + ("+changed" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20)
    return result.stdout.strip()


def device_name(device: torch.device | str = "cpu") -> str:
    """Name of the device for tables, e.g. `AMD EPYC 7763, 2 threads` or `NVIDIA H100 80GB HBM3`."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    unit = 1e6 if sys.platform == "darwin" else 1e3  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
