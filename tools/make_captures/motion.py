"""Smooth random motion of a seated speaker in SMPL-X parameters (radians, metres), 25 frames a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from visa.tools.make_captures.person import Person

Floats = NDArray[np.float64]
FPS = 25.0
BLINK = np.array([0.3, 0.75, 1.0, 0.95, 0.7, 0.4, 0.15])  # closing takes less time than opening
# Rows of body_pose: SMPL-X joint number less one.
SPINE, NECK, HEAD = (2, 5, 8), 11, 14
COLLARS, SHOULDERS, ELBOWS, WRISTS = (12, 13), (15, 16), (17, 18), (19, 20)


def smooth_noise(rng: np.random.Generator, num_frames: int, width: float, count: int) -> Floats:
    """[num_frames, count] of unit deviation; `width` frames is the deviation of the smoothing kernel."""
    pad = int(np.ceil(4 * width))
    noise = gaussian_filter1d(rng.normal(size=(num_frames + 2 * pad, count)), width, axis=0)
    return noise[pad : pad + num_frames] * np.sqrt(2 * np.sqrt(np.pi) * width)


def _mirrored(rotation: Floats, side: int) -> Floats:
    """A left limb's axis-angle for side 0, its mirror image in x for side 1."""
    return rotation if side == 0 else rotation * np.array([1.0, -1.0, -1.0])


