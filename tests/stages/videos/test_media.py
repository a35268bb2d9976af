"""Paths of a corpus: links, spellings of the root, Unicode forms, and names in zips of other systems."""

import os
import re
import unicodedata
import zipfile
from pathlib import Path

import pytest

from model.settings import TextParams
from shards.errors import ClipRejected
from shards.files import read_table
from shards.schema import CLIPS, Reason
from stages.corpora import read_corpus
from stages.ingest import ingest
from stages.settings import CorpusParams, CropParams
from stages.videos.media import resolve_media
from stages.videos.zip_directory import find_member, zip_members
from tests.support.corpora import ID, chinese_lips, row
from tests.support.sources import pictures, rejection
from tests.support.videos import write_mouth


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mouth(tmp_path_factory.mktemp("video") / "mouth.mp4", 12)


def linked(link: Path, target: Path | str) -> Path:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    return link


def table_of(root: Path, *media: str, **params: object) -> CorpusParams:
    root.mkdir(parents=True, exist_ok=True)
    lines = [f"c{number},{name},train,text\n" for number, name in enumerate(media)]
    (root / "clips.csv").write_text("clip_id,media,split,text\n" + "".join(lines), "utf-8")
    return CorpusParams(kind="table", root=str(root), **params)  # type: ignore[arg-type]


def kinds_of(corpus: CorpusParams, folder: Path) -> list[str | None]:
    """Returns the kind of each video after ingest; None if the video must not or cannot be read."""
    ingest(corpus, TextParams(), CropParams(), folder / "clips.parquet")
    return read_table(folder / "clips.parquet", CLIPS, "")["media_kind"].to_pylist()


# -- links -----------------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(tmp_path: Path, video: Path) -> Path:
    """A snapshot in the layout of huggingface_hub: every file is a link into blobs, named by its hash."""
    repository = tmp_path / "hub" / "datasets--BAAI--Chinese-LiPS"
    root = repository / "snapshots" / ("0123456789" * 4)
    face = f"train/FACE/{ID}_FACE.mp4"
    header = "ID,TOPIC,WAV,PPT,FACE,TEXT\n"
    with zipfile.ZipFile(tmp_path / "zipped", "w") as archive:
        archive.write(video, "val/a/001_30_M_TY_1_FACE.mp4")
    contents = {face: video.read_bytes(), "val.zip": (tmp_path / "zipped").read_bytes()}
    for split, rows in (("train", row(face=face)), ("valid", row("001_30_M_TY_1")), ("test", "")):
        contents[f"meta_{split}.csv"] = (header + rows).encode()
    (repository / "blobs").mkdir(parents=True)
    for number, (name, content) in enumerate(contents.items()):
        blob = repository / "blobs" / f"{number:064x}"
        blob.write_bytes(content)
        linked(root / name, os.path.relpath(blob, (root / name).parent))
    return root


@pytest.mark.parametrize("spelling", ["plain", "linked root", "linked cache"])
def test_a_hugging_face_cache_is_read_without_settings(snapshot: Path, tmp_path: Path, spelling: str) -> None:
    root = snapshot
    if spelling == "linked root":
        root = linked(tmp_path / "corpus", snapshot)
    if spelling == "linked cache":
        root = linked(tmp_path / "home" / "hub", tmp_path / "hub") / snapshot.relative_to(tmp_path / "hub")
    corpus = CorpusParams(kind="chinese_lips", root=str(root))
    assert kinds_of(corpus, tmp_path) == ["mouth", "mouth"], "a video, and one in a zip"


def test_links_of_a_snapshot_may_lead_only_to_its_own_blobs(snapshot: Path, video: Path) -> None:
    other = snapshot.parents[2] / "models--x--y" / "blobs"
    other.mkdir(parents=True)
    (other / "a").write_bytes(video.read_bytes())
    linked(snapshot / "a.mp4", other / "a")
    (snapshot.parents[1] / "refs").write_bytes(video.read_bytes())
    linked(snapshot / "b.mp4", snapshot.parents[1] / "refs")
    for name in ("a.mp4", "b.mp4"):
        assert rejection(lambda name=name: resolve_media(snapshot, name)).reason is Reason.UNSAFE_PATH  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["file", "folder", "zip", "link to a link"])
