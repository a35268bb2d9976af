"""Plain webdataset and Hugging Face datasets read the packed clips and labels of shards of every codec."""

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
from tests.support.crop_runs import clip_row, write_clips
from tests.support.packing import Packing, make
from tests.support.videos import write_mouth

# webdataset closes shards only by garbage collection
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
    """Returns the clips that were packed."""
    kept = {
        row["clip_id"]: ClipCache(cache).read_clip(row["clip_key"], (row["num_frames"], 96, 96))
        for row in pq.read_table(crops).to_pylist()
        if row["status"] == "ok"
    }
    return {clip_id: clip for clip_id, clip in kept.items() if clip is not None}


def check(
    samples: Iterator[Sample], codec: str, clips: dict[str, np.ndarray], rows: list[dict[str, Any]]
) -> None:
    """Asserts that the samples are those of `rows`, each once, with the content of `clips`."""
    by_id = {row["clip_id"]: row for row in rows}
    seen = []
    for clip_THW, about in samples:
        row = by_id[about["clip_id"]]
        seen.append(about["clip_id"])
        for name in ("label", "speaker", "topic", "split", "num_frames", "codec"):
            assert about[name] == ("" if row[name] is None else row[name])
        assert about["fps"] == 25
        true = clips[about["clip_id"]]
        assert (clip_THW.shape, clip_THW.dtype) == (true.shape, np.uint8)
        if codec in LOSSLESS:
            assert np.array_equal(clip_THW, true)
        else:
            assert np.abs(clip_THW.astype(int) - true).mean() < 2
    assert sorted(seen) == sorted(by_id)


def clip_of(value: Any, codec: str, num_frames: int) -> np.ndarray:
    """Returns the clip from the member as other readers give it: an array, a tall image, or video bytes."""
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
        # decoders of webdataset: .npy and .json by default, images by PIL as gray levels
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


TYPES = {
    "clip_id": str,
    "codec": str,
    "fps": float,
    "label": str,
    "num_frames": int,
    "speaker": str,
    "split": str,
    "topic": str,
}
"""Types of the fields in the JSON of a sample."""
BATCH = 3


@pytest.fixture(scope="module")
def half_known(tmp_path_factory: pytest.TempPathFactory) -> Packing:
    """Clips of one length in several shards; the first ones have no topic, and some no speaker."""
    packing = Packing(tmp_path_factory.mktemp("half_known"))
    root = packing.folder / "corpus"
    root.mkdir()
    write_mouth(root / "mouth.mp4", 12)
    rows = [
        clip_row(f"m{i}", "mouth.mp4", media_kind="mouth", speaker="anna" if i % 2 else None)
        for i in range(9)
    ]
    write_clips(packing.tables[0], rows)
    packing.crop()
    packing.pack("order", shard_mb=0.3)
    last = packing.rows("order")[-1]["clip_id"]
    write_clips(
        packing.tables[0], [row | {"topic": "KJ" if row["clip_id"] == last else None} for row in rows]
    )
    packing.crop()
    packing.pack("shards", shard_mb=0.3)
    assert [row["topic"] for row in packing.rows("shards")] == [None] * 8 + ["KJ"]
    assert {row["speaker"] for row in packing.rows("shards")} == {None, "anna"}
    return packing


def shards_of(packing: Packing) -> list[str]:
    shards = sorted(str(path) for path in (packing.folder / "shards").rglob("*.tar"))
    assert len(shards) > 1
    return shards


@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets_where_the_first_samples_lack_a_topic(
    half_known: Packing, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    loaded = datasets.load_dataset(
        "webdataset",
        data_files=shards_of(half_known),
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path),
    )
    # datasets derives the types from the first five samples
    kinds = {str: "string", int: "int64", float: "float64"}
    assert {name: kind.dtype for name, kind in loaded.features["json"].items()} == {
        name: kinds[kind] for name, kind in TYPES.items()
    }
    found = [sample["json"] for sample in loaded]
    assert [about["topic"] for about in found] == [""] * 8 + ["KJ"]
    assert [about["speaker"] for about in found] == [
        row["speaker"] or "" for row in half_known.rows("shards")
    ]


def test_webdataset_in_batches(half_known: Packing) -> None:
    import webdataset

    samples = webdataset.WebDataset(shards_of(half_known), shardshuffle=False).decode()
    batches = list(samples.to_tuple("npy", "json").batched(BATCH))
    assert [clips.shape for clips, _ in batches] == [(BATCH, 12, 96, 96)] * 3
    abouts = [about for _, of_batch in batches for about in of_batch]
    assert len(abouts) == 9
    for about in abouts:
        assert {name: type(value) for name, value in about.items()} == TYPES


def test_torchs_loader_with_its_default_collate(half_known: Packing) -> None:
    import torch
    import webdataset

    samples = webdataset.WebDataset(shards_of(half_known), shardshuffle=False).decode()
    batches = list(torch.utils.data.DataLoader(samples, batch_size=BATCH))
    assert [tuple(batch["npy"].shape) for batch in batches] == [(BATCH, 12, 96, 96)] * 3
    fields = {name: [value for batch in batches for value in batch["json"][name]] for name in TYPES}
    for row in half_known.rows("shards"):
        place = fields["clip_id"].index(row["clip_id"])
        for name in ("label", "speaker", "topic", "num_frames"):
            assert fields[name][place] == ("" if row[name] is None else row[name])


@pytest.mark.realdata
def test_real_mouths(realdata: Path, tmp_path: Path) -> None:
    """GRID, three clips, through ingest, crop, pack and plain webdataset; errors as in docs/benchmarks.md."""
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
