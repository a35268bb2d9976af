"""Compares two reports of one split clip by clip, and tests whether the difference may be chance."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.bootstrap import (
    ENOUGH_SPEAKERS,
    Over,
    groups_of,
    interval_of,
    rates,
    resampled_sums,
    summed_by_group,
)
from model.decoding.registry import describe_settings
from model.metrics import EditCounts
from shards.errors import ConfigError, TableError
from shards.files import read_table
from shards.packs import pack_of
from shards.pipes import refuse_pipe
from shards.schema import PREDICTIONS
from stages.reports.figures import LETTERS, CountedUnit, Interval, oracle_about, unit_of
from stages.reports.groups import decade_name

ORACLE_NOTE = "Oracle: the rate if the best candidate of each clip were chosen."
PREDICTIONS_FILE, METRICS_FILE = "predictions.parquet", "metrics.json"


@dataclass(frozen=True, slots=True)
class ComparedClip:
    """One clip as A and B read it."""

    clip_id: str
    speaker: str | None
    gender: str | None
    age: int | None
    topic: str | None
    reference: str
    hypothesis_a: str
    hypothesis_b: str
    counts_a: EditCounts
    counts_b: EditCounts

    @property
    def change(self) -> int:
        """Errors of B minus errors of A; negative if B is better."""
        return self.counts_b.errors - self.counts_a.errors


@dataclass(frozen=True, slots=True)
class Difference:
    """CER of B minus CER of A over some clips; negative if B is better."""

    num_clips: int
    num_speakers: int
    """Number of known speakers."""
    counts_a: EditCounts
    counts_b: EditCounts
    interval: Interval | None
    """The middle 95 % of the paired bootstrap; None for a single clip, or if all resamples have the same difference."""
    over: Over
    """What the bootstrap draws: speakers or clips."""
    better_share: float | None
    """Share of resamples in which B is better; equal ones count half."""

    @property
    def change(self) -> float:
        return self.counts_b.cer - self.counts_a.cer

    @property
    def is_narrow(self) -> bool:
        """Whether the interval is too narrow for other speakers."""
        return self.interval is not None and self.num_speakers < ENOUGH_SPEAKERS

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes 0 and covers enough speakers."""
        if self.interval is None or self.is_narrow:
            return False
        return not self.interval.low <= 0 <= self.interval.high


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of the clips that both reports contain."""

    name_a: str
    name_b: str
    split: str
    unit: CountedUnit
    whole: Difference
    groups: Mapping[str, Sequence[tuple[str, Difference]]]
    """By "corpus", "speaker", "gender", "age", "topic", if the corpus has it; the largest improvement first."""
    better: Sequence[ComparedClip]
    """Clips with fewer errors in B, the largest change first."""
    worse: Sequence[ComparedClip]
    num_same: int
    """Number of clips with equally many errors."""
    only_a: Sequence[str]
    """clip_ids that are missing in B."""
    only_b: Sequence[str]
    read_by_a: str | None
    """Checkpoint, decoder and language model; None if there is no metrics.json next to the predictions."""
    read_by_b: str | None
    oracle_a: float | None
    """CER if the best candidate of each clip were chosen; None if a clip has no candidates."""
    oracle_b: float | None
    oracle_notes: Sequence[str]
    """What both are, or why one is missing."""

    def as_json(self) -> dict[str, Any]:
        return {
            "a": self.name_a,
            "b": self.name_b,
            "read_by_a": self.read_by_a,
            "read_by_b": self.read_by_b,
            "split": self.split,
            "unit": self.unit.names,
            **_flat(self.whole),
            "oracle_cer_a": self.oracle_a,
            "oracle_cer_b": self.oracle_b,
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "groups": {
                kind: [{"name": name, **_flat(found)} for name, found in groups]
                for kind, groups in self.groups.items()
            },
            "num_same": self.num_same,
            "better": [_clip_json(clip) for clip in self.better],
            "worse": [_clip_json(clip) for clip in self.worse],
        }


def compare(run_a: Path, run_b: Path, resamples: int, seed: int) -> Comparison:
    """Compares B with A over the clips of both; each is the folder of a report or its predictions.parquet.

    Raises TableError if one cannot be read, ConfigError if their splits or references differ, or if one is in pinyin
    and the other in characters.
    """
    (read_by_a, decoder_a), (read_by_b, decoder_b) = _read_by(run_a), _read_by(run_b)
    unit = _one_unit(run_a, decoder_a, run_b, decoder_b)
    rows_a, rows_b = _rows(run_a), _rows(run_b)
    split = _one_split(run_a, rows_a, run_b, rows_b)
    common = sorted(rows_a.keys() & rows_b.keys())
    if not common:
        raise ConfigError(
            f"{run_a} and {run_b} have no clip in common; compare two reports of the same split"
        )
    _refuse_other_references(run_a, rows_a, run_b, rows_b, common)
    clips = [_compared(rows_a[clip_id], rows_b[clip_id]) for clip_id in common]
    changed = sorted((clip for clip in clips if clip.change), key=lambda clip: (clip.change, clip.clip_id))
    worse = [clip for clip in changed if clip.change > 0]
    oracle_a, oracle_b = (_oracle_cer([rows[clip_id] for clip_id in common]) for rows in (rows_a, rows_b))
    missing = [
        f"Oracle CER of {letter}: {oracle_about(decoder)}"
        for letter, decoder, cer in (("A", decoder_a, oracle_a), ("B", decoder_b, oracle_b))
        if cer is None
    ]
    return Comparison(
        str(run_a),
        str(run_b),
        split,
        unit,
        paired_difference(clips, resamples, seed),
        _groups(clips, resamples, seed),
        [clip for clip in changed if clip.change < 0],
        sorted(worse, key=lambda clip: (-clip.change, clip.clip_id)),
        len(clips) - len(changed),
        sorted(rows_a.keys() - rows_b.keys()),
        sorted(rows_b.keys() - rows_a.keys()),
        read_by_a,
        read_by_b,
        oracle_a,
        oracle_b,
        missing if len(missing) == 2 else [ORACLE_NOTE, *missing],
    )


def _oracle_cer(rows: Sequence[Mapping[str, Any]]) -> float | None:
    errors = [row["oracle_errors"] for row in rows if row["oracle_errors"] is not None]
    if len(errors) < len(rows):
        return None
    return EditCounts(sum(errors), num_chars=sum(len(row["reference"]) for row in rows)).cer


def paired_difference(clips: Sequence[ComparedClip], resamples: int, seed: int) -> Difference:
    """Returns the difference over `clips` with a paired bootstrap: each resample has the same speakers for A and B.

    Bisani and Ney 2004, section 4, drawn by speaker. Needs at least one clip.
    """
    speakers = [clip.speaker for clip in clips]
    groups_N, over = groups_of(speakers)
    num_speakers = len({*speakers} - {None})
    counts_a = sum((clip.counts_a for clip in clips), EditCounts())
    counts_b = sum((clip.counts_b for clip in clips), EditCounts())
    if len(clips) < 2:
        return Difference(len(clips), num_speakers, counts_a, counts_b, None, over, None)
    figures = [(clip.counts_a.errors, clip.counts_b.errors, clip.counts_a.num_chars) for clip in clips]
    sums_GK = summed_by_group(np.array(figures, np.int64), groups_N)
    errors_a_R, errors_b_R, chars_R = resampled_sums(sums_GK, resamples, seed).T
    changes_R = rates(errors_b_R, chars_R) - rates(errors_a_R, chars_R)
    better = np.mean(errors_b_R < errors_a_R) + np.mean(errors_b_R == errors_a_R) / 2
    middle = interval_of(changes_R)
    interval = Interval(*middle) if middle else None
    return Difference(len(clips), num_speakers, counts_a, counts_b, interval, over, float(better))


def _rows(run: Path) -> dict[str, dict[str, Any]]:
    file = run / PREDICTIONS_FILE if run.is_dir() else run
    rows = read_table(file, PREDICTIONS, "pipeline report").to_pylist()
    if not rows:
        raise TableError(f"{file} contains no clips; run `pipeline report` on a split with clips")
    counted = Counter(row["clip_id"] for row in rows)
    clip_id, times = counted.most_common(1)[0]
    if times > 1:
        raise TableError(f"{file} contains clip {clip_id} {times} times; run `pipeline report` again")
    return {row["clip_id"]: row for row in rows}


def _read_by(run: Path) -> tuple[str | None, str | None]:
    """Returns a line with checkpoint, decoder and language model, and the decoder; None without metrics.json."""
    file = (run if run.is_dir() else run.parent) / METRICS_FILE
    refuse_pipe(file)
    try:
        metrics = json.loads(file.read_text("utf-8"))
        settings = metrics.get("decode") or {"decoder": metrics.get("decoder") or "unknown"}
        parts = [f"checkpoint {metrics.get('checkpoint') or 'unknown'}", describe_settings(settings)]
        language_model = metrics.get("language_model")
    except FileNotFoundError:
        return None, None
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise TableError(f"{file} is damaged ({error!r}); run `pipeline report` again") from error
    line = "; ".join([*parts, f"language model {language_model}"] if language_model else parts)
    return line, str(settings["decoder"])


def _one_unit(run_a: Path, decoder_a: str | None, run_b: Path, decoder_b: str | None) -> CountedUnit:
    """Returns the unit that both count. If one does not name its decoder, its references must equal the other's."""
    decoders = {
        run: decoder for run, decoder in ((run_a, decoder_a), (run_b, decoder_b)) if decoder is not None
    }
    units = {unit_of(decoder) for decoder in decoders.values()}
    if len(units) > 1:
        kinds = (
            f"{run} contains {'toneless pinyin' if unit_of(decoder) == LETTERS else 'characters'} (decoder {decoder})"
            for run, decoder in decoders.items()
        )
        raise ConfigError(
            f"{', '.join(kinds)}: their error rates count different units and cannot be compared; report both with "
            "decode.decoder syllables, or both with decoders that write characters"
        )
    return units.pop() if units else unit_of(None)


