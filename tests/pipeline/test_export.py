"""`pipeline export`: complete folders, cards with only what was measured, and examples that run."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
import safetensors
import torch

from model.checkpoints import load_checkpoint, save_checkpoint
from model.decoding.reader import LipReader
from model.settings import DecodeParams
from model.text import SPECIAL_TOKENS
from pipeline.export import export
from pipeline.params import Params, load_params
from shards.errors import CheckpointError, ConfigError, MachineError, TableError
from shards.files import file_identity
from shards.samples import read_samples
from shards.stream import read_sample
from stages.cards.model_card import FILES, ExportFormat, Measured, TrainedOn, example, model_card
from stages.reports.figures import interval_about
from stages.train import train
from tests.support import forked
from tests.support.exported import report_in
from tests.support.in_process import pipeline
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.trainings import job_in

ROOT = Path(__file__).parents[2]
FORMATS: tuple[ExportFormat, ...] = ("onnx", "safetensors")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy clips and a model of them with CTC and attention. The CTC head is changed to output long texts."""
    folder = tmp_path_factory.mktemp("workspace")
    job = job_in(folder, pack_clips(folder, toy_clips(16, 3)), num_epochs=2)
    config = "corpus:\n  kind: grid\n  root: nowhere\n  license: CC-BY-NC-SA-4.0\n"
    train(replace(job, config_text=config))
    state = load_checkpoint(folder / "checkpoints" / "best_model.pt")
    weights = state["model_state_dict"]
    first = len(SPECIAL_TOKENS)
    weights["ctc_head.bias"].zero_()[:first] -= 1
    weights["ctc_head.weight"].zero_()[first:].normal_(0, 20, generator=torch.Generator().manual_seed(0))
    save_checkpoint(folder / "checkpoints" / "best_model.pt", state)
    return folder


@pytest.fixture(scope="module")
def best(workspace: Path) -> Path:
    return workspace / "checkpoints" / "best_model.pt"


@pytest.fixture
def params(workspace: Path, tmp_path: Path) -> Params:
    paths = {name: str(workspace / name) for name in ("shards", "checkpoints")}
    paths |= {"samples": str(workspace / "samples.parquet"), "report": str(tmp_path / "report")}
    flags = {f"paths.{name}": value for name, value in paths.items()}
    return load_params(ROOT / "params.yaml", flags=flags | {"decode.decoder": "ctc"})


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_is_a_complete_folder_and_its_example_runs(
    workspace: Path, best: Path, params: Params, tmp_path: Path, format: ExportFormat
) -> None:
    out = tmp_path / "out"
    facts = export(best, format, out, params)
    assert {path.name for path in out.iterdir()} == {FILES[format], "config.json", "MODEL_CARD.md"}
    assert [(file.name, file.num_bytes) for file in facts.files] == [
        (FILES[format], (out / FILES[format]).stat().st_size)
    ]
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert (config["fps"], config["crop_px"], config["characters"]["characters"]) == (
        25.0,
        96,
        list("一三二四"),
    )
    card = (out / "MODEL_CARD.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert code == example(format, ["ctc", "decoder"])
    clip_THW = read_sample(Packed.at(workspace).store, _first_record(workspace))[0]
    np.save(out / "clip.npy", clip_THW)
    if format == "onnx":  # runs without torch
        (tmp_path / "blocked").mkdir()
        (tmp_path / "blocked" / "torch.py").write_text("raise ImportError('torch is not here')", "utf-8")
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "blocked")}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=out,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    else:
        done = forked.python(code, folder=out)
    assert done.returncode == 0, done.stderr
    if format == "safetensors":
        with safetensors.safe_open(out / FILES[format], "pt") as file:
            assert set(file.keys()) == load_checkpoint(best)["model_state_dict"].keys()
    else:
        reading = LipReader.from_checkpoint(best, torch.device("cpu")).read_clip(
            clip_THW, DecodeParams(decoder="ctc")
        )
        assert done.stdout.strip("\n") == reading.text != ""
        assert facts.difference is not None and facts.difference < 1e-3


def _first_record(workspace: Path) -> dict[str, object]:
    record: dict[str, object] = read_samples(workspace / "samples.parquet", "test").to_pylist()[0]
    return record


