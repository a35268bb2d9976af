"""Joins the tables of a corpus clip by clip: all figures are counted on the result.

Also finds copies of a video in several splits under any names: their crops have the same cache key.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from shards.enums import TRAIN_SPLIT, UNLABELLED_SPLIT
from shards.errors import TableError
from shards.schema import CLIPS, CROPS, SAMPLES
from stages.corpora.transcript import split_rank

_log = logging.getLogger(__name__)

ROWS_A_PASS = 4_000_000
"""Clips whose ids are joined at once: 0.5 GB. Ten million at once take 1.7 of the 2 GB."""

UNKNOWN = "(unknown)"
"""Replaces a topic that the corpus does not give."""

EXAMPLES = 5

TABLES = {
    "clips": (CLIPS, "pipeline ingest"),
    "crops": (CROPS, "pipeline crop"),
    "samples": (SAMPLES, "pipeline pack"),
}
_WORDS = {
    "split": "clips.split",
    "speaker": "clips.speaker",
    "topic": "clips.topic",
    "reason": "crops.reason",
    "media_kind": "clips.media_kind",
}
"""Columns with few different values; an ENUM of a word takes 1 to 4 bytes a clip, a string 16 and more."""

_USE = f"CASE split::VARCHAR WHEN '{UNLABELLED_SPLIT}' THEN '{TRAIN_SPLIT}' ELSE split::VARCHAR END"
"""As in `are_apart`."""

_CREATE_JOINED = """
    CREATE TEMP TABLE joined (
        split split_word, speaker speaker_word, topic topic_word, reason reason_word,
        media_kind media_kind_word, num_chars INTEGER,
        is_ok BOOLEAN, duration_us BIGINT, num_frames INTEGER, packed BOOLEAN, kept BOOLEAN, content UBIGINT
    )
"""
_INSERT_JOINED = """
    INSERT INTO joined
    SELECT c.split, c.speaker, c.topic, r.reason, c.media_kind,
        CASE WHEN c.split <> '{unlabelled}' THEN c.num_chars END, r.status = 'ok',
        round(r.duration_s::DOUBLE * 1e6)::BIGINT, r.num_frames,
        s.clip_id IS NOT NULL, NOT $has_crops OR r.status = 'ok',
        CASE WHEN r.clip_key IS NOT NULL THEN hash(r.clip_key) END
    FROM (FROM clips WHERE {part}) c
    LEFT JOIN (FROM crops WHERE {part}) r USING (clip_id)
    LEFT JOIN (SELECT clip_id FROM samples WHERE {part}) s USING (clip_id)
"""
_COMPARE = """
    SELECT coalesce(sum(num_rows) FILTER (c.clip_id IS NULL), 0), count(*) FILTER (num_rows IS NULL),
        coalesce(sum(num_rows - 1), 0)
    FROM (SELECT clip_id FROM clips WHERE {part}) c
    FULL JOIN (SELECT clip_id, count(*) AS num_rows FROM {table} WHERE {part} GROUP BY ALL) t USING (clip_id)
"""

# content: hash of the cache key, table `joined`; parts of it, so that the groups fit into memory
_CREATE_COPIED = "CREATE OR REPLACE TEMP TABLE copied (content UBIGINT)"
_INSERT_COPIED = """
    INSERT INTO copied SELECT content FROM joined
    WHERE kept AND content IS NOT NULL AND content % {num_parts} = {number}
    GROUP BY content HAVING min({use}) <> max({use})
"""
_EXAMPLES = """
    SELECT list(clip_id ORDER BY clip_id)[:{limit}] FROM crops
    WHERE status = 'ok' AND hash(clip_key) IN (SELECT content FROM copied ORDER BY content LIMIT {limit})
    GROUP BY clip_key ORDER BY ALL
