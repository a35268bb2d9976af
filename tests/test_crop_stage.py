"""The crop stage and its cache: every clip one row, nothing done twice, nothing lost."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards import schema
from shards.errors import ClipRejected, MachineError, TableError
from shards.files import read_table, table_from_rows, write_table
from shards.schema import MediaKind, Reason
from shards.settings import MachineParams
from stages import cache as cache_module
from stages import crop as crop_module
from stages.cache import ClipCache
from stages.crop import CropSummary, crop, resolve_media
from stages.cropping import Figures
from stages.settings import CorpusParams, CropParams
from tests.videos import write_audio, write_face, write_mouth

PARAMS = CropParams()


def clip_row(clip_id: str, media: str, **changes: Any) -> dict[str, Any]:
    row = dict.fromkeys(schema.CLIPS.names) | {
        "clip_id": clip_id,
        "split": "train",
        "media": media,
        "media_kind": "face",
        "text": "你好",
        "label": "你好",
    }
    return row | {"num_chars": len(changes.get("label", "你好"))} | changes


def write_clips(path: Path, rows: list[dict[str, Any]]) -> None:
    write_table(path, table_from_rows(rows, schema.CLIPS), schema.CLIPS)


class Run:
    """A corpus, its tables and a cache in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "corpus"
        self.root.mkdir()
        self.progress: list[tuple[int, int]] = []

    def __call__(self, workers: int = 2, params: CropParams = PARAMS) -> CropSummary:
        self.progress.clear()
        return crop(
            CorpusParams(root=str(self.root)),
            params,
            MachineParams(workers=workers, cache_dir=str(self.folder / "cache")),
            self.folder / "clips.parquet",
            self.folder / "crops.parquet",
            self.folder / "tracks.parquet",
            lambda done, total: self.progress.append((done, total)),
        )

    def rows(self, table: str = "crops") -> dict[str, dict[str, Any]]:
        rows = pq.read_table(self.folder / f"{table}.parquet").to_pylist()
        return {row["clip_id"]: row for row in rows}

    def tables(self) -> list[bytes]:
        return [(self.folder / f"{name}.parquet").read_bytes() for name in ("crops", "tracks")]


