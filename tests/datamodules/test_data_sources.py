"""The data module over many clips: shares, ranks, resume, sizes, references of one person, augmentation, bad files."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import clip_track, write_clip
from visa.artifacts.media import write_video
from visa.datamodules import video
from visa.datamodules.augment import Augment
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.decode import BrokenVideo
from visa.datamodules.schedule import Phase, start_of_rank
from visa.datamodules.sources import ClipSource, clip_files, open_sources
from visa.datamodules.video import VideoDataModule
from visa.datamodules.windows import WindowReader


def module(*paths: Path, stage: str = "fit", **options: object) -> VideoDataModule:
    options = {"schedule": [Phase(0, 32, 5, 2)], "num_steps": 6, **options}
    data = VideoDataModule(clips=[ClipSource(str(path)) for path in paths], **options)
    data.setup(stage)
    return data


def copy_clip(source: Path, target: Path) -> Path:
    """The clip's files under another name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in source.parent.glob(f"{source.stem}.*"):
        shutil.copy(file, target.with_name(file.name.replace(source.stem, target.stem, 1)))
    return target


def cut_off(path: Path) -> Path:
    """The file as a broken download leaves it: without its end."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def as_rank(data: VideoDataModule, rank: int = 0, world_size: int = 1, step: int = 0) -> VideoDataModule:
    """The module as rank `rank` sees it, resumed at `step`."""
    module = SimpleNamespace(step=step)
    data.trainer = SimpleNamespace(lightning_module=module, global_rank=rank, world_size=world_size)
    return data


def equal(a: VideoBatch, b: VideoBatch) -> bool:
    tensors = (name for name, value in vars(a).items() if isinstance(value, torch.Tensor))
    same_body = all(torch.equal(value, getattr(b.body, name)) for name, value in vars(a.body).items())
    return same_body and a.names == b.names and all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)


def test_two_ranks_never_draw_one_window_and_change_size_together(clip_path: Path) -> None:
    phases = [Phase(0, 32, 3, 2), Phase(4, 48, 5, 1), Phase(7, 64, 5, 3)]
    data = module(clip_path, schedule=phases, num_steps=12)
    ranks = [list(as_rank(data, rank, 2).train_dataloader()) for rank in (0, 1)]
    for step, (first, second) in enumerate(zip(*ranks, strict=True)):
        phase = phases[0 if step < 4 else 1 if step < 7 else 2]
        for batch in (first, second):
            assert batch.frames.shape == (phase.batch_size, phase.num_frames, 3, phase.resolution, phase.resolution)
        starts = [set(batch.frame_numbers[:, 0].tolist()) for batch in (first, second)]
        assert not starts[0] & starts[1]


def test_places_of_ranks_partition_and_each_is_reached() -> None:
    for num_starts, world_size, step in ((11, 4, 0), (11, 4, 3), (7, 7, 2)):
        drawn = []
        for rank in range(world_size):
            rng = np.random.default_rng([rank, step])
            drawn.append({start_of_rank(num_starts, step, rank, world_size, rng) for _ in range(200)})
        assert set.union(*drawn) == set(range(num_starts))
        assert sum(map(len, drawn)) == num_starts
    assert 0 <= start_of_rank(3, 5, 6, 8, np.random.default_rng(0)) < 3  # fewer places than ranks


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_batch_that_was_next(num_workers: int, clip_path: Path) -> None:
    data = module(clip_path, num_workers=num_workers, schedule=[Phase(0, 32, 3, 2), Phase(3, 48, 3, 1)])
    whole = list(as_rank(data).train_dataloader())
    resumed = list(as_rank(data, step=2).train_dataloader())
    assert len(resumed) == 4
    assert all(equal(a, b) for a, b in zip(whole[2:], resumed, strict=True))


@pytest.mark.slow
def test_memory_file_and_workers_give_the_same_batches(clip_path: Path) -> None:
    held = list(module(clip_path).train_dataloader())
    read = module(clip_path, cache_gb=0)
    assert read.clips[0]._frames is None
    assert all(equal(a, b) for a, b in zip(held, read.train_dataloader(), strict=True))
    in_workers = module(clip_path, cache_gb=0, num_workers=2)
    next(iter(in_workers.val_dataloader()))  # the parent reads, too, before it forks
    assert all(equal(a, b) for a, b in zip(held, in_workers.train_dataloader(), strict=True))


def test_the_cache_holds_clips_up_to_its_limit(tmp_path: Path) -> None:
    first = write_clip(tmp_path, "a", num_frames=10, size=(48, 64))
    copy_clip(first, tmp_path / "b.mp4")
    copy_clip(first, tmp_path / "c.mp4")
    size = Clip(first).loaded_bytes
    assert size == 10 * 48 * 48 * 4
    data = module(tmp_path, cache_gb=2.5 * size / 1e9)
    assert [clip._frames is not None for clip in data.clips] == [True, True, False]


def test_test_decodes_nothing_until_it_is_asked(clip_path: Path) -> None:
    data = module(clip_path, stage="test", resolution=32)
    assert data.clips[0]._frames is None
    (batch,) = data.test_dataloader()
    clip = Clip(clip_path).load()
    expected = WindowReader((0.5, 0.5, 0.5)).read(clip, np.arange(20, 25), 3, 32)
    assert equal(batch, expected)
    clip.release()
    assert equal(WindowReader((0.5, 0.5, 0.5)).read(clip, np.arange(20, 25), 3, 32), expected)


def test_sizes_are_logged_where_they_change(clip_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = module(clip_path, schedule=[Phase(0, 32, 3, 2), Phase(2, 48, 5, 1)], num_steps=4)
    logged = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append((step, metrics)))
    with caplog.at_level("INFO"):
        for step, batch in enumerate(as_rank(data).train_dataloader()):
            data.trainer.training, data.trainer.loggers, data.trainer.global_step = True, [logger], 2 * step
            data.trainer.lightning_module.step = step
            assert data.on_after_batch_transfer(batch, 0) is batch
    assert [step for step, _ in logged] == [0, 4]  # the logger's axis is the trainer's own count
    assert logged[1][1] == {"data/resolution": 48.0, "data/num_frames": 5.0, "data/batch_size": 1.0}
    assert [record.getMessage() for record in caplog.records if "from step" in record.getMessage()] == [
        "from step 0: 32 px, 3 frames, 2 windows a batch on each rank",
        "from step 2: 48 px, 5 frames, 1 windows a batch on each rank",
    ]


def test_a_folder_is_every_tracked_clip_in_it_and_shares_its_weight(tmp_path: Path) -> None:
    first = write_clip(tmp_path, "alone", num_frames=8)
    folder = tmp_path / "many"
    for name in ("b", "a", "c"):
        copy_clip(first, folder / f"{name}.mp4")
    shutil.copy(folder / "a.mp4", folder / "a.overlay.mp4")
    shutil.copy(folder / "a.mp4", folder / "untracked.mp4")
    copy_clip(first, folder / "deeper/d.mp4")
    assert [path.name for path in clip_files(str(folder))[0]] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [path.stem for path in clip_files(str(folder / "**" / "[ad].mp4"))[0]] == ["a", "d"]
    with pytest.warns(UserWarning, match="0 damaged, 1 without a track"):
        opened, skipped = open_sources([ClipSource(str(first), weight=3.0), ClipSource(str(folder), weight=1.5)])
    assert [(entry.clip.name, entry.weight) for entry in opened] == [("alone", 3.0), ("a", 0.5), ("b", 0.5), ("c", 0.5)]
    assert skipped == 1
    with pytest.raises(ValueError, match="no tracked clip in"):
        clip_files(str(tmp_path / "empty*"))


def test_windows_are_drawn_by_weight(tmp_path: Path) -> None:
    paths = [write_clip(tmp_path, name, num_frames=8, size=(32, 32)) for name in ("a", "b")]
    sources = [ClipSource(str(path), weight) for path, weight in zip(paths, (3.0, 1.0), strict=True)]
    data = VideoDataModule(clips=sources, schedule=[Phase(0, 16, 1, 40)], num_steps=10)
    data.setup("fit")
    names = [name for batch in data.train_dataloader() for name in batch.names]
    assert abs(names.count("a") / 400 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 400)


def test_the_reference_may_be_another_clip_of_the_same_person(tmp_path: Path) -> None:
    for name, shape in (("anna__home", 1.0), ("anna__work", 2.0), ("bob", 3.0), ("x", 4.0)):
        path = write_clip(tmp_path, name, num_frames=12, size=(32, 32))
        track = clip_track(12, (32, 32))
        track["betas"][:] = shape
        np.savez(path.with_suffix(".track.npz"), **track)
    (tmp_path / "x.splits.yaml").write_text("person: bob\n")
    data = module(tmp_path, schedule=[Phase(0, 16, 2, 16)], num_steps=10)
    partner = {1.0: 2.0, 2.0: 1.0, 3.0: 4.0, 4.0: 3.0}
    pairs = [
        (float(own[0]), float(other[0]))
        for batch in data.train_dataloader()
        for own, other in zip(batch.body.betas[:, 0], batch.reference_body.betas, strict=True)
    ]
    assert {other for own, other in pairs} == {1.0, 2.0, 3.0, 4.0}
    assert all(other in (own, partner[own]) for own, other in pairs)
    share = np.mean([other != own for own, other in pairs])
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(pairs))
    never = module(tmp_path, schedule=[Phase(0, 16, 2, 8)], num_steps=4, cross_clip=0.0)
    assert all(torch.equal(b.body.betas[:, 0], b.reference_body.betas) for b in never.train_dataloader())


def test_a_clip_kept_out_of_training_is_tested(tmp_path: Path) -> None:
    write_clip(tmp_path, "seen", num_frames=20)
    write_clip(tmp_path, "unseen", num_frames=20)
    (tmp_path / "unseen.splits.yaml").write_text("train: false\ntest: [[10, 19]]\nreference: 2\n")
    data = module(tmp_path, num_steps=12)
    assert {name for batch in data.train_dataloader() for name in batch.names} == {"seen"}
    data.setup("test")
    assert [(batch.names, batch.reference_numbers.tolist()) for batch in data.test_dataloader()] == [(["unseen"], [2])]


def test_test_clips_may_be_a_folder(clip_path: Path, tmp_path: Path) -> None:
    write_clip(tmp_path, "other", num_frames=20)
    (tmp_path / "other.splits.yaml").write_text("test: [[4, 19]]\nreference: 0\n")
    data = module(clip_path, stage="test", test_clips=[video.TestClip(str(tmp_path)), video.TestClip("nowhere.mp4")])
    assert [batch.names[0] for batch in data.test_dataloader()] == ["person", "other"]


@pytest.mark.parametrize("broken", ["b.mp4", "b.mask.mp4"])
def test_a_truncated_video_is_left_out_and_counted(broken: str, tmp_path: Path) -> None:
    from visa.tools.track.write import VideoWriter

    for name in ("a", "b"):
        path = write_clip(tmp_path, name, num_frames=20)
        for target in (path, path.with_suffix(".mask.mp4")):  # with the index in front, as the tracker writes
            writer = VideoWriter(target, 25.0, 96, 72, crf=5)
            for index in range(20):
                writer.write(np.random.default_rng(index).integers(0, 255, (72, 96, 3)).astype(np.uint8))
            writer.close()
    cut_off(tmp_path / broken)
    with pytest.warns(UserWarning, match="left out") as caught:
        data = module(tmp_path)
    assert [clip.name for clip in data.clips] == ["a"]
    assert data.num_skipped == 1
    assert any("cut off" in str(warning.message) and broken in str(warning.message) for warning in caught)
    assert any("1 clips are read; left out: 1 damaged" in str(warning.message) for warning in caught)
    cut_off(tmp_path / "a.mp4")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"no clip is left; the first one: .*a\.mp4") as error,
    ):
        module(tmp_path)
    assert "\n" not in str(error.value)


def test_a_window_that_cannot_be_read_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_clip(tmp_path, name, num_frames=20)
    data = module(tmp_path, cache_gb=0)
    read = Clip.pixels

    def damaged(clip: Clip, *arguments: object) -> np.ndarray:
        if clip.name == "b":
            raise BrokenVideo("b.mp4 is damaged")
        return read(clip, *arguments)

    monkeypatch.setattr(Clip, "pixels", damaged)
    with pytest.warns(UserWarning, match="drawn again: b.mp4"):
        first, again = (list(data.train_dataloader()) for _ in range(2))
    assert all(batch.names == ["a", "a"] for batch in first)
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    monkeypatch.setattr(Clip, "pixels", lambda *_: damaged(data.clips[1]))
    with pytest.warns(UserWarning, match="drawn again"), pytest.raises(BrokenVideo, match="could not be read"):
        data.training_windows()[0]


@pytest.mark.parametrize("length", [19, 21])
def test_a_track_of_another_length_is_an_error_before_anything_is_decoded(length: int, tmp_path: Path) -> None:
    write_clip(tmp_path, "a", num_frames=20)
    np.savez(tmp_path / "a.track.npz", **clip_track(length))
    with pytest.raises(ValueError, match=f"has 20 frames, its track {length}"):
        module(tmp_path)


def test_an_invalid_frame_never_trains(tmp_path: Path) -> None:
    path = write_clip(tmp_path, "a", num_frames=20)
    track = clip_track(20)
    track["transl"][6, 1] = np.nan
    np.savez(path.with_suffix(".track.npz"), **track)
    numbers = [batch.frame_numbers for batch in module(tmp_path, schedule=[Phase(0, 16, 4, 8)]).train_dataloader()]
    assert 6 not in torch.cat(numbers)
    assert {0, 5, 7, 17} <= set(torch.cat(numbers).flatten().tolist())


def test_clips_of_one_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    first = write_clip(tmp_path, "talk", num_frames=12)
    second, third = copy_clip(first, tmp_path / "monday/talk.mp4"), copy_clip(first, tmp_path / "tuesday/talk.mp4")
    assert [clip.name for clip in module(second, third).clips] == ["monday_talk", "tuesday_talk"]
    with pytest.raises(ValueError, match=r"name .*monday/talk\.mp4 twice"):
        module(second, tmp_path / "monday")
    clash = copy_clip(first, tmp_path / "other/monday/talk.mp4")
    with pytest.raises(ValueError, match="two clips are called monday_talk"):
        module(second, clash)


def test_a_clip_of_odd_size_is_read(tmp_path: Path) -> None:
    import av

    values = {"a.mp4": np.linspace(0, 255, 61).astype(np.uint8), "a.mask.mp4": np.full(61, 255, np.uint8)}
    for name, row in values.items():
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
            stream.width, stream.height, stream.pix_fmt = 61, 45, "yuv444p"
            picture = np.broadcast_to(row[None, :, None], (45, 61, 3))
            for _ in range(6):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            container.mux(stream.encode())
    np.savez(tmp_path / "a.track.npz", **clip_track(6, (45, 61)))
    clip = Clip(tmp_path / "a.mp4")
    frames, masks, intrinsics = clip.window(np.array([2, 5]), 45)
    assert (frames.shape, float(masks.min())) == ((2, 3, 45, 45), 1.0)
    assert intrinsics[0, 0, 2] == 61 / 2 - 8
    expected = values["a.mp4"][8:53] / 255
    np.testing.assert_allclose(frames[1, 0, 20], expected, atol=3 / 255)


def test_augmented_pictures_show_a_point_where_their_camera_puts_it(tmp_path: Path) -> None:
    """A dot is painted where the track's camera sees a moving point; it is looked for in the augmented pictures."""
    count, size = 16, (96, 128)
    track = clip_track(count, size)
    points = np.array([[0.05 * np.sin(t), 0.25 + 0.04 * np.cos(t), 0.02 * t, 1.0] for t in range(count)])
    seen = np.einsum("tij,tj->ti", track["world_to_camera"], points)[:, :3]
    pixels = np.einsum("tij,tj->ti", track["intrinsics"], seen)
    pixels = pixels[:, :2] / pixels[:, 2:]
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    dots = [np.exp(-((x - u) ** 2 + (y - v) ** 2) / 18) for u, v in pixels]
    write_video(tmp_path / "dot.mp4", torch.from_numpy(np.stack(dots)).float()[:, None].expand(-1, 3, -1, -1), fps=25)
    write_video(tmp_path / "dot.mask.mp4", torch.ones(count, 3, *size), fps=25)
    np.savez(tmp_path / "dot.track.npz", **track)
    clip, reader = Clip(tmp_path / "dot.mp4"), WindowReader((0.0, 0.0, 0.0))
    for seed in range(8):
        rng = np.random.default_rng(seed)
        batch = reader.read(clip, np.arange(3, 7), 12, 80, rng=rng, augment=Augment(zoom=0.7, colour=0.0))
        cases = [(batch.frames[0, t], 3 + t, batch.intrinsics[0, t], batch.world_to_camera[0, t]) for t in range(4)]
        cases.append((batch.reference[0], 12, batch.reference_intrinsics[0], batch.reference_world_to_camera[0]))
        for picture, number, intrinsics, camera in cases:
            place = intrinsics.double() @ (camera.double() @ torch.from_numpy(points[number]))[:3]
            weight = (picture.mean(0) - 0.3).clamp_min(0).double()
            grid = torch.arange(80) + 0.5
            found = torch.stack([(weight.sum(0) * grid).sum(), (weight.sum(1) * grid).sum()]) / weight.sum()
            assert (found - place[:2] / place[2]).abs().max() < 0.35, (seed, number)


def test_test_reads_the_middle_of_each_block(clip_path: Path) -> None:
    data = module(clip_path, stage="test", test_frames=3)
    assert [batch.frame_numbers.tolist() for batch in data.test_dataloader()] == [[[21, 22, 23]]]
    data = module(clip_path, stage="test", test_frames=2, test_stride=2)
    assert [batch.frame_numbers.tolist() for batch in data.test_dataloader()] == [[[20, 22]]]
    with pytest.raises(ValueError, match=r"data.test_frames 0: give 1 or more"):
        module(clip_path, stage="test", test_frames=0)


def test_a_test_whose_clips_are_elsewhere_says_what_is_not_measured(tmp_path: Path) -> None:
    path = write_clip(tmp_path, "seen", num_frames=20)
    path.with_name("seen.splits.yaml").write_text("validation: [[4, 8]]\n")
    data = module(path, stage="test", test_clips=[video.TestClip("data/nowhere")])
    with pytest.raises(ValueError, match=r"not measured: there is no data/nowhere: put tracked clips there"):
        data.test_dataloader()
