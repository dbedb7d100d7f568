"""Arrays of `.npz` files, of which nothing is believed: no pickles, and no more memory than the file says it needs."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

MOST_BYTES = 2 << 30  # of all arrays of a file; an hour of motion has 80 MB


def read_arrays(path: str | Path, what: str, wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an `.npz`.

    Args:
        path: of the file.
        what: is expected, for the error message.
        wanted: names that are read where the file has them; None for all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: one line that names the file and what is wrong: no `.npz`, objects instead of numbers, entries that
            promise more than they hold, or more than MOST_BYTES in all.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive)
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files if wanted is None or name in wanted}
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a reader stumbles over in a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a readable {what} ({reason})") from error


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """ValueError where an array's header asks for more than its entry holds, or all of them for too much."""
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > MOST_BYTES:
        raise ValueError(f"its arrays take more than {MOST_BYTES >> 20} MB")
    for entry in entries:
        with archive.open(entry) as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, kind = read(file)
        size = kind.itemsize
        for length in shape:
            size *= length
        if not 0 <= size <= entry.file_size and not kind.hasobject:
            raise ValueError(f"{entry.filename} promises more than it holds")
