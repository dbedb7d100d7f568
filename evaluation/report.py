"""Collects the rows of a test, measures them once, and writes table, metrics.json, side-by-side video and sheet."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visa.artifacts.media import sheet, side_by_side, write_image, write_video
from visa.artifacts.provenance import peak_memory_mb
from visa.datamodules.baselines import frozen_frame, nearest_frames
from visa.datamodules.batch import VideoBatch
from visa.datamodules.video import VideoDataModule
from visa.evaluation.evaluation import Prediction, evaluate_rows
from visa.evaluation.faces import FacePoints
from visa.evaluation.intervals import bootstrap_interval
from visa.evaluation.photo_warp import ControlPoints, control_points, warped_photo
from visa.evaluation.regions import PARTS, face_points, face_regions
from visa.evaluation.table import AVATAR, COLUMNS, DETAILS, format_people, report_metrics
from visa.networks.body import BodyModel, BodyParams
from visa.networks.joints import HEAD

TURNED = math.radians(20)
BASELINES = ("freeze", "nearest", "warp")


def head_turn(body: BodyModel, batch: VideoBatch) -> Tensor:
    """`[B,T]` angle in radians by which each frame's head is turned from the photo's, as their cameras see them."""

    def head(params: BodyParams, camera: Tensor) -> Tensor:
        return camera[..., :3, :3] @ body.joint_transforms(params)[..., HEAD, :3, :3]

    params = [p.map(lambda value: value.cpu()) for p in (batch.body, batch.reference_body)]
    frames = head(params[0], batch.world_to_camera.cpu())
    photo = head(params[1], batch.reference_world_to_camera.cpu())[:, None]
    trace = (frames * photo).sum(dim=(-2, -1))  # of one rotation times the other's inverse
    return torch.acos(((trace - 1) / 2).clamp(-1, 1))


class TestReport:
    """Rows of a test over its blocks. Rows of a clip that never trains, or is not the first, get its name in brackets.

    Use: `with report.timed("row", batch) as row: row.frames = ...` for each row, outside the block `add_sample` with
    another painting where the row has noise, then `close_block(batch)`; `write` at the end. The blocks of a clip come
    one after the other: a clip is measured as soon as the next one begins, so that no more than one is in memory.
    Frames are kept in float16: a test's rows are many, and its rounding (0.0002 and less) is below that of the videos.

    Args:
        data: whose clips are tested.
        directory: to write to.
        protocol: a sentence for metrics.json on how the rows were predicted.
        stage: name of the stage under test.
        seed: of its noise.
        device: that it runs on.
        face_points: finds the points of faces in frames; None leaves `aed`, `apd` and `akd` unmeasured.
    """

    def __init__(
        self,
        data: VideoDataModule,
        directory: Path,
        protocol: str,
        stage: str,
        seed: int,
        device: torch.device,
        face_points: FacePoints | None = None,
    ) -> None:
        self.face_points = face_points
        self.data, self.directory, self.protocol = data, directory, protocol
        self.stage, self.seed, self.device = stage, seed, device
        self.rows: dict[str, dict[str, list[Prediction]]] = {}
        self.truth: dict[str, list[Tensor]] = {}
        self.masks: dict[str, list[Tensor]] = {}
        self.photo: dict[str, Tensor] = {}
        self.turned: dict[str, list[Tensor]] = {}
        self.regions: dict[str, list[dict[str, Tensor]]] = {}
        self.fps: dict[str, float] = {}
        self.figures: dict[str, dict[str, Any]] = {}
        self.further: dict[str, dict[str, Any]] = {}
        self.elsewhere: dict[str, dict[str, dict[str, Any]]] = {}
        self._begin, self._num_closed = time.perf_counter(), 0

    def say(self, text: str) -> None:
        """A line of progress on standard error, after the time since the test began.

        A bar cannot tell which row of a block takes its time, and shows nothing where there is no terminal.
        """
        print(f"[{time.perf_counter() - self._begin:5.0f} s] {text}", file=sys.stderr, flush=True)

    @cached_property
    def _num_blocks(self) -> int:
        return sum(len(clip.splits.test) for clip in [*self.data.clips, *self.data.extra_clips])

    @cached_property
    def _body(self) -> BodyModel:
        return BodyModel.from_file(self.data.body_model)

    @cached_property
    def _control_points(self) -> ControlPoints:
        return control_points(self._body)

    @contextmanager
    def timed(self, name: str, batch: VideoBatch, num_steps: int | None = None) -> Iterator[Prediction]:
        """Fill the yielded row's `frames [T,3,H,W]`, and `coverage [T,1,H,W]` where it has one.

        The time inside the block counts as the row's.

        Figures of time that the caller knows better (`fps`, `latency_ms`) are kept as given.
        """
        row = Prediction(frames=torch.empty(0), num_steps=num_steps)
        begin = time.perf_counter()
        yield row
        row.frames = row.frames.detach().cpu()  # also waits for a device that is still painting
        seconds = time.perf_counter() - begin
        if row.fps is None:
            row.fps = len(row.frames) / seconds
        row.frames = self._kept(row.frames, batch)
        if row.coverage is not None:
            row.coverage = self._kept(row.coverage, batch)
        if row.own_pose is not None:
            row.own_pose = row.own_pose.detach().cpu()
        self.rows.setdefault(batch.names[0], {}).setdefault(name, []).append(row)
        where = f"block {self._num_closed + 1} of {self._num_blocks}, {batch.names[0]}"
        self.say(f"{where}: {name}, {len(row.frames)} frames in {seconds:.1f} s")

    def add_sample(self, row: Prediction, batch: VideoBatch, frames: Tensor) -> None:
        """The first frames of a row's block, `[S,3,H,W]`, painted again from other noise."""
        second = self._kept(frames, batch)
        row.samples = (row.frames[: len(second)], second)

    def add_rows(self, clip_name: str, rows: Mapping[str, dict[str, Any]], reason: str) -> None:
        """Rows of a clip whose figures are known already, after its other ones; columns they lack miss for `reason`."""
        self.elsewhere[clip_name] = {name: with_reasons(figures, reason) for name, figures in rows.items()}

    def has_rows(self, clip_name: str) -> bool:
        """Whether `add_rows` has been called for the clip."""
        return clip_name in self.elsewhere

    def add_measured(self, name: str, figures: dict[str, Any], reason: str) -> None:
        """A row whose figures are known already, after all others; its other columns are missing for `reason`."""
        self.further[name] = with_reasons(figures, reason)

    def close_block(self, batch: VideoBatch) -> None:
        """Add truth and the rows freeze, nearest and warp of the block that was just predicted.

        Measures the clip before, where this block begins another.
        """
        clip_name, module = batch.names[0], self.data
        for name in [name for name in self.truth if name != clip_name]:
            self._measure(name)
        clip = module.clip_named(clip_name)
        numbers, valid = batch.frame_numbers[0].cpu().numpy(), batch.valid[0].cpu()
        has_coverage = any(blocks[-1].coverage is not None for blocks in self.rows[clip_name].values())
        reason = dict.fromkeys(("fps", "latency_ms", "diversity"), "a stored frame, nothing is computed")
        for name, chosen in (
            ("freeze", frozen_frame(clip, numbers)),
            ("nearest", nearest_frames(clip, numbers, self._body)),
        ):
            stored = module.reader.read(clip, chosen, clip.reference_frame(), module.resolution)
            row = Prediction(frames=self._kept(stored.frames[0], batch), num_steps=0, reasons=reason)
            if has_coverage:
                row.coverage = self._kept(stored.masks[0], batch)
            self.rows[clip_name].setdefault(name, []).append(row)
        with self.timed("warp", batch, num_steps=0) as row:
            row.reasons = {"diversity": "nothing is drawn at random", "latency_ms": "see frames/s"}
            row.frames, coverage = warped_photo(self._body, self._control_points, batch)
            row.coverage = coverage if has_coverage else None
        self.truth.setdefault(clip_name, []).append(self._kept(batch.frames[0], batch))
        self.masks.setdefault(clip_name, []).append(batch.masks[0].cpu()[valid].half())
        self.photo.setdefault(clip_name, batch.reference[0].cpu())
        self.fps.setdefault(clip_name, batch.fps[0])
        self.turned.setdefault(clip_name, []).append(head_turn(self._body, batch)[0, valid] > TURNED)
        self.regions.setdefault(clip_name, []).append(self._regions(batch, valid))
        self._num_closed += 1

    def _regions(self, batch: VideoBatch, valid: Tensor) -> dict[str, Tensor]:
        """Masks of eyes and mouth in the valid frames; none for a body model on which they are not known."""
        view = batch.view()
        motion = replace(
            view,
            body=view.body.map(lambda value: value[0].cpu()),
            intrinsics=view.intrinsics[0].cpu(),
            world_to_camera=view.world_to_camera[0].cpu(),
        )
        try:
            points = face_points(self._body, motion)
        except ValueError:
            return {}
        return {part: mask[valid] for part, mask in face_regions(points, view.size).items()}

    @staticmethod
    def _kept(frames: Tensor, batch: VideoBatch) -> Tensor:
        """The valid frames `[T',...,H,W]` as they are held until their clip is measured."""
        return frames.detach().cpu()[batch.valid[0, : len(frames)].cpu()].clamp(0, 1).half()

    def _measure(self, clip_name: str) -> None:
        """Figures, video and sheet of a clip whose blocks are all predicted; its frames are let go."""
        module, rows = self.data, self.rows.pop(clip_name)
        names = [*BASELINES, *(name for name in rows if name not in BASELINES)]
        lengths = [len(block) for block in self.truth[clip_name]]
        joined = {name: self._joined(rows.pop(name)) for name in names}
        truth, photo = torch.cat(self.truth.pop(clip_name)), self.photo.pop(clip_name)
        masks, turned = torch.cat(self.masks.pop(clip_name)), torch.cat(self.turned.pop(clip_name))
        blocks = self.regions.pop(clip_name)
        regions = {part: torch.cat([block[part] for block in blocks]) for part in PARTS if part in blocks[0]}
        begin = time.perf_counter()
        measured = evaluate_rows(
            truth, joined, lengths, photo, masks, turned=turned, regions=regions, face_points=self.face_points
        )
        self.say(f"{clip_name}: {len(joined)} rows measured in {time.perf_counter() - begin:.1f} s")
        is_extra = any(clip.name == clip_name for clip in module.extra_clips)
        suffix = f" ({clip_name})" if self.figures or is_extra else ""
        self.figures.update({f"{name}{suffix}": measured[name] for name in names})
        self.figures.update({f"{name}{suffix}": row for name, row in self.elsewhere.get(clip_name, {}).items()})
        shown = {name: joined[name].frames for name in names if name not in BASELINES[:2]}
        columns = {"photo": photo, **shown, "truth": truth}
        fps = self.fps.pop(clip_name) / max(module.test_stride, 1)
        write_video(self.directory / f"{clip_name}.mp4", self._beside(columns, len(truth)), fps)
        times = torch.linspace(0, len(truth) - 1, 8).long()
        write_image(
            self.directory / f"{clip_name}.png",
            sheet({name: value[times] for name, value in {"truth": truth, **shown}.items()}),
        )

    def write(self, **extra: Any) -> None:
        """Measure what is left, print the table, write every file; the last line printed is the path of
        metrics.json.

        Args:
            extra: further facts for metrics.json.
        """
        module, figures = self.data, self.figures
        for clip_name in list(self.truth):
            self._measure(clip_name)
        folders = [(str(Path(*clip.path.parts[-3:-1])), clip.name) for clip in module.extra_clips]
        means = folder_means(figures, folders)
        people = [name for _, name in folders]
        if len(people) > 1:
            print(format_people(figures, people) + "\n")
        figures.update(means)
        figures.update(self.further)
        frames = "every frame" if module.test_stride == 1 else f"every {module.test_stride}th frame"
        if module.test_frames is not None:
            frames += f", at most {module.test_frames},"
        report_metrics(
            self.directory / "metrics.json",
            figures,
            config=self.stage,
            seed=self.seed,
            protocol=f"{self.protocol}; {module.resolution} px, {frames} of the test blocks",
            device=self.device,
            peak_memory_mb=round(peak_memory_mb()),
            **extra,
        )

    @staticmethod
    def _beside(columns: dict[str, Tensor], num_frames: int) -> Iterator[Tensor]:
        """Frames of the side-by-side video one by one: the whole of it in float32 would be a test's largest tensor."""
        for t in range(num_frames):
            yield side_by_side({name: x[t : t + 1] if x.ndim == 4 else x for name, x in columns.items()})[0]

    @staticmethod
    def _joined(blocks: list[Prediction]) -> Prediction:
        """One row of all blocks: frames a second as all frames over all the time, the slowest block's latency."""
        frames = torch.cat([block.frames for block in blocks])
        known = [(len(block.frames), block.fps) for block in blocks if block.fps is not None]
        fps = sum(count for count, _ in known) / sum(count / speed for count, speed in known) if known else None
        latencies = [block.latency_ms for block in blocks if block.latency_ms is not None]
        samples = [block.samples for block in blocks if block.samples is not None]
        coverages = [block.coverage for block in blocks if block.coverage is not None]
        first, second = zip(*samples, strict=True) if samples else ((), ())
        return Prediction(
            frames=frames,
            coverage=torch.cat(coverages) if len(coverages) == len(blocks) else None,
            num_steps=blocks[0].num_steps,
            fps=fps,
            latency_ms=max(latencies) if latencies else None,
            own_pose=blocks[0].own_pose,
            figures=blocks[0].figures,
            samples=(torch.cat(first), torch.cat(second)) if samples else None,
            reasons=blocks[0].reasons,
        )


