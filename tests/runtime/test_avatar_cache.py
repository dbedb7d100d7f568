"""The cache of fitted avatars: keys, whole files, batches of avatars, colours, and training from it."""

import copy
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT, write_clip
from tests.lightning_modules.test_stages import STAGES, newest, small
from tests.reconstructors import untrained
from visa import cli as train
from visa.datamodules.augment import Augment
from visa.datamodules.clip import Clip
from visa.datamodules.references import ReferencePhoto, choose_references
from visa.datamodules.schedule import Phase
from visa.datamodules.sources import ClipSource
from visa.datamodules.video import VideoDataModule
from visa.datamodules.windows import WindowReader
from visa.networks.anatomy import Region
from visa.networks.avatar import Avatar
from visa.networks.avatar_batch import mix_colours, stack_avatars
from visa.networks.body import BodyParams
from visa.networks.codec import BlockCodec
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.photo import Photo
from visa.networks.photo_colour import colour_sources
from visa.networks.projection import project
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.view import View
from visa.runtime.avatar_cache import AvatarCache
from visa.runtime.conditioner import Conditioner
from visa.runtime.photos import photo_of
from visa.tools import cache_avatars

BODY = "assets/body/smplx_anny.npz"
GREY = (0.5, 0.5, 0.5)
FIT = FitOptions(steps=2)
OPTIONS = ReconstructorOptions()


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return untrained(True, 4).requires_grad_(False).eval()


def read(path: Path, frame: int = 3, size: int = 32, background: tuple[float, float, float] = GREY) -> Photo:
    return photo_of(WindowReader(background).read(Clip(path), np.asarray([frame]), frame, size))


def make_cache(
    folder: Path,
    reconstructor: GaussianReconstructor,
    options: ReconstructorOptions = OPTIONS,
    fit: FitOptions = FIT,
) -> AvatarCache:
    return AvatarCache(folder, reconstructor, options, fit, "smplx_anny.npz")


