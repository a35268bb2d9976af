"""What a ledger (crops.parquet) was made of, written into it: later stages join it to no other clips."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shards.errors import TableError
from shards.files import fingerprint
from stages.settings import CropParams

_MARK = b"clips"
_RATE = b"target_fps"
_DECIDING = ("clip_id", "media", "media_kind", "start_s", "end_s", "label")
"""What the crop stage asks of a clip. Ids alone stay the same where two lines of a corpus exchange their videos."""


def ledger_mark(clips: Iterable[Mapping[str, Any]]) -> dict[bytes, bytes]:
    """Schema metadata of a ledger of the rows `clips` of clips.parquet, in their order."""
    return {_MARK: fingerprint("ledger", [[row[name] for name in _DECIDING] for row in clips]).encode()}


def refuse_other_clips(
    metadata: Mapping[bytes, bytes] | None,
    clips: Iterable[Mapping[str, Any]],
    clips_path: Path,
    crops_path: Path,
) -> None:
    """TableError where the ledger at `crops_path`, of such `metadata`, was made of other clips, or tells no clips."""
    if (metadata or {}).get(_MARK) != ledger_mark(clips)[_MARK]:
        raise TableError(
            f"{crops_path} is not of the clips in {clips_path}: their ids, videos, times or labels differ; run "
            "`pipeline crop` again (what is unchanged comes from the cache)"
        )


def rate_mark(crop: CropParams) -> dict[bytes, bytes]:
    """Schema metadata of a ledger: the frame rate of its clips, which pixels do not tell."""
    return {_RATE: repr(crop.target_fps).encode()}


def refuse_other_rate(metadata: Mapping[bytes, bytes] | None, crop: CropParams, crops_path: Path) -> None:
    """TableError where the ledger at `crops_path`, of such `metadata`, is of clips of another frame rate."""
    told = (metadata or {}).get(_RATE)
    if told is not None and told != rate_mark(crop)[_RATE]:
        raise TableError(
            f"the clips of {crops_path} were cut at {float(told):g} frames/s, crop.target_fps is "
            f"{crop.target_fps:g}; set it as it was, or run `pipeline crop` again"
        )
