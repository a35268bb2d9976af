"""Computes the figures of a report from a scored split, among them the most frequent confusions."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from model.decoding.calibration import ConfidenceScale, right_characters
from model.decoding.calibration import calibration_error as expected_error
from model.decoding.result import ScoredClip
from model.metrics import (
    EditCounts,
    Pair,
    chance_cer,
    edit_counts,
    has_words,
    mixed_error_rate,
    mixes_scripts,
    total_counts,
    unit_error_rate,
    unit_pairs,
    word_error_rate,
)
from model.pinyin import syllables_of
from model.text import UNKNOWN_ID, Tokenizer
from model.visemes import (
    LookAlikeClass,
    is_mandarin,
    look_alike_classes_of,
    look_alike_units,
    look_alike_units_of_pinyin,
    look_alikes,
    viseme_units,
    visemes_of,
    visemes_of_pinyin,
)
from shards.errors import ConfigError
from shards.packs import pack_of
from stages.reports.figures import Confusion, CountedClip, Figures, ReportContext, ReportFacts
from stages.reports.groups import (
    calibration_error,
    calibration_of,
    cer_interval,
    groups_of_split,
    quality_bins,
    total,
)

NUM_SUBSTITUTED, NUM_MISSED_OR_ADDED = 20, 10
"""Separate limits: if a model reads little, missed units would fill a common list."""
RESAMPLES = 2_000
NO_FACTS = ReportFacts()
CORPUS_FIGURES = (
    *("num_clips", "num_rejected", "num_speakers", "num_chars"),
    *("cer", "cer_low", "cer_high", "cer_interval_over", "blind_cer", "chance_cer", "wer"),
)
"""Figures of metrics.json that each of several packs has too."""
LOOK_ALIKE_GROUPS, LOOK_ALIKE_CHARACTERS = 12, 12


def character_confusions(pairs: Iterable[Pair]) -> list[Confusion]:
    """Returns confusions of characters; two look alike if their sounds do in most of the sentences."""
    counted: Counter[Pair] = Counter()
    same_class: dict[Pair, Counter[bool]] = {}
    for reference, hypothesis in pairs:
        said_classes, read_classes = (
            iter(_look_alike_classes(reference)),
            iter(_look_alike_classes(hypothesis)),
        )
        for said, read in unit_pairs(reference, hypothesis):
            said_class = next(said_classes) if said else None
            read_class = next(read_classes) if read else None
            counted[said, read] += 1
            if said != read and said_class and read_class:
                same_class.setdefault((said, read), Counter())[said_class == read_class] += 1
    alike = {pair: counts[True] > counts[False] for pair, counts in same_class.items()}
    return _largest(counted, alike)


def word_confusions(pairs: Iterable[Pair]) -> list[Confusion]:
    """Returns confusions of words; whether words look alike is not known."""
    return _largest(_counted((said.split(), read.split()) for said, read in pairs), {})


def syllable_confusions(
    pairs: Iterable[Pair], syllables: Callable[[str], Sequence[str]] = syllables_of
) -> list[Confusion]:
    """Returns confusions of toneless syllables; other characters are units of their own."""
    counted = _counted((syllables(said), syllables(read)) for said, read in pairs)
    visemes = {pair: (visemes_of(pair[0]), visemes_of(pair[1])) for pair in counted if all(pair)}
    return _largest(counted, {pair: one == other for pair, (one, other) in visemes.items() if one and other})


def _look_alike_classes(text: str) -> list[LookAlikeClass | None]:
    """Returns the look-alike class of each character, None for spaces and unknown sounds."""
    classes = iter(look_alike_classes_of(text))
    return [None if character.isspace() else next(classes) for character in text]


def _counted(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Counter[Pair]:
    return Counter(pair for said, read in pairs for pair in unit_pairs(said, read))


def _largest(counted: Counter[Pair], alike: dict[Pair, bool]) -> list[Confusion]:
    """Returns the largest of `counted`, which also counts correct units; equal counts are in code point order."""
    num_said: Counter[str] = Counter()
    for (said, _), count in counted.items():
        if said:
            num_said[said] += count
    ranked = sorted((-count, said, read) for (said, read), count in counted.items() if said != read)
    substituted = [pair for pair in ranked if pair[1] and pair[2]][:NUM_SUBSTITUTED]
    missed_or_added = [pair for pair in ranked if not (pair[1] and pair[2])][:NUM_MISSED_OR_ADDED]
    return [
        Confusion(said, read, -count, num_said[said], alike.get((said, read)))
        for count, said, read in sorted(substituted + missed_or_added)
    ]


def figures_of(
    scored: Sequence[ScoredClip],
    blind: Sequence[ScoredClip],
    context: ReportContext,
    facts: ReportFacts = NO_FACTS,
) -> Figures:
    """Returns the figures of the report; raises ConfigError if the split has no clips."""
    metrics = split_metrics(
        scored,
        blind,
        context.split,
        context.seed,
        context.speaker_overlap,
        resamples=context.resamples,
        facts=facts,
        num_rejected=sum(context.rejections.get(context.split, {}).values()),
        corpora=context.corpora,
    )
    clips = counted_clips(scored)
    pairs = [(counted.clip.reference, counted.clip.hypothesis) for counted in clips]
    references = [reference for reference, _ in pairs]
    sounds = _sounds(references, facts.decoder)
    alike = look_alikes(references)
    worst, median, best = _examples(clips, context.num_examples)
    return Figures(
        metrics=metrics,
        groups=groups_of_split(clips, facts.clips, context.fps, context.resamples, context.seed),
        characters=character_confusions(pairs),
        syllables=syllable_confusions(pairs, sounds.syllables) if sounds else (),
        calibration=calibration_of(clips),
        qualities=quality_bins(clips, facts.clips),
        worst=worst,
        median=median,
        best=best,
        look_alikes=[group[:LOOK_ALIKE_CHARACTERS] for group in alike[:LOOK_ALIKE_GROUPS]],
        words=word_confusions(pairs) if has_words(references) and not sounds else (),
    )


def split_metrics(
    scored: Sequence[ScoredClip],
    blind: Sequence[ScoredClip],
    split: str,
    seed: int,
    speaker_overlap: int | None = 0,
    *,
    resamples: int = RESAMPLES,
    facts: ReportFacts = NO_FACTS,
    num_rejected: int | None = None,
    corpora: Mapping[str, int | None] | None = None,
) -> dict[str, Any]:
    """Returns the contents of metrics.json: shares (not per cent) and counts, null if they cannot be known.

    `decode`: the settings that the decoder used. `language_model`: the identity of the file that it used.
    `cer_low` to `cer_high` contains 95 % of the resamples over `cer_interval_over`; all three are null if an interval
    would mean nothing (`why_no_interval`). `chance_cer`: the mean of `chance_pairings`, independent of the seed.
    `oracle_cer`, `oracle_candidates`: of `oracle_figures`.
    `normaliser` made the references, `checkpoint_normaliser` the learnt labels. `speaker_overlap`: speakers that were
    also trained on. `num_unwritable`: characters of the references that the model has no token for; they are errors.
    `wer` exists only for text with words, `mer` (Han characters and words of other scripts) only for text with both.
    The rates of syllables, look-alike classes and visemes are null unless half of the text is Han, or pinyin was read.
    `num_rejected`: clips of the split that crop rejected and that no other figure contains; a CER falls if hard clips
    are rejected. `num_without_confidence`: clips without a score; `calibration_error` does not contain them.
    `character_calibration_error` is of the confidences of single characters, `uncalibrated_error` of the same before
    calibration on valid; null without a CTC head.
    `corpora`: of several packs, the figures of each; the argument has the rejected clips of each.
    Raises ConfigError if the split has no clips.
    """
    if not scored:
        raise ConfigError(f"report.split: split {split!r} has no clips; choose a packed split")
    assert not blind or {clip.clip_id for clip in blind} == {clip.clip_id for clip in scored}
    clips = counted_clips(scored)
    pairs = [(counted.clip.reference, counted.clip.hypothesis) for counted in clips]
    references = [reference for reference, _ in pairs]
    chance, counts = chance_cer(pairs), total(clips)
    interval, over = cer_interval(clips, resamples, seed)
    sounds = _sounds(references, facts.decoder)
    metrics: dict[str, Any] = {
        "split": split,
        "decoder": facts.decoder,
        "decode": facts.decode,
        "language_model": facts.language_model,
        "checkpoint": facts.checkpoint,
        "normaliser": facts.normaliser,
        "checkpoint_normaliser": facts.checkpoint_normaliser,
        "num_clips": len(clips),
        "num_rejected": num_rejected,
        "num_speakers": len({counted.clip.speaker for counted in clips} - {None}),
        "num_chars": counts.num_chars,
        "cer": counts.cer,
        "cer_low": interval.low if interval else None,
        "cer_high": interval.high if interval else None,
        "cer_interval_over": over if interval else None,
        "cer_mean": fmean(counted.counts.cer for counted in clips),
        "accuracy": counts.accuracy,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        **oracle_figures(clips),
        "num_unwritable": None if facts.table is None else _num_unwritable(references, facts.table),
        "syllable_error_rate": unit_error_rate(pairs, sounds.syllables) if sounds else None,
        "look_error_rate": unit_error_rate(pairs, sounds.look_alike_classes) if sounds else None,
        "viseme_error_rate": unit_error_rate(pairs, sounds.visemes) if sounds else None,
        "calibration_error": calibration_error(calibration_of(clips)),
        **_character_calibration(clips, facts.confidence_scale),
        "num_without_confidence": sum(math.isnan(counted.clip.score) for counted in clips),
        "blind_cer": total_counts((c.reference, c.hypothesis) for c in blind).cer if blind else None,
        "chance_cer": chance.cer if chance else None,
        "chance_pairings": chance.num_pairings if chance else None,
        "speaker_overlap": speaker_overlap,
    }
    if has_words(references):
        metrics["wer"] = word_error_rate(pairs)
    if mixes_scripts(references):
        metrics["mer"] = mixed_error_rate(pairs)
    if corpora:
        metrics["num_rejected"] = None if None in corpora.values() else sum(filter(None, corpora.values()))
        metrics["corpora"] = {}
        for name, rejected in corpora.items():
            own, own_blind = (
                [clip for clip in some if pack_of(clip.clip_id)[0] == name] for some in (scored, blind)
            )
            if own:  # a pack may have no clips of this split
                found = split_metrics(
                    own, own_blind, split, seed, resamples=resamples, facts=facts, num_rejected=rejected
                )
                metrics["corpora"][name] = {key: found[key] for key in CORPUS_FIGURES if key in found}
    return metrics


def _character_calibration(clips: Sequence[CountedClip], scale: ConfidenceScale) -> dict[str, float | None]:
    timed = [counted.clip for counted in clips if counted.clip.confidences]
    confidences = [confidence for clip in timed for confidence in clip.confidences]
    are_right = [right for clip in timed for right in right_characters(clip.reference, clip.hypothesis)]
    return {
        "character_calibration_error": expected_error(confidences, are_right),
        "uncalibrated_error": expected_error([scale.uncalibrated(one) for one in confidences], are_right),
    }


class _Sounds(NamedTuple):
    """Functions that split a text into syllables, look-alike classes and visemes."""

    syllables: Callable[[str], Sequence[str]]
    look_alike_classes: Callable[[str], Sequence[str]]
    visemes: Callable[[str], Sequence[str]]


def _sounds(references: Sequence[str], decoder: str | None) -> _Sounds | None:
    """Returns None if little of the text is Mandarin."""
    if decoder == "syllables":
        return _Sounds(str.split, look_alike_units_of_pinyin, visemes_of_pinyin)
    return _Sounds(syllables_of, look_alike_units, viseme_units) if is_mandarin(references) else None


def counted_clips(scored: Sequence[ScoredClip]) -> list[CountedClip]:
    """Counts the errors of the clips, in a fixed order: chance CER and files do not depend on batches."""
    return [
        CountedClip(
            clip,
            edit_counts(clip.reference, clip.hypothesis),
            min((edit_counts(clip.reference, one.text).errors for one in clip.candidates), default=None),
        )
        for clip in sorted(scored, key=lambda clip: clip.clip_id)
    ]


def oracle_figures(clips: Sequence[CountedClip]) -> dict[str, Any]:
    """Returns the CER if the best candidate of each clip were chosen, and the largest number of candidates.

    Both are None if a clip has no candidates.
    """
    errors = [counted.oracle_errors for counted in clips if counted.oracle_errors is not None]
    if len(errors) < len(clips):
        return {"oracle_cer": None, "oracle_candidates": None}
    return {
        "oracle_cer": EditCounts(sum(errors), num_chars=total(clips).num_chars).cer,
        "oracle_candidates": max(len(counted.clip.candidates) for counted in clips),
    }


def _num_unwritable(references: Sequence[str], table: Tokenizer) -> int:
    if table.joiner:  # the references are pinyin
        return sum(table.encode(text.split(table.joiner)).count(UNKNOWN_ID) for text in references)
    return sum(len(unit.strip()) or 1 for text in references for unit in table.unknown_units(text))


def _examples(
    clips: Sequence[CountedClip], wanted: int
) -> tuple[Sequence[CountedClip], Sequence[CountedClip], Sequence[CountedClip]]:
    """Returns the worst, median and best clips, each clip at most once; of equal clips those with more text."""
    num = min(wanted, -(-len(clips) // 3))
    worst_first = sorted(clips, key=lambda c: (-c.counts.cer, -c.counts.num_chars, c.clip.clip_id))
    worst = worst_first[:num]
    best_first = sorted(worst_first[num:], key=lambda c: (c.counts.cer, -c.counts.num_chars, c.clip.clip_id))
    best = best_first[:num]
    between = best_first[num:]
    # equally many clips are left out at both ends, so the middle of the rest is the median
    start = (len(between) - min(wanted, len(between))) // 2
    return worst, between[start : start + wanted][::-1], best
