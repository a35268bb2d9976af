"""Videos in zips and parts of videos: against the unpacked file, the standard library, and whole decodings cut."""

import errno
import hashlib
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason
from stages import zips
from stages.cache import ClipCache
from stages.media import Media, Source, resolve_media
from stages.picture import SourceFrame
from stages.settings import CropParams
from stages.video import decode, read_header, sniff_media_kind
from stages.zips import find_member, member_sha256, zip_members
from tests.videos import number_of, numbered, photograph, write_audio, write_face, write_mouth, write_video

PARAMS = CropParams()
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, payload in members.items():
            # the local header gets a field that the directory has not, as other zip programs do
            with archive.open(zip_info(name, method), "w", force_zip64=True) as member:
                member.write(payload)
    return path


def zip_info(
    name: str, method: int = zipfile.ZIP_STORED, mode: int = stat.S_IFREG | 0o644
) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type, info.external_attr, info.create_system = method, mode << 16, 3
    return info


def gray_HW(frame: SourceFrame) -> np.ndarray:
    return np.asarray(frame.picture.to_ndarray(format="gray"))


def pictures(media: Media, params: CropParams = PARAMS) -> list[tuple[int, float, bytes]]:
    return [(frame.index, frame.time_s, gray_HW(frame).tobytes()) for frame in decode(media, params)]


def rejection(act: Callable[[], object]) -> ClipRejected:
    with pytest.raises(ClipRejected) as caught:
        act()
    return caught.value


def reason_of(root: Path, media: str, params: CropParams = PARAMS) -> Reason:
    """What the crop stage would say, by its own steps."""

    def crop() -> None:
        source = resolve_media(root, media)
        sniff_media_kind(source)
        ClipCache(root / "cache").keys(source, MediaKind.MOUTH, params)
        pictures(source, params)

    return rejection(crop).reason


# -- members of zips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["index_last", "index_first", "matroska", "mpeg"])
def test_a_member_is_read_like_the_unpacked_file(tmp_path: Path, layout: str, method: int) -> None:
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
    assert sniff_media_kind(source) is MediaKind.FACE
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
    made, kept = cache.crop(path, MediaKind.MOUTH, PARAMS), cache.crop(source, MediaKind.MOUTH, PARAMS)
    assert (made.from_cache, kept.from_cache) == (False, True)


def test_a_part_has_keys_of_its_own(tmp_path: Path) -> None:
    path = write_mouth(tmp_path / "a.mp4", 12)
    cache = ClipCache(tmp_path / "cache")
    parts = [(None, None), (0.0, 0.2), (0.0, 0.3), (0.2, None), (None, 0.2)]
    keys = [cache.keys(Source(path, None, *part), MediaKind.FACE, PARAMS) for part in parts]
    assert len({key.clip for key in keys}) == len({key.track for key in keys}) == len(parts)
    assert keys[0] == cache.keys(path, MediaKind.FACE, PARAMS)


def test_a_changed_zip_is_read_anew(tmp_path: Path) -> None:
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
    directory = zips._directory
    monkeypatch.setattr(zips, "_directory", lambda path: read.append(path) or directory(path))
    for i in range(20):
        sniff_media_kind(resolve_media(tmp_path, f"b.zip!{i}.mp4"))
    assert len(read) == 1


def test_names_with_an_exclamation_mark_may_be_plain_files(tmp_path: Path) -> None:
    path = write_mouth(tmp_path / "what.zip!a.mp4", 3)
    assert resolve_media(tmp_path, path.name) == Source(path)
    assert rejection(lambda: resolve_media(tmp_path, "hey!.mp4")).reason is Reason.MISSING_FILE
    zipped(tmp_path / "a!b.ZIP", {"好!.mp4": path.read_bytes()})
    assert resolve_media(tmp_path, "a!b.ZIP!好!.mp4").member == "好!.mp4"


