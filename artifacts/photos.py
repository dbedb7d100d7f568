"""Photos as people have them: any orientation, bit depth and size, as upright 8-bit RGB."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")
LARGEST_SIDE = 4096  # px: a larger photo is scaled down as it is read
MOST_PIXELS = 400_000_000  # of a file that is opened at all: a header may promise what no memory holds
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # grey of 16 bits


def is_image(path: str | Path) -> bool:
    """Whether the name is that of a still image."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def read_photo(path: str | Path, largest: int = LARGEST_SIDE) -> NDArray[np.uint8]:
    """An upright RGB picture `[H,W,3]`, no side longer than `largest` px; of an animation, the first frame.

    The orientation of the camera (EXIF) is undone, 16-bit grey becomes 8-bit, what is transparent becomes white.

    Raises:
        ValueError: one line: it cannot be read, or is larger than MOST_PIXELS.
    """
    with _opened(Path(path)) as image:
        image.draft("RGB", (largest, largest))  # a JPEG is decoded at the size that it is wanted at
        picture = ImageOps.exif_transpose(image)
        if picture.mode in DEEP_MODES:
            values = np.asarray(picture, dtype=np.float32)
            picture = Image.fromarray((values / (65535 if values.max() > 255 else 255) * 255 + 0.5).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
        picture = picture.convert("RGB")
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
        return np.asarray(picture)


def read_grey(path: str | Path) -> NDArray[np.uint8]:
    """A grey picture `[H,W]` as it lies in the file; ValueError as `read_photo`."""
    with _opened(Path(path)) as image:
        return np.asarray(image.convert("L"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if path.suffix.lower() in (".heic", ".heif"):
        _register_heif(path)
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has more than {MOST_PIXELS // 1_000_000} megapixels: scale it down") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a decoder stumbles over in a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as an image ({reason}): save it as PNG or JPEG") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _register_heif(path: Path) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise ValueError(f"{path}: HEIC needs `pip install pillow-heif`, or save the photo as JPEG") from error
    pillow_heif.register_heif_opener()
