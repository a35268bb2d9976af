"""Compares videos in zips with the unpacked file and the standard library."""

import errno
import hashlib
import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from shards.schema import MediaKind, Reason
from stages.clips.cache import ClipCache
from stages.settings import CropParams
from stages.videos import zip_directory, zip_member
from stages.videos.media import Source, resolve_media
from stages.videos.video import read_header
from stages.videos.zip_directory import find_member, zip_members
from stages.videos.zip_member import member_sha256
from tests.support.sources import PARAMS, pictures, rejection, zip_info, zipped
from tests.support.videos import numbered, write_audio, write_face, write_mouth, write_video

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def reason_of(root: Path, media: str, params: CropParams = PARAMS) -> Reason:
    """Returns the reason with which the crop stage would reject the clip, by its own steps."""

    def crop() -> None:
        source = resolve_media(root, media)
        read_header(source)
        ClipCache(root / "cache").keys(source, MediaKind.MOUTH, params)
        pictures(source, params)

    return rejection(crop).reason


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["index_last", "index_first", "matroska", "mpeg"])
def test_a_member_reads_like_the_unpacked_file(tmp_path: Path, layout: str, method: int) -> None:
    name, codec = {"matroska": ("a.mkv", "libx264"), "mpeg": ("a.mpg", "mpeg1video")}.get(
        layout, ("a.mp4", "libx264")
    )
    faststart = {"movflags": "faststart"} if layout == "index_first" else {}
    path = write_video(
        tmp_path / name, map(numbered, range(40)), codec=codec, options={}, container_options=faststart
    )
    others = {"first.bin": b"x" * 70_001, f"clips/{name}": path.read_bytes(), "last.bin": b"y" * 999}
    zipped(tmp_path / "train.zip", others, method)
    source = resolve_media(tmp_path, f"train.zip!clips/{name}")
    assert source == Source(tmp_path / "train.zip", f"clips/{name}")
    assert pictures(source) == pictures(path)
    assert read_header(source, PARAMS) == read_header(path, PARAMS)
    with zipfile.ZipFile(tmp_path / "train.zip") as archive:
        unpacked = archive.read(f"clips/{name}")
    assert member_sha256(find_member(source.path, f"clips/{name}")) == hashlib.sha256(unpacked).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "train.zip"]), "nothing is unpacked"


@pytest.mark.parametrize("method", METHODS)
def test_zipped_and_unpacked_copies_have_the_same_keys(tmp_path: Path, method: int) -> None:
    path = write_mouth(tmp_path / "a.mp4", 12)
    zipped(tmp_path / "b.zip", {"c/d.mp4": path.read_bytes()}, method)
    source = resolve_media(tmp_path, "b.zip!c/d.mp4")
    cache = ClipCache(tmp_path / "cache")
    for kind in MediaKind:
        assert cache.keys(source, kind, PARAMS) == cache.keys(path, kind, PARAMS)
    first, second = cache.crop(path, MediaKind.MOUTH, PARAMS), cache.crop(source, MediaKind.MOUTH, PARAMS)
    assert (first.from_cache, second.from_cache) == (False, True)


def test_a_changed_zip_is_read_again(tmp_path: Path) -> None:
    cache = ClipCache(tmp_path / "cache")
    seen = set()
    for seed in (1, 2):
        payload = write_mouth(tmp_path / "a.mp4", 12, seed).read_bytes()
        zipped(tmp_path / "b.zip", {"a.mp4": payload})
        os.utime(tmp_path / "b.zip", (seed, seed))
        seen.add(cache.keys(resolve_media(tmp_path, "b.zip!a.mp4"), MediaKind.MOUTH, PARAMS).clip)
    assert len(seen) == 2


def test_a_zips_directory_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = write_mouth(tmp_path / "a.mp4", 5).read_bytes()
    zipped(tmp_path / "b.zip", {f"{i}.mp4": payload for i in range(20)})
    read = []
    directory = zip_directory._directory
    monkeypatch.setattr(zip_directory, "_directory", lambda path: read.append(path) or directory(path))
    for i in range(20):
        read_header(resolve_media(tmp_path, f"b.zip!{i}.mp4"))
    assert len(read) == 1