# -- hostile zips -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "media",
    ["b.zip!../a.mp4", "b.zip!/a.mp4", "b.zip!C:\\a.mp4", "b.zip!x\\..\\..\\a.mp4", "../b.zip!a.mp4"],
)
def test_members_that_climb_are_not_read(tmp_path: Path, media: str) -> None:
    payload = write_mouth(tmp_path / "a.mp4", 3).read_bytes()
    names = ["../a.mp4", "/a.mp4", "C:\\a.mp4", "x\\..\\..\\a.mp4", "a.mp4"]
    zipped(tmp_path / "b.zip", dict.fromkeys(names, payload))
    assert reason_of(tmp_path, media) is Reason.UNSAFE_PATH
    assert rejection(lambda: sniff_media_kind(Source(tmp_path / "b.zip", "../a.mp4"))).reason is (
        Reason.UNSAFE_PATH
    )


def test_members_that_are_no_plain_files(tmp_path: Path) -> None:
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
    places = {
        "flags": ("<H", 6, 8),
        "crc": ("<L", 14, 16),
        "size": ("<L", 22, 24),
        "offset": ("<L", None, 42),
    }
    payload = bytearray(path.read_bytes())
    entry = payload.rindex(b"PK\1\2", 0, payload.rindex(member.encode()))
    local = int.from_bytes(payload[entry + 42 : entry + 46], "little")
    for name, value in changes.items():
        form, in_local, in_directory = places[name]
        struct.pack_into(form, payload, entry + in_directory, value)
        if in_local is not None:
            struct.pack_into(form, payload, local + in_local, value)
    path.write_bytes(payload)


@pytest.mark.parametrize("method", METHODS)
def test_an_encrypted_member(tmp_path: Path, method: int) -> None:
    zipped(tmp_path / "b.zip", {"a.mp4": write_mouth(tmp_path / "a.mp4", 3).read_bytes()}, method)
    patched(tmp_path / "b.zip", "a.mp4", flags=1)
    error = rejection(lambda: resolve_media(tmp_path, "b.zip!a.mp4"))
    assert error.reason is Reason.UNREADABLE
    assert "password" in error.detail


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_checksum(tmp_path: Path, method: int) -> None:
    zipped(tmp_path / "b.zip", {"a.mp4": write_mouth(tmp_path / "a.mp4", 12).read_bytes()}, method)
    patched(tmp_path / "b.zip", "a.mp4", crc=1)
    assert len(pictures(resolve_media(tmp_path, "b.zip!a.mp4"))) == 12, "only the checksum is wrong"
    source = resolve_media(tmp_path, "b.zip!a.mp4")
    error = rejection(lambda: ClipCache(tmp_path / "cache").crop(source, MediaKind.MOUTH, PARAMS))
    assert error.reason is Reason.UNREADABLE
    assert "checksum" in error.detail


def test_a_bomb_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(tmp_path / "b.zip", {"bomb.mp4": bytes(60_000_000)}, zipfile.ZIP_DEFLATED)
    small = PARAMS.model_copy(update={"max_source_mb": 1.0})
    made = []
    inflated = zips._inflated

    def counted(*arguments):  # type: ignore[no-untyped-def]
        for block in inflated(*arguments):
            made.append(len(block))
            yield block

    monkeypatch.setattr(zips, "_inflated", counted)
    source = resolve_media(tmp_path, "b.zip!bomb.mp4")
    cache = ClipCache(tmp_path / "cache")
    for act in (lambda: cache.keys(source, MediaKind.MOUTH, small), lambda: pictures(source, small)):
        error = rejection(act)
        assert error.reason is Reason.OVERSIZED
        assert "crop.max_source_mb" in error.detail
    assert not made
    # one that announces little
    patched(tmp_path / "b.zip", "bomb.mp4", size=900_000)
    source = resolve_media(tmp_path, "b.zip!bomb.mp4")
    for act in (lambda: cache.keys(source, MediaKind.MOUTH, small), lambda: pictures(source, small)):
        made.clear()
        assert rejection(act).reason is Reason.OVERSIZED
        assert sum(made) <= 900_000
    monkeypatch.setattr(zips, "MAX_INFLATED_MB", 0.5)
    error = rejection(lambda: pictures(source))
    assert error.reason is Reason.OVERSIZED
    assert "zip -0" in error.detail


