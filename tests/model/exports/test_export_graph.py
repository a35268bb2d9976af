"""The exported graphs: the same outputs as the network, for any length, batch size and padding."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch.nn import functional

from model.decoding.reader import LipReader
from model.exports import files
from model.exports.files import OPSET, largest_difference, onnx_bytes, quantised_bytes
from model.exports.graph import ExportedNetwork, tracing
from model.networks.network_input import normalised
from model.settings import DecodeParams, ModelParams
from shards.errors import CheckpointError, ConfigError
from tests.support.exported import MODELS, config_of, random_reader

Run = Callable[[torch.Tensor, torch.Tensor], Sequence[np.ndarray]]
BATCHES = ((1, (13,)), (1, (1,)), (1, (40,)), (3, (31, 7, 12)), (3, (24, 24, 24)))
"""Batch sizes and frames that differ from the traced example."""
ONE_CORE = onnxruntime.SessionOptions()
ONE_CORE.intra_op_num_threads = 1


@pytest.fixture(scope="module", params=MODELS)
def reader(request: pytest.FixtureRequest) -> LipReader:
    return random_reader(MODELS[request.param])


@pytest.fixture(scope="module")
def graph(reader: LipReader) -> ExportedNetwork:
    return ExportedNetwork(reader.network, reader.model, reader.crop_px)


@pytest.fixture(scope="module")
def onnx_file(reader: LipReader, graph: ExportedNetwork) -> bytes:
    return onnx_bytes(graph, config_of(reader))


def run_onnx(file: bytes) -> Run:
    session = onnxruntime.InferenceSession(file, ONE_CORE)
    return lambda video, frames: session.run(None, {"video": video.numpy(), "num_frames": frames.numpy()})


@torch.no_grad()
def network_log_probs(reader: LipReader, clip_THW: torch.Tensor) -> list[np.ndarray]:
    """Returns the log-probabilities of a single clip without padding, as the reference."""
    encoded_BSE, _ = reader.encode(clip_THW[None], torch.tensor([len(clip_THW)]))
    logits = [reader.network.ctc_logits(encoded_BSE), reader.network.syllable_logits(encoded_BSE)]
    return [functional.log_softmax(head[0], dim=1).numpy() for head in logits if head is not None]


def test_the_export_gives_the_log_probabilities_of_the_network(
    reader: LipReader, graph: ExportedNetwork, onnx_file: bytes
) -> None:
    run = run_onnx(onnx_file)
    largest, tokens = 0.0, set()
    for seed, (B, num_frames) in enumerate(BATCHES):
        video_BTHW, num_frames_B = graph.example(num_frames, seed)
        for number, frames in enumerate(num_frames):
            video_BTHW[number, frames:] = 255  # padding must not matter
        ctc_BSV, syllables_BSW, num_steps_B = run(video_BTHW, num_frames_B)
        assert ctc_BSV.shape[0] == syllables_BSW.shape[0] == B
        stride = reader.model.temporal_stride
        assert num_steps_B.tolist() == [-(-frames // stride) for frames in num_frames]
        for number, frames in enumerate(num_frames):
            expected = network_log_probs(reader, video_BTHW[number, :frames])
            for theirs_BSV, ours_SV in zip((ctc_BSV, syllables_BSW), expected, strict=True):
                theirs_SV = theirs_BSV[number, : num_steps_B[number]]
                assert theirs_SV.shape == ours_SV.shape
                largest = max(largest, float(np.abs(theirs_SV - ours_SV).max()))
                assert (theirs_SV.argmax(1) == ours_SV.argmax(1)).all()
                tokens |= set(ours_SV.argmax(1))
    assert largest < 1e-3
    assert len(tokens) > 5  # the outputs differ between steps, else the comparison would be empty


def test_the_onnx_file_is_complete_with_fixed_opset_and_dynamic_batch_and_time(
    reader: LipReader, onnx_file: bytes
) -> None:
    model = onnx.load_model_from_string(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    shapes = {
        node.name: [axis.dim_param or axis.dim_value for axis in node.type.tensor_type.shape.dim]
        for node in (*model.graph.input, *model.graph.output)
    }
    characters, syllables = reader.vocabulary.characters, reader.vocabulary.syllables
    assert syllables is not None
    assert shapes == {
        "video": ["batch", "frames", 96, 96],
        "num_frames": ["batch"],
        "log_probs": ["batch", "steps", characters.num_tokens],
        "syllable_log_probs": ["batch", "steps", syllables.num_tokens],
        "num_steps": ["batch"],
    }
    assert json.loads(model.metadata_props[0].value) == config_of(reader)


def test_the_onnx_bytes_are_reproducible_and_contain_no_paths(
    reader: LipReader, graph: ExportedNetwork, onnx_file: bytes
) -> None:
    assert onnx_bytes(graph, config_of(reader)) == onnx_file
    assert str(Path(files.__file__).parent.parent.parent).encode() not in onnx_file
    assert b".py" not in onnx_file


def test_quantised_weights_are_int8_and_read_nearly_the_same(
    reader: LipReader, graph: ExportedNetwork, onnx_file: bytes
) -> None:
    small = quantised_bytes(onnx_file)
    assert quantised_bytes(onnx_file) == small
    assert len(small) < len(onnx_file)
    model = onnx.load_model_from_string(small)
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in model.graph.initializer}
    assert json.loads(model.metadata_props[0].value) == config_of(reader)
    fed = graph.example((40, 22), 3)
    exact, rough = run_onnx(onnx_file)(*fed), run_onnx(small)(*fed)
    errors = [np.abs(np.exp(a) - np.exp(b)).mean() for a, b in zip(exact[:2], rough[:2], strict=True)]
    assert 0 < max(errors) < 0.02


class MatMulInteger(OpRun):  # type: ignore[misc]
    """Computes like onnxruntime without VNNI: adds pairs of products in 16 bits, which saturate (vpmaddubsw)."""

    op_domain = ""

    def _run(
        self, inputs: np.ndarray, weights_KV: np.ndarray, zero: np.ndarray, _: np.ndarray
    ) -> tuple[np.ndarray]:
        even, odd = (
            inputs[..., first::2, None].astype(np.int32) * weights_KV[first::2].astype(np.int32)
            for first in (0, 1)
        )
        pairs = np.clip(even + odd, -(2**15), 2**15 - 1)
        return (pairs.sum(-2, dtype=np.int32) - np.int32(zero) * weights_KV.sum(0, dtype=np.int32),)


def test_quantised_weights_read_the_same_without_vnni(
    reader: LipReader, graph: ExportedNetwork, onnx_file: bytes
) -> None:
    """No sum of two 8-bit products exceeds 16 bits. The whole graph of the conformer is computed both ways."""
    model = onnx.load_model_from_string(quantised_bytes(onnx_file))
    weights = [
        onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert weights
    assert max(int(np.abs(tensor).max()) for tensor in weights) * 255 * 2 < 2**15
    if any(node.op_type == "DynamicQuantizeLSTM" for node in model.graph.node):
        return  # not part of standard ONNX, which the evaluator below computes
    video_BTHW, num_frames_B = graph.example((40, 22), 3)
    fed = {"video": video_BTHW.numpy(), "num_frames": num_frames_B.numpy()}
    exact = run_onnx(onnx_file)(video_BTHW, num_frames_B)
    saturated = ReferenceEvaluator(model, new_ops=[MatMulInteger]).run(None, fed)
    errors = [np.abs(np.exp(a) - np.exp(b)).mean() for a, b in zip(exact[:2], saturated[:2], strict=True)]
    assert 0 < max(errors) < 0.005  # 0.028 with weights of 8 bits


def test_a_model_with_only_an_attention_decoder_is_rejected() -> None:
    reader = random_reader(MODELS["conformer"], heads=("decoder",))
    with pytest.raises(ConfigError, match="--format safetensors"):
        ExportedNetwork(reader.network, reader.model, reader.crop_px)


def test_exporting_does_not_change_the_network(reader: LipReader) -> None:
    before = {name: tensor.clone() for name, tensor in reader.network.state_dict().items()}
    graph = ExportedNetwork(reader.network, reader.model, reader.crop_px)
    for parameter in graph.parameters():
        parameter.data.zero_()
    for name, tensor in reader.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.requires_grad for parameter in reader.network.parameters())


def test_a_wrong_export_is_reported(reader: LipReader, graph: ExportedNetwork, onnx_file: bytes) -> None:
    run = run_onnx(onnx_file)
    assert largest_difference(run, graph, reader) < files.TOLERANCE

    def slightly_wrong(video: torch.Tensor, frames: torch.Tensor) -> list[np.ndarray]:
        log_probs, *others = run(video, frames)
        return [log_probs - 0.05, *others]

    with pytest.raises(CheckpointError, match="nothing was written"):
        largest_difference(slightly_wrong, graph, reader)
    assert reader.network.ctc_head is not None
    other = random_reader(reader.model, seed=1)
    with pytest.raises(CheckpointError, match="differs from the network"):
        largest_difference(run, graph, other)


class _Standardised(torch.nn.Module):
    def forward(self, pixels_BTYX: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
        return normalised(pixels_BTYX, num_frames_B, ModelParams(standardise="clip"))


def test_a_long_clip_is_standardised_exactly(tmp_path: Path) -> None:
    """Forty seconds, a sum over 8 million pixels, against NumPy in float64."""
    with tracing():
        torch.onnx.export(
            _Standardised(),
            (torch.rand(1, 5, 88, 88), torch.tensor([5])),
            tmp_path / "input.onnx",
            input_names=["video", "num_frames"],
            dynamic_axes={"video": {1: "frames"}},
            opset_version=OPSET,
            dynamo=False,
        )
    pixels = torch.rand(1, 1_000, 88, 88, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    (fed,) = run_onnx((tmp_path / "input.onnx").read_bytes())(pixels, torch.tensor([1_000]))
    exact = pixels.double().numpy()
    assert np.abs(fed - (exact - exact.mean()) / exact.std()).max() < 1e-4


def test_a_frozen_size_is_an_error() -> None:
    with pytest.raises(SystemError) as caught, tracing():
        torch.jit.trace(lambda video: video.reshape(int(video.shape[0]), -1), torch.zeros(2, 3))
    assert isinstance(caught.value.__cause__, torch.jit.TracerWarning)


@pytest.fixture(scope="module")
def real_clips(realdata: Path) -> list[np.ndarray]:
    from shards.schema import MediaKind
    from stages.mouths.cropping import crop_video
    from stages.settings import CropParams

    videos = [sorted((realdata / "grid").rglob(f"*.{kind}"))[:2] for kind in ("mpg", "mp4")]
    assert all(videos)
    return [crop_video(path, MediaKind.FACE, CropParams()).clip_THW for paths in videos for path in paths]


@pytest.mark.realdata
@pytest.mark.parametrize("name", MODELS)
def test_real_clips_are_read_the_same_as_by_torch(
    real_clips: list[np.ndarray], tmp_path: Path, name: str
) -> None:
    from model.exports.onnx_reader import OnnxReader

    reader = random_reader(MODELS[name])
    graph = ExportedNetwork(reader.network, reader.model, reader.crop_px)
    exported = OnnxReader.of_bytes(onnx_bytes(graph, config_of(reader)), tmp_path / "model.onnx")
    texts = set()
    for clip_THW in real_clips:
        for decoder in ("ctc", "syllables"):
            params = DecodeParams(decoder=decoder)
            ours, theirs = reader.read_clip(clip_THW, params), exported.read_clip(clip_THW, params)
            assert theirs.text == ours.text
            assert theirs.score == pytest.approx(ours.score, abs=1e-3)
            texts.add(ours.text)
    assert len(texts) > 1 and "" not in texts
