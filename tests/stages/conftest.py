"""Fixtures of the tests of stages."""

from collections.abc import Iterator

import pytest

from tests.support import crop_runs


@pytest.fixture
def forked_workers() -> Iterator[None]:
    with crop_runs.forked_workers():
        yield
