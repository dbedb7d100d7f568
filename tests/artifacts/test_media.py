"""Video and picture files: what is written is what is read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from visa.artifacts.files import atomic_path
from visa.artifacts.media import read_video, sheet, side_by_side, to_uint8, write_image, write_video
from visa.artifacts.provenance import SYNTHETIC


def _clip(num_frames: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(num_frames, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


@pytest.mark.parametrize(("height", "width"), [(64, 48), (33, 47)])
def test_video_round_trip(tmp_path: Path, height: int, width: int) -> None:
    clip = _clip(7, height, width)
    frames, fps = read_video(write_video(tmp_path / "new" / "a.mp4", clip, fps=25))
    assert fps == 25
    assert frames.shape == (7, 3, height + height % 2, width + width % 2)
    error = (frames[..., :height, :width] - clip).square().mean()
    assert -10 * torch.log10(error) > 32  # the chroma of these small patches is halved
    torch.testing.assert_close(read_video(tmp_path / "new" / "a.mp4", 2, 5)[0], frames[2:5], rtol=0, atol=0)


def test_video_takes_an_iterator_and_fractional_rates(tmp_path: Path) -> None:
    frames, fps = read_video(write_video(tmp_path / "a.mp4", iter(_clip(3, 32, 32)), fps=30000 / 1001))
    assert len(frames) == 3
    assert fps == pytest.approx(29.97, abs=0.001)


def test_failed_video_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", _clip(2, 32, 32), fps=25)
    before = path.read_bytes()

    def broken() -> Iterator[torch.Tensor]:
        yield torch.rand(3, 32, 32)
        raise RuntimeError("network failed")

    with pytest.raises(RuntimeError, match="network failed"):
        write_video(path, broken(), fps=25)
    with pytest.raises(ValueError, match="one size, got"):
        write_video(path, [torch.rand(3, 32, 32), torch.rand(3, 16, 32)], fps=25)
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(path, [], fps=25)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unreadable_videos_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.mp4 does not exist"):
        read_video(tmp_path / "nothing.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be read"):
        read_video(text)
    short = write_video(tmp_path / "short.mp4", _clip(3, 32, 32), fps=25)
    with pytest.raises(ValueError, match="has 3 frames, asked for 1 to 9"):
        read_video(short, 1, 9)


def _write_half(path: Path) -> None:
    with atomic_path(path) as scratch:
        scratch.write_text("half")
        raise KeyError


def test_atomic_path_is_all_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        _write_half(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


def test_side_by_side_keeps_the_pictures() -> None:
    clip, photo = _clip(3, 31, 40), _clip(1, 31, 20)[0]
    joined = side_by_side({"photo": photo, "truth": clip}, separator=2)
    assert joined.shape[0] == 3
    assert joined.shape[-2] % 2 == joined.shape[-1] % 2 == 0
    bar = joined.shape[-2] - 31 - (18 + 31) % 2
    torch.testing.assert_close(joined[:, :, bar : bar + 31, :20], photo.expand(3, -1, -1, -1))
    torch.testing.assert_close(joined[:, :, bar : bar + 31, 22:62], clip)
    assert (joined[:, :, :bar] < 0.5).any()  # the labels
    with pytest.raises(ValueError, match="agree in length"):
        side_by_side({"a": clip, "b": clip[:2]})
    with pytest.raises(ValueError, match="at least one column"):
        side_by_side({"photo": photo})


def test_sheet_holds_each_picture_in_its_cell(tmp_path: Path) -> None:
    rows = {"truth": _clip(3, 16, 24), "student": 1 - _clip(3, 16, 24)}
    picture = sheet(rows, ["frame 0", "frame 5", "frame 9"], separator=2)
    assert picture.shape[-2] == 18 + 2 * 18
    margin = picture.shape[-1] - 3 * 26
    for k in range(3):
        left = margin + 26 * k
        torch.testing.assert_close(picture[:, 18:34, left : left + 24], rows["truth"][k])
        torch.testing.assert_close(picture[:, 36:52, left : left + 24], rows["student"][k])
    assert write_image(tmp_path / "sheet.png", picture).stat().st_size > 0
    with pytest.raises(ValueError, match="equally many"):
        sheet({"a": rows["truth"], "b": rows["truth"][:2]})
    with pytest.raises(ValueError, match="3 columns has 1 column labels"):
        sheet(rows, ["one"])


def test_to_uint8_rounds_and_clamps() -> None:
    values = torch.tensor([-1.0, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 2.0]).expand(3, 1, 6)
    assert to_uint8(values)[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


def test_a_comment_is_in_the_file(tmp_path: Path) -> None:
    import av

    for comment in (None, SYNTHETIC):
        path = write_video(tmp_path / "out.mp4", torch.rand(3, 3, 16, 16), fps=25, comment=comment)
        with av.open(str(path)) as container:
            assert container.metadata.get("comment") == comment
