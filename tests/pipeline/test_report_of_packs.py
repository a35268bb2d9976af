"""Tests reports on several packs: figures of each corpus are those of a report on it alone, and together."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml

from model.bootstrap import rate_interval
from model.checkpoints import load_checkpoint, save_checkpoint
from model.decoding.reader import LipReader
from model.metrics import edit_counts
from model.settings import TextParams
from model.text import normaliser_metadata
from pipeline.export import export_facts
from pipeline.params import load_params, read_mapping
from shards.files import read_table, table_from_rows, write_table
from shards.packs import Pack, Packs
from shards.schema import CLIPS, CROPS, PREDICTIONS, SAMPLES
from stages.cards.model_card import ExportFacts, TrainedOn
from stages.reports.clip_tables import read_clip_tables
from tests.support.in_process import pipeline
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import state_of
from tests.support.trainings import job_in

ROOT = Path(__file__).parents[2]
REJECTED = [("gone_1", "dev", "no_face"), ("gone_2", "dev", "timeout"), ("gone_3", "train", "no_face")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs a (its test clips are of split dev) and b (without tables of clips), and an untrained checkpoint."""
    folder = tmp_path_factory.mktemp("workplace")
    mark = SAMPLES.with_metadata(SAMPLES.metadata | normaliser_metadata(TextParams()))
    for name, clips in {
        "a": [
            (clip_id, "dev" if split == "test" else split, *rest) for clip_id, split, *rest in toy_clips(6, 5)
        ],
        "b": toy_clips(4, 3, seed=5),
    }.items():
        packed = pack_clips(folder / name, clips)  # type: ignore[arg-type]
        samples = read_table(packed.samples, SAMPLES, "pipeline pack")
        speakers = pa.array([("s1", "s2")[index % 2] for index in range(len(samples))])
        place = samples.schema.get_field_index("speaker")
        write_table(packed.samples, samples.set_column(place, SAMPLES.field("speaker"), speakers), mark)
    known = [(clip_id, "dev", None) for clip_id, split, *_ in toy_clips(6, 5) if split == "test"]
    for table, schema in (("clips", CLIPS), ("crops", CROPS)):
        rows = [
            {
                field.name: _value(field, {"clip_id": clip_id, "split": split, "reason": reason})
                for field in schema
            }
            for clip_id, split, reason in [*REJECTED, *known]
        ]
        write_table(folder / f"a/{table}.parquet", table_from_rows(rows, schema), schema)
    packs = Packs(
        [Pack(name, Packed.at(folder / name).samples, Packed.at(folder / name).store) for name in "ab"]
    )
    state = state_of(replace(job_in(folder, Packed.at(folder / "a")), packs=packs))
    with torch.no_grad():
        for parameter in state.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    (folder / "checkpoints").mkdir()
    save_checkpoint(folder / "checkpoints" / "best_model.pt", state.as_checkpoint(None))
    params = read_mapping(ROOT / "params.yaml")
    params["machine"] |= {"threads": 1, "device": "cpu"}
    params["report"] |= {"num_examples": 1}
    params["decode"] |= {"decoder": "ctc"}
    data: list[dict[str, object]] = [
        {"name": name, "samples": f"{name}/samples.parquet", "shards": f"{name}/shards"} for name in "ab"
    ]
    data[0] |= {"clips": "a/clips.parquet", "crops": "a/crops.parquet", "test": ["dev"]}
    (folder / "one.yaml").write_text(yaml.safe_dump(params), "utf-8")
    params["train"] |= {"data": data}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    return folder


def _value(field: pa.Field, values: dict[str, object]) -> object:
    if field.name == "status":
        return "rejected" if values["reason"] else "ok"
    unknown = None if field.nullable else "" if pa.types.is_string(field.type) else 0
    return values.get(field.name, unknown)


def run(folder: Path, *command: str) -> str:
    done = pipeline(folder, [*command])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def metrics(workplace: Path) -> dict[str, Any]:
    run(workplace, "report")
    return json.loads((workplace / "report/metrics.json").read_text("utf-8"))  # type: ignore[no-any-return]


