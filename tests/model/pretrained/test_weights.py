"""Public checkpoints through `pipeline import-weights`: their outputs, and the report."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.checkpoints import KEYS, load_checkpoint, save_checkpoint, vocabulary_of
from model.decoding.reader import LipReader
from model.networks.network_input import step_mask
from model.pretrained.files import PublicFormat, open_weights
from model.pretrained.weights import import_weights
from model.settings import DecodeParams
from model.text import START_ID, UNKNOWN_ID, Tokenizer
from pipeline.commands.models import import_weights as verb_of_people
from shards.errors import CheckpointError, ConfigError
from tests.support import in_process
from tests.support.packed import pack_clips, toy_clips
from tests.support.public_weights import (  # noqa: F401
    CHARACTERS,
    CPU,
    FORMATS,
    SIZES,
    SMALL,
    Weights,
    format_fixture,
    imported,
    in_their_order,
    public_fixture,
    saved,
    synthetic_weights,
    table_file,
)
from tests.support.trainings import read_test_clips

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def reference(realdata: Path) -> Path:
    return realdata.parent / "reference"


def referee_weights(reference: Path, format: PublicFormat) -> Weights:
    weights = load_file(reference / f"{format}_tiny.weights.safetensors")
    if format == "cnvsrc2025":  # its file has no frontend: it is auto_avsr's
        shared = load_file(reference / "auto_avsr_tiny.weights.safetensors")
        weights |= {
            f"encoder.{name}": value for name, value in shared.items() if name.startswith("frontend.")
        }
    return weights


def verb(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: Any, **options: Any) -> str:
    """Returns what `pipeline import-weights` prints in `folder`, in this process."""
    with contextlib.chdir(folder):
        verb_of_people(*arguments, **options)
    return " ".join(capsys.readouterr().out.split())


# -- the referees ----------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize("format", FORMATS)
def test_the_imported_checkpoint_gives_the_outputs_of_the_referee(
    reference: Path, format: PublicFormat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if format == "auto_avsr":
        file = reference / "auto_avsr_tiny.weights.safetensors"
    else:
        file = tmp_path / "public.pth"
        prefixed = {f"module.{name}": value for name, value in referee_weights(reference, format).items()}
        torch.save({"epoch": 7, "state_dict": prefixed}, file)
    table = table_file(tmp_path, CHARACTERS)
    report = json.loads(verb(tmp_path, capsys, file, format, table, json_=True))
    assert all(part["matched"] and not part["left"] and not part["new"] for part in report["parts"])
    assert sum(part["matched"] for part in report["parts"]) == len(referee_weights(reference, format))
    assert (report["left"], report["num_characters"], report["rows_kept"]) == ([], 57, 60)
    reader = LipReader.from_checkpoint(tmp_path / "imported.pt", CPU)
    assert (reader.fps, reader.crop_px, reader.epoch) == (25.0, 96, -1)
    assert_outputs_agree(reader, load_file(reference / f"{format}_tiny.io.safetensors"))


@torch.no_grad()
def assert_outputs_agree(reader: LipReader, io: Mapping[str, torch.Tensor]) -> None:
    """Compares single clips and a padded batch; columns in the referee's order."""
    network = reader.network
    assert network.ctc_head is not None and network.decoder is not None
    video = io["input.video"].float().transpose(1, 2)
    num_frames, num_fed = io["input.lengths"], (7, 5)
    # the referee's tokens: 1 is <unk>, 59 is start and end, and k is the character k + 2 of ours
    fed = io["input.decoder_tokens"]
    ours = torch.where(fed == 59, START_ID, torch.where(fed == 1, UNKNOWN_ID, fed + 2))
    compared = set()
    for together in (True, False):
        for clip, frames in enumerate(num_frames.tolist()):
            rows = slice(0, 2) if together else slice(clip, clip + 1)
            frames, tokens = (23, 7) if together else (frames, num_fed[clip])
            encoded, steps = network.encode(video[rows, :, :frames], num_frames[rows])
            padding = ~step_mask(steps, encoded.shape[1])
            features, _ = network.frontend(video[rows, :, :frames], num_frames[rows])
            logits = network.ctc_logits(encoded)
            assert logits is not None
            found = {
                "frontend": features,
                "encoder": encoded,
                "ctc_log_probs": in_their_order(logits.log_softmax(2), 57),
                "decoder_logits": in_their_order(
                    network.decoder.logits(encoded, padding, ours[rows, :tokens]), 57
                ),
            }
            if network.reverse_decoder is not None:
                reverse = network.reverse_decoder.logits(encoded, padding, ours[rows, :tokens])
                found["r_decoder_logits"] = in_their_order(reverse, 57)
            for name, values in found.items():
                expected = io[f"output.{name}.clip{clip}"]
                compared.add(f"output.{name}.clip{clip}")
                inside = values[clip if together else 0, None, : expected.shape[1]]
                torch.testing.assert_close(inside, expected, rtol=0, atol=1e-4)
    assert compared == {name for name in io if name.startswith("output.")}


