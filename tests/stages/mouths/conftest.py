"""Fixtures of the tests of mouths."""

from tests.support.networks_once import answers_fixture, networks_once_fixture  # noqa: F401
