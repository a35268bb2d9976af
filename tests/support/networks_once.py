"""Runs the face networks once per input: tests track the same pictures often, and LiteRT takes most of their time.

Only the answers of the two networks are kept, by the exact pixels that they get. Everything around them runs each time.
A conftest.py imports both fixtures; `pytestmark = pytest.mark.usefixtures("networks_once")` in a file uses them.
"""

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest

from stages.mouths import face_mesh

plain = face_mesh._Model.__call__
Answers = dict[tuple[tuple[int, ...], int], list[np.ndarray]]


@pytest.fixture(scope="package", name="answers")
def answers_fixture() -> Answers:
    """The networks' answers, kept for all files of a folder: several track the same videos."""
    return {}


@pytest.fixture(scope="module", name="networks_once")
def networks_once_fixture(answers: Answers) -> Iterator[None]:
    """Keeps and uses the networks' answers. Not for tests of the networks themselves."""

    def answered(model: face_mesh._Model, picture_SS3: np.ndarray) -> list[np.ndarray]:
        # the detector and the mesh model have inputs of different sizes
        key = picture_SS3.shape, hash(picture_SS3.tobytes())
        if key not in answers:
            answers[key] = plain(model, picture_SS3)
        return [answer.copy() for answer in answers[key]]

    with patch.object(face_mesh._Model, "__call__", answered):
        yield
