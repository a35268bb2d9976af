"""Quality control: one page that shows the mouth crops of a corpus, and the rejected clips.

Figures cover all clips; pictures only the clips shown, which are chosen by a seed or by rank. So the time for the page
and its size hardly grow with the corpus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb

from shards.files import Progress, read_table, write_text
from shards.schema import TRACKS, Reason
from shards.settings import MachineParams
from stages.clips.clip_source import ClipSource
from stages.pages.histogram import histograms
from stages.pages.page import percent
from stages.qc.ledger import Ledger, Row
from stages.qc.page import CardList, Pictures, QcPage, Rejection, Totals, render_qc_page
from stages.settings import CorpusParams, CropParams
from stages.statistics.quality import EXPLAINED, QUALITIES, applied_limits

NUM_CLIPS, MAX_CLIPS = 12, 48
"""Number of random clips shown, by default and at most. The lengths of the other lists depend on it."""
MAX_SPEAKERS = 250
"""Most rows of the table of speakers."""
_SPEAKER_COLUMNS = tuple(quality for quality in QUALITIES if quality.name != "landmarked_share")


@dataclass(frozen=True, slots=True)
class QcSummary:
    """Summary of the page. `num_rendered` of the clips shown were missing from the cache and were cut again."""

    page: Path
    totals: Totals
    rejected: Mapping[str, int]
    warnings: Sequence[str]
    num_rendered: int
    num_bytes: int

    def __str__(self) -> str:
        totals = self.totals
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.items())
        rendered = f", {self.num_rendered} clips cut again" if self.num_rendered else ""
        lines = [
            f"{self.page}: {totals.num_ok:,} of {totals.num_clips:,} clips usable, {totals.hours:.2f} h "
            f"({self.num_bytes / 1e6:.1f} MB{rendered})",
            f"rejected: {reasons or 'none'}",
            f"taken as face videos: {totals.num_face_videos:,}, as ready mouth crops: {totals.num_ready_mouths:,}",
            f"landmarked: {percent(totals.landmarked_share)} of the source frames; "
            f"{totals.bridged_frames:,} frames without the face bridged",
            *self.warnings,
        ]
        return "\n  ".join(lines)


def qc(
    corpus: CorpusParams,
    crop: CropParams,
    machine: MachineParams,
    clips_path: Path,
    crops_path: Path,
    tracks_path: Path,
    page_path: Path,
    *,
    audit_path: Path | None = None,
    sound_path: Path | None = None,
    seed: int = 0,
    num_clips: int = NUM_CLIPS,
    on_progress: Progress | None = None,
) -> QcSummary:
    """Writes the page: the same tables, videos and seed give the same bytes.

    Film strips show `num_clips` random usable clips, a third as many at each bad end of each figure, and one clip of
    each of twice as many speakers; with an audit also `num_clips` clips whose label the video contradicts, and with
    `pipeline sync` as many whose sound is out of step. Stills show a third as many rejected clips of each reason. A
    clip that is missing from the cache is cut again; if that fails, the page says why. Raises TableError if a table is
    missing, or does not belong to these clips.
    """
    assert 1 <= num_clips <= MAX_CLIPS, "the command line checks num_clips"
    few = -(-num_clips // 3)
    # one thread: sums in another order differ in the last bit, and then the page might differ
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        ledger = Ledger(connection, clips_path, crops_path, seed)
        totals, by_reason, warnings = ledger.totals(), ledger.reasons(), ledger.beyond_limits(crop)
        random, by_speaker = ledger.random(num_clips), ledger.one_per_speaker(2 * num_clips)
        heard = ledger.out_of_step(sound_path, num_clips) if sound_path and sound_path.exists() else None
        audited = ledger.contradicted(audit_path, num_clips) if audit_path and audit_path.exists() else None
        extremes = [
            (quality, title, ledger.extremes(quality, end, few))
            for quality in QUALITIES
            for end, title in (("lowest", quality.lowest), ("highest", quality.highest))
            if title is not None
        ]
        rejected = {reason: ledger.rejected(reason, few) for reason in by_reason}
        speakers = ledger.speakers(_SPEAKER_COLUMNS, MAX_SPEAKERS)
        drawn = histograms(connection, QUALITIES, crop)
    usable = _by_id(random, by_speaker, audited or (), heard or (), *(rows for _, _, rows in extremes))
    read_tracks = partial(read_table, tracks_path, TRACKS, "pipeline crop")
    source = ClipSource(corpus, crop, machine, usable, read_tracks)
    pictures = Pictures(source, len(usable) + sum(map(len, rejected.values())), on_progress)
    page = QcPage(
        totals=totals,
        warnings=warnings,
        limits=applied_limits(crop),
        histograms=drawn,
        random=CardList(
            "Random clips",
            f"{len(random)} of {totals.num_ok:,} usable clips, drawn by seed {seed}",
            tuple(pictures.card(row) for row in random),
        ),
        contradicted=None
        if audited is None
        else CardList(
            "Contradicted labels",
            "a model that had not seen the clip finds its reading this much more likely than the label, by character "
            "(pipeline audit)",
            tuple(map(pictures.audited, audited)),
        ),
        out_of_step=None
        if heard is None
        else CardList(
            "Sound and picture out of step",
            "by how much the sound is late (+) or early, and how much better it fits there than elsewhere, nats by "
            "frame (pipeline sync)",
            tuple(map(pictures.heard, heard)),
        ),
        extremes=[
            CardList(title, quality.about, tuple(pictures.card(row, quality) for row in rows))
            for quality, title, rows in extremes
        ],
        speaker_columns=_SPEAKER_COLUMNS,
        speakers=speakers,
        speaker_strips=CardList(
            "One clip per speaker",
            _speakers_shown(len(by_speaker), totals.num_ok_speakers, seed),
            tuple(pictures.card(row) for row in by_speaker),
        ),
        rejections=[
            Rejection(
                reason, EXPLAINED[Reason(reason)], count, tuple(map(pictures.rejected, rejected[reason]))
            )
            for reason, count in by_reason.items()
        ],
        seed=seed,
    )
    # known only after the pictures are made
    warnings += pictures.warnings()
    write_text(page_path, render_qc_page(page))
    return QcSummary(page_path, totals, by_reason, warnings, source.num_rendered, page_path.stat().st_size)


def _by_id(*lists: Sequence[Row]) -> dict[str, Row]:
    return {row["clip_id"]: row for rows in lists for row in rows}


def _speakers_shown(num_shown: int, num_speakers: int, seed: int) -> str:
    if num_shown == num_speakers:
        return f"all {num_speakers:,} speakers with usable clips"
    left_out = num_speakers - num_shown
    return (
        f"{num_shown:,} of {num_speakers:,} speakers with usable clips, drawn by seed {seed}; "
        f"{left_out:,} are left out"
    )
