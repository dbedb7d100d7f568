"""Do fitted avatars obey anatomy? `python -m visa.benchmarks.anatomy [--clips people/validation ...] [--json]`.

R1 A closed mouth shows no teeth, closed lids show no eyeball: anchors of those kinds that
   `GaussianReconstructor.project` calls visible, in frames whose track says closed and in a made-up closed pose.
R2 Lids cover: with both eyes shut, the share of lids and skin in what is splatted at each eyeball's centre.
R3 The mouth opens: with the jaw opened, the share of pixels within the inner lips that show teeth, tongue or the
   mouth's inside, and how much brighter teeth are than the mouth's inside.
R4 L1 of the textured row in boxes of eyes and mouth, in frames with the eyes half shut or the jaw open, of the
   feed-forward avatar and of the fitted one.
R5 Lids are skin: with both eyes shut, how bright the darkest pixel of an eye is, as a share of the median there, in the
   splat and in the textured row. An iris painted onto lids, or read there from the photo, is a dark spot; lashes are
   half as bright.

Each clip is read outside of its test blocks; its photo is that of its splits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from visa.benchmarks.command import add_clips, clip_paths, command_line, print_json, run, say
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.evaluation.table import format_table
from visa.losses.image import box_weight, l1, weighted_mean
from visa.networks.anatomy import Kind
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel, BodyParams
from visa.networks.compositing import splat
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.photo import Photo
from visa.networks.projection import project
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.photos import photo_of
from visa.runtime.shipped import BACKGROUND, BODY, WEIGHTS, load_reconstructor
from visa.tools.track.correspond import DEFAULT_LANDMARKS, LIP_CORNERS, LOWER_INNER_LIP, UPPER_INNER_LIP

CLIPS = ["assets/clips/webcam_man.mp4"]
SIZE = 128  # px of photos and frames
FINE = 4  # pictures of made-up poses are so many times larger: a mouth of 128 px has few pixels
CLOSED_JAW, CLOSED_LIDS = 0.02, 0.8  # rad and blink: the track says closed
CLOSED_LIPS = 0.001  # m farther apart than without an expression: smiling lips are parted, whatever the jaw
HALF_SHUT, OPEN_JAW = 0.5, 0.1  # blink and rad: frames of R4
SHUT, OPENED = 1.0, 0.3  # blink and rad of the made-up poses
MOST_FRAMES = 16  # of each condition, spread evenly
LEAST_COVER, LEAST_INTERIOR, LEAST_CONTRAST = 0.9, 0.5, 0.15
MARGIN = 0.6  # of a box, as a share of its sides
MOUTH, INTERIOR = (Kind.TEETH, Kind.TONGUE), (Kind.TEETH, Kind.TONGUE, Kind.CAVITY)
BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
LIPS = (LIP_CORNERS[0], *UPPER_INNER_LIP, LIP_CORNERS[1], *LOWER_INNER_LIP[::-1])  # the inner outline, in order


def spread(numbers: np.ndarray) -> np.ndarray:
    """At most MOST_FRAMES of the frame numbers, spread evenly."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, min(MOST_FRAMES, len(numbers))).round().astype(int))]


def conditions(clip: Clip, body: BodyModel) -> dict[str, np.ndarray]:
    """Frame numbers of each condition, outside of the clip's test blocks."""
    is_read = replace(clip.splits, validation=[]).free_mask(clip.num_frames) & clip.track["frame_valid"]
    track = BodyParams.from_track(clip.track, np.arange(clip.num_frames))
    neutral = BodyParams.zeros((1,), body.num_expressions)
    neutral.betas = track.betas[:1]
    points = face_points(torch.cat([body(neutral)[0], body(track)[0]]), body)
    gap = (points[:, list(UPPER_INNER_LIP)] - points[:, list(LOWER_INNER_LIP)]).norm(dim=-1)
    gap = (gap[1:] - gap[:1]).amax(dim=-1).numpy()
    jaw = clip.track["jaw_pose"][:, 0]
    blink = clip.track["expression"][:, [body.expression_names.index(name) for name in BLINKS]].min(axis=1)
    chosen = {
        "closed_mouth": (jaw < CLOSED_JAW) & (gap < CLOSED_LIPS), "closed_lids": blink > CLOSED_LIDS,
        "eyes": blink > HALF_SHUT, "mouth": jaw > OPEN_JAW,
    }  # fmt: skip
    return {name: spread(np.flatnonzero(is_read & mask)) for name, mask in chosen.items()}