def test_a_link_out_of_the_corpus_needs_follow_links(
    tmp_path: Path, video: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    root, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "3f2a").write_bytes(video.read_bytes())
    (elsewhere / "a.mp4").write_bytes(video.read_bytes())
    with zipfile.ZipFile(elsewhere / "blob", "w") as archive:
        archive.write(video, "a.mp4")
    media = {"file": "a.mp4", "folder": "videos/a.mp4", "zip": "a.zip!a.mp4", "link to a link": "a.mp4"}[kind]
    if kind == "folder":
        linked(root / "videos", elsewhere)
    elif kind == "zip":
        linked(root / "a.zip", elsewhere / "blob")
    else:
        target = elsewhere / "3f2a"
        linked(root / "a.mp4", target if kind == "file" else linked(tmp_path / "other.mp4", target))
    assert kinds_of(table_of(root, media), tmp_path) == [None]
    assert "1 of 1 clips have a path or link that leads out" in caplog.text
    assert "corpus.follow_links" in caplog.text
    error = rejection(lambda: resolve_media(root, media))
    assert error.reason is Reason.UNSAFE_PATH
    assert str(elsewhere) in error.detail and "set corpus.follow_links to true" in error.detail
    # the fix in the message works
    assert kinds_of(table_of(root, media, follow_links=True), tmp_path) == ["mouth"]
    source = resolve_media(root, media, follow_links=True)
    assert pictures(source) == pictures(video), "read by the link's name: blobs have no extension"


@pytest.mark.parametrize("follow_links", [False, True])
def test_the_fix_for_a_path_out_of_the_corpus_works(
    tmp_path: Path, video: Path, follow_links: bool, caplog: pytest.LogCaptureFixture
) -> None:
    root, outside = tmp_path / "corpus", tmp_path / "x.mp4"
    outside.write_bytes(video.read_bytes())
    for media in ("../x.mp4", str(outside)):
        caplog.clear()
        assert kinds_of(table_of(root, media, follow_links=follow_links), tmp_path) == [None]
        assert "clips.csv:2: " in caplog.text and "or put a link to it below the root" in caplog.text
        assert ("set corpus.follow_links to true" in caplog.text) is not follow_links
    linked(root / "x.mp4", outside)
    assert kinds_of(table_of(root, "x.mp4", follow_links=True), tmp_path) == ["mouth"]


@pytest.mark.parametrize("media", ["a.mp4", "folder/a.mp4", "a.zip!v/a.mp4", "round.mp4"])
def test_a_dangling_link_is_reported(tmp_path: Path, media: str, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "corpus"
    name = media.partition("/")[0].partition("!")[0]
    linked(root / name, name if name == "round.mp4" else "../blobs/0123")
    assert kinds_of(table_of(root, media), tmp_path) == [None]
    target = (root / name).readlink()
    assert f"{root / name} is a link whose target {target} is missing; fetch the target" in caplog.text


def test_an_official_zip_that_is_a_dangling_link_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = chinese_lips(tmp_path / "corpus", train=row(face=""))
    linked(tmp_path / "corpus" / "train.zip", "../blobs/0123")
    assert kinds_of(corpus, tmp_path) == [None]
    assert caplog.text.count("train.zip is a link whose target ../blobs/0123 is missing") == 2


@pytest.mark.parametrize("media", ["../elsewhere.mp4", "/etc/hostname", "a.zip!../b.mp4", "C:\\x.mp4"])
def test_follow_links_does_not_allow_paths_out_of_the_root(tmp_path: Path, media: str) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "elsewhere.mp4").touch()
    assert rejection(lambda: resolve_media(tmp_path / "corpus", media, follow_links=True)).reason is (
        Reason.UNSAFE_PATH
    )


