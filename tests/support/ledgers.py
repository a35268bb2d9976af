"""A small cropped corpus, and synthetic crops.parquet tables of any size, for the page of `pipeline qc`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.files import read_table, table_from_rows, write_table
from shards.schema import CLIPS, CROPS, TRACKS, Reason
from shards.settings import MachineParams
from stages.crop import crop
from stages.qc.pages import QcSummary, qc
from stages.settings import CorpusParams, CropParams
from tests.support.crop_runs import clip_row, forked_workers, write_clips
from tests.support.report_figures import HOSTILE
from tests.support.videos import numbered, write_face, write_mouth, write_video

PARAMS = CropParams()
FIGURES = {
    "detection_rate": (0.8, 1.0),
    "mouth_width_px": (16.0, 90.0),
    "yaw_deg": (0.0, 45.0),
    "jitter_px": (0.0, 3.0),
    "mouth_motion": (0.0, 0.8),
    "sharpness": (1.0, 900.0),
    "mean_luma": (20.0, 230.0),
    "duration_s": (0.4, 40.0),
}
Row = dict[str, Any]


@dataclass
class Corpus:
    """A folder with `corpus`, `cache` and the three tables; `clips` and `crops` are rows of the tables."""

    folder: Path
    clips: list[Row]
    crops: list[Row]

    @property
    def tables(self) -> tuple[Path, Path, Path]:
        clips, crops, tracks = (self.folder / f"{name}.parquet" for name in ("clips", "crops", "tracks"))
        return clips, crops, tracks

    @property
    def machine(self) -> MachineParams:
        return MachineParams(workers=1, cache_dir=str(self.folder / "cache"))

    def page(self, name: str = "qc.html", params: CropParams = PARAMS, **options: Any) -> str:
        self.summary: QcSummary = qc(
            CorpusParams(root=str(self.folder / "corpus")),
            params,
            self.machine,
            *self.tables,
            self.folder / name,
            **options,
        )
        return (self.folder / name).read_text("utf-8")

    def write(self, clips: list[Row], crops: list[Row]) -> None:
        self.clips, self.crops = clips, crops
        write_clips(self.tables[0], clips)
        write_table(self.tables[1], table_from_rows(crops, CROPS), CROPS)


def cropped(folder: Path) -> Corpus:
    """Crops a face, three mouth videos, a video of five frames and a garbage file."""
    root = folder / "corpus"
    root.mkdir()
    write_face(root / "face.mp4", 12)
    write_video(root / "numbered.mp4", (numbered(i) for i in range(30)))
    write_video(root / "brief.mp4", (numbered(i) for i in range(5)))
    (root / "garbage.mp4").write_bytes(bytes(range(256)) * 20)
    rows = [clip_row("face", "face.mp4", speaker="anna", label="今天好")]
    for i in range(3):
        write_mouth(root / f"{i}.mp4", 12 + 2 * i, seed=i)
        rows.append(clip_row(f"m{i}", f"{i}.mp4", media_kind="mouth", speaker="李雷"))
    rows += [clip_row("brief", "brief.mp4"), clip_row("garbage", "garbage.mp4", speaker="anna")]
    corpus = Corpus(folder, rows, [])
    write_clips(corpus.tables[0], rows)
    with forked_workers():
        crop(CorpusParams(root=str(root)), PARAMS, corpus.machine, *corpus.tables)
    corpus.crops = read_table(corpus.tables[1], CROPS, "pipeline crop").to_pylist()
    return corpus


def with_synthetic_clips(corpus: Corpus, folder: Path, num_ok: int, a_reason: int, seed: int = 0) -> Corpus:
    """Adds `num_ok` usable clips, copies of existing ones with random values, and `a_reason` clips for each reason.

    Speakers, labels, details and paths of the synthetic clips contain markup.
    """
    rng = np.random.default_rng(seed)
    by_id = {row["clip_id"]: row for row in corpus.clips}
    models = [row for row in corpus.crops if row["status"] == "ok"]
    clips, crops = list(corpus.clips), list(corpus.crops)
    for number in range(num_ok):
        model = models[number % len(models)]
        clip_id, frames = f"ok_{number:05d}", int(rng.integers(10, 1_000))
        clips.append(
            by_id[model["clip_id"]]
            | {"clip_id": clip_id, "speaker": f"s{number % 300:03d} {HOSTILE}", "label": HOSTILE}
        )
        drawn = {name: float(np.float32(rng.uniform(*span))) for name, span in FIGURES.items()}
        counts = {"source_frames": frames, "landmarked_frames": int(rng.integers(1, frames + 1))}
        crops.append(model | {"clip_id": clip_id, "bridged_frames": 1} | drawn | counts)
    undecoded = {Reason.UNREADABLE, Reason.MISSING_FILE, Reason.CRASHED, Reason.TIMEOUT}
    media = {Reason.UNREADABLE: "garbage.mp4", Reason.MISSING_FILE: f"nowhere{HOSTILE}.mp4"}
    for reason in Reason:
        for number in range(a_reason):
            clip_id = f"{reason}_{number:03d}"
            clips.append(clip_row(clip_id, media.get(reason, "face.mp4"), speaker=HOSTILE, label=HOSTILE))
            crops.append(
                dict.fromkeys(CROPS.names)
                | {"clip_id": clip_id, "status": "rejected", "reason": reason.value}
                | {"detail": f"because {HOSTILE} {number}", "detection_rate": rng.uniform(0, 0.8)}
                | {"source_frames": None if reason in undecoded else 12}
            )
    made = Corpus(folder, [], [])
    for name in ("corpus", "cache"):
        (folder / name).symlink_to(corpus.folder / name)
    made.write(clips, crops)
    write_table(made.tables[2], read_table(corpus.tables[2], TRACKS, "pipeline crop"), TRACKS)
    assert read_table(made.tables[0], CLIPS, "pipeline ingest").num_rows == len(clips)
    return made
