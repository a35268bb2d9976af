"""`python -m benchmarks.blend` reads the same clips as one pack and as several."""

import io
from pathlib import Path

from rich.console import Console

from benchmarks.blend import bench_blend, print_blend_bench
from tests.support.packed import pack_clips, toy_clips


def test_a_tiny_run_gives_every_figure(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, toy_clips(15, 1), clips_a_shard=3)
    result = bench_blend(packed.samples, packed.shards, 3, 2, lambda _: None)
    assert result.num_clips == 15 and result.num_packs == 3
    assert min(*result.plan_clips_per_s.values(), *result.stream_clips_per_s.values()) > 0
    assert result.plan_ratio > 0 and result.stream_ratio > 0
    low, high = sorted((result.plan_ratio, result.stream_ratio))
    assert 0.5 * low <= result.ratio <= 2 * high
    text = io.StringIO()
    print_blend_bench(result, Console(file=text, width=100))
    assert "15 clips as one pack and as 3" in text.getvalue() and "stream" in text.getvalue()
