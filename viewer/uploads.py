"""Photos that a client sends: checked, kept under names of our own, made into a person."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

MOST_BYTES, MOST_PHOTOS, MOST_PIXELS = 20_000_000, 8, 60_000_000
FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


class Uploads:
    """The photos of one client.

    Args:
        folder: where they are kept; the client's names are never a path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []

    def add(self, content: bytes) -> Path:
        """Check and keep a photo; ValueError (one line) for what is none, is too large, or is one too many."""
        if len(self.paths) >= MOST_PHOTOS:
            raise ValueError(f"there are {MOST_PHOTOS} photos already: make the avatar of them")
        if len(content) > MOST_BYTES:
            raise ValueError(
                f"this file has {len(content) / 1e6:.0f} MB: give a photo of at most {MOST_BYTES // 10**6}"
            )
        try:
            with Image.open(io.BytesIO(content), formats=list(FORMATS)) as picture:
                kind, pixels = str(picture.format), picture.width * picture.height
                if pixels <= MOST_PIXELS:
                    picture.load()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise ValueError("this file is no JPEG, PNG or WebP picture that can be read: give a photo") from None
        if pixels > MOST_PIXELS:
            raise ValueError(f"this picture has {pixels // 10**6} megapixels: give at most {MOST_PIXELS // 10**6}")
        path = self.folder / f"photo_{len(self.paths)}{FORMATS[kind]}"
        path.write_bytes(content)
        self.paths.append(path)
        return path

    def take(self) -> list[Path]:
        """All photos so far; the next ones are another person's."""
        taken, self.paths = self.paths, []
        self.folder = self.folder / "next"
        self.folder.mkdir(parents=True, exist_ok=True)
        return taken
