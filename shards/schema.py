"""The schemas of the Parquet tables: explicit and versioned, with units in the field metadata.

| table | one row per | written by |
|---|---|---|
| clips | transcript line | ingest |
| crops | row of clips: the ledger | crop |
| tracks | `ok` face clip | crop |
| samples | packed sample | pack |
| predictions | scored clip | report |
| pseudo labels | unlabelled clip | train (`train.self_training`) |
| audit | clip of train | audit |
| sound | packed sample | sync |
"""

import pyarrow as pa

from shards.enums import CLIP_ID_PATTERN, MediaKind, Reason, Status, Transfer

__all__ = [
    "AUDIT",
    "CLIPS",
    "CLIP_ID_PATTERN",
    "CROPS",
    "FURTHER_TABLES",
    "PREDICTIONS",
    "PSEUDO_LABELS",
    "SAMPLES",
    "SOUND",
    "TABLES",
    "TRACKS",
    "MediaKind",
    "Reason",
    "Status",
    "Transfer",
]

SCHEMA_VERSION = 3


def _field(name: str, kind: pa.DataType, about: str, unit: str = "", nullable: bool = False) -> pa.Field:
    metadata = {"about": about} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def _optional(name: str, kind: pa.DataType, about: str, unit: str = "") -> pa.Field:
    """Returns a column that a file has only if a value is known; readers fill it with null."""
    field = _field(name, kind, about, unit, nullable=True)
    return field.with_metadata(field.metadata | {b"optional": b"true"})


def is_optional(field: pa.Field) -> bool:
    return b"optional" in (field.metadata or {})


def _schema(table: str, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"table": table, "schema_version": str(SCHEMA_VERSION)})


_string, _int32, _int64 = pa.string(), pa.int32(), pa.int64()
_float, _double = pa.float32(), pa.float64()

CLIPS = _schema(
    "clips",
    [
        _field("clip_id", _string, "unique name of the clip, [A-Za-z0-9_-]{1,120}"),
        _field("split", _string, "train, valid, test or any name of that form"),
        _field("speaker", _string, "speaker, null where unknown", nullable=True),
        _field("gender", _string, "as the corpus gives it", nullable=True),
        _field("age", _int32, "age of the speaker", "years", nullable=True),
        _field("topic", _string, "topic of the clip", nullable=True),
        _field("media", _string, "video, relative to the corpus root, or zip!member"),
        _field(
            "media_kind",
            _string,
            "face or mouth, by looking at the file; null where it is missing",
            nullable=True,
        ),
        _field(
            "start_s", _double, "where the clip begins in its video, null: at the start", "s", nullable=True
        ),
        _field("end_s", _double, "where it ends, null: at the end", "s", nullable=True),
        _field("text", _string, "transcript as given"),
        _field("label", _string, "normalised transcript: what the model learns"),
        _field("num_chars", _int32, "characters of label", "characters"),
        _optional("audio", _string, "file with the clip's sound, relative to the corpus root"),
        _optional("confidence", _float, "how certain the transcript is; weighs the loss", "0..1"),
    ],
)

CROPS = _schema(
    "crops",
    [
        _field("clip_id", _string, "row of clips"),
        _field("status", _string, "ok or rejected"),
        _field("reason", _string, "closed enum, null where ok", nullable=True),
        _field("detail", _string, "what a person should know, null where ok", nullable=True),
        _field("source_fps", _float, "mean rate of the source", "1/s", nullable=True),
        _field(
            "source_width",
            _int32,
            "displayed width: upright, with square pixels; source pixels of other columns are these",
            "px",
            nullable=True,
        ),
        _field("source_height", _int32, "displayed height", "px", nullable=True),
        _field(
            "source_transfer",
            _string,
            "transfer characteristics of the source: sdr, pq or hlg; null where no picture was decoded",
            nullable=True,
        ),
        _field("source_frames", _int32, "frames decoded, not announced", "frames", nullable=True),
        _field("num_frames", _int32, "frames at the target rate", "frames", nullable=True),
        _field("duration_s", _float, "duration of the source", "s", nullable=True),
        _field("num_faces", _int32, "most faces seen at once", nullable=True),
        _field("detection_rate", _float, "share of source frames with the face", "0..1", nullable=True),
        _field("landmarked_frames", _int32, "source frames that were landmarked", "frames", nullable=True),
        _field(
            "bridged_frames",
            _int32,
            "output frames whose face was not seen, bridged",
            "frames",
            nullable=True,
        ),
        _field(
            "implausible_frames",
            _int32,
            "frames whose landmarks fit neither a face nor their neighbours: left out, bridged",
            "frames",
            nullable=True,
        ),
        _field(
            "mouth_width_px", _float, "median mouth width in the displayed source", "source px", nullable=True
        ),
        _field(
            "jitter_px", _float, "mean frame-to-frame shift left after smoothing", "crop px", nullable=True
        ),
        _field("yaw_deg", _float, "median absolute yaw of the head", "degrees", nullable=True),
        _field(
            "sharpness",
            _float,
            "median variance of the Laplacian of the crop",
            "gray levels squared",
            nullable=True,
        ),
        _field("mean_luma", _float, "mean gray level of the crop", "0..255", nullable=True),
        _field(
            "mouth_motion",
            _float,
            "root mean square change of the mouth within 0.12 s, beyond light and motion of the whole crop",
            "standard deviations of the crop's gray levels",
            nullable=True,
        ),
        _field("track_key", _string, "cache key of the raw landmarks", nullable=True),
        _field("clip_key", _string, "cache key of the mouth clip", nullable=True),
        _field("bytes", _int64, "size of the cached mouth clip", "bytes", nullable=True),
        _optional(
            "sound_agreement", _float, "of lips and sound, if crop.speaker: sound chose a face", "0..1"
        ),
    ],
)