"""


def join_tables(
    connection: duckdb.DuckDBPyConnection, paths: Mapping[str, Path | None], *, leave_out_others: bool
) -> dict[str, bool]:
    """Makes the table `joined`, one row for each clip; returns `has_crops` and `has_samples`.

    The connection has the TABLES as views; those whose path is None are empty. Raises TableError where a table is
    not of the clips; with `leave_out_others`, logs and empties a table of other clips and treats it as missing.
    """
    if not _count(connection, "clips"):
        raise TableError(
            f"{paths['clips']} contains no clip; run `pipeline ingest` on a corpus that has clips"
        )
    has = {f"has_{name}": paths[name] is not None for name in ("crops", "samples")}
    _join(connection, has["has_crops"])
    if not _is_whole(connection, has["has_crops"]):
        # checking each table takes time, so only now
        for name in ("crops", "samples"):
            if path := paths[name]:
                has[f"has_{name}"] = is_of_clips(
                    connection, name, path, TABLES[name][0], leave_out=leave_out_others
                )
        _join(connection, has["has_crops"])
    return has


def is_of_clips(
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, schema: pa.Schema, *, leave_out: bool
) -> bool:
    """Returns whether table `name` is of the clips. If not, raises TableError, or empties it if `leave_out` is set."""
    verb, is_whole = {"crops": ("pipeline crop", True), "samples": ("pipeline pack", False)}[name]
    foreign = absent = doubled = 0
    for part in _parts(connection):
        ((unknown, missing, again),) = connection.execute(_COMPARE.format(table=name, part=part)).fetchall()
        foreign, absent, doubled = foreign + unknown, absent + missing, doubled + again
    is_other = foreign or (is_whole and absent)
    if not is_other and not doubled:
        return True
    message = f"{path} does not match the clips ({foreign} unknown, {doubled} duplicated"
    message += f", {absent} missing)" if is_whole else ")"
    if doubled or not leave_out:
        raise TableError(f"{message}; run `{verb}` again")
    _log.warning("%s: left out of these figures; run `%s` to make it again", message, verb)
    connection.register(name, schema.empty_table())
    return False


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def num_parts_of(connection: duckdb.DuckDBPyConnection) -> int:
    """Returns the number of parts, so that the keys of one part fit into memory."""
    return 1 + _count(connection, "clips") // ROWS_A_PASS


def _parts(connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """Yields conditions that divide the clips, so that the ids of one part fit into memory."""
    num_parts = num_parts_of(connection)
    for number in range(num_parts):
        # in the text: with a parameter DuckDB divides in 128 bits, which takes several times as long
        yield f"hash(clip_id) % {num_parts} = {number}"


def _join(connection: duckdb.DuckDBPyConnection, has_crops: bool) -> None:
    """Makes the table `joined` with the columns that figures need, about 40 bytes per clip."""
    connection.execute("DROP TABLE IF EXISTS joined")
    for name, column in _WORDS.items():
        table = column.split(".")[0]
        connection.execute(f"DROP TYPE IF EXISTS {name}_word")
        # in the order of the words, so that sorting by either is the same; '' since an ENUM of none is refused
        connection.execute(
            f"CREATE TYPE {name}_word AS ENUM (SELECT '' AS word UNION "
            f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL ORDER BY word)"
        )
    connection.execute(_CREATE_JOINED)
    for part in _parts(connection):
        connection.execute(
            _INSERT_JOINED.format(part=part, unlabelled=UNLABELLED_SPLIT), {"has_crops": has_crops}
        )


def _is_whole(connection: duckdb.DuckDBPyConnection, has_crops: bool) -> bool:
    """Returns whether every row of every table is in `joined` exactly once."""
    num_clips, num_crops, num_samples = (_count(connection, name) for name in TABLES)
    ((rows, with_crop, packed),) = connection.execute(
        "SELECT count(*), count(is_ok), count(*) FILTER (packed) FROM joined"
    ).fetchall()
    return (rows, with_crop, packed) == (num_clips, num_clips if has_crops else 0, num_samples) and (
        num_crops == with_crop
    )


def copies_across_splits(connection: duckdb.DuckDBPyConnection, num_parts: int) -> dict[str, Any]:
    """Counts, of the ok clips, the `num_videos` in several splits, and the `clips` of each split that show one.

    `examples` lists the first clip ids of a few of these videos. A score on a clip of the training data says nothing,
    whoever speaks in it.
    """
    connection.execute(_CREATE_COPIED)
    for number in range(num_parts):
        connection.execute(_INSERT_COPIED.format(num_parts=num_parts, number=number, use=_USE))
    ((num_videos,),) = connection.execute("SELECT count(*) FROM copied").fetchall()
    clips = dict(
        connection.execute(
            "SELECT split, count(*) FROM joined SEMI JOIN copied USING (content) WHERE kept GROUP BY split"
        ).fetchall()
    )
    examples = connection.execute(_EXAMPLES.format(limit=EXAMPLES)).fetchall() if num_videos else []
    return {
        "num_videos": num_videos,
        "clips": {split: clips[split] for split in sorted(clips, key=split_rank)},
        "examples": [clip_ids for (clip_ids,) in examples],
    }
