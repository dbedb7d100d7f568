"""Arrays of npz files: nothing is unpickled, and no more is read than a file may hold."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from visa.artifacts import arrays
from visa.artifacts.arrays import read_arrays


def test_arrays_are_read_as_written(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(6.0).reshape(2, 3), name=np.array("anna"))
    read = read_arrays(tmp_path / "a.npz", "track file")
    assert read["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert str(read["name"]) == "anna"
    assert set(read_arrays(tmp_path / "a.npz", "track file", {"x", "y"})) == {"x"}


def test_objects_are_refused_unless_nobody_wants_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(2), odd=np.array([{}], dtype=object))
    assert set(read_arrays(tmp_path / "a.npz", "track file", {"x"})) == {"x"}
    with pytest.raises(ValueError, match=r"a\.npz is not a readable track file \(Object arrays cannot be loaded"):
        read_arrays(tmp_path / "a.npz", "track file")


def test_more_than_there_is_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(1 << 16))
    monkeypatch.setattr(arrays, "MOST_BYTES", 1 << 16)
    with pytest.raises(ValueError, match="its arrays take more than 0 MB"):
        read_arrays(path, "track file")
    monkeypatch.undo()
    entry = io.BytesIO()
    np.lib.format.write_array_header_1_0(entry, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", entry.getvalue() + bytes(64))
    with pytest.raises(ValueError, match=r"x\.npy promises more than it holds"):
        read_arrays(path, "track file")


def test_no_npz_and_no_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"a\.npy is not a readable track file"):
        read_arrays(tmp_path / "a.npy", "track file")
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npz", "track file")
