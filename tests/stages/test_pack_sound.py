"""`pack.audio`: the sound of each clip in its sample, and readers of packs with and without it."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds

import shards
from shards.errors import ShardError
from shards.samples import STREAM_COLUMNS, read_samples
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from shards.stream import ShardStream
from shards.verify import verify
from shards.verify_foreign import verify_foreign
from stages.cards.card import CARD, METADATA
from stages.settings import CorpusParams
from stages.videos.media import Source
from stages.videos.sound import sound_of_clip
from tests.support.crop_runs import clip_row, forked_workers, write_clips
from tests.support.packing import PARAMS, Packing
from tests.support.sounds import chirps, write_sound, write_talk

MACHINE = MachineParams(num_workers=0)


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Packing:
    """Videos with their own sound, with a file, with a missing file and without sound; packs of them."""
    packing = Packing(tmp_path_factory.mktemp("sound"))
    root = packing.folder / "corpus"
    root.mkdir()
    write_talk(root / "own.mkv", 30, chirps(1.2, seed=1))
    write_talk(root / "late.mkv", 30, chirps(1, seed=2), sound_starts_s=0.4)
    write_talk(root / "mute.mkv", 30, np.zeros(100, np.float32))
    (root / "wav").mkdir()
    write_sound(root / "wav" / "anna_mute.wav", chirps(1.2, seed=3))
    rows = [
        clip_row("own", "own.mkv", media_kind="mouth"),
        clip_row("late", "late.mkv", media_kind="mouth"),
        clip_row("mute", "mute.mkv", media_kind="mouth", speaker="anna"),
        clip_row("file", "mute.mkv", media_kind="mouth") | {"audio": "wav/anna_mute.wav"},
        clip_row("part", "own.mkv", media_kind="mouth", start_s=0.4, end_s=1.0),
        clip_row("lost", "mute.mkv", media_kind="mouth") | {"audio": "../outside.wav"},
    ]
    write_clips(packing.tables[0], rows)
    with forked_workers():
        packing.crop()
    return packing


@pytest.fixture(scope="module")
def packed(packing: Packing) -> Packing:
    packing.pack("sound", audio=True, shard_mb=9)
    packing.pack("plain", shard_mb=9)
    return packing


def members(packing: Packing, name: str) -> dict[str, bytes]:
    (path,) = (packing.folder / name).rglob("train-*.tar")
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_each_sample_has_its_sound_after_the_metadata(packed: Packing) -> None:
    found, rows = members(packed, "sound"), {row["clip_id"]: row for row in packed.rows("sound")}
    names = [*found]
    assert len(names) == 18
    root = packed.folder / "corpus"
    for number in range(0, 18, 3):
        clip_id = names[number].partition(".")[0]
        assert names[number : number + 3] == [f"{clip_id}.npy", f"{clip_id}.json", f"{clip_id}.audio.npy"]
        sound_TKM = np.load(io.BytesIO(found[f"{clip_id}.audio.npy"]), allow_pickle=False)
        about = json.loads(found[f"{clip_id}.json"])
        assert sound_TKM.shape == (about["num_frames"], 4, 40) and sound_TKM.dtype == np.float16
        has_sound = clip_id not in ("mute", "lost")
        assert about["audio"] == ("present" if has_sound else "silent")
        assert (rows[clip_id]["audio_sha256"] is not None) == has_sound
        if not has_sound:
            assert (sound_TKM == np.float16(np.log(1e-10))).all()
            continue
        video = {"late": "late.mkv", "file": "mute.mkv"}.get(clip_id, "own.mkv")
        source = Source(root / video, start_s=0.4, end_s=1.0) if clip_id == "part" else Source(root / video)
        file = Source(root / "wav/anna_mute.wav") if clip_id == "file" else None
        np.testing.assert_array_equal(sound_TKM, sound_of_clip(source, file, about["num_frames"], PARAMS))
    whole, part = (np.load(io.BytesIO(found[f"{name}.audio.npy"])) for name in ("own", "part"))
    np.testing.assert_allclose(
        part[:-1].astype(float), whole[10 : 10 + len(part) - 1].astype(float), atol=0.6
    )


def test_the_summary_counts_silent_clips_and_the_log_names_them(
    packed: Packing, caplog: pytest.LogCaptureFixture
) -> None:
    summary = packed.pack("logged", audio=True, shard_mb=9)
    assert summary.num_silent == 2 and str(summary).endswith(", 2 without sound")
    (line,) = [record.getMessage() for record in caplog.records if "pack.audio" in record.getMessage()]
    assert line.startswith("pack.audio: 2 of 6 clips have no usable sound and count as silent (")
    assert "mute: mute.mkv is silent during the clip" in line
    assert "lost: ../outside.wav leads out of the corpus" in line
    assert packed.files("logged") == packed.files("sound")  # same input, same bytes


def test_a_pattern_names_the_files_of_sound(packing: Packing) -> None:
    packing.corpus = CorpusParams(root=packing.corpus.root, audio="wav/{speaker}_{name}.wav")
    try:
        summary = packing.pack("pattern", audio=True)
    finally:
        packing.corpus = CorpusParams(root=packing.corpus.root)
    rows = {row["clip_id"]: row["audio_sha256"] for row in packing.rows("pattern")}
    assert summary.num_silent == 4  # only anna's file exists
    assert {clip_id for clip_id, sha256 in rows.items() if sha256} == {"mute", "file"}
    assert rows["mute"] == rows["file"]


def test_without_sound_the_bytes_are_those_of_before(packed: Packing) -> None:
    """A pack with sound differs only in what is added."""
    plain, sound = members(packed, "plain"), members(packed, "sound")
    assert "audio_sha256" not in (packed.folder / "plain.parquet").read_bytes().decode("latin-1")
    assert [*plain] == [name for name in sound if not name.endswith(".audio.npy")]
    for name, content in plain.items():
        if name.endswith(".json"):
            assert "audio" not in json.loads(content)
            content = json.dumps(
                json.loads(content) | {"audio": json.loads(sound[name])["audio"]}, sort_keys=True
            )
            assert json.loads(content) == json.loads(sound[name])
        else:
            assert sound[name] == content
    assert "sound" not in (packed.folder / "plain" / CARD).read_text("utf-8")
    assert "audio" not in (packed.folder / "plain" / METADATA).read_text("utf-8")
    assert "`<clip_id>.audio.npy`" in (packed.folder / "sound" / CARD).read_text("utf-8")
    metadata = json.loads((packed.folder / "sound" / METADATA).read_text("utf-8"))
    assert "*.audio.npy" in [entry["includes"] for entry in metadata["distribution"]]


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_the_stream_reads_the_sound_only_when_asked(packed: Packing, codec: str) -> None:
    packed.pack(codec, audio=True, codec=codec, shard_mb=9)
    store, table = FolderStore(packed.folder / codec), packed.folder / f"{codec}.parquet"
    samples = read_samples(table, "train", [*STREAM_COLUMNS, "audio_sha256"])
    rows = [np.arange(4), np.arange(4, 6)]
    heard = list(ShardStream(store, samples, MACHINE, audio=True).batches(rows))
    unheard = list(ShardStream(store, samples, MACHINE).batches(rows))
    found = members(packed, codec)
    for batch, other in zip(heard, unheard, strict=True):
        assert other.audio_BTKM is None and other.has_audio_B is None
        assert torch.equal(batch.video_BTHW, other.video_BTHW)
        assert batch.audio_BTKM is not None and batch.has_audio_B is not None
        assert batch.audio_BTKM.shape == (*batch.video_BTHW.shape[:2], 4, 40)
        for clip_id, n, sound_TKM, has_sound in zip(
            batch.clip_ids, batch.num_frames_B, batch.audio_BTKM, batch.has_audio_B, strict=True
        ):
            assert bool(has_sound) == (clip_id not in ("mute", "lost"))
            expected = np.load(io.BytesIO(found[f"{clip_id}.audio.npy"])) if has_sound else 0
            np.testing.assert_array_equal(sound_TKM[:n].numpy(), expected)
            assert not sound_TKM[n:].any()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_other_readers_read_packs_with_and_without_sound(packed: Packing) -> None:
    found = members(packed, "sound")
    for name in ("sound", "plain"):
        store, table = FolderStore(packed.folder / name), packed.folder / f"{name}.parquet"
        checked = verify_foreign(verify(store, table, MACHINE, decode=True), store, table)
        assert checked.problems == () and checked.num_samples == 6
        samples = list(shards.webdataset(packed.folder / name))
        assert len(samples) == 6
        for sample in samples:
            assert ("audio_TKM" in sample) == (name == "sound")
            if name == "sound":
                expected = np.load(io.BytesIO(found[f"{sample['clip_id']}.audio.npy"]))
                np.testing.assert_array_equal(sample["audio_TKM"], expected)
        batches = list(shards.dataset(table, packed.folder / name, batch_size=3, frame_budget=1_000))
        assert sum(len(batch["clip_ids"]) for batch in batches) == 6
    (path,) = (packed.folder / "sound").rglob("train-*.tar")
    for sample in wds.WebDataset(str(path), shardshuffle=False).decode():
        assert sample["audio.npy"].shape == (len(sample["npy"]), 4, 40)


DAMAGE = {
    "a changed value": (b".audio.npy", 512 + 128 + 7, b"\x11", "the sha256 of the sound differs"),
    "another shape": (b".audio.npy", 512 + 64, b"9", "sha256 of the sound differs"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_verify_names_the_clip_whose_sound_is_damaged(packed: Packing, tmp_path: Path, name: str) -> None:
    after, offset, value, what = DAMAGE[name]
    store, table = damaged(packed, tmp_path, b"own" + after, offset, value)
    problems = verify(store, table, MACHINE).problems
    assert any(what in problem.what and problem.clip_ids == ("own",) for problem in problems)


def test_a_damaged_sound_is_an_error_that_names_the_clip(packed: Packing, tmp_path: Path) -> None:
    store, table = damaged(packed, tmp_path, b"own.audio.npy", 512 + 1, b"X")
    samples = read_samples(table, "train", [*STREAM_COLUMNS, "audio_sha256"])
    rows = [np.arange(6)]
    with pytest.raises(ShardError, match=r"the sample of clip own is damaged: the sound is not an \.npy"):
        list(ShardStream(store, samples, MACHINE, audio=True).batches(rows))
    with pytest.raises(ShardError, match="own is damaged: the sound is not"):
        list(shards.webdataset(store.folder))
    (batch,) = ShardStream(store, samples, MACHINE, audio=True, quarantine=True).batches(rows)
    assert [bad.clip_id for bad in batch.bad] == ["own"]
    assert batch.audio_BTKM is not None and len(batch.audio_BTKM) == 5
    assert len(list(ShardStream(store, samples, MACHINE).batches(rows))) == 1


def damaged(
    packed: Packing, folder: Path, member: bytes, offset: int, value: bytes
) -> tuple[FolderStore, Path]:
    """Returns a copy of the pack with other bytes at `offset` after the tar header of `member`."""
    for path in (packed.folder / "sound").rglob("*"):
        if path.is_file():
            target = folder / "shards" / path.relative_to(packed.folder / "sound")
            target.parent.mkdir(parents=True, exist_ok=True)
            content = bytearray(path.read_bytes())
            if path.suffix == ".tar":
                at = content.index(member) + offset
                content[at : at + len(value)] = value
            target.write_bytes(content)
    (folder / "samples.parquet").write_bytes((packed.folder / "sound.parquet").read_bytes())
    return FolderStore(folder / "shards"), folder / "samples.parquet"


@pytest.mark.parametrize("pattern", ["{folder}/a.wav", "a/{", "{0}.wav", "{name.x}"])
def test_a_wrong_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"may have only the fields \{clip_id\}, \{speaker\} and \{name\}"):
        CorpusParams(root="", audio=pattern)


def test_older_records_of_parameters_stay_the_same() -> None:
    recorded: dict[str, Any] = PackParams().recorded()
    assert "audio" not in recorded and PackParams(audio=True).recorded()["audio"] is True