def _one_split(run_a: Path, rows_a: Mapping[str, Any], run_b: Path, rows_b: Mapping[str, Any]) -> str:
    splits_a, splits_b = (
        ", ".join(sorted({row["split"] for row in rows.values()})) for rows in (rows_a, rows_b)
    )
    if splits_a != splits_b:
        raise ConfigError(
            f"{run_a} is of split {splits_a}, {run_b} of split {splits_b}: compare two reports of the same split "
            "(report.split)"
        )
    return splits_a


def _refuse_other_references(
    run_a: Path,
    rows_a: Mapping[str, Any],
    run_b: Path,
    rows_b: Mapping[str, Any],
    common: Sequence[str],
) -> None:
    different = [
        clip_id for clip_id in common if rows_a[clip_id]["reference"] != rows_b[clip_id]["reference"]
    ]
    if different:
        first = different[0]
        raise ConfigError(
            f"{len(different)} of {len(common)} clips have different references in {run_a} and {run_b}, first "
            f"{first}: '{rows_a[first]['reference']}' and '{rows_b[first]['reference']}'. Their CERs cannot be "
            "compared; report both with the same normaliser (section text) and decoders that write characters"
        )


def _compared(row_a: Mapping[str, Any], row_b: Mapping[str, Any]) -> ComparedClip:
    def counts(row: Mapping[str, Any]) -> EditCounts:
        return EditCounts(row["substitutions"], row["deletions"], row["insertions"], len(row["reference"]))

    shared = {name: row_a[name] for name in ("clip_id", "speaker", "gender", "age", "topic", "reference")}
    return ComparedClip(
        **shared,
        hypothesis_a=row_a["hypothesis"],
        hypothesis_b=row_b["hypothesis"],
        counts_a=counts(row_a),
        counts_b=counts(row_b),
    )


