"""What a ledger (crops.parquet) was made of, written into it: later stages join it to no other clips."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shards.errors import TableError
from stages.videos.settings import CropParams

_CLIPS, _CUT = b"clips", b"cut"
_DECIDING = ("clip_id", "media", "media_kind", "start_s", "end_s", "label")
"""What the crop stage asks of a clip. Ids alone stay the same where two lines of a corpus exchange their videos."""


def ledger_mark(clips: Iterable[Mapping[str, Any]], crop: CropParams) -> dict[bytes, bytes]:
    """Schema metadata of a ledger of the rows `clips` of clips.parquet, in their order, cut by `crop`."""
    digest = hashlib.sha256()
    for row in clips:
        digest.update(json.dumps([row[name] for name in _DECIDING]).encode() + b"\n")
    return {_CLIPS: digest.hexdigest().encode(), _CUT: _cut(crop).encode()}


def refuse_other_ledger(
    metadata: Mapping[bytes, bytes] | None,
    clips: Iterable[Mapping[str, Any]],
    crop: CropParams,
    clips_path: Path,
    crops_path: Path,
) -> None:
    """TableError where the ledger at `crops_path`, of such `metadata`, is of other clips, or does not say of which.

    Also where they were cut at another frame rate, which pixels do not tell, or another size.
    """
    told = metadata or {}
    again = "run `pipeline crop` again (what is unchanged comes from the cache)"
    if _CLIPS not in told or _CUT not in told:
        raise TableError(f"{crops_path} is of an earlier version, which did not note its clips; {again}")
    expected = ledger_mark(clips, crop)
    if told[_CLIPS] != expected[_CLIPS]:
        raise TableError(
            f"{crops_path} is not of the clips in {clips_path}: their ids, videos, times or labels differ; {again}"
        )
    if told[_CUT] != expected[_CUT]:
        raise TableError(
            f"the clips of {crops_path} were cut at {told[_CUT].decode()}, crop.target_fps and crop.size_px say "
            f"{_cut(crop)}; set them as they were, or {again}"
        )


def _cut(crop: CropParams) -> str:
    return f"{crop.target_fps:g} frames/s, {crop.size_px} px"
