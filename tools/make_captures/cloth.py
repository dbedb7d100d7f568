"""Clothes: displaced shells of the body with patterns, folds that depend on pose, and motion that lags behind."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from visa.tools.make_captures.anatomy import Anatomy
from visa.tools.make_captures.meshes import (
    compact,
    linear,
    midpoint_matrix,
    mix,
    ramp,
    smoothing_matrix,
    unit,
    vertex_normals,
    wave_noise,
)  # fmt: skip
from visa.tools.make_captures.motion import FPS
from visa.tools.make_captures.person import Garment, Pattern, Person

Floats = NDArray[np.float64]
F = TypeVar("F", np.float32, np.float64)
Ints = NDArray[np.int64]
NECK_HEIGHT, HEM = 0.150, -0.60  # metres in the rest pose of the embedded body
NUM_FOLDS = 14


def follow(target: NDArray[F], frequency: NDArray[F] | float, damping: float, substeps: int = 4) -> NDArray[F]:
    """A damped spring that follows `target` [T, ...]: same shape. `frequency` (rad/s) broadcasts against a frame.

    It starts at rest on the first frame. Semi-implicit Euler, `target` linear between frames.
    """
    step = 1 / (FPS * substeps)
    place, speed = target[0].copy(), np.zeros_like(target[0])
    result = [place.copy()]
    for before, after in itertools.pairwise(target):
        for index in range(1, substeps + 1):
            goal = before + (after - before) * (index / substeps)
            speed += step * (frequency**2 * (goal - place) - 2 * damping * frequency * speed)
            place = place + step * speed
        result.append(place.copy())
    return np.stack(result)


def covers(garment: Garment, points: Floats, margin: float = 0.0) -> Floats:
    """Distance [N] (m, roughly) into the region of a garment of rest points [N, 3]; `margin` shrinks it.

    An open front counts as covered where `margin` is not 0: there the layer below is asked.
    """
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    cut = NECK_HEIGHT + garment.neckline + 0.45 * (0.02 - z)
    cut = cut - garment.vee * np.clip(1 - x / 0.055, 0, 1) * ramp(z, 0.02, 0.06)
    throat = np.where(x < 0.11, cut - y, 0.1)
    inside = np.minimum(np.minimum(garment.sleeve - x, y - HEM), throat)
    if garment.opening:
        front = np.where((z > 0.03) & (x < 0.16), x - garment.opening * ramp(y, -0.55, -0.1) - 0.004, 0.1)
        inside = np.minimum(inside, front)
    return inside - margin


def pattern_colours(person: Person, garment: Garment, points: Floats, arm: Floats) -> Floats:
    """Linear reflectance [N, 3] of cloth at rest points [N, 3]; `arm` [N] is how much a point belongs to a sleeve."""
    rng = person.rng(f"pattern{garment.pattern.value}")
    first, second, third = (linear(colour) for colour in garment.colours)
    base = np.tile(first, (len(points), 1))
    scale = garment.scale
    along = np.where(arm > 0.5, np.abs(points[:, 0]) * 1.0, points[:, 1])
    across = np.where(arm > 0.5, np.arctan2(points[:, 1] - 0.116, points[:, 2] - 0.02) * 0.05, points[:, 0])
    waves = 2 * np.pi / (0.055 * scale)
    if garment.pattern is Pattern.STRIPES:
        base = mix(base, second, ramp(np.sin(waves * along), -0.2, 0.2))
    elif garment.pattern is Pattern.PLAID:
        base = mix(base, second, 0.6 * ramp(np.sin(waves * 0.8 * along), -0.1, 0.1))
        base = mix(base, third, 0.5 * ramp(np.sin(waves * 0.8 * across), -0.1, 0.1))
    elif garment.pattern is Pattern.DOTS:
        grid = np.cos(waves * 0.9 * along) * np.cos(waves * 0.9 * across)
        base = mix(base, second, ramp(grid, 0.45, 0.6))
    elif garment.pattern is Pattern.BLOTCHES:
        base = mix(base, second, ramp(wave_noise(rng, points, 0.09 * scale), 0.1, 0.4))
        base = mix(base, third, ramp(wave_noise(rng, points, 0.06 * scale), 0.8, 1.0))
    elif garment.pattern is Pattern.PRINT:
        spot = np.maximum(np.abs(points[:, 0]) / 0.10, np.abs(points[:, 1] + 0.03) / 0.07)
        shown = ramp(-spot, -1.05, -0.95) * (points[:, 2] > 0.03)
        picture = mix(np.tile(second, (len(points), 1)), third, ramp(wave_noise(rng, points, 0.05), -0.1, 0.1))
        base = mix(base, picture, shown)
    elif garment.pattern is Pattern.RAGLAN:
        base = mix(base, second, ramp(np.abs(points[:, 0]) + 0.4 * points[:, 1], 0.17, 0.175))
    rim = covers(dataclasses.replace(garment, sleeve=9.0, opening=0.0), points)
    base = mix(base, third * 0.8, ramp(-rim, -0.016, -0.013) * 0.8)
    weave = 0.10 * wave_noise(rng, points, 0.012) + 0.06 * wave_noise(rng, points, 0.05)
    return np.clip(base * np.exp(weave)[:, None], 0.01, 0.9)


@dataclasses.dataclass
class Shell:
    """A garment on the body: `matrix` [N, V] takes posed body vertices to the cloth's, before displacement."""

    matrix: sparse.csr_matrix
    faces: Ints
    rest: Floats
    offset: Floats
    colours: Floats
    garment: Garment
    folds: dict[str, Floats]

    @classmethod
    def build(
        cls, person: Person, garment: Garment, anatomy: Anatomy, in_sight: NDArray[np.bool_], num_features: int
    ) -> Shell:
        """Cut the garment out of the body's mesh, as far as `in_sight` [V], and draw its folds [.., num_features]."""
        is_inner = garment is not person.garments[-1]
        skin = anatomy.is_part("skin") & (covers(garment, anatomy.vertices, -0.03) > 0)
        coarse = anatomy.faces_of(skin & in_sight)
        # Two rounds on the coarse mesh take away the body's own relief; those on the fine one round it off.
        smooth = smoothing_matrix(coarse, len(anatomy.vertices), rounds=2)
        # From afar a pixel is as wide as the sides of the mesh that was split once.
        levels = 1 if person.shows_hands else 2
        matrix, faces = compact(*midpoint_matrix(coarse, len(anatomy.vertices), levels))
        faces = faces[covers(garment, (matrix @ anatomy.vertices)[faces].mean(axis=1)) > 0]
        matrix, faces = compact(matrix, faces)
        matrix = smoothing_matrix(faces, matrix.shape[0], rounds=4) @ (matrix @ smooth)
        rest = matrix @ anatomy.vertices
        weights = anatomy.body.lbs_weights.double().numpy()
        arm = matrix @ weights[:, [16, 17, 18, 19, 20, 21]].sum(axis=1)
        drape = 1 + 0.8 * ramp(-rest[:, 1], -0.08, 0.20) * (1 - arm)
        rim = ramp(-covers(garment, rest), -0.014, -0.004)
        offset = garment.offset * drape + 0.003 * rim
        rng = person.rng(f"folds{garment.offset}")
        folds = _draw_folds(rng, rest, num_features, garment.wrinkle * (0.5 if is_inner else 1.0))
        return cls(matrix, faces, rest, offset, pattern_colours(person, garment, rest, arm), garment, folds)

    def pose(self, bodies: Floats, features: Floats) -> Floats:
        """Cloth vertices [T, N, 3] on posed bodies [T, V, 3]; `features` [T, D] is what the folds depend on."""
        posed = []
        for body, feature in zip(bodies, features, strict=True):
            middle = self.matrix @ body
            normal = vertex_normals(middle, self.faces)
            posed.append(middle + normal * (self.offset + self._fold_heights(feature))[:, None])
        cloth = np.stack(posed)
        lag = follow(cloth, 11.0, 0.3) - cloth
        # Cloth slides and lifts off, but does not sink into the body.
        for frame, shift in zip(cloth, lag, strict=True):
            normal = vertex_normals(frame, self.faces)
            inward = np.minimum((shift * normal).sum(-1, keepdims=True), 0)
            frame += self.garment.looseness * (shift - inward * normal)
        return cloth

    def _fold_heights(self, feature: Floats) -> Floats:
        folds = self.folds
        height = np.maximum(np.sin(folds["strength"] @ feature + folds["start"]) + 0.25, 0)
        phase = self.folds["waves"] + folds["slide"] @ feature
        ridge = (1 - np.abs(np.sin(phase))) ** 1.5 - 0.35
        return (folds["place"] * ridge) @ height


