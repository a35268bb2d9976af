"""`pipeline push` and `pull` against a local server with the Hub's API: killed and resumed, guarded, checked."""

import hashlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.hub import Repo
from shards.errors import ConfigError
from stages.cards.card import card_files
from stages.cards.pack_facts import facts_of
from tests.support.forked import Forked
from tests.support.hub_server import HubServer
from tests.support.packed import pack_clips, toy_clips

ROOT = Path(__file__).parents[2]
REPO = ("dataset", "anna/lips")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.stop()


def pack_in(folder: Path, license: str = "CC-BY-4.0", num_clips: int = 12) -> Path:
    """Writes a pack and params.yaml to `folder`, as `pipeline pack` leaves them; returns `folder`."""
    packed = pack_clips(folder / "data", toy_clips(num_clips, 4))
    rows = pq.read_table(packed.samples).to_pylist()
    splits = list(dict.fromkeys(row["split"] for row in rows))
    facts = facts_of(rows, splits, kind="table", license=license, codec="raw", size_px=96, fps=25.0)
    for name, content in card_files(facts).items():
        (packed.shards / name).write_bytes(content)
    for split in splits:
        counts = dict.fromkeys(sorted((packed.shards / split).glob("*.tar")), 0)
        for row in rows:
            if row["split"] == split:
                counts[packed.shards / row["shard"]] += 1
        shards = [
            {
                "name": path.name,
                "num_samples": count,
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path, count in counts.items()
        ]
        index = {"split": split, "num_samples": sum(counts.values()), "shards": shards}
        (packed.shards / split / "index.json").write_text(json.dumps(index))
    with_params(folder)
    return folder


def with_params(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return folder


SMALL_CHUNKS = """
import sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 4096
from pipeline import cli
sys.argv[0] = "pipeline"
cli.main()
"""


def started(hub: HubServer, folder: Path, *arguments: str) -> Forked:
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder / "hf"),
        "NO_PROXY": "127.0.0.1",
    }
    return Forked(folder, arguments, source=SMALL_CHUNKS, environment=environment)


