"""Config files on disk, composed: a file may stand on others, which it names under `base`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

MOST_BYTES, MOST_DEPTH = 1 << 20, 50  # of a file that a hand has written


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
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}{asked} is no mapping of YAML keys")
    bases = content.pop("base", None) or []
    if not isinstance(bases, list) or not all(isinstance(one, str) for one in bases):
        raise ValueError(f"{path}: base is {str(bases)[:40]!r}: give a list of files, such as [base/run.yaml]")
    layers = [_read(path.parent / one, (*above, path)) for one in bases]
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*layers, content))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be merged over its bases ({str(error).splitlines()[0]})") from error
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def read_yaml(path: str | Path) -> Any:
    """What a YAML file says, as plain lists, mappings and values.

    Raises:
        OSError: it cannot be opened.
        ValueError: one line: no YAML, longer than MOST_BYTES, nested deeper than MOST_DEPTH, or with aliases, which let
            a small file stand for one of any size.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MB")
        text, depth = path.read_text(encoding="utf-8"), 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise ValueError(f"it is nested deeper than {MOST_DEPTH}")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has an alias: write the value out")
        return OmegaConf.to_container(OmegaConf.create(text))
    except OSError:
        raise
    except Exception as error:  # whatever a parser stumbles over
        where = getattr(error, "problem_mark", None)
        place = f"line {where.line + 1}: " if where is not None else ""
        reason = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no readable YAML ({place}{reason})") from error
