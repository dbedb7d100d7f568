"""Files that are either whole or absent, and files that the package ships."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).absolute().parents[1]  # the folder `visa`


def shipped(path: str | Path) -> Path:
    """The file of that name under the working directory, or else the package's own (`assets`, `configs`).

    So that defaults such as `assets/body/smplx_anny.npz` hold from anywhere. A path that neither has stays as given.
    """
    path = Path(path)
    own = PACKAGE / path
    return own if not path.is_absolute() and not path.exists() and own.exists() else path


def replace_path(scratch: Path, path: Path) -> None:
    """Put a file, or a folder such as a sharded checkpoint, in the place of another; the old one stays until then."""
    if path.is_dir() and not path.is_symlink():
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)  # a folder with files in it cannot be replaced in one step
        os.replace(scratch, path)
        shutil.rmtree(old)
    else:
        os.replace(scratch, path)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a scratch path beside `path`, with its suffix; moves it there when the block ends well, else removes it.

    Missing parent folders are made. A reader therefore never sees half a file, and a crash leaves the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by the process's number: on a shared disk two machines may have the same.
    scratch = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