# -- synthetic weights -----------------------------------------------------------------------------------


@torch.no_grad()
def test_heads_give_the_public_probabilities_and_0_for_new_tokens(
    public: Weights, format: PublicFormat, tmp_path: Path
) -> None:
    reader, report = imported(tmp_path, saved(tmp_path, public), format, "whole", table_file(tmp_path, SMALL))
    assert reader.model.sizes.model_dump() | {"channels": SIZES["channels"]} == SIZES | (
        {} if format == "cnvsrc2025" else {"num_reverse_layers": 3}  # from the preset: the format has none
    )
    assert report.heads == (
        ("ctc", "decoder") if format == "auto_avsr" else ("ctc", "decoder", "reverse_decoder")
    )
    network = reader.network
    assert network.ctc_head is not None and isinstance(network.decoder, torch.nn.Module)
    encoded = torch.randn(1, 5, 16)
    theirs = encoded @ public["ctc.ctc_lo.weight"].T + public["ctc.ctc_lo.bias"]
    ours = network.ctc_head(encoded).softmax(2)
    torch.testing.assert_close(in_their_order(ours, 7), theirs.softmax(2))
    assert float(ours[..., START_ID].max()) == 0.0
    embedding = network.decoder.embedding.weight
    assert torch.equal(embedding[START_ID], public["decoder.embed.0.weight"][9])
    assert torch.equal(embedding[UNKNOWN_ID], public["decoder.embed.0.weight"][1])
    assert torch.equal(embedding[UNKNOWN_ID + 3], public["decoder.embed.0.weight"][4])
    statistics = "frontend.trunk.layer2.0.downsample.1.running_var"
    statistics = f"encoder.{statistics}" if format == "cnvsrc2025" else statistics
    assert torch.equal(network.frontend.state_dict()["stages.1.0.shortcut.1.running_var"], public[statistics])
    assert reader.vocabulary.characters.units == tuple(SMALL)


def test_an_imported_checkpoint_reads_clips_and_is_complete(
    public: Weights, format: PublicFormat, tmp_path: Path
) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in public.items()}
    for name in ("public.safetensors", "public.ckpt"):
        reader, _ = imported(
            tmp_path, saved(tmp_path, half, name), format, "whole", table_file(tmp_path, SMALL)
        )
        clip = np.random.default_rng(0).integers(0, 256, (9, 96, 96), dtype=np.uint8)
        for decoder in ("attention", "ctc"):
            reading = reader.read_clip(clip, DecodeParams(decoder=decoder))
            assert set(reading.text) <= set(SMALL) and np.isfinite(reading.score)
    state = load_checkpoint(tmp_path / "imported.pt")
    assert set(KEYS) <= state.keys() and state["optimizer_state_dict"] is None
    assert all(t.dtype == torch.float32 for t in state["model_state_dict"].values() if t.is_floating_point())