def test_names_with_an_exclamation_mark_may_be_plain_files(tmp_path: Path) -> None:
    path = write_mouth(tmp_path / "what.zip!a.mp4", 3)
    assert resolve_media(tmp_path, path.name) == Source(path)
    assert rejection(lambda: resolve_media(tmp_path, "hey!.mp4")).reason is Reason.MISSING_FILE
    zipped(tmp_path / "a!b.ZIP", {"好!.mp4": path.read_bytes()})
    assert resolve_media(tmp_path, "a!b.ZIP!好!.mp4").member == "好!.mp4"


def test_zip_members_does_not_list_folders(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"x/": b"", "x/y.mp4": b"1"})
    assert list(zip_members(tmp_path / "a.zip")) == ["x/y.mp4"]


def test_a_face_video_in_a_zip_is_cropped(tmp_path: Path) -> None:
    payload = write_face(tmp_path / "a.mp4", 12).read_bytes()
    zipped(tmp_path / "b.zip", {"a_FACE.mp4": payload})
    outcome = ClipCache(tmp_path / "cache").crop(
        resolve_media(tmp_path, "b.zip!a_FACE.mp4"), MediaKind.FACE, PARAMS
    )
    assert outcome.rejection is None
    assert outcome.figures.num_faces == 1


# -- hostile zips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "media",
    ["b.zip!../a.mp4", "b.zip!/a.mp4", "b.zip!C:\\a.mp4", "b.zip!x\\..\\..\\a.mp4", "../b.zip!a.mp4"],
)
def test_members_with_paths_out_of_the_zip_are_not_read(tmp_path: Path, media: str) -> None:
    payload = write_mouth(tmp_path / "a.mp4", 3).read_bytes()
    names = ["../a.mp4", "/a.mp4", "C:\\a.mp4", "x\\..\\..\\a.mp4", "a.mp4"]
    zipped(tmp_path / "b.zip", dict.fromkeys(names, payload))
    assert reason_of(tmp_path, media) is Reason.UNSAFE_PATH
    assert rejection(lambda: read_header(Source(tmp_path / "b.zip", "../a.mp4"))).reason is (
        Reason.UNSAFE_PATH
    )


def test_links_folders_and_other_members_are_rejected(tmp_path: Path) -> None:
    payload = write_mouth(tmp_path / "a.mp4", 3).read_bytes()
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr(zip_info("link.mp4", mode=stat.S_IFLNK | 0o777), b"/etc/hostname")
        archive.writestr(zip_info("folder.mp4/", mode=stat.S_IFDIR | 0o755), b"")
        archive.writestr("empty.mp4", b"")
        archive.writestr("garbage.mp4", b"garbage" * 999)
        archive.write(write_audio(tmp_path / "a.wav"), "sound.mp4")
        archive.writestr("playlist.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n" * 9)
        archive.writestr(zip_info("lzma.mp4", zipfile.ZIP_LZMA), payload)
    expected = {
        "link.mp4": Reason.UNSAFE_PATH,
        "folder.mp4": Reason.MISSING_FILE,
        "folder.mp4/": Reason.MISSING_FILE,
        "gone.mp4": Reason.MISSING_FILE,
        "empty.mp4": Reason.UNREADABLE,
        "garbage.mp4": Reason.UNREADABLE,
        "playlist.mp4": Reason.UNREADABLE,
        "sound.mp4": Reason.NO_VIDEO,
        "lzma.mp4": Reason.UNREADABLE,
    }
    assert {name: reason_of(tmp_path, f"b.zip!{name}") for name in expected} == expected
    assert reason_of(tmp_path, "gone.zip!a.mp4") is Reason.MISSING_FILE
    outside = tmp_path / "corpus"
    outside.mkdir()
    (outside / "link.zip").symlink_to(tmp_path / "b.zip")
    assert reason_of(outside, "link.zip!garbage.mp4") is Reason.UNSAFE_PATH


