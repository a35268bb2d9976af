"""Small tables to query. Import paths_fixture for the fixture paths."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.params import PathsParams
from pipeline.query import query, rows_of

CLIPS = {"clip_id": ["a", "b", "c"], "split": ["train", "train", "test"], "num_chars": [3, 5, 7]}


@pytest.fixture(name="paths")
def paths_fixture(tmp_path: Path) -> PathsParams:
    # a name that is special in SQL and in globs
    folder = tmp_path / "o'dd [a]*"
    folder.mkdir()
    pq.write_table(pa.table(CLIPS), folder / "clips.parquet")
    pq.write_table(pa.table({"clip_id": ["c"], "cer": [0.5]}), folder / "predictions.parquet")
    names = ("clips", "crops", "tracks", "samples")
    return PathsParams(**{name: str(folder / f"{name}.parquet") for name in names}, report=str(folder))


def ask(sql: str, paths: PathsParams) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Returns the columns and rows of an answer."""
    return query(
        sql, paths, lambda answer: (answer.columns, [r for b in answer.batches() for r in rows_of(answer, b)])
    )