@pytest.mark.parametrize("method", METHODS)
def test_another_members_bytes_are_never_taken(tmp_path: Path, method: int) -> None:
    members = {f"{i}.mp4": write_mouth(tmp_path / "a.mp4", 12, i).read_bytes() for i in range(2)}
    zipped(tmp_path / "b.zip", members, method)
    patched(tmp_path / "b.zip", "1.mp4", offset=0)
    assert reason_of(tmp_path, "b.zip!1.mp4") is Reason.UNREADABLE
    error = rejection(lambda: sniff_media_kind(Source(tmp_path / "b.zip", "1.mp4")))
    assert "not what its directory says" in error.detail
    patched(tmp_path / "b.zip", "1.mp4", offset=0xFFFF_FFF0)
    assert reason_of(tmp_path, "b.zip!1.mp4") is Reason.UNREADABLE
    patched(tmp_path / "b.zip", "0.mp4", size=len(members["0.mp4"]) + 1)
    assert reason_of(tmp_path, "b.zip!0.mp4") is Reason.UNREADABLE


@pytest.mark.parametrize("method", METHODS)
def test_damaged_zips(tmp_path: Path, method: int) -> None:
    payload = write_mouth(tmp_path / "a.mp4", 30).read_bytes()
    whole = zipped(tmp_path / "b.zip", {"a.mp4": payload}, method).read_bytes()
    for harmed in (whole[:-30], whole[: len(whole) // 2], b"", b"garbage" * 99, whole[len(whole) // 2 :]):
        (tmp_path / "b.zip").write_bytes(harmed)
        assert reason_of(tmp_path, "b.zip!a.mp4") is Reason.UNREADABLE
    flipped = bytearray(whole)
    flipped[len(payload) // 2] ^= 0xFF
    (tmp_path / "b.zip").write_bytes(flipped)
    assert reason_of(tmp_path, "b.zip!a.mp4") is Reason.UNREADABLE, "found by its checksum"


def test_a_member_that_breaks_off_is_truncated(tmp_path: Path) -> None:
    whole = write_mouth(tmp_path / "a.mkv", 60).read_bytes()
    zipped(tmp_path / "b.zip", {"a.mkv": whole[: len(whole) * 6 // 10]})
    assert reason_of(tmp_path, "b.zip!a.mkv") is Reason.TRUNCATED


# -- parts --------------------------------------------------------------------------------------------


def moving(num_frames: int) -> list[np.ndarray]:
    """Pictures that need each other: motion, so that B-frames and references are used."""
    small = cv2.resize(photograph(), (160, 96))
    return [np.roll(small, 3 * i, axis=1) // 2 + numbered(i) // 2 for i in range(num_frames)]


X264 = {"preset": "veryfast", "crf": "20"}
STREAMS = {
    "b_frames": ("a.mp4", "libx264", X264 | {"bf": "3", "g": "40"}),
    "one_key_frame": ("a.mp4", "libx264", X264 | {"g": "1000"}),
    "open_gop": ("a.mp4", "libx264", X264 | {"bf": "3", "g": "30", "x264-params": "open-gop=1"}),
    "intra_refresh": ("a.mp4", "libx264", X264 | {"g": "30", "x264-params": "intra-refresh=1"}),
    "hevc": ("a.mp4", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none:keyint=30:open-gop=1"}),
    "matroska": ("a.mkv", "libx264", X264 | {"bf": "2", "g": "25"}),
    "mpeg4": ("a.mp4", "mpeg4", {"bf": "2", "g": "25"}),
    "mpeg1_in_matroska": ("a.mkv", "mpeg1video", {"bf": "2", "g": "20"}),
    "mpeg_program": ("a.mpg", "mpeg1video", {"bf": "2", "g": "20"}),
    "transport": ("a.ts", "libx264", X264 | {"bf": "3", "g": "40"}),
    "vp9": ("a.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "40"}),
}  # fmt: skip
PARTS = [(None, 3.0), (0.0, 1.02), (2.5, 4.0), (3.41, 6.13), (5.999, None), (4.0, 4.04), (6.0, 99.0)]


def cut(
    whole: list[tuple[int, float, bytes]], start_s: float, end_s: float
) -> list[tuple[int, float, bytes]]:
    """The referee: all pictures, then those in the part, counted and timed anew."""
    inside = [(time, gray) for _, time, gray in whole if start_s - 1e-6 <= time < end_s - 1e-6]
    return [(i, time - inside[0][0], gray) for i, (time, gray) in enumerate(inside)]


@pytest.mark.parametrize(
    ("kind", "first_s"), [(k, s) for k in STREAMS for s in (0.0, 8.333) if not s or "lib" in STREAMS[k][1]]
)
def test_a_part_is_the_same_pictures_as_the_whole_cut(tmp_path: Path, kind: str, first_s: float) -> None:
    name, codec, options = STREAMS[kind]
    rate = 25
    times = [first_s + Fraction(i, rate) for i in range(180)] if first_s else None
    path = write_video(tmp_path / name, moving(180), rate, times, codec=codec, options=options)
    whole = pictures(path)
    assert len(whole) == 180
    for start_s, end_s in PARTS[:-1]:
        part = pictures(Source(path, None, start_s, end_s))
        expected = cut(whole, start_s or 0.0, end_s or 1e9)
        assert [p[0] for p in part] == [p[0] for p in expected]
        assert np.allclose([p[1] for p in part], [p[1] for p in expected], atol=1e-5)
        assert [p[2] for p in part] == [p[2] for p in expected]
        duration_s = read_header(Source(path, None, start_s, end_s), PARAMS).duration_s
        if duration_s is not None:
            assert duration_s == pytest.approx((end_s or 7.2) - (start_s or 0.0), abs=0.09)


def test_parts_that_meet_share_no_picture_and_lose_none(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", map(numbered, range(100)), Fraction(30_000, 1001))
    edges = [None, 0.7, 1.0, 1.4014, 2.9, None]
    numbers = [
        number_of(gray_HW(frame))
        for start_s, end_s in pairwise(edges)
        for frame in decode(Source(path, None, start_s, end_s), PARAMS)
    ]
    assert numbers == list(range(100))


def test_a_jump_reads_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the parts of a long video would cost the square of its length."""
    from stages import video

    path = write_video(tmp_path / "a.mp4", moving(300), options=X264 | {"g": "25"})
    read = []
    clock_read = video._Clock.read
    monkeypatch.setattr(video._Clock, "read", lambda self, p: read.append(1) or clock_read(self, p))
    assert len(pictures(Source(path, None, 9.0, 10.0))) == 25
    assert len(read) <= 25 + 3 * 25


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_part_that_is_not_there(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, moving(100), options=X264)
    for start_s, end_s in ((3.0, 99.0), (4.5, 5.0), (50.0, None), (2.001, 2.002)):
        assert rejection(lambda part=(start_s, end_s): pictures(Source(path, None, *part))).reason is (
            Reason.TRUNCATED
        )


def test_a_hole_counts_only_in_its_part(tmp_path: Path) -> None:
    times = [i / 25 for i in range(60)] + [4 + i / 25 for i in range(60)]
    path = write_video(tmp_path / "a.mp4", map(numbered, range(120)), times_s=times)
    assert len(pictures(Source(path, None, 0.0, 2.0))) == 50
    assert len(pictures(Source(path, None, 4.0, None))) == 60
    assert len(pictures(Source(path, None, 2.0, 2.5))) == 10, "nor the rest of a hole after it"
    for part in ((1.0, 5.0), (2.0, 3.5), (2.9, 5.0)):
        assert rejection(lambda part=part: pictures(Source(path, None, *part))).reason is Reason.TRUNCATED


def test_a_part_of_a_member(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(150), options=X264)
    zipped(tmp_path / "b.zip", {"a.mp4": path.read_bytes()}, zipfile.ZIP_DEFLATED)
    source = resolve_media(tmp_path, "b.zip!a.mp4", 3.0, 5.0)
    assert pictures(source) == pictures(Source(path, None, 3.0, 5.0))
    assert len(pictures(source)) == 50


def test_the_whole_clip_of_a_part(tmp_path: Path) -> None:
    """The crop of a part is the crop of a video that holds nothing else."""
    path = write_mouth(tmp_path / "a.mkv", 60)
    cache = ClipCache(tmp_path / "cache")
    whole = cache.crop(path, MediaKind.MOUTH, PARAMS)
    part = cache.crop(Source(path, None, 0.8, 1.6), MediaKind.MOUTH, PARAMS)
    assert part.figures.num_frames == 20
    whole_THW, part_THW = cache.read_clip(whole.keys.clip), cache.read_clip(part.keys.clip)
    assert whole_THW is not None
    assert np.array_equal(whole_THW[20:40], part_THW)


def test_zip_members_holds_no_folders(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"x/": b"", "x/y.mp4": b"1"})
    assert list(zip_members(tmp_path / "a.zip")) == ["x/y.mp4"]


def test_faces_in_zips(tmp_path: Path) -> None:
    payload = write_face(tmp_path / "a.mp4", 12).read_bytes()
    zipped(tmp_path / "b.zip", {"a_FACE.mp4": payload})
    outcome = ClipCache(tmp_path / "cache").crop(
        resolve_media(tmp_path, "b.zip!a_FACE.mp4"), MediaKind.FACE, PARAMS
    )
    assert outcome.rejection is None
    assert outcome.figures.num_faces == 1


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name",
    [
        "face_noface.mov",
        "h265_video.mp4",
        "av1_video.mkv",
        "test_non_zero_start.mp4",
        "carphone_pristine.mp4",
    ],
)
def test_parts_of_other_peoples_videos(realdata: Path, name: str) -> None:
    """Variable rates, other encoders' key frames, a first timestamp that is not zero."""
    path = realdata / "hard" / name
    whole = pictures(path)
    seconds = whole[-1][1]
    for start, end in ((0.0, 0.4), (0.35, 0.7), (0.62, None)):
        start_s, end_s = start * seconds, None if end is None else end * seconds
        part = pictures(Source(path, None, start_s, end_s))
        expected = cut(whole, start_s, end_s or 1e9)
        assert [p[2] for p in part] == [p[2] for p in expected]
        assert np.allclose([p[1] for p in part], [p[1] for p in expected], atol=1e-5)


def test_a_broken_zip_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.zip").write_bytes(b"garbage" * 99)
    read = []
    directory = zips._directory
    monkeypatch.setattr(zips, "_directory", lambda path: read.append(path) or directory(path))
    told = {rejection(lambda: find_member(tmp_path / "b.zip", "a.mp4")).detail for _ in range(5)}
    assert len(read) == len(told) == 1
    zipped(tmp_path / "b.zip", {"a.mp4": b"whole again"})
    assert find_member(tmp_path / "b.zip", "a.mp4").size == 11


def test_a_disk_that_reads_again_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "b.zip", {"a.mp4": b"x"})

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(zips, "_Capped", fails)
        assert rejection(lambda: find_member(path, "a.mp4")).reason is Reason.UNREADABLE
    assert find_member(path, "a.mp4").size == 1


def test_a_huge_directory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"{i:04}.mp4": b"" for i in range(1_000)}
    zipped(tmp_path / "b.zip", members)
    monkeypatch.setattr(zips, "MAX_DIRECTORY_BYTES", 40_000)
    assert "directory" in rejection(lambda: zip_members(tmp_path / "b.zip")).detail
    monkeypatch.setattr(zips, "MAX_DIRECTORY_BYTES", 80_000)
    os.utime(tmp_path / "b.zip", (1, 1))
    assert len(zip_members(tmp_path / "b.zip")) == 1_000


@pytest.mark.parametrize("limit", [1, 2, 7, 64, 100])
def test_output_that_waits_behind_the_last_block_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Blocks so small that the packed bytes end just as the output is full."""
    payloads = {f"{size}.mp4": bytes(size) for size in (0, 1, 22, 64, 258, 379, 386, 820, 834, 5_000)}
    zipped(tmp_path / "b.zip", payloads, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zips, "HASH_BLOCK_BYTES", limit)
    for name, payload in payloads.items():
        assert member_sha256(find_member(tmp_path / "b.zip", name)) == hashlib.sha256(payload).hexdigest()
