"""Where the detector's points lie on the body model, computed by showing the detector renders of the model.

`python -m visa.tools.track.correspond [--body assets/body/smplx_anny.npz] [--out assets/body/landmarks.npz]`

The head is rendered from several sides, the detector is run on each picture, and rays through its points are cast
back. They may meet the skin only: a point of the lips that lands on a tooth would move with the skull instead of the
jaw. Points of the lids and of the lips' inner outline are then put on the rims that the picture shows: where skin
borders on eyeball, and where the lips of the opened mouth border on its dark inside. Body points are triangulated from
the detector's answers on several views of the whole body.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visa.artifacts.arrays import read_arrays
from visa.artifacts.command_line import one_line_errors
from visa.artifacts.files import shipped
from visa.networks.body import BodyModel, BodyParams
from visa.tools.track.detect import NUM_FACE_POINTS, Detector
from visa.tools.track.render import pixel_barycentric, shade, visible_triangles

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

DEFAULT_BODY = Path("assets/body/smplx_anny.npz")
DEFAULT_LANDMARKS = Path("assets/body/landmarks.npz")

# The detector's outlines (numbering of its published face mesh). Right and left are the subject's.
UPPER_LIDS = (246, 161, 160, 159, 158, 157, 173, 466, 388, 387, 386, 385, 384, 398)
LOWER_LIDS = (7, 163, 144, 145, 153, 154, 155, 249, 390, 373, 374, 380, 381, 382)
LID_CORNERS = (33, 133, 263, 362)
UPPER_INNER_LIP = (191, 80, 81, 82, 13, 312, 311, 310, 415)
LOWER_INNER_LIP = (95, 88, 178, 87, 14, 317, 402, 318, 324)
LIP_CORNERS = (78, 308)
RIGHT_IRIS, LEFT_IRIS = range(468, 473), range(473, 478)
# The detector's body points and the SMPL-X joints they belong to: shoulders, elbows, wrists, hips.
POSE_INDEX = (11, 12, 13, 14, 15, 16, 23, 24)
POSE_JOINT = (16, 17, 18, 19, 20, 21, 1, 2)
# The detector's hand runs wrist, thumb, index, middle, ring, little finger; SMPL-X orders index, middle, little,
# ring, thumb.
HAND_JOINTS = (
    (20, 37, 38, 39, -1, 25, 26, 27, -1, 28, 29, 30, -1, 34, 35, 36, -1, 31, 32, 33, -1),
    (21, 52, 53, 54, -1, 40, 41, 42, -1, 43, 44, 45, -1, 49, 50, 51, -1, 46, 47, 48, -1),
)
FINGERTIP_VERTICES = (
    (5361, 4933, 5058, 5169, 5286),
    (8079, 7669, 7794, 7905, 8022),
)  # smplx's extra joints, thumb first
LEFT_EYE, RIGHT_EYE = 23, 24

SIZE = 768  # px of the rendered pictures
HEAD_FOCAL, HEAD_DISTANCE = 1350.0, 0.75
VIEWS = [(yaw, pitch) for yaw in (-30, -20, -10, 0, 10, 20, 30) for pitch in (-12, 0, 12)]  # degrees
JAW_OPEN = 0.35  # rad, for finding the lips' rims


@dataclass
class Landmarks:
    """Places on the body model of the detector's points."""

    face_index: Indices  # [478] triangle of each face point
    face_barycentric: Floats  # [478, 3] its place in the triangle
    pose_index: Indices  # [P] the detector's body points that are used
    pose_joint: Indices  # [P] their SMPL-X joints
    pose_offset: Floats  # [P, 3] from the joint, in the joint's frame at shape zero, m
    fingertips: Indices  # [2, 5] vertices, left then right, thumb first

    @staticmethod
    def load(path: Path) -> Landmarks:
        """Read a file written by `save`; ValueError that names the command which makes it."""
        try:
            names = Landmarks.__dataclass_fields__
            arrays = read_arrays(shipped(path), "landmark file", names)
            return Landmarks(**{name: arrays[name] for name in names})
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: not a landmark file: make it by `python -m visa.tools.track.correspond --out {path}`"
            ) from error

    def save(self, path: Path) -> None:
        """Write as npz."""
        np.savez_compressed(path, **{name: getattr(self, name) for name in Landmarks.__dataclass_fields__})

    def hand_points(self, joints: Tensor, tips: Tensor) -> Tensor:
        """The detector's hand points [N, 2, 21, 3] from joints [N, 55, 3] and fingertips [N, 2, 5, 3]."""
        points = joints[:, torch.tensor(HAND_JOINTS).clamp_min(0)]
        return torch.cat([points, tips], 2)[
            :, :, [0, 1, 2, 3, 21, 5, 6, 7, 22, 9, 10, 11, 23, 13, 14, 15, 24, 17, 18, 19, 25]
        ]


