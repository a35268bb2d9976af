"""`python -m benchmarks.speaker`: of two faces that both speak, how often does `crop.speaker: sound` choose right?

Takes the faces of single-face clips of a cropped project with sound, and compares each clip's sound with its own face
and with the face of other clips, as if both were in one picture.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.options import print_progress, run
from benchmarks.tables import figures_table
from benchmarks.versions import machine_facts
from pipeline.params import load_params
from shards.errors import ConfigError
from shards.files import read_table, write_json
from shards.schema import CLIPS, CROPS, TRACKS
from stages.clips.clip_source import ClipSource
from stages.mouths import voice
from stages.mouths.face_tracking import track_faces
from stages.mouths.main_face import lip_height, lip_motion, main_face
from stages.mouths.mouth_pictures import MouthPatches
from stages.settings import CropParams
from stages.videos.sound import NoSound

VARIANTS = {
    "as built": (voice.WINDOW_S, voice.MAX_LAG_FRAMES),
    "changes within 1 s": (1.0, voice.MAX_LAG_FRAMES),
    "all changes": (100.0, voice.MAX_LAG_FRAMES),
    "no lag": (voice.WINDOW_S, 0),
    "lag up to 3 frames": (voice.WINDOW_S, 3),
}
"""Window in seconds and largest lag in frames."""


@dataclass(frozen=True)
class Talk:
    """One clip: the height of its lips, in distances between the eyes, and the loudness of its sound."""

    times_s_N: NDArray[np.float64]
    height_N: NDArray[np.float64]
    lip_motion: float
    loudness_T: NDArray[np.float64]


@dataclass(frozen=True)
class SpeakerBench:
    machine: dict[str, str]
    num_clips: int
    num_pairs: int
    by_motion: float
    """Share of the pairs in which the lips of the right face move more."""
    by_sound: dict[str, float]
    """Variant → share of the pairs in which the sound chooses the right face."""
    own_below_limit: float
    """Share of the clips whose own face agrees less than MIN_AGREEMENT."""


def talks_of(source: ClipSource, crop_rows: Sequence[dict[str, object]], params: CropParams) -> list[Talk]:
    """Returns the clips with one face and with sound."""
    talks = []
    for row in crop_rows:
        try:
            loudness_T = source.read_sound(row).mean(axis=(1, 2), dtype=np.float64)
        except NoSound:
            continue
        landmarks = track_faces(source.video_of(source.clips[str(row["clip_id"])]), params, MouthPatches())
        face = main_face(landmarks, params)
        assert face is not None, "the crop stage found a face"
        points_NK3 = face.points_NK3
        times_s_N = landmarks.times_s_F[face.frame_N]
        talks.append(Talk(times_s_N, lip_height(points_NK3), lip_motion(points_NK3), loudness_T))
    return talks


def bench_speaker(talks: Sequence[Talk], fps: float, pairs_a_clip: int, seed: int = 0) -> SpeakerBench:
    """Returns the figures. Raises ConfigError for fewer than two clips."""
    if len(talks) < 2:
        raise ConfigError("at least two clips with one face and with sound are needed")
    rng = np.random.default_rng(seed)
    pairs = [
        (own, (own + step) % len(talks))
        for own in range(len(talks))
        for step in rng.integers(1, len(talks), pairs_a_clip)
    ]

    def share(variant: str) -> float:
        return float(
            np.mean(
                [
                    _agreement(talks[own], talks[own], fps, variant)
                    > _agreement(talks[other], talks[own], fps, variant)
                    for own, other in pairs
                ]
            )
        )

    own = [_agreement(talk, talk, fps) for talk in talks]
    return SpeakerBench(
        machine_facts(("numpy", "av")),
        len(talks),
        len(pairs),
        float(np.mean([talks[own].lip_motion > talks[other].lip_motion for own, other in pairs])),
        {variant: share(variant) for variant in VARIANTS},
        float(np.mean(np.array(own) < voice.MIN_AGREEMENT)),
    )


def _agreement(face: Talk, heard: Talk, fps: float, variant: str = "as built") -> float:
    return voice.agreement(face.times_s_N, face.height_N, heard.loudness_T, fps, *VARIANTS[variant])


def print_bench(result: SpeakerBench, console: Console) -> None:
    table = figures_table(
        f"{result.num_clips} clips, {result.num_pairs} pairs: right face", "chosen by", "share"
    )
    table.add_row("motion", f"{result.by_motion:.1%}")
    for variant, share in result.by_sound.items():
        table.add_row(f"sound, {variant}", f"{share:.1%}")
    console.print(table)
    console.print(f"own sound below {voice.MIN_AGREEMENT}: {result.own_below_limit:.1%} of the clips")


def command(
    params: Annotated[
        Path, typer.Argument(help="params.yaml of a cropped project whose clips have sound", exists=True)
    ],
    num_clips: Annotated[
        int, typer.Option(min=2, help="clips with one face, the first ones of the ledger")
    ] = 900,
    pairs: Annotated[int, typer.Option(min=1, help="other faces for each clip")] = 2,
    out: Annotated[Path, typer.Option(help="file for the figures", metavar="FILE")] = Path(
        "bench-speaker.json"
    ),
) -> None:
    """Compare each clip's sound with its own face and with the faces of other clips.

    Example: python -m benchmarks.speaker params.yaml --num-clips 200
    """
    from pipeline.console import stdout

    values = load_params(params)
    clips = read_table(Path(values.paths.clips), CLIPS, "pipeline ingest").to_pylist()
    rows = read_table(Path(values.paths.crops), CROPS, "pipeline crop").to_pylist()
    chosen = [row for row in rows if row["status"] == "ok" and row["num_faces"] == 1][:num_clips]
    source = ClipSource(
        values.corpus,
        values.crop,
        values.machine,
        {clip["clip_id"]: clip for clip in clips},
        lambda: read_table(Path(values.paths.tracks), TRACKS, "pipeline crop"),
    )
    print_progress(f"finding the lips of {len(chosen)} clips")
    result = bench_speaker(talks_of(source, chosen, values.crop), values.crop.target_fps, pairs)
    write_json(out, asdict(result))
    print_bench(result, stdout)


if __name__ == "__main__":
    run(command)
