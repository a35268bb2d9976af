"""Tests `pipeline test --decoder …`: all decoders use one encoding and give the figures of separate runs."""

import json
import math
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jiwer
import pyarrow as pa
import pytest
import torch
import yaml

from model.checkpoints import load_checkpoint, save_checkpoint
from model.decoding.fusion import open_checkpoints
from model.decoding.reader import LipReader
from model.decoding.scoring import score_decoders, score_split
from model.metrics import EditCounts, edit_counts, total_counts
from model.settings import DecodeParams, TextParams
from model.text import NORMALISER_VERSION, SPECIAL_TOKENS, normaliser_metadata
from pipeline.inference.readers import models_of, open_reader
from pipeline.params import load_params, read_mapping
from pipeline.tables.decoders import compare_decoders
from shards.errors import ConfigError
from shards.files import file_identity, read_table, table_from_rows, write_table
from shards.packs import Pack, Packs
from shards.samples import read_samples
from shards.schema import CLIPS, CROPS, PREDICTIONS, SAMPLES
from shards.settings import LoaderParams, MachineParams
from shards.store import FolderStore
from stages.reports.clip_tables import rejected_clips
from tests.support.in_process import pipeline
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import state_of
from tests.support.trainings import job_in

ROOT = Path(__file__).parents[2]
DECODERS = ["attention", "ctc", "syllables", "ctc_beam", "attention_beam", "joint_beam"]
HOW = {"batch_size": 2, "loader": LoaderParams(), "machine": MachineParams(threads=1, device="cpu")}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with packed clips and a checkpoint that was never trained."""
    folder = tmp_path_factory.mktemp("workplace")
    packed = pack_clips(folder / "data", toy_clips(12, 5))
    # two speakers, in every split
    samples = read_table(packed.samples, SAMPLES, "pipeline pack")
    speakers = pa.array([("a", "b")[index % 2] for index in range(len(samples))])
    place = samples.schema.get_field_index("speaker")
    named = samples.set_column(place, SAMPLES.field("speaker"), speakers)
    write_table(
        packed.samples, named, SAMPLES.with_metadata(SAMPLES.metadata | normaliser_metadata(TextParams()))
    )
    state = state_of(job_in(folder, packed, syllable_weight=0.3))
    with torch.no_grad():
        for parameter in state.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    (folder / "checkpoints").mkdir()
    save_checkpoint(folder / "checkpoints" / "best_model.pt", state.as_checkpoint(None))
    params = read_mapping(ROOT / "params.yaml")
    params["machine"] |= {"threads": 1, "device": "cpu"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    return folder


@dataclass
class Counting(LipReader):
    """A reader that counts the batches it encodes."""

    encoded: int = 0

    def encode(
        self, video_BTHW: torch.Tensor, num_frames_B: torch.Tensor, blind: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.encoded += 1
        return super().encode(video_BTHW, num_frames_B, blind)


def test_decoders_share_one_encoding_and_read_as_separately(workplace: Path) -> None:
    reader = Counting.from_checkpoint(workplace / "checkpoints" / "best_model.pt", torch.device("cpu"))
    assert isinstance(reader, Counting)
    packed = Packed.at(workplace / "data")
    samples = read_samples(packed.samples, "test")
    decodes = [DecodeParams(decoder=name) for name in DECODERS]
    together, encode_s = score_decoders(reader, samples, packed.store, decodes, **HOW)  # type: ignore[arg-type]
    assert reader.encoded == 3
    assert [one.decoder for one in together] == DECODERS
    assert encode_s > 0 and all(one.decode_s > 0 for one in together)
    for decode, one in zip(decodes, together, strict=True):
        separate = score_split(reader, samples, packed.store, decode=decode, **HOW)  # type: ignore[arg-type]
        assert one.clips == [
            replace(clip, candidates=tuple(replace(each, parts=None) for each in clip.candidates))
            for clip in separate
        ]
        assert all(bool(clip.candidates) == decode.decoder.endswith("beam") for clip in separate)
        assert all(each.parts is not None for clip in separate for each in clip.candidates)


def test_the_verb_prints_every_decoder_with_its_errors(workplace: Path) -> None:
    command = ["test", "--decoder", "all", "--json"]
    done = pipeline(workplace, command)
    assert done.returncode == 0, done.stderr
    assert "pinyin is left out" in done.stderr
    rows = {row["decoder"]: row for row in json.loads(done.stdout)}
    assert list(rows) == DECODERS
    params = load_params(workplace / "params.yaml")
    reader = LipReader.from_checkpoint(workplace / "checkpoints" / "best_model.pt", torch.device("cpu"))
    packed = Packed.at(workplace / "data")
    for name, row in rows.items():
        clips = score_split(
            reader,
            read_samples(packed.samples, "test"),
            packed.store,
            decode=params.decode.model_copy(update={"decoder": name}),
            **HOW,  # type: ignore[arg-type]
        )
        counted = jiwer.process_characters([c.reference for c in clips], [c.hypothesis for c in clips])
        assert row["cer"] == counted.cer
        best = [
            min((each.text for each in clip.candidates), key=partial(jiwer.cer, clip.reference), default=None)
            for clip in clips
        ]
        greedy = not name.endswith("beam")
        assert row["oracle_cer"] == (None if greedy else jiwer.cer([c.reference for c in clips], best))
        assert row["oracle_candidates"] == (None if greedy else 5)
        # an alignment may not be unique, so jiwer's three counts are compared only by their sum
        assert row["substitutions"] + row["deletions"] + row["insertions"] == (
            counted.substitutions + counted.deletions + counted.insertions
        )
        counts = sum((edit_counts(c.reference, c.hypothesis) for c in clips), EditCounts())
        for kind in ("substitutions", "deletions", "insertions", "num_chars"):
            assert row[kind] == getattr(counts, kind), kind
        assert (row["num_clips"], row["num_speakers"]) == (5, 2)
        assert row["speaker_overlap"] == 2
        by_speaker = {
            total_counts((c.reference, c.hypothesis) for c in clips if c.speaker == speaker).cer
            for speaker in {clip.speaker for clip in clips}
        }
        if len(by_speaker) > 1:
            assert row["cer_interval_over"] == "speakers" and row["cer_low"] <= row["cer"] <= row["cer_high"]
        else:
            assert row["cer_interval_over"] is row["cer_low"] is row["cer_high"] is None
        # five clips make five bins of one clip; jiwer gives the reference accuracy of each
        right = [max(0.0, 1 - jiwer.cer(clip.reference, clip.hypothesis)) for clip in clips]
        apart = [abs(math.exp(clip.score) - one) for clip, one in zip(clips, right, strict=True)]
        assert row["calibration_error"] == pytest.approx(sum(apart) / 5, abs=1e-6)
        assert row["normaliser"] == row["checkpoint_normaliser"] == reader.normaliser
        assert ("wer" in row) == (name == "syllables")
        assert row["clips_per_s"] == pytest.approx(1 / (row["encode_s_per_clip"] + row["decode_s_per_clip"]))


def test_references_of_another_normaliser_get_a_warning(workplace: Path, tmp_path: Path) -> None:
    """Labels made with digits as Chinese characters, read by a model that learnt digits."""
    other = tmp_path / "samples.parquet"
    mark = normaliser_metadata(TextParams(digits="chinese"))
    samples = read_table(workplace / "data" / "samples.parquet", SAMPLES, "pipeline pack")
    write_table(other, samples, SAMPLES.with_metadata(SAMPLES.metadata | mark))
    for decoder in ([], ["--decoder", "ctc"]):
        for path, warns in ((other, True), (workplace / "data" / "samples.parquet", False)):
            command = ["test", *decoder, "--set", f"paths.samples={path}"]
            done = pipeline(workplace, command)
            assert done.returncode == 0, done.stderr
            said = " ".join(done.stdout.split())
            assert (
                "Warning: The references and the labels that this model learnt have different normalisers"
                in said
            ) == warns
            assert (
                f"digits as Chinese characters, one by one (version {NORMALISER_VERSION})" in said
            ) == warns
            assert ("Normaliser of the references and of the model's labels: NFKC" in said) != warns


def test_decoder_pinyin_needs_a_language_model(workplace: Path) -> None:
    """Also: a decoder given twice is one row."""
    made = pipeline(workplace, ["lm"])
    assert made.returncode == 0, made.stderr
    names = ["--decoder", "pinyin", "--decoder", "joint_beam", "--decoder", "pinyin"]
    command = ["test", *names, "--set", "decode.lm_weight=0.3", "--split", "valid"]
    done = pipeline(workplace, command)
    assert done.returncode == 0, done.stderr
    assert "2 of the speakers of split valid are in the training clips" in done.stdout
    assert "with fewer than 8 it is too narrow" in done.stdout
    assert "ECE: expected calibration error of the confidence" in done.stdout
    assert [done.stdout.count(name) for name in ("pinyin", "joint_beam", "split valid: 5 clips")] == [1, 1, 1]


def unstated(field: pa.Field) -> object:
    return None if field.nullable else "" if pa.types.is_string(field.type) else 0


def report_by(workplace: Path, *assignments: str) -> tuple[dict[str, Any], str, str]:
    """Runs `pipeline report`; returns metrics.json, the page and the log."""
    rejected = [
        {"clip_id": f"gone_{split}", "split": split, "reason": "no_face"} for split in ("test", "train")
    ]
    for name, schema in (("clips", CLIPS), ("crops", CROPS)):
        rows = [{field.name: row.get(field.name, unstated(field)) for field in schema} for row in rejected]
        write_table(workplace / f"data/{name}.parquet", table_from_rows(rows, schema), schema)
    flags = [part for assignment in assignments for part in ("--set", assignment)]
    command = ["report", *flags]
    done = pipeline(workplace, command)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((workplace / "report/metrics.json").read_text("utf-8"))
    return metrics, (workplace / "report/report.html").read_text("utf-8"), done.stderr


def spikes_by_clip(page: str) -> dict[str, list[str]]:
    """Returns the texts over the spikes of each clip in a report, in order of time."""
    articles = [part.split("</article>")[0] for part in page.split('<article class="clip">')[1:]]
    return {
        re.findall(r'<bdi class="id">(.*?)</bdi>', one)[0]: re.findall(
            r'<g class="stem.*?text-anchor="middle">(.*?)</text>', one
        )
        for one in articles
    }


def test_the_output_of_a_syllable_head_is_under_the_film_strip(workplace: Path) -> None:
    """With a greedy decoder the spikes are the text; decoder pinyin shows the same spikes."""
    state = load_checkpoint(workplace / "checkpoints" / "best_model.pt")
    first = len(SPECIAL_TOKENS)
    for head in ("ctc_head", "syllable_head"):
        # heads that output many units
        state["model_state_dict"][f"{head}.bias"][:first] -= 1
        weight = state["model_state_dict"][f"{head}.weight"]
        weight[first:].normal_(0, 20, generator=torch.Generator().manual_seed(0))
    (workplace / "loud").mkdir()
    save_checkpoint(workplace / "loud" / "best_model.pt", state)
    made = pipeline(workplace, ["lm"])
    assert made.returncode == 0, made.stderr
    metrics, page, _ = report_by(workplace, "decode.decoder=syllables", "paths.checkpoints=loud")
    assert metrics["decode"] == {"decoder": "syllables"}
    assert "do not compare this rate with a CER" in page and "A spike: a syllable" in page
    read = read_table(workplace / "report/predictions.parquet", PREDICTIONS, "pipeline report").to_pylist()
    heard = spikes_by_clip(page)
    assert any(heard.values()) and len(heard) == len(read)
    assert {row["clip_id"]: row["hypothesis"].split() for row in read} == heard
    _, page, _ = report_by(
        workplace, "decode.decoder=pinyin", "decode.lm_weight=0.3", "paths.checkpoints=loud"
    )
    assert spikes_by_clip(page) == heard and "A spike: a syllable" in page
    _, page, _ = report_by(workplace, "decode.decoder=ctc", "paths.checkpoints=loud")
    characters = {text for texts in spikes_by_clip(page).values() for text in texts}
    assert characters and characters <= set("一二三四")
    assert "A spike: a character" in page


def test_a_report_names_its_decoder_settings(workplace: Path) -> None:
    made = pipeline(workplace, ["lm"])
    assert made.returncode == 0, made.stderr
    weights = ("decode.lm_weight=0.5", "decode.syllable_weight=0.2")
    metrics, page, output = report_by(workplace, "decode.decoder=ctc_beam", *weights)
    assert metrics["decode"] == {
        "decoder": "ctc_beam",
        "beam": 10,
        "length_bonus": 0.0,
        "lm_weight": 0.5,
        "syllable_weight": 0.2,
    }
    assert metrics["language_model"] == file_identity(workplace / "data/lm.arpa")
    assert metrics["num_rejected"] == 1 and "Not included: 1 clip of this split" in page, "of the split alone"
    assert metrics["language_model"] in page and "nothing:" not in output
    # tables of another corpus say nothing about these clips
    clips, crops, samples = (workplace / f"data/{name}.parquet" for name in ("clips", "crops", "samples"))
    packs = Packs([Pack("", samples, FolderStore(workplace / "data/shards"), clips, crops)])
    assert rejected_clips(packs, "test", []) == {"": 1}
    assert rejected_clips(packs, "test", ["a stranger"]) == {"": None}
    # with a language model of another text than in params.yaml
    (workplace / "novel.txt").write_text("一二三\n", "utf-8")
    novel = "lm.text_file=novel.txt"
    _, _, output = report_by(workplace, "decode.decoder=ctc_beam", *weights, novel)
    assert output.count("was made from another text (samples.parquet, split train)") == 1
    for decoder in (["--decoder", "ctc_beam"], ["--set", "decode.decoder=ctc_beam"]):
        command = ["test", "--set", weights[0], "--set", novel, *decoder]
        done = pipeline(workplace, command)
        assert done.returncode == 0 and done.stderr.count("was made from another text") == 1, done.stderr
    metrics, page, output = report_by(workplace, *weights, novel)
    assert "another text" not in output
    assert metrics["language_model"] is None and "beam" not in metrics["decode"]
    assert (
        output.count("decode.lm_weight and decode.syllable_weight change nothing: attention is greedy") == 1
    )
    assert "language model</dt>" not in page


def test_an_unknown_or_unlearnt_decoder_is_refused(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    params = load_params(Path("params.yaml"))
    with pytest.raises(ConfigError, match=r"--decoder must be one of attention, ctc.* \(got beam\)"):
        compare_decoders([Path("checkpoints/best_model.pt")], params, ["beam"])
    with pytest.raises(ConfigError, match=r"decode\.lm_weight must be above 0.*decoder pinyin"):
        compare_decoders([Path("checkpoints/best_model.pt")], params, ["pinyin"])


def test_inference_warns_of_weights_without_effect(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = workplace / "checkpoints/best_model.pt"
    for assignments in ((), ("decode.length_bonus=0.5",)):
        params = load_params(workplace / "params.yaml", assignments=assignments)
        open_reader([checkpoint], params)
        output = [record.message for record in caplog.records]
        assert len(output) == len(assignments) and all(
            "decode.length_bonus changes nothing" in line for line in output
        )


def other_checkpoint(workplace: Path) -> Path:
    """Writes the model of the workplace with other weights; returns its path."""
    state = load_checkpoint(workplace / "checkpoints" / "best_model.pt")
    weights = state["model_state_dict"]
    torch.manual_seed(3)
    for name in ("ctc_head.weight", "ctc_head.bias"):
        weights[name] = weights[name] + 0.3 * torch.randn_like(weights[name])
    save_checkpoint(workplace / "other.pt", state)
    return workplace / "other.pt"


def test_several_checkpoints_and_views_are_read_and_named(workplace: Path) -> None:
    other, best = other_checkpoint(workplace), workplace / "checkpoints" / "best_model.pt"
    together = ["--checkpoint", str(best), "--checkpoint", str(other), "--set", "decode.views=[flip]"]
    ctc = ["--set", "decode.decoder=ctc"]
    done = pipeline(workplace, ["test", *together, *ctc, "--json"])
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    models = f"{file_identity(best)} + {file_identity(other)}"
    how = {"decoder": "ctc", "beam": 10, "fusion": "n-best", "views": ["flip"]}
    assert (metrics["checkpoint"], metrics["decode"]) == (models, how)
    reader = open_checkpoints([best, other], torch.device("cpu"), ["flip"])
    packed = Packed.at(workplace / "data")
    samples = read_samples(packed.samples, "test")
    clips = score_split(reader, samples, packed.store, decode=DecodeParams(decoder="ctc"), **HOW)  # type: ignore[arg-type]
    assert metrics["cer"] == total_counts((clip.reference, clip.hypothesis) for clip in clips).cer
    compared = pipeline(
        workplace, ["test", *together, "--decoder", "ctc", "--decoder", "attention", "--json"]
    )
    first, second = json.loads(compared.stdout)
    assert (first["checkpoint"], first["decode"], first["cer"]) == (models, how, metrics["cer"])
    assert second["decode"]["fusion"] == "rover"
    reported = pipeline(workplace, ["report", *together, *ctc, "--json"])
    found = json.loads(reported.stdout)
    # crops.parquet of the workplace names other clips, which only report counts
    assert found == metrics | {"num_rejected": found["num_rejected"]}
    page = (workplace / "report" / "report.html").read_text("utf-8")
    assert "ctc, beam 10, fusion n-best, views flip" in page and "epoch -1 + -1" in page


def test_fusion_that_cannot_be_is_refused(workplace: Path) -> None:
    params = load_params(workplace / "params.yaml")
    best, onnx = workplace / "checkpoints" / "best_model.pt", Path("b.onnx")
    views = params.model_copy(update={"decode": DecodeParams(views=("flip",))})
    for models, with_views in (([best, onnx], params), ([onnx], views)):
        with pytest.raises(ConfigError, match=r"b.onnx is an ONNX model.*alone.*set decode.views=\[\]"):
            open_reader(models, with_views)
    with pytest.raises(ConfigError, match=r"--onnx cannot be used together.*give only one"):
        models_of([best, best], onnx, params)
    for value, said in (
        ("[flip, flip]", "names flip twice; name each view once"),
        ("[turn]", "decode.views"),
    ):
        done = pipeline(workplace, ["test", "--set", f"decode.views={value}"])
        assert done.returncode == 2 and said in done.stderr