EXPECTED = {
    "face": None,
    "mouth": None,
    "kind_unknown": None,
    "same_video": None,
    "no_label": Reason.EMPTY_TEXT,
    "no_media": Reason.MISSING_FILE,
    "missing": Reason.MISSING_FILE,
    "folder": Reason.MISSING_FILE,
    "pipe": Reason.MISSING_FILE,
    "long_name": Reason.MISSING_FILE,
    "climbs": Reason.UNSAFE_PATH,
    "absolute": Reason.UNSAFE_PATH,
    "windows": Reason.UNSAFE_PATH,
    "link_out": Reason.UNSAFE_PATH,
    "empty": Reason.UNREADABLE,
    "garbage": Reason.UNREADABLE,
    "sound": Reason.NO_VIDEO,
    "cut": Reason.TRUNCATED,
    "dense": Reason.LABEL_TOO_LONG,
    "no_face": Reason.NO_FACE,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run over every kind of row, cropped once."""
    run = Run(tmp_path_factory.mktemp("stage"))
    root = run.root
    write_face(root / "face.mp4", 15)
    write_mouth(root / "mouth.mp4", 15)
    write_mouth(root / "texture.mp4", 15, seed=1, size=140)
    (root / "empty.mp4").write_bytes(b"")
    (root / "garbage.mp4").write_bytes(b"garbage" * 999)
    write_audio(root / "sound.wav").rename(root / "sound.mp4")
    whole = write_mouth(root / "cut.mkv", 60).read_bytes()
    (root / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    write_face(run.folder / "outside.mp4", 15)
    (root / "link.mp4").symlink_to(run.folder / "outside.mp4")
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe.mp4")
    rows = [
        clip_row("face", "face.mp4"),
        clip_row("no_label", "face.mp4", label=""),
        clip_row("mouth", "mouth.mp4", media_kind="mouth"),
        clip_row("missing", "nowhere.mp4", media_kind=None),
        clip_row("no_media", "", media_kind=None),
        clip_row("folder", "folder"),
        clip_row("pipe", "pipe.mp4"),
        clip_row("long_name", "x" * 5_000),
        clip_row("climbs", "../outside.mp4"),
        clip_row("absolute", str(root / "face.mp4")),
        clip_row("windows", "..\\outside.mp4"),
        clip_row("link_out", "link.mp4"),
        clip_row("empty", "empty.mp4", media_kind=None),
        clip_row("garbage", "garbage.mp4", media_kind=None),
        clip_row("sound", "sound.mp4"),
        clip_row("cut", "cut.mkv", media_kind="mouth"),
        clip_row("dense", "face.mp4", label="字" * 50),
        clip_row("kind_unknown", "mouth.mp4", media_kind=None),
        clip_row("no_face", "texture.mp4"),
        clip_row("same_video", "face.mp4"),
    ]
    write_clips(run.folder / "clips.parquet", rows)
    run.order = [row["clip_id"] for row in rows]  # type: ignore[attr-defined]
    run.first = run()  # type: ignore[attr-defined]
    run.first_tables = run.tables()  # type: ignore[attr-defined]
    run.first_progress = list(run.progress)  # type: ignore[attr-defined]
    return run


def test_every_clip_is_one_row_in_the_order_of_the_clips(run: Run) -> None:
    rows = run.rows()
    assert list(rows) == run.order  # type: ignore[attr-defined]
    assert {name: row["reason"] for name, row in rows.items()} == EXPECTED
    first = run.first  # type: ignore[attr-defined]
    assert first.num_ok + sum(first.rejected.values()) == len(EXPECTED)
    assert first.num_ok == 4
    assert sorted(run.first_progress) == [(i + 1, 20) for i in range(20)]  # type: ignore[attr-defined]
    assert "4 of 20 clips ok" in str(first)


def test_rejections_say_what_a_person_needs(run: Run) -> None:
    for name, row in run.rows().items():
        assert (row["status"] == "ok") == (row["reason"] is None) == (row["detail"] is None)
        if row["reason"] is not None:
            assert len(row["detail"]) > 15, name
            assert row["bytes"] is None or name == "dense"
    rows = run.rows()
    assert "nowhere.mp4" in rows["missing"]["detail"]
    assert rows["no_face"]["source_width"] == 140
    assert rows["no_face"]["detection_rate"] == 0
    assert rows["dense"]["num_frames"] == 15


def test_figures_of_the_clips_that_are_ok(run: Run) -> None:
    face, mouth = run.rows()["face"], run.rows()["mouth"]
    assert [name for name, value in face.items() if value is None] == ["reason", "detail"]
    assert (face["num_frames"], face["num_faces"], face["landmarked_frames"]) == (15, 1, 15)
    assert mouth["track_key"] is None
    assert mouth["num_faces"] is None
    assert mouth["clip_key"] != face["clip_key"] == run.rows()["same_video"]["clip_key"]
    assert mouth["bytes"] == 128 + 15 * 96 * 96


def test_tracks(run: Run) -> None:
    tracks = run.rows("tracks")
    assert list(tracks) == ["face", "same_video"]
    assert len(tracks["face"]["transform"]) == 6 * 15
    assert tracks["face"]["frame_index"] == list(range(15)) == tracks["face"]["landmarked"]
    read_table(run.folder / "tracks.parquet", schema.TRACKS, "pipeline crop")


def test_a_rerun_takes_all_from_the_cache_and_writes_the_same_bytes(run: Run) -> None:
    (run.folder / "crops.parquet").unlink()
    again = run(workers=1)
    assert run.tables() == run.first_tables  # type: ignore[attr-defined]
    # rejections for what a file holds are kept as well; those for its path or header are looked at anew
    assert again.num_from_cache == 4 + len({"sound", "cut", "dense", "no_face"})
    assert not {p.suffix for p in (run.folder / "cache").rglob("*") if p.is_file()} - {
        ".npz",
        ".sqlite",
        ".log",
    }


def test_a_lost_cache_gives_the_same_tables(run: Run) -> None:
    shutil.rmtree(run.folder / "cache")
    assert run().num_from_cache <= 4  # videos named twice
    assert run.tables() == run.first_tables  # type: ignore[attr-defined]


def test_no_clips_at_all(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_clips(tmp_path / "clips.parquet", [])
    assert run().num_ok == 0
    assert run.rows() == {}


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="pipeline ingest"):
        Run(tmp_path)()


# -- processes that die -------------------------------------------------------------------------------


def poisoned(clip: Any) -> Any:
    if clip.clip_id == "poison":
        os._exit(9)
    return crop_module._Done(crop_module._crop_row(clip, Figures(), None, None), None, from_cache=False)


def buggy(clip: Any) -> Any:
    return 1 // (clip.clip_id != "c")


def full_disk(clip: Any) -> Any:
    raise OSError(28, "No space left on device", "cache/x")


def some(*clip_ids: str) -> list[Any]:
    return [crop_module._Clip(name, "root", f"{name}.mp4", "face", "字", 1) for name in clip_ids]


def test_a_process_that_dies_costs_one_clip(tmp_path: Path) -> None:
    names = [*"abcdefg", "poison", *"hijklmnop"]
    done = {
        clip.clip_id: d.crop_row
        for clip, d in crop_module._crop_all(some(*names), poisoned, 2, tmp_path / "log")
    }
    assert sorted(done) == sorted(names)
    assert [name for name, row in done.items() if row["status"] == "rejected"] == ["poison"]
    assert done["poison"]["reason"] == Reason.CRASHED
    assert "poison.mp4" in done["poison"]["detail"]


def test_a_bug_ends_the_run_and_names_the_clip(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(crop_module._crop_all(some("a", "b", "c"), buggy, 1, tmp_path / "log"))
    assert "while cropping clip c (c.mp4)" in caught.value.__notes__


def test_a_full_disk_is_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="disk is full"):
        list(crop_module._crop_all(some("a"), full_disk, 1, tmp_path / "log"))


def test_processes_that_cannot_even_start_are_no_clips_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop_module, "_start_worker", dies_at_once)
    with pytest.raises(MachineError, match="pipeline doctor"):
        list(crop_module._crop_all(some("a", "b"), poisoned, 1, tmp_path / "log"))


def dies_at_once(native_log: Path) -> None:
    os._exit(1)


# -- paths --------------------------------------------------------------------------------------------


def test_links_inside_the_corpus_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").touch()
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a" / "x.mp4")
    root = tmp_path / "linked_root"
    root.symlink_to(tmp_path, target_is_directory=True)
    assert resolve_media(root, "b.mp4").is_file()
    assert resolve_media(tmp_path, "a/x.mp4").is_file()
    for media in ("a/../../x.mp4", "/etc/hostname", "C:\\x.mp4", "a\0b", "loop"):
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(ClipRejected):
            resolve_media(tmp_path, media)


# -- the cache ----------------------------------------------------------------------------------------


@pytest.fixture
def mouth(tmp_path: Path) -> Path:
    return write_mouth(tmp_path / "mouth.mp4", 12)


@pytest.fixture
def cache(tmp_path: Path) -> ClipCache:
    return ClipCache(tmp_path / "cache")


def entries(cache: ClipCache, kind: str = "clips") -> Iterator[Path]:
    return (cache.folder / kind).glob("*/*.npz")


def test_a_clip_comes_back_as_it_was_made(cache: ClipCache, mouth: Path) -> None:
    made = cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    kept = cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    assert (made.from_cache, kept.from_cache) == (False, True)
    assert (made.figures, made.num_bytes, made.keys) == (kept.figures, kept.num_bytes, kept.keys)
    clip_THW = cache.read_clip(made.keys.clip)
    assert clip_THW is not None
    assert np.array_equal(clip_THW, cache_module.crop_video(mouth, MediaKind.MOUTH, PARAMS).clip_THW)
    assert cache.read_clip("0" * 64) is None


def test_any_parameter_is_in_the_key(cache: ClipCache, mouth: Path) -> None:
    keys = {cache.keys(mouth, kind, PARAMS).clip for kind in MediaKind}
    for name, value in PARAMS.model_dump().items():
        keys.add(cache.keys(mouth, MediaKind.MOUTH, PARAMS.model_copy(update={name: value + 1})).clip)
    assert len(keys) == 2 + len(PARAMS.model_dump())


def test_code_versions_are_in_the_keys(
    cache: ClipCache, mouth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.keys(mouth, MediaKind.FACE, PARAMS)
    monkeypatch.setattr(cache_module, "CODE_VERSION", 99)
    cropped_otherwise = cache.keys(mouth, MediaKind.FACE, PARAMS)
    assert cropped_otherwise.clip != before.clip
    assert cropped_otherwise.track == before.track
    monkeypatch.setattr(cache_module, "TRACK_VERSION", 99)
    assert cache.keys(mouth, MediaKind.FACE, PARAMS).track != before.track


def test_another_scale_needs_no_new_landmarks(
    cache: ClipCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = write_face(tmp_path / "face.mp4", 12)
    cache.crop(face, MediaKind.FACE, PARAMS)

    def never(path: Path, params: CropParams) -> None:
        raise AssertionError("landmarked again")

    monkeypatch.setattr(cache_module, "landmark_video", never)
    larger = cache.crop(face, MediaKind.FACE, PARAMS.model_copy(update={"size_px": 128}))
    assert not larger.from_cache
    clip_THW = cache.read_clip(larger.keys.clip)
    assert clip_THW is not None
    assert clip_THW.shape == (12, 128, 128)


def test_content_counts_not_name_or_time(cache: ClipCache, mouth: Path) -> None:
    first = cache.keys(mouth, MediaKind.MOUTH, PARAMS)
    copy = Path(shutil.copy(mouth, mouth.with_name("copy.mp4")))
    os.utime(mouth, (1, 1))
    assert cache.keys(copy, MediaKind.MOUTH, PARAMS) == first == cache.keys(mouth, MediaKind.MOUTH, PARAMS)
    write_mouth(mouth, 12, seed=5)
    assert cache.keys(mouth, MediaKind.MOUTH, PARAMS) != first


def test_a_source_is_read_once(cache: ClipCache, mouth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.keys(mouth, MediaKind.MOUTH, PARAMS)
    monkeypatch.setattr(cache_module, "sha256_of", None)
    assert cache.keys(mouth, MediaKind.MOUTH, PARAMS) == first


@pytest.mark.parametrize("harm", ["empty", "cut", "garbage", "foreign", "flipped"])
def test_a_damaged_entry_is_named_and_made_anew(
    cache: ClipCache, mouth: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    (entry,) = entries(cache)
    payload = bytearray(entry.read_bytes())
    at = payload.index(b"\x93NUMPY") + 200
    payload[at] ^= 0xFF
    harmed = {
        "empty": b"",
        "cut": payload[:-100],
        "garbage": b"garbage" * 99,
        "foreign": mouth.read_bytes(),
        "flipped": payload,
    }
    entry.write_bytes(harmed[harm])
    with caplog.at_level(logging.WARNING):
        again = cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    assert not again.from_cache
    assert str(entry) in caplog.text
    assert again.figures == made.figures
    assert cache.crop(mouth, MediaKind.MOUTH, PARAMS).from_cache


def test_a_flipped_picture_is_not_handed_out(
    cache: ClipCache, mouth: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = cache.crop(mouth, MediaKind.MOUTH, PARAMS).keys.clip
    (entry,) = entries(cache)
    payload = bytearray(entry.read_bytes())
    payload[len(payload) // 2] ^= 1
    entry.write_bytes(payload)
    assert cache.read_clip(key) is None
    assert str(entry) in caplog.text


def test_pickles_are_refused(cache: ClipCache, mouth: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    (entry,) = entries(cache)
    np.savez(entry, outcome=np.array([{"a": 1}], dtype=object), clip=np.array([print], dtype=object))
    assert not cache.crop(mouth, MediaKind.MOUTH, PARAMS).from_cache


def test_a_damaged_memo_only_costs_time(
    cache: ClipCache, mouth: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = cache.keys(mouth, MediaKind.MOUTH, PARAMS)
    (cache.folder / "content.sqlite").write_bytes(b"no database" * 500)
    assert cache.keys(mouth, MediaKind.MOUTH, PARAMS) == keys
    assert "content.sqlite" in caplog.text


def test_rejections_are_kept(cache: ClipCache, tmp_path: Path) -> None:
    short = write_mouth(tmp_path / "short.mp4", 3)
    made, kept = (cache.crop(short, MediaKind.MOUTH, PARAMS) for _ in range(2))
    assert kept.from_cache
    assert made.rejection is not None
    assert kept.rejection is not None
    assert (kept.rejection.reason, kept.rejection.detail) == (made.rejection.reason, made.rejection.detail)
    assert kept.rejection.reason is Reason.TOO_SHORT
    assert kept.figures == made.figures