def tensors(record: object, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a record and of records in it."""
    found: dict[str, Tensor] = {}
    for name, value in vars(record).items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif hasattr(value, "__dataclass_fields__"):
            found |= tensors(value, f"{prefix}{name}.")
    return found


def different(a: object, b: object) -> list[str]:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def of_person(avatar: Avatar, index: int) -> dict[str, Tensor]:
    values = tensors(avatar)
    return {name: value if name == "vertex_ids" else value[index : index + 1] for name, value in values.items()}


def test_the_key_changes_with_each_ingredient(
    reconstructor: GaussianReconstructor, clip_path: Path, tmp_path: Path
) -> None:
    photo = read(clip_path)
    cache = make_cache(tmp_path, reconstructor)
    trained, other_body = copy.deepcopy(reconstructor), copy.deepcopy(reconstructor)
    trained.heads.bias[0] += 1e-3
    other_body.body.v_template[0, 0] += 1e-3
    retracked = tmp_path / clip_path.name
    for file in clip_path.parent.glob(f"{clip_path.stem}.*"):
        shutil.copy(file, tmp_path)
    track = dict(np.load(clip_path.with_suffix(".track.npz")))
    track["jaw_pose"][3, 0] += 1e-3
    np.savez(retracked.with_suffix(".track.npz"), **track)
    paths = {
        "base": cache.path(photo),
        "weights": make_cache(tmp_path, trained).path(photo),
        "body model": make_cache(tmp_path, other_body).path(photo),
        "options": make_cache(tmp_path, reconstructor, replace(OPTIONS, use_hull=False)).path(photo),
        "fit": make_cache(tmp_path, reconstructor, fit=replace(FIT, color_pull=0.2)).path(photo),
        "video": cache.path(read(write_clip(tmp_path, "other", seed=1))),
        "track": cache.path(read(retracked)),
        "frame": cache.path(read(clip_path, frame=4)),
        "resolution": cache.path(read(clip_path, size=48)),
        "background": cache.path(read(clip_path, background=(0.0, 0.5, 0.5))),
        "mask": cache.path(replace(photo, mask=photo.mask * 0.99)),
    }
    assert len(set(paths.values())) == len(paths)
    again = make_cache(tmp_path, copy.deepcopy(reconstructor)).path(
        photo_of(WindowReader(GREY).read(Clip(clip_path).load(), np.asarray([3]), 3, 32))
    )
    assert again == paths["base"]


def test_an_entry_is_the_fitted_avatar_and_is_made_once(
    reconstructor: GaussianReconstructor, clip_path: Path, tmp_path: Path
) -> None:
    photos = [read(clip_path, frame) for frame in (3, 12)]
    fitted = [fit_avatar(reconstructor, reconstructor(photo)[0], photo, FIT) for photo in photos]
    both = replace(
        photos[0],
        body=BodyParams.cat([photo.body for photo in photos]),
        **{
            name: torch.cat([getattr(photo, name) for photo in photos])
            for name in ("image", "mask", "intrinsics", "world_to_camera", "background")
        },
    )
    cache = make_cache(tmp_path, reconstructor.train())
    made = cache(both)
    assert reconstructor.training
    assert cache.num_made == 2
    for index, (photo, avatar) in enumerate(zip(photos, fitted, strict=True)):
        assert different(cache(photo), avatar) == []
        own, expected = of_person(made, index), tensors(avatar)
        for name, value in expected.items():
            of_all = own[name]
            if name.startswith(("loose.", "texture.")) and value.shape != of_all.shape:
                of_all = of_all.narrow(1, 0, value.shape[1])  # without what was put behind
            assert torch.equal(of_all, value), name
    reconstructor.eval()
    assert cache.num_made == 2
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "no avatar"])
def test_a_broken_or_foreign_file_is_made_anew(
    damage: str, reconstructor: GaussianReconstructor, clip_path: Path, tmp_path: Path
) -> None:
    photo, cache = read(clip_path), make_cache(tmp_path, reconstructor)
    avatar, path = cache(photo), cache.path(photo)
    whole = path.read_bytes()
    (path.parent / f".{path.stem}.0.safetensors").write_bytes(whole[:100])  # what a killed process left
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        other = read(clip_path, frame=4)
        cache(other)
        shutil.copy(cache.path(other), path)
    else:
        shutil.copy("assets/weights/codec_statistics.safetensors", path)
    made = cache.num_made
    assert different(cache(photo), avatar) == []
    assert cache.num_made == made + 1
    assert path.read_bytes() == whole


PROCESS = """
import os, signal, sys
from pathlib import Path
import torch
from visa.runtime import avatar_files
from tests.runtime import test_avatar_cache as t

what, clip, folder = sys.argv[1:]
network = t.untrained(True, 4).requires_grad_(False).eval()
cache = t.make_cache(Path(folder), network)
photo = t.read(Path(clip))
if what == "killed":
    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    avatar_files.save_file = half
print("ready", flush=True)
sys.stdin.readline()
print(sum(float(value.double().sum()) for value in t.tensors(cache(photo)).values()), cache.num_made)
"""


@pytest.mark.slow
def test_processes_may_make_one_entry_at_once_and_be_killed(clip_path: Path, tmp_path: Path) -> None:
    def start(what: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, what, str(clip_path), str(tmp_path)]
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    processes = [start(what) for what in ("killed", "first", "second")]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    killed, *others = processes
    killed.communicate("go\n", timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name[0] for path in tmp_path.rglob("*.safetensors")] == ["."]  # no entry
    for process in others:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=300)[0].split() for process in others]
    assert [process.returncode for process in others] == [0, 0]
    assert said[0][0] == said[1][0]
    assert 1 <= sum(int(made) for _, made in said) <= 2
    hidden = [path.name[0] == "." for path in tmp_path.rglob("*.safetensors")]
    assert sorted(hidden) == [False, True]  # the entry, and what the killed one left


def views(clip_path: Path, count: int) -> View:
    """Two frames of the clip, for `count` people."""
    view = WindowReader(GREY).read(Clip(clip_path), np.asarray([5, 14]), 3, 48).view()
    body = view.body.map(lambda value: value.repeat(count, *[1] * (value.dim() - 1)))
    return View(view.intrinsics.repeat(count, 1, 1, 1), view.world_to_camera.repeat(count, 1, 1, 1), 48, body)


@torch.no_grad()
def test_stacked_avatars_render_as_they_do_alone(reconstructor: GaussianReconstructor, clip_path: Path) -> None:
    avatars = [reconstructor(read(clip_path, frame))[0] for frame in (3, 12)]
    hairy = avatars[0]
    count, keep = hairy.loose.skin_weights.shape[1], 5
    assert count > keep
    names = ("places", "seen", "trust", "part")
    num = len(hairy.vertex_ids)
    texture = {name: getattr(avatars[1].texture, name)[:, : num + keep] for name in names}
    loose = avatars[1].loose
    gaussians = type(loose.gaussians)(**{name: value[:, :keep] for name, value in vars(loose.gaussians).items()})
    few = replace(
        avatars[1],
        loose=replace(loose, gaussians=gaussians, skin_weights=loose.skin_weights[:, :keep]),
        texture=replace(avatars[1].texture, **texture),
    )
    texture = {name: getattr(hairy.texture, name)[:, :num] for name in names}
    bald = replace(hairy, loose=None, texture=replace(hairy.texture, **texture))
    together = [hairy, few, bald]
    stacked = stack_avatars(together).render(reconstructor.body, views(clip_path, 3))
    for index, avatar in enumerate(together):
        alone = avatar.render(reconstructor.body, views(clip_path, 1))
        for name, value in vars(alone).items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(getattr(stacked, name)[index : index + 1], value, rtol=0, atol=1e-6)
    assert stack_avatars([bald, bald]).loose is None


@torch.no_grad()
def test_photos_of_other_sizes_are_enlarged(reconstructor: GaussianReconstructor, clip_path: Path) -> None:
    small_photo, large = (reconstructor(read(clip_path, size=size))[0] for size in (32, 48))
    stacked = stack_avatars([small_photo, large])
    assert stacked.texture.photo.shape == (2, 3, 48, 48)
    body = reconstructor.body
    both = stacked.render(body, views(clip_path, 2))
    alone = [avatar.render(body, views(clip_path, 1)) for avatar in (small_photo, large)]
    torch.testing.assert_close(both.rgb, torch.cat([maps.rgb for maps in alone]), rtol=0, atol=1e-6)
    torch.testing.assert_close(both.textured[1:], alone[1].textured, rtol=0, atol=1e-6)
    assert (both.textured[:1] - alone[0].textured).abs().mean() < 0.01  # the enlargement is another interpolation


@torch.no_grad()
def test_avatars_that_do_not_belong_together_do_not_stack(
    reconstructor: GaussianReconstructor, clip_path: Path
) -> None:
    avatar, _ = reconstructor(read(clip_path))
    with pytest.raises(ValueError, match="different templates"):
        stack_avatars([avatar, replace(avatar, vertex_ids=avatar.vertex_ids.flip(0))])
    with pytest.raises(ValueError, match="without texture"):
        stack_avatars([avatar, replace(avatar, texture=None)])


COLOUR = torch.tensor([[[1.1, 0.2, -0.1], [0.05, 0.8, 0.1], [-0.2, 0.1, 1.3]]])


@torch.no_grad()
def test_mixing_an_avatar_is_mixing_its_photo(
    reconstructor: GaussianReconstructor, clip_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is clamped; before matting, over grey, which mixing keeps, and with the same pixels as skin."""
    photo = read(clip_path)
    inside = torch.nn.functional.pad(torch.ones(1, 1, 28, 28), (2, 2, 2, 2))  # beyond its border a photo reads as black
    pale = replace(photo, image=0.5 + 0.3 * inside * (photo.image - 0.5), mask=inside * photo.mask)
    mixed_photo = replace(pale, image=torch.einsum("bdc,bchw->bdhw", COLOUR, pale.image - 0.5) + 0.5)
    assert 0 < mixed_photo.image.min() < mixed_photo.image.max() < 1
    avatar = reconstructor(pale)[0]
    projection, count = project(reconstructor.anchors, pale), avatar.gaussians.means.shape[1]
    visible, colors = projection.visible, avatar.gaussians.colors
    sources = colour_sources(reconstructor.anchors, pale, projection.grid, colors, visible, projection.facing)
    monkeypatch.setattr("visa.networks.reconstructor.project", lambda *_: projection)
    monkeypatch.setattr("visa.networks.reconstructor.colour_sources", lambda *_: sources)
    expected = reconstructor(mixed_photo)[0]
    mixed = mix_colours(avatar, COLOUR)
    assert (expected.gaussians.colors - avatar.gaussians.colors).abs().max() > 0.02
    # Colours of inner parts go by the face's luminance, those of hands that no photo shows by the face's median, those
    # of lids, and of hidden skin of the head that takes colour from them, by their eye's median.
    anchors, is_hidden = reconstructor.anchors, visible[0] == 0
    by_eye = anchors.is_lid
    for _ in range(6):
        by_eye = by_eye | (is_hidden & by_eye[anchors.neighbours].any(dim=1))
    skin = ~anchors.is_inner & ~((anchors.region == int(Region.HANDS)) & is_hidden) & ~by_eye
    assert skin.sum() > count / 2
    torch.testing.assert_close(mixed.gaussians.colors[:, skin], expected.gaussians.colors[:, skin], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed.loose.gaussians.colors, expected.loose.gaussians.colors, rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed.texture.photo, mixed_photo.image, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_texture_is_the_augmented_photo_over_any_background(
    reconstructor: GaussianReconstructor, clip_path: Path
) -> None:
    reader, clip = WindowReader((0.9, 0.2, 0.4)), Clip(clip_path)
    avatar, _ = reconstructor(photo_of(reader.read(clip, np.asarray([3]), 3, 32)))
    clamped = 0
    for seed in range(3):
        rng, augment = np.random.default_rng(seed), Augment(zoom=0.5, colour=0.5, background=1.0 * (seed > 0))
        batch = reader.read(clip, np.asarray([7]), 3, 32, None, rng, augment, crop_reference=False)
        torch.testing.assert_close(batch.plain_reference, avatar.texture.photo, rtol=0, atol=0)
        mixed = mix_colours(avatar, batch.colour).over(batch.background)
        assert torch.equal(mixed.background[0] == avatar.background[0], torch.full((3,), seed == 0))
        torch.testing.assert_close(mixed.texture.photo, batch.reference, rtol=0, atol=1e-6)
        assert 0 <= mixed.gaussians.colors.min() <= mixed.gaussians.colors.max() <= 1
        unclamped = torch.einsum("bdc,bchw->bdhw", batch.colour, batch.plain_reference - 0.5) + 0.5
        clamped += int(((unclamped < 0) | (unclamped > 1)).sum())
    assert clamped > 0
    assert different(mix_colours(avatar, torch.eye(3)[None]).over(avatar.background), avatar) == []


def test_training_reads_the_avatars_of_test(
    reconstructor: GaussianReconstructor, clip_path: Path, tmp_path: Path
) -> None:
    codec = BlockCodec(str(ROOT / "assets/weights/codec_statistics.safetensors"))
    batch = WindowReader(GREY).read(Clip(clip_path), np.asarray([5, 14]), 3, 32)
    with torch.no_grad():
        expected, _ = Conditioner(reconstructor, codec, FIT).eval()(batch)
        for mode in (False, True):
            cached = Conditioner(reconstructor, codec, FIT, make_cache(tmp_path, reconstructor)).train(mode)
            condition, _ = cached(batch)
            for name in ("guide", "maps", "reference", "reference_guide", "reference_maps", "semantic"):
                # In training attention rounds otherwise.
                tolerance = 1e-5 if mode else 0
                torch.testing.assert_close(getattr(condition, name), getattr(expected, name), rtol=0, atol=tolerance)
    reconstructor.eval()


def test_references_are_far_apart_in_time_and_pose(clip_path: Path) -> None:
    clip = Clip(clip_path)
    frames = clip.training_frames()
    for name in ("global_orient", "body_pose", "jaw_pose"):
        clip.track[name][:] = 0
    # Training frames are 0 to 17 and 27 to 31, the reference is 3: farthest is 31, then 17 (14 from both).
    assert choose_references(clip, 3).tolist() == [3, 17, 31]
    clip.track["jaw_pose"][5, 0] = 1.0
    assert choose_references(clip, 2).tolist() == [3, 5]  # the only other pose
    assert choose_references(clip, 100).tolist() == frames.tolist()


def test_windows_draw_the_chosen_photos_whole(clip_path: Path) -> None:
    data = VideoDataModule(
        clips=[ClipSource(str(clip_path))], schedule=[Phase(0, 32, 3, 2), Phase(4, 48, 3, 1)], num_steps=8,
        references=3, resolution=64, augment=Augment(0.6, 0.1, own_crop=True, background=0.5, flip=0.5),
    )  # fmt: skip
    data.setup("fit")
    windows, clip = data.training_windows(), data.clips[0]
    chosen = choose_references(clip, 3)
    drawn, mirrored = set(), 0
    for step in range(8):
        batch = windows[step]
        drawn |= set(batch.reference_numbers.tolist())
        for index, number in enumerate(batch.reference_numbers.tolist()):
            size = batch.frames.shape[-1]
            sides = [data.reader.read_photo(ReferencePhoto(clip, number, size, side)) for side in (False, True)]
            (whole,) = [one for one in sides if torch.equal(batch.plain_reference[index], one.reference[0])]
            assert torch.equal(batch.plain_background[index], whole.background[0])
            assert torch.equal(batch.reference_intrinsics[index], whole.reference_intrinsics[0])
            assert torch.equal(batch.reference_body.body_pose[index], whole.reference_body.body_pose[0])
            mirrored += whole is sides[1]
            assert not torch.equal(batch.colour[index], torch.eye(3))
    assert drawn == set(chosen.tolist())
    assert 0 < mirrored < 12
    listed = [(photo.frame, photo.resolution, photo.is_mirrored) for photo in data.reference_photos()]
    sides = (False, True)
    assert listed == [
        *((int(frame), size, side) for frame in chosen for size in (32, 48) for side in sides), (3, 64, False)
    ]  # fmt: skip


def cached(clip_path: Path, folder: Path, num_steps: int = 2) -> list[str]:
    """Options of a small run that reads avatars from a cache."""
    options = [f"--model.init_args.avatar_cache={folder}", "--data.references=2", "--model.init_args.fit.steps=2"]
    return [*small(clip_path, num_steps), *options]


@pytest.mark.slow
def test_the_tool_makes_what_is_missing_and_training_makes_nothing(
    clip_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "avatars"
    assert cache_avatars.main([*STAGES["teacher"], *cached(clip_path, folder)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-2:] == ["2 avatars made, 0 photos left out", str(folder)]
    assert "[1/2] person, frame 3, 64 px: fitted" in said.err
    entries = sorted(folder.rglob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in entries]
    entries[0].write_bytes(b"")
    assert cache_avatars.main([*STAGES["teacher"], *cached(clip_path, folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("1 avatars made")
    times[0] = entries[0].stat().st_mtime_ns
    train.main(["fit", *STAGES["teacher"], *cached(clip_path, folder)])
    assert [path.stat().st_mtime_ns for path in sorted(folder.rglob("*.safetensors"))] == times


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["teacher", "adversarial"])
def test_a_run_on_cached_avatars_resumes_bit_for_bit(stage: str, clip_path: Path, tmp_path: Path) -> None:
    """The unbroken run makes the avatars, the other one reads them."""
    augment = "--data.augment={zoom: 0.8, colour: 0.15, background: 0.5, flip: 0.5}"
    arguments = ["fit", *STAGES[stage], *cached(clip_path, tmp_path / "avatars", num_steps=4), augment]
    every = "--trainer.callbacks+={class_path: visa.callbacks.resume.ResumeCheckpoint, init_args: {every: 2}}"
    train.main([*arguments, every])
    whole = torch.load(newest(stage) / "checkpoints/last.ckpt", weights_only=True)
    made = sorted((tmp_path / "avatars").rglob("*.safetensors"))
    assert 2 <= len(made) <= 4  # two photos, some mirrored; colours and backgrounds are none of their own
    stop = "--trainer.callbacks+={class_path: tests.lightning_modules.test_stages.StopAfter, init_args: {after: 3}}"
    with pytest.raises(RuntimeError, match="switched off"):
        train.main([*arguments, every, stop])
    train.main([*arguments, every, "--ckpt_path=last"])
    resumed = torch.load(newest(stage) / "checkpoints/last.ckpt", weights_only=True)
    assert resumed["step"] == whole["step"] == 4
    assert sorted((tmp_path / "avatars").rglob("*.safetensors")) == made
    states = whole["state_dict"], resumed["state_dict"]
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.init_args.avatar_cache=nowhere"], "data.references is null"),
        (["--model.init_args.avatar_cache=nowhere", "--model.init_args.fit.steps=0"], "fit.steps is 0"),
        (["--data.references=0"], "data.references is 0"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options: list[str], message: str, clip_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train.main(["fit", *STAGES["teacher"], *small(clip_path), *options])
    assert "\n" not in str(caught.value)
    assert not Path("nowhere").exists()


@pytest.mark.slow
def test_the_tool_says_what_is_missing(clip_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache_avatars.main([*STAGES["teacher"], *small(clip_path)]) == 1
    assert "error: this run reads no avatars" in capsys.readouterr().err
    assert cache_avatars.main([*STAGES["reconstruction"], *small(clip_path)]) == 1
    assert "error: Reconstruction trains no shader" in capsys.readouterr().err