def patched(path: Path, member: str, **changes: int) -> None:
    """Overwrites fields of the member's local header and of its entry in the directory."""
    fields = {
        "flags": ("<H", 6, 8),
        "crc": ("<L", 14, 16),
        "size": ("<L", 22, 24),
        "offset": ("<L", None, 42),
    }
    payload = bytearray(path.read_bytes())
    entry = payload.rindex(b"PK\1\2", 0, payload.rindex(member.encode()))
    local = int.from_bytes(payload[entry + 42 : entry + 46], "little")
    for name, value in changes.items():
        form, in_local, in_directory = fields[name]
        struct.pack_into(form, payload, entry + in_directory, value)
        if in_local is not None:
            struct.pack_into(form, payload, local + in_local, value)
    path.write_bytes(payload)


@pytest.mark.parametrize("method", METHODS)
def test_an_encrypted_member_is_unreadable(tmp_path: Path, method: int) -> None:
    zipped(tmp_path / "b.zip", {"a.mp4": write_mouth(tmp_path / "a.mp4", 3).read_bytes()}, method)
    patched(tmp_path / "b.zip", "a.mp4", flags=1)
    error = rejection(lambda: resolve_media(tmp_path, "b.zip!a.mp4"))
    assert error.reason is Reason.UNREADABLE
    assert "password" in error.detail


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_checksum_is_unreadable(tmp_path: Path, method: int) -> None:
    zipped(tmp_path / "b.zip", {"a.mp4": write_mouth(tmp_path / "a.mp4", 12).read_bytes()}, method)
    patched(tmp_path / "b.zip", "a.mp4", crc=1)
    assert len(pictures(resolve_media(tmp_path, "b.zip!a.mp4"))) == 12, "only the checksum is wrong"
    source = resolve_media(tmp_path, "b.zip!a.mp4")
    error = rejection(lambda: ClipCache(tmp_path / "cache").crop(source, MediaKind.MOUTH, PARAMS))
    assert error.reason is Reason.UNREADABLE
    assert "checksum" in error.detail


def test_a_zip_bomb_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(tmp_path / "b.zip", {"bomb.mp4": bytes(60_000_000)}, zipfile.ZIP_DEFLATED)
    small = PARAMS.model_copy(update={"max_source_mb": 1.0})
    block_sizes = []
    inflated = zip_member._inflated

    def counted(*arguments):  # type: ignore[no-untyped-def]
        for block in inflated(*arguments):
            block_sizes.append(len(block))
            yield block

    monkeypatch.setattr(zip_member, "_inflated", counted)
    source = resolve_media(tmp_path, "b.zip!bomb.mp4")
    cache = ClipCache(tmp_path / "cache")
    for act in (lambda: cache.keys(source, MediaKind.MOUTH, small), lambda: pictures(source, small)):
        error = rejection(act)
        assert error.reason is Reason.OVERSIZED
        assert "crop.max_source_mb" in error.detail
    assert not block_sizes
    # a bomb that announces few bytes
    patched(tmp_path / "b.zip", "bomb.mp4", size=900_000)
    source = resolve_media(tmp_path, "b.zip!bomb.mp4")
    for act in (lambda: cache.keys(source, MediaKind.MOUTH, small), lambda: pictures(source, small)):
        block_sizes.clear()
        assert rejection(act).reason is Reason.OVERSIZED
        assert sum(block_sizes) <= 900_000
    monkeypatch.setattr(zip_member, "MAX_INFLATED_MB", 0.5)
    error = rejection(lambda: pictures(source))
    assert error.reason is Reason.OVERSIZED
    assert "zip -0" in error.detail


