"""Broken files for `benchmarks.fuzz`: small whole ones of each kind, and what a careless or hostile hand makes of them.

Every case is a function of (seed, kind, number) alone. Half of the cases change bytes: flips, cuts, repeats, blocks of
zeros. The others change what a file says, and keep its form: fields, shapes, types, numbers, keys.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from visa.artifacts.media import write_video
from visa.datamodules.clip import LAYOUTS
from visa.networks.body import NUM_BETAS, BodyModel
from visa.networks.gaussians import Gaussians
from visa.runtime.avatar_files import FORMAT, body_fingerprint
from visa.runtime.splat_files import write_splat

NUM_FRAMES = 3
STRANGE = (0, -1, 1, 2**31, -(2**63), 1e38, 1e300, -1e-300, float("nan"), float("inf"))
WORDS = (
    "*a", "&a ", "!!python/object/apply:os.system ['true']", "!!binary x", "<<: *a", "[", "{", "}", "- ", ": ", "? ",
    "${oc.env:HOME}", "${x}", "2020-01-01", "1e999", ".nan", "null", "~", "[[", "'", '"', "\t", "\x00", "\u2028", "|\n",
    "%YAML 9.9\n", "---\n", "base: [self.yaml]\n", "base: 3\n", "base: [../../../../etc/hostname]\n", "9" * 400, "0x",
    "-", "a: b: c",
)  # fmt: skip
LYING_SHAPES = ("(99999999999,)", "(2147483648, 2147483648)", "(-1,)", "(1,)*9", "__import__('os')")
AVATAR_HEADERS = ("", "[]", "3", "{", '{"format": 1}', "null", json.dumps({"format": FORMAT}))


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes at random places."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, size = rng.randrange(len(changed) + 1), rng.choice((1, 2, 4, 16, 64))
        kind = rng.randrange(7)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at : at + size] = rng.randbytes(size)
        elif kind == 4:
            changed[at:at] = changed[max(at - size, 0) : at] * rng.choice((1, 3))
        elif kind == 5:
            changed[at : at + size] = bytes([rng.choice((0, 255, 127))]) * size
        else:
            number = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, rng.getrandbits(32)))
            changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
    return bytes(changed)


def change_text(data: bytes, rng: random.Random) -> bytes:
    """Words that mean something to a parser, lines taken away, twice or exchanged."""
    lines = data.decode().split("\n")
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            place = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + rng.choice(WORDS) + lines[at][place:]
        elif kind == 1:
            lines[at] = "  " * rng.randrange(5) + lines[at]
        elif kind == 2:
            lines.insert(at, rng.choice(lines))
        elif kind == 3 and len(lines) > 1:
            del lines[at]
        elif kind == 4:
            key, colon, _ = lines[at].partition(":")
            lines[at] = f"{key}{colon} {rng.choice((*WORDS, *STRANGE))}"
        else:
            lines[at] += rng.choice(("[" * 3000, "{a: " * 3000, " &x [*x, *x]", "- " * 900))
    return "\n".join(lines).encode("utf-8", errors="replace")


def change_arrays(arrays: dict[str, np.ndarray], rng: random.Random) -> dict[str, np.ndarray]:
    """Fields gone, misshapen, of another type, or with numbers that no camera gives."""
    arrays = dict(arrays)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(sorted(arrays))
        value = arrays[name]
        kind = rng.randrange(8)
        if kind == 0:
            del arrays[name]
        elif kind == 1 and value.ndim:
            arrays[name] = np.repeat(value, rng.choice((0, 2, 3)), axis=rng.randrange(value.ndim))
        elif kind == 2 and value.dtype.kind in "biufc":
            arrays[name] = value.astype(rng.choice(("f2", "f8", "i1", "u8", "c8", "?", "U3", "S2")), casting="unsafe")
        elif kind == 3 and value.size and value.dtype.kind == "f":
            arrays[name] = value.astype(np.float64)
            arrays[name].flat[rng.randrange(value.size)] = float(rng.choice(STRANGE))
        elif kind == 4:
            arrays[name] = np.asarray(rng.choice((*STRANGE, "word", None, [1, "b"])), dtype=object)
        elif kind == 5:
            arrays[name] = value.reshape(-1)[: rng.randrange(value.size + 1)]
        elif kind == 6:
            arrays[name] = value.reshape((1,) * rng.randrange(4) + value.shape)
        else:
            arrays[rng.choice(("", "../x", "frame_valid", "fps", "a" * 300))] = value
        if not arrays:
            break
    return arrays


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of an `.npz`."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in arrays.items() if name != "file"})
    return buffer.getvalue()


def lying_npz(arrays: dict[str, np.ndarray], rng: random.Random) -> bytes:
    """Entries whose header promises more than they hold, or that unpack to a thousand times their size."""
    buffer = io.BytesIO()
    chosen = rng.choice(sorted(arrays))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            entry = io.BytesIO()
            np.save(entry, value, allow_pickle=True)
            content = entry.getvalue()
            if name == chosen and rng.random() < 0.5:
                shape = rng.choice(
                    ("(99999999999,)", "(2147483648, 2147483648)", "(-1,)", "(1,)*9", "__import__('os')")
                )
                header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
                content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
            elif name == chosen:
                content += bytes(rng.choice((1 << 10, 1 << 22)))
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def change_header(data: bytes, rng: random.Random) -> bytes:
    """The JSON in front of a safetensors file, changed; its length is made right, or not."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice(sorted(header) or ["x"])
        header.setdefault(name, {})
        kind = rng.randrange(7)
        entry = header[name] if isinstance(header[name], dict) else {}
        if kind == 0:
            del header[name]
        elif kind == 1 and "dtype" in entry:
            entry["dtype"] = rng.choice(("F16", "F64", "I64", "BOOL", "U8", "F8_E4M3", "NONE"))
        elif kind == 2 and "shape" in entry:
            entry["shape"] = rng.choice(
                ([], [0], [2**40, 2**40], [-1], [1, *entry["shape"]], "x", entry["shape"][::-1])
            )
        elif kind == 3 and "data_offsets" in entry:
            entry["data_offsets"] = rng.choice(([0, 2**62], [8, 0], [-4, 4], [0, 0], None, [0, 4]))
        elif kind == 4:
            header[rng.choice(("x", "__metadata__", "betas", "means", "\u0000"))] = rng.choice(
                (entry, {}, 3, None, [1])
            )
        elif kind == 5 and name == "__metadata__":
            header[name] = {
                "avatar": rng.choice(("", "[]", "3", "{", '{"format": 1}', "null", '{"format": "avatar-5"}'))
            }
        else:
            header[name + "_"] = header.pop(name)
    text = json.dumps(header).encode()
    wrong = rng.choice((0, 0, 0, 1, -1, 2**33))
    return struct.pack("<Q", max(len(text) + wrong, 0)) + text + data[8 + length :]


