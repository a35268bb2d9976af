"""Reads pages of `pipeline qc`. Import the names that end in _fixture for the fixtures real, own and synthetic."""

import base64
import html
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.ledgers import Corpus, cropped, with_synthetic_clips


@pytest.fixture(scope="module", name="real")
def real_fixture(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The corpus as written by the crop stage. Do not change it."""
    return cropped(tmp_path_factory.mktemp("real"))


@pytest.fixture(name="own")
def own_fixture(real: Corpus, tmp_path: Path) -> Corpus:
    """A copy that a test may change."""
    return Corpus(Path(shutil.copytree(real.folder, tmp_path / "own")), real.clips, real.crops)


@pytest.fixture(scope="module", name="synthetic")
def synthetic_fixture(real: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, str]:
    """A corpus with every reason five times and 60 more usable clips, and its page."""
    corpus = with_synthetic_clips(real, tmp_path_factory.mktemp("synthetic"), 60, 5)
    return corpus, corpus.page()


def part(page: str, title: str) -> str:
    """Returns the list of clips under a heading."""
    found = re.search(rf'<section class="shots">\s*<h3>{re.escape(title)} .*?</section>', page, re.DOTALL)
    assert found is not None, title
    return found[0]


def ids(text: str) -> list[str]:
    return re.findall(r"<h4><bdi>(.*?)</bdi></h4>", text)


def pictures(text: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', text)
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(uri), np.uint8), cv2.IMREAD_UNCHANGED) for uri in found
    ]


def plain(text: str) -> str:
    """Returns the text that a reader sees."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())