@pytest.mark.parametrize("method", METHODS)
def test_the_bytes_of_another_member_are_never_read(tmp_path: Path, method: int) -> None:
    members = {f"{i}.mp4": write_mouth(tmp_path / "a.mp4", 12, i).read_bytes() for i in range(2)}
    zipped(tmp_path / "b.zip", members, method)
    patched(tmp_path / "b.zip", "1.mp4", offset=0)
    assert reason_of(tmp_path, "b.zip!1.mp4") is Reason.UNREADABLE
    error = rejection(lambda: read_header(Source(tmp_path / "b.zip", "1.mp4")))
    assert "differs from its own directory" in error.detail
    patched(tmp_path / "b.zip", "1.mp4", offset=0xFFFF_FFF0)
    assert reason_of(tmp_path, "b.zip!1.mp4") is Reason.UNREADABLE
    patched(tmp_path / "b.zip", "0.mp4", size=len(members["0.mp4"]) + 1)
    assert reason_of(tmp_path, "b.zip!0.mp4") is Reason.UNREADABLE


@pytest.mark.parametrize("method", METHODS)
def test_damaged_zips_are_unreadable(tmp_path: Path, method: int) -> None:
    payload = write_mouth(tmp_path / "a.mp4", 30).read_bytes()
    whole = zipped(tmp_path / "b.zip", {"a.mp4": payload}, method).read_bytes()
    for damaged in (whole[:-30], whole[: len(whole) // 2], b"", b"garbage" * 99, whole[len(whole) // 2 :]):
        (tmp_path / "b.zip").write_bytes(damaged)
        assert reason_of(tmp_path, "b.zip!a.mp4") is Reason.UNREADABLE
    flipped = bytearray(whole)
    flipped[len(payload) // 2] ^= 0xFF
    (tmp_path / "b.zip").write_bytes(flipped)
    assert reason_of(tmp_path, "b.zip!a.mp4") is Reason.UNREADABLE, "found by its checksum"


def test_a_truncated_video_in_a_zip_is_truncated(tmp_path: Path) -> None:
    whole = write_mouth(tmp_path / "a.mkv", 60).read_bytes()
    zipped(tmp_path / "b.zip", {"a.mkv": whole[: len(whole) * 6 // 10]})
    assert reason_of(tmp_path, "b.zip!a.mkv") is Reason.TRUNCATED


def test_a_damaged_zip_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.zip").write_bytes(b"garbage" * 99)
    read = []
    directory = zip_directory._directory
    monkeypatch.setattr(zip_directory, "_directory", lambda path: read.append(path) or directory(path))
    details = {rejection(lambda: find_member(tmp_path / "b.zip", "a.mp4")).detail for _ in range(5)}
    assert len(read) == len(details) == 1
    zipped(tmp_path / "b.zip", {"a.mp4": b"whole again"})
    assert find_member(tmp_path / "b.zip", "a.mp4").size == 11


def test_a_zip_is_read_again_after_a_disk_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "b.zip", {"a.mp4": b"x"})

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(zip_directory, "_CappedFile", fails)
        assert rejection(lambda: find_member(path, "a.mp4")).reason is Reason.UNREADABLE
    assert find_member(path, "a.mp4").size == 1


def test_a_huge_directory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"{i:04}.mp4": b"" for i in range(1_000)}
    zipped(tmp_path / "b.zip", members)
    monkeypatch.setattr(zip_directory, "MAX_DIRECTORY_BYTES", 40_000)
    assert "directory" in rejection(lambda: zip_members(tmp_path / "b.zip")).detail
    monkeypatch.setattr(zip_directory, "MAX_DIRECTORY_BYTES", 80_000)
    os.utime(tmp_path / "b.zip", (1, 1))
    assert len(zip_members(tmp_path / "b.zip")) == 1_000


@pytest.mark.parametrize("limit", [1, 2, 7, 64, 100])
def test_output_pending_after_the_last_block_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """With blocks so small that the packed bytes end when the output is full."""
    payloads = {f"{size}.mp4": bytes(size) for size in (0, 1, 22, 64, 258, 379, 386, 820, 834, 5_000)}
    zipped(tmp_path / "b.zip", payloads, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zip_member, "HASH_BLOCK_BYTES", limit)
    for name, payload in payloads.items():
        assert member_sha256(find_member(tmp_path / "b.zip", name)) == hashlib.sha256(payload).hexdigest()