def test_lower_parts_need_no_public_table(tmp_path: Path, public: Weights, format: PublicFormat) -> None:
    file, corpus = saved(tmp_path, public), Tokenizer(("a", "b"))
    named = open_weights(file, format).named
    for part, learnt in (("encoder", ["frontend", "encoder"]), ("frontend", ["frontend"])):
        with pytest.raises(ConfigError, match="--vocabulary"):
            import_weights(file, format, part)
        checkpoint, report = import_weights(file, format, part, corpus=corpus)
        torch.manual_seed(9)
        again, _ = import_weights(file, format, part, corpus=corpus)
        ours = checkpoint["model_state_dict"]
        for name, tensor in ours.items():
            taken = name.partition(".")[0] in learnt
            assert torch.equal(tensor, again["model_state_dict"][name])
            assert taken == (
                name in named and torch.equal(tensor.reshape(-1), named[name].float().reshape(-1))
            ) or name.endswith("num_batches_tracked")
        assert (checkpoint["learnt_parts"], checkpoint["heads"]) == (learnt, ["ctc"])
        by_part = {part_report.part: part_report for part_report in report.parts}
        assert by_part["ctc_head"].new == 2 and by_part["decoder"].left > 20
        assert (by_part["encoder"].new > 0) == (part == "frontend")
        assert sum(counts.matched + counts.left for counts in report.parts) == len(public)
        save_checkpoint(tmp_path / "part.pt", checkpoint)
        assert vocabulary_of(load_checkpoint(tmp_path / "part.pt"), tmp_path).characters == corpus
        alone, fresh = " and ".join(learnt), "every head" if part == "encoder" else "encoder and every head"
        message = (
            f"only imported weights of {alone} .*{fresh} is not trained.* train.init_from=.*part.pt first"
        )
        with pytest.raises(CheckpointError, match=message):
            LipReader.from_checkpoint(tmp_path / "part.pt", CPU)
    # units of several characters only prevent the import of heads
    pieces = table_file(tmp_path, ["ing", *SMALL[1:]])
    with pytest.raises(CheckpointError, match=r"single characters \(ing\).*--part encoder without"):
        import_weights(file, format, "whole", pieces)


def test_the_command_prints_a_report_and_uses_the_characters_of_packed_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = synthetic_weights("auto_avsr")
    file = saved(tmp_path, weights | {"lm.weight": torch.ones(2)})
    with pytest.raises(ConfigError, match=r"--vocabulary FILE is missing.*or a params.yaml"):
        verb(tmp_path, capsys, file, "auto_avsr", part="encoder")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    packed = pack_clips(tmp_path / "data", toy_clips(6, 2))
    printed = verb(tmp_path, capsys, file, "auto_avsr", part="encoder")
    assert "tensors that the format does not have, left out (1): lm.weight" in printed
    assert "characters: 4, from the labels of the packed train clips" in printed
    assert "ctc_head: not trained yet; use this checkpoint for train.init_from" in printed
    printed = verb(tmp_path, capsys, file, "auto_avsr", table_file(tmp_path, SMALL))
    assert "packed train clips that the model cannot read (3): 三 二 四" in printed
    scored = read_test_clips(LipReader.from_checkpoint(tmp_path / "imported.pt", CPU), packed)
    assert [clip.clip_id for clip in scored] == ["test_000", "test_001"]
    for assignment in ("model.window_px=64", "paths.shards=elsewhere", "text"):
        with pytest.raises(ConfigError, match=f"--set {assignment}: .* only text and paths.samples"):
            verb(tmp_path, capsys, file, "auto_avsr", part="encoder", assignments=[assignment])
    printed = verb(
        tmp_path,
        capsys,
        file,
        "auto_avsr",
        table_file(tmp_path, ["B", *SMALL[1:]]),
        assignments=["text.case_fold=false"],
    )
    assert "rewritten as in labels" not in printed
    with pytest.raises(ConfigError, match="is the input file"):
        verb(tmp_path, capsys, file, "auto_avsr", out=file)


def test_the_command_line_imports_weights(tmp_path: Path) -> None:
    file = saved(tmp_path, synthetic_weights("cnvsrc2025"), "public.safetensors")
    arguments = ["import-weights", file, "--format", "cnvsrc2025", "--part=frontend", "--out", "eyes.pt"]
    arguments += ["--vocabulary", table_file(tmp_path, SMALL)]
    done = in_process.pipeline(tmp_path, list(map(str, arguments)))
    assert done.returncode == 0, done.stderr
    assert "eyes.pt: heads ctc" in done.stdout
    assert load_checkpoint(tmp_path / "eyes.pt")["learnt_parts"] == ["frontend"]
