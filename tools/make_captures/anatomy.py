"""Regions of the embedded body in its rest pose, and what skin, lips, brows, eyes and mouth look like there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visa.networks.body import BodyModel
from visa.tools.make_captures.meshes import linear, mix, ramp, wave_noise
from visa.tools.make_captures.person import Person

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
HEAD_JOINTS = (15, 22, 23, 24)
# Rings of the MediaPipe face points that assets/body/landmarks.npz places on the body model.
OUTER_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
BROWS = ((70, 63, 105, 66, 107, 55, 65, 52, 53, 46), (300, 293, 334, 296, 336, 285, 295, 282, 283, 276))
EYES = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
)
FOREHEAD, PHILTRUM, MOUTH_CORNER, EAR, CHIN, TEMPLE, NOSE_TIP, CHEEK = 10, 164, 61, 234, 152, 21, 4, 50
PART_COLOURS = {
    "teeth_upper": (0.86, 0.83, 0.76), "teeth_lower": (0.84, 0.80, 0.73), "tongue": (0.68, 0.33, 0.33),
    "mouth_cavity": (0.30, 0.09, 0.09), "eye_socket": (0.62, 0.36, 0.32),
}  # fmt: skip


def inside_distance(points: Floats, ring: Floats) -> Floats:
    """Distance [N] of plane points [N, 2] to a closed ring [K, 2]: positive inside."""
    start, end = ring, np.roll(ring, -1, axis=0)
    edge = end - start
    offset = points[:, None] - start
    along = np.clip((offset * edge).sum(-1) / np.maximum((edge * edge).sum(-1), 1e-12), 0, 1)
    distance = np.linalg.norm(offset - along[..., None] * edge, axis=-1).min(axis=1)
    rises = (start[:, 1] > points[:, None, 1]) != (end[:, 1] > points[:, None, 1])
    slope = np.where(np.abs(edge[:, 1]) < 1e-12, 1e-12, edge[:, 1])
    crossing = rises & (offset[..., 0] < offset[..., 1] * edge[:, 0] / slope)
    return np.where(crossing.sum(axis=1) % 2 == 1, distance, -distance)


@dataclasses.dataclass
class Anatomy:
    """The body model in its mean shape, as arrays, with the face points on it.

    Attributes:
        body: the model. vertices: [V, 3] rest. faces: [F, 3]. landmarks: [478, 3] MediaPipe's points on it.
        part: [V] index into `body.part_names`. head: [V] skinning weight of the head's joints.
    """

    body: BodyModel
    vertices: Floats
    faces: Ints
    landmarks: Floats
    part: Ints
    head: Floats

    @classmethod
    def load(cls, body_file: Path, landmarks_file: Path) -> Anatomy:
        """Read the two files. Raises ValueError for a body that the landmarks do not belong to."""
        body = BodyModel.from_file(body_file)
        if "eye_socket" not in body.part_names:
            raise ValueError(f"{body_file} does not name eyes and mouth: use assets/body/smplx_anny.npz")
        vertices, faces = body.v_template.double().numpy(), body.faces.numpy()
        with np.load(landmarks_file, allow_pickle=False) as file:
            corners, shares = faces[file["face_index"]], file["face_barycentric"].astype(np.float64)
        weights = body.lbs_weights.double().numpy()
        return cls(
            body, vertices, faces, np.einsum("nkc,nk->nc", vertices[corners], shares), body.part.numpy(),
            weights[:, list(HEAD_JOINTS)].sum(axis=1),
        )  # fmt: skip

    def faces_of(self, mask: NDArray[np.bool_]) -> Ints:
        """Faces [n, 3] all of whose vertices are in `mask` [V]."""
        return self.faces[mask[self.faces].all(axis=1)]

    def is_part(self, name: str) -> NDArray[np.bool_]:
        """[V] vertices of a part."""
        return self.part == self.body.part_names.index(name)

    def scalp(self, points: Floats) -> Floats:
        """Distance [N] above the hairline (m, roughly) of points of the head; negative on face, ears and neck."""
        mark = self.landmarks
        height, depth = points[:, 1], points[:, 2]
        ear = mark[EAR]
        line = np.array([
            (mark[FOREHEAD, 2] + 0.02, mark[FOREHEAD, 1] + 0.006),
            (mark[FOREHEAD, 2] - 0.02, mark[FOREHEAD, 1] + 0.002),
            (mark[TEMPLE, 2], mark[TEMPLE, 1] + 0.004),
            (ear[2] + 0.006, ear[1] + 0.028), (ear[2] - 0.03, ear[1] + 0.012),
            (ear[2] - 0.045, mark[MOUTH_CORNER, 1] + 0.012), (ear[2] - 0.12, mark[MOUTH_CORNER, 1] - 0.012),
        ])[::-1]  # fmt: skip
        above = height - np.interp(depth, line[:, 0], line[:, 1])
        is_ear = (
            (np.abs(points[:, 0]) > abs(ear[0]) + 0.003) & (depth > ear[2] - 0.045) & (depth < ear[2] + 0.012)
            & (height < ear[1] + 0.033) & (height > ear[1] - 0.05)
        )  # fmt: skip
        return np.where(is_ear, -0.02, above)

    def beard(self, points: Floats) -> Floats:
        """Distance [N] into the region of a beard (m, roughly) of points of the head."""
        mark = self.landmarks
        aside, height = np.abs(points[:, 0]), points[:, 1]
        corner, ear = np.abs(mark[MOUTH_CORNER]), mark[EAR]
        ridge = np.array([
            (0.0, mark[PHILTRUM, 1] + 0.004), (corner[0] + 0.004, mark[PHILTRUM, 1] - 0.002),
            (corner[0] + 0.016, mark[MOUTH_CORNER, 1] - 0.008), (abs(ear[0]) - 0.012, ear[1] - 0.02), (0.2, ear[1]),
        ])  # fmt: skip
        below = np.interp(aside, ridge[:, 0], ridge[:, 1]) - height
        front = np.minimum(points[:, 2] - ear[2] - 0.004, height - mark[CHIN, 1] + 0.012)
        lips = -inside_distance(points[:, :2], mark[list(OUTER_LIPS)][:, :2]) - 0.002
        return np.minimum(np.minimum(below, front), lips)


def _near(points: Floats, centre: Floats, radius: float) -> Floats:
    return np.exp(-0.5 * ((points - centre) ** 2).sum(axis=1) / radius**2)


def skin_colours(person: Person, anatomy: Anatomy, points: Floats) -> Floats:
    """Linear reflectance [N, 3] of skin at rest points [N, 3]."""
    rng = person.rng("skin")
    mark = anatomy.landmarks
    colour = np.tile(linear(person.skin), (len(points), 1))
    colour *= np.exp(0.05 * wave_noise(rng, points, 0.08) + 0.05 * wave_noise(rng, points, 0.016))[:, None]
    face = ramp(points[:, 1], mark[CHIN, 1] - 0.02, mark[CHIN, 1]) * ramp(
        points[:, 2], mark[EAR, 2], mark[EAR, 2] + 0.03
    )
    flush = sum(_near(points, mark[c], r) for c, r in ((CHEEK, 0.017), (280, 0.017), (NOSE_TIP, 0.010)))
    colour *= 1 - 0.22 * np.clip(flush, 0, 1)[:, None] * np.array([0.2, 1.0, 1.0])
    spots = ramp(wave_noise(rng, points, 0.007), 1.0, 2.0) * face * person.freckles
    colour *= 1 - 0.45 * spots[:, None] * np.array([0.6, 0.9, 1.0])
    flat = points[:, :2]
    old = person.age
    for eye, brow in zip(EYES, BROWS, strict=True):
        ring = inside_distance(flat, mark[list(eye)][:, :2])
        colour *= 1 - (0.75 * np.exp(-((ring / 0.0016) ** 2)) * face)[:, None]  # lashes
        bag = _near(points, mark[list(eye)].mean(axis=0) - np.array([0, 0.016, 0]), 0.009)
        colour *= 1 - (0.28 * old * bag)[:, None]
        share = ramp(
            inside_distance(flat, mark[list(brow)][:, :2]) + 0.001 * wave_noise(rng, points, 0.006), -0.002, 0.002
        )
        colour = mix(colour, linear(np.asarray(person.hair.colour) * 0.7), 0.9 * person.brow * share * face)
    lips = ramp(inside_distance(flat, mark[list(OUTER_LIPS)][:, :2]), -0.0012, 0.0016) * face
    red = linear(person.skin) * np.array([0.82, 0.42, 0.45]) + 0.02 * np.array([person.lips * 3, 0, 0.3])
    colour = mix(colour, red, lips * (0.55 + 0.4 * person.lips))
    if person.hair.beard:
        stubble = ramp(anatomy.beard(points), -0.004, 0.010) * face
        colour = mix(colour, linear(person.hair.colour), 0.55 * stubble)
    lines = ramp(wave_noise(rng, points * np.array([0.3, 1.0, 1.0]), 0.009), 0.9, 1.8) * face
    forehead = ramp(points[:, 1], mark[105, 1] + 0.01, mark[105, 1] + 0.02)
    return np.clip(colour * (1 - 0.30 * old * old * lines * forehead)[:, None], 0.01, 0.95)


def body_colours(person: Person, anatomy: Anatomy, points: Floats, part: Ints) -> Floats:
    """Linear reflectance [N, 3] of skin and mouth at rest points, `part` [N] as in `Anatomy`."""
    colour = skin_colours(person, anatomy, points)
    for name, srgb in PART_COLOURS.items():
        colour[part == anatomy.body.part_names.index(name)] = linear(srgb)
    return colour


def eyeball(person: Person, rings: int = 40, segments: int = 40) -> tuple[Floats, Ints, Floats]:
    """A unit sphere that looks along +z: vertices, faces, linear reflectance with iris and pupil."""
    # Rings crowd at the front, where iris and pupil are.
    polar = np.pi * np.linspace(0, 1, rings) ** 1.6
    turn = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    polar, turn = (grid.ravel() for grid in np.meshgrid(polar, turn, indexing="ij"))
    vertices = np.stack([np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], axis=1)
    row, column = (grid.ravel() for grid in np.meshgrid(np.arange(rings - 1), np.arange(segments), indexing="ij"))
    a, b = row * segments + column, row * segments + (column + 1) % segments
    faces = np.concatenate([np.stack([a, a + segments, b], 1), np.stack([b, a + segments, b + segments], 1)])
    rng = person.rng("iris")
    radius, rays = 0.50, 0.12 * np.cos(turn * 17 + rng.uniform(0, 6)) + 0.08 * np.cos(turn * 29)
    iris = linear(person.iris) * (1.25 + rays + 0.5 * (polar / radius - 0.6))[:, None]
    white = mix(linear((0.88, 0.85, 0.82)), linear((0.75, 0.50, 0.46)), ramp(polar, 0.9, 1.8))
    colour = mix(iris, 0.25 * iris, ramp(polar, radius * 0.85, radius))
    colour = mix(colour, white, ramp(polar, radius, radius * 1.08))
    colour = mix(colour, np.full(3, 0.004), ramp(-polar, -0.22, -0.18))
    return vertices, faces.astype(np.int64), np.clip(colour, 0.003, 0.9)
