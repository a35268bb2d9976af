"""Shards of every codec, read by plain webdataset and Hugging Face datasets: the clips and labels that were packed."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from model.settings import TextParams
from shards.codec import decode_clip
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from stages.clips.cache import ClipCache
from stages.crop import crop
from stages.ingest import ingest
from stages.pack import pack
from stages.settings import CorpusParams, CropParams
from tests.test_pack import Packing, make

# webdataset leaves the closing of shards to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
LOSSLESS = ("raw", "ffv1")
MEMBER = {"raw": "npy", "jpeg": "jpg", "h264": "mp4", "ffv1": "mkv"}
Sample = tuple[np.ndarray, dict[str, Any]]


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Packing:
    packing = make(tmp_path_factory.mktemp("others"), 8)
    for codec in MEMBER:
        packing.pack(codec, codec=codec)
    return packing


def cached_clips(crops: Path, cache: Path) -> dict[str, np.ndarray]:
    """What went into the pack."""
    kept = {
        row["clip_id"]: ClipCache(cache).read_clip(row["clip_key"], (row["num_frames"], 96, 96))
        for row in pq.read_table(crops).to_pylist()
        if row["status"] == "ok"
    }
    return {clip_id: clip for clip_id, clip in kept.items() if clip is not None}


def check(
    samples: Iterator[Sample], codec: str, clips: dict[str, np.ndarray], rows: list[dict[str, Any]]
) -> None:
    """The samples are those of `rows`, each once, and look like `clips`."""
    by_id = {row["clip_id"]: row for row in rows}
    seen = []
    for clip_THW, about in samples:
        row = by_id[about["clip_id"]]
        seen.append(about["clip_id"])
        for name in ("label", "speaker", "topic", "split", "num_frames", "codec"):
            assert about[name] == row[name]
        assert about["fps"] == 25
        true = clips[about["clip_id"]]
        assert (clip_THW.shape, clip_THW.dtype) == (true.shape, np.uint8)
        if codec in LOSSLESS:
            assert np.array_equal(clip_THW, true)
        else:
            assert np.abs(clip_THW.astype(int) - true).mean() < 2
    assert sorted(seen) == sorted(by_id)


def clip_of(value: Any, codec: str, num_frames: int) -> np.ndarray:
    """The clip as others see its member: an array, one tall picture, or bytes of a video."""
    if codec == "raw":
        return np.asarray(value, np.uint8)
    if codec == "jpeg":
        picture_HW = np.asarray(value)
        return picture_HW.reshape(num_frames, -1, picture_HW.shape[1])
    assert isinstance(value, bytes)
    return decode_clip(value, codec, num_frames)


@pytest.mark.parametrize("codec", MEMBER)
def test_plain_webdataset(packing: Packing, codec: str) -> None:
    import webdataset

    shards = sorted(str(path) for path in (packing.folder / codec).rglob("*.tar"))
    assert len(shards) > 2

    def samples() -> Iterator[Sample]:
        # its own decoders: .npy and .json by default, a picture by PIL as gray levels
        for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("l8"):
            about = sample["json"]
            assert sample["__key__"] == about["clip_id"]
            assert set(sample) - {"__key__", "__url__", "__local_path__"} == {MEMBER[codec], "json"}
            yield clip_of(sample[MEMBER[codec]], codec, about["num_frames"]), about

    clips = cached_clips(packing.tables[1], packing.folder / "cache")
    check(samples(), codec, clips, packing.rows(codec))


@pytest.mark.parametrize("codec", MEMBER)
def test_hugging_face_datasets(
    packing: Packing, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = packing.folder / codec
    files = {"train": str(folder / "train" / "*.tar"), "unseen": str(folder / "unseen-2" / "*.tar")}
    clips = cached_clips(packing.tables[1], packing.folder / "cache")
    for name, split in (("train", "train"), ("unseen", "unseen-2")):
        loaded = datasets.load_dataset(
            "webdataset", data_files=files, split=name, streaming=True, cache_dir=str(tmp_path)
        )
        if codec in ("h264", "ffv1"):
            loaded = loaded.cast_column(MEMBER[codec], datasets.Video(decode=False))

        def samples(loaded: Any = loaded) -> Iterator[Sample]:
            for sample in loaded:
                value, about = sample[MEMBER[codec]], sample["json"]
                value = value["bytes"] if codec in ("h264", "ffv1") else value
                yield clip_of(value, codec, about["num_frames"]), about

        check(samples(), codec, clips, [row for row in packing.rows(codec) if row["split"] == split])


@pytest.mark.realdata
def test_real_mouths(realdata: Path, tmp_path: Path) -> None:
    """GRID, three clips, through ingest, crop, pack and plain webdataset; errors as docs/benchmarks.md has them."""
    import webdataset

    videos = sorted((realdata / "grid" / "video").glob("*/*"))[::200][:3]
    (tmp_path / "clips.csv").write_text(
        "clip_id,split,media,text\n"
        + "".join(f"{path.stem},train,{path.relative_to(realdata / 'grid')},bin\n" for path in videos),
        "utf-8",
    )
    corpus = CorpusParams(kind="table", root=str(realdata / "grid"), table=str(tmp_path / "clips.csv"))
    machine = MachineParams(workers=1, cache_dir=str(tmp_path / "cache"))
    tables = [tmp_path / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    ingest(corpus, TextParams(), CropParams(), tables[0])
    crop(corpus, CropParams(), machine, *tables)
    clips = cached_clips(tables[1], tmp_path / "cache")
    assert len(clips) == 3
    limits = {"raw": 0.0, "jpeg": 1.0, "h264": 1.5, "ffv1": 0.0}
    for codec, limit in limits.items():
        store = FolderStore(tmp_path / codec)
        pack(
            corpus,
            CropParams(),
            PackParams(codec=codec),
            machine,
            *tables,
            store,
            tmp_path / "samples.parquet",
        )
        shard = str(tmp_path / codec / "train" / "train-000000.tar")
        for sample in webdataset.WebDataset(shard, shardshuffle=False):
            payload, true = sample[MEMBER[codec]], clips[sample["__key__"]]
            decoded = decode_clip(payload, codec, len(true))
            assert np.abs(decoded.astype(int) - true).mean() <= limit
            if codec == "jpeg":
                picture = PIL.Image.open(io.BytesIO(payload))
                assert (picture.mode, picture.size) == ("L", (96, 96 * len(true)))
