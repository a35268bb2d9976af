"""Reading with an exported file: like the checkpoint, without torch, and without trusting the file."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model.decoding import kneser_ney
from model.decoding.arpa import write_arpa
from model.decoding.ctc_beam import SyllableScores, ctc_beam
from model.decoding.reader import LipReader
from model.exports.files import onnx_bytes
from model.exports.graph import ExportedNetwork
from model.exports.onnx_reader import OnnxReader
from model.settings import DecodeParams
from pipeline.inference.readers import open_reader
from pipeline.params import load_params
from shards.errors import CheckpointError, ConfigError, TableError
from shards.schema import MediaKind
from stages.mouths.cropping import crop_video
from stages.settings import CropParams
from tests.support.exported import LABELS, MODELS, config_of, random_reader
from tests.support.packed import toy_clip
from tests.support.videos import write_video

ROOT = Path(__file__).parents[3]
PIPELINE = Path(sysconfig.get_path("scripts")) / "pipeline"
WITHOUT_TORCH = "raise ImportError('torch is not here')"


@pytest.fixture(scope="module")
def reader() -> LipReader:
    return random_reader(MODELS["conformer"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, reader: LipReader) -> Path:
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    graph = ExportedNetwork(reader.network, reader.model, reader.crop_px)
    file.write_bytes(onnx_bytes(graph, config_of(reader)))
    return file


def clip_of(number: int) -> np.ndarray:
    """Returns a toy clip with noise that grows with `number`, so that texts differ."""
    clip_THW = toy_clip("一二", number)[: 12 + number]
    noise_THW = np.random.default_rng(number).integers(0, 200 * number + 1, clip_THW.shape)
    return np.minimum(clip_THW + noise_THW, 255).astype(np.uint8)


@pytest.mark.parametrize("decoder", ["auto", "ctc", "syllables"])
def test_texts_and_scores_equal_those_of_the_checkpoint(
    reader: LipReader, exported: Path, decoder: str
) -> None:
    without_torch = OnnxReader.open(exported)
    assert (without_torch.fps, without_torch.crop_px, without_torch.text) == (25.0, 96, reader.text)
    params = DecodeParams(decoder=decoder)
    texts = set()
    for number in range(2, 5):
        ours = reader.read_clip(clip_of(number), params)
        theirs = without_torch.read_clip(clip_of(number), params)
        assert theirs.text == ours.text
        assert theirs.score == pytest.approx(ours.score, abs=1e-3)
        assert "".join(character.text for character in ours.characters) == ours.text
        for mine, other in zip(ours.characters, theirs.characters, strict=True):
            assert (other.text, other.start_s, other.end_s) == (mine.text, mine.start_s, mine.end_s)
            assert other.confidence == pytest.approx(mine.confidence, abs=1e-3)
        texts.add(ours.text)
    assert len(texts) > 1
    assert without_torch.reference(LABELS[0], params) == reader.reference(LABELS[0], params)


def test_both_readers_find_times_by_evidence(reader: LipReader, exported: Path) -> None:
    params = DecodeParams(decoder="ctc")
    ours = replace(reader, times_by_evidence=True).read_clip(clip_of(4), params)
    theirs = replace(OnnxReader.open(exported), times_by_evidence=True).read_clip(clip_of(4), params)
    by_path = reader.read_clip(clip_of(4), params)
    for reading in (ours, theirs):
        times_s = [time_s for one in reading.characters for time_s in (one.start_s, one.end_s)]
        assert times_s == sorted(times_s) and len(times_s) == 2 * len(by_path.text) > 2
        assert times_s != [time_s for one in by_path.characters for time_s in (one.start_s, one.end_s)]
    assert [one.confidence for one in ours.characters] == [one.confidence for one in by_path.characters]


def test_the_log_probabilities_cover_the_steps_of_the_clip(reader: LipReader, exported: Path) -> None:
    ours, theirs = (model.ctc_log_probs(clip_of(4)) for model in (reader, OnnxReader.open(exported)))
    assert ours is not None and theirs is not None
    np.testing.assert_allclose(theirs, ours, atol=1e-3)


def test_a_beam_search_returns_its_candidates(reader: LipReader, exported: Path) -> None:
    params = DecodeParams(decoder="ctc_beam", beam=8, num_candidates=3, syllable_weight=0.5)
    without_torch = OnnxReader.open(exported)
    log_probs = without_torch.log_probs(clip_of(2))
    assert reader.vocabulary.syllables is not None
    syllables = SyllableScores(log_probs["syllable_log_probs"][None], reader.vocabulary.syllables)
    (expected,) = ctc_beam(
        log_probs["log_probs"][None], reader.vocabulary.characters, params, None, syllables
    )
    reading = without_torch.read_clip(clip_of(2), params)
    assert [candidate.text for candidate in reading.candidates] == [candidate.text for candidate in expected]
    assert len(expected) == 3 and reading.text == expected[0].text
    theirs = {one.text: one.parts for one in reader.read_clip(clip_of(2), params).candidates}
    for candidate in reading.candidates:
        ours = candidate.parts
        assert ours is not None and (other := theirs[candidate.text]) is not None
        assert (ours.attention, ours.language_model, ours.length) == (None, None, other.length)
        assert (ours.ctc, ours.syllables) == pytest.approx((other.ctc, other.syllables), abs=1e-3)


def test_a_language_model_with_a_weight_is_used(tmp_path: Path, exported: Path) -> None:
    flags = {"decode.decoder": "pinyin", "decode.lm_weight": 1.0, "paths.lm": str(tmp_path / "lm.arpa")}
    params = load_params(ROOT / "params.yaml", flags=flags)
    with pytest.raises(TableError, match="is missing; run `pipeline lm`"):
        open_reader([exported], params)
    write_arpa(tmp_path / "lm.arpa", kneser_ney.train(LABELS, order=2))
    reading = open_reader([exported], params).read_clip(clip_of(3), params.decode)
    assert set(reading.text) <= set("".join(LABELS)) and reading.candidates[0].text == reading.text
    with pytest.raises(ConfigError, match="no language model: run `pipeline lm`"):
        OnnxReader.open(exported).read_clip(clip_of(3), params.decode)


@pytest.mark.parametrize("decoder", ["attention", "joint_beam"])
def test_a_decoder_that_was_not_exported_is_reported(exported: Path, decoder: str) -> None:
    with pytest.raises(
        ConfigError, match=f"has not learnt {decoder}; set it to ctc, syllables, ctc_beam, pinyin"
    ):
        OnnxReader.open(exported).read_clip(clip_of(0), DecodeParams(decoder=decoder))


def test_clips_of_another_size_or_frame_rate_are_rejected(exported: Path) -> None:
    with pytest.raises(CheckpointError, match=r"set crop\.size_px to 96"):
        OnnxReader.open(exported).read_clip(np.zeros((10, 64, 96), np.uint8), DecodeParams())
    for flags in ({"crop.size_px": 64}, {"crop.target_fps": 30.0}):
        with pytest.raises(CheckpointError, match=next(iter(flags)).replace(".", r"\.")):
            open_reader([exported], load_params(ROOT / "params.yaml", flags=flags))
    assert open_reader([exported], load_params(ROOT / "params.yaml")).crop_px == 96


def with_config(model: Any, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(model.metadata_props[0].value)
    change(config)
    model.metadata_props[0].value = json.dumps(config)


def move_weights_outside(model: Any) -> None:
    """Moves the first weights to another file, which exists."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")


