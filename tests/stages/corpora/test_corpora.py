"""Corpus readers: the layouts as published, and what must stop them, with file and line."""

import csv
import logging
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.errors import ClipRejected, CorpusError
from stages.corpora import Transcript, read_corpus, split_rank
from stages.corpora.transcript import leaves_root, relative_media
from stages.settings import CorpusParams
from stages.videos import zip_directory
from stages.videos.media import resolve_media
from tests.support.corpora import HEADER, ID, chinese_lips, row

OLDER = "file_id, category, wav_path, ppt_path, face_path, text"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def only(corpus: CorpusParams) -> Transcript:
    (transcript,) = read_corpus(corpus)
    return transcript


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_raw_layout_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    folder = "val/012_25_F_KJ"
    touch(tmp_path / folder / "FACE" / f"{ID}_FACE.mp4")
    touch(tmp_path / folder / "PPT" / f"{ID}.mp4")  # the slides, not the face
    transcript = only(chinese_lips(tmp_path, valid=row(), encoding=encoding))
    assert transcript == Transcript(
        clip_id=ID,
        split="valid",
        speaker="012",
        gender="F",
        age=25,
        topic="KJ",
        media=f"{folder}/FACE/{ID}_FACE.mp4",
        text="你好,世界。",
        where=f"{tmp_path / 'meta_valid.csv'}:2",
    )


@pytest.mark.parametrize("name", [f"{ID}.mp4", f"{ID}_FACE.mp4"])
def test_processed_layout_is_found_by_id(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "processed_test" / name)
    assert only(chinese_lips(tmp_path, test=row(face="gone/away.mp4"))).media == f"processed_test/{name}"


@pytest.mark.parametrize("face", ["a/b.mp4", "a\\b.mp4", "./a//b.mp4", " a/b.mp4 "])
def test_the_csv_path_comes_first_also_with_backslashes(tmp_path: Path, face: str) -> None:
    touch(tmp_path / "a" / "b.mp4")
    touch(tmp_path / "train" / f"{ID}.mp4")
    assert only(chinese_lips(tmp_path, train=row(face=face))).media == "a/b.mp4"


def test_older_header_reads_the_same_and_allows_other_ids(tmp_path: Path) -> None:
    touch(tmp_path / "train" / f"{ID}.mp4")
    corpus = chinese_lips(tmp_path, train=row() + row("clip-1", "x.mp4"), header=OLDER)
    known, other = read_corpus(corpus)
    assert (known.speaker, known.age, known.topic, known.media) == ("012", 25, "KJ", f"train/{ID}.mp4")
    assert (other.speaker, other.gender, other.age, other.topic) == (None, None, None, "KJ")


@pytest.mark.parametrize("face", ["../out.mp4", "a/../../out.mp4", "/etc/passwd", "C:\\x.mp4", "..\\out.mp4"])
def test_a_path_that_leaves_the_root_is_not_followed_but_the_clip_is_found_by_id(
    tmp_path: Path, face: str
) -> None:
    touch(tmp_path / "out.mp4")
    touch(tmp_path / "corpus" / "train" / f"{ID}.mp4")
    transcript = only(chinese_lips(tmp_path / "corpus", train=row(face=face)))
    assert transcript.media == f"train/{ID}.mp4"


@pytest.mark.parametrize("face", ["../out.mp4", "/etc/passwd", "C:\\x.mp4", "..\\out.mp4"])
def test_a_path_that_leaves_the_root_stays_as_given_where_no_file_is_found(tmp_path: Path, face: str) -> None:
    touch(tmp_path / "out.mp4")
    transcript = only(chinese_lips(tmp_path / "corpus", train=row(face=face)))
    assert transcript.media == face
    assert leaves_root(transcript.media)


def test_a_missing_file_keeps_its_row(tmp_path: Path) -> None:
    corpus = chinese_lips(tmp_path, train=row(face="FACE\\gone.mp4"), test=row("001_30_M_TY_1"))
    assert [t.media for t in read_corpus(corpus)] == ["FACE/gone.mp4", "001_30_M_TY_1.mp4"]


def test_a_path_too_long_for_the_file_system_costs_its_row_alone(tmp_path: Path) -> None:
    assert only(chinese_lips(tmp_path, row(face="x" * 300))).media == "x" * 300
    touch(tmp_path / f"{ID}.mp4")
    assert only(chinese_lips(tmp_path, row(face="x" * 300))).media == f"{ID}.mp4"