def make_motion(
    person: Person, num_frames: int, expression_names: list[str], warm_up: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Parameters of `warm_up + num_frames` frames by SMPL-X field name; the body faces +z, y is up.

    The head is nearly straight at frame `warm_up`, so that the first frame can serve as the photo. `warm_up` frames
    lead in, so that what lags behind the motion is already moving when the clip begins.
    """
    rng = person.rng("motion")
    total = warm_up + num_frames
    live = person.liveliness
    pose = np.zeros((total, 21, 3))
    turn = smooth_noise(rng, total, 8.5, 3) * np.array([0.11, 0.30, 0.07]) * live
    turn -= 0.85 * turn[warm_up]
    pose[:, NECK], pose[:, HEAD] = 0.4 * turn, 0.6 * turn
    for joint in SPINE:
        pose[:, joint] = smooth_noise(rng, total, 11, 3) * np.array([0.022, 0.035, 0.02]) * live
    for side in range(2):
        _move_arm(person, rng, pose, side)
    hands = [_mirrored(_curl_fingers(rng, total), side) for side in range(2)]
    jaw, expression = _speak(rng, total, expression_names, live, warm_up)
    gaze = _gaze(rng, total, turn)
    fields = {
        "expression": expression,
        "global_orient": smooth_noise(rng, total, 13, 3) * np.array([0.02, 0.05, 0.015]),
        "transl": smooth_noise(rng, total, 11, 3) * np.array([0.012, 0.004, 0.010]) * live,
        "body_pose": pose,
        "jaw_pose": jaw,
        "leye_pose": gaze,
        "reye_pose": gaze,
        "left_hand_pose": hands[0],
        "right_hand_pose": hands[1],
    }
    return {name: value.astype(np.float32) for name, value in fields.items()}


def _move_arm(person: Person, rng: np.random.Generator, pose: Floats, side: int) -> None:
    """Shoulder, elbow and wrist of one side into `pose` [T, 21, 3]: hanging, or gesturing before the chest."""
    total = len(pose)
    raised = person.shows_hands and (side == 0 or rng.random() < 0.75)
    noise = smooth_noise(rng, total, 7.0 if raised else 10.0, 8) * person.liveliness
    down = -rng.uniform(1.22, 1.34) + (0.10 if raised else 0.05) * noise[:, 0]
    twist = (rng.uniform(0.2, 0.6) + 0.18 * noise[:, 1]) if raised else 0.1 + 0.06 * noise[:, 1]
    swing = (0.12 if raised else 0.05) * noise[:, 2]
    zero = np.zeros(total)

    def turned(axis: int, angle: Floats) -> Rotation:
        vector = np.stack([angle if i == axis else zero for i in range(3)], axis=1)
        return Rotation.from_rotvec(vector)

    shoulder = (turned(0, swing) * turned(2, down) * turned(0, twist)).as_rotvec()
    bend = rng.uniform(1.5, 2.0) + 0.25 * noise[:, 3] if raised else rng.uniform(0.25, 0.7) + 0.08 * noise[:, 3]
    elbow = np.stack([zero, -np.clip(bend, 0.05, 2.3), zero], axis=1)
    wrist = noise[:, 4:7] * np.array([0.15, 0.12, 0.18])
    collar = np.stack([zero, 0.02 * noise[:, 7], 0.035 * noise[:, 0]], axis=1)
    for joints, value in ((SHOULDERS, shoulder), (ELBOWS, elbow), (WRISTS, wrist), (COLLARS, collar)):
        pose[:, joints[side]] = _mirrored(value, side)


def _curl_fingers(rng: np.random.Generator, total: int) -> Floats:
    """Left hand [T, 15, 3]: each finger curls as a whole, the thumb (last three joints) a little."""
    curl = np.clip(0.4 + 0.25 * smooth_noise(rng, total, 6, 5), 0.05, 1.1)
    curl[:, 4] *= 0.3
    hand = np.zeros((total, 15, 3))
    hand[:, :, 2] = -np.repeat(curl, 3, axis=1)
    return hand


def _speak(rng: np.random.Generator, total: int, names: list[str], live: float, warm_up: int) -> tuple[Floats, Floats]:
    """Jaw [T, 3] and expression [T, E]: syllables at 3-5 Hz under a slow envelope, blinks, moods."""
    envelope = np.clip(0.6 + 0.6 * smooth_noise(rng, total, 7, 1)[:, 0], 0, 1)
    rate = 2 * np.pi * (4 + 0.7 * smooth_noise(rng, total, 6, 1)[:, 0]) / FPS
    syllables = envelope * (0.5 + 0.5 * np.sin(np.cumsum(rate) + rng.uniform(0, 6.28)))
    jaw = np.stack([0.21 * syllables, *(0.008 * smooth_noise(rng, total, 5, 2).T)], axis=1)
    moods = smooth_noise(rng, total, 8, 8)
    rounding = np.clip(smooth_noise(rng, total, 2.5, 1)[:, 0], 0, 1.5) * envelope
    levels = {
        "mouthSmile": 0.22 + 0.28 * moods[:, 0],
        "browOuterUp": 0.25 * moods[:, 1] * live,
        "browDown": 0.25 * moods[:, 2] * live,
        "mouthStretch": 0.25 * envelope * moods[:, 3],
        "mouthLowerDown": 0.35 * syllables + 0.1 * moods[:, 4],
        "mouthUpperUp": 0.25 * syllables * np.clip(moods[:, 5] + 0.5, 0, 1),
        "cheekSquint": 0.15 * moods[:, 0],
        "eyeSquint": 0.15 * moods[:, 6] - 0.05,
        "eyeWide": 0.40 + 0.12 * moods[:, 6],
    }
    expression = np.zeros((total, len(names)))

    def put(name: str, value: Floats) -> None:
        if name in names:
            expression[:, names.index(name)] = np.clip(value, 0, 1)

    for name, value in levels.items():
        skew = 1 + 0.12 * rng.normal(size=2)
        put(name + "Left", skew[0] * value)
        put(name + "Right", skew[1] * value)
    put("browInnerUp", 0.3 * moods[:, 7] * live)
    put("mouthFunnel", 0.45 * rounding)
    put("mouthPucker", 0.3 * rounding)
    lids = _blinks(rng, total, warm_up)
    put("eyeBlinkLeft", lids)
    put("eyeBlinkRight", lids)
    return jaw, expression


def _blinks(rng: np.random.Generator, total: int, warm_up: int) -> Floats:
    """Closure of the lids [T] in [0, 1], a blink about every second; none in the clip's first frames."""
    lids = np.zeros(total + len(BLINK))
    start = warm_up + int(rng.integers(3, 25))
    while start < total:
        lids[start : start + len(BLINK)] = BLINK
        start += int(rng.integers(20, 45))
    return lids[:total]


def _gaze(rng: np.random.Generator, total: int, turn: Floats) -> Floats:
    """Rotation of the eyes [T, 3]: held, then moved in a jump of three frames; turns of the head are half undone."""
    target = np.zeros((total, 3))
    start = 0
    while start < total:
        stop = start + int(rng.integers(10, 26))
        target[start:stop, :2] = rng.normal(size=2) * np.array([0.05, 0.13])
        start = stop
    gaze = gaussian_filter1d(target, 0.9, axis=0) - 0.5 * turn * np.array([1.0, 1.0, 0.0])
    return np.clip(gaze, -0.4, 0.4)