def _groups(
    clips: Sequence[ComparedClip], resamples: int, seed: int
) -> dict[str, list[tuple[str, Difference]]]:
    keys: dict[str, Callable[[ComparedClip], str | None]] = {
        "corpus": lambda clip: pack_of(clip.clip_id)[0] or None,
        "speaker": lambda clip: clip.speaker,
        "gender": lambda clip: clip.gender,
        "age": lambda clip: None if clip.age is None else decade_name(clip.age // 10),
        "topic": lambda clip: clip.topic,
    }
    found = {}
    for kind, key in keys.items():
        members: dict[str, list[ComparedClip]] = defaultdict(list)
        for clip in clips:
            if (name := key(clip)) is not None:
                members[name].append(clip)
        if members:
            differences = [(name, paired_difference(some, resamples, seed)) for name, some in members.items()]
            found[kind] = sorted(differences, key=lambda group: (group[1].change, group[0]))
    return found


def _flat(found: Difference) -> dict[str, Any]:
    return {
        "num_clips": found.num_clips,
        "num_speakers": found.num_speakers,
        "num_chars": found.counts_a.num_chars,
        "cer_a": found.counts_a.cer,
        "cer_b": found.counts_b.cer,
        "difference": found.change,
        "difference_low": found.interval.low if found.interval else None,
        "difference_high": found.interval.high if found.interval else None,
        "difference_over": found.over if found.interval else None,
        "better_share": found.better_share,
    }


def _clip_json(clip: ComparedClip) -> dict[str, Any]:
    values = asdict(clip)
    for name in ("a", "b"):
        values[f"errors_{name}"] = getattr(clip, f"counts_{name}").errors
        del values[f"counts_{name}"]
    return values
