"""`pipeline sync`: planted offsets between sound and picture are found."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from model.decoding.sound_offset import MAX_OFFSET, best_offset, offset_scores
from shards.errors import CheckpointError, ConfigError
from shards.files import read_table
from shards.packs import Pack, Packs
from shards.schema import SOUND
from shards.settings import LoaderParams, MachineParams
from stages.sync import SyncSummary, sync
from stages.train import train
from tests.support.packed import Packed, drawn, pack_clips, toy_sound
from tests.support.trainings import job_in

NUM_SHIFTED = 41
MACHINE = MachineParams(num_workers=0, device="cpu")


def shifted(sound_TKM: np.ndarray, late: int) -> np.ndarray:
    """Returns the sound `late` frames later; noise comes in at its end."""
    noise_TKM = np.random.default_rng(0).normal(-10, 0.5, sound_TKM.shape).astype(np.float16)
    if late >= 0:
        return np.concatenate([noise_TKM[:late], sound_TKM])[: len(sound_TKM)]
    return np.concatenate([sound_TKM[-late:], noise_TKM[:-late]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Packed, Path, dict[str, int]]:
    """A pack whose test clips have planted offsets, a model that learnt from its training clips, and the offsets."""
    folder = tmp_path_factory.mktemp("sync")
    clips = [*drawn("train", 40, 0), *drawn("valid", 2, 500), *drawn("test", NUM_SHIFTED, 900)]
    sounds = {clip_id: toy_sound(label, number) for number, (clip_id, _, _, label) in enumerate(clips)}
    planted = {f"test_{number:03d}": number // 2 - 10 for number in range(NUM_SHIFTED)}
    sounds |= {clip_id: shifted(sounds[clip_id], late) for clip_id, late in planted.items()}
    del sounds["valid_000"]
    packed = pack_clips(folder, clips, sounds=sounds)
    train(
        job_in(folder, packed, audio_weight=1.0, audio_tokens=16, num_epochs=8, ema_decay=0.9, ctc_weight=1.0)
    )
    return packed, folder / "checkpoints" / "best_model.pt", planted


def packs_of(packed: Packed, table: Path) -> Packs:
    return Packs([Pack("", packed.samples, packed.store, further={"sound": table})])


@pytest.fixture(scope="module")
def measured(
    trained: tuple[Packed, Path, dict[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[SyncSummary, Path]:
    packed, checkpoint, _ = trained
    table = tmp_path_factory.mktemp("measured") / "sound.parquet"
    summary = sync(packs_of(packed, table), checkpoint, loader=LoaderParams(), machine=MACHINE, num_shown=5)
    return summary, table


def test_planted_offsets_are_found_within_a_frame(
    trained: tuple[Packed, Path, dict[str, int]], measured: tuple[SyncSummary, Path]
) -> None:
    rows = {row["clip_id"]: row for row in read_table(measured[1], SOUND, "pipeline sync").to_pylist()}
    planted = trained[2]
    assert rows.keys() == set(read_table_ids(trained[0]))
    errors = [abs(rows[clip_id]["offset_frames"] - late) for clip_id, late in planted.items()]
    assert np.mean(np.array(errors) <= 1) >= 0.95, errors
    unshifted = [row for clip_id, row in rows.items() if clip_id not in planted and row["has_audio"]]
    assert np.mean([abs(row["offset_frames"]) <= 1 for row in unshifted]) >= 0.95
    for row in rows.values():
        if row["has_audio"]:
            assert row["offset_s"] == pytest.approx(row["offset_frames"] / 25) and row["agreement"] > 0
    assert rows["valid_000"] == {
        "clip_id": "valid_000",
        "has_audio": False,
        "offset_frames": None,
        "offset_s": None,
        "agreement": None,
    }


def read_table_ids(packed: Packed) -> list[str]:
    return pq.read_table(packed.samples)["clip_id"].to_pylist()


def test_the_worst_clips_come_first_and_are_counted(
    trained: tuple[Packed, Path, dict[str, int]], measured: tuple[SyncSummary, Path]
) -> None:
    summary, table = measured
    rows = read_table(table, SOUND, "pipeline sync").to_pylist()
    offsets = [abs(row["offset_frames"]) for row in rows if row["has_audio"]]
    assert offsets == sorted(offsets, reverse=True) and not rows[-1]["has_audio"]
    assert [row["clip_id"] for row in summary.worst] == [row["clip_id"] for row in rows[:5]]
    assert (summary.num_clips, summary.num_silent) == (83, 1)
    assert summary.num_out_of_step == sum(offset > 2 for offset in offsets)
    assert summary.median_agreement is not None and summary.median_agreement > 0


def test_train_where_uses_the_offsets(
    trained: tuple[Packed, Path, dict[str, int]], measured: tuple[SyncSummary, Path]
) -> None:
    packed, *_ = trained
    pack = Pack("", packed.samples, packed.store, further={"sound": measured[1]})
    kept = Packs([pack], "abs(sound.offset_frames) <= 2 and agreement > 0").read("train", ["clip_id"])
    rows = {row["clip_id"]: row for row in read_table(measured[1], SOUND, "pipeline sync").to_pylist()}
    assert set(kept["clip_id"].to_pylist()) == {
        clip_id
        for clip_id, row in rows.items()
        if clip_id.startswith("train") and abs(row["offset_frames"]) <= 2
    }


def test_missing_sound_is_an_error_that_names_the_fix(
    trained: tuple[Packed, Path, dict[str, int]], tmp_path: Path
) -> None:
    packed, checkpoint, _ = trained
    plain = pack_clips(tmp_path / "plain", drawn("train", 5, 0))
    with pytest.raises(ConfigError, match=r"has sound; set pack\.audio to true"):
        sync(packs_of(plain, tmp_path / "t"), checkpoint, loader=LoaderParams(), machine=MACHINE)
    train(job_in(tmp_path, plain, num_epochs=1, ctc_weight=1.0))
    silent_model = tmp_path / "checkpoints" / "best_model.pt"
    with pytest.raises(CheckpointError, match=r"was trained without sound; set train\.audio_weight"):
        sync(packs_of(packed, tmp_path / "t"), silent_model, loader=LoaderParams(), machine=MACHINE)
    with pytest.raises(ConfigError, match=r"names no table for the sound; add `sound: .*sound\.parquet`"):
        sync(Packs.single(packed.samples, packed.store), checkpoint, loader=LoaderParams(), machine=MACHINE)


# -- the scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [-10, -1, 0, 4, 10])
def test_a_perfect_head_finds_the_offset_exactly(late: int) -> None:
    rng = np.random.default_rng(0)
    tokens_J = torch.from_numpy(rng.integers(0, 30, 4 * 60))
    logits_JV = functional.one_hot(tokens_J, 30) * 5.0
    heard_J = torch.roll(tokens_J, 4 * late)
    offset, agreement = best_offset(functional.log_softmax(logits_JV, dim=1), heard_J)
    assert offset == late and agreement > 8


def test_the_score_is_the_mean_gain_over_the_marginal() -> None:
    """Computed by a loop."""
    rng = np.random.default_rng(1)
    log_probs_JV = functional.log_softmax(torch.from_numpy(rng.normal(size=(4 * 12, 7))), dim=1)
    tokens_J = torch.from_numpy(rng.integers(0, 7, 4 * 12))
    marginal_V = log_probs_JV.exp().mean(dim=0).log()
    score_O = offset_scores(log_probs_JV, tokens_J)
    assert len(score_O) == 13  # of 12 frames, half stay in common
    for number, offset in enumerate(range(-6, 7)):
        gains = [
            float(log_probs_JV[j, tokens_J[j + 4 * offset]] - marginal_V[tokens_J[j + 4 * offset]])
            for j in range(48)
            if 0 <= j + 4 * offset < 48
        ]
        assert float(score_O[number]) == pytest.approx(np.mean(gains))
    assert len(offset_scores(log_probs_JV.repeat(9, 1), tokens_J.repeat(9))) == 2 * MAX_OFFSET + 1


def test_a_clip_of_one_frame_has_no_other_offset() -> None:
    assert best_offset(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)) == (0, 0.0)
