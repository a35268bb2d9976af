"""`python -m benchmarks.decode`: every decoder reads the synthetic sentence, and the goals have their figures."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import decode
from model.settings import DecodeParams
from shards.errors import ConfigError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only wait for each other in networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_decoder_reads_what_the_heads_are_biased_to() -> None:
    """So the measurement is of a realistic reading: a text as long as that of real clips."""
    biased = decode._BiasedReader("conformer_tiny", torch.device("cpu"), 2.0, 60)
    assert biased.encode() > 0
    for name in ("attention", "ctc", "ctc_beam", "attention_beam", "joint_beam"):
        assert biased.decode(name, 5) > 0
        biased.position = 0
        (reading,) = biased.reader.decode(
            *biased.encoded, biased.num_frames_B, DecodeParams.model_validate({"decoder": name})
        )
        assert reading.text == biased.sentence, name
    assert len(biased.sentence) == round(decode.CHARS_PER_S * 2.0)


def test_every_clip_of_a_batch_reads_the_sentence(tmp_path: Path) -> None:
    biased = decode._BiasedReader("conformer_tiny", torch.device("cpu"), 1.0, 60, batch_size=3)
    biased.encode()
    for name in ("ctc_beam", "joint_beam"):
        biased.position = 0
        readings = biased.reader.decode(
            *biased.encoded, biased.num_frames_B, DecodeParams.model_validate({"decoder": name})
        )
        assert [reading.text for reading in readings] == [biased.sentence] * 3
    result = decode.bench_decode(
        tmp_path,
        print,
        on_gpu=False,
        beams=(40,),
        rounds=1,
        threads=1,
        clip_s=1.0,
        batch_size=2,
        num_characters=40,
    )
    assert result.seconds["ctc_beam 40"] > 0
    assert [goal["figure"] for goal in result.goals()] == [
        None,
        None,
    ]  # the goals are for batches of one clip


def test_figures_of_all_decoders_and_beams_are_written(tmp_path: Path) -> None:
    lines: list[str] = []
    result = decode.bench_decode(
        tmp_path,
        lines.append,
        on_gpu=False,
        beams=(1, 40),
        rounds=1,
        threads=1,
        clip_s=1.0,
        num_characters=40,
    )
    assert {
        "ctc",
        "attention",
        "ctc_beam 40",
        "joint_beam 1",
        "joint_beam 40",
        "pinyin 40",
    } <= result.seconds.keys()
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["seconds"] == result.seconds and written["encode_s"] > 0
    on_gpu, on_cpu = written["goals"]
    assert (on_gpu["figure"], on_gpu["is_reached"]) == (None, None)
    assert on_cpu["figure"] == result.seconds["ctc_beam 40"] / 1.0
    result.seconds["ctc_beam 40"] = 1.5
    assert result.goals()[1]["is_reached"] is False


def test_a_preset_that_is_not_a_conformer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model-preset cnn3d_bilstm_attention: choose .*conformer_tiny"):
        decode.bench_decode(tmp_path, print, on_gpu=False, preset="cnn3d_bilstm_attention")