def test_the_cer_of_quantisation_is_measured(
    workspace: Path, best: Path, params: Params, tmp_path: Path
) -> None:
    """The CER of the float file equals that of the network, counted by jiwer."""
    out = tmp_path / "out"
    progress: list[tuple[int, int]] = []
    facts = export(best, "onnx", out, params, int8=True, on_progress=lambda *done: progress.append(done))
    exact, small = facts.files
    assert (exact.name, small.name) == ("model.onnx", "model_int8.onnx")
    assert small.num_bytes < exact.num_bytes
    assert progress[-1] == (6, 6)
    reader = LipReader.from_checkpoint(best, torch.device("cpu"))
    records = read_samples(workspace / "samples.parquet", "test").to_pylist()
    ctc = DecodeParams(decoder="ctc")
    texts = [reader.read_clip(read_sample(Packed.at(workspace).store, row)[0], ctc).text for row in records]
    assert exact.cer == pytest.approx(jiwer.cer([row["label"] for row in records], texts))
    assert small.cer is not None and exact.clips_per_s is not None and exact.clips_per_s > 0
    card = (out / "MODEL_CARD.md").read_text("utf-8")
    for file in facts.files:
        assert file.cer is not None
        assert f"| {file.name} | {file.num_bytes / 1e6:.1f} | {100 * file.cer:.2f} % |" in card
    # a new export removes the files of an older one, and nothing else
    (out / "notes.txt").write_text("mine")
    export(best, "onnx", out, params)
    assert {path.name for path in out.iterdir()} == {
        "model.onnx",
        "config.json",
        "MODEL_CARD.md",
        "notes.txt",
    }


def test_an_older_export_is_removed_last_and_named(
    best: Path, params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export(best, "onnx", out, params)
    (out / "model.torchscript.pt").touch()  # older versions wrote it
    assert capsys.readouterr().err == ""
    (out / "config.json").unlink()
    (out / "config.json").mkdir()
    with pytest.raises(MachineError, match="cannot be written"):
        export(best, "safetensors", out, params)
    assert (out / FILES["onnx"]).is_file()  # not before the new export is complete
    (out / "config.json").rmdir()
    export(best, "safetensors", out, params)
    assert {path.name for path in out.iterdir()} == {FILES["safetensors"], "config.json", "MODEL_CARD.md"}
    assert re.search(r"removed.*older export.*model\.onnx, model\.torchscript\.pt", capsys.readouterr().err)


def test_two_exports_of_a_checkpoint_have_the_same_bytes(best: Path, params: Params, tmp_path: Path) -> None:
    for format in FORMATS:
        for number in "ab":
            export(best, format, tmp_path / format / number, params)
        for path in sorted((tmp_path / format / "a").iterdir()):
            assert path.read_bytes() == (tmp_path / format / "b" / path.name).read_bytes(), path.name


def card_of(best: Path, params: Params, tmp_path: Path) -> str:
    export(best, "safetensors", tmp_path / "out", params)
    return (tmp_path / "out" / "MODEL_CARD.md").read_text("utf-8")


def test_the_card_quotes_the_report_of_this_checkpoint(best: Path, params: Params, tmp_path: Path) -> None:
    report_in(tmp_path / "report", checkpoint=file_identity(best))
    card = card_of(best, params, tmp_path)
    for line in (
        "On split test (3 clips, 9 characters, decoder ctc):",
        "30.00 %, 95 % interval 25.00 % to 37.50 % by bootstrap over speakers",
        "mean frame | 90.00 % |",
        "references of other clips | not measured |",
        "3 speakers, 10.00 % to 40.00 %, median 25.00 %",
        "**Speakers in training: 2 of the speakers of split test",
    ):
        assert line in card


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("by_speaker.csv", b"group,clips,characters,cer\nann,1,3,many\n"),
        ("by_speaker.csv", b"speaker,cer\nann,0.4\n"),
        ("by_speaker.csv", b"group,cer\nann\n"),
        ("by_speaker.csv", b"group,cer\n\xff,0.4\n"),
        ("by_speaker.csv", b'group,cer\n"' + b"a" * 200_000),
        ("by_speaker.csv", None),
        ("metrics.json", b"{"),
        ("metrics.json", b"[]"),
        ("metrics.json", b'{"checkpoint": "%s", "split": "test"}'),
    ],
)
def test_a_damaged_file_of_the_report_is_named(
    best: Path, params: Params, tmp_path: Path, name: str, content: bytes | None
) -> None:
    report_in(tmp_path / "report", checkpoint=file_identity(best))
    damaged = tmp_path / "report" / name
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content.replace(b"%s", file_identity(best).encode()))
    with pytest.raises(TableError, match=rf"^{damaged} is damaged \(.*`pipeline report`"):
        card_of(best, params, tmp_path)


