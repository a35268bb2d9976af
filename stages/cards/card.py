"""The dataset card of a pack: `README.md` for people and the Hugging Face hub, `metadata.json` for machines."""

from typing import Any

import yaml

from shards.codec import MAX_SIDE_PX, clip_extension
from shards.files import json_bytes
from stages.cards.card_examples import with_datasets, with_webdataset
from stages.cards.croissant import croissant
from stages.cards.licences import hub_licence, is_unknown, why_not_shared
from stages.cards.pack_facts import PackFacts

CARD, METADATA = "README.md", "metadata.json"
MARK = "Made by `pipeline pack`, which writes it anew each time."
"""Stands in both files: by it a card of ours is told from a stranger's README."""

_NAME = "Mouth clips for lip reading"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_CODECS = {
    "raw": "numpy's own format, uint8, frames × height × width, lossless",
    "jpeg": "one tall gray JPEG",
    "h264": "gray H.264, one key frame; its clock ticks at 25 fps, the true rate stands in the `.json`",
    "ffv1": "gray FFV1, lossless; its clock ticks at 25 fps, the true rate stands in the `.json`",
}


def card_files(facts: PackFacts) -> dict[str, bytes]:
    """Both files by name: same facts, same bytes."""
    description = f"{_about(facts)} {_terms(facts)} {MARK}"
    metadata = croissant(facts, _NAME, description, clip_extension(facts.codec))
    return {CARD: _card(facts).encode(), METADATA: json_bytes(metadata)}


def _about(facts: PackFacts) -> str:
    num_clips = sum(split.num_clips for split in facts.splits)
    hours = sum(split.hours for split in facts.splits)
    return (
        f"{num_clips:,} clips ({hours:,.2f} h) of speaking mouths, {facts.size_px} × {facts.size_px} px, gray, "
        f"{facts.fps:g} frames a second, each with what is said."
    )


def _terms(facts: PackFacts) -> str:
    if is_unknown(facts.license):
        licence = "The licence of the corpus they were cut from is unknown: do not pass them on."
    elif why_not_shared(facts.license):
        licence = (
            f"The corpus they were cut from is under {facts.license}: the clips are derivatives, for the same uses "
            "only; name its authors, and do not pass them on beyond what that licence allows."
        )
    else:
        licence = (
            f"The corpus they were cut from is under {facts.license}, and so are they; name its authors."
        )
    return (
        f"{licence} The clips show the mouths of people. Do not use them to find out who somebody is, nor to read the "
        "lips of people who have not agreed to it; delete a person's clips where they ask for it."
    )


def _front_matter(facts: PackFacts) -> str:
    num_clips = sum(split.num_clips for split in facts.splits)
    size = next((name for limit, name in _SIZES if num_clips < limit), "n>1M")
    matter: dict[str, Any] = {
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
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n"


def _card(facts: PackFacts) -> str:
    extension = clip_extension(facts.codec)
    lines = ["| split | clips | hours | characters | speakers |", "|---|---|---|---|---|"]
    for split in facts.splits:
        speakers = "unknown" if split.num_speakers is None else str(split.num_speakers)
        lines.append(
            f"| {split.name} | {split.num_clips} | {split.hours:.2f} | {split.num_chars} | {speakers} |"
        )
    table = "\n".join(lines)
    first = next((split.name for split in facts.splits if split.num_clips), "train")
    return f"""{_front_matter(facts)}
# {_NAME}
{_about(facts)}

{table}

## Licence and terms of use
Licence: {"unknown" if is_unknown(facts.license) else facts.license}. {_terms(facts)}

## A sample
`<split>/<split>-000000.tar` and so on are plain WebDataset shards; the samples of a split are shuffled. Each has

- `<clip_id>.{extension}`: the mouth clip, {_CODECS[facts.codec]}.{_layout(facts)}
- `<clip_id>.json`: `clip_id`, `label` (what is said), `speaker` and `topic` (empty where unknown), `split`,
  `num_frames`, `fps`, `codec`.

`<split>/index.json` has the number of samples, the size and the sha256 of every shard; `metadata.json` describes all
of it in Croissant 1.0.

## Reading it
With [webdataset](https://github.com/webdataset/webdataset):
```python
{with_webdataset(facts.codec, extension, facts.size_px, first)}```
With [datasets](https://github.com/huggingface/datasets):
```python
{with_datasets(facts.codec, extension, facts.size_px, first)}```

{MARK}
"""


def _layout(facts: PackFacts) -> str:
    if facts.codec != "jpeg":
        return ""
    frames = MAX_SIDE_PX // facts.size_px
    return (
        f"\n  Its frames stand below each other. A clip of more than {frames} frames goes on in further columns, "
        f"`columns = ceil(num_frames / {frames})`,\n  each of `ceil(num_frames / columns)` frames; the last one is "
        "filled up with its last frame. The comment of the JPEG says\n  `<frames>x<height>x<width>`."
    )