def track_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A track of three frames."""
    shapes = {name: (NUM_FRAMES, *shape) for name, shape in LAYOUTS.items()}
    shapes |= {"expression": (NUM_FRAMES, 40), "betas": (NUM_BETAS,)}
    arrays = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}
    others = {"frame_valid": np.ones(NUM_FRAMES, bool), "fps": np.array(25.0), "image_size": np.array([24, 32])}
    return {**arrays, **others}


def pictures() -> list[bytes]:
    """One small picture in each format and kind that a photo may be."""
    rng, made = np.random.default_rng(0), []
    colours = rng.integers(0, 256, (20, 24, 4), np.uint8)
    rgb, rgba = Image.fromarray(colours[..., :3]), Image.fromarray(colours)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [(rgb, "PNG", {}), (rgba, "PNG", {})]
    kinds += [(rgb.quantize(8), "PNG", {"transparency": 1}), (rgba, "WEBP", {})]
    kinds += [(Image.fromarray(rng.integers(0, 65536, (9, 9)).astype(np.uint16)), "PNG", {}), (rgb, "BMP", {})]
    kinds += [(rgb, "JPEG", {"exif": exif}), (rgb.convert("CMYK"), "JPEG", {}), (rgb, "GIF", {}), (rgb, "TIFF", {})]
    kinds += [(rgb, "TIFF", {"compression": "tiff_lzw"}), (rgb.convert("L"), "PNG", {}), (rgb, "AVIF", {})]
    for picture, form, options in kinds:
        buffer = io.BytesIO()
        try:
            picture.save(buffer, form, **options)
        except (KeyError, OSError):  # this Pillow has been built without the format
            continue
        made.append(buffer.getvalue())
    return made


def gaussians(count: int = 5) -> Gaussians:
    """Some Gaussians `[N,...]`."""
    random_numbers = torch.Generator().manual_seed(0)
    shapes = {"means": (3,), "quats": (4,), "scales": (3,), "opacities": (), "colors": (3,), "features": (2,)}
    return Gaussians(**{name: torch.rand(count, *shape, generator=random_numbers) for name, shape in shapes.items()})


def avatar_bytes(body: BodyModel) -> bytes:
    """The least avatar that `runtime.avatar_files` takes."""
    held = gaussians().map(lambda value: value[None])
    tensors = {name: getattr(held, name).contiguous() for name in Gaussians.__dataclass_fields__}
    tensors |= {"betas": torch.zeros(1, NUM_BETAS), "vertex_ids": torch.arange(5), "background": torch.zeros(1, 3)}
    header = {"format": FORMAT, "body_model": "x", "body_fingerprint": body_fingerprint(body), "key": None}
    return safetensors_bytes(tensors, {"avatar": json.dumps(header)})


def splat_bytes(folder: Path, suffix: str) -> bytes:
    """A splat file of some Gaussians."""
    return write_splat(folder / f"whole{suffix}", gaussians()).read_bytes()


def video_bytes(folder: Path) -> bytes:
    """A video of six frames, 32 px."""
    return write_video(folder / "whole.mp4", torch.rand(6, 3, 32, 32), fps=25).read_bytes()


def checkpoint_bytes() -> bytes:
    """A small checkpoint."""
    buffer = io.BytesIO()
    state = {"student.weight": torch.ones(3, 2), "student.bias": torch.zeros(3)}
    torch.save({"step": 3, "state_dict": state, "pytorch-lightning_version": "2.6.0", "loops": {}}, buffer)
    return buffer.getvalue()


def changed(wholes: Sequence[bytes], says: Callable[[bytes, random.Random], bytes], rng: random.Random) -> bytes:
    """One of the whole files: half of the time its bytes are changed, else what it says; rarely both."""
    data = rng.choice(wholes)
    draw = rng.random()
    if draw > 0.5:
        data = says(data, rng)
    return change_bytes(data, rng) if draw < 0.6 else data
