"""`loader.unlabelled_share`: the share of an epoch's clips that have no label, of one or several packs."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shards.blend import IS_LABELLED
from shards.elastic_plan import PlanShape, Segment, plan_segments
from shards.errors import ConfigError, TrainingError
from shards.packs import Pack, Packs
from shards.plan import plan_epoch
from shards.plan_identity import PlanIdentity
from shards.planned_batches import dataset
from shards.samples import STREAM_COLUMNS
from shards.settings import DataPack, LoaderParams
from tests.support.packed import Packed, pack_clips, toy_clips


def table(*sizes: tuple[int, int], names: str = "abc") -> pa.Table:
    """Returns the table of packs with (labelled, unlabelled) clips; of one pack, without the column corpus."""
    rng = np.random.default_rng(1)
    rows = [
        (names[pack], number == 0, clip)
        for number in range(2)
        for pack, of in enumerate(sizes)
        for clip in range(of[number])
    ]
    found = pa.table(
        {
            "clip_id": [f"{pack}/{'l' if is_labelled else 'u'}{clip}" for pack, is_labelled, clip in rows],
            "num_frames": rng.integers(10, 100, len(rows)),
            "shard": [
                f"{pack}/{'train' if is_labelled else 'unlabelled'}-{clip // 5}.tar"
                for pack, is_labelled, clip in rows
            ],
            "corpus": pa.array([pack for pack, *_ in rows]).dictionary_encode(),
            "is_labelled": [is_labelled for _, is_labelled, _ in rows],
        }
    )
    return found if len(sizes) > 1 else found.drop_columns("corpus")


def visits(
    samples: pa.Table, params: LoaderParams, epoch: int, world_size: int = 1, **weights: float
) -> Counter[str]:
    """Returns how often an epoch visits each clip."""
    plans = [plan_epoch(samples, params, 8, epoch, world_size, rank, weights) for rank in range(world_size)]
    assert len({len(plan.batches) for plan in plans}) == 1
    rows = np.concatenate([batch for plan in plans for batch in plan.batches])
    assert len(set(rows.tolist())) == len(rows), "a visit is in one batch"
    return Counter(samples["clip_id"].take(pa.array(rows % samples.num_rows)).to_pylist())


def share_of(counts: Counter[str]) -> float:
    return sum(count for name, count in counts.items() if "/u" in name) / counts.total()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("num_unlabelled", [40, 400, 4000])
def test_every_labelled_clip_is_visited_once_and_unlabelled_ones_have_the_share(
    share: float, num_unlabelled: int
) -> None:
    samples, params = table((400, num_unlabelled)), LoaderParams(frame_budget=500, unlabelled_share=share)
    for epoch in range(2):
        counts = visits(samples, params, epoch)
        labelled = [counts[f"a/l{number}"] for number in range(400)]
        assert labelled == [1] * 400
        assert abs(share_of(counts) - share) < 0.005
        of_clip = [counts[f"a/u{number}"] for number in range(num_unlabelled)]
        assert max(of_clip) - min(of_clip) <= 1, "all unlabelled clips are visited equally often"


def test_over_the_epochs_all_unlabelled_clips_are_visited_equally_often() -> None:
    samples, params = table((50, 200)), LoaderParams(frame_budget=500, unlabelled_share=0.5)
    total: Counter[str] = Counter()
    for epoch in range(8):
        total += visits(samples, params, epoch)
    assert {total[f"a/u{number}"] for number in range(200)} == {2}


@pytest.mark.parametrize("epoch_clips", [0, 500])
@pytest.mark.parametrize("weights", [{}, {"a": 1.0, "b": 3.0}])
def test_several_packs_keep_their_shares_of_labelled_clips(
    epoch_clips: int, weights: dict[str, float]
) -> None:
    """Pack c has unlabelled clips only, and needs no weight; of the unlabelled ones, packs have a share by size."""
    samples = table((300, 0), (200, 100), (0, 300))
    params = LoaderParams(frame_budget=500, unlabelled_share=0.4, epoch_clips=epoch_clips)
    for epoch in range(2):
        counts = visits(samples, params, epoch, world_size=2, **weights)
        assert abs(share_of(counts) - 0.4) < 0.005
        assert not epoch_clips or epoch_clips - counts.total() in (0, 1)
        by_pack: Counter[str] = Counter()
        for name, count in counts.items():
            by_pack[name[:3]] += count
        share_b = weights["b"] / 4 if weights else 0.4
        assert by_pack["b/l"] / (by_pack["a/l"] + by_pack["b/l"]) == pytest.approx(share_b, abs=0.005)
        assert by_pack["c/u"] / (by_pack["b/u"] + by_pack["c/u"]) == pytest.approx(0.75, abs=0.01)


def test_the_unlabelled_clips_are_mixed_evenly_over_the_epoch() -> None:
    samples, params = table((400, 400)), LoaderParams(frame_budget=800, unlabelled_share=0.5, window_shards=4)
    plan = plan_epoch(samples, params, 8, 0)
    half = np.concatenate(plan.batches[: len(plan.batches) // 2])
    is_labelled = samples["is_labelled"].to_numpy()[half % samples.num_rows]
    assert abs(is_labelled.mean() - 0.5) < 0.06


def test_a_plan_is_a_pure_function_and_without_the_share_it_is_as_before() -> None:
    samples, params = table((60, 60)), LoaderParams(frame_budget=500, unlabelled_share=0.5)

    def listed(samples: pa.Table, params: LoaderParams, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in plan_epoch(samples, params, 8, epoch).batches]

    assert listed(samples, params, 2) == listed(samples, params, 2) != listed(samples, params, 3)
    assert "unlabelled_share" not in LoaderParams().recorded()


def test_an_epoch_keeps_its_visits_if_the_number_of_processes_changes() -> None:
    samples, params = table((60, 90), (30, 0)), LoaderParams(frame_budget=500, unlabelled_share=0.5)
    whole = visits(samples, params, 1)
    done: list[Segment] = []
    seen: list[int] = []
    for world_size, num_windows in ((3, 2), (1, 3), (2, None)):
        shape = PlanShape(world_size, 4, 1)
        plans = [
            plan_segments(samples, params, 1, shape, done, world_size, rank) for rank in range(world_size)
        ]
        windows = [window for plan in plans for window in plan.windows[:num_windows]]
        seen += [
            int(row) % samples.num_rows for window in windows for batch in window.batches for row in batch
        ]
        done.append(Segment(shape, num_windows or 0))
    assert Counter(samples["clip_id"].take(pa.array(seen)).to_pylist()) == whole


def test_an_epoch_without_an_unlabelled_clip_is_an_error_that_names_the_fix() -> None:
    samples = table((20, 20)).set_column(1, "num_frames", pa.array([10] * 20 + [300] * 20))
    params = LoaderParams(frame_budget=400, curriculum_epochs=2, curriculum_frames=20, unlabelled_share=0.5)
    with pytest.raises(
        TrainingError, match=r"epoch 0 has no unlabelled clip.*raise loader\.curriculum_frames"
    ):
        plan_epoch(samples, params, 8, 0)


# -- packs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, Packed]:
    """Two packs; the second also has unlabelled clips, of split `raw`."""
    folder = tmp_path_factory.mktemp("packs")
    raw = [
        (f"raw_{number}", "raw", clip, label)
        for number, (_, _, clip, label) in enumerate(toy_clips(6, 0, seed=9))
    ]
    return pack_clips(folder / "a", toy_clips(8, 2)), pack_clips(
        folder / "b", [*toy_clips(4, 2, seed=5), *raw]
    )


def packs_of(two: tuple[Packed, Packed], where: str = "") -> Packs:
    own = ({}, {"unlabelled": ("raw",)})
    return Packs(
        [
            Pack(name, one.samples, one.store, splits=splits)
            for name, one, splits in zip("ab", two, own, strict=True)
        ],
        where,
    )


HALF = LoaderParams(unlabelled_share=0.5)


def test_training_reads_the_unlabelled_clips_of_each_pack_only_with_a_share(
    two: tuple[Packed, Packed],
) -> None:
    packs = packs_of(two)
    assert packs.read_training(STREAM_COLUMNS, LoaderParams()).equals(packs.read("train", STREAM_COLUMNS))
    rows = packs.read_training(STREAM_COLUMNS, HALF)
    assert rows.slice(0, 12).drop_columns(IS_LABELLED.name).equals(packs.read("train", STREAM_COLUMNS))
    assert rows["clip_id"].to_pylist()[12:] == [f"b/raw_{number}" for number in range(6)]
    assert rows["is_labelled"].to_pylist() == [True] * 12 + [False] * 6


def test_a_share_without_unlabelled_clips_is_refused(two: tuple[Packed, Packed]) -> None:
    alone = Packs.single(two[0].samples, two[0].store)
    with pytest.raises(
        ConfigError, match=r"no clip is packed in split unlabelled; set the share to 0, or set corpus"
    ):
        alone.read_training(STREAM_COLUMNS, HALF)
    with pytest.raises(ConfigError, match="unlabelled_share must be 0"):
        dataset(two[0].samples, two[0].shards, batch_size=4, unlabelled_share=0.5)  # type: ignore[arg-type]


def test_other_unlabelled_clips_are_another_plan(two: tuple[Packed, Packed], tmp_path: Path) -> None:
    ours = packs_of(two).plan_identity(HALF, 4)
    assert PlanIdentity.from_dict(ours.as_dict()).differences(ours) == []
    raw = [
        (f"raw_{number}", "raw", clip, label)
        for number, (_, _, clip, label) in enumerate(toy_clips(5, 0, seed=3))
    ]
    again = pack_clips(tmp_path, [*toy_clips(4, 2, seed=5), *raw])
    other = packs_of((two[0], again)).plan_identity(HALF, 4)
    assert other.differences(ours) == ["the unlabelled clips differ: samples.parquet was packed again"]
    without = packs_of(two).plan_identity(LoaderParams(), 4)
    assert without.differences(ours) == ["loader.unlabelled_share is none, the checkpoint has 0.5"]
    assert "unlabelled" not in (without.blend or {})


def test_a_condition_selects_unlabelled_clips_too(two: tuple[Packed, Packed]) -> None:
    """A hidden label may be used by the condition, as any other column."""
    kept = packs_of(two, "clip_id <> 'raw_3' and clip_id <> 'train_001'")
    names = kept.read_training(STREAM_COLUMNS, HALF)["clip_id"].to_pylist()
    assert "b/raw_3" not in names and "b/train_001" not in names and len(names) == 15
    assert kept.left_out == {"a": (1, 8), "b": (1, 4)}


def test_a_pack_names_its_unlabelled_splits() -> None:
    entry = {"name": "a", "samples": "s.parquet", "shards": "shards"}
    assert DataPack.model_validate(entry).unlabelled == ("unlabelled",)
    with pytest.raises(ValueError, match="split test has two of the uses train, valid, test and unlabelled"):
        DataPack.model_validate({**entry, "unlabelled": ["test"]})
