"""`python -m benchmarks.plan` agrees with the real plans of all ranks."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import plan as bench
from benchmarks.synthetic_catalogue import write_catalogue
from shards.plan import plan_epoch
from shards.samples import read_samples
from shards.settings import LoaderParams


def test_the_figures_match_the_plans_of_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "RANKS_A_NODE", 2)
    write_catalogue(tmp_path, 3_000)
    measured = bench.measure(tmp_path / "samples.parquet", world_size=6)
    samples = read_samples(tmp_path / "samples.parquet", "train")
    lengths, shards = samples["num_frames"].to_numpy(), np.array(samples["shard"].to_pylist())
    plans = [plan_epoch(samples, LoaderParams(), bench.BATCH_SIZE, 0, 6, rank) for rank in range(6)]
    of_rank = [set(shards[np.concatenate(plan.batches)]) for plan in plans]
    of_node = [of_rank[node] | of_rank[node + 1] for node in (0, 2, 4)]
    num_shards = len(set(shards))
    assert (measured.num_clips, measured.num_shards) == (samples.num_rows, num_shards)
    assert measured.ranks_a_shard == pytest.approx(sum(map(len, of_rank)) / num_shards)
    assert measured.shards_a_rank == pytest.approx(sum(map(len, of_rank)) / 6)
    assert measured.nodes_a_shard == pytest.approx(sum(map(len, of_node)) / num_shards)
    assert measured.nodes_a_shard < measured.ranks_a_shard < 1.3 and measured.nodes_a_shard_at_random > 2.9
    padded = np.array([[lengths[batch].max() * len(batch) for batch in plan.batches] for plan in plans])
    assert measured.slowest == pytest.approx((padded.max(axis=0) / padded.mean(axis=0)).mean())
    assert measured.padding_share == pytest.approx(1 - lengths.sum() / padded.sum())


def test_the_benchmark_measures_in_fresh_processes_and_writes_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "WORLD_SIZES", (2,))
    (result,) = bench.bench_plan([300], tmp_path, lambda _: None)
    assert 280 < result.num_clips < 320 and result.world_size == 2 and 50 < result.peak_mb < 2_000
    written = json.loads((tmp_path / "results.json").read_text())
    assert [bench.PlanBench(**values) for values in written["results"]] == [result]


def test_a_blend_of_one_catalogue_has_as_many_visits_as_its_weights(tmp_path: Path) -> None:
    write_catalogue(tmp_path, 1_000)
    samples = read_samples(tmp_path / "samples.parquet", "train")
    measured = bench.measure(tmp_path / "samples.parquet", 1, num_packs=3)
    assert measured.num_packs == 3 and measured.num_clips == 3 * samples.num_rows
    assert measured.left_out == 0
