"""What programs have in common: errors in one line, and options that count."""

from __future__ import annotations

import argparse

import pytest

from visa.artifacts.command_line import at_least_one, one_line_errors


@one_line_errors
def program(error: BaseException | None = None) -> int:
    """Ends well, or by the error."""
    if error is not None:
        raise error
    return 0


@pytest.mark.parametrize("error", [ValueError("a.mp4: no video"), FileNotFoundError("a.mp4: no video")])
def test_wrong_input_is_one_line_and_an_exit_code(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert program() == 0
    assert program(error) == 1
    assert capsys.readouterr() == ("", "error: a.mp4: no video\n")


@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyboardInterrupt(), SystemExit(2)])
def test_other_ends_stay_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)):
        program(error)


def test_the_program_keeps_its_name() -> None:
    assert (program.__name__, program.__doc__) == ("program", "Ends well, or by the error.")


def test_counts_are_one_or_more() -> None:
    assert at_least_one("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="0: must be at least 1"):
        at_least_one("0")
