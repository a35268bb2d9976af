"""Writes the dataset card of a pack: `README.md` for people and the Hugging Face hub, `metadata.json` for machines.

Cards are rendered from `templates/`: the template holds the words, its caller computes the facts. The card shows Python
programs that read a pack without this project, and tests run them.
"""

from collections.abc import Mapping
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from shards.codec import MAX_SIDE_PX, clip_extension
from shards.files import json_bytes
from stages.cards.croissant import croissant
from stages.cards.licences import hub_licence, is_unknown, why_not_shared
from stages.cards.pack_facts import PackFacts

_CUT_JPEG = """

def clip_of(picture_HW, num_frames):
    cells = [
        picture_HW[y : y + {px}, x : x + {px}]
        for x in range(0, picture_HW.shape[1], {px})
        for y in range(0, picture_HW.shape[0], {px})
    ]
    return np.stack(cells[:num_frames])


"""
_DECODE_VIDEO = """

def clip_of(video):
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])


"""
_WEBDATASET = """{standard}from pathlib import Path

{imports}import webdataset
{function}shards = sorted(str(path) for path in Path("{split}").glob("*.tar"))
for sample in webdataset.WebDataset(shards, shardshuffle=False).decode({how}):
    about = sample["json"]
    clip_THW = {clip}
    print(about["clip_id"], clip_THW.shape, about["label"])
"""
_DATASETS = """{standard}{imports}from datasets import {names}
{function}samples = load_dataset("webdataset", data_files="{split}/*.tar", split="train", streaming=True)
for sample in samples{cast}:
    about = sample["json"]
    clip_THW = {clip}
    print(about["clip_id"], clip_THW.shape, about["label"])
"""
CARD, METADATA = "README.md", "metadata.json"
MARK = "Made by `pipeline pack`, which writes it anew each time."
"""Both files contain it, so that `pack` recognises its own card and keeps any other README."""

_NAME = "Mouth clips for lip reading"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def render(template: str, license: str, **values: Any) -> str:
    """Returns the text of `templates/<template>.md.j2`; values are inserted as they are, never as template code."""
    environment = Environment(
        loader=PackageLoader("stages.cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(spec=format, percent=_percent, megabytes=_megabytes)
    licence = None if is_unknown(license) else license
    return environment.get_template(f"{template}.md.j2").render(
        values, licence=licence, may_share=why_not_shared(license) is None
    )


def front_matter(matter: Mapping[str, Any]) -> str:
    """Returns the YAML that a card starts with."""
    return f"---\n{yaml.safe_dump(dict(matter), sort_keys=False, allow_unicode=True)}---\n"


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1_000_000:.1f}"


def with_webdataset(codec: str, extension: str, size_px: int, split: str) -> str:
    """Returns a program that prints id, shape and label of every clip of a split, with webdataset."""
    member = f'sample["{extension}"]'
    return _WEBDATASET.format(
        standard="import io\n" if _is_video(codec) else "",
        imports="" if codec == "raw" else _imports(codec),
        function=_function(codec, size_px),
        split=split,
        # webdataset decodes numpy's format by itself; pictures need a format
        how='"l8"' if codec == "jpeg" else "",
        clip={"raw": member, "jpeg": f'clip_of({member}, about["num_frames"])'}.get(
            codec, f"clip_of({member})"
        ),
    )


def with_datasets(codec: str, extension: str, size_px: int, split: str) -> str:
    """Returns the same with Hugging Face datasets, which returns .npy as lists and decodes video itself."""
    clip = {
        "raw": 'np.array(sample["npy"], np.uint8)',
        "jpeg": 'clip_of(np.array(sample["jpg"]), about["num_frames"])',
    }.get(codec, f'clip_of(sample["{extension}"]["bytes"])')
    return _DATASETS.format(
        standard="import io\n\n" if _is_video(codec) else "",
        imports=_imports(codec),
        names="Video, load_dataset" if _is_video(codec) else "load_dataset",
        function=_function(codec, size_px),
        split=split,
        cast=f'.cast_column("{extension}", Video(decode=False))' if _is_video(codec) else "",
        clip=clip,
    )


def _is_video(codec: str) -> bool:
    return codec in ("h264", "ffv1")


def _imports(codec: str) -> str:
    return "import av\nimport numpy as np\n" if _is_video(codec) else "import numpy as np\n"


def _function(codec: str, size_px: int) -> str:
    if codec == "raw":
        return "\n"
    return _DECODE_VIDEO if _is_video(codec) else _CUT_JPEG.format(px=size_px)


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