def test_of_two_files_the_one_of_the_split_is_taken(tmp_path: Path) -> None:
    touch(tmp_path / "processed_val" / f"{ID}.mp4")
    touch(tmp_path / "backup" / f"{ID}.mp4")
    assert only(chinese_lips(tmp_path, valid=row())).media == f"processed_val/{ID}.mp4"


def test_two_files_of_one_clip_are_both_named(tmp_path: Path) -> None:
    touch(tmp_path / "a" / f"{ID}.mp4")
    touch(tmp_path / "b" / f"{ID}_FACE.mp4")
    with pytest.raises(CorpusError, match=rf"meta_train.csv:2: .*a/{ID}.mp4 and b/{ID}_FACE.mp4"):
        read_corpus(chinese_lips(tmp_path, train=row()))


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


@pytest.mark.parametrize(
    ("split", "archive", "member", "face"),
    [
        ("train", "train.zip", f"train/012_25_F_KJ/FACE/{ID}_FACE.mp4", "gone.mp4"),
        ("train", "train.zip", "012_25_F_KJ/FACE/odd name.mp4", "012_25_F_KJ/FACE/odd name.mp4"),
        ("valid", "val.zip", f"val/012_25_F_KJ/FACE/{ID}_FACE.mp4", ""),
        ("valid", "processed_val.zip", f"processed_val/{ID}.mp4", "gone.mp4"),
        ("test", "processed_test.zip", f"{ID}_FACE.MP4", "/data/else/where.mp4"),
        ("train", "processed_train.zip", f"processed_train/{ID}.mp4", f"..\\{ID}.mp4"),
    ],
)
def test_the_official_zips_are_read_in_place(
    tmp_path: Path, split: str, archive: str, member: str, face: str
) -> None:
    corpus = chinese_lips(tmp_path, **{split: row(face=face)})
    zipped(tmp_path / archive, f"x/PPT/{ID}.mp4", f"x/WAV/{ID}.mp4", f"x/{ID}.srt", member)
    zipped(tmp_path / "backup.zip", f"{ID}.mp4")  # no official name
    assert only(corpus).media == f"{archive}!{member}"


def test_a_folder_wins_over_a_zip(tmp_path: Path) -> None:
    touch(tmp_path / "train" / f"{ID}.mp4")
    touch(tmp_path / "any.mp4")
    zipped(tmp_path / "train.zip", f"train/{ID}.mp4", "a/b.mp4")
    assert only(chinese_lips(tmp_path, train=row(face="a/b.mp4"))).media == f"train/{ID}.mp4"
    assert only(chinese_lips(tmp_path, train=row(face="any.mp4"))).media == "any.mp4"


def test_of_two_zips_the_one_of_the_split_is_taken(tmp_path: Path) -> None:
    for name in ("train.zip", "val.zip"):
        zipped(tmp_path / name, f"{ID}.mp4")
    assert only(chinese_lips(tmp_path, valid=row())).media == f"val.zip!{ID}.mp4"
    zipped(tmp_path / "processed_val.zip", f"{ID}.mp4")
    with pytest.raises(
        CorpusError, match=rf"meta_valid.csv:2: .*val.zip!{ID}.mp4 and processed_val.zip!{ID}"
    ):
        read_corpus(chinese_lips(tmp_path, valid=row()))


