"""Queries the tables for the page of `pipeline qc`: totals, means, and the clips to show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from shards.errors import TableError
from shards.files import read_table
from shards.schema import AUDIT, CLIPS, CROPS, SOUND
from stages.qc.page import Speaker, Totals
from stages.settings import CropParams
from stages.statistics.join_tables import is_of_clips
from stages.statistics.quality import QUALITIES, Quality

Row = dict[str, Any]

# `draw` orders clips, and `speaker_draw` speakers, by the seed, independent of the order of the tables
_LEDGER = """
    CREATE TEMP TABLE ledger AS
    SELECT c.clip_id, c.split, c.speaker, c.media, c.media_kind, c.start_s, c.end_s, c.label, r.* EXCLUDE (clip_id),
        r.landmarked_frames / nullif(r.source_frames, 0) AS landmarked_share,
        md5(concat($seed::VARCHAR, ':', c.clip_id)) AS draw,
        md5(concat($seed::VARCHAR, ':', c.speaker)) AS speaker_draw
    FROM clips c JOIN crops r USING (clip_id)
"""


class Ledger:
    """clips.parquet joined with crops.parquet, as the table `ledger` in the caller's `connection`.

    Raises TableError if a table is missing or empty, or crops.parquet does not belong to these clips.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, clips_path: Path, crops_path: Path, seed: int
    ) -> None:
        self.connection = connection
        clips = read_table(clips_path, CLIPS, "pipeline ingest")
        if not clips.num_rows:
            raise TableError(f"{clips_path} holds no clip; run `pipeline ingest` on a corpus with clips")
        connection.register("clips", clips)
        connection.register("crops", read_table(crops_path, CROPS, "pipeline crop"))
        is_of_clips(connection, "crops", crops_path, CROPS, leave_out=False)
        connection.execute(_LEDGER, {"seed": seed})

    def totals(self) -> Totals:
        (row,) = self._rows(
            """
            SELECT count(*) FILTER (status = 'ok') AS num_ok,
                count(*) FILTER (status = 'rejected') AS num_rejected,
                count(*) FILTER (media_kind = 'face') AS num_face_videos,
                count(*) FILTER (media_kind = 'mouth') AS num_ready_mouths,
                coalesce(sum(duration_s::DOUBLE) FILTER (status = 'ok'), 0) / 3600 AS hours,
                count(DISTINCT speaker) AS num_speakers,
                count(DISTINCT speaker) FILTER (status = 'ok') AS num_ok_speakers,
                coalesce(sum(source_frames) FILTER (landmarked_frames IS NOT NULL), 0)::BIGINT AS source_frames,
                coalesce(sum(landmarked_frames) FILTER (source_frames IS NOT NULL), 0)::BIGINT AS landmarked_frames,
                coalesce(sum(num_frames) FILTER (status = 'ok' AND bridged_frames IS NOT NULL), 0)::BIGINT
                    AS num_frames,
                coalesce(sum(bridged_frames) FILTER (status = 'ok'), 0)::BIGINT AS bridged_frames
            FROM ledger
            """
        )
        return Totals(**row)

    def reasons(self) -> dict[str, int]:
        """Returns the number of rejected clips by reason, most frequent first."""
        rows = self.connection.execute(
            "SELECT reason, count(*) AS clips FROM ledger WHERE status = 'rejected' "
            "GROUP BY reason ORDER BY clips DESC, reason"
        ).fetchall()
        return dict(rows)

    def beyond_limits(self, crop: CropParams) -> list[str]:
        """Returns a sentence for each limit that usable clips exceed: they were cropped with another limit."""
        sentences = []
        for quality in QUALITIES:
            for limit in quality.limits(crop):
                sign, edge = ("<", -limit.slack) if limit.is_least else (">", limit.slack)
                ((count,),) = self.connection.execute(
                    f"SELECT count(*) FROM ledger WHERE status = 'ok' AND {quality.name}::DOUBLE {sign} $edge",
                    {"edge": limit.value + edge},
                ).fetchall()
                if count:
                    sentences.append(
                        f"usable clips beyond {limit.key} ({quality.text(limit.value)}): {count:,}; they were cropped "
                        "with another limit. Run `pipeline crop` to apply this one"
                    )
        return sentences

    # -- clips to show ---------------------------------------------------------------------------------

    def random(self, num: int) -> list[Row]:
        return self._rows(
            "SELECT * FROM ledger WHERE status = 'ok' ORDER BY draw, clip_id LIMIT $num", num=num
        )

    def extremes(self, quality: Quality, end: str, num: int) -> list[Row]:
        """Returns the usable clips with the `lowest` or `highest` values; of equal clips the first by name.

        Clips with the best value are left out: if all clips have it, none is the worst.
        """
        order, best = {"lowest": ("ASC", "max"), "highest": ("DESC", "min")}[end]
        return self._rows(
            f"SELECT * FROM ledger WHERE status = 'ok' AND {quality.name} <> "
            f"(SELECT {best}({quality.name}) FROM ledger WHERE status = 'ok') "
            f"ORDER BY {quality.name} {order}, clip_id LIMIT $num",
            num=num,
        )

    def one_per_speaker(self, num: int) -> list[Row]:
        """Returns one usable clip of each of `num` speakers, both drawn by the seed, in the order of their names."""
        return self._rows(
            """
            SELECT * EXCLUDE (draw_rank) FROM (
                SELECT *, row_number() OVER (PARTITION BY speaker ORDER BY draw, clip_id) AS draw_rank
                FROM ledger WHERE status = 'ok' AND speaker IS NOT NULL
                QUALIFY draw_rank = 1 ORDER BY speaker_draw, speaker LIMIT $num
            ) ORDER BY speaker
            """,
            num=num,
        )

    def contradicted(self, audit_path: Path, num: int) -> list[Row]:
        """Returns the usable clips with the columns of their audit, worst first; not those whose label is another now.

        Raises TableError if the table is damaged.
        """
        self.connection.register("audit", read_table(audit_path, AUDIT, "pipeline audit"))
        return self._rows(
            "SELECT * FROM ledger JOIN audit USING (clip_id, label) WHERE status = 'ok' "
            "ORDER BY is_doubtful DESC, contradiction DESC, clip_id LIMIT $num",
            num=num,
        )

    def out_of_step(self, sound_path: Path, num: int) -> list[Row]:
        """Returns the usable clips with the columns of their sound, those that are most out of step first.

        Raises TableError if the table is damaged.
        """
        self.connection.register("sound", read_table(sound_path, SOUND, "pipeline sync"))
        return self._rows(
            "SELECT * FROM ledger JOIN sound USING (clip_id) WHERE status = 'ok' AND has_audio "
            "ORDER BY abs(offset_frames) DESC, agreement, clip_id LIMIT $num",
            num=num,
        )

    def rejected(self, reason: str, num: int) -> list[Row]:
        return self._rows(
            "SELECT * FROM ledger WHERE status = 'rejected' AND reason = $reason ORDER BY draw, clip_id LIMIT $num",
            reason=reason,
            num=num,
        )

    # -- speakers --------------------------------------------------------------------------------------

    def speakers(self, qualities: Sequence[Quality], num: int) -> list[Speaker]:
        """Returns counts and mean figures of `num` speakers, ordered by the share of rejected clips, largest first."""
        means = ", ".join(f"avg({q.name}::DOUBLE) FILTER (status = 'ok')" for q in qualities)
        rows = self.connection.execute(
            f"""
            SELECT speaker, count(*) FILTER (status = 'ok') AS num_ok,
                count(*) FILTER (status = 'rejected') AS num_rejected, {means}
            FROM ledger WHERE speaker IS NOT NULL GROUP BY speaker
            ORDER BY num_rejected / (num_ok + num_rejected) DESC, num_rejected DESC, speaker LIMIT $num
            """,
            {"num": num},
        ).fetchall()
        return [
            Speaker(
                name,
                num_ok,
                num_rejected,
                {q.title: q.text(value) for q, value in zip(qualities, values, strict=True)},
            )
            for name, num_ok, num_rejected, *values in rows
        ]

    def _rows(self, sql: str, **values: Any) -> list[Row]:
        result = self.connection.execute(sql, values)
        names = [entry[0] for entry in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
