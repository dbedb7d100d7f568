"""Fixtures of the tracker's tests."""

import pytest

from tests.conftest import ROOT
from visa.tools.track.correspond import DEFAULT_LANDMARKS, Landmarks


@pytest.fixture(scope="session")
def landmarks() -> Landmarks:
    """The detector's points on the shipped body model, which no test changes."""
    return Landmarks.load(ROOT / DEFAULT_LANDMARKS)
