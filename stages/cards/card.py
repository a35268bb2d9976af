"""Writes the dataset card of a pack: `README.md` for people and the Hugging Face hub, `metadata.json` for machines."""

from typing import Any

from shards.codec import MAX_SIDE_PX, clip_extension
from shards.files import json_bytes
from stages.cards.card_examples import with_datasets, with_webdataset
from stages.cards.croissant import croissant
from stages.cards.licences import hub_licence
from stages.cards.pack_facts import PackFacts
from stages.cards.render import front_matter, render

CARD, METADATA = "README.md", "metadata.json"
MARK = "Made by `pipeline pack`, which writes it anew each time."
"""Both files contain it, so that `pack` recognises its own card and keeps any other README."""

_NAME = "Mouth clips for lip reading"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card_files(facts: PackFacts) -> dict[str, bytes]:
    """Returns both files by name: same facts, same bytes."""
    counts = {
        "num_clips": sum(split.num_clips for split in facts.splits),
        "hours": sum(split.hours for split in facts.splits),
    }
    about, terms = (render(text, facts.license, facts=facts, **counts) for text in ("about", "terms"))
    extension = clip_extension(facts.codec)
    first = next((split.name for split in facts.splits if split.num_clips), "train")
    card = render(
        "card",
        facts.license,
        facts=facts,
        front_matter=front_matter(_matter(facts)),
        name=_NAME,
        about=about,
        terms=terms,
        extension=extension,
        column_frames=MAX_SIDE_PX // facts.size_px,
        with_webdataset=with_webdataset(facts.codec, extension, facts.size_px, first),
        with_datasets=with_datasets(facts.codec, extension, facts.size_px, first),
        mark=MARK,
    )
    metadata = croissant(facts, _NAME, f"{about} {terms} {MARK}", extension)
    return {CARD: card.encode(), METADATA: json_bytes(metadata)}


def _matter(facts: PackFacts) -> dict[str, Any]:
    num_clips = sum(split.num_clips for split in facts.splits)
    size = next((name for limit, name in _SIZES if num_clips < limit), "n>1M")
    return {
        "pretty_name": _NAME,
        **hub_licence(facts.license),
        **({"language": [facts.language]} if facts.language else {}),
        "task_categories": ["automatic-speech-recognition"],
        "tags": ["lip-reading", "visual-speech-recognition", "webdataset"],
        "size_categories": [size],
        "configs": [
            {
                "config_name": "default",
                # the hub's names of splits have no dash
                "data_files": [
                    {"split": split.name.replace("-", "_"), "path": f"{split.name}/*.tar"}
                    for split in facts.splits
                    if split.num_clips
                ],
            }
        ],
    }