@dataclass
class Head:
    """The model's mesh as the detector is to see it."""

    vertices: Floats  # [V, 3] world, m
    faces: Indices  # [F, 3]
    is_skin: NDArray[np.bool_]  # [F]
    is_eyeball: NDArray[np.bool_]  # [F]
    colours: Floats  # [V, 3]
    centre: Floats  # [3] point that the camera looks at

    def seen_from(self, yaw: float, pitch: float, distance: float) -> Floats:
        """Vertices in the axes of a camera that is turned about `centre` by `yaw`, `pitch` (degrees), `distance` m
        away.
        """
        a, b = np.radians(yaw), np.radians(pitch)
        about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        turned = (self.vertices - self.centre) @ (about_x @ about_y).T
        return (turned * (1, -1, -1) + (0, 0, distance)).astype(np.float32)


def head_of(body: BodyModel, jaw: float = 0.0) -> Head:
    """The mesh with the mouth opened by `jaw` rad; irises and pupils painted on, since the detector looks for them."""
    params = BodyParams.zeros((1,), body.num_expressions)
    params.jaw_pose[..., 0] = jaw
    params.body_pose[..., 15, 2], params.body_pose[..., 16, 2] = -1.1, 1.1
    vertices, joints = (value[0].numpy() for value in body(params))
    faces = body.faces.numpy()
    names = np.array(body.part_names)[body.part.numpy()]
    is_eyeball = np.isin(names, ("eyeball_left", "eyeball_right"))
    colours = np.tile(np.array([0.86, 0.66, 0.56], np.float32), (len(vertices), 1))
    colours[np.isin(names, ("teeth_upper", "teeth_lower"))] = 0.9
    colours[np.isin(names, ("tongue", "mouth_cavity"))] = (0.35, 0.1, 0.1)
    colours[is_eyeball] = 0.95
    for joint in (LEFT_EYE, RIGHT_EYE):
        away = vertices - joints[joint]
        mine = is_eyeball & (np.linalg.norm(away, axis=-1) < 0.02)
        forward = away[:, 2] / np.maximum(np.linalg.norm(away, axis=-1), 1e-9)
        colours[mine & (forward > 0.86)] = (0.3, 0.2, 0.1)
        colours[mine & (forward > 0.97)] = 0.02
    centre = (joints[LEFT_EYE] + joints[RIGHT_EYE]) / 2 + (0, -0.03, -0.03)
    # A licensed file labels its eyeballs only; the mouth's inside is then told apart by the rims' search alone.
    return Head(
        vertices, faces, (names == "skin")[faces].all(1), is_eyeball[faces].all(1), colours, centre.astype(np.float32)
    )


@dataclass
class View:
    """One render and the detector's answer."""

    points: Floats  # [V, 3] camera space, m
    pixels: Floats  # [478, 2] px
    frontality: float  # weight in (0, 1]


def detect_views(detector: Detector, head: Head) -> list[View]:
    """Every view in which the detector finds the face."""
    found = []
    for yaw, pitch in VIEWS:
        points = head.seen_from(yaw, pitch, HEAD_DISTANCE)
        pixels = detector(shade(points, head.faces, head.colours, HEAD_FOCAL, SIZE))["face"][:, :2]
        if np.isfinite(pixels).all():
            # Seen from the side, the detector's outline slides along the cheek.
            found.append(View(points, pixels, float(np.exp(-(yaw**2 + pitch**2) / (2 * 40**2)))))
    if len(found) < len(VIEWS) // 2:
        raise ValueError(
            "the detector does not find the body model's face in most renders: is its part labelling right?"
        )
    return found


def nearest_pixel(candidates: NDArray[np.bool_], pixels: Floats) -> NDArray[np.int64]:
    """For each of `pixels` [N, 2] (x, y) the nearest set pixel of `candidates` [H, W] as (x, y) [N, 2]."""
    y, x = np.nonzero(candidates)
    where = np.stack([x, y], -1)
    distance = np.linalg.norm(where[None] + 0.5 - pixels[:, None], axis=-1)
    return where[distance.argmin(1)]