HOSTILE: dict[str, tuple[Callable[[Any], object], str]] = {
    "weights in another file": (move_weights_outside, "damaged or not an ONNX model"),
    "no configuration": (lambda model: model.metadata_props.pop(), "no configuration"),
    "a long configuration": (
        lambda model: setattr(model.metadata_props[0], "value", " " * 8_000_001),
        "no configuration of `pipeline export`, or it is too long",
    ),
    "no JSON": (lambda model: setattr(model.metadata_props[0], "value", "{"), "not JSON"),
    "deep JSON": (lambda model: setattr(model.metadata_props[0], "value", "[" * 100_000), "not JSON"),
    "a list": (lambda model: setattr(model.metadata_props[0], "value", "[]"), "not a JSON object"),
    "no frame rate": (lambda model: with_config(model, lambda c: c.pop("fps")), "'fps'"),
    "a list for a rate": (lambda model: with_config(model, lambda c: c.update(fps=[])), "not written by"),
    "an infinite rate": (
        lambda model: with_config(model, lambda c: c.update(fps=float("inf"))),
        "invalid configuration: inf",
    ),
    "no rate": (
        lambda model: with_config(model, lambda c: c.update(fps=float("nan"))),
        "invalid configuration: nan",
    ),
    "other crops": (lambda model: with_config(model, lambda c: c.update(crop_px=64)), "crops of 64 px"),
    "fewer characters": (
        lambda model: with_config(model, lambda c: c["characters"]["characters"].pop()),
        "differs from its output log_probs",
    ),
    "no syllables": (
        lambda model: with_config(model, lambda c: c.update(syllables=None)),
        "differs from its output syllable_log_probs",
    ),
    "another normaliser": (
        lambda model: with_config(model, lambda c: c["normaliser"].update(version=99)),
        "normaliser version 99",
    ),
    "unknown text parameters": (
        lambda model: with_config(model, lambda c: c["normaliser"]["params"].update(rot13=True)),
        "Extra inputs are not permitted",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_gets_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path, what: str
) -> None:
    change, message = HOSTILE[what]
    model = onnx.load(exported)
    change(model)
    (tmp_path / "hostile.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 20))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        OnnxReader.open(Path("hostile.onnx"))
    assert "hostile.onnx" in str(caught.value)


def test_a_file_that_is_not_an_export_gets_a_message(tmp_path: Path, exported: Path) -> None:
    file = tmp_path / "model.onnx"
    with pytest.raises(CheckpointError, match="missing; `pipeline export --format onnx`"):
        OnnxReader.open(file)
    with pytest.raises(CheckpointError, match="cannot be read"):
        OnnxReader.open(tmp_path)
    whole = exported.read_bytes()
    for payload in (b"", b"PK\x03\x04", os.urandom(5_000), whole[: len(whole) // 2]):
        file.write_bytes(payload)
        with pytest.raises(CheckpointError, match=r"model\.onnx"):
            OnnxReader.open(file)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "other", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(
        CheckpointError, match="not written by `pipeline export`: its inputs are x, its outputs y"
    ):
        OnnxReader.open(file)


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate((4 << 30) + 1)  # sparse: it takes no disk space
    with pytest.raises(CheckpointError, match="4,294,967,297 bytes"):
        OnnxReader.open(tmp_path / "large.onnx")


def test_inference_reads_a_video_without_torch(tmp_path: Path, reader: LipReader, exported: Path) -> None:
    """Runs the whole command in a process where importing torch fails."""
    clip_THW = clip_of(20)
    video = write_video(tmp_path / "mouth.mp4", [np.stack([frame] * 3, axis=2) for frame in clip_THW])
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "torch.py").write_text(WITHOUT_TORCH, "utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "blocked")}
    command = ["inference", str(video), "--json", "--params", str(ROOT / "params.yaml")]
    command += ["--set", "corpus.media_kind=mouth"]

    def run(*more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [PIPELINE, *command, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("--onnx", str(exported))
    assert done.returncode == 0, done.stderr
    (reading,) = json.loads(done.stdout)
    assert reading["reason"] is None and reading["num_frames"] == len(clip_THW)

    mouth = crop_video(video, MediaKind.MOUTH, CropParams())
    assert reading["text"] == reader.read_clip(mouth.clip_THW, DecodeParams(decoder="ctc")).text != ""
    # check of the test itself: a checkpoint needs torch
    assert "torch is not here" in run("--checkpoint", "best_model.pt").stderr


def test_the_reader_imports_neither_torch_nor_onnx(exported: Path) -> None:
    source = (
        "import sys, model.exports.onnx_reader, model.decoding.ctc_beam, model.decoding.ctc_beam;"
        "import model.decoding.arpa;"
        "from pathlib import Path; model.exports.onnx_reader.OnnxReader.open(Path(sys.argv[1]));"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'onnx', 'mediapipe', 'webdataset'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, str(exported)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
