"""Stores a hash of its inputs in the ledger (crops.parquet), so that later stages reject it for other clips."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shards.errors import TableError
from stages.settings import CropParams

_CLIPS, _CUT = b"clips", b"cut"
_DECIDING = ("clip_id", "media", "media_kind", "start_s", "end_s", "label")
"""The columns that the crop stage uses. Not only ids: two lines of a corpus may exchange their videos."""


def ledger_mark(clips: Iterable[Mapping[str, Any]], crop: CropParams) -> dict[bytes, bytes]:
    """Returns metadata of a ledger of the rows `clips` of clips.parquet, in this order, cut by `crop`."""
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
    """Raises TableError where the ledger at `crops_path`, with this `metadata`, is of other clips, or names none.

    Also where they were cropped at another frame rate, which the pixels do not show, or another size.
    """
    stored = metadata or {}
    again = "run `pipeline crop` again (unchanged clips come from the cache)"
    if _CLIPS not in stored or _CUT not in stored:
        raise TableError(
            f"{crops_path} was written by an earlier version, without a hash of its clips; {again}"
        )
    expected = ledger_mark(clips, crop)
    if stored[_CLIPS] != expected[_CLIPS]:
        raise TableError(
            f"{crops_path} was not made from {clips_path}: ids, videos, times or labels of clips differ; {again}"
        )
    if stored[_CUT] != expected[_CUT]:
        raise TableError(
            f"the clips of {crops_path} were cut at {stored[_CUT].decode()}, but crop.target_fps and crop.size_px say "
            f"{_cut(crop)}; restore these settings, or {again}"
        )


def _cut(crop: CropParams) -> str:
    return f"{crop.target_fps:g} frames/s, {crop.size_px} px"
