"""`python -m benchmarks.copies`: how many re-encoded copies of videos are found, and how many false alarms there are.

Videos and their copies are cropped and packed like any corpus. All clips are compared with each other, so the figures
are those of `pipeline overlap`. A second part measures the search alone on random fingerprints.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.material import videos_of
from benchmarks.options import folder_argument, print_progress, run
from benchmarks.reencoded import REENCODINGS, reencode
from benchmarks.tables import figures_table
from benchmarks.versions import machine_facts
from shards import schema
from shards.copies import Compared, Fingerprints, compared_clips
from shards.files import table_from_rows, write_json, write_table
from shards.fingerprint import NUM_MODES, similarity
from shards.machine import peak_mb
from shards.pack_fingerprints import fingerprints_of, read_catalogue
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from stages.crop import crop
from stages.pack import pack
from stages.settings import CorpusParams, CropParams

CODEC = "jpeg"
"""Codec of the packed clips; lossy, and small."""
RANDOM_FRAMES = 88
"""Fingerprint of a clip of 4 s."""


@dataclass(frozen=True)
class Recall:
    """Copies of one kind; `found` of the `num_clips` that could be cropped. Similarities of each to its video."""

    num_clips: int
    found: int
    least: float
    median: float


@dataclass(frozen=True)
class CopiesBench:
    machine: dict[str, str]
    num_videos: int
    num_pairs: int
    """Pairs of different videos; copies are left out."""
    false_alarms: int
    most_similar: float
    """Of different videos, among the pairs that were compared as a whole."""
    share_compared: float
    """Pairs of different videos that were compared as a whole."""
    fingerprints_per_s: float
    search_s: float
    recalls: dict[str, Recall]
    random_clips: int
    random_s: float
    peak_mb: float


def bench_copies(
    folder: Path,
    out: Path,
    num_clips: int,
    num_copied: int,
    random_clips: int,
    progress: Callable[[str], None],
) -> CopiesBench:
    """Writes copies, crops, packs and compares; a second run in `out` reuses copies and crops."""
    videos = videos_of(folder, num_clips)
    media = {f"v{number:05d}": path.absolute() for number, path in enumerate(videos)}
    copied = list(media)[:: max(1, len(media) // num_copied)][:num_copied]
    progress(f"writing {len(REENCODINGS)} copies of {len(copied)} videos")
    source_of: dict[str, str] = {}
    for kind, how in enumerate(REENCODINGS.values()):
        for source in copied:
            copy_id = f"c{kind:02d}_{source}"
            media[copy_id] = reencode(media[source], out / "copies" / f"{copy_id}.mkv", how).absolute()
            source_of[copy_id] = source
    progress(f"cropping {len(media)} videos")
    samples = _packed(media, out)
    catalogue, store = read_catalogue(samples), FolderStore(out / "shards")
    began = time.perf_counter()
    with TemporaryDirectory() as cache:
        fingerprints = fingerprints_of(catalogue, store, MachineParams(workers=1, cache_dir=cache))
    made = time.perf_counter()
    pairs = list(compared_clips(fingerprints))
    searched = time.perf_counter()
    clip_ids = catalogue["clip_id"].to_pylist()
    originals = [clip_id for clip_id in clip_ids if clip_id not in source_of]
    videos_compared = {
        (pair.one, pair.other): pair
        for pair in sorted(pairs, key=lambda pair: pair.similarity)
        if clip_ids[pair.one] not in source_of and clip_ids[pair.other] not in source_of
    }
    num_pairs = len(originals) * (len(originals) - 1) // 2
    progress(f"comparing {random_clips:,} random fingerprints")
    random = _random_fingerprints(random_clips)
    random_began = time.perf_counter()
    for _ in compared_clips(random):
        pass
    bench = CopiesBench(
        machine=machine_facts(["numpy", "av"]),
        num_videos=len(originals),
        num_pairs=num_pairs,
        false_alarms=sum(pair.is_copy for pair in videos_compared.values()),
        most_similar=max((pair.similarity for pair in videos_compared.values()), default=0.0),
        share_compared=len(videos_compared) / num_pairs,
        fingerprints_per_s=len(clip_ids) / (made - began),
        search_s=searched - made,
        recalls=_recalls(fingerprints, clip_ids, source_of, pairs),
        random_clips=random_clips,
        random_s=time.perf_counter() - random_began,
        peak_mb=peak_mb(),
    )
    write_json(out / "results.json", asdict(bench))
    return bench


def _packed(media: Mapping[str, Path], out: Path) -> Path:
    """Crops and packs the videos; returns samples.parquet."""
    corpus, params, machine = (
        CorpusParams(root="/"),
        CropParams(),
        MachineParams(cache_dir=str(out / "cache")),
    )
    clips, crops, tracks = (out / f"{name}.parquet" for name in ("clips", "crops", "tracks"))
    rows = [_clip_row(clip_id, path) for clip_id, path in media.items()]
    write_table(clips, table_from_rows(rows, schema.CLIPS), schema.CLIPS)
    crop(corpus, params, machine, clips, crops, tracks)
    packing, samples = PackParams.model_validate({"codec": CODEC}), out / "samples.parquet"
    pack(corpus, params, packing, machine, clips, crops, tracks, FolderStore(out / "shards"), samples)
    return samples


def _clip_row(clip_id: str, path: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(schema.CLIPS.names)
    of_clip = {"clip_id": clip_id, "split": "train", "media": str(path).lstrip("/")}
    return row | of_clip | {"text": "x", "label": "x", "num_chars": 1}


def _recalls(
    fingerprints: Fingerprints,
    clip_ids: Sequence[str],
    source_of: Mapping[str, str],
    pairs: Sequence[Compared],
) -> dict[str, Recall]:
    row_of = {clip_id: row for row, clip_id in enumerate(clip_ids)}
    found = {frozenset((pair.one, pair.other)) for pair in pairs if pair.is_copy}
    recalls = {}
    for kind, name in enumerate(REENCODINGS):
        similarities, num_found = [], 0
        for copy_id, source in source_of.items():
            if copy_id.startswith(f"c{kind:02d}_") and copy_id in row_of and source in row_of:
                one, other = row_of[source], row_of[copy_id]
                num_found += frozenset((one, other)) in found
                lags = range(-2, len(fingerprints[one]), 2)
                tried = [similarity(fingerprints[one], fingerprints[other], lag)[0] for lag in lags]
                similarities.append(max(tried, default=0.0))
        least, median = np.quantile(similarities or [0.0], [0, 0.5]).tolist()
        recalls[name] = Recall(len(similarities), num_found, least, median)
    return recalls


def _random_fingerprints(num_clips: int) -> Fingerprints:
    """Returns motion of unlike clips, as slow as that of a mouth."""
    rng, kernel = np.random.default_rng(0), np.hanning(11)
    clips = []
    for _ in range(num_clips):
        noise_FM = rng.normal(size=(RANDOM_FRAMES + len(kernel) - 1, NUM_MODES))
        motion_FM = np.stack([np.convolve(noise_F, kernel, "valid") for noise_F in noise_FM.T], axis=1)
        clips.append(np.rint(motion_FM * (60 / np.abs(motion_FM).max())).astype(np.int8))
    return Fingerprints.of(clips)


def print_copies_bench(bench: CopiesBench, console: Console) -> None:
    table = figures_table(
        "copies by kind, each compared with its video", "", "copies", "found", "least", "median"
    )
    for name, recall in bench.recalls.items():
        table.add_row(
            name, str(recall.num_clips), str(recall.found), f"{recall.least:.3f}", f"{recall.median:.3f}"
        )
    console.print(table)
    console.print(
        f"{bench.num_videos} different videos, {bench.num_pairs:,} pairs: {bench.false_alarms} false alarms; the most "
        f"similar pair has {bench.most_similar:.3f}; {bench.share_compared:.1%} were compared as a whole\n"
        f"{bench.fingerprints_per_s:.0f} fingerprints/s with one thread; search {bench.search_s:.1f} s; "
        f"{bench.random_clips:,} random fingerprints {bench.random_s:.1f} s; peak {bench.peak_mb:.0f} MB",
        highlight=False,
    )


def command(
    videos: Annotated[Path, folder_argument("VIDEOS", "folder of different videos with faces")],
    out: Annotated[Path, typer.Option(help="results.json, copies, crops and shards", metavar="DIR")] = Path(
        "bench-copies"
    ),
    clips: Annotated[int, typer.Option(min=2, help="number of videos")] = 1000,
    copied: Annotated[int, typer.Option(min=1, help="number of videos of which copies are written")] = 20,
    random: Annotated[int, typer.Option(min=1, help="number of random fingerprints")] = 10_000,
) -> None:
    """Find re-encoded copies among many videos: recall by kind of copy, false alarms, and the cost.

    Example: python -m benchmarks.copies /data/grid/video
    """
    from pipeline.console import stdout

    out.mkdir(parents=True, exist_ok=True)
    print_copies_bench(bench_copies(videos, out, clips, copied, random, print_progress), stdout)


if __name__ == "__main__":
    run(command)
