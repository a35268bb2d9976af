"""A small demo corpus for tests of the commands."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of split train, one of valid, two of test; tests copy it."""
    from pipeline.demo.corpus import build_demo_corpus
    from pipeline.demo.plan import CorpusSize

    folder = tmp_path_factory.mktemp("demo_corpus")
    build_demo_corpus(folder, size=CorpusSize((1, 3), (1, 1), (1, 2)))
    return folder