def with_reasons(figures: dict[str, Any], reason: str) -> dict[str, Any]:
    """Figures of a row, their missing columns None for `reason`."""
    missing = [column for column in (*COLUMNS, *DETAILS) if figures.get(column) is None]
    return {
        **figures,
        **dict.fromkeys(missing),
        **{f"{column}_reason": figures.get(f"{column}_reason", reason) for column in missing},
    }


def folder_means(
    figures: Mapping[str, Mapping[str, Any]], clips: Sequence[tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """Mean rows `NAME (mean of N in FOLDER)` over the clips of each folder of two clips and more, clips alike.

    A column that one of them lacks is missing with that one's reason; lists are left out. `NAME_interval` is the 95 %
    bootstrap interval of the mean over the clips.

    Args:
        figures: rows `NAME (CLIP)`.
        clips: folder and name of each clip.
    """
    means = {}
    for folder in dict.fromkeys(folder for folder, _ in clips):
        names = [name for place, name in clips if place == folder]
        suffix = f" ({names[0]})"
        for row in [key.removesuffix(suffix) for key in figures if key.endswith(suffix)]:
            found = [figures[f"{row} ({name})"] for name in names if f"{row} ({name})" in figures]
            if len(found) < 2:
                continue
            mean: dict[str, Any] = {}
            for column in (*COLUMNS, *DETAILS, *AVATAR):
                values = [each.get(column) for each in found]
                numbers = [value for value in values if isinstance(value, int | float)]
                if len(numbers) == len(values):
                    mean[column] = type(numbers[0])(sum(numbers) / len(numbers))
                    if isinstance(numbers[0], float):
                        mean[f"{column}_interval"] = [round(end, 6) for end in bootstrap_interval(numbers)]
                elif any(f"{column}_reason" in each for each in found):
                    reasons = [each[f"{column}_reason"] for each in found if f"{column}_reason" in each]
                    mean[column], mean[f"{column}_reason"] = None, reasons[0]
            means[f"{row} (mean of {len(found)} in {folder})"] = mean
    return means
