"""`python -m benchmarks.copies` on real videos: re-encoded copies are found, other sentences are not."""

from pathlib import Path

import pytest

from benchmarks import copies as bench
from benchmarks.reencoded import REENCODINGS


@pytest.mark.realdata
def test_copies_of_real_videos_are_found(
    realdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["MPEG-4 part 2, 100 kbit/s, half the size", "all of these"]
    monkeypatch.setattr(bench, "REENCODINGS", {kind: REENCODINGS[kind] for kind in kinds})
    result = bench.bench_copies(realdata / "grid" / "video" / "s1", tmp_path, 8, 2, 200, lambda line: None)
    assert {
        kind: (recall.num_clips, recall.found) for kind, recall in result.recalls.items()
    } == dict.fromkeys(kinds, (2, 2))
    assert (result.num_videos, result.num_pairs, result.false_alarms) == (8, 28, 0)
    assert result.most_similar < 0.85 < min(recall.least for recall in result.recalls.values())