def test_the_card_says_which_parts_of_the_cer_are_not_exported(
    best: Path, params: Params, tmp_path: Path
) -> None:
    """The exported model does not reach a CER with a language model; rejected clips are not included."""
    beam: dict[str, object] = {"decoder": "ctc_beam", "beam": 10, "length_bonus": 1.0, "lm_weight": 0.5}
    of_this: dict[str, object] = {"checkpoint": file_identity(best), "decoder": "ctc_beam", "num_rejected": 7}
    report_in(tmp_path / "report", **of_this, decode=beam, language_model="0123456789abcdef")
    card = card_of(best, params, tmp_path)
    without_it = "Without it the CER differs"
    for line in (
        "9 characters, decoder ctc_beam, beam 10, length_bonus 1, lm_weight 0.5):",
        "used a language model (weight 0.5) that is not in this export. Without it the CER differs.",
        "Not included: 7 clips of that split, which were rejected before reading.",
    ):
        assert line in card, card
    of_this["num_rejected"] = 0
    report_in(tmp_path / "report", **of_this, decode=beam | {"lm_weight": 0.0}, language_model=None)
    card = card_of(best, params, tmp_path)
    assert without_it not in card and "Not included" not in card
    report_in(tmp_path / "report", **of_this, decode=["ctc_beam"])
    with pytest.raises(TableError, match=r"metrics\.json is damaged .*`pipeline report`"):
        card_of(best, params, tmp_path)


def test_the_card_says_if_its_interval_is_too_narrow(best: Path, params: Params, tmp_path: Path) -> None:
    """Uses the words of the report page and the terminal. Says nothing for an older report without speakers."""
    report = tmp_path / "report"
    for num_speakers, about in (
        (7, "over 7 speakers: with fewer than 8 it is too narrow"),
        (8, "over speakers"),
        (None, "over speakers"),
    ):
        report_in(report, checkpoint=file_identity(best), num_speakers=num_speakers)
        assert f"25.00 % to 37.50 % by bootstrap {about} |" in card_of(best, params, tmp_path)
        assert interval_about("speakers", num_speakers) == about
    report_in(report, checkpoint=file_identity(best), cer_interval_over="clips", num_speakers=1)
    assert "by bootstrap over clips, because fewer than two speakers are known" in card_of(
        best, params, tmp_path
    )


@pytest.mark.parametrize("end", [None, 0.0])
def test_the_card_of_a_report_without_errors_has_no_interval(
    best: Path, params: Params, tmp_path: Path, end: float | None
) -> None:
    """Also if an older report has an interval from 0 to 0."""
    changes = {"cer": 0.0, "cer_low": end, "cer_high": end}
    report_in(tmp_path / "report", checkpoint=file_identity(best), **changes)
    card = card_of(best, params, tmp_path)
    assert "| 0.00 %, 95 % interval none: all speakers, or clips, have the same error rate" in card
    assert "0.00 % to 0.00 %" not in card


def test_the_card_of_a_pinyin_reader_names_its_unit(best: Path, params: Params, tmp_path: Path) -> None:
    report_in(tmp_path / "report", checkpoint=file_identity(best), decoder="syllables")
    card = card_of(best, params, tmp_path)
    for line in (
        "(3 clips, 9 letters of pinyin, decoder syllables):",
        "| error rate of pinyin’s letters | 30.00 %,",
        "do not compare this rate with a CER",
    ):
        assert line in card
    assert "(CER)" not in card


def test_the_card_ignores_the_report_of_another_checkpoint(
    best: Path, params: Params, tmp_path: Path
) -> None:
    for changes in ({}, {"checkpoint": "0" * 16}):
        report_in(tmp_path / "report", **changes)
        card = card_of(best, params, tmp_path)
        assert "CER: not measured (there is no report of this checkpoint" in card
        assert "30.00 %" not in card and "CER on people it has never seen: not measured" in card
    (tmp_path / "report" / "metrics.json").write_text("[1", "utf-8")
    with pytest.raises(TableError, match=r"metrics\.json is damaged .*`pipeline report`"):
        card_of(best, params, tmp_path)


def test_the_card_has_data_licence_training_and_misuse(best: Path, params: Params, tmp_path: Path) -> None:
    """From the config.yaml next to the checkpoint, not from the current params.yaml."""
    assert params.corpus.license == "CC0-1.0"
    card = card_of(best, params, tmp_path)
    assert card.startswith("---\nlicense: cc-by-nc-sa-4.0\nlanguage:\n- en\n")
    for line in (
        "Corpus: of kind grid. Licence: CC-BY-NC-SA-4.0. Trained on 16 clips, 0.00 h, speakers not stated.",
        "use them only for the same purposes, name its authors, and share them only as that licence allows",
        "At most 2 epochs, AdamW with a peak learning rate of 0.01 (cosine),",
        "CER of the valid split, by which the checkpoint was chosen:",
        "**Do not read the lips of people who have not agreed to it.**",
        "Heads: ctc, decoder.",
        "no spaces next to Han characters",
    ):
        assert line in card, card