def _draw_folds(rng: np.random.Generator, rest: Floats, num_features: int, height: float) -> dict[str, Floats]:
    """Trains of folds: where they are [N, K], their waves [N, K], how pose raises and moves them [K, D]."""
    centre = rest[rng.integers(len(rest), size=NUM_FOLDS)]
    radius = rng.uniform(0.06, 0.16, NUM_FOLDS)
    away = np.linalg.norm(rest[:, None] - centre, axis=-1)
    direction = unit(rng.normal(size=(NUM_FOLDS, 3)) * np.array([1.0, 1.0, 0.4]))
    wave_numbers = np.pi / rng.uniform(0.026, 0.055, NUM_FOLDS)
    bend = 0.8 * wave_noise(rng, rest, 0.12)
    return {
        "place": 1.5 * height * np.exp(-0.5 * (away / radius) ** 2),
        "waves": (rest @ direction.T) * wave_numbers + bend[:, None],
        "strength": rng.normal(size=(NUM_FOLDS, num_features)) * 0.45,
        "start": rng.uniform(0, 2 * np.pi, NUM_FOLDS),
        "slide": rng.normal(size=(NUM_FOLDS, num_features)) * 0.35,
    }


def fold_features(motion: dict[str, NDArray[np.float32]]) -> Floats:
    """What folds depend on [T, D]: turns of trunk, neck, shoulders and elbows in units of 0.15 rad, with a lag."""
    rows = [2, 5, 8, 11, 12, 13, 14, 15, 16, 17, 18]
    pose = motion["body_pose"][:, rows].reshape(len(motion["transl"]), -1).astype(np.float64)
    return follow(pose / 0.15, 14.0, 0.5)
