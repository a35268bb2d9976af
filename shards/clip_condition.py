"""Selects clips of a pack by a DuckDB condition over its tables (`train.where`)."""

from pathlib import Path

import duckdb
import pyarrow as pa

from shards.catalogue import open_catalogue
from shards.errors import ConfigError
from shards.safe_text import one_line


def clips_where(condition: str, samples: Path, clips: Path | None, crops: Path | None) -> pa.Array:
    """Returns the clip_id of every sample for which `condition` is true. A condition on an unknown value is not true.

    `condition` may use the columns of samples, crops and clips by name (a name in several tables has the value of the
    first of them), or as `crops.jitter_px`. `clips` and `crops` may be None. Raises ConfigError for a condition that
    DuckDB does not accept, TableError for a damaged table.
    """
    tables = {"samples": (samples, "pipeline pack")}
    tables |= {"crops": (crops, "pipeline crop")} if crops else {}
    tables |= {"clips": (clips, "pipeline ingest")} if clips else {}
    for path, command in tables.values():
        if not path.exists():
            raise ConfigError(f"train.where needs {path}, which is missing; run `{command}`")
    with open_catalogue(tables) as connection:
        known: set[str] = set()
        columns = list(tables)  # a row of each as a struct, for crops.jitter_px
        for table in tables:
            names = connection.table(table).columns
            columns += [f'{table}."{name}"' for name in names if name not in known]
            known |= set(names)
        joins = " ".join(f"LEFT JOIN {table} USING (clip_id)" for table in list(tables)[1:])
        # on lines of its own, so that a comment in the condition ends there
        query = (
            f"SELECT clip_id FROM (SELECT {', '.join(columns)} FROM samples {joins}) WHERE (\n{condition}\n)"
        )
        try:
            if len(connection.extract_statements(query)) > 1:
                raise ConfigError(f"train.where must be one condition (got {condition!r})")
            return connection.sql(query).to_arrow_table()["clip_id"].combine_chunks()
        except duckdb.Error as error:
            raise ConfigError(
                f"train.where is not a condition that DuckDB accepts ({one_line(str(error))}); example: "
                "mouth_width_px > 40 and sharpness > 30"
            ) from error