def frame_photo(batch: VideoBatch, frame: int) -> Photo:
    """A frame as a photo of its own."""
    return Photo(
        image=batch.frames[:, frame],
        mask=batch.masks[:, frame],
        body=batch.body.map(lambda value: value[:, frame]),
        intrinsics=batch.intrinsics[:, frame],
        world_to_camera=batch.world_to_camera[:, frame],
        background=batch.background,
    )


def posed(photo: Photo, body: BodyModel, blink: float = 0.0, jaw: float = 0.0) -> BodyParams:
    """The photo's pose `[1,...]` without its expression, with these lids and this jaw."""
    params = photo.body.map(torch.clone)
    params.expression.zero_()
    params.expression[:, [body.expression_names.index(name) for name in BLINKS]] = blink
    params.jaw_pose.zero_()
    params.jaw_pose[:, 0] = jaw
    return params


def count_visible(reconstructor: GaussianReconstructor, photo: Photo, kinds: Sequence[Kind]) -> int:
    """Anchors of some kinds that the photo shows."""
    visible = project(reconstructor.anchors, photo).visible[0] > 0
    return int(sum((visible & (reconstructor.anchors.kind == int(kind))).sum() for kind in kinds))


def pixels_of(points: Tensor, photo: Photo) -> Tensor:
    """Places `[...,N,2]` in px of a FINE picture, of `points [...,N,3]` m."""
    camera = photo.world_to_camera[0]
    projected = (points @ camera[:3, :3].T + camera[:3, 3]) @ photo.intrinsics[0].T
    return FINE * projected[..., :2] / projected[..., 2:]


def drawn(
    reconstructor: GaussianReconstructor, avatar: Avatar, photo: Photo, params: BodyParams, kinds: Sequence[Kind]
) -> Tensor:
    """`[H,W]` of a FINE picture: share of each pixel that Gaussians of some kinds have; loose ones are of no kind."""
    gaussians = avatar.pose(reconstructor.body, params.map(lambda value: value[:, None]))
    chosen = torch.zeros_like(gaussians.opacities)
    count = len(reconstructor.anchors.kind)
    for kind in kinds:
        chosen[..., :count] += (reconstructor.anchors.kind == int(kind)).float()
    view = photo.view()
    intrinsics = view.intrinsics.clone()
    intrinsics[..., :2, :] *= FINE
    fine = replace(view, intrinsics=intrinsics, size=FINE * view.size)
    return splat(replace(gaussians, features=chosen[..., None]), fine, avatar.background).features[0, 0, 0]


def face_points(vertices: Tensor, body: BodyModel) -> Tensor:
    """The detector's points `[...,478,3]` m on posed `vertices [...,V,3]`."""
    with np.load(DEFAULT_LANDMARKS, allow_pickle=False) as archive:
        corners, weights = body.faces[torch.from_numpy(archive["face_index"])], archive["face_barycentric"]
    return (vertices[..., corners, :] * torch.from_numpy(weights)[..., None]).sum(dim=-2)


def lid_cover(reconstructor: GaussianReconstructor, avatar: Avatar, photo: Photo) -> float:
    """R2: share of lids and skin at the centre of the eyeball that they cover worst."""
    body, params = reconstructor.body, posed(photo, reconstructor.body, blink=SHUT)
    vertices = body(params)[0][0]
    names = [k for k, name in enumerate(body.part_names) if name.startswith("eyeball")]
    centres = torch.stack([vertices[body.part == k].mean(dim=0) for k in names])
    cover = drawn(reconstructor, avatar, photo, params, (Kind.RIM, Kind.FACE, Kind.BODY))
    columns, rows = pixels_of(centres, photo).long().clamp(0, len(cover) - 1).unbind(-1)
    return float(cover[rows, columns].min())