def test_each_corpus_has_the_figures_of_a_report_on_it_alone(
    workplace: Path, metrics: dict[str, Any]
) -> None:
    assert list(metrics["corpora"]) == ["a", "b"]
    for name, split in (("a", "dev"), ("b", "test")):
        only = ["--set", f"paths.samples={name}/samples.parquet", "--set", f"paths.shards={name}/shards"]
        alone = json.loads(run(workplace, "test", "--params", "one.yaml", "--split", split, "--json", *only))
        shared = metrics["corpora"][name].keys() - {"num_rejected"}
        assert {"cer", "cer_low", "cer_interval_over", "blind_cer", "chance_cer", "num_speakers"} < shared
        assert {key: metrics["corpora"][name][key] for key in shared} == {key: alone[key] for key in shared}
        assert "corpora" not in alone
    assert [metrics["corpora"][name]["num_rejected"] for name in "ab"] == [2, None]


def test_the_whole_is_counted_over_the_clips_of_all_packs(workplace: Path, metrics: dict[str, Any]) -> None:
    rows = read_table(workplace / "report/predictions.parquet", PREDICTIONS, "pipeline report").to_pylist()
    assert {row["split"] for row in rows} == {"test"} and len(rows) == metrics["num_clips"] == 8
    assert {row["clip_id"].partition("/")[0] for row in rows} == {"a", "b"}
    assert {row["speaker"] for row in rows} == {"a/s1", "a/s2", "b/s1", "b/s2"}
    counts = [edit_counts(row["reference"], row["hypothesis"]) for row in rows]
    assert metrics["cer"] == sum(one.errors for one in counts) / sum(one.num_chars for one in counts)
    interval, over = rate_interval(
        [one.errors for one in counts],
        [one.num_chars for one in counts],
        [row["speaker"] for row in rows],
        2_000,
        0,
    )
    assert over == "speakers" and interval == (metrics["cer_low"], metrics["cer_high"])
    assert metrics["speaker_overlap"] == 4, "the speakers of each pack are in its own training clips"
    assert metrics["num_rejected"] is None, "not known of b"
    assert metrics["normaliser"] == metrics["checkpoint_normaliser"]


