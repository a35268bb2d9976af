"""Times by evidence of a network that has learnt drawn clips, where the frames of each character are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.word_times import bench_word_times
from model.decoding.reader import LipReader
from model.settings import AugmentParams, DecodeParams
from pipeline.params import read_mapping
from shards.errors import ConfigError
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clip, toy_clips
from tests.support.trainings import job_in

ROOT = Path(__file__).parents[2]
FRAMES, FPS = 6, 25


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    clips = toy_clips(120, 3, frames_a_char=FRAMES)
    named = [(f"s1_{clip_id}", split, clip_THW, label) for clip_id, split, clip_THW, label in clips]
    return pack_clips(tmp_path_factory.mktemp("packed"), named)


@pytest.fixture(scope="module")
def checkpoint(packed: Packed) -> Path:
    folder = packed.samples.parent
    still = AugmentParams(flip=False)
    train(job_in(folder, packed, num_epochs=12, ctc_weight=1.0, valid_every=12, augment=still))
    return folder / "checkpoints" / "best_model.pt"


def test_evidence_is_where_a_character_is_shown_and_the_path_is_later(checkpoint: Path) -> None:
    reader = LipReader.from_checkpoint(checkpoint, torch.device("cpu"))
    errors: dict[bool, list[float]] = {False: [], True: []}
    for number, label in enumerate(("一三二四", "四一三二", "二四一")):
        clip_THW = toy_clip(label, 100 + number, FRAMES)
        for by_evidence, found in errors.items():
            timed = replace(reader, times_by_evidence=by_evidence)
            reading = timed.read_clip(clip_THW, DecodeParams(decoder="ctc"))
            assert reading.text == label
            ends = [one.end_s * FPS for one in reading.characters]
            found += [end - (place + 1) * FRAMES for place, end in enumerate(ends)]
    assert np.abs(errors[True]).max() <= 1.0 + 1e-6
    assert np.abs(errors[False]).max() > 1.0 + 1e-6


def test_the_benchmark_compares_with_the_alignments(packed: Packed, checkpoint: Path, tmp_path: Path) -> None:
    values = read_mapping(ROOT / "params.yaml")
    values["paths"] |= {"samples": str(packed.samples), "shards": str(packed.shards)}
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(values), "utf-8")
    align = tmp_path / "align"
    (align / "s1").mkdir(parents=True)
    test = [clip for clip in toy_clips(120, 3, frames_a_char=FRAMES) if clip[1] == "test"]
    for clip_id, _, clip_THW, label in test:
        # one word, as Han characters have no spaces; it ends two frames before the clip
        end = (len(clip_THW) - 2) * 1000
        (align / "s1" / f"{clip_id}.align").write_text(f"0 {end} {label}\n{end} {end + 2000} sil\n", "utf-8")
    result = bench_word_times(params, checkpoint, align, "test", None, lambda _: None)
    assert (result.num_clips, result.num_words) == (3, 3)
    assert result.kinds["path"].p90_error == pytest.approx(2.0), (
        "both ends of the clip, one is off by two frames"
    )
    assert result.kinds["path"].bias == pytest.approx(1.0)
    (align / "s1" / f"{test[0][0]}.align").write_text("0 1000 other\n", "utf-8")
    with pytest.raises(ConfigError, match=f"{test[0][0]}.align has other words"):
        bench_word_times(params, checkpoint, align, "test", None, lambda _: None)
