"""`python -m benchmarks.sound`: a tiny model on drawn clips finds planted offsets."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.sound import SILENCE, bench_sound, print_sound_bench, shifted, train_model
from shards.errors import ConfigError
from shards.stream import ClipBatch
from tests.support.packed import drawn, pack_clips, toy_sound
from tests.support.trainings import job_in


def test_planted_offsets_are_measured(tmp_path: Path) -> None:
    clips = [*drawn("train", 40, 0), *drawn("valid", 8, 500), *drawn("test", 8, 900)]
    sounds = {clip_id: toy_sound(label, number) for number, (clip_id, _, _, label) in enumerate(clips)}
    packed = pack_clips(tmp_path, clips, sounds=sounds)
    learns = {"audio_weight": 1.0, "audio_tokens": 16, "num_epochs": 8, "ctc_weight": 1.0, "ema_decay": 0.9}
    job = job_in(tmp_path, packed, **learns)
    checkpoint = train_model(job, tmp_path / "bench", lambda _: None)
    result = bench_sound(job, checkpoint, ("valid", "test"), 12, seed=0)
    assert result.num_clips == sum(map(len, result.errors.values())) == 12
    assert all(-10 <= int(late) <= 10 for late in result.errors)
    assert result.within_1_frame >= 0.9 and result.own_sound_wins > 0.8
    shown = io.StringIO()
    print_sound_bench(result, Console(file=shown, width=120))
    assert "found within 1 frame" in shown.getvalue() and "12 clips" in shown.getvalue()
    # an untrained model finds nothing: the measurement can fail
    untrained = train_model(
        replace(job, train=job.train.model_copy(update={"num_epochs": 1, "learning_rate": 1e-9})),
        tmp_path / "untrained",
        lambda _: None,
    )
    assert bench_sound(job, untrained, ("valid", "test"), 12, seed=0).within_1_frame < 0.6


def test_a_shifted_sound_is_later_and_silent_where_it_ends() -> None:
    audio_BTKM = torch.arange(1.0, 6.0).half()[None, :, None, None].expand(2, 5, 4, 40).clone()
    batch = ClipBatch(
        torch.zeros(2, 5, 2, 2, dtype=torch.uint8),
        torch.tensor([5, 4]),
        ("a", "b"),
        ("", ""),
        (0, 1),
        audio_BTKM=audio_BTKM,
        has_audio_B=torch.tensor([True, True]),
    )
    found = shifted(batch, (2, -1)).audio_BTKM
    assert found is not None
    assert found[0, :, 0, 0].tolist() == [SILENCE, SILENCE, 1, 2, 3]
    assert found[1, :, 0, 0].tolist() == [2, 3, 4, SILENCE, 0]


def test_a_pack_without_sound_is_refused(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, drawn("test", 3, 0))
    with pytest.raises(ConfigError, match="no clip of test has sound"):
        bench_sound(job_in(tmp_path, packed), tmp_path / "none.pt", ("test",), 3, 0)
