"""Readings with the time of each word: JSON (docs/reading.schema.json), karaoke captions, TextGrid, CTM and ELAN."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from model.decoding.result import TimedCharacter
from model.pinyin import toned_pinyin
from model.text import units_of
from pipeline.inference.text_of_video import Segment, VideoReading
from shards.safe_text import one_line

JSON_VERSION = 1
"""Of docs/reading.schema.json. Raise it when a key changes its meaning or is removed."""
_DIGITS = 4
"""Of confidences, shares, scores in nats and the characters' times in seconds."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or a single Han character. `confidence` is the product over its characters."""

    text: str
    start_s: float
    end_s: float
    confidence: float | None


def words_of(segment: Segment) -> list[Word]:
    """Returns the words of a segment; all of its text as one word if the model gives no times."""
    if not segment.characters:
        return (
            [Word(segment.text, segment.start_s, segment.end_s, segment.confidence)] if segment.text else []
        )
    words, place = [], 0
    for text in units_of(segment.text):
        place = segment.text.index(text, place)
        own = segment.characters[place : place + len(text)]
        place += len(text)
        confidence = math.prod(one.confidence for one in own)
        words.append(Word(text, own[0].start_s, own[-1].end_s, confidence))
    return words


def as_json_object(reading: VideoReading) -> dict[str, Any]:
    """Returns the reading as in docs/reading.schema.json."""
    values = {"version": JSON_VERSION} | asdict(reading)
    for segment, of_segment in zip(reading.segments, values["segments"], strict=True):
        pinyin = toned_pinyin(segment.text)
        of_segment["characters"] = [
            _character(one, sound) for one, sound in zip(segment.characters, pinyin, strict=False)
        ]
        for candidate in of_segment["candidates"]:
            candidate |= _rounded(candidate) | {"scores": _rounded(candidate["scores"])}
        of_segment["words"] = [_rounded(asdict(word)) for word in words_of(segment)]
    return values


def _character(one: TimedCharacter, pinyin: str | None) -> dict[str, Any]:
    values = _rounded(asdict(one))
    values["alternatives"] = [_rounded(asdict(other)) for other in one.alternatives]
    return values | {"pinyin": pinyin}


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: round(value, _DIGITS) if isinstance(value, float) else value for key, value in values.items()
    }


def as_json(reading: VideoReading) -> str:
    return json.dumps(as_json_object(reading), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def as_ctm(reading: VideoReading) -> str:
    """Returns NIST's CTM: a line for each word with file, channel, start, duration, word and confidence."""
    name = "_".join(one_line(Path(reading.path).stem).split()) or "video"
    return "".join(
        f"{name} 1 {word.start_s:.3f} {word.end_s - word.start_s:.3f} {'_'.join(word.text.split())} "
        f"{0.0 if word.confidence is None else word.confidence:.4f}\n"
        for segment in reading.segments
        for word in words_of(segment)
    )


def as_textgrid(reading: VideoReading) -> str:
    """Returns a TextGrid of Praat with the tiers segments and words; parts without text are empty intervals."""
    end_s = max((segment.end_s for segment in reading.segments), default=0.0)
    tiers = (("segments", list(_segments(reading))), ("words", _all_words(reading)))
    lines = [
        'File type = "ooTextFile"', 'Object class = "TextGrid"', "",
        "xmin = 0", f"xmax = {end_s:.4f}", "tiers? <exists>", f"size = {len(tiers)}", "item []:",
    ]  # fmt: skip
    for number, (name, words) in enumerate(tiers, start=1):
        intervals = list(_without_gaps(words, end_s))
        lines += [
            f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"',
            "        xmin = 0", f"        xmax = {end_s:.4f}", f"        intervals: size = {len(intervals)}",
        ]  # fmt: skip
        for place, (text, start_s, stop_s) in enumerate(intervals, start=1):
            quoted = text.replace('"', '""')
            lines += [
                f"        intervals [{place}]:", f"            xmin = {start_s:.4f}",
                f"            xmax = {stop_s:.4f}", f'            text = "{quoted}"',
            ]  # fmt: skip
    return "\n".join(lines) + "\n"


def as_elan(reading: VideoReading) -> str:
    """Returns an ELAN document (EAF 3.0) with the tiers segments and words."""
    document = ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        # a fixed date: the same video gives the same bytes
        {
            "AUTHOR": "",
            "DATE": "1970-01-01T00:00:00+00:00",
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )
    ElementTree.SubElement(document, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    order = ElementTree.SubElement(document, "TIME_ORDER")
    number = 0
    for name, words in (("segments", list(_segments(reading))), ("words", _all_words(reading))):
        tier = ElementTree.SubElement(document, "TIER", {"TIER_ID": name, "LINGUISTIC_TYPE_REF": "text"})
        for word in words:
            number += 1
            for mark, time_s in (("a", word.start_s), ("b", word.end_s)):
                milliseconds = str(round(1000 * max(time_s, 0.0)))
                slot = {"TIME_SLOT_ID": f"t{number}{mark}", "TIME_VALUE": milliseconds}
                ElementTree.SubElement(order, "TIME_SLOT", slot)
            place = {
                "ANNOTATION_ID": f"n{number}",
                "TIME_SLOT_REF1": f"t{number}a",
                "TIME_SLOT_REF2": f"t{number}b",
            }
            annotation = ElementTree.SubElement(tier, "ANNOTATION")
            aligned = ElementTree.SubElement(annotation, "ALIGNABLE_ANNOTATION", place)
            ElementTree.SubElement(aligned, "ANNOTATION_VALUE").text = word.text
    ElementTree.SubElement(
        document,
        "LINGUISTIC_TYPE",
        {"LINGUISTIC_TYPE_ID": "text", "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"},
    )
    ElementTree.indent(document)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(document, encoding="unicode")}\n'


def _segments(reading: VideoReading) -> Iterator[Word]:
    for segment in reading.segments:
        if segment.text:
            yield Word(segment.text, segment.start_s, segment.end_s, segment.confidence)


def _all_words(reading: VideoReading) -> list[Word]:
    return [word for segment in reading.segments for word in words_of(segment)]


def _without_gaps(words: Sequence[Word], end_s: float) -> Iterator[tuple[str, float, float]]:
    """Yields texts with their times, and empty texts between them: a tier of Praat has no gaps."""
    until_s = 0.0
    for word in words:
        if word.start_s > until_s:
            yield "", until_s, word.start_s
        start_s = max(word.start_s, until_s)
        if word.end_s > start_s:
            yield word.text, start_s, word.end_s
            until_s = word.end_s
    if end_s > until_s:
        yield "", until_s, end_s
