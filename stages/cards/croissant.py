"""`metadata.json` of a pack: what is in it, in Croissant 1.0 (JSON-LD of MLCommons)."""

from collections.abc import Mapping
from typing import Any

from shards.sound import EXTENSION
from stages.cards.licences import is_unknown
from stages.cards.pack_facts import PackFacts

# the context that Croissant 1.0 prescribes, word by word
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_MEDIA_TYPES = {
    "raw": "application/octet-stream",
    "jpeg": "image/jpeg",
    "h264": "video/mp4",
    "ffv1": "video/x-matroska",
}
_FIELDS = (
    ("clip_id", "sc:Text", "unique name of the clip"),
    ("split", "sc:Text", "split of the clip"),
    ("label", "sc:Text", "what is said, normalised"),
    ("speaker", "sc:Text", "speaker, empty where unknown"),
    ("topic", "sc:Text", "topic, empty where unknown"),
    ("num_frames", "sc:Integer", "frames of the clip"),
    ("fps", "sc:Float", "frames per second"),
    ("codec", "sc:Text", "how the clip is stored"),
)


def croissant(facts: PackFacts, name: str, description: str, extension: str) -> dict[str, Any]:
    """The metadata: tars by split, their members, a record set of the clips and one of the splits."""
    tars = [
        {
            "@type": "cr:FileSet",
            "@id": f"{split.name}-shards",
            "name": f"{split.name}-shards",
            "description": f"tar shards of {split.name}; {split.name}/index.json has size and sha256 of each",
            "encodingFormat": "application/x-tar",
            "includes": f"{split.name}/*.tar",
        }
        for split in facts.splits
    ]
    shards = [{"@id": tar["@id"]} for tar in tars]
    members = [
        _members("descriptions", "the facts of a clip", "application/json", "*.json", shards),
        _members("clips", "the mouth clip", _MEDIA_TYPES[facts.codec], f"*.{extension}", shards),
    ]
    if facts.has_sound:
        members[1]["excludes"] = f"*.{EXTENSION}"
        sound = "log-mel vectors of the sound"
        members.append(_members("sounds", sound, _MEDIA_TYPES["raw"], f"*.{EXTENSION}", shards))
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "license": "unknown" if is_unknown(facts.license) else facts.license,
        **({"inLanguage": facts.language} if facts.language else {}),
        "distribution": tars + members,
        "recordSet": [_splits(facts), _samples(), _clips(extension)],
    }


def _members(
    name: str, about: str, media_type: str, pattern: str, shards: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "description": f"{about}, one file per clip",
        "containedIn": shards,
        "encodingFormat": media_type,
        "includes": pattern,
    }


def _samples() -> dict[str, Any]:
    fields = [
        _field(
            "sample",
            name,
            kind,
            about,
            {"fileSet": {"@id": "descriptions"}, "extract": {"jsonPath": f"$.{name}"}},
        )
        for name, kind, about in _FIELDS
    ]
    return _record_set("sample", "one record per clip: its facts", "clip_id", fields)


def _clips(extension: str) -> dict[str, Any]:
    from_name = {
        "fileSet": {"@id": "clips"},
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": rf"^(.*)\.{extension}$"},
    }
    content = {"fileSet": {"@id": "clips"}, "extract": {"fileProperty": "content"}}
    clip_id = _field("clip", "clip_id", "sc:Text", "the sample of the clip", from_name)
    fields = [
        clip_id | {"references": {"field": {"@id": "sample/clip_id"}}},
        _field("clip", "content", "sc:Text", "the mouth clip as stored", content),
    ]
    return _record_set("clip", "the mouth clips", "clip_id", fields)


def _splits(facts: PackFacts) -> dict[str, Any]:
    kinds = {"name": "sc:Text", "clips": "sc:Integer", "hours": "sc:Float", "speakers": "sc:Integer"}
    fields = [_field("split", name, kind, f"{name} of the split") for name, kind in kinds.items()]
    return _record_set("split", "the splits and their sizes", "name", fields) | {
        "dataType": "cr:Split",
        "data": [
            {
                "split/name": split.name,
                "split/clips": split.num_clips,
                "split/hours": split.hours,
                "split/speakers": split.num_speakers,
            }
            for split in facts.splits
        ],
    }


def _record_set(name: str, about: str, key: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": about,
        "key": {"@id": f"{name}/{key}"},
        "field": fields,
    }


def _field(
    record_set: str, name: str, kind: str, about: str, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    identified = {"@type": "cr:Field", "@id": f"{record_set}/{name}", "name": name, "description": about}
    return identified | {"dataType": kind} | ({"source": source} if source else {})
