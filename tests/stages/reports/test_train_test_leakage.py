"""Tests for speakers and pictures that a split shares with the training clips."""

from pathlib import Path

import pytest

from shards.files import table_from_rows, write_table
from shards.packs import Packs
from shards.schema import SAMPLES
from shards.settings import LoaderParams
from shards.store import FolderStore
from stages.reports.train_test_leakage import seen_in_training

Clips = list[tuple[str, str | None, str]]


def samples(folder: Path, clips: Clips) -> Packs:
    """Writes a pack's samples from (split, speaker, pictures); ids are c0, c1, …."""
    numbers: dict[str, object] = {
        name: 0 for name in SAMPLES.names if name.endswith(("offset", "size", "frames", "chars"))
    }
    texts = dict.fromkeys(("shard", "codec", "label"), "x")
    rows = [
        numbers
        | texts
        | {"clip_id": f"c{i}", "split": split, "speaker": speaker, "sha256": sha, "topic": None}
        for i, (split, speaker, sha) in enumerate(clips)
    ]
    write_table(folder / "samples.parquet", table_from_rows(rows, SAMPLES), SAMPLES)
    return Packs.single(folder / "samples.parquet", FolderStore(folder))


def test_speakers_are_those_of_packed_training_clips(tmp_path: Path) -> None:
    speakers = [("train", "b"), ("train", "a"), ("train", None), ("test", "a"), ("test", None), ("test", "b")]
    speakers += [("test", "a"), ("valid", "c")]
    packs = samples(tmp_path, [(*pair, str(i)) for i, pair in enumerate(speakers)])
    found = {
        split: seen_in_training(packs, split, LoaderParams()).speakers for split in ("test", "valid", "train")
    }
    assert found == {"test": ("a", "b"), "valid": (), "train": ("a", "b")}
    assert seen_in_training(packs, "valid", LoaderParams()).warnings() == []
    (warning,) = seen_in_training(packs, "test", LoaderParams()).warnings()
    assert warning.startswith("Speakers in training: 2 of the speakers of split test (a, b)")


@pytest.mark.parametrize(
    "clips",
    [
        [("train", None, "1"), ("test", None, "2")],
        [("train", "a", "1"), ("test", None, "2")],
        [("train", None, "1"), ("test", "a", "2")],
    ],
)
def test_unnamed_speakers_are_unknown_and_not_unshared(tmp_path: Path, clips: Clips) -> None:
    seen = seen_in_training(samples(tmp_path, clips), "test", LoaderParams())
    assert seen.speakers is None and seen.num_speakers is None
    (warning,) = seen.warnings()
    assert "the training clips may show people of split" in warning


def test_clips_with_the_same_pictures_are_found_for_any_speaker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips: Clips = [
        ("train", "a", "1"),
        ("train", "a", "2"),
        ("valid", "b", "3"),
        ("test", "c", "3"),
        ("test", "d", "2"),
        ("test", "c", "1"),
    ]
    packs = samples(tmp_path, clips)
    seen = seen_in_training(packs, "test", LoaderParams())
    assert (seen.clips, seen.num_clips, seen.num_speakers) == (("c4", "c5"), 3, 0)
    (warning,) = seen.warnings()
    assert warning.startswith("Clips in training: 2 of the 3 clips of split test") and "(c4, c5)" in warning
    assert [record.getMessage() for record in caplog.records] == [warning]
    assert seen_in_training(packs, "valid", LoaderParams()).clips == ()
    assert seen_in_training(packs, "train", LoaderParams()).clips == ()


def test_a_person_of_unlabelled_clips_that_were_trained_on_is_seen_in_training(tmp_path: Path) -> None:
    packs = samples(tmp_path, [("train", "a", "1"), ("unlabelled", "b", "2"), ("test", "b", "2")])
    without, with_share = (
        seen_in_training(packs, "test", LoaderParams(unlabelled_share=share)) for share in (0.0, 0.5)
    )
    assert (without.speakers, without.clips) == ((), ())
    assert (with_share.speakers, with_share.clips) == (("b",), ("c2",))
