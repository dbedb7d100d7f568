"""Numba compilation with an on-disk cache that follows the kernels' sources.

Numba's own cache looks at the modification time of the entry point's file alone, so that an edited helper would leave
stale machine code, and it fails where neither the package nor the home directory can be written. Here the cache
directory carries a hash of all sources of this package, and the compile cost is paid once per machine and version.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_CONFIG: Any = numba.config  # its attributes are made when it is imported
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}


def _cache_directory() -> Path | None:
    """First writable cache directory, or None where there is none."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    roots = [Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"), Path(tempfile.gettempdir())]
    if _CONFIG.CACHE_DIR:
        roots.insert(0, Path(_CONFIG.CACHE_DIR))
    for root in roots:
        directory = root / "visa" / f"rasterizer-{digest.hexdigest()[:16]}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError:
            continue
    return None


_CACHE_DIRECTORY = _cache_directory()


def kernel(function: Callable) -> Callable:
    """Compile an entry point: releases the GIL, cached on disk where a directory can be written."""
    if _CACHE_DIRECTORY is None:
        return numba.njit(**_OPTIONS)(function)
    before = _CONFIG.CACHE_DIR
    _CONFIG.CACHE_DIR = str(_CACHE_DIRECTORY)  # read while decorating; other users of numba keep their own
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    finally:
        _CONFIG.CACHE_DIR = before


def inline(function: Callable) -> Callable:
    """Compile a helper that only kernels call."""
    return numba.njit(**_OPTIONS)(function)
