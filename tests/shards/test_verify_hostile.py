"""`pipeline verify` with hostile tar members, and with metadata, catalogues and indexes that do not match."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.changed_packs import FIRST, Member, Pack, only, pack_fixture  # noqa: F401


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
    "climbing": (("../../b.npy", b"x"), "is a name that leads out"),
    "absolute": (("/etc/b.npy", b"x"), "is a name that leads out"),
    "pickle": (("b.pkl", PICKLE.getvalue()), "is a pickle"),
    "pyd": (("b.pyd", b"x"), "is a pickle"),
    "other": (("b.txt", b"x"), "are ['b.npy', 'b.txt', 'b.json'] instead of ['b.npy', 'b.json']"),
    "doubled": (("b.npy", b"{}"), "are ['b.npy', 'b.npy', 'b.json'] instead of"),
    "pax": (member("b.npy", tarfile.XHDTYPE), "is of tar type b'x'"),
}


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_member_is_reported(pack: Pack, hostile: str, within: bool) -> None:
    """Inside a sample of the catalogue, or between two samples."""
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
        text_of_member = f"{FIRST}member {name!r} at byte {third} belongs to no sample of samples.parquet"
        assert only(found, text_of_member + (f", and {text}" if text.startswith(("is", "of")) else "")) == {
            "b"
        }
    assert len(found) == 1


def test_a_pickle_under_the_name_of_a_clip(pack: Pack) -> None:
    pack.shards["train/train-000000.tar"][2] = ("b.npy", PICKLE.getvalue())
    pack.write()
    for decode in (False, True):
        assert only(pack.found(decode=decode), "the clip cannot be decoded: the payload is not an .npy") == {
            "b"
        }


def test_only_decoding_finds_damage_that_hashes_match(tmp_path: Path) -> None:
    pack = Pack(tmp_path, "jpeg")
    pack.shards["train/train-000000.tar"][2] = ("b.jpg", b"no picture")
    pack.write()
    assert pack.found() == {}
    assert only(pack.found(decode=True), "the clip cannot be decoded") == {"b"}


def test_data_after_the_end(pack: Pack) -> None:
    content = pack.path().read_bytes()
    for tail in (b"garbage", content):
        pack.path().write_bytes(content + tail)
        found = pack.found()
        assert only(found, "after the end of the tar at byte") == set()
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
        f"claims {8 << 60} bytes, more than available": {"b"}
    }


def test_a_negative_size_loses_only_its_sample(pack: Pack) -> None:
    """In base 256, -1 is ff…ff; rounded up to blocks it is 0."""
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


def test_unprintable_names_are_escaped(pack: Pack) -> None:
    (pack.folder / "shards" / os.fsdecode(b"caf\xe9\x1b[31m.tar")).write_bytes(b"")
    result = pack.verify()
    assert [problem.shard for problem in result.problems] == [r"caf\udce9\x1b[31m.tar"]
    json.dumps(result.as_dict(), ensure_ascii=False).encode()


# -- mismatches ------------------------------------------------------------------------------------------


def test_metadata_that_does_not_match(pack: Pack) -> None:
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
    assert only(found, "its metadata is not valid JSON") == {"e"}
    assert len(found) == 4


CATALOGUES: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str, set[str]]] = {
    "doubled": (lambda rows: rows.append(rows[5]), "has this clip more than once", {"e"}),
    "hash": (lambda rows: rows[1].update(sha256="0" * 64), "the sha256 of the clip", {"b"}),
    "place": (lambda rows: rows[1].update(clip_offset=0), "samples.parquet says", {"b"}),
    "nonsense": (lambda rows: rows[1].update(sample_size=-5), "which is not possible", {"b"}),
    "exabytes": (lambda rows: rows[1].update(sample_size=7 << 60), "which is not possible", {"b"}),
    "overlap": (lambda rows: rows[1].update(sample_offset=0), "which is not possible", {"b"}),
    "beyond": (lambda rows: rows[2].update(sample_offset=1 << 40), "is truncated", {"c"}),
    "codec": (lambda rows: rows[1].update(codec="x"), "codec 'x' is unknown", {"b"}),
    "climbing": (lambda rows: rows[1].update(shard="../../x.tar"), "../../x.tar: is missing", {"b"}),
    "gone": (lambda rows: rows.pop(1), "member 'b.npy' at byte", set()),
    "elsewhere": (lambda rows: rows[1].update(split="valid"), "has these clips in another split", {"b"}),
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
    assert only(found, "is the index of split 'test'") == set()
    assert only(found, "says 9 samples, but its shards have 3") == set()
    assert only(found, "train-000001.tar: is not listed in train/index.json") == set()
    index["shards"][0]["num_samples"] = 2
    index["shards"].append({"name": "train-000009.tar", "num_samples": 0, "bytes": 0, "sha256": "0" * 64})
    pack.write_index("train", index | {"num_samples": 4})
    found = pack.found()
    assert only(found, "has 2 samples in train/index.json, 3 in samples.parquet") == set()
    assert only(found, "train-000009.tar: is missing") == set()
    pack.path("train/index.json").write_bytes(b"{}")
    assert only(pack.found(), "train/index.json is damaged") == set()
    pack.path("train/index.json").unlink()
    assert only(pack.found(), "the split is incomplete") == set()
