"""Untrusted files: broken variants of real encoded videos and zips, through the whole crop stage.

Nothing may end the run, and every input ends as one row: `ok`, or rejected with a reason of the enum.
"""

import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from model.settings import TextParams
from shards.schema import Reason, Status
from shards.settings import MachineParams
from stages.crop import crop
from stages.ingest import ingest
from stages.settings import CorpusParams, CropParams, KindSetting
from tests.support.videos import write_audio, write_mouth, write_video

pytestmark = pytest.mark.usefixtures("forked_workers")

NUM_FRAMES = 20
PARAMS = CropParams(
    min_frames=2,
    max_frames=60,
    max_source_pixels=360 * 288,
    max_source_s=5.0,
    max_source_mb=2.0,
    max_chars_per_s=100.0,
    min_mouth_width_px=0.0,
)
STREAMS = {
    "h264.mp4": ("libx264", {"preset": "veryfast", "bf": "2"}, {}),
    "h264_index_first.mp4": ("libx264", {"preset": "veryfast"}, {"movflags": "faststart"}),
    "h264.mkv": ("libx264", {"preset": "veryfast"}, {}),
    "h264.ts": ("libx264", {"preset": "veryfast"}, {}),
    "hevc.mp4": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}, {}),
    "mpeg1.mpg": ("mpeg1video", {}, {}),
    "mpeg4.avi": ("mpeg4", {}, {}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, {}),
    "mjpeg.mkv": ("mjpeg", {}, {}),
}
VARIANTS_A_VIDEO = 40
VARIANTS_A_ZIP = 40

Harm = Callable[[bytes, np.random.Generator], bytes]


def flipped(payload: bytes, rng: np.random.Generator) -> bytes:
    """A few bits, anywhere."""
    harmed = bytearray(payload)
    for place in rng.integers(0, len(harmed), rng.integers(1, 20)):
        harmed[place] ^= 1 << int(rng.integers(8))
    return bytes(harmed)


def flipped_header(payload: bytes, rng: np.random.Generator) -> bytes:
    """Bytes at the start or end, where containers keep their index."""
    harmed = bytearray(payload)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(0, min(800, len(harmed))))
        harmed[place if rng.integers(2) else -1 - place] = int(rng.choice([0, 0x7F, 0xFF, rng.integers(256)]))
    return bytes(harmed)


def cut(payload: bytes, rng: np.random.Generator) -> bytes:
    return payload[: int(rng.integers(0, len(payload)))]


def beheaded(payload: bytes, rng: np.random.Generator) -> bytes:
    return payload[int(rng.integers(0, len(payload))) :]


def spliced(payload: bytes, rng: np.random.Generator) -> bytes:
    """A stretch left out, doubled, or written over another."""
    start, end, place = (int(i) for i in np.sort(rng.integers(0, len(payload), 3)))
    piece = payload[start:end]
    choices = (payload[:start] + payload[end:], payload[:end] + payload[start:], payload[:place] + piece)
    return choices[int(rng.integers(3))]


def with_noise(payload: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(0, len(payload)))
    noise = rng.bytes(int(rng.integers(1, 400)))
    return payload[:start] + noise + payload[start + len(noise) :]


HARMS: tuple[Harm, ...] = (flipped, flipped_header, cut, beheaded, spliced, with_noise)


def harmed(payload: bytes, number: int, seed: int) -> bytes:
    """Variant 0 is the file as it is."""
    if number == 0:
        return payload
    rng = np.random.default_rng([seed, number])
    return HARMS[number % len(HARMS)](payload, rng)


