"""An avatar on disk: one safetensors file that names the body model it was made on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from visa.artifacts.files import atomic_path
from visa.artifacts.provenance import SYNTHETIC
from visa.networks.avatar import Avatar, Loose, Surface
from visa.networks.body import BodyModel
from visa.networks.gaussians import Gaussians
from visa.networks.texture import Pattern, PhotoSet, Texture

FORMAT = "avatar-5"
GAUSSIANS = [f.name for f in dataclasses.fields(Gaussians)]
GAUSSIAN_WIDTHS: dict[str, tuple[int | None, ...]] = {
    "means": (3,), "quats": (4,), "scales": (3,), "opacities": (), "colors": (3,), "features": (None,),
}  # fmt: skip
INDICES = ("vertex_ids", "corners")
PHOTO_SET = ("directions", "positions")  # beside the textures of several photos
RIDING = ("corners", "corner_weights")  # of surface Gaussians, on the template's
PATTERN = [f.name for f in dataclasses.fields(Pattern)]
MADE_BY = "python -m visa.tools.export_avatar --image PHOTO --out NAME.safetensors"


def body_fingerprint(body: BodyModel) -> str:
    """What tells body models apart: a hash of all that moves a carried Gaussian."""
    digest = hashlib.sha256()
    parts = (body.v_template, body.blendshapes, body.joint_template, body.lbs_weights, body.parents, body.posedirs)
    for value in (part for part in parts if part is not None):
        digest.update(str(tuple(value.shape)).encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_avatar(
    path: str | Path,
    avatar: Avatar,
    body: BodyModel,
    body_name: str,
    key: str | None = None,
    further: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write an avatar, whole or not at all; float32, so that loading gives the same values.

    Args:
        path: of the `.safetensors` file.
        avatar: `[B,...]`.
        body: the model that poses it.
        body_name: the model's file name, for the message when another one is given on loading.
        key: what it was made of, for `runtime.avatar_cache`.
        further: tensors of other names that are written beside it, and that `load_avatar` leaves alone.
    """
    path = Path(path)
    tensors = {name: getattr(avatar.gaussians, name) for name in GAUSSIANS}
    tensors |= {"betas": avatar.betas, "vertex_ids": avatar.vertex_ids, "background": avatar.background}
    if avatar.loose is not None:
        tensors |= {f"loose.{name}": getattr(avatar.loose.gaussians, name) for name in GAUSSIANS}
        tensors["loose.skin_weights"] = avatar.loose.skin_weights
    if avatar.surface is not None:
        tensors |= {f"surface.{name}": getattr(avatar.surface.gaussians, name) for name in GAUSSIANS}
        tensors |= {f"surface.{name}": getattr(avatar.surface, name) for name in RIDING}
    texture = avatar.texture
    if isinstance(texture, PhotoSet):
        tensors |= {f"texture.{name}": getattr(texture, name) for name in PHOTO_SET}
        texture = texture.textures
    if texture is not None:
        tensors |= {f"texture.{f.name}": getattr(texture, f.name) for f in dataclasses.fields(Texture)}
    if avatar.pattern is not None:
        tensors |= {f"pattern.{name}": getattr(avatar.pattern, name) for name in PATTERN}
    tensors |= further or {}
    header = {"format": FORMAT, "body_model": body_name, "body_fingerprint": body_fingerprint(body), "key": key}
    header["generator"] = SYNTHETIC  # within the one entry: the library writes several in any order
    with atomic_path(path) as scratch:
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        save_file(plain, str(scratch), metadata={"avatar": json.dumps(header)})
        scratch.chmod(0o644)  # the library writes files that only their owner may read
    return path


