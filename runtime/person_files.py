"""A person on disk: the avatar's file with the photos that it was made of, so that it can be posed, drawn and painted.

The photos' records are kept as they are; their finer pictures (`Avatar.detail`) in 8 bits, as photos come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from visa.networks.avatar import Avatar
from visa.networks.body import FIELD_SHAPES, BodyModel, BodyParams
from visa.networks.photo import Photo
from visa.networks.texture import Detail
from visa.runtime.avatar_files import load_avatar, save_avatar

PICTURE = ("image", "mask", "intrinsics", "world_to_camera", "background")  # of `Photo`, beside its body


def save_person(path: str | Path, avatar: Avatar, photos: Sequence[Photo], body: BodyModel, body_name: str) -> Path:
    """Write avatar and photos into one `.safetensors` file, whole or not at all; `load_avatar` reads it too."""
    tensors: dict[str, Tensor] = {}
    for index, photo in enumerate(photos):
        tensors |= {f"photos.{index}.{name}": getattr(photo, name) for name in PICTURE}
        tensors |= {f"photos.{index}.body.{name}": getattr(photo.body, name) for name in FIELD_SHAPES}
    detail = avatar.detail
    if detail is not None:
        pictures = {"photo": detail.photo, "mask": detail.mask, "pattern": detail.pattern}
        tensors |= {f"detail.{name}": _to_bytes(value) for name, value in pictures.items() if value is not None}
    return save_avatar(path, avatar, body, body_name, further=tensors)


def load_person(path: str | Path, body: BodyModel) -> tuple[Avatar, tuple[Photo, ...]]:
    """Read what `save_person` has written; ValueError (one line) for another file, see `load_avatar`."""
    avatar = load_avatar(path, body)
    device = body.v_template.device
    with safe_open(str(path), framework="pt") as archive:
        names = set(archive.keys())
        kept = {n: archive.get_tensor(n).clone().to(device) for n in names if n.split(".")[0] in ("photos", "detail")}
    count = len({name.split(".")[1] for name in kept if name.startswith("photos.")})
    needed = [
        f"photos.{i}.{name}" for i in range(count or 1) for name in (*PICTURE, *(f"body.{n}" for n in FIELD_SHAPES))
    ]
    missing = [name for name in needed if name not in kept]
    if missing or avatar.texture is None:
        lacks = missing[0] if missing else "a texture"
        raise ValueError(f"{path} is an avatar without its photos ({lacks}): save it with Person.save or visa export")
    photos = [
        Photo(
            body=BodyParams(*(kept[f"photos.{i}.body.{name}"] for name in FIELD_SHAPES)),
            **{name: kept[f"photos.{i}.{name}"] for name in PICTURE},
        )
        for i in range(count)
    ]
    if "detail.photo" in kept:
        pattern = kept.get("detail.pattern")
        detail = Detail(
            _from_bytes(kept["detail.photo"]),
            _from_bytes(kept["detail.mask"]),
            None if pattern is None else _from_bytes(pattern),
        )
        avatar = replace(avatar, detail=detail)
    return avatar, tuple(photos)


def _to_bytes(picture: Tensor) -> Tensor:
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def _from_bytes(picture: Tensor) -> Tensor:
    return picture.float() / 255