def mouths(folder: Path) -> Iterator[Path]:
    """Ready mouth clips, so that every variant is decoded and cut in milliseconds."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 1)  # detailed: most bytes are pictures, not headers
    frames = [np.roll(texture, 3 * i, axis=0) for i in range(NUM_FRAMES)]
    for name, (codec, options, container_options) in STREAMS.items():
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        yield write_video(
            folder / name,
            frames,
            codec=codec,
            pix_fmt=pix_fmt,
            options=options,
            container_options=container_options,
        )


def cropped(root: Path, names: list[str], media_kind: KindSetting = "mouth") -> dict[str, dict]:
    """Rows of crops.parquet of a corpus of these media, ingested and cropped by two workers."""
    (root / "clips.csv").write_text(
        "clip_id,split,media,text\n"
        + "".join(f"c{number:04d},train,{media},好\n" for number, media in enumerate(names)),
        "utf-8",
    )
    corpus = CorpusParams(kind="table", root=str(root), media_kind=media_kind)
    tables = [root.parent / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    ingest(corpus, TextParams(), PARAMS, tables[0])
    crop(corpus, PARAMS, MachineParams(workers=2, cache_dir=str(root.parent / "cache")), *tables)
    rows = pq.read_table(tables[1]).to_pylist()
    assert [row["clip_id"] for row in rows] == [f"c{number:04d}" for number in range(len(names))]
    reasons = {reason.value for reason in Reason} - {Reason.CRASHED.value, Reason.TIMEOUT.value}
    for row, name in zip(rows, names, strict=True):
        if row["status"] == Status.OK:
            assert (row["reason"], row["detail"]) == (None, None)
            assert 2 <= row["num_frames"] <= 60
        else:
            assert row["reason"] in reasons, (name, row["reason"], row["detail"])
            assert row["detail"]
    return dict(zip(names, rows, strict=True))


def test_broken_videos(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    names = []
    for seed, path in enumerate(mouths(tmp_path)):
        payload = path.read_bytes()
        for number in range(VARIANTS_A_VIDEO):
            # now and then under the name of another container
            name = f"{number:03d}_{path.name}" if number % 7 else f"{number:03d}_{path.stem}{seed}.mpg"
            (root / name).write_bytes(harmed(payload, number, seed))
            names.append(name)
    rows = cropped(root, names)
    counts = Counter(row["reason"] for row in rows.values())
    whole = [row for name, row in rows.items() if name.startswith("000_")]
    assert [row["status"] for row in whole] == ["ok"] * len(STREAMS), whole
    # the harm is neither too weak nor too strong to reach the code behind the container
    assert counts[None] > 20
    assert counts[Reason.TRUNCATED] > 20
    assert counts[Reason.UNREADABLE] > 20


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_broken_zips(tmp_path: Path, method: int) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w", method) as archive:
        for seed in range(2):
            archive.write(write_mouth(tmp_path / f"{seed}.mp4", NUM_FRAMES, seed, size=64), f"x/{seed}.mp4")
    payload = whole.read_bytes()
    names = []
    for number in range(VARIANTS_A_ZIP):
        (root / f"{number:03d}.zip").write_bytes(harmed(payload, number, 99 + method))
        names += [f"{number:03d}.zip!x/{seed}.mp4" for seed in range(2)]
    rows = cropped(root, names)
    assert [rows[f"000.zip!x/{seed}.mp4"]["status"] for seed in range(2)] == ["ok"] * 2
    counts = Counter(row["reason"] for row in rows.values())
    assert counts[None] > 2
    assert counts[Reason.UNREADABLE] > 20
    # what is ok is one of the two whole videos, never a broken one: each byte is under a checksum
    good = {rows[f"000.zip!x/{seed}.mp4"]["clip_key"] for seed in range(2)}
    for name, row in rows.items():
        if row["status"] == Status.OK:
            assert row["clip_key"] in good
            assert row["clip_key"] == rows[f"000{name[3:]}"]["clip_key"]


def test_hostile_inputs(tmp_path: Path) -> None:
    """Files made to escape, to fill memory or to be taken for something else: each a row with its reason."""
    root = tmp_path / "corpus"
    root.mkdir()
    payload = write_mouth(tmp_path / "a.mp4", NUM_FRAMES).read_bytes()
    large = write_mouth(tmp_path / "large.mkv", 3, size=400).read_bytes()
    long = write_mouth(tmp_path / "long.mkv", 140, size=32).read_bytes()
    link = zipfile.ZipInfo("link.mp4")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(root / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("fine.mp4", "../climbs.mp4", "wrong.txt"):
            archive.writestr(name, payload)
        for name, content in {
            "large.mkv": large,
            "long.mkv": long,
            "empty.mp4": b"",
            "text.mp4": b"no" * 999,
        }.items():
            archive.writestr(name, content)
            (root / name).write_bytes(content)
        archive.writestr("bomb.mp4", bytes(9_000_000))
        archive.writestr(link, b"../a.mp4")
        archive.write(write_audio(tmp_path / "a.wav"), "sound.mp4")
    (root / "sound.mp4").write_bytes((tmp_path / "a.wav").read_bytes())
    (root / "wrong.txt").write_bytes(payload)
    (root / "link.mp4").symlink_to(tmp_path / "a.mp4")
    (root / "bomb.mp4").touch()
    os.truncate(root / "bomb.mp4", 9_000_000)  # no room taken on disk
    expected = {
        "b.zip!fine.mp4": None,
        "b.zip!../climbs.mp4": Reason.UNSAFE_PATH,
        "b.zip": Reason.UNREADABLE,
        "b.zip!nowhere.mp4": Reason.MISSING_FILE,
        "gone.zip!a.mp4": Reason.MISSING_FILE,
    }
    for name, reason in {
        "wrong.txt": None,
        "large.mkv": Reason.OVERSIZED,
        "long.mkv": Reason.OVERSIZED,
        "bomb.mp4": Reason.OVERSIZED,
        "empty.mp4": Reason.UNREADABLE,
        "text.mp4": Reason.UNREADABLE,
        "sound.mp4": Reason.NO_VIDEO,
        "link.mp4": Reason.UNSAFE_PATH,
    }.items():
        expected |= {name: reason, f"b.zip!{name}": reason}
    rows = cropped(root, list(expected))
    assert {name: row["reason"] for name, row in rows.items()} == expected


@pytest.mark.realdata
def test_broken_grid_videos(realdata: Path, tmp_path: Path) -> None:
    """Real faces, so that the landmarker sees broken pictures too."""
    root = tmp_path / "corpus"
    root.mkdir()
    names = []
    for seed, video in enumerate(["s1/bbaf2n.mp4", "s26/lbbo3n.mpg"]):
        path = shortened(realdata / "grid" / "video" / video, tmp_path / Path(video).name)
        payload = path.read_bytes()
        for number in range(20):
            names.append(f"{number:03d}_{path.name}")
            (root / names[-1]).write_bytes(harmed(payload, number, 7 + seed))
    rows = cropped(root, names)
    counts = Counter(row["reason"] for row in rows.values())
    assert [row["status"] for name, row in rows.items() if name.startswith("000_")] == ["ok"] * 2
    assert counts[None] > 2
    assert len(counts) > 2


def shortened(path: Path, copy: Path) -> Path:
    """The first packets of a video, as they are."""
    with av.open(str(path)) as source, av.open(str(copy), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if number >= NUM_FRAMES or packet.dts is None:
                break
            packet.stream = out
            target.mux(packet)
    return copy