@torch.no_grad()
def shut_eyes(reconstructor: GaussianReconstructor, avatar: Avatar, photo: Photo) -> dict[str, float]:
    """R5: luminance of the darkest pixel over the median's, within the eyeballs' outlines, in the worse eye."""
    body, params = reconstructor.body, posed(photo, reconstructor.body, blink=SHUT)
    vertices, view = body(params)[0][0], replace(photo, body=params).view()
    maps = avatar.render(body, view)
    figures = {}
    for name, picture in (("splat", maps.rgb), ("textured", maps.textured)):
        light, shares = picture[0, 0].mean(dim=0), []
        for side in ("left", "right"):
            eyeball = vertices[body.part == body.part_names.index(f"eyeball_{side}")]
            places = pixels_of(eyeball, photo) / FINE
            (left, top), (right, bottom) = places.amin(dim=0).tolist(), places.amax(dim=0).tolist()
            eye = light[max(0, round(top)) : max(1, round(bottom)), max(0, round(left)) : max(1, round(right))]
            if eye.numel():
                shares.append(float(eye.min() / eye.median().clamp_min(1e-3)))
        if shares:
            figures[f"shut_{name}"] = min(shares)
    return figures


def open_mouth(reconstructor: GaussianReconstructor, avatar: Avatar, photo: Photo) -> dict[str, float]:
    """R3: share of the opening that is mostly interior, and luminance of teeth less that of the mouth's inside."""
    body, params = reconstructor.body, posed(photo, reconstructor.body, jaw=OPENED)
    vertices = body(params)[0][0]
    interior = drawn(reconstructor, avatar, photo, params, INTERIOR)
    opening = Image.new("1", (interior.shape[1], interior.shape[0]))
    ring = pixels_of(face_points(vertices, body)[list(LIPS)], photo)
    ImageDraw.Draw(opening).polygon([(float(x), float(y)) for x, y in ring], fill=1)
    inside = interior[torch.from_numpy(np.array(opening))]
    light = avatar.gaussians.colors[0].mean(dim=1)
    is_mouth = (body.part == body.part_names.index("mouth_cavity"))[avatar.vertex_ids]
    teeth = light[reconstructor.anchors.kind == int(Kind.TEETH)].mean()
    return {
        "open_interior": float((inside > 0.5).float().mean()),
        "teeth_contrast": float(teeth - light[is_mouth].mean()),
    }


@torch.no_grad()
def crop_error(reconstructor: GaussianReconstructor, avatar: Avatar, batch: VideoBatch, kinds: Sequence[Kind]) -> float:
    """R4: L1 of the textured row within the boxes of some kinds' vertices, one box on each side of the body."""
    body = reconstructor.body
    maps = avatar.render(body, batch.view())
    error = l1(maps.textured, batch.frames)[0]
    anchors = reconstructor.anchors
    is_kind = torch.isin(anchors.kind, anchors.kind.new_tensor([int(kind) for kind in kinds]))
    ids = anchors.template.vertex_ids[is_kind]
    vertices = body(batch.body, ids)[0][0]
    inside = torch.zeros_like(error[:, :1])
    sides = (body.v_template[ids, 0] > 0, body.v_template[ids, 0] <= 0)
    for is_side in sides:
        camera = batch.world_to_camera[0]
        seen = vertices[:, is_side] @ camera[:, :3, :3].mT + camera[:, None, :3, 3]
        projected = seen @ batch.intrinsics[0].mT
        places = projected[..., :2] / projected[..., 2:]
        low, high = places.amin(dim=1), places.amax(dim=1)
        room = MARGIN * (high - low)
        size = error.shape[-1]
        inside = torch.maximum(inside, box_weight(torch.cat([low - room, high + room], 1), size, size, 1.0, 0.0))
    return float(weighted_mean(error, inside).mean())