def test_unknown_facts_are_not_invented(best: Path, params: Params, tmp_path: Path) -> None:
    """A checkpoint without its folder, while other clips are packed."""
    alone = tmp_path / "alone.pt"
    alone.write_bytes(best.read_bytes())
    pack_clips(tmp_path, toy_clips(9, 3, seed=5))
    paths = params.paths.model_copy(update={"samples": str(tmp_path / "samples.parquet")})
    card = card_of(alone, params.model_copy(update={"paths": paths}), tmp_path)
    assert "Corpus: not stated. Licence: unknown." in card
    assert "not stated (the training clips are not on this machine)" in card
    assert card.startswith("---\nlicense: unknown\npipeline_tag")
    assert "do not share them" in card and "Language: not stated" in card


def test_the_card_reports_a_decoder_that_the_graph_lacks(best: Path, params: Params, tmp_path: Path) -> None:
    facts = export(best, "onnx", tmp_path / "out", params)
    measured = Measured("test", "attention", 3, 9, 0.3, None, None, None, None, None, None, 0, ())
    stays = "This file does not contain that decoder"
    assert stays in model_card(replace(facts, measured=measured))
    assert stays not in model_card(replace(facts, measured=replace(measured, decoder="ctc")))
    assert stays not in model_card(replace(facts, measured=measured, format="safetensors"))
    # the epoch number is that of the log, the report and the checkpoint names
    assert f"Checkpoint {facts.checkpoint}, epoch {load_checkpoint(best)['epoch']}, counted from 0." in (
        model_card(facts)
    )
    one = replace(measured, speaker_cers=(0.3,), speaker_overlap=1, num_speakers=1)
    of_one = replace(facts, measured=one, trained_on=TrainedOn(16, 1.0, 1))
    for line in (
        "1.00 h, 1 speaker.",
        "| 1 speaker, 30.00 % |",
        "in training: the one speaker of split test.",
    ):
        assert line in model_card(of_one), line
    alike = "30.00 %, 95 % interval none: all speakers, or clips, have the same error rate"
    assert alike in model_card(replace(facts, measured=measured))


def test_nothing_is_written_after_an_error(
    workspace: Path, best: Path, params: Params, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"--int8 .*not safetensors.*--format onnx"):
        export(best, "safetensors", out, params, int8=True)
    with pytest.raises(CheckpointError, match="missing"):
        export(tmp_path / "none.pt", "onnx", out, params)
    (tmp_path / "cut.pt").write_bytes(best.read_bytes()[:10_000])
    with pytest.raises(CheckpointError, match="damaged"):
        export(tmp_path / "cut.pt", "onnx", out, params)
    job = job_in(tmp_path, Packed.at(workspace), num_epochs=1, ctc_weight=0.0)
    train(replace(job, decode=DecodeParams()))
    attention_alone = tmp_path / "checkpoints" / "best_model.pt"
    with pytest.raises(ConfigError, match=r"attention decoder.*--format safetensors"):
        export(attention_alone, "onnx", out, params)
    assert not out.exists()
    export(attention_alone, "safetensors", out, params)


def test_the_command_prints_what_it_wrote(workspace: Path, tmp_path: Path) -> None:
    command = ["export", "--params", str(ROOT / "params.yaml"), "--int8", "--split", "valid"]
    command += ["--checkpoint-dir", str(workspace / "checkpoints")]
    command += ["--set", f"paths.samples={workspace / 'samples.parquet'}"]
    command += ["--set", f"paths.shards={workspace / 'shards'}"]

    def run(*more: str) -> "subprocess.CompletedProcess[str]":
        return pipeline(tmp_path, [*command, *more])

    done = run()
    assert done.returncode == 0, done.stderr
    first, second, _, card = done.stdout.splitlines()
    assert re.fullmatch(
        r"export/onnx/model\.onnx: [\d.]+ MB, CER [\d.]+% on split valid, [\d.]+ clips/s", first
    )
    assert second.startswith("export/onnx/model_int8.onnx: ")
    assert (tmp_path / card).exists()
    result = json.loads(run("--json").stdout)
    assert [file["name"] for file in result["files"]] == ["model.onnx", "model_int8.onnx"]
    assert result["scored_split"] == "valid" and result["out"] == "export/onnx"
    wrong = run("--format", "safetensors")
    assert wrong.returncode == 2 and "--int8 quantises an ONNX file" in wrong.stderr