def run(hub: HubServer, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return started(hub, folder, *arguments).wait()


def done(result: "subprocess.CompletedProcess[str]") -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def killed_at(
    hub: HubServer, start: str, number: int, arrived: Callable[[], object], folder: Path, *arguments: str
) -> None:
    """Runs the command, holds requests that begin with `start` from the `number`th on, and kills it in the middle.

    Waits until something has `arrived`.
    """
    reached, go_on = threading.Event(), threading.Event()
    seen = []

    def fault(request: str, body: bytes) -> bytes:
        if request.startswith(start) and (".tar" in request or "/objects/" in request):
            seen.append(request)
            if len(seen) >= number:
                reached.set()
                go_on.wait(20)
                raise ConnectionResetError
        return body

    hub.fault = fault
    process = started(hub, folder, *arguments)
    assert reached.wait(20), process.output()
    deadline = time.monotonic() + 10
    while not arrived():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    go_on.set()
    assert process.wait().returncode == -signal.SIGKILL
    hub.fault = lambda request, body: body


def test_a_pack_is_pushed_and_pulled_whole_though_both_are_killed(hub: HubServer, tmp_path: Path) -> None:
    source = pack_in(tmp_path / "source")
    killed_at(hub, "PUT /objects/", 3, lambda: hub.objects, source, "push", "pack", "anna/lips")
    sent = set(hub.objects)
    assert sent and hub.commits[REPO] == [{".gitattributes": b"* text=auto\n"}], "no half pack is visible"
    assert hub.visibility[REPO] in ("private", True)
    before = len(hub.requests)
    assert "MB" in done(run(hub, source, "push", "pack", "hf://datasets/anna/lips"))
    again = {request.rpartition("/")[2] for request in hub.requests[before:] if request.startswith("PUT")}
    assert again and not again & sent, "what had arrived is not sent again"

    target = with_params(tmp_path / "target")
    pull = ("pull", "pack", "anna/lips")

    def whole() -> set[str]:
        return {path.name for path in (target / "data" / "shards.pulling").glob("*/*.tar")}

    killed_at(hub, "GET /datasets/anna/lips/resolve", 3, whole, target, *pull)
    assert not (target / "data" / "shards").exists() and not (target / "data" / "samples.parquet").exists()
    kept = whole()
    before = len(hub.requests)
    done(run(hub, target, *pull))
    gets = [request for request in hub.requests[before:] if request.startswith("GET") and ".tar" in request]
    assert gets and not any(name in request for name in kept for request in gets), "no file is fetched twice"
    assert files_of(target / "data") == files_of(source / "data")


def test_a_pull_continues_a_file_where_its_connection_broke(hub: HubServer, tmp_path: Path) -> None:
    source = pack_in(tmp_path / "source")
    done(run(hub, source, "push", "pack", "anna/lips"))
    broken = []

    def fault(request: str, body: bytes) -> bytes:
        if "train-000001.tar" in request and not broken:
            broken.append(request)
            raise ConnectionResetError
        return body

    hub.fault = fault
    target = with_params(tmp_path / "target")
    done(run(hub, target, "pull", "pack", "anna/lips"))
    assert broken and any("train-000001.tar bytes=" in request for request in hub.requests)
    assert files_of(target / "data") == files_of(source / "data")


def test_pushing_again_changes_only_what_changed_and_removes_only_files_of_an_older_pack(
    hub: HubServer, tmp_path: Path
) -> None:
    source = pack_in(tmp_path / "source")
    done(run(hub, source, "push", "pack", "anna/lips"))
    first = hub.commits[REPO][-1]
    others = {"notes.md": b"somebody else's", "train/readme.txt": b"somebody else's"}
    hub.replace(REPO, **{"train/train-000099.tar": b"of an older pack"}, **others)
    sent = hub.count("PUT")
    done(run(hub, source, "push", "pack", "anna/lips"))
    assert hub.count("PUT") == sent
    assert hub.commits[REPO][-1] == first | others


def environment_of(hub: HubServer, folder: Path) -> dict[str, str]:
    return {
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"},
        **{"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"},
    }


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_hugging_face_datasets_streams_a_pushed_pack(hub: HubServer, tmp_path: Path) -> None:
    source = pack_in(tmp_path / "source")
    done(run(hub, source, "push", "pack", "anna/lips"))
    program = (
        "from datasets import load_dataset\n"
        "for split in ('train', 'valid', 'test'):\n"
        "    for sample in load_dataset('anna/lips', split=split, streaming=True):\n"
        "        print(split, len(sample['npy']), sample['json']['label'])\n"
    )
    result = Forked(tmp_path, source=program, environment=environment_of(hub, tmp_path)).wait()
    assert result.returncode == 0, result.stderr
    rows = pq.read_table(source / "data" / "samples.parquet").to_pylist()
    wanted = sorted(f"{row['split']} {row['num_frames']} {row['label']}" for row in rows)
    assert sorted(result.stdout.splitlines()) == wanted


def test_our_readers_read_a_pushed_pack_over_hf(hub: HubServer, tmp_path: Path) -> None:
    source = pack_in(tmp_path / "source")
    done(run(hub, source, "push", "pack", "anna/lips"))
    rows = pq.read_table(source / "data" / "samples.parquet").to_pylist()
    last = max(row["shard"] for row in rows if row["split"] == "train")[-10:-4]
    program = (
        "from shards import webdataset\n"
        "place = 'hf://datasets/anna/lips'\n"
        f"shards = place + '/train/train-{{000000..{last}}}.tar'\n"
        "for data in (place, shards):\n"
        "    for clip in webdataset(data, 'train'):\n"
        "        print(len(clip['video_THW']), clip['label'])\n"
    )
    result = Forked(tmp_path, source=program, environment=environment_of(hub, tmp_path)).wait()
    assert result.returncode == 0, result.stderr
    wanted = [f"{row['num_frames']} {row['label']}" for row in rows if row["split"] == "train"]
    assert sorted(result.stdout.splitlines()) == sorted(2 * wanted)


def test_a_licence_that_forbids_sharing_is_refused_before_anything_is_sent(
    hub: HubServer, tmp_path: Path
) -> None:
    source = pack_in(tmp_path / "source", license="CC-BY-NC-4.0")
    result = run(hub, source, "push", "pack", "anna/lips")
    assert result.returncode == 2
    assert "corpus.license is cc-by-nc-4.0" in result.stderr and "--i-have-the-rights" in result.stderr
    assert hub.requests == []
    done(run(hub, source, "push", "pack", "anna/lips", "--i-have-the-rights"))
    assert hub.commits[REPO][-1]


def test_a_shard_that_differs_from_its_index_is_not_pushed(hub: HubServer, tmp_path: Path) -> None:
    source = pack_in(tmp_path / "source")
    shard = source / "data" / "shards" / "train" / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    result = run(hub, source, "push", "pack", "anna/lips")
    assert result.returncode == 1 and "train-000001.tar is missing or differs" in result.stderr
    assert hub.requests == []


def test_a_damaged_file_is_named_and_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    source = pack_in(tmp_path / "source")
    done(run(hub, source, "push", "pack", "anna/lips"))
    right = hub.objects.copy()
    name = "valid/valid-000000.tar"
    stored = hub.commits[REPO][-1][name]
    assert isinstance(stored, str)
    hub.objects[stored] = bytes(len(right[stored]))  # same size, other content, same name on the server
    target = with_params(tmp_path / "target")
    result = run(hub, target, "pull", "pack", "anna/lips")
    assert result.returncode == 1 and f"{name} is missing or is not the file of index.json" in result.stderr
    assert not (target / "data" / "shards").exists() and not (target / "data" / "samples.parquet").exists()
    hub.objects.update(right)
    done(run(hub, target, "pull", "pack", "anna/lips"))
    assert files_of(target / "data") == files_of(source / "data")


def test_a_pack_without_its_catalogue_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.commits[REPO] = [{"index.json": b'{"kind": "pack", "files": []}'}]
    result = run(hub, with_params(tmp_path / "target"), "pull", "pack", "anna/lips")
    assert result.returncode == 1 and "samples.parquet is missing" in result.stderr


@pytest.mark.parametrize(
    "name", ["../../outside.tar", "/tmp/x.tar", "train/../../x-000000.tar", "run.py", ".ssh/id"]
)
def test_a_hostile_list_of_files_writes_nothing_outside(hub: HubServer, tmp_path: Path, name: str) -> None:
    content = b"hostile"
    listed = [
        {"name": each, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for each in ("samples.parquet", name)
    ]
    hub.commits[REPO] = [
        {"index.json": json.dumps({"kind": "pack", "files": listed}).encode(), name: content}
    ]
    (tmp_path / "deep").mkdir()
    target = with_params(tmp_path / "deep" / "target")
    before = files_of(tmp_path)
    result = run(hub, target, "pull", "pack", "anna/lips")
    assert result.returncode == 1 and f"{name} is no file of it" in result.stderr
    new = [path for path in files_of(tmp_path).keys() - before.keys() if "/hf/" not in path]
    assert all(path.startswith("deep/target/data/shards.pulling/") for path in new)


def test_a_pull_does_not_replace_another_pack(hub: HubServer, tmp_path: Path) -> None:
    source = pack_in(tmp_path / "source")
    done(run(hub, source, "push", "pack", "anna/lips"))
    before = files_of(source / "data")
    result = run(hub, source, "pull", "pack", "anna/lips")
    assert result.returncode == 2 and "pull replaces no pack" in result.stderr
    (source / "data" / "samples.parquet").unlink()
    result = run(hub, source, "pull", "pack", "anna/lips")
    assert result.returncode == 2 and "is not empty" in result.stderr
    assert {**files_of(source / "data"), "samples.parquet": before["samples.parquet"]} == before


def test_a_missing_repository_is_a_message_with_the_fix(hub: HubServer, tmp_path: Path) -> None:
    target = with_params(tmp_path / "target")
    result = run(hub, target, "pull", "model", "anna/none")
    assert result.returncode == 1 and "hf://anna/none: cannot pull it" in result.stderr
    assert "HF_TOKEN" in result.stderr and "Traceback" not in result.stderr


def test_a_model_travels_with_its_card(hub: HubServer, tmp_path: Path) -> None:
    source = with_params(tmp_path / "source")
    export = source / "export" / "onnx"
    export.mkdir(parents=True)
    checkpoint = b"weights" * 1000
    (source / "checkpoints").mkdir()
    (source / "checkpoints" / "best_model.pt").write_bytes(checkpoint)
    identity = hashlib.sha256(checkpoint).hexdigest()[:16]
    card = f"---\nlicense: mit\n---\n# A lip reader\nCheckpoint {identity}, epoch 3\n"
    for name, content in {
        "model.onnx": b"graph" * 999,
        "config.json": b"{}",
        "MODEL_CARD.md": card.encode(),
    }.items():
        (export / name).write_bytes(content)
    (export / "notes.txt").write_text("mine")
    done(run(hub, source, "push", "model", "anna/reader", "--public"))
    repo = ("model", "anna/reader")
    assert hub.visibility[repo] in ("public", False)
    assert "notes.txt" not in hub.commits[repo][-1]
    done(run(hub, source, "pull", "model", "hf://anna/reader"))
    assert files_of(source / "models" / "reader") == {
        "model.onnx": b"graph" * 999,
        "config.json": b"{}",
        "README.md": card.encode(),
        "best_model.pt": checkpoint,
    }
    (source / "checkpoints" / "best_model.pt").write_bytes(b"of another training")
    done(run(hub, source, "push", "model", "anna/reader"))
    assert "best_model.pt" not in hub.commits[repo][-1]


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("pack", "lips"),
        ("pack", "a/b/c"),
        ("model", "hf://datasets/a/b"),
        ("pack", "../x"),
        ("pack", "s3://a/b"),
    ],
)
def test_a_target_that_names_no_repository_is_refused(kind: str, target: str) -> None:
    with pytest.raises(ConfigError, match="write USER/NAME or hf://"):
        Repo.of(kind, target)  # type: ignore[arg-type]


def test_targets() -> None:
    assert (
        str(Repo.of("pack", "a/b.c")) == str(Repo.of("pack", "hf://datasets/a/b.c")) == "hf://datasets/a/b.c"
    )
    assert str(Repo.of("model", "hf://a/b")) == "hf://a/b"