@torch.no_grad()
def measure(reconstructor: GaussianReconstructor, clip: Clip, options: FitOptions) -> dict[str, float]:
    """All figures of one clip; those of conditions that the clip never meets are left out."""
    reader, reference = WindowReader(BACKGROUND), clip.reference_frame()
    photo = photo_of(reader.read(clip, np.asarray([reference]), reference, SIZE))
    avatar, _ = reconstructor(photo)
    fitted = fit_avatar(reconstructor, avatar, photo, options, show_progress=sys.stderr.isatty())
    closed = replace(photo, body=posed(photo, reconstructor.body, blink=SHUT))
    figures: dict[str, float] = {
        "pose_teeth": count_visible(reconstructor, closed, INTERIOR),
        "pose_eyeballs": count_visible(reconstructor, closed, (Kind.EYEBALL,)),
    }
    frames = {
        name: reader.read(clip, numbers, reference, SIZE)
        for name, numbers in conditions(clip, reconstructor.body).items()
        if len(numbers)
    }
    for name, kinds in (("closed_mouth", (Kind.TEETH,)), ("closed_lids", (Kind.EYEBALL,))):
        if name in frames:
            batch = frames[name]
            counts = [count_visible(reconstructor, frame_photo(batch, t), kinds) for t in range(batch.frames.shape[1])]
            figures |= {f"{name}_frames": len(counts), f"{name}_shown": float(np.mean(counts))}
    for prefix, one in (("feed_forward_", avatar), ("", fitted)):
        figures[f"{prefix}lid_cover"] = lid_cover(reconstructor, one, photo)
        made_up = open_mouth(reconstructor, one, photo) | shut_eyes(reconstructor, one, photo)
        figures |= {f"{prefix}{name}": value for name, value in made_up.items()}
        for name, parts in (("eyes", [Kind.EYEBALL]), ("mouth", list(MOUTH))):
            if name in frames:
                figures[f"{prefix}{name}_l1"] = crop_error(reconstructor, one, frames[name], parts)
    return figures


def summary(rows: Sequence[dict[str, float]]) -> dict[str, float | int | bool]:
    """Means over the clips that have a figure, and whether every clip meets R1, R2 and R3."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    result: dict[str, float | int | bool] = {"clips": len(rows)}
    for name in names:
        result[name] = round(float(np.mean([row[name] for row in rows if name in row])), 4)

    def met(*tests: tuple[str, Callable[[float], bool]]) -> bool:
        return all(test(row[name]) for row in rows for name, test in tests if name in row)

    def is_none(value: float) -> bool:
        return value == 0

    shown = ("pose_teeth", "pose_eyeballs", "closed_mouth_shown", "closed_lids_shown")
    result["R1_met"] = met(*((name, is_none) for name in shown))
    result["R2_met"] = met(("lid_cover", lambda value: value >= LEAST_COVER))
    result["R3_met"] = met(
        ("open_interior", lambda value: value >= LEAST_INTERIOR),
        ("teeth_contrast", lambda value: value >= LEAST_CONTRAST),
    )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_clips(parser, CLIPS)
    parser.add_argument("--steps", type=int, default=FitOptions.steps, help="of the fit (default: %(default)s)")
    given = parser.parse_args(arguments)
    reconstructor = load_reconstructor(BODY, WEIGHTS)
    rows = {}
    for path in clip_paths(given.clips):
        rows[path.stem] = measure(reconstructor, Clip(path), FitOptions(steps=given.steps))
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = {name: {clip: row.get(name) for clip, row in rows.items()} for name in columns}
    say(format_table(lines, list(rows)))
    flat = summary(list(rows.values()))
    for name in ("R1_met", "R2_met", "R3_met"):
        say(f"{name}: {'yes' if flat[name] else 'NO'}")
    print_json(flat, given.json)


if __name__ == "__main__":
    run(main)
