"""Frames by number are those that PyAV decodes in order, here and in loader workers; damaged files are told."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from tests.conftest import ROOT
from visa.datamodules import decode
from visa.datamodules.decode import BrokenVideo, SeekingReader, read_all, read_frames, stream_frames, video_info

SHIPPED = ROOT / "assets/clips/webcam_man.mp4"


def encode(
    path: Path, count: int = 60, size: tuple[int, int] = (48, 64), form: str = "yuv420p", times: list[int] | None = None
) -> Path:
    """H.264 with B-frames and several key frames; `times` are time stamps in 1/1000 s (25 fps without them)."""
    random = np.random.default_rng(0)
    base = random.integers(0, 255, (*size, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12", "bf": "3", "crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *size, form
        stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(base, index, axis=1), format="rgb24")
            frame.pts, frame.time_base = (times[index] if times else 40 * index), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def in_order(path: Path, form: str = "rgb24") -> np.ndarray:
    """The independent reference: PyAV from the first frame to the last."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format=form) for frame in container.decode(video=0)])


class Numbers(Dataset):
    """One item reads one list of frames: what a loader worker does."""

    def __init__(self, path: Path, lists: list[list[int]]) -> None:
        self.path, self.lists = path, lists

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        numbers = np.asarray(self.lists[index])
        frames = read_frames(self.path, False, numbers)
        return frames, type(decode._reader(self.path, False, self.path.stat().st_mtime_ns)).__name__


def test_random_access_to_the_shipped_clip_is_exact() -> None:
    first = [frame.copy() for frame, _ in zip(stream_frames(SHIPPED, gray=False), range(530), strict=False)]
    numbers = np.array([251, 3, 249, 250, 500, 250, 529, 0, 131])
    np.testing.assert_array_equal(read_frames(SHIPPED, False, numbers), np.stack([first[n] for n in numbers]))
    mask = SHIPPED.with_name("webcam_man.mask.mp4")
    grey = [frame.copy() for frame, _ in zip(stream_frames(mask, gray=True), range(300), strict=False)]
    numbers = np.array([299, 260, 7])
    np.testing.assert_array_equal(read_frames(mask, True, numbers)[..., 0], np.stack([grey[n] for n in numbers]))


@pytest.mark.parametrize("kind", ["constant", "variable", "odd", "window"])
def test_every_frame_by_number_is_exact(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    times = np.cumsum(random.integers(7, 150, 60)).tolist() if kind == "variable" else None
    size, form = ((47, 63), "yuv444p") if kind == "odd" else ((48, 64), "yuv420p")
    path = encode(tmp_path / "clip.mp4", size=size, form=form, times=times)
    expected = in_order(path)
    assert video_info(path) == decode.VideoInfo(60, *size)
    window = (slice(5, 30), slice(20, 41)) if kind == "window" else decode.WHOLE
    np.testing.assert_array_equal(read_all(path, False, 60, window), expected[(slice(None), *window)])
    reader = SeekingReader(path, gray=False)
    for number in random.permutation(60):
        np.testing.assert_array_equal(reader.read(np.array([number]), window)[0], expected[number][window])
    numbers = random.integers(0, 60, 25)
    np.testing.assert_array_equal(read_frames(path, False, numbers, window), expected[numbers][(slice(None), *window)])


@pytest.mark.parametrize("kind", ["constant", "variable", "odd"])
def test_workers_read_with_decord_the_same_frames(kind: str, tmp_path: Path) -> None:
    """The parent has a reader of its own open: forked workers must not inherit it."""
    random = np.random.default_rng(2)
    times = np.cumsum(random.integers(7, 150, 60)).tolist() if kind == "variable" else None
    size, form = ((47, 63), "yuv444p") if kind == "odd" else ((48, 64), "yuv420p")
    path = encode(tmp_path / "clip.mp4", size=size, form=form, times=times)
    expected = in_order(path)
    read_frames(path, False, np.array([30]))
    lists = [random.integers(0, 60, 9).tolist() for _ in range(6)] + [[59, 0, 59], list(range(20, 30))]
    loader = DataLoader(Numbers(path, lists), batch_size=None, num_workers=2, timeout=60)
    for numbers, (frames, reader) in zip(lists, loader, strict=True):
        np.testing.assert_array_equal(frames, expected[numbers])
        assert reader in ("DecordReader", "SeekingReader")
    pytest.importorskip("decord", reason="decord has wheels for x86-64 Linux only")
    assert reader == "DecordReader"


@pytest.mark.slow
def test_reading_does_not_import_decord_here() -> None:
    """decord loaded before torchvision or OpenCV breaks PNG reading, and its readers hang workers forked later."""
    import subprocess
    import sys

    code = (
        "import sys, numpy; from visa.datamodules.decode import read_frames; from pathlib import Path;"
        f"read_frames(Path({str(SHIPPED)!r}), False, numpy.array([5])); assert 'decord' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("damage", ["cut", "no index", "no video"])
def test_a_damaged_file_is_told_without_decoding_it(damage: str, tmp_path: Path) -> None:
    from visa.tools.track.write import VideoWriter

    path = tmp_path / "clip.mp4"
    writer = VideoWriter(path, 25.0, 64, 48, crf=10)  # its index stands in front, as in most mp4s of the web
    for index in range(40):
        writer.write(np.random.default_rng(index).integers(0, 255, (48, 64, 3)).astype(np.uint8))
    writer.close()
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) * 2 // 3], "no index": content[:200], "no video": b"text"}[damage])
    with pytest.raises(BrokenVideo, match=r"clip\.mp4 cannot be decoded") as caught:
        video_info(path)
    assert "\n" not in str(caught.value)


def test_a_frame_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", count=8)
    with pytest.raises(BrokenVideo, match="8 of 9 frames"):
        read_all(path, False, 9)
