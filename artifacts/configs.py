"""Config files on disk, composed: a file may stand on others, which it names under `base`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def read_config(path: str | Path) -> dict[str, Any]:
    """A YAML config merged over the files of its key `base`, whose paths begin at its own folder.

    Mappings merge key by key, later files win; lists and values replace. A base may have bases of its own.

    Raises:
        FileNotFoundError: no such file; names it and the file that asks for it.
        ValueError: not a mapping, or files that stand on each other in a circle.
    """
    return _read(Path(path), ())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    asked = f", base of {above[-1]}" if above else ""
    if path.resolve() in [one.resolve() for one in above]:
        raise ValueError(f"{path} stands on itself by way of {above[-1]}: take it out of `base`")
    if not path.is_file():
        raise FileNotFoundError(f"no config at {path}{asked}")
    content = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path}{asked} is no mapping of YAML keys")
    bases = content.pop("base", [])
    layers = [_read(path.parent / one, (*above, path)) for one in bases]
    merged = OmegaConf.to_container(OmegaConf.merge(*layers, content))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}
