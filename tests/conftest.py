"""Fixtures: a small synthetic clip on disk, a browser, and the folder of real test material where there is one."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visa.artifacts.media import write_video
from visa.networks import anchors, template
from visa.networks.body import BodyModel

ROOT = Path(__file__).resolve().parent.parent
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # they and what they start share the cores
    share = max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(os, "sched_getaffinity") else 1
    os.environ |= {"OMP_NUM_THREADS": str(share), "NUMBA_NUM_THREADS": str(share)}
    torch.set_num_threads(share)
SHARED = ROOT.parent / "shared" / "real"
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")


def write_clip(folder: Path, name: str, num_frames: int = 40, size: tuple[int, int] = (72, 96), seed: int = 0) -> Path:
    """A moving body in front of a camera as a clip (video, mask, track): sizes are (height, width) in pixels."""
    height, width = size
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 4, 5), dtype=np.float32))
    base = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    ramp = torch.linspace(0, 1, num_frames)[:, None, None, None]
    write_video(folder / f"{name}.mp4", base * (1 - ramp) + base.flip(3) * ramp, fps=25)
    mask = torch.zeros(num_frames, 3, height, width)
    mask[:, :, height // 5 :, width // 4 : -width // 4] = 1
    write_video(folder / f"{name}.mask.mp4", mask, fps=25)
    np.savez(folder / f"{name}.track.npz", **clip_track(num_frames, size))
    return folder / f"{name}.mp4"


def clip_track(num_frames: int, size: tuple[int, int] = (72, 96)) -> dict[str, np.ndarray]:
    """A valid track: head and shoulders seen from the front, the head turning."""
    height, width = size
    shapes = {
        "expression": (40,), "global_orient": (3,), "transl": (3,), "body_pose": (21, 3), "jaw_pose": (3,),
        "leye_pose": (3,), "reye_pose": (3,), "left_hand_pose": (15, 3), "right_hand_pose": (15, 3),
    }  # fmt: skip
    track = {name: np.zeros((num_frames, *shape), dtype=np.float32) for name, shape in shapes.items()}
    track["body_pose"][:, 11, 1] = 0.4 * np.sin(np.arange(num_frames) / 5)
    track["jaw_pose"][:, 0] = 0.1 * (1 + np.sin(np.arange(num_frames) / 3))
    camera = np.diag([1.0, -1.0, -1.0, 1.0]).astype(np.float32)
    camera[1, 3], camera[2, 3] = 0.25, 1.2
    focal = 1.4 * height
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=np.float32)
    return {
        **track,
        "betas": np.zeros(10, dtype=np.float32),
        "world_to_camera": np.tile(camera, (num_frames, 1, 1)),
        "intrinsics": np.tile(intrinsics, (num_frames, 1, 1)),
        "frame_valid": np.ones(num_frames, dtype=bool),
        "fps": np.float32(25),
        "image_size": np.array([width, height]),
        "body_model": np.array("smplx_anny"),
    }


def once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function of tensors and numbers, which searches again only for what it has not seen."""
    found: dict[tuple[object, ...], Tensor] = {}

    def identity(value: Tensor | int) -> object:
        return (value.shape, value.dtype, value.cpu().numpy().tobytes()) if isinstance(value, Tensor) else value

    def remembered(*arguments: Tensor | int) -> Tensor:
        key = tuple(map(identity, arguments))
        if key not in found:
            found[key] = function(*arguments)
        return found[key].clone()

    return remembered


@pytest.fixture(scope="session", autouse=True)
def _searches_run_once() -> Iterator[None]:
    """Most of what building a reconstructor costs are two searches through all pairs of the template's anchors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anchors, "_neighbours", once(anchors._neighbours))
        patch.setattr(template, "_mirror", once(template._mirror))
        yield


@pytest.fixture(scope="session")
def body() -> BodyModel:
    """The shipped body model, which no test changes."""
    return BodyModel.from_file(ROOT / "assets/body/smplx_anny.npz")


@pytest.fixture(scope="session")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic clip with test, validation and gap."""
    path = write_clip(tmp_path_factory.mktemp("clip"), "person")
    path.with_name("person.splits.yaml").write_text("test: [[20, 24]]\nvalidation: [[32, 39]]\ngap: 2\nreference: 3\n")
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """Program of a browser that pages are tried in; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found