def test_a_damaged_zip_is_said_and_its_clips_point_into_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So that crop says of each that the zip is damaged, not that there is no such file."""
    whole = zipped(tmp_path / "processed_train.zip", f"processed_train/{ID}.mp4").read_bytes()
    (tmp_path / "processed_train.zip").write_bytes(whole[:-20])
    with caplog.at_level(logging.WARNING):
        transcript = only(chinese_lips(tmp_path, train=row()))
    assert transcript.media == f"processed_train.zip!{ID}.mp4"
    assert "processed_train.zip is damaged or not a zip" in caplog.text
    with pytest.raises(ClipRejected, match=r"unreadable: processed_train\.zip is damaged or not a zip"):
        resolve_media(tmp_path, transcript.media)


def test_each_zip_is_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"012_25_F_KJ_{i:03d}" for i in range(50)]
    zipped(tmp_path / "train.zip", *(f"{name}.mp4" for name in ids))
    opened = []
    directory = zip_directory._directory
    monkeypatch.setattr(zip_directory, "_directory", lambda path: opened.append(path) or directory(path))
    corpus = chinese_lips(tmp_path, train="".join(row(name) for name in ids))
    assert [t.media for t in read_corpus(corpus)] == [f"train.zip!{name}.mp4" for name in ids]
    assert len(opened) == 1


def test_lines_are_counted_through_line_breaks_in_quotes(tmp_path: Path) -> None:
    rows = row("001_30_M_TY_1", text="一\r\n二") + "\r\n" + row("001_30_M_TY_2")
    lines = [t.where.rpartition(":")[2] for t in read_corpus(chinese_lips(tmp_path, train=rows))]
    assert lines == ["2", "5"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (row() + row("001_30_M_TY_2") + row(), r"meta_train.csv:4: .*012_25_F_KJ_003 .*meta_train.csv:2"),
        (row() + "012_25_F_KJ_004,KJ,w,p,f,你,好\r\n", r"meta_train.csv:3: 7 fields .* header has 6"),
        (row() + "012_25_F_KJ_004,KJ\r\n", r"meta_train.csv:3: 2 fields"),
        (row() + '012_25_F_KJ_004,KJ,w,p,f,"你"好\r\n', r"meta_train.csv:3: .*check the quotes"),
        (row("nonsense"), r"meta_train.csv:2: ID 'nonsense'"),
        (row("012_25_F_KJ_3/../x"), r"meta_train.csv:2: ID"),
        (row("١٢_25_F_KJ_3"), r"meta_train.csv:2: ID"),
        (row("1" * 130 + "_25_F_KJ_3"), r"meta_train.csv:2: clip id"),
        (row() + '012_25_F_KJ_4,KJ,w,p,f,"你\r\n' + row("012_25_F_KJ_5"), r"meta_train.csv:3: "),
    ],
)
def test_untrue_rows_stop_with_file_and_line(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_corpus(chinese_lips(tmp_path, train=rows))


def test_an_id_doubled_across_splits_stops(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"meta_test.csv:2: .* already occurs at .*meta_train.csv:2"):
        read_corpus(chinese_lips(tmp_path, train=row(), test=row()))


@pytest.mark.parametrize("header", ["ID,TOPIC,WAV,PPT,FACE", "id,TOPIC,WAV,PPT,FACE,TEXT", "TEXT,ID", '"'])
def test_a_wrong_header_stops(tmp_path: Path, header: str) -> None:
    with pytest.raises(CorpusError, match=r"meta_train.csv:1: "):
        read_corpus(chinese_lips(tmp_path, train=row(), header=header))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (HEADER.replace(",", ";"), "separated by ';'; it must be commas"),
        (HEADER.lower(), "should be ID,TOPIC"),
    ],
)
def test_a_header_of_another_form_is_refused_with_the_expected_one(
    tmp_path: Path, header: str, expected: str
) -> None:
    with pytest.raises(CorpusError, match=rf"meta_train.csv:1: .*{expected}"):
        read_corpus(chinese_lips(tmp_path, train=row(), header=header))


def test_an_empty_file_stops(tmp_path: Path) -> None:
    corpus = chinese_lips(tmp_path, train=row())
    (tmp_path / "meta_valid.csv").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"meta_valid.csv:1: the file is empty"):
        read_corpus(corpus)


def test_broken_encoding_stops_at_its_line(tmp_path: Path) -> None:
    corpus = chinese_lips(tmp_path, train=row())
    with (tmp_path / "meta_train.csv").open("ab") as file:
        file.write("012_25_F_KJ_004,KJ,w,p,f,café\r\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"meta_train.csv:3: byte 0xe9 is not UTF-8"):
        read_corpus(corpus)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_missing_csv_stops_with_advice(tmp_path: Path, split: str) -> None:
    corpus = chinese_lips(tmp_path, train=row())
    (tmp_path / f"meta_{split}.csv").unlink()
    with pytest.raises(CorpusError, match=rf"meta_{split}.csv is missing; copy .* only the header"):
        read_corpus(corpus)


def test_a_corpus_without_clips_or_root_stops(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="contains no clip"):
        read_corpus(chinese_lips(tmp_path))
    with pytest.raises(CorpusError, match=r"corpus.root .* is not a folder"):
        read_corpus(CorpusParams(root=str(tmp_path / "nowhere")))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=6))
def test_any_text_written_by_csv_is_read_as_it_was(tmp_path: Path, texts: list[str]) -> None:
    corpus = chinese_lips(tmp_path)
    with (tmp_path / "meta_train.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        writer.writerows([f"001_30_M_TY_{i}", "TY", "w", "p", "f.mp4", text] for i, text in enumerate(texts))
    assert [t.text for t in read_corpus(corpus)] == texts


def grid(root: Path, splits: str, aligns: dict[str, str], videos: list[str]) -> CorpusParams:
    root.mkdir(parents=True, exist_ok=True)
    (root / "splits.csv").write_text(f"clip,split\n{splits}")
    for clip, text in aligns.items():
        touch(root / "align" / f"{clip}.align").write_text(text)
    for video in videos:
        touch(root / "video" / video)
    return CorpusParams(kind="grid", root=str(root), speaker_overlap="warn")


def test_grid_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    align = "0 100 sil\n100 200 bin\n200 200 sp\n200 300 blue\n300 400 sil\n\n"
    corpus = grid(
        tmp_path,
        "s1/bbaf2n,train\ns2/x,night\n",
        {"s1/bbaf2n": align},
        ["s1/bbaf2n.MPG", "s1/bbaf2n.txt", "s1/unnamed.mp4"],
    )
    with caplog.at_level(logging.WARNING):
        first, second = read_corpus(corpus)
    assert (first.clip_id, first.split, first.speaker) == ("s1_bbaf2n", "train", "s1")
    assert (first.media, first.text, first.topic) == ("video/s1/bbaf2n.MPG", "bin blue", None)
    assert (second.media, second.text, second.split) == ("video/s2/x.mpg", "", "night")
    assert "no split for 1 videos" in caplog.text


@pytest.mark.parametrize(
    "line", ["100 200", "100 200 bin blue", "a 200 bin", "-1 2 bin", "300 200 bin", "9" * 9_999 + " 1 bin"]
)
def test_a_malformed_alignment_stops_at_its_line(tmp_path: Path, line: str) -> None:
    corpus = grid(tmp_path, "s1/a,train\n", {"s1/a": f"0 100 sil\n{line}\n"}, [])
    with pytest.raises(CorpusError, match=r"a.align:2: "):
        read_corpus(corpus)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("s1,train\n", "splits.csv:2: clip 's1'"),
        ("../etc/x,train\n", "splits.csv:2: clip"),
        ("s1/a,tr/ain\n", "splits.csv:2: split 'tr/ain'"),
        ("s1/a,train\ns1/a,test\n", "splits.csv:3: .*splits.csv:2"),
        ("s1/a\n", "splits.csv:2: 1 fields"),
    ],
)
def test_untrue_grid_splits_stop(tmp_path: Path, splits: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_corpus(grid(tmp_path, splits, {}, []))


def test_two_videos_of_one_grid_clip_stop(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"a.mp4 and video/s1/a.mpg have the same clip name"):
        read_corpus(grid(tmp_path, "s1/a,train\n", {}, ["s1/a.mpg", "s1/a.mp4"]))


@given(st.text(max_size=30))
def test_relative_media_is_settled_after_one_pass(path: str) -> None:
    once = relative_media(path, Path("nowhere"))
    assert relative_media(once, Path("nowhere")) == once
    if not leaves_root(once):
        assert "\\" not in once and ".." not in re.split("/", once)
    else:
        assert once == path and leaves_root(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sub/../a.mp4", "a.mp4"),
        ("sub\\..\\v\\a.mp4", "v/a.mp4"),
        ("./a/b/../../c/./d.mp4", "c/d.mp4"),
        ("a/../a.zip!v/b.mp4", "a/../a.zip!v/b.mp4"),
        ("../a.mp4", "../a.mp4"),
        ("a/../../b.mp4", "a/../../b.mp4"),
        ("a.zip!../b.mp4", "a.zip!../b.mp4"),
        ("a.zip!v/../../b.mp4", "a.zip!v/../../b.mp4"),
        ("{root}/sub/../a.mp4", "a.mp4"),
        ("{root}/../a.mp4", "{root}/../a.mp4"),
    ],
)
def test_a_way_up_that_stays_in_the_root_is_no_way_out(tmp_path: Path, path: str, expected: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert relative_media(path.format(root=root), root) == expected.format(root=root)


def test_splits_come_in_their_usual_order() -> None:
    assert sorted(["unseen", "test", "a", "valid", "train"], key=split_rank) == [
        "train",
        "valid",
        "test",
        "a",
        "unseen",
    ]
