"""Some hundred broken files of each kind, and the harness itself: hangs, deaths and code that runs are faults."""

import os
import pickle
import random
import time
from pathlib import Path

import pytest

from visa.benchmarks.fuzz import Kind, fault_of, kinds_of_files, run_cases

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs fork and /proc")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return kinds_of_files(tmp_path_factory.mktemp("whole"))


NAMES = ("track", "photo", "mask", "weights", "avatar", "ply", "spz", "splits", "config", "checkpoint", "video")


def test_every_kind_is_named(kinds: dict[str, Kind]) -> None:
    assert tuple(kinds) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_broken_files_are_read_or_end_in_one_line(name: str, kinds: dict[str, Kind], tmp_path: Path) -> None:
    assert run_cases(kinds[name], name, range(150), 7, 20.0, tmp_path) == {}


def test_cases_repeat(kinds: dict[str, Kind]) -> None:
    for kind in kinds.values():
        assert kind.make(random.Random(5)) == kind.make(random.Random(5))


def test_faults_are_told_from_errors(tmp_path: Path) -> None:
    path = tmp_path / "case.x"

    def raising(error: BaseException) -> Kind:
        def opened(path: Path) -> None:  # noqa: ARG001
            raise error

        return Kind((".x",), lambda rng: b"", opened)  # noqa: ARG005

    assert fault_of(raising(ValueError("case.x is wrong")), path) is None
    assert fault_of(raising(FileNotFoundError("no case.x")), path) is None
    assert "several lines" in (fault_of(raising(ValueError("case.x is\nwrong")), path) or "")
    assert "without the file's name" in (fault_of(raising(ValueError("wrong")), path) or "")
    assert "KeyError" in (fault_of(raising(KeyError("x")), path) or "")


@pytest.mark.slow
def test_hangs_deaths_and_code_cost_their_own_case(tmp_path: Path) -> None:
    def opened(path: Path) -> None:
        number = int(path.read_bytes())
        if number == 1:
            time.sleep(60)
        if number == 2:
            os.abort()
        if number == 3:
            pickle.loads(b"cos\nsystem\n(S'true'\ntR.")
        if number == 4:
            bytearray(8 << 30)

    def make(rng: random.Random) -> bytes:  # noqa: ARG001
        """The number of the case, counted in a file, which outlives the process."""
        with (tmp_path / "count").open("a+") as file:
            file.write("x")
            return str(file.tell() - 1).encode()

    faults = run_cases(Kind((".x",), make, opened), "odd", range(5), 0, 1.0, tmp_path)
    assert sorted(faults) == [1, 2, 3, 4]
    assert "still at work" in faults[1]
    assert "SIGABRT" in faults[2]
    assert faults[3].startswith("runs code")
    assert "MemoryError" in faults[4]