def cast(points: Floats, faces: Indices, seen: Indices, pixels: Floats, world: Floats) -> tuple[Floats, Floats]:
    """World points [N, 3] on the visible triangles under `pixels` [N, 2], and how frontally each is seen [N] (0:
    missed).
    """
    column = np.clip(pixels.astype(int), 0, SIZE - 1)
    triangle = seen[column[:, 1], column[:, 0]]
    corners = faces[np.maximum(triangle, 0)]
    weights = pixel_barycentric(points, corners, pixels, HEAD_FOCAL, SIZE)
    a, b, c = (points[corners[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    ray = a / np.linalg.norm(a, axis=-1, keepdims=True)
    facing = np.abs((normal * ray).sum(-1)) * (triangle >= 0)
    return (world[corners] * weights[..., None]).sum(1), facing


def surface_points(head: Head, views: list[View]) -> tuple[Floats, Floats]:
    """Mean world place [478, 3] of each point on the skin (irises: on the eyeballs), and its scatter over the views
    [478] (m).
    """
    places, weights = [], []
    skin, eyes = head.faces[head.is_skin], head.faces[head.is_eyeball]
    for view in views:
        points, pixels = view.points, view.pixels
        place = np.zeros((NUM_FACE_POINTS, 3))
        weight = np.zeros(NUM_FACE_POINTS)
        for faces, rows in ((skin, range(468)), (eyes, range(468, 478))):
            index = np.array(rows)
            seen = visible_triangles(points, faces, HEAD_FOCAL, SIZE)
            place[index], facing = cast(points, faces, seen, pixels[index], head.vertices)
            weight[index] = np.clip(facing - 0.2, 0, 1) * view.frontality
        places.append(place)
        weights.append(weight)
    place, weight = np.stack(places), np.stack(weights)
    # A point at the outline may jump to what lies behind: judge each view by its distance from the median of the more
    # frontal half of the views that hit at all.
    middle = np.zeros((NUM_FACE_POINTS, 3))
    for row in range(NUM_FACE_POINTS):
        hits = np.flatnonzero(weight[:, row] > 0)
        frontal = hits[np.argsort([-views[n].frontality for n in hits])[: max(1, (len(hits) + 1) // 2)]]
        middle[row] = np.median(place[frontal, row], axis=0) if len(hits) else np.nan
    far = np.linalg.norm(place - middle, axis=-1)
    weight = weight / (1 + (far / 0.003) ** 4)
    total = weight.sum(0)
    if (total <= 0).any():
        raise ValueError(f"the detector's points {np.flatnonzero(total <= 0).tolist()} meet no skin in any view")
    mean = (place * weight[..., None]).sum(0) / total[:, None]
    scatter = (far * weight).sum(0) / total
    return mean.astype(np.float32), scatter.astype(np.float32)


def lid_rims(head: Head, views: list[View]) -> dict[int, Floats]:
    """World places [3] of the lids' points: the nearest skin pixel that borders on the eyeball on the lid's own
    side.
    """
    everything = np.arange(len(head.faces))
    found: dict[int, list[Floats]] = {}
    for view in views:
        points, pixels = view.points, view.pixels
        seen = visible_triangles(points, head.faces, HEAD_FOCAL, SIZE)
        hit = everything[np.maximum(seen, 0)]
        skin, eye = head.is_skin[hit] & (seen >= 0), head.is_eyeball[hit] & (seen >= 0)
        # Between lid and eyeball a pixel or two of the socket may show.
        below = eye | np.roll(eye, -1, 0) | np.roll(eye, -2, 0)
        above = eye | np.roll(eye, 1, 0) | np.roll(eye, 2, 0)
        upper, lower = skin & np.roll(below, -1, 0), skin & np.roll(above, 1, 0)
        for rows, rim in ((UPPER_LIDS, upper), (LOWER_LIDS, lower), (LID_CORNERS, upper | lower)):
            collect(found, rows, rim, points, pixels, seen, head)
    return {row: np.median(places, axis=0) for row, places in found.items()}


def lip_rims(head: Head, views: list[View]) -> dict[int, Floats]:
    """World places [3], on the opened mouth, of the lips' inner outline: where the skin breaks off to something
    deeper.
    """
    found: dict[int, list[Floats]] = {}
    for view in views:
        points, pixels = view.points, view.pixels
        seen = visible_triangles(points, head.faces, HEAD_FOCAL, SIZE)
        skin = head.is_skin[np.maximum(seen, 0)] & (seen >= 0)
        depth = np.where(seen >= 0, points[head.faces[np.maximum(seen, 0)], 2].mean(-1), np.inf)
        mouth = np.zeros_like(skin)
        box = pixels[list(UPPER_INNER_LIP + LOWER_INNER_LIP + LIP_CORNERS)]
        (left, top), (right, bottom) = (box.min(0) - 6).astype(int), (box.max(0) + 7).astype(int)
        mouth[top:bottom, left:right] = True
        step = 0.003  # m
        breaks_below = ~np.roll(skin, -1, 0) | (np.roll(depth, -1, 0) > depth + step)
        breaks_above = ~np.roll(skin, 1, 0) | (np.roll(depth, 1, 0) > depth + step)
        upper, lower = skin & mouth & breaks_below, skin & mouth & breaks_above
        for rows, rim in ((UPPER_INNER_LIP, upper), (LOWER_INNER_LIP, lower), (LIP_CORNERS, upper | lower)):
            collect(found, rows, rim, points, pixels, seen, head)
    return {row: np.median(places, axis=0) for row, places in found.items()}


def collect(
    found: dict[int, list[Floats]],
    rows: tuple[int, ...],
    rim: NDArray[np.bool_],
    points: Floats,
    pixels: Floats,
    seen: Indices,
    head: Head,
) -> None:
    """Append to `found` the rim's places nearest to the points `rows`, as far as they are near at all."""
    if not rim.any():
        return
    nearest = nearest_pixel(rim, pixels[list(rows)])
    places, _ = cast(points, head.faces, seen, nearest + 0.5, head.vertices)
    reach = 0.06 * np.linalg.norm(pixels[10] - pixels[152])
    for row, place, pixel in zip(rows, places, nearest, strict=True):
        if np.linalg.norm(pixel + 0.5 - pixels[row]) < reach:
            found.setdefault(row, []).append(place)


def on_surface(places: Floats, vertices: Floats, faces: Indices, allowed: NDArray[np.bool_]) -> tuple[Indices, Floats]:
    """Nearest points of the `allowed` triangles to `places` [N, 3]: triangle index [N] and barycentric [N, 3]."""
    candidates = np.flatnonzero(allowed)
    corners = vertices[faces[candidates]].astype(np.float64)  # [C, 3, 3]
    middle = corners.mean(1)
    index = np.zeros(len(places), np.int64)
    weights = np.zeros((len(places), 3), np.float32)
    for n, place in enumerate(places.astype(np.float64)):
        near = np.linalg.norm(middle - place, axis=-1).argsort()[:60]
        bary = closest_barycentric(corners[near], place)
        distance = np.linalg.norm((corners[near] * bary[..., None]).sum(1) - place, axis=-1)
        best = int(distance.argmin())
        index[n], weights[n] = candidates[near[best]], bary[best]
    return index, weights


def closest_barycentric(corners: NDArray[np.float64], place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Barycentric coordinates [C, 3] of the points of triangles `corners` [C, 3, 3] nearest to `place` [3]."""
    a, ab, ac = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    to = place - a
    d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
    d20, d21 = (to * ab).sum(-1), (to * ac).sum(-1)
    scale = np.maximum(d00 * d11 - d01 * d01, 1e-18)
    v, w = (d11 * d20 - d01 * d21) / scale, (d00 * d21 - d01 * d20) / scale
    inside = np.stack([1 - v - w, v, w], -1)
    options = [np.where((inside >= 0).all(-1, keepdims=True), inside, np.nan)]
    for i, j in ((0, 1), (1, 2), (2, 0)):
        edge = corners[:, j] - corners[:, i]
        t = np.clip(((place - corners[:, i]) * edge).sum(-1) / np.maximum((edge * edge).sum(-1), 1e-18), 0, 1)
        option = np.zeros_like(inside)
        option[:, i], option[:, j] = 1 - t, t
        options.append(option)
    choice = np.stack(options)  # [4, C, 3]
    distance = np.linalg.norm((choice[..., None] * corners).sum(2) - place, axis=-1)
    return choice[np.nanargmin(np.where(np.isnan(distance), np.inf, distance), 0), np.arange(len(corners))]


def mirrored_mean(places: Floats) -> Floats:
    """Places [N, 3] averaged with their mirror images: the template is symmetric, the renders' light is not.

    A point's partner is the one nearest to its mirror image, if that holds both ways.
    """
    flip = np.array([-1, 1, 1], np.float32)
    distance = np.linalg.norm(places[:, None] * flip - places[None], axis=-1)
    partner = distance.argmin(1)
    is_mutual = partner[partner] == np.arange(len(places))
    return np.where(is_mutual[:, None], (places + places[partner] * flip) / 2, places)


def face_places(body: BodyModel, detector: Detector) -> tuple[Indices, Floats]:
    """Triangle [478] and barycentric [478, 3] of every face point."""
    head = head_of(body)
    views = detect_views(detector, head)
    places, _ = surface_points(head, views)
    for row, place in lid_rims(head, views).items():
        places[row] = place
    places = mirrored_mean(places)
    index, weights = on_surface(places, head.vertices, head.faces, head.is_skin)
    irises = list(RIGHT_IRIS) + list(LEFT_IRIS)
    index[irises], weights[irises] = on_surface(places[irises], head.vertices, head.faces, head.is_eyeball)

    opened = head_of(body, JAW_OPEN)
    rims = lip_rims(opened, detect_views(detector, opened))
    missing = set(UPPER_INNER_LIP + LOWER_INNER_LIP + LIP_CORNERS) - set(rims)
    if missing:
        raise ValueError(f"no rim of the lips was found for the detector's points {sorted(missing)}")
    rows = sorted(rims)
    index[rows], weights[rows] = on_surface(
        np.stack([rims[r] for r in rows]), opened.vertices, head.faces, head.is_skin
    )
    return index, weights


def body_offsets(body: BodyModel, detector: Detector) -> Floats:
    """[P, 3] where the detector sees shoulders, elbows, wrists and hips, from the model's joints, in their frames,
    m.
    """
    head = head_of(body)
    params = BodyParams.zeros((1,), body.num_expressions)
    params.body_pose[..., 15, 2], params.body_pose[..., 16, 2] = -1.0, 1.0
    head.vertices, joints = (value[0].numpy() for value in body(params))
    turns = body.joint_transforms(params)[0, list(POSE_JOINT), :3, :3].numpy()
    head.centre = joints[0] + np.array([0, 0.15, 0], np.float32)
    focal, distance = 900.0, 2.6
    rows, sides = [], []
    for yaw in (-30, -20, -10, 0, 10, 20, 30):
        points = head.seen_from(yaw, 0, distance)
        pose = detector(shade(points, head.faces, head.colours, focal, SIZE))["pose"]
        if not np.isfinite(pose).all():
            continue
        a = np.radians(yaw)
        turn = np.diag([1.0, -1.0, -1.0]) @ np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        move = np.array([0, 0, distance]) - turn @ head.centre
        for k, index in enumerate(POSE_INDEX):
            x, y = (pose[index, :2] - SIZE / 2) / focal
            rows += [(k, turn[0] - x * turn[2]), (k, turn[1] - y * turn[2])]
            sides += [x * move[2] - move[0], y * move[2] - move[1]]
    result = np.zeros((len(POSE_INDEX), 3), np.float32)
    for k, joint in enumerate(POSE_JOINT):
        mine = [n for n, (owner, _) in enumerate(rows) if owner == k]
        if len(mine) < 6:
            raise ValueError(
                "the detector does not find the body model's body in the renders: is the file an SMPL-X body?"
            )
        place, *_ = np.linalg.lstsq(
            np.stack([rows[n][1] for n in mine]), np.array([sides[n] for n in mine]), rcond=None
        )
        result[k] = turns[k].T @ (place - joints[joint])
    mirrored = result.reshape(-1, 2, 3)
    even = (mirrored[:, 0] + mirrored[:, 1] * (-1, 1, 1)) / 2
    return np.stack([even, even * (-1, 1, 1)], 1).reshape(-1, 3).astype(np.float32)


def compute(body: BodyModel) -> Landmarks:
    """All correspondences of `body`; takes about half a minute."""
    detector = Detector(is_still=True)
    try:
        index, weights = face_places(body, detector)
        offsets = body_offsets(body, detector)
    finally:
        detector.close()
    return Landmarks(
        index,
        weights,
        np.array(POSE_INDEX),
        np.array(POSE_JOINT),
        offsets,
        np.array(FINGERTIP_VERTICES, dtype=np.int64),
    )


@one_line_errors
def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compute where the detector's points lie on the body model.")
    parser.add_argument("--body", type=Path, default=DEFAULT_BODY, help="SMPL-X npz file")
    parser.add_argument("--out", type=Path, default=DEFAULT_LANDMARKS)
    arguments = parser.parse_args()
    with torch.no_grad():
        compute(BodyModel.from_file(arguments.body)).save(arguments.out)
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
