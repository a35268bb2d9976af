"""`pipeline adapt` on a pack and on a table of videos, and --adapter of the commands that read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.adapt import bench_adapt
from model.adapters import load_adapted
from model.checkpoints import load_checkpoint, save_checkpoint
from model.decoding.reader import LipReader
from model.training import adaptation
from pipeline import adapting
from pipeline.adapting import PersonSource, adapt_person, clips_of_person
from pipeline.inference import inference_run
from pipeline.params import load_params, read_mapping
from shards.errors import ConfigError
from tests.support.crop_runs import forked_workers
from tests.support.in_process import pipeline
from tests.support.packed import SYLLABLES, pack_clips, toy_clips
from tests.support.resuming import state_of
from tests.support.trainings import job_in
from tests.support.videos import write_mouth

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml, packed clips, an untrained model, and a table of videos of mouths."""
    folder = tmp_path_factory.mktemp("project")
    packed = pack_clips(folder / "data", toy_clips(9, 3))
    save_checkpoint(folder / "model.pt", state_of(job_in(folder, packed)).as_checkpoint(None))
    params = read_mapping(ROOT / "params.yaml")
    params["machine"] |= {"device": "cpu", "threads": 1, "workers": 1, "cache_dir": "cache", "num_workers": 0}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    rows = ["clip_id,media,split,text"]
    for number in range(7):
        write_mouth(folder / f"{number}.mp4", 30, seed=number)
        rows.append(f"v{number},{number}.mp4,train,{SYLLABLES[number % 4]}")
    rows += ["wrong,0.mp4,train," + "龙", "gone,gone.mp4,train,一", "kept,1.mp4,test,二"]
    (folder / "clips.csv").write_text("\n".join(rows), "utf-8")
    return folder


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "STEPS", (0, 2))
    for module in (adapting, inference_run):  # it would take stderr from the other tests
        monkeypatch.setattr(module, "native_stderr_to", lambda _: None)


def run(folder: Path, *arguments: str) -> Any:
    with forked_workers():
        return pipeline(folder, [*arguments, "--quiet"])


def test_a_pack_gives_an_adapter_that_test_puts_on_and_takes_off(project: Path) -> None:
    done = run(project, "adapt", "--checkpoint", "model.pt", "--out", "p.pt", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["num_clips"] == 9 and summary["num_bytes"] == (project / "p.pt").stat().st_size
    assert 0 <= summary["cer_after"] <= summary["cer_before"]
    scores = [
        json.loads(run(project, "test", "--checkpoint", "model.pt", "--json", *more).stdout)
        for more in ([], ["--adapter", "p.pt"], [])
    ]
    assert scores[0] == scores[2]
    assert scores[1]["checkpoint"] != scores[0]["checkpoint"], "the report names the adapter"


def test_a_condition_and_a_split_choose_clips_of_the_pack(project: Path) -> None:
    done = run(project, "adapt", "--checkpoint", "model.pt", "--where", "clip_id < 'train_003'")
    assert done.returncode != 0 and "3 clips can be used, 5 to 200 are needed" in done.stderr
    done = run(project, "adapt", "--checkpoint", "model.pt", "--where", "no_column > 3")
    assert "--where is not a condition" in done.stderr
    done = run(
        project,
        "adapt",
        "--checkpoint",
        "model.pt",
        "--split",
        "test",
        "--unlabelled",
        "--out",
        "u.pt",
        "--json",
    )
    assert json.loads(done.stdout)["num_clips"] == 3


def test_a_table_of_videos_is_cropped_and_what_cannot_be_used_is_named(project: Path) -> None:
    done = run(project, "adapt", "clips.csv", "--checkpoint", "model.pt", "--out", "t.pt", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_clips"] == 7, "of split train"
    assert "clip wrong is not used: the model cannot write 龙" in done.stderr
    assert "clip gone is not used: missing_file" in done.stderr
    videos = [f"{number}.mp4" for number in range(3)]
    done = run(project, "adapt", *videos, "--checkpoint", "model.pt", "--out", "v.pt")
    assert done.returncode != 0 and "a video has no labels" in done.stderr
    done = run(
        project, "adapt", *videos, "--unlabelled", "--checkpoint", "model.pt", "--out", "v.pt", "--json"
    )
    assert json.loads(done.stdout)["num_clips"] == 3, done.stderr
    done = run(project, "inference", "0.mp4", "--checkpoint", "model.pt", "--adapter", "v.pt")
    assert done.returncode == 0, done.stderr
    done = run(project, "inference", "0.mp4", "--onnx", "model.onnx", "--adapter", "v.pt")
    assert done.returncode != 0 and "pipeline export --adapter" in done.stderr


def test_merge_writes_a_checkpoint_that_reads_alike(project: Path) -> None:
    run(project, "adapt", "--unlabelled", "--checkpoint", "model.pt", "--out", "m.pt")
    done = run(project, "adapt", "--merge", "m.pt", "--checkpoint", "model.pt", "--out", "merged.pt")
    assert done.returncode == 0, done.stderr
    merged, adapted = (
        json.loads(run(project, "test", *model, "--json").stdout)
        for model in (["--checkpoint", "merged.pt"], ["--checkpoint", "model.pt", "--adapter", "m.pt"])
    )
    assert merged.pop("checkpoint") != adapted.pop("checkpoint")
    assert merged == adapted
    refused = run(project, "test", "--checkpoint", "merged.pt", "--adapter", "m.pt")
    assert refused.returncode != 0 and "belongs to another model" in refused.stderr


def test_the_model_is_left_as_it_is_in_plain_words(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(project)
    values, source = load_params(Path("params.yaml")), PersonSource((), None, "train", "", True)
    for name, value in (("NORM_RATE", 0.0), ("PRODUCT_RATE", 0.0), ("PRIOR_S", float("inf"))):
        monkeypatch.setattr(adaptation, name, value)  # nothing that could help
    summary = adapt_person(Path("model.pt"), tmp_path / "p.pt", source, values, 0, lambda *_: None)
    assert summary.steps is None and "left as it is" in str(summary)
    adapted = load_adapted(Path("model.pt"), tmp_path / "p.pt")["model_state_dict"]
    own = load_checkpoint(Path("model.pt"))["model_state_dict"]
    assert all(torch.equal(adapted[name], tensor) for name, tensor in own.items())
    with pytest.raises(ConfigError, match="is the model itself"):
        adapt_person(Path("model.pt"), Path("model.pt"), source, values, 0, lambda *_: None)


def test_the_benchmark_reads_each_clip_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(project)
    values, checkpoint = load_params(Path("params.yaml")), Path("model.pt")
    reader = LipReader.from_checkpoint(checkpoint, torch.device("cpu"))
    clips = clips_of_person(reader, checkpoint, PersonSource((), None, "train", "", True), values)
    result = bench_adapt(checkpoint, clips, values, 3, "test", tmp_path)
    assert (result.num_clips, len(result.steps)) == (9, 3)
    assert result.other_before is not None and result.cer_before > 0
