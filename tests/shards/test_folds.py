"""Folds of the training clips: they part the clips, are drawn by a seed, and are other epoch plans."""

from dataclasses import replace

import pytest

from shards.errors import ConfigError
from shards.folds import Fold
from shards.packs import Pack, Packs
from shards.settings import LoaderParams
from tests.support.packed import Packed, pack_clips, toy_clips


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, Packed]:
    folder = tmp_path_factory.mktemp("packs")
    return pack_clips(folder / "a", toy_clips(13, 3)), pack_clips(folder / "b", toy_clips(7, 2, seed=5))


def packs_of(two: tuple[Packed, ...], where: str = "", fold: Fold | None = None) -> Packs:
    packs = [Pack(name, packed.samples, packed.store) for name, packed in zip("ab", two, strict=False)]
    return Packs(packs if len(packs) > 1 else [replace(packs[0], name="")], where, fold)


def clips(packs: Packs, split: str = "train") -> list[str]:
    return packs.read(split, ["clip_id"])["clip_id"].to_pylist()


def test_each_clip_is_held_out_once_and_trained_on_in_all_other_folds(two: tuple[Packed, Packed]) -> None:
    everything, held_out = clips(packs_of(two)), []
    for number in range(3):
        fold = Fold(number, 3, is_held_out=False)
        learnt = clips(packs_of(two, fold=fold))
        others = clips(packs_of(two, fold=replace(fold, is_held_out=True)))
        assert sorted(learnt + others) == sorted(everything)
        assert others == [clip_id for clip_id in everything if clip_id in set(others)], (
            "the order of the table"
        )
        assert [sum(clip_id.startswith(pack) for clip_id in others) for pack in "ab"] in (
            [4, 2],
            [5, 2],
            [4, 3],
            [5, 3],
        )
        held_out += others
    assert sorted(held_out) == sorted(everything)


def test_a_seed_draws_other_folds_and_valid_stays_whole(two: tuple[Packed, Packed]) -> None:
    drawn = [clips(packs_of(two, fold=Fold(0, 3, is_held_out=True, seed=seed))) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert clips(packs_of(two, fold=Fold(0, 3, is_held_out=False)), "valid") == clips(packs_of(two), "valid")


def test_each_fold_is_a_plan_of_its_own_and_a_condition_holds_in_it(two: tuple[Packed, Packed]) -> None:
    for packed in (two, two[:1]):
        folds = [packs_of(packed, fold=Fold(number, 2, is_held_out=False)) for number in range(2)]
        hashes = {packs.plan_identity(LoaderParams(), 4).hash for packs in (packs_of(packed), *folds)}
        assert len(hashes) == 3
    where = "num_frames > 12"
    kept = set(clips(packs_of(two, where)))
    for is_held_out in (False, True):
        fold = Fold(1, 2, is_held_out)
        assert set(clips(packs_of(two, where, fold))) == kept & set(clips(packs_of(two, fold=fold)))


def test_more_folds_than_clips_are_refused(two: tuple[Packed, Packed]) -> None:
    with pytest.raises(ConfigError, match=r"b has 7 training clips, fewer than 8 folds; lower --folds"):
        clips(packs_of(two, fold=Fold(0, 8, is_held_out=True)))
