"""CPU kernel of linear blend skinning: all Gaussians of an avatar from the T-pose to a pose, in one pass.

In tensors each of a Gaussian's 55 weights is read, most of them 0, and every step is a picture of all Gaussians.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from visa.networks.rasterizer.compiler import inline, kernel
from visa.networks.rasterizer.simd import load, store, take_ticket

CHUNK = 1024  # Gaussians a task
JOINT = 16  # numbers of a joint: its transform, row by row (12), and its rotation as a quaternion
SIXTEEN = (0, 0)  # asks `load` for so many lanes
LEAST = np.float32(1e-12)  # length by which a quaternion is divided


class Riders(NamedTuple):
    """Gaussians of B people in the T-pose, G each: N of the template, others, and at the end S on its triangles.

    Attributes:
        first: `[B*G+1]` where each one's joints begin in `joint` and `weight`.
        joint: the joints that each follows.
        weight: by how much.
        corners: `[B*S*3]` the template's Gaussians at the corners of a triangle.
        corner_weights: `[B*S*3]` barycentric coordinates in it.
    """

    first: np.ndarray
    joint: np.ndarray
    weight: np.ndarray
    corners: np.ndarray
    corner_weights: np.ndarray


@inline
def _start(
    riders: Riders, added: np.ndarray, frame: int, person: int, index: int, counts: tuple, start: np.ndarray
) -> None:
    """Add what expressions do to a Gaussian of the template, or to the corners of one's triangle."""
    each, template, surface = counts
    if index < template:
        for axis in range(3):
            start[axis] += added[(frame * template + index) * 3 + axis]
    elif index >= each - surface:
        corner = (person * surface + index - each + surface) * 3
        for k in range(corner, corner + 3):
            at, weight = (frame * template + riders.corners[k]) * 3, riders.corner_weights[k]
            for axis in range(3):
                start[axis] += weight * added[at + axis]


@kernel
def skin_chunks(
    ticket: np.ndarray, riders: Riders, counts: tuple, joints: np.ndarray, added: np.ndarray, rest: np.ndarray,
    quats: np.ndarray, means: np.ndarray, turned: np.ndarray,
) -> None:  # fmt: skip
    """Every Gaussian of every frame.

    Args:
        ticket: counts the chunks that are taken.
        riders: the Gaussians of B people.
        counts: G, N and S.
        joints: `[B*T,J,JOINT]`, flat; the quaternions on one half sphere.
        added: `[B*T,N,3]`, flat: what expressions add to the template's Gaussians.
        rest: `[B,G,3]`, flat: means in the T-pose.
        quats: `[B,G,4]`, flat.
        means: `[B*T,G,3]`, flat, written.
        turned: `[B*T,G,4]`, flat, written.
    """
    each = counts[0]
    people = (riders.first.size - 1) // each
    frames, chunks = means.size // (3 * each), (each + CHUNK - 1) // CHUNK
    size = joints.size // frames
    sums, start = np.empty(JOINT, np.float32), np.empty(3, np.float32)
    while True:
        task = take_ticket(ticket)
        if task >= frames * chunks:
            break
        frame, chunk = task // chunks, task % chunks
        person = frame * people // frames
        for index in range(chunk * CHUNK, min(each, (chunk + 1) * CHUNK)):
            g, out = person * each + index, frame * each + index
            for axis in range(3):
                start[axis] = rest[3 * g + axis]
            _start(riders, added, frame, person, index, counts, start)
            entry, last = riders.first[g], riders.first[g + 1]
            total = load(joints, frame * size + riders.joint[entry] * JOINT, SIXTEEN) * riders.weight[entry]
            for other in range(entry + 1, last):
                total = total + load(joints, frame * size + riders.joint[other] * JOINT, SIXTEEN) * riders.weight[other]
            store(sums, 0, total)
            for row in range(3):
                k = 4 * row
                means[3 * out + row] = (
                    sums[k] * start[0] + sums[k + 1] * start[1] + sums[k + 2] * start[2] + sums[k + 3]
                )
            _turn(sums, quats, 4 * g, turned, 4 * out)


@inline
def _turn(sums: np.ndarray, quats: np.ndarray, at: int, turned: np.ndarray, out: int) -> None:
    """Hamilton product of the blended quaternion, made a unit one, and a Gaussian's own."""
    w, x, y, z = sums[12], sums[13], sums[14], sums[15]
    length = max(np.sqrt(w * w + x * x + y * y + z * z), LEAST)
    w, x, y, z = w / length, x / length, y / length, z / length
    a, b, c, d = quats[at], quats[at + 1], quats[at + 2], quats[at + 3]
    turned[out] = w * a - x * b - y * c - z * d
    turned[out + 1] = w * b + x * a + y * d - z * c
    turned[out + 2] = w * c - x * d + y * a + z * b
    turned[out + 3] = w * d + x * c - y * b + z * a
