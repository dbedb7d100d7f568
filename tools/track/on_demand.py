"""Files of users, tracked where they are not."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from visa.artifacts.photos import is_image


def tracked(path: str | Path, body_model: str, option: str) -> Path:
    """A photo or video whose track lies beside it; one without is tracked now, if the `track` extra is installed.

    The new clip lands in a folder `NAME_tracked_DIGEST` beside it, named by the file's content too, so that another
    photo of the same name is another person; it is found there the next time. A `.track.npz` stays as it is.

    Args:
        path: of the photo or video.
        body_model: the file that the track is a fit of.
        option: that named it, for the error message.

    Raises:
        FileNotFoundError: no such file.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"no file at {source}: check {option}")
    if source.suffix.lower() == ".npz" or source.with_name(source.stem + ".track.npz").is_file():
        return source
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    folder = source.with_name(f"{source.stem}_tracked_{digest.hexdigest()[:8]}")
    suffix = ".png" if is_image(source) else ".mp4"
    if not (folder / f"{source.stem}.track.npz").is_file():
        from visa.tools.track.__main__ import track_file  # needs the extra
        from visa.tools.track.correspond import DEFAULT_LANDMARKS

        rank_zero_info(f"{source} has no track: tracked now, into {folder}")
        track_file(source, folder, Path(body_model), DEFAULT_LANDMARKS)
    return folder / f"{source.stem}{suffix}"
