"""Draws a miniature of each corpus layout: ready mouth clips in the folders and with the lists of the original."""

import gzip
import json
from pathlib import Path
from typing import Any

from stages.corpora import Transcript, read_corpus
from stages.settings import CorpusParams
from tests.support.videos import write_mouth

FRAMES = 24
"""Frames of each video, at 25 frames/s."""


def video(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mouth(path, FRAMES, seed)


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def objects(path: Path, *rows: dict[str, Any]) -> Path:
    return text(path, *(json.dumps(row, ensure_ascii=False) for row in rows))


def cmlr(root: Path) -> CorpusParams:
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    clips = [
        ("train", "s1", "section_1_000.80_002.91", "你好"),
        ("train", "s2", "section_2_010.00_011.50", "我们"),
        ("val", "s1", "section_1_003.00_004.00", "好的"),
        ("test", "s2", "section_3_030.36_032.65", "你们"),
    ]
    for seed, (name, speaker, section, words) in enumerate(clips):
        lists[name].append(f"{speaker}/20170121_{section}")
        video(root / "video" / speaker / "20170121" / f"{section}.mp4", seed)
        text(root / "text" / speaker / "20170121" / f"{section}.txt", words, "ni hao", f"{words} 0.10 0.60")
    for name, lines in lists.items():
        text(root / f"{name}.csv", *lines)
    return CorpusParams(kind="cmlr", root=str(root), speaker_overlap="warn")


def cnvsrc(root: Path) -> CorpusParams:
    text(root / "char_units.txt", "<unk> 1", "我 2", "你 3", "好 4", "们 5")
    rows = [
        ("train", "cncvs", "news/n001/video/n001_00001_001.mp4", "3 4"),
        ("train", "cncvs", "speech/s00001/video/s00001_001_00001.mp4", "2 5 4"),
        ("valid", "cnvsrc-multi", "dev/video/80100246.mp4", "2 5"),
        ("test", "cnvsrc-single", "eval/video/00023065.mp4", "3 5 1"),
    ]
    for seed, (split, dataset, path, units) in enumerate(rows):
        video(root / dataset / path, seed)
        with (root / dataset / f"{split}.csv").open("a", encoding="utf-8") as file:
            file.write(f"{dataset},{path},{FRAMES},{units}\n")
    return CorpusParams(kind="cnvsrc", root=str(root))


def _lrs_clip(path: Path, seed: int, words: str, timed: bool = False) -> None:
    video(path.with_suffix(".mp4"), seed)
    lines = [f"Text:  {words}", "Conf:  4"]
    if timed:
        times = [
            f"{word} {0.3 * i + 0.05:.2f} {0.3 * i + 0.2:.2f} 7.1" for i, word in enumerate(words.split())
        ]
        lines += ["", "WORD START END ASDSCORE", *times]
    text(path.with_suffix(".txt"), *lines)


def lrs3(root: Path) -> CorpusParams:
    _lrs_clip(root / "pretrain" / "0Fi83BHQsMA" / "00001", 0, "SO WE GO", timed=True)
    _lrs_clip(root / "trainval" / "0Fi83BHQsMA" / "50001", 1, "HELLO")
    _lrs_clip(root / "trainval" / "-a_b-c_d-e_" / "50002", 2, "IT'S ON")
    _lrs_clip(root / "test" / "zzzzzzzzzzz" / "00003", 3, "WE GO")
    return CorpusParams(kind="lrs3", root=str(root), valid_fraction=0.3)


def lrs2(root: Path) -> CorpusParams:
    base = root / "mvlrs_v1"
    _lrs_clip(base / "pretrain" / "5535415699068794046" / "00001", 0, "SO WE GO", timed=True)
    _lrs_clip(base / "main" / "5535415699068794046" / "00002", 1, "HELLO")
    _lrs_clip(base / "main" / "6331559613336179781" / "00003", 2, "IT'S ON")
    _lrs_clip(base / "main" / "6332062124509813446" / "00004", 3, "WE GO")
    text(root / "pretrain.txt", "5535415699068794046/00001")
    text(root / "train.txt", "5535415699068794046/00002")
    text(root / "val.txt", "6331559613336179781/00003")
    text(root / "test.txt", "6332062124509813446/00004 NF")
    return CorpusParams(kind="lrs2", root=str(root))


def manifest(root: Path) -> CorpusParams:
    """NeMo for train, lhotse's cuts for valid, its supervisions, packed, for test."""
    for seed, name in enumerate(("one", "two", "cut", "last")):
        video(root / "clips" / f"{name}.mp4", seed)
    folder = root / "manifests"
    objects(
        folder / "train_manifest.json",
        {"audio_filepath": "clips/one.mp4", "text": "hello", "duration": 0.96, "speaker": "anna"},
        {"video_filepath": "clips/two.mp4", "offset": 0.0, "duration": 0.48, "text": "so", "speaker": 7},
        {"video_filepath": "clips/two.mp4", "offset": 0.48, "duration": 0.48, "text": "we", "speaker": 7},
    )
    recording = {
        "id": "rec",
        "sources": [{"type": "file", "channels": [0], "source": "clips/cut.mp4"}],
        "duration": 0.96,
    }
    objects(
        folder / "cuts_dev.jsonl",
        {
            "id": "cut-1",
            "start": 0.2,
            "duration": 0.76,
            "channel": 0,
            "type": "MonoCut",
            "supervisions": [
                {
                    "id": "sup-1",
                    "start": 0.0,
                    "duration": 0.4,
                    "text": "it's",
                    "speaker": "bob",
                    "gender": "M",
                }
            ],
            "recording": recording,
        },
    )
    supervision = {"id": "sup-2", "recording_id": "rec-2", "start": 0.0, "duration": 0.96, "text": "go"}
    other = {"id": "rec-2", "sources": [{"type": "file", "channels": [0], "source": "clips/last.mp4"}]}
    for name, row in (("supervisions", supervision), ("recordings", other)):
        payload = gzip.compress(json.dumps(row).encode())
        (folder / f"mini_{name}_test.jsonl.gz").write_bytes(payload)
    return CorpusParams(kind="manifest", root=str(root), table="manifests/*.json*")


def kaldi(root: Path) -> CorpusParams:
    for seed, name in enumerate(("one", "two", "three")):
        video(root / "media" / f"{name}.mp4", seed)
    train, dev, test = (root / "data" / name for name in ("train", "dev", "test_clean"))
    text(train / "wav.scp", "rec1 media/one.mp4")
    text(train / "segments", "anna-1 rec1 0.00 0.48", "anna-2 rec1 0.48 -1")
    text(train / "text", "anna-1 so we", "anna-2 go")
    text(train / "utt2spk", "anna-1 anna", "anna-2 anna")
    text(dev / "video.scp", "bob.1 media/two.mp4")
    text(dev / "wav.scp", "bob.1 sph2pipe two.sph |")
    text(dev / "text", "bob.1 hello")
    text(dev / "utt2spk", "bob.1 bob")
    text(test / "wav.scp", "x1 media/three.mp4")
    text(test / "text", "x1 it's")
    text(test / "utt2spk", "x1 x1")
    return CorpusParams(kind="kaldi", root=str(root), table="data/*")


LAYOUTS = {
    "cmlr": cmlr,
    "cnvsrc": cnvsrc,
    "lrs2": lrs2,
    "lrs3": lrs3,
    "manifest": manifest,
    "kaldi": kaldi,
}


def read_layout(kind: str, root: Path, **values: Any) -> list[Transcript]:
    """Reads a miniature, also after a change of its files."""
    table = {"manifest": "manifests/*.json*", "kaldi": "data/*"}.get(kind, "clips.csv")
    values = {"table": table, "valid_fraction": 0.3, **values}
    return read_corpus(CorpusParams(kind=kind, root=str(root), **values))  # type: ignore[arg-type]
