"""Gaussians in files that other programs open: the 3D-Gaussian-splatting `.ply`, and compressed `.spz`.

`.ply`: the layout of the original implementation (Kerbl et al. 2023; `construct_list_of_attributes` in
graphdeco-inria/gaussian-splatting, scene/gaussian_model.py), spherical harmonics of degree 0: `x y z nx ny nz f_dc_0..2
opacity scale_0..2 rot_0..3`, float32, little-endian; opacity before the sigmoid, scale before the exponential,
quaternions w first. Axes: x right, y down, z forward, as capture software writes them and viewers expect them.

`.spz` version 3: README.md and src/cc/load-spz.cc of nianticlabs/spz. A gzip stream of a 16-byte header and, attribute
by attribute, 24-bit fixed-point positions, 8-bit alphas, colours and log scales, and quaternions by their smallest
three components. Axes: x right, y up, z backward.

The body's axes are those of `.spz`. Neither format holds the 3D-aware features: `runtime.avatar_files` does.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visa.artifacts.files import atomic_path
from visa.artifacts.provenance import SYNTHETIC
from visa.networks.gaussians import Gaussians

SH_DC = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + SH_DC * f_dc
PLY_FIELDS = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *("f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
# Half a turn about x takes the body's axes (y up, z backward) to those of the .ply (y down, z forward), and back.
FLIP_POINT = np.array([1, -1, -1], dtype=np.float32)
FLIP_QUATERNION = np.array([1, 1, -1, -1], dtype=np.float32)  # the same turn applied before and after a rotation
LEAST_OPACITY = 1e-6  # the logit of 0 and 1 is infinite

SPZ_MAGIC, SPZ_VERSION = 0x5053474E, 3
SPZ_HEADER = struct.Struct("<IIIBBBB")  # magic, version, points, degree, fractional bits, flags, reserved
SPZ_BYTES = 20  # a Gaussian: 9 position, 1 alpha, 3 colour, 3 scale, 4 rotation
SPZ_FRACTIONAL_BITS = 16  # 15 micrometres; a room of 128 m to every side
SPZ_COLOR_SCALE = 0.15
SPZ_LOG_SCALE_STEPS, SPZ_LOG_SCALE_SHIFT = 16, 10


def write_splat(path: str | Path, gaussians: Gaussians) -> Path:
    """Write one set of Gaussians `[N,...]`, whole or not at all, in the format of the suffix: `.ply` or `.spz`.

    Raises:
        ValueError: another suffix, leading dims, or values that are not finite.
    """
    path = Path(path)
    encode = {".ply": _to_ply, ".spz": _to_spz}.get(path.suffix.lower())
    if encode is None:
        raise ValueError(f"{path}: splats are written as .ply or .spz: give a name with one of these suffixes")
    if gaussians.means.ndim != 2:
        raise ValueError(
            f"{path}: a splat file holds one set [N,...], not {list(gaussians.means.shape)}: choose a person and frame"
        )
    values = {name: getattr(gaussians, name) for name in ("means", "quats", "scales", "opacities", "colors")}
    arrays = {name: value.detach().cpu().numpy().astype(np.float32) for name, value in values.items()}
    bad = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if bad:
        raise ValueError(f"{path}: {bad[0]} has values that are not finite: find where they come from")
    with atomic_path(path) as scratch:
        scratch.write_bytes(encode(arrays))
    return path


def read_splat(path: str | Path) -> Gaussians:
    """Read a `.ply` or `.spz` as Gaussians `[N,...]` in the body's axes, without features; colour of degree 0 only.

    Raises:
        ValueError: no such file, or not such a file; one line.
    """
    path = Path(path)
    decode = {".ply": _from_ply, ".spz": _from_spz}.get(path.suffix.lower())
    if decode is None or not path.is_file():
        raise ValueError(f"{path}: no .ply or .spz file: export one with `python -m visa.tools.export_avatar`")
    try:
        arrays = decode(path.read_bytes())
        bad = [name for name, value in arrays.items() if not np.isfinite(value).all()]
        if bad:
            raise ValueError(f"{bad[0]} has values that are not finite")
    except (ValueError, IndexError, OverflowError, MemoryError, struct.error, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a readable splat file ({error}): export it again") from error
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in arrays.items()}
    quats = torch.nn.functional.normalize(tensors.pop("quats"), dim=-1)
    return Gaussians(**tensors, quats=quats, features=_no_features(quats))


def _no_features(like: Tensor) -> Tensor:
    return like.new_zeros(len(like), 0)


def _to_ply(arrays: dict[str, np.ndarray]) -> bytes:
    opacity = np.clip(arrays["opacities"], LEAST_OPACITY, 1 - LEAST_OPACITY).astype(np.float64)
    columns = np.concatenate(
        [
            arrays["means"] * FLIP_POINT,
            np.zeros_like(arrays["means"]),  # normals: part of the layout, read by nobody
            (arrays["colors"] - 0.5) / SH_DC,
            np.log(opacity / (1 - opacity))[:, None],
            np.log(arrays["scales"]),
            arrays["quats"] * FLIP_QUATERNION,
        ],
        axis=1,
    )
    lines = ["ply", "format binary_little_endian 1.0", f"comment {SYNTHETIC}", f"element vertex {len(columns)}"]
    lines += [*(f"property float {name}" for name in PLY_FIELDS), "end_header\n"]
    return "\n".join(lines).encode() + columns.astype("<f4").tobytes()


def _from_ply(data: bytes) -> dict[str, np.ndarray]:
    head, separator, body = data.partition(b"end_header\n")
    lines = head.decode("ascii", errors="replace").split("\n")
    if not separator or lines[:2] != ["ply", "format binary_little_endian 1.0"]:
        raise ValueError("its header is not that of a binary little-endian ply")
    elements = [line.split() for line in lines if line.startswith("element ")]
    properties = [line.split() for line in lines if line.startswith("property ")]
    if [e[1] for e in elements] != ["vertex"] or any(p[1] != "float" for p in properties):
        raise ValueError("it holds other things than vertices with float properties")
    names, count = [p[2] for p in properties], int(elements[0][2])
    missing = [name for name in PLY_FIELDS if name not in names and not name.startswith("n")]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    if len(body) != 4 * count * len(names):
        raise ValueError(f"it holds not the {4 * count * len(names)} bytes of {count} Gaussians")
    table = np.frombuffer(body, "<f4").reshape(count, len(names))

    def columns(*wanted: str) -> np.ndarray:
        return np.stack([table[:, names.index(name)] for name in wanted], axis=1)

    return {
        "means": columns("x", "y", "z") * FLIP_POINT,
        "colors": columns("f_dc_0", "f_dc_1", "f_dc_2") * SH_DC + 0.5,
        "opacities": 1 / (1 + np.exp(-columns("opacity")[:, 0])),
        "scales": np.exp(columns("scale_0", "scale_1", "scale_2")),
        "quats": columns("rot_0", "rot_1", "rot_2", "rot_3") * FLIP_QUATERNION,
    }


def _to_spz(arrays: dict[str, np.ndarray]) -> bytes:
    fixed = np.round(arrays["means"].astype(np.float64) * 2**SPZ_FRACTIONAL_BITS).astype(np.int64)
    if np.abs(fixed).max(initial=0) >= 2**23:
        raise ValueError(f"a position lies more than {2 ** (23 - SPZ_FRACTIONAL_BITS)} m out: move the Gaussians")
    sections = [
        fixed.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3],  # the low three bytes of two's complement
        _byte(arrays["opacities"] * 255),
        _byte((arrays["colors"] - 0.5) / SH_DC * SPZ_COLOR_SCALE * 255 + 127.5),
        _byte((np.log(arrays["scales"]) + SPZ_LOG_SCALE_SHIFT) * SPZ_LOG_SCALE_STEPS),
        _pack_quaternions(arrays["quats"]).astype("<u4"),
    ]
    header = SPZ_HEADER.pack(SPZ_MAGIC, SPZ_VERSION, len(fixed), 0, SPZ_FRACTIONAL_BITS, 0, 0)
    # no time stamp: the same Gaussians give the same file
    return gzip.compress(header + b"".join(section.tobytes() for section in sections), mtime=0)


def _from_spz(data: bytes) -> dict[str, np.ndarray]:
    stream = zlib.decompressobj(wbits=31)  # a gzip header is expected
    magic, version, count, degree, bits, flags, _ = SPZ_HEADER.unpack(stream.decompress(data, SPZ_HEADER.size))
    if magic != SPZ_MAGIC or version != SPZ_VERSION or flags & ~1:
        raise ValueError(f"its header is not that of SPZ version {SPZ_VERSION} without extensions")
    size = count * (SPZ_BYTES + 3 * ((degree + 1) ** 2 - 1))
    # No more than that is unpacked: a small file may hold gigabytes of zeros.
    payload = np.frombuffer(stream.decompress(stream.unconsumed_tail, size + 1), np.uint8)
    if len(payload) != size or not stream.eof:
        raise ValueError(f"it holds not the {size} bytes of {count} Gaussians of degree {degree}")
    ends = np.cumsum([9, 1, 3, 3, 4]) * count
    position, alpha, color, scale, quats = np.split(payload[: ends[-1]], ends[:-1])
    low = position.reshape(-1, 3).astype(np.int32)
    fixed = (low[:, 0] | low[:, 1] << 8 | low[:, 2] << 16).reshape(count, 3)
    fixed = np.where(fixed >= 2**23, fixed - 2**24, fixed)
    return {
        "means": fixed / 2.0**bits,
        "opacities": alpha / 255.0,
        "colors": (color.reshape(count, 3) / 255.0 - 0.5) / SPZ_COLOR_SCALE * SH_DC + 0.5,
        "scales": np.exp(scale.reshape(count, 3) / SPZ_LOG_SCALE_STEPS - SPZ_LOG_SCALE_SHIFT),
        "quats": _unpack_quaternions(quats.view("<u4")),
    }


def _byte(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _pack_quaternions(quats: np.ndarray) -> np.ndarray:
    """`[N,4]` w first -> `[N]` uint32: two bits say which of x, y, z, w is largest; ten hold each other one."""
    xyzw = quats[:, [1, 2, 3, 0]].astype(np.float64)
    xyzw /= np.linalg.norm(xyzw, axis=1, keepdims=True)
    largest = np.abs(xyzw).argmax(axis=1)
    rows = np.arange(len(xyzw))
    xyzw *= np.where(xyzw[rows, largest] < 0, -1, 1)[:, None]
    packed = largest.astype(np.uint32)
    for axis in range(4):
        value = xyzw[:, axis]
        magnitude = np.floor(511 * np.abs(value) * np.sqrt(2) + 0.5).astype(np.uint32)
        longer = packed << 10 | (value < 0).astype(np.uint32) << 9 | np.minimum(magnitude, 511)
        packed = np.where(axis == largest, packed, longer)
    return packed


def _unpack_quaternions(packed: np.ndarray) -> np.ndarray:
    """Inverse of `_pack_quaternions`: `[N]` uint32 -> `[N,4]` w first."""
    largest, rest = packed >> 30, packed.copy()
    xyzw = np.zeros((len(packed), 4))
    for axis in (3, 2, 1, 0):
        is_stored = axis != largest
        value = (rest & 511) / 511 / np.sqrt(2) * np.where(rest >> 9 & 1, -1, 1)
        xyzw[:, axis] = np.where(is_stored, value, 0)
        rest = np.where(is_stored, rest >> 10, rest)
    xyzw[np.arange(len(packed)), largest] = np.sqrt(np.maximum(1 - (xyzw**2).sum(axis=1), 0))
    return xyzw[:, [3, 0, 1, 2]]