def test_files_and_page_show_each_corpus(workplace: Path, metrics: dict[str, Any]) -> None:
    with (workplace / "report/by_corpus.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    for name, found in metrics["corpora"].items():
        row = rows[name]
        assert float(row["cer"]) == found["cer"] and float(row["chance_cer"]) == found["chance_cer"]
        assert float(row["blind_cer"]) == found["blind_cer"] and int(row["clips"]) == found["num_clips"]
    assert (rows["a"]["rejected"], rows["b"]["rejected"]) == ("2", "")
    page = (workplace / "report/report.html").read_text("utf-8")
    section = page.partition("<h2>By corpus</h2>")[2].partition("</section>")[0]
    assert "<bdi>a</bdi>" in section and "not known" in section and "chance CER" in section
    assert page.index("By corpus") < page.index("By speaker")
    assert "Rejected clips of b are not known" in page
    assert "<bdi>a, b</bdi> · split <bdi>test</bdi>" in page


def test_the_terminal_shows_each_corpus(workplace: Path, metrics: dict[str, Any]) -> None:
    for command in (["show"], ["test"]):
        table = run(workplace, *command).partition("by corpus")[2]
        for name, found in metrics["corpora"].items():
            (line,) = [line for line in table.splitlines() if line.lstrip("│ ").startswith(f"{name} ")]
            assert f"{100 * found['cer']:.1f} %" in line and f"{100 * found['chance_cer']:.1f} %" in line
            assert ("unknown" in line) == (name == "b")
    decoders = json.loads(run(workplace, "test", "--decoder", "ctc", "--json"))
    assert [row["cer"] for row in decoders] == [metrics["cer"]]
    shared = ("num_clips", "num_chars", "cer", "cer_low", "cer_high", "cer_interval_over", "num_speakers")
    assert decoders[0]["corpora"].keys() == metrics["corpora"].keys()
    for name, found in metrics["corpora"].items():
        assert {key: decoders[0]["corpora"][name][key] for key in shared} == {
            key: found[key] for key in shared
        }
    table = run(workplace, "test", "--decoder", "ctc", "--decoder", "ctc_beam").partition("by corpus")[2]
    for name, found in metrics["corpora"].items():
        lines = [line for line in table.splitlines() if line.lstrip("│ ").startswith(f"{name} ")]
        assert ["ctc " in line for line in lines] == [True, False] and "ctc_beam" in lines[1]
        assert f"{found['cer']:.1%} │" in lines[0]


def test_two_reports_are_compared_by_corpus(workplace: Path, metrics: dict[str, Any]) -> None:
    groups = json.loads(run(workplace, "compare", "report", "report", "--json"))["groups"]
    assert {group["name"]: group["cer_a"] for group in groups["corpus"]} == {
        name: found["cer"] for name, found in metrics["corpora"].items()
    }


def test_the_language_model_learns_from_all_packs(workplace: Path) -> None:
    made = json.loads(run(workplace, "lm", "--json"))
    assert (made["learnt_from"], made["sentences"], made["valid"]["sentences"]) == (
        "a, b, split train",
        10,
        8,
    )


def test_the_card_of_an_export_is_of_all_packs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    best = Path("checkpoints/best_model.pt")

    def facts() -> ExportFacts:
        state, reader = load_checkpoint(best), LipReader.from_checkpoint(best, torch.device("cpu"))
        return export_facts(best, state, reader, "onnx", load_params(Path("params.yaml")))

    assert facts().trained_on == TrainedOn(10, facts().trained_on.hours, 4)  # type: ignore[union-attr]
    assert (facts().corpus, facts().license) == ("blend (a, b)", ""), "the packs have no cards: not known"
    for name, licence in (("a", "cc0-1.0"), ("b", "cc-by-nc-sa-4.0")):
        assert facts().license == "", "the licence of b is not known yet"
        Path(name, "shards", "README.md").write_text(f"---\nlicense: {licence}\n---\n", "utf-8")
    assert facts().license == "cc0-1.0 AND cc-by-nc-sa-4.0"


def test_packs_with_other_normalisers_are_reported_with_a_warning(workplace: Path) -> None:
    path = workplace / "b/samples.parquet"
    samples, before = read_table(path, SAMPLES, "pipeline pack"), path.read_bytes()
    mark = normaliser_metadata(TextParams(digits="chinese"))
    write_table(path, samples, SAMPLES.with_metadata(SAMPLES.metadata | mark))
    try:
        said = " ".join(run(workplace, "test").split())
    finally:
        path.write_bytes(before)
    assert "references: a: NFKC" in said and "; b: NFKC" in said and "different normalisers" in said


def test_rejected_clips_in_tables_of_another_pack_are_not_counted(workplace: Path) -> None:
    tables = {"clips": workplace / "a/clips.parquet", "crops": workplace / "a/crops.parquet"}
    of_a, of_b = (Packed.at(workplace / name) for name in "ab")
    packs = Packs(
        [
            Pack("a", of_a.samples, of_a.store, **tables, splits={"test": ("dev",)}),
            Pack("b", of_b.samples, of_b.store, **tables),
        ]
    )
    found = read_clip_tables(packs, "test", packs.read("test")["clip_id"].to_pylist())
    assert found.rejected_by_corpus == {"a": 2, "b": None}
    assert "of b are not known" in found.warnings()[0]


def test_a_report_on_one_pack_has_no_corpora_and_removes_their_file(
    workplace: Path, metrics: dict[str, Any]
) -> None:
    only = [f"paths.{table}=a/{table}.parquet" for table in ("samples", "clips", "crops")]
    only += ["paths.shards=a/shards", "report.split=dev"]
    run(workplace, "report", "--params", "one.yaml", *(part for value in only for part in ("--set", value)))
    alone = json.loads((workplace / "report/metrics.json").read_text("utf-8"))
    assert "corpora" not in alone and alone["num_rejected"] == 2
    assert not (workplace / "report/by_corpus.csv").exists()
    assert "By corpus" not in (workplace / "report/report.html").read_text("utf-8")
