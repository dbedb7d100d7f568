"""The person of the tests of what is live."""

from tests.live.conftest import person as person
