"""Selects clips of a pack by a DuckDB condition over its tables (`train.where`)."""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import duckdb
import pyarrow as pa

from shards.catalogue import open_catalogue
from shards.errors import ConfigError
from shards.safe_text import one_line
from shards.schema import FURTHER_TABLES, TABLES


def clips_where(
    condition: str,
    samples: Path,
    clips: Path | None,
    crops: Path | None,
    further: Mapping[str, Path],
    key: str = "train.where",
) -> pa.Array:
    """Returns the clip_id of every sample for which `condition` is true. A condition on an unknown value is not true.

    `condition` may use the columns of samples, crops, clips and those of the FURTHER_TABLES that exist, by name (a name
    in several tables has the value of the first of them), or as `crops.jitter_px`. `clips` and `crops` may be None.
    Raises ConfigError, which names `key`, for a condition that DuckDB does not accept, TableError for a damaged table.
    """
    tables = {"samples": (samples, "pipeline pack")}
    tables |= {"crops": (crops, "pipeline crop")} if crops else {}
    tables |= {"clips": (clips, "pipeline ingest")} if clips else {}
    for path, command in tables.values():
        if not path.exists():
            raise ConfigError(f"{key} needs {path}, which is missing; run `{command}`")
    tables |= {name: (path, FURTHER_TABLES[name]) for name, path in further.items() if path.exists()}
    with open_catalogue(tables) as connection:
        known: set[str] = set()
        columns = list(tables)  # a row of each as a struct, for crops.jitter_px
        for table in tables:
            names = connection.table(table).columns
            columns += [f'{table}."{name}"' for name in names if name not in known]
            known |= set(names)
        labelled = [name for name in FURTHER_TABLES if "label" in TABLES[name].names]
        joins = " ".join(
            f"LEFT JOIN {table} ON {table}.clip_id = samples.clip_id"
            # what was found out about a label says nothing about another label of the clip
            + (f" AND {table}.label = samples.label" if table in labelled else "")
            for table in list(tables)[1:]
        )
        # on a separate line, so that a comment in the condition ends there
        query = f"SELECT clip_id, (\n{condition}\n) AS is_kept FROM (SELECT {', '.join(columns)} FROM samples {joins})"
        _refuse_changing(connection, condition, key)
        _refuse_other_clips(connection, tables, key)
        try:
            if len(connection.extract_statements(query)) > 1:
                raise ConfigError(f"{key} must be one condition (got {condition!r})")
            answer = connection.sql(query)
            if str(answer.types[1]) != "BOOLEAN":
                raise ConfigError(
                    f"{key} must be true or false for each clip, but {condition!r} is {answer.types[1]}; "
                    "example: mouth_width_px > 40"
                )
            return answer.filter("is_kept").to_arrow_table()["clip_id"].combine_chunks()
        except duckdb.Error as error:
            lacking = [name for name in ("crops", "clips") if name not in tables]
            hint = f"the pack names no {' and no '.join(lacking)} (train.data); " if lacking else ""
            for name, writer in FURTHER_TABLES.items():
                if name not in tables and _names(condition) & ({name, *TABLES[name].names} - known):
                    hint += (
                        f"{further[name]} is missing, `{writer}` writes it; "
                        if name in further
                        else f"the pack names no {name} (train.data); "
                    )
            raise ConfigError(
                f"{key} is not a condition that DuckDB accepts ({one_line(' '.join(str(error).split()))}); {hint}"
                "example: mouth_width_px > 40 and sharpness > 30"
            ) from error


def _refuse_changing(connection: duckdb.DuckDBPyConnection, condition: str, key: str) -> None:
    """Raises ConfigError for a function such as random(), with which each process would train on other clips."""
    rows = connection.sql(
        "SELECT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    ).fetchall()
    changing = {str(name).lower() for (name,) in rows} | {"current_date", "current_time", "current_timestamp"}
    if found := sorted(_names(condition) & changing):
        raise ConfigError(
            f"{key}: {found[0]} gives another answer each time; for a random part of the clips write "
            "hash(clip_id) % 10 < 3"
        )


def _names(condition: str) -> set[str]:
    """Returns the names in a condition, lower-case, without those in texts and comments."""
    return {name for part in _code(condition) for name in re.findall(r"[a-z_]\w*", part.lower())}


def _code(condition: str) -> Iterator[str]:
    """Yields the tokens of a condition without texts and comments: `label = 'now'` calls no function."""
    encoded = condition.encode()  # DuckDB counts bytes
    tokens = [*duckdb.tokenize(condition), (len(encoded), None)]
    for (start, kind), (stop, _) in pairwise(tokens):
        if kind not in (duckdb.token_type.string_const, duckdb.token_type.comment):
            yield encoded[start:stop].decode()


def _refuse_other_clips(
    connection: duckdb.DuckDBPyConnection, tables: Mapping[str, tuple[Path, str]], key: str
) -> None:
    """Raises ConfigError if crops or clips lacks packed clips: it is of another pack, or older."""
    for table in [name for name in ("crops", "clips") if name in tables]:
        (num_lacking,) = connection.sql(
            f"SELECT count(*) FROM samples ANTI JOIN {table} USING (clip_id)"
        ).fetchall()[0]
        if num_lacking:
            path, command = tables[table]
            raise ConfigError(
                f"{key}: {path} lacks {num_lacking} clips of {tables['samples'][0]}; name the table of the same "
                f"pack, or run `{command}` and pack again"
            )
