"""Fixtures of the tracker's tests; tests change neither."""

import pytest

from tests.conftest import ROOT
from visa.networks.body import BodyModel
from visa.tools.track.correspond import DEFAULT_BODY, DEFAULT_LANDMARKS, Landmarks


@pytest.fixture(scope="session")
def body() -> BodyModel:
    """The shipped body model."""
    return BodyModel.from_file(ROOT / DEFAULT_BODY)


@pytest.fixture(scope="session")
def landmarks() -> Landmarks:
    """The detector's points on it."""
    return Landmarks.load(ROOT / DEFAULT_LANDMARKS)
