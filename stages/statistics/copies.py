"""The same video in several splits, under whatever names: its crops have one cache key."""

from typing import Any

import duckdb

from stages.corpora.transcript import split_rank

EXAMPLES = 5

# content: hash of the cache key, table `joined`; parts of it, so that the groups fit into memory
_CREATE_COPIED = "CREATE OR REPLACE TEMP TABLE copied (content UBIGINT)"
_INSERT_COPIED = """
    INSERT INTO copied SELECT content FROM joined
    WHERE kept AND content IS NOT NULL AND content % {num_parts} = {number}
    GROUP BY content HAVING min(split) <> max(split)
"""
_EXAMPLES = """
    SELECT list(clip_id ORDER BY clip_id)[:{limit}] FROM crops
    WHERE status = 'ok' AND hash(clip_key) IN (SELECT content FROM copied ORDER BY content LIMIT {limit})
    GROUP BY clip_key ORDER BY ALL
"""


def copies_across_splits(connection: duckdb.DuckDBPyConnection, num_parts: int) -> dict[str, Any]:
    """Of the ok clips: `num_videos` that are in several splits, the `clips` of each split that show one of them.

    `examples` lists the first ids of the clips of a few such videos. A score on a clip that was learnt by heart says
    nothing, whoever speaks in it.
    """
    connection.execute(_CREATE_COPIED)
    for number in range(num_parts):
        connection.execute(_INSERT_COPIED.format(num_parts=num_parts, number=number))
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