def test_linked_folders_are_searched_with_follow_links(
    tmp_path: Path, video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the clip's ID, also if links form a circle."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / f"{ID}.mp4").write_bytes(video.read_bytes())
    corpus = chinese_lips(tmp_path / "corpus", train=row(face="gone.mp4"))
    linked(tmp_path / "corpus" / "train", disk)
    linked(disk / "round", tmp_path / "corpus")
    assert [one.media for one in read_corpus(corpus)] == ["gone.mp4"]
    assert re.search("videos in train are not searched.* set corpus.follow_links", caplog.text)
    follow = corpus.model_copy(update={"follow_links": True})
    assert [one.media for one in read_corpus(follow)] == [f"train/{ID}.mp4"]
    assert kinds_of(follow, tmp_path) == ["mouth"]


# -- the root --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["table", "chinese_lips"])
@pytest.mark.parametrize("root", ["relative", "linked", "of the link", "with ..", "under a linked folder"])
def test_absolute_paths_below_the_root_are_found_for_any_spelling_of_the_root(
    root: str, layout: str, tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real" / "corpus"
    (real / "v").mkdir(parents=True)
    (real / "v" / "any name.mp4").write_bytes(video.read_bytes())
    link = linked(tmp_path / "link", real)
    linked_folder = linked(tmp_path / "linked_folder", tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    given, named = {
        "relative": (Path("real/corpus"), real),
        "linked": (link, real),
        "of the link": (real, link),
        "with ..": (Path("real/../link/../corpus"), real),
        "under a linked folder": (real, linked_folder / "corpus"),
    }[root]
    media = f"{named}/v/any name.mp4"
    corpus = table_of(given, media) if layout == "table" else chinese_lips(given, train=row(face=media))
    assert [one.media for one in read_corpus(corpus)] == ["v/any name.mp4"]
    assert kinds_of(corpus, tmp_path) == ["mouth"]


@pytest.mark.parametrize("media", ["{}x/a.mp4", "{}/../a.mp4", "{}/v/../../a.mp4", "/nowhere/a.mp4"])
def test_absolute_paths_outside_the_root_are_rejected(tmp_path: Path, media: str) -> None:
    root = tmp_path / "corpus"
    (root / "v").mkdir(parents=True)
    (tmp_path / "a.mp4").touch()
    (transcript,) = read_corpus(table_of(root, media.format(root)))
    assert rejection(lambda: resolve_media(root, transcript.media)).reason is Reason.UNSAFE_PATH


# -- Unicode forms and encodings -------------------------------------------------------------------------

NAMES = ("Übung/Café.mp4", "가나다/라마.mp4", "ガギグ/パピプ.mp4", "Tiếng Việt/phở.mp4")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD"), ("mixed", "NFC"), ("mixed", "NFD")]
)
@pytest.mark.parametrize("zipped", [False, True])
def test_names_are_found_in_any_unicode_form(
    name: str, on_disk: str, in_table: str, zipped: bool, tmp_path: Path, video: Path
) -> None:
    root = tmp_path / "corpus"
    folder, _, file = name.partition("/")
    if on_disk == "mixed":
        there = unicodedata.normalize("NFC", folder) + "/" + unicodedata.normalize("NFD", file)
    else:
        there = unicodedata.normalize(on_disk, name)  # type: ignore[arg-type]
    wanted = unicodedata.normalize(in_table, name)  # type: ignore[arg-type]
    assert there != wanted
    if zipped:
        root.mkdir()
        with zipfile.ZipFile(root / "a.zip", "w") as archive:
            archive.write(video, there)
        there, wanted = f"a.zip!{there}", f"a.zip!{wanted}"
    else:
        (root / there).parent.mkdir(parents=True)
        (root / there).write_bytes(video.read_bytes())
    assert kinds_of(table_of(root, wanted), tmp_path) == ["mouth"]
    assert pictures(resolve_media(root, wanted)) == pictures(video)


def test_the_exact_form_wins_if_the_disk_has_both(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "é.mp4") for form in ("NFC", "NFD")]
    for name in names:
        (tmp_path / name).touch()
    assert [resolve_media(tmp_path, name).path.name for name in names] == names


def test_a_missing_name_in_any_script_is_missing(tmp_path: Path) -> None:
    (tmp_path / "有").mkdir()
    (tmp_path / "有" / "é.mp4").touch()
    for media in ("无.mp4", "有/无.mp4", "无/é.mp4", "有/é.mp4/b.mp4", "é" * 300):
        assert rejection(lambda media=media: resolve_media(tmp_path, media)).reason is Reason.MISSING_FILE  # type: ignore[misc]


def foreign_zip(path: Path, members: dict[bytes, bytes]) -> Path:
    """Writes a zip with these bytes as names, without the UTF-8 flag, as systems of other locales do."""
    names = {b"\x01%03d" % number + b"x" * (len(name) - 4): name for number, name in enumerate(members)}
    with zipfile.ZipFile(path, "w") as archive:
        for stand_in, name in names.items():
            archive.writestr(stand_in.decode("ascii"), members[name])
    content = path.read_bytes()
    for stand_in, name in names.items():
        assert content.count(stand_in) == 2
        content = content.replace(stand_in, name)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("视频/第一段.mp4", "gbk"),
        # the second byte of 誠 and 程 is a backslash or bar, and the bytes of 联通 are valid UTF-8
        ("誠程/聞.mp4", "gbk"),
        ("联通联通.mp4", "gbk"),
        ("㐀㐁/𠀀.mp4", "gb18030"),
        ("影片/許功蓋.mp4", "big5"),
        ("動画/表示ソ.mp4", "cp932"),
        ("영상/하나.mp4", "cp949"),
        ("视频/é.mp4", "utf-8"),
        ("Übung/é.mp4", "cp437"),
    ],
)
def test_members_are_found_by_name_in_zips_of_any_system(
    name: str, encoding: str, tmp_path: Path, video: Path
) -> None:
    path = foreign_zip(
        tmp_path / "a.zip",
        {name.encode(encoding): video.read_bytes(), "其他/别的.mp4".encode("gbk"): b"other"},
    )
    source = resolve_media(tmp_path, f"a.zip!{name}")
    assert pictures(source) == pictures(video)
    # tables made by Python's zipfile have this name
    with zipfile.ZipFile(path) as archive:
        by_python = archive.namelist()[0]
    assert find_member(path, by_python) == find_member(path, name)
    assert kinds_of(table_of(tmp_path, f"a.zip!{name}"), tmp_path) == ["mouth"]


def test_the_names_of_a_chinese_zip_are_decoded(tmp_path: Path) -> None:
    path = foreign_zip(tmp_path / "a.zip", {"视频/第一段.mp4".encode("gbk"): b"1", b"abcd.mp4": b"2"})
    assert list(zip_members(path)) == ["视频/第一段.mp4", "abcd.mp4"]
    with pytest.raises(ClipRejected, match=r"a\.zip holds no file 视频/第二段\.mp4"):
        find_member(path, "视频/第二段.mp4")


@pytest.mark.parametrize("name", ["../视频.mp4", "/视频.mp4", "视频\\..\\..\\a.mp4"])
def test_a_foreign_name_that_leads_out_of_the_zip_is_not_read(tmp_path: Path, name: str) -> None:
    path = foreign_zip(tmp_path / "a.zip", {name.encode("gbk"): b"1"})
    assert rejection(lambda: find_member(path, name)).reason is Reason.UNSAFE_PATH
    with zipfile.ZipFile(path) as archive:
        (by_python,) = archive.namelist()
    assert rejection(lambda: find_member(path, by_python)).reason is Reason.UNSAFE_PATH