TRACKS = _schema(
    "tracks",
    [
        _field("clip_id", _string, "row of clips"),
        _field(
            "transform",
            pa.list_(_float),
            "num_frames 2x3 matrices, source (displayed) to crop pixel, row by row",
        ),
        _field("frame_index", pa.list_(_int32), "source frame shown at each output frame"),
        _field("landmarked", pa.list_(_int32), "source frames that were landmarked"),
    ],
)

SAMPLES = _schema(
    "samples",
    [
        _field("clip_id", _string, "row of clips"),
        _field("split", _string, "split of the shard"),
        _field("shard", _string, "tar file, relative to paths.shards"),
        _field("sample_offset", _int64, "first tar header of the sample", "bytes"),
        _field("sample_size", _int64, "tar headers and padding included", "bytes"),
        _field("clip_offset", _int64, "first byte of the mouth clip's payload", "bytes"),
        _field("clip_size", _int64, "size of the payload", "bytes"),
        _field("sha256", _string, "of the payload"),
        _field("codec", _string, "raw, ..."),
        _field("num_frames", _int32, "frames of the clip", "frames"),
        _field("num_chars", _int32, "characters of label", "characters"),
        _field("label", _string, "normalised transcript"),
        _field("speaker", _string, "speaker, null where unknown", nullable=True),
        _field("topic", _string, "topic of the clip", nullable=True),
        _optional("confidence", _float, "how certain the label is; weighs the loss", "0..1"),
        _optional("audio_sha256", _string, "of the payload of the clip's sound, null where it is silent"),
    ],
)

_SCORES = ("rank_score", "log_probability", "ctc", "attention", "syllables", "language_model")
_CANDIDATE = pa.struct([("text", _string), *((name, _double) for name in _SCORES), ("length", _int32)])
"""A `Candidate` of model/decoding/result.py with its `PartScores`, nats; null where the model lacks the part."""

PREDICTIONS = _schema(
    "predictions",
    [
        _field("clip_id", _string, "row of samples"),
        _field("split", _string, "scored split"),
        _field("speaker", _string, "speaker, null where unknown", nullable=True),
        _field("gender", _string, "as the corpus gives it", nullable=True),
        _field("age", _int32, "age of the speaker", "years", nullable=True),
        _field("topic", _string, "topic of the clip", nullable=True),
        _field("num_frames", _int32, "frames of the clip", "frames"),
        _field("num_chars", _int32, "characters of the reference", "characters"),
        _field("reference", _string, "normalised transcript"),
        _field("hypothesis", _string, "what the model read"),
        _field("cer", _float, "(S + D + I) / characters of the reference"),
        _field("substitutions", _int32, "S"),
        _field("deletions", _int32, "D"),
        _field("insertions", _int32, "I"),
        _field("score", _float, "log-probability of the hypothesis a character; higher is surer", "nats"),
        _field("confidence", _double, "exp(score), how sure the model is of a character", "0..1"),
        _optional("oracle_errors", _int32, "S + D + I of the best candidate", "characters"),
        _optional(
            "candidates", pa.list_(_CANDIDATE), "texts of the beam search, best first, and their scores"
        ),
    ],
)

PSEUDO_LABELS = _schema(
    "pseudo_labels",
    [
        _field("clip_id", _string, "row of samples"),
        _field("text", _string, "what the model read: the label, if it is kept"),
        _field("score", _double, "log-probability of the text a character; higher is surer", "nats"),
        _field("confidence", _double, "exp(score), how sure the model is of a character", "0..1"),
        _field("disagreement", _double, "the largest CER between the text and a reading of another view"),
        _field("kept", pa.bool_(), "whether training uses the label"),
        _optional("learnt", _string, "the text with U+001A for each doubtful character; null: all is learnt"),
    ],
)

AUDIT = _schema(
    "audit",
    [
        _field("clip_id", _string, "row of samples"),
        _field("label", _string, "the label that was compared with the video"),
        _field("reading", _string, "what a model read that had not seen the clip"),
        _field("cer", _float, "(S + D + I) / characters of the label"),
        _field(
            "label_score", _float, "log-probability of the label, by unit (character) of the label", "nats"
        ),
        _field("reading_score", _float, "log-probability of the reading, by unit of the label", "nats"),
        _field("contradiction", _float, "reading_score - label_score: 0 where the video agrees", "nats"),
        _field(
            "fit",
            _float,
            "how much better the label fits the video than labels of other clips do; about 0 for an exchanged label",
            "standard deviations",
        ),
        _field("is_doubtful", pa.bool_(), "the label is more likely exchanged than right"),
        _field("fold", _int32, "fold of the clip, null if a given checkpoint read it", nullable=True),
    ],
)

SOUND = _schema(
    "sound",
    [
        _field("clip_id", _string, "row of samples"),
        _field("has_audio", pa.bool_(), "the clip has sound"),
        _field(
            "offset_frames",
            _int32,
            "by how much the sound is late, negative: early; null without sound",
            "frames",
            nullable=True,
        ),
        _field("offset_s", _float, "the same in seconds", "s", nullable=True),
        _field(
            "agreement",
            _float,
            "how much more likely the sound is at this offset than at others, by frame",
            "nats",
            nullable=True,
        ),
    ],
)

TABLES = {
    "clips": CLIPS,
    "crops": CROPS,
    "tracks": TRACKS,
    "samples": SAMPLES,
    "predictions": PREDICTIONS,
    "audit": AUDIT,
    "sound": SOUND,
}

FURTHER_TABLES = {"audit": "pipeline audit", "sound": "pipeline sync"}
"""Tables about clips that a pack need not have, and the commands that write them. They may lack clips."""