def load_avatar(path: str | Path, body: BodyModel, key: str | None = None) -> Avatar:
    """Read an avatar for a body model, onto that model's device.

    Args:
        path: of the `.safetensors` file.
        body: the model that poses it.
        key: as it was saved with, which stands for the body model too; None compares body models.

    Raises:
        ValueError: no such file, not an avatar, or made on another body model or under another key; one line that says
            what to give.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no avatar at {path}: make one with `{MADE_BY}`")
    try:
        with safe_open(str(path), framework="pt") as archive:
            header = json.loads((archive.metadata() or {}).get("avatar", "{}"))
            # Copied: the library maps the file, and one that is overwritten in place would end the process (SIGBUS).
            tensors = {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable avatar ({error}): make it again with `{MADE_BY}`") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file but no avatar of this version: make one with `{MADE_BY}`")
    if key is not None and header.get("key") != key:
        raise ValueError(f"{path} was made of something else than its name says: make it again with `{MADE_BY}`")
    if key is None and header.get("body_fingerprint") != body_fingerprint(body):
        raise ValueError(
            f"{path} was made on another body model than the one given, {header.get('body_model')} as it was then: "
            "load it with that file, or make the avatar of its photo again"
        )
    needed = [*GAUSSIANS, "betas", "vertex_ids", "background"]
    texture = {f.name: f"texture.{f.name}" for f in dataclasses.fields(Texture)}
    loose = {name: f"loose.{name}" for name in (*GAUSSIANS, "skin_weights")}
    surface = {name: f"surface.{name}" for name in (*GAUSSIANS, *RIDING)}
    pattern = {name: f"pattern.{name}" for name in PATTERN}
    parts = (texture, loose, surface, pattern)
    held = [any(name in tensors for name in keys.values()) for keys in parts]
    has_texture, has_loose, has_surface, has_pattern = held
    needed += [key for keys, is_held in zip(parts, held, strict=True) if is_held for key in keys.values()]
    has_several = any(f"texture.{name}" in tensors for name in PHOTO_SET)
    needed += [f"texture.{name}" for name in PHOTO_SET if has_several]
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: make it again with `{MADE_BY}`")
    _check(path, tensors, len(body.v_template))
    tensors = {name: value.to(body.v_template.device) for name, value in tensors.items()}
    photo = Texture(**{name: tensors[key] for name, key in texture.items()}) if has_texture else None
    several = PhotoSet(photo, *(tensors[f"texture.{name}"] for name in PHOTO_SET)) if photo and has_several else None
    beside = Gaussians(**{name: tensors[loose[name]] for name in GAUSSIANS}) if has_loose else None
    on = Gaussians(**{name: tensors[surface[name]] for name in GAUSSIANS}) if has_surface else None
    return Avatar(
        gaussians=Gaussians(**{name: tensors[name] for name in GAUSSIANS}),
        betas=tensors["betas"],
        vertex_ids=tensors["vertex_ids"],
        background=tensors["background"],
        texture=several or photo,
        loose=Loose(beside, tensors["loose.skin_weights"]) if beside is not None else None,
        surface=Surface(on, *(tensors[surface[name]] for name in RIDING)) if on is not None else None,
        pattern=Pattern(**{name: tensors[key] for name, key in pattern.items()}) if has_pattern else None,
    )


def _check(path: Path, tensors: dict[str, torch.Tensor], num_vertices: int) -> None:
    """Shapes agree, numbers are finite, vertices exist; else a ValueError that names the first tensor that is off."""
    means, ids = tensors["means"], tensors["vertex_ids"]
    batch, count = means.shape[:2] if means.ndim == 3 else (-1, -1)
    of_part = {"": count} | {
        part: tensors[f"{part}means"].shape[1] if tensors[f"{part}means"].ndim == 3 else -1
        for part in ("loose.", "surface.")
        if f"{part}means" in tensors
    }
    on = of_part.get("surface.", 0)
    several = tensors.get("texture.directions")
    photos = several.shape[1:2] if several is not None else ()
    shown, pictures = (batch, *photos, count + of_part.get("loose.", 0) + on), (batch, *photos)
    layout: dict[str, tuple[int | None, ...]] = {
        f"{part}{name}": (batch, number, *last)
        for part, number in of_part.items()
        for name, last in GAUSSIAN_WIDTHS.items()
    }
    layout |= {"betas": (batch, None), "background": (batch, 3), "vertex_ids": (count,)}
    layout |= {"loose.skin_weights": (batch, of_part.get("loose.", 0), None)}
    layout |= {f"surface.{name}": (batch, on, 3) for name in RIDING}
    layout |= {"pattern.picture": (batch, 3, None, None), "pattern.places": (batch, count, 2)}
    layout |= {"pattern.weight": (batch, count), "texture.places": (*shown, 2)}
    layout |= {f"texture.{name}": shown for name in ("seen", "trust", "part")}
    layout |= {f"texture.{name}": (*shown, 3) for name in PHOTO_SET}
    layout |= {f"texture.{name}": (*pictures, 1, None, None) for name in ("mask", "photo_part")}
    layout |= {"texture.photo": (*pictures, 3, None, None)}
    for name, wanted in layout.items():
        if name in tensors and not _fits(
            tensors[name], wanted, name.endswith(INDICES), not name.startswith("texture.")
        ):
            raise ValueError(f"{path}: {name} does not fit: make it again with `{MADE_BY}`")
    for name, limit in (("vertex_ids", num_vertices), ("surface.corners", count)):
        held = tensors.get(name, ids[:0])
        if bool(((held < 0) | (held >= limit)).any()):
            raise ValueError(f"{path}: {name} does not fit: make it again with `{MADE_BY}`")


def _fits(value: torch.Tensor, wanted: tuple[int | None, ...], is_index: bool, is_finite: bool) -> bool:
    """Whether a tensor has a shape (None: any length), the right kind of numbers, and, where asked, none but finite."""
    if value.ndim != len(wanted) or any(n is not None and n != m for n, m in zip(wanted, value.shape, strict=True)):
        return False
    if is_index:
        return value.dtype == torch.int64
    return not is_finite or (value.is_floating_point() and bool(value.isfinite().all()))
