"""Hair: a cap on the scalp and thousands of strands that swing behind the head; beards."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from visa.tools.make_captures.anatomy import EAR, FOREHEAD, Anatomy
from visa.tools.make_captures.cloth import follow
from visa.tools.make_captures.meshes import (
    compact,
    linear,
    midpoint_matrix,
    mix,
    ramp,
    unit,
    vertex_normals,
    wave_noise,
)
from visa.tools.make_captures.person import HairKind, Person

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Strands and points a strand; ribbon width in metres.
STYLES = {
    HairKind.BUZZ: (2600, 3, 0.0035), HairKind.SHORT: (2600, 6, 0.0040), HairKind.AFRO: (2600, 8, 0.0042),
    HairKind.BOB: (1700, 12, 0.0062), HairKind.LONG: (1700, 14, 0.0068), HairKind.TAIL: (1700, 14, 0.0058),
}  # fmt: skip


@dataclasses.dataclass
class Obstacle:
    """A surface that hair stays outside of."""

    points: Floats
    normals: Floats

    def push_out(self, points: Floats, clearance: Floats | float) -> Floats:
        """Points [..., 3] moved along the nearest normal until `clearance` (m) is kept."""
        flat = points.reshape(-1, 3)
        _, nearest = cKDTree(self.points).query(flat, distance_upper_bound=0.12)
        known = nearest < len(self.points)
        nearest = np.minimum(nearest, len(self.points) - 1)
        depth = ((flat - self.points[nearest]) * self.normals[nearest]).sum(-1)
        lack = np.where(known, np.maximum(np.broadcast_to(clearance, points.shape[:-1]).ravel() - depth, 0), 0)
        return (flat + np.minimum(lack, 0.05)[:, None] * self.normals[nearest]).reshape(points.shape)


@dataclasses.dataclass
class Hair:
    """Hair of one person in the rest pose of the head.

    Attributes:
        strands: [S, K, 3] points from root to tip. colours: [S, K, 3] linear. width: metres.
        cap_matrix, cap_faces, cap_lift, cap_colours: the scalp's own surface, lifted along its normals.
    """

    person: Person
    strands: Floats
    colours: Floats
    width: float
    cap_matrix: sparse.csr_matrix
    cap_faces: Ints
    cap_lift: Floats
    cap_colours: Floats

    @classmethod
    def grow(cls, person: Person, anatomy: Anatomy, rest: Floats, obstacle: Obstacle) -> Hair:
        """Grow hair on a body at rest [V, 3], outside of `obstacle`."""
        style, rng = person.hair, person.rng("hair")
        count, points, width = STYLES[style.kind]
        head = anatomy.is_part("skin") & (anatomy.head > 0.5)
        matrix, faces = compact(*midpoint_matrix(anatomy.faces_of(head), len(rest), levels=1))
        mean = matrix @ anatomy.vertices
        scalp = anatomy.scalp(mean) + 0.003 * wave_noise(rng, mean, 0.03)
        growing = faces[scalp[faces].mean(axis=1) > 0]
        roots, normals, inset = _scatter(rng, growing, matrix @ rest, scalp, count)
        strands = _grow_strands(person, rng, anatomy, roots, normals, inset, points, obstacle)
        colour = _strand_colours(person, rng, strands)
        if style.beard:
            beard = anatomy.beard(mean)
            chin = faces[
                (beard[faces].min(axis=1) > 0) & (mean[faces][:, :, 2].min(axis=1) > anatomy.landmarks[EAR, 2])
            ]
            where, out, _ = _scatter(rng, chin, matrix @ rest, beard, 900)
            grown = _grow_beard(rng, where, out, style.beard, points)
            strands, colour = (
                np.concatenate([strands, grown]),
                np.concatenate([colour, _strand_colours(person, rng, grown)]),
            )
        cap_matrix, cap_faces = compact(matrix, growing)
        inset = anatomy.scalp(cap_matrix @ anatomy.vertices)
        lift = 0.0015 + 0.7 * style.volume * ramp(inset, 0.0, 0.035)
        tone = linear(style.colour) * (0.55 + 0.1 * wave_noise(rng, cap_matrix @ rest, 0.02))[:, None]
        return cls(person, strands, colour, width, cap_matrix, cap_faces, lift, np.clip(tone, 0.004, 0.8))

    def cap(self, body: Floats) -> Floats:
        """Vertices of the cap on a posed body [V, 3]."""
        scalp = self.cap_matrix @ body
        return scalp + vertex_normals(scalp, self.cap_faces) * self.cap_lift[:, None]

    def swing(self, heads: Floats) -> NDArray[np.float32]:
        """Strands [T, S, K, 3] (float32) under head transforms [T, 4, 4]: tips lag behind and overshoot."""
        rigid = np.einsum("tij,skj->tski", heads[:, :3, :3], self.strands) + heads[:, None, None, :3, 3]
        rigid = rigid.astype(np.float32)
        length = np.linalg.norm(np.diff(self.strands, axis=1), axis=-1).cumsum(axis=1)
        length = np.concatenate([np.zeros_like(length[:, :1]), length], axis=1)
        # Short hair is stiff; the swing grows with the distance from the root.
        share = ramp(length, 0.02, 0.30).astype(np.float32)[..., None]
        frequency = (self.person.hair.frequency + 30 * (1 - share)).astype(np.float32)
        return rigid + share * (follow(rigid, frequency, self.person.hair.damping) - rigid)

    def ribbons(self, strands: Floats, centre: Floats) -> tuple[Floats, Ints, Floats, Floats]:
        """Strands [S, K, 3] as flat ribbons that face away from `centre`: vertices, faces, normals, colours."""
        tangent = unit(np.gradient(strands, axis=1))
        out = unit(strands - centre)
        side = unit(np.cross(tangent, out))
        taper = np.linspace(1.0, 0.35, strands.shape[1])[None, :, None] * self.width / 2
        vertices = np.stack([strands - side * taper, strands + side * taper], axis=2).reshape(-1, 3)
        normal = unit(np.cross(side, tangent) + 0.6 * out)
        count, points = strands.shape[:2]
        first = (np.arange(count)[:, None] * points + np.arange(points - 1)).ravel() * 2
        faces = np.concatenate(
            [np.stack([first, first + 1, first + 2], 1), np.stack([first + 1, first + 3, first + 2], 1)]
        )
        return (
            vertices,
            faces,
            np.repeat(normal.reshape(-1, 3), 2, axis=0),
            np.repeat(self.colours.reshape(-1, 3), 2, axis=0),
        )


def _scatter(
    rng: np.random.Generator, faces: Ints, rest: Floats, inset: Floats, count: int
) -> tuple[Floats, Floats, Floats]:
    """Points, normals and `inset` at `count` places spread evenly over `faces` of the surface `rest`."""
    corners = rest[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    chosen = faces[rng.choice(len(faces), count, p=area / area.sum())]
    share = rng.dirichlet(np.ones(3), count)
    normals = vertex_normals(rest, faces)
    place = np.einsum("nkc,nk->nc", rest[chosen], share)
    return place, unit(np.einsum("nkc,nk->nc", normals[chosen], share)), (inset[chosen] * share).sum(axis=1)


def _grow_strands(
    person: Person, rng: np.random.Generator, anatomy: Anatomy, roots: Floats, normals: Floats, inset: Floats,
    num_points: int, obstacle: Obstacle,
) -> Floats:  # fmt: skip
    """[S, K, 3]: strands leave along the normal, are combed, fall, and stay outside of the body."""
    style, mark = person.hair, anatomy.landmarks
    lengths = style.length * rng.uniform(0.75, 1.1, len(roots)) * (0.55 + 0.45 * ramp(inset, 0, 0.03))
    step = (lengths / (num_points - 1))[:, None]
    away = np.sign(roots[:, 0] - style.parting)[:, None] * np.array([1.0, 0, 0])
    front = ramp(roots[:, 2], mark[EAR, 2], mark[FOREHEAD, 2])[:, None]
    back, down, up = np.array([0, 0, -1.0]), np.array([0, -1.0, 0]), np.array([0, 1.0, 0])
    tie = np.array([0.0, mark[FOREHEAD, 1] - 0.02, mark[EAR, 2] - 0.125])
    sweep = rng.choice([-1.0, 1.0]) * np.array([0.7, 0, 0])
    direction, place, points = normals.copy(), roots.copy(), [roots]
    flutter = 0.15 * rng.normal(size=roots.shape)
    for index in range(1, num_points):
        done = index / (num_points - 1)
        if style.kind is HairKind.SHORT:
            goal = 0.5 * normals + 0.6 * (front * (sweep + 0.3 * up) + (1 - front) * (back + down)) + flutter
        elif style.kind in (HairKind.BUZZ, HairKind.AFRO):
            goal = normals + flutter * 2
            if style.kind is HairKind.AFRO:
                goal = 0.5 * normals + 0.7 * rng.normal(size=roots.shape)
        elif style.kind is HairKind.TAIL and done < 0.5:
            goal = unit(tie - place) * 1.5 + 0.15 * flutter
        else:
            # Combed back off the forehead first; what has come past the temples falls.
            ahead = ramp(place[:, 2], mark[EAR, 2] + 0.005, mark[EAR, 2] + 0.045)[:, None]
            combed = 1.1 * back + 0.8 * away + 0.25 * up
            goal = (1 - ahead) * down + ahead * combed + 0.2 * (1 - done) ** 3 * normals + 0.4 * flutter
        direction = unit(direction * 0.45 + goal)
        if style.kind is HairKind.TAIL and done < 0.5:
            reach = np.linalg.norm(tie - place, axis=1, keepdims=True)
            place = place + unit(direction) * np.minimum(reach / max(0.5 * (num_points - 1) - index + 1, 1), reach)
        else:
            place = place + direction * step
        cover = (0.35 + 0.65 * rng.random(len(roots))) * style.volume * ramp(inset, -0.004, 0.03) + 0.002
        place = obstacle.push_out(place, np.minimum(cover, done * 0.2))
        place = _off_the_face(place, mark) if style.kind in (HairKind.BOB, HairKind.LONG) else place
        points.append(place)
    return _curl(person, rng, np.stack(points, axis=1))


def _off_the_face(place: Floats, mark: Floats) -> Floats:
    """Long hair hangs beside the face: points before it and below the forehead move outward."""
    before = ramp(place[:, 2], mark[EAR, 2], mark[EAR, 2] + 0.03)
    below = ramp(mark[FOREHEAD, 1] - place[:, 1], -0.012, 0.03)
    wanted = before * below * (abs(mark[EAR, 0]) + 0.012)
    side = np.where(place[:, 0] < 0, -1.0, 1.0)
    moved = place.copy()
    moved[:, 0] = side * np.maximum(np.abs(place[:, 0]), wanted)
    return moved


def _curl(person: Person, rng: np.random.Generator, strands: Floats) -> Floats:
    """Winds strands [S, K, 3] about themselves."""
    size = person.hair.curl
    if size == 0:
        return strands
    length = np.linalg.norm(np.diff(strands, axis=1), axis=-1).cumsum(axis=1)
    length = np.concatenate([np.zeros_like(length[:, :1]), length], axis=1)
    phase = length * 2 * np.pi / rng.uniform(0.045, 0.08) + 1.5 * wave_noise(rng, strands[:, 0], 0.05)[:, None]
    tangent = unit(np.gradient(strands, axis=1))
    side = unit(np.cross(tangent, np.array([0.3, 0.2, 1.0])))
    other = np.cross(tangent, side)
    grown = size * ramp(length, 0, 0.06)[..., None]
    return strands + grown * (np.cos(phase)[..., None] * side + np.sin(phase)[..., None] * other)


def _grow_beard(rng: np.random.Generator, roots: Floats, normals: Floats, length: float, num_points: int) -> Floats:
    """[S, K, 3] short strands that point outward and down."""
    direction = unit(0.5 * normals + np.array([0, -0.9, 0.1]) + 0.25 * rng.normal(size=roots.shape))
    reach = np.linspace(0, 1, num_points)[None, :, None] * (length * rng.uniform(0.6, 1.1, len(roots)))[:, None, None]
    return roots[:, None] + direction[:, None] * reach + 0.001 * normals[:, None]


def _strand_colours(person: Person, rng: np.random.Generator, strands: Floats) -> Floats:
    """Linear reflectance [S, K, 3]: each strand its own tone, darker at the root, some grey."""
    count, points = strands.shape[:2]
    tone = np.exp(0.28 * rng.normal(size=count) + 0.2 * wave_noise(rng, strands[:, 0], 0.025))
    colour = linear(person.hair.colour) * tone[:, None]
    colour = mix(colour, linear((0.72, 0.71, 0.69)), np.where(rng.random(count) < person.hair.grey, 0.8, 0.0))
    fade = np.linspace(0.65, 1.15, points)
    return np.clip(colour[:, None] * fade[None, :, None], 0.004, 0.85)
