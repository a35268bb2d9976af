"""`pipeline verify` names what is wrong with a pack, with the samples it costs, and passes a whole one."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sysconfig
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.params import read_mapping
from shards.codec import encode_clip
from shards.errors import ConfigError, TableError
from shards.files import read_table, table_from_rows, write_table
from shards.schema import SAMPLES
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore, open_store
from shards.verify import Verification, verify

ROOT = Path(__file__).parent.parent
PIPELINE = Path(sysconfig.get_path("scripts")) / "pipeline"
LONG_ID = "x" * 110
Member = tarfile.TarInfo | tuple[str, bytes]


class Pack:
    """Two shards of train, one of valid, by plain tarfile; its parts can be changed and written again."""

    def __init__(self, folder: Path, codec: Any = "raw") -> None:
        self.folder, self.codec = folder, codec
        rng = np.random.default_rng(0)
        self.shards: dict[str, list[Member]] = {}
        for name, ids in {
            "train/train-000000.tar": ["a", "b", "c"],
            "train/train-000001.tar": ["d", LONG_ID],
            "valid/valid-000000.tar": ["e"],
        }.items():
            self.shards[name] = []
            for clip_id in ids:
                clip_THW = rng.integers(0, 255, (3, 16, 16), dtype=np.uint8)
                extension = {"raw": "npy", "jpeg": "jpg", "h264": "mp4", "ffv1": "mkv"}[codec]
                payload = encode_clip(clip_THW, PackParams(codec=codec))
                self.shards[name].append((f"{clip_id}.{extension}", payload))
                self.shards[name].append((f"{clip_id}.json", self.metadata(name, clip_id)))
        self.write()

    def metadata(self, name: str, clip_id: str, **changed: Any) -> bytes:
        told = {
            "clip_id": clip_id,
            "split": name.partition("/")[0],
            "label": "一二" + clip_id,
            "num_frames": 3,
        }
        told |= {"codec": self.codec, "speaker": None, "topic": "KJ", "fps": 25.0}
        return json.dumps(told | changed, ensure_ascii=False).encode()

    def path(self, name: str = "train/train-000000.tar") -> Path:
        return self.folder / "shards" / name

    @property
    def samples(self) -> Path:
        return self.folder / "samples.parquet"

    def write(self, with_catalogue: bool = True) -> None:
        """Writes tars and indexes, and a catalogue that fits them."""
        for name, members in self.shards.items():
            self.path(name).parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(self.path(name), "w", format=tarfile.GNU_FORMAT) as tar:
                for member in members:
                    if isinstance(member, tarfile.TarInfo):
                        tar.addfile(member)
                    else:
                        info = tarfile.TarInfo(member[0])
                        info.size = len(member[1])
                        tar.addfile(info, io.BytesIO(member[1]))
        self.write_indexes()
        if with_catalogue:
            rows = [row for name in self.shards for row in self.rows(name)]
            write_table(self.samples, table_from_rows(rows, SAMPLES), SAMPLES)

    def write_indexes(self) -> None:
        """Indexes that fit the tars as they are."""
        for split in ("train", "valid"):
            described = [
                {
                    "name": Path(name).name,
                    "num_samples": sum(isinstance(m, tuple) and m[0].endswith(".json") for m in members),
                    "bytes": self.path(name).stat().st_size,
                    "sha256": hashlib.sha256(self.path(name).read_bytes()).hexdigest(),
                }
                for name, members in self.shards.items()
                if name.startswith(split)
            ]
            total = sum(shard["num_samples"] for shard in described)
            self.write_index(split, {"split": split, "num_samples": total, "shards": described})

    def index(self, split: str) -> dict[str, Any]:
        return json.loads(self.path(f"{split}/index.json").read_text("utf-8"))

    def write_index(self, split: str, index: dict[str, Any]) -> None:
        self.path(f"{split}/index.json").write_text(json.dumps(index), "utf-8")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """What tarfile finds where each sample's two members stand together."""
        rows = []
        with tarfile.open(self.path(name)) as tar:
            members = tar.getmembers()
            for clip, described in pairwise(members):
                clip_id = clip.name.partition(".")[0]
                if described.name != f"{clip_id}.json" or clip.name == described.name:
                    continue
                payload = tar.extractfile(clip).read()  # type: ignore[union-attr]
                end = described.offset_data + -(-described.size // 512) * 512
                rows.append(
                    {"clip_id": clip_id, "split": name.partition("/")[0], "shard": name, "codec": self.codec}
                    | {"sample_offset": clip.offset, "sample_size": end - clip.offset}
                    | {"clip_offset": clip.offset_data, "clip_size": clip.size, "num_frames": 3}
                    | {"sha256": hashlib.sha256(payload).hexdigest(), "label": "一二" + clip_id}
                    | {"num_chars": 2 + len(clip_id), "speaker": None, "topic": "KJ"}
                )
        return rows

    def change_rows(self, change: Callable[[list[dict[str, Any]]], object]) -> None:
        rows = read_table(self.samples, SAMPLES, "").to_pylist()
        change(rows)
        write_table(self.samples, table_from_rows(rows, SAMPLES), SAMPLES)

    def row(self, clip_id: str) -> dict[str, Any]:
        (row,) = (r for r in read_table(self.samples, SAMPLES, "").to_pylist() if r["clip_id"] == clip_id)
        return row

    def flip(self, at: int, name: str = "train/train-000000.tar", mask: int = 1) -> None:
        content = bytearray(self.path(name).read_bytes())
        content[at] ^= mask
        self.path(name).write_bytes(content)

    def verify(self, **options: Any) -> Verification:
        return verify(FolderStore(self.folder / "shards"), self.samples, MachineParams(workers=2), **options)

    def found(self, **options: Any) -> dict[str, set[str]]:
        """The problems, each with its file, and the samples it costs."""
        result = self.verify(**options)
        return {f"{problem.shard}: {problem.what}": set(problem.clip_ids) for problem in result.problems}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Pack(tmp_path_factory.mktemp("made")).folder


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    return Pack(tmp_path)


def only(found: dict[str, set[str]], text: str) -> set[str]:
    """What the one problem with `text` costs."""
    (match,) = [problem for problem in found if text in problem]
    return found[match]


FIRST = "train/train-000000.tar: "
OTHER_HASH = FIRST + "its sha256 is not that of index.json"


@pytest.mark.parametrize("codec", ["raw", "jpeg", "h264", "ffv1"])
def test_a_whole_pack_passes(tmp_path: Path, codec: str) -> None:
    pack = Pack(tmp_path, codec)
    for name in ("README.md", "metadata.json"):
        pack.path(name).write_text("a card", "utf-8")
    told: list[tuple[int, int]] = []
    for options in ({}, {"decode": True}, {"split": "train"}):
        result = pack.verify(on_progress=lambda *done: told.append(done), **options)
        assert result.problems == ()
        assert (result.num_shards, result.num_samples) == ((2, 5) if "split" in options else (3, 6))
        tars = [
            path for path in pack.path("").rglob("*.tar") if "split" not in options or "train" in path.name
        ]
        assert result.num_bytes == sum(path.stat().st_size for path in tars)


PLACES: dict[str, tuple[Callable[[dict[str, Any]], int], str]] = {
    "payload": (
        lambda row: row["clip_offset"] + 500,
        "the sha256 of the clip is not that of samples.parquet",
    ),
    "npy header": (lambda row: row["clip_offset"] + 20, "the sha256 of the clip"),
    "tar header": (lambda row: row["sample_offset"], "the tar header at byte"),
    "size in it": (lambda row: row["sample_offset"] + 130, "the tar header at byte"),
    "padding": (lambda row: row["clip_offset"] + row["clip_size"], "the padding behind member 'b.npy'"),
    "label": (lambda row: row["sample_offset"] + row["sample_size"] - 512 + 53, "its metadata"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_byte_costs_its_sample(pack: Pack, place: str) -> None:
    at, text = PLACES[place]
    pack.flip(at(pack.row("b")))
    found = pack.found()
    assert only(found, text) == {"b"}
    assert found[OTHER_HASH] == set()
    assert len(found) == 2


def test_a_flipped_byte_that_costs_nothing(pack: Pack) -> None:
    """The frame rate stands in the metadata alone."""
    row = pack.row("b")
    at = pack.path().read_bytes().index(b"25.0", row["sample_offset"])
    pack.flip(at + 1)
    assert pack.found() == {
        OTHER_HASH
        + "; yet every clip and label is as samples.parquet says, which knows nothing of what is damaged": set()
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_found(made: Path, tmp_path: Path, data: st.DataObject) -> None:
    """In whichever shard, and no sample is named that the byte is not in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    pack = Pack.__new__(Pack)
    pack.folder, pack.codec = tmp_path, "raw"
    name = data.draw(
        st.sampled_from(["train/train-000000.tar", "train/train-000001.tar", "valid/valid-000000.tar"])
    )
    at = data.draw(st.integers(0, pack.path(name).stat().st_size - 1))
    pack.flip(at, name, data.draw(st.integers(1, 255)))
    result = pack.verify()
    assert f"{name}: its sha256 is not that of index.json" in " ".join(
        f"{p.shard}: {p.what}" for p in result.problems
    )
    rows = [row for row in read_table(pack.samples, SAMPLES, "").to_pylist() if row["shard"] == name]
    hit = {r["clip_id"] for r in rows if r["sample_offset"] <= at < r["sample_offset"] + r["sample_size"]}
    in_clip = {r["clip_id"] for r in rows if r["clip_offset"] <= at < r["clip_offset"] + r["clip_size"]}
    lost = {clip_id for problem in result.problems for clip_id in problem.clip_ids}
    assert in_clip <= lost <= hit


def test_a_cut_shard(pack: Pack) -> None:
    row = pack.row("b")
    content = pack.path().read_bytes()
    pack.path().write_bytes(content[: row["clip_offset"] + 100])
    found = pack.found()
    assert only(found, "is cut: it ends at byte") == {"b", "c"}
    assert only(found, "index.json says") == set()
    assert len(found) == 3
    pack.path().write_bytes(content[: pack.row("c")["sample_offset"] + pack.row("c")["sample_size"] + 512])
    assert only(pack.found(), "the end of the tar is missing") == set()
    pack.path().write_bytes(b"")
    assert only(pack.found(), "is cut") == {"a", "b", "c"}


def test_a_missing_shard(pack: Pack) -> None:
    pack.path().unlink()
    assert pack.found() == {FIRST + "is missing": {"a", "b", "c"}}
    assert pack.found(split="valid") == {}


def test_strangers(pack: Pack) -> None:
    shutil.copy(pack.path(), pack.path("train/train-000007.tar"))
    pack.path("notes.txt").write_text("mine", "utf-8")
    pack.path("train/.train-000000.tar.abc.tmp").write_bytes(b"")
    assert pack.found() == {
        f"{name}: is no file of this pack": set()
        for name in ("notes.txt", "train/.train-000000.tar.abc.tmp", "train/train-000007.tar")
    }


def test_swapped_samples(pack: Pack) -> None:
    members = pack.shards["train/train-000000.tar"]
    members[:4] = members[2:4] + members[:2]
    pack.write(with_catalogue=False)
    found = pack.found()
    assert set.union(*found.values()) == {"a", "b"}
    assert only(found, "are ['b.npy', 'b.json'], not ['a.npy', 'a.json']") == {"a"}


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


PICKLE = io.BytesIO()
np.save(PICKLE, np.array([{"a": 1}], dtype=object), allow_pickle=True)
HOSTILE: dict[str, tuple[Member, str]] = {
    "symlink": (member("b.npy", tarfile.SYMTYPE, "/etc/passwd"), "is a symbolic link"),
    "hardlink": (member("b.npy", tarfile.LNKTYPE, "a.npy"), "is a hard link"),
    "device": (member("b.npy", tarfile.CHRTYPE), "is a device"),
    "block": (member("b.npy", tarfile.BLKTYPE), "is a device"),
    "pipe": (member("b.npy", tarfile.FIFOTYPE), "is a pipe"),
    "folder": (member("b.npy", tarfile.DIRTYPE), "is a folder"),
    "climbing": (("../../b.npy", b"x"), "is a name that climbs"),
    "absolute": (("/etc/b.npy", b"x"), "is a name that climbs"),
    "pickle": (("b.pkl", PICKLE.getvalue()), "is a pickle"),
    "pyd": (("b.pyd", b"x"), "is a pickle"),
    "other": (("b.txt", b"x"), "are ['b.npy', 'b.txt', 'b.json'], not ['b.npy', 'b.json']"),
    "doubled": (("b.npy", b"{}"), "are ['b.npy', 'b.npy', 'b.json'], not"),
    "pax": (member("b.npy", tarfile.XHDTYPE), "is of tar type b'x'"),
}


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_member_is_named(pack: Pack, hostile: str, within: bool) -> None:
    """Within its sample, as the catalogue says, or between two that it knows."""
    added, text = HOSTILE[hostile]
    pack.shards["train/train-000000.tar"].insert(3 if within else 4, added)
    pack.write(with_catalogue=False)
    third = pack.row("c")["sample_offset"]
    num_added = pack.path().read_bytes().index(b"c.npy\0") - third
    assert num_added >= 512

    def move(rows: list[dict[str, Any]]) -> None:
        rows[1]["sample_size"] += num_added * within
        for column in ("sample_offset", "clip_offset"):
            rows[2][column] += num_added

    pack.change_rows(move)
    found = pack.found()
    if within:
        assert only(found, text) == {"b"}
    else:
        name = added.name if isinstance(added, tarfile.TarInfo) else added[0]
        told = f"{FIRST}member {name!r} at byte {third} is in no sample of samples.parquet"
        assert only(found, told + (f", and {text}" if text.startswith(("is", "of")) else "")) == {"b"}
    assert len(found) == 1


def test_a_pickle_under_the_name_of_a_clip(pack: Pack) -> None:
    pack.shards["train/train-000000.tar"][2] = ("b.npy", PICKLE.getvalue())
    pack.write()
    for decode in (False, True):
        assert only(pack.found(decode=decode), "the clip cannot be decoded: the payload is no .npy") == {"b"}


def test_only_decoding_finds_what_no_hash_tells(tmp_path: Path) -> None:
    pack = Pack(tmp_path, "jpeg")
    pack.shards["train/train-000000.tar"][2] = ("b.jpg", b"no picture")
    pack.write()
    assert pack.found() == {}
    assert only(pack.found(decode=True), "the clip cannot be decoded") == {"b"}


def test_what_follows_the_end(pack: Pack) -> None:
    content = pack.path().read_bytes()
    for tail in (b"garbage", content):
        pack.path().write_bytes(content + tail)
        found = pack.found()
        assert only(found, "behind the end of the tar, at byte") == set()
        assert only(found, "index.json says") == set()
    pack.path().write_bytes(content + bytes(512))
    assert len(pack.found()) == 2


def test_a_member_after_the_last_sample(pack: Pack) -> None:
    pack.shards["train/train-000000.tar"] += [("z.npy", b"x"), ("c.txt", b"x")]
    pack.write(with_catalogue=False)
    pack.change_rows(lambda rows: [row.update(pack.rows(row["shard"])[i]) for i, row in enumerate(rows[:3])])
    found = pack.found()
    assert only(found, "member 'z.npy' at byte") == set()
    assert only(found, "member 'c.txt' at byte") == {"c"}
    assert len(found) == 2


def test_a_header_that_claims_eight_exabytes(pack: Pack) -> None:
    row = pack.row("b")
    content = bytearray(pack.path().read_bytes())
    header = tarfile.TarInfo("b.npy")
    header.size = 8 << 60
    content[row["sample_offset"] : row["sample_offset"] + 512] = header.tobuf(tarfile.GNU_FORMAT)
    pack.path().write_bytes(content)
    pack.write_indexes()
    assert pack.found() == {
        f"{FIRST}at bytes {row['sample_offset']} to {row['sample_offset'] + row['sample_size']}: member 'b.npy' "
        f"claims {8 << 60} bytes, more than there are": {"b"}
    }


def test_metadata_of_another_story(pack: Pack) -> None:
    name = "train/train-000000.tar"
    for number, changed in enumerate(({"label": "别的"}, {"num_frames": 4}, {"codec": "jpeg"})):
        pack.shards[name][2 * number + 1] = (
            f"{'abc'[number]}.json",
            pack.metadata(name, "abc"[number], **changed),
        )
    pack.shards["valid/valid-000000.tar"][1] = ("e.json", b"[" * 100_000)
    pack.write()
    found = pack.found()
    assert only(found, "its metadata says label '别的', samples.parquet '一二a'") == {"a"}
    assert only(found, "num_frames 4, samples.parquet 3") == {"b"}
    assert only(found, "codec 'jpeg', samples.parquet 'raw'") == {"c"}
    assert only(found, "its metadata is no JSON") == {"e"}
    assert len(found) == 4


CATALOGUES: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str, set[str]]] = {
    "doubled": (lambda rows: rows.append(rows[5]), "has it more than once", {"e"}),
    "hash": (lambda rows: rows[1].update(sha256="0" * 64), "the sha256 of the clip", {"b"}),
    "place": (lambda rows: rows[1].update(clip_offset=0), "samples.parquet says", {"b"}),
    "nonsense": (lambda rows: rows[1].update(sample_size=-5), "where it cannot stand", {"b"}),
    "exabytes": (lambda rows: rows[1].update(sample_size=7 << 60), "where it cannot stand", {"b"}),
    "overlap": (lambda rows: rows[1].update(sample_offset=0), "where it cannot stand", {"b"}),
    "beyond": (lambda rows: rows[2].update(sample_offset=1 << 40), "is cut", {"c"}),
    "codec": (lambda rows: rows[1].update(codec="x"), "codec 'x' is unknown", {"b"}),
    "climbing": (lambda rows: rows[1].update(shard="../../x.tar"), "../../x.tar: is missing", {"b"}),
    "gone": (lambda rows: rows.pop(1), "member 'b.npy' at byte", set()),
    "elsewhere": (lambda rows: rows[1].update(split="valid"), "has them in another split", {"b"}),
}


@pytest.mark.parametrize("wrong", CATALOGUES)
def test_a_wrong_catalogue(pack: Pack, wrong: str) -> None:
    change, text, costs = CATALOGUES[wrong]
    pack.change_rows(change)
    found = pack.found()
    assert only(found, text) >= costs
    assert pack.verify().num_lost <= 2


def test_wrong_indexes(pack: Pack) -> None:
    index = pack.index("train")
    pack.write_index("train", index | {"num_samples": 9, "split": "test", "shards": index["shards"][:1]})
    found = pack.found()
    assert only(found, "is of split 'test'") == set()
    assert only(found, "says 9 samples, its shards have 3") == set()
    assert only(found, "train-000001.tar: train/index.json does not know it") == set()
    index["shards"][0]["num_samples"] = 2
    index["shards"].append({"name": "train-000009.tar", "num_samples": 0, "bytes": 0, "sha256": "0" * 64})
    pack.write_index("train", index | {"num_samples": 4})
    found = pack.found()
    assert only(found, "has 2 samples in train/index.json, 3 in samples.parquet") == set()
    assert only(found, "train-000009.tar: is missing") == set()
    pack.path("train/index.json").write_bytes(b"{}")
    assert only(pack.found(), "train/index.json is damaged") == set()
    pack.path("train/index.json").unlink()
    assert only(pack.found(), "the split is no whole pack") == set()


def test_what_is_no_tar_at_all(pack: Pack) -> None:
    pack.path().write_bytes(np.random.default_rng(0).bytes(pack.path().stat().st_size))
    assert set.union(*pack.found().values()) == {"a", "b", "c"}


def test_a_remote_pack(pack: Pack) -> None:
    """What its index does not vouch for is not let in, so it costs the whole shard."""
    machine = MachineParams(workers=2, cache_dir=str(pack.folder / "cache"))
    url = (pack.folder / "shards").as_uri()
    assert verify(open_store(url, machine), pack.samples, machine).problems == ()
    # what is damaged on this machine alone is no fault of the pack, and is mended
    (cached,) = (pack.folder / "cache/shards").rglob("train-000000.*.tar")
    whole = cached.read_bytes()
    cached.write_bytes(whole[:600] + b"x" + whole[601:])
    assert verify(open_store(url, machine), pack.samples, machine).problems == ()
    assert cached.read_bytes() == whole
    # and what is whole on this machine alone hides no fault
    pack.flip(pack.row("b")["clip_offset"])
    (problem,) = verify(open_store(url, machine), pack.samples, machine).problems
    assert problem.clip_ids == ("a", "b", "c")
    assert f"{url}/train/train-000000.tar is not what index.json says" in problem.what


def test_a_damaged_catalogue_is_an_error(pack: Pack) -> None:
    with pytest.raises(ConfigError, match="nosuch"):
        pack.verify(split="nosuch")
    pack.samples.write_bytes(pack.samples.read_bytes()[:-100])
    with pytest.raises(TableError, match="samples"):
        pack.verify()


def test_the_verb(pack: Pack) -> None:
    params = read_mapping(ROOT / "params.yaml")
    params["paths"] |= {"shards": "shards", "samples": "samples.parquet"}
    (pack.folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PIPELINE, "verify", *arguments], cwd=pack.folder, capture_output=True, text=True, check=False
        )

    whole = run()
    assert whole.returncode == 0, whole.stderr
    assert "3 shards, 6 samples" in whole.stdout and "all is well" in whole.stdout
    pack.flip(pack.row("b")["clip_offset"] + 500)
    damaged = run("--split", "train")
    assert damaged.returncode == 1
    assert "2 problems cost 1 samples" in damaged.stdout
    told = json.loads(run("--json", "--decode").stdout)
    assert told["problems"][0] == {
        "shard": "train/train-000000.tar",
        "what": "the sha256 of the clip is not that of samples.parquet",
        "clip_ids": ["b"],
    }
    assert (told["num_problems"], told["num_lost"], told["num_samples"]) == (2, 1, 6)


def test_a_negative_size_costs_its_sample_alone(pack: Pack) -> None:
    """In base 256, -1 is ff…ff: rounded up to blocks it is 0."""
    row = pack.row("b")
    at = row["clip_offset"] + -(-row["clip_size"] // 512) * 512
    content = bytearray(pack.path().read_bytes())
    header = content[at : at + 512]
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[at : at + 512] = header
    pack.path().write_bytes(content)
    found = pack.found()
    assert only(found, "claims -1 bytes") == {"b"}
    assert set().union(*found.values()) == {"b"}


@pytest.mark.parametrize("num_left", [0, 1, 100, 511, 512, 600])
def test_a_cut_behind_the_last_sample_costs_none(pack: Pack, num_left: int) -> None:
    row = pack.row("c")
    os.truncate(pack.path(), row["sample_offset"] + row["sample_size"] + num_left)
    result = pack.verify()
    assert result.problems and result.num_lost == 0


def test_names_that_no_terminal_takes_are_escaped(pack: Pack) -> None:
    (pack.folder / "shards" / os.fsdecode(b"caf\xe9\x1b[31m.tar")).write_bytes(b"")
    result = pack.verify()
    assert [problem.shard for problem in result.problems] == [r"caf\udce9\x1b[31m.tar"]
    json.dumps(result.as_dict(), ensure_ascii=False).encode()
