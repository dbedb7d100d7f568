"""Random changes of training windows that keep track and camera true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from visa.networks.body import BodyParams

# Joints of `body_pose` (the pelvis is not among them) that a mirror exchanges, from SMPL-X's order.
_MIRRORED_JOINTS = torch.tensor([2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20]) - 1


@dataclass
class Augment:
    """Changes of a training window; unless said otherwise one draw for the window and its reference photo.

    Attributes:
        zoom: smallest crop window as a share of the clip's square (1 turns it off).
        colour: standard deviation of the random colour mixing (0 turns it off). It keeps networks that see few people
            from learning their colours by heart.
        own_crop: the reference photo gets a crop of its own.
        background: share of windows with a random plain colour behind the person instead of the module's.
        flip: share of windows that are mirrored, with their tracks.
    """

    zoom: float = 0.8
    colour: float = 0.15
    own_crop: bool = False
    background: float = 0.0
    flip: float = 0.0


@dataclass
class Draw:
    """One draw of an `Augment`.

    Attributes:
        zoom, shift: crop of the frames, see `Clip.window`.
        photo_zoom, photo_shift: crop of the reference photo.
        colour: `[3,3]` mixing of channels.
        background: `[3]`.
        is_mirrored: whether window and photo are.
    """

    zoom: float
    shift: tuple[float, float]
    photo_zoom: float
    photo_shift: tuple[float, float]
    colour: Tensor
    background: Tensor
    is_mirrored: bool


def plain(background: Tensor) -> Draw:
    """No change."""
    return Draw(1.0, (0.0, 0.0), 1.0, (0.0, 0.0), torch.eye(3), background, False)


def draw(augment: Augment, background: Tensor, rng: np.random.Generator) -> Draw:
    """Draw the changes of one window.

    What is switched off draws nothing, so that the draws of the others stay as they were.
    """
    zoom, shift = _crop(augment, rng)
    colour = _colour_matrix(rng, augment.colour)
    photo_zoom, photo_shift = _crop(augment, rng) if augment.own_crop else (zoom, shift)
    if augment.background > 0 and rng.random() < augment.background:
        background = torch.from_numpy(rng.uniform(0, 1, 3).astype(np.float32))
    is_mirrored = augment.flip > 0 and bool(rng.random() < augment.flip)
    return Draw(zoom, shift, photo_zoom, photo_shift, colour, background, is_mirrored)


def _crop(augment: Augment, rng: np.random.Generator) -> tuple[float, tuple[float, float]]:
    zoom = float(rng.uniform(augment.zoom, 1.0))
    x, y = rng.uniform(-1, 1, 2)
    return zoom, (float(x), float(y))


def _colour_matrix(rng: np.random.Generator, strength: float) -> Tensor:
    """`[3,3]` random mixing of channels near the identity, with a common gain."""
    mix = np.eye(3) * np.exp(rng.normal(0, strength)) + rng.normal(0, strength, (3, 3))
    return torch.from_numpy(mix.astype(np.float32))


def mirrored_expressions(names: Sequence[str]) -> Tensor:
    """`[E]` index of each expression's counterpart: `...Left` and `...Right` change places, others stay."""
    swap = {"Left": "Right", "Right": "Left"}
    index = {name: k for k, name in enumerate(names)}
    found = []
    for k, name in enumerate(names):
        side = next((side for side in swap if name.endswith(side)), None)
        found.append(k if side is None else index.get(name.removesuffix(side) + swap[side], k))
    return torch.tensor(found, dtype=torch.long)


def mirror_body(params: BodyParams, expressions: Tensor) -> BodyParams:
    """The mirror image of bodies in the plane x = 0, for a body model that is its own mirror image.

    Args:
        params: `[...]`.
        expressions: `mirrored_expressions` of the body model.
    """

    def turned(rotation: Tensor) -> Tensor:
        return rotation * rotation.new_tensor([1.0, -1.0, -1.0])

    return replace(
        params,
        expression=params.expression[..., expressions],
        global_orient=turned(params.global_orient),
        transl=params.transl * params.transl.new_tensor([-1.0, 1.0, 1.0]),
        body_pose=turned(params.body_pose)[..., _MIRRORED_JOINTS, :],
        jaw_pose=turned(params.jaw_pose),
        leye_pose=turned(params.reye_pose),
        reye_pose=turned(params.leye_pose),
        left_hand_pose=turned(params.right_hand_pose),
        right_hand_pose=turned(params.left_hand_pose),
    )


def mirror_camera(intrinsics: Tensor, world_to_camera: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Camera `[...,3,3]` (px) and `[...,4,4]` that sees a mirrored world as the mirrored picture of `width` px."""
    flip = torch.diag(world_to_camera.new_tensor([-1.0, 1.0, 1.0, 1.0]))
    intrinsics = intrinsics.clone()
    intrinsics[..., 0, 2] = width - intrinsics[..., 0, 2]
    return intrinsics, flip @ world_to_camera @ flip
