"""An odd file name or a full disk costs only that file, never the other videos."""

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from model.decoding.result import Reading
from model.settings import DecodeParams
from pipeline.cli import main
from pipeline.inference import inference_run
from pipeline.inference.found_videos import find_videos
from pipeline.inference.inference_run import Outputs, print_readings, run_inference
from pipeline.params import Params, load_params
from shards.errors import ConfigError, Interrupted, MachineError
from tests.support.in_process import pipeline
from tests.support.odd_videos import with_early_sound, with_gaps
from tests.support.readers import CountingReader
from tests.support.videos import face_pictures, placed, write_face, write_mouth

ROOT = Path(__file__).parents[3]
TEXT = "lay blue at f two now"
NO_UTF8 = os.fsdecode(b"bad\xff.mp4")


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setattr(inference_run, "open_reader", lambda *_: CountingReader(texts=[TEXT] * 9))
    monkeypatch.setattr(inference_run, "native_stderr_to", lambda _: None)
    return load_params(ROOT / "params.yaml")


def run(params: Params, outputs: Outputs, *videos: Path) -> None:
    found = {video: Path(video.name) for video in videos}
    run_inference(found, [Path("model.pt")], params, outputs, None, lambda *_: None)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Limits the size of files, like a full disk; the interpreter ignores SIGXFSZ."""
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, previous[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)


# -- names ---------------------------------------------------------------------------------------------------


def test_a_name_of_250_bytes_is_written_and_a_longer_one_loses_only_its_file(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_mouth(tmp_path / "a.mp4", 12)
    videos = [tmp_path / f"{'长' * 82}.mp4", tmp_path / f"{'x' * 251}.mp4", tmp_path / "c.mp4"]
    for video in videos:
        video.write_bytes(first.read_bytes())
    run(params, Outputs("srt", tmp_path / "srt", False), *videos)
    assert sorted(path.name for path in (tmp_path / "srt").iterdir()) == sorted(
        f"{video.stem}.srt" for video in videos
    )
    with pytest.raises(MachineError, match="1 of 3 videos could not be written"):
        run(params, Outputs("json", tmp_path / "json", False), *videos)
    assert sorted(path.name for path in (tmp_path / "json").iterdir()) == ["c.json", f"{'长' * 82}.json"]
    message = capsys.readouterr().err
    assert f"{videos[1]}: " in message and "too long; rename the video" in message


def test_a_name_that_is_not_utf8_survives_json(
    tmp_path: Path, params: Params, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    video = tmp_path / NO_UTF8
    video.write_bytes(write_mouth(tmp_path / "a.mp4", 12).read_bytes())
    missing = tmp_path / os.fsdecode(b"none\xfe.mp4")
    run(params, Outputs("json", tmp_path / "out", False), video, missing)
    written = sorted(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert [json.loads(each.decode("utf-8"))["path"] for each in written] == [str(video), str(missing)]
    found = {video: Path(video.name)}
    readings = run_inference(
        found, [Path("m.pt")], params, Outputs("json", None, False), None, lambda *_: None
    )
    print_readings(readings)
    (printed,) = json.loads(capfdbinary.readouterr().out.decode("utf-8"))
    assert os.fsencode(printed["path"]) == os.fsencode(video)


def test_a_name_takes_one_line(tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_mouth(tmp_path / "a.mp4", 12), tmp_path / "two\nlines.mp4"
    two.write_bytes(one.read_bytes())
    run(params, Outputs("text", None, False), one, two)
    assert capsys.readouterr().out == f"{one}: {TEXT}\n{tmp_path}/two\\nlines.mp4: {TEXT}\n"


def test_a_path_without_access_is_reported_and_the_rest_is_read(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    video, endless = write_mouth(tmp_path / "a.mp4", 12), Path("x" * 300 + ".mp4")
    found, _ = find_videos([str(endless), str(video)])
    run_inference(found, [Path("m.pt")], params, Outputs("text", None, False), None, lambda *_: None)
    printed = capsys.readouterr()
    assert printed.out == f"{video}: {TEXT}\n"
    assert "unreadable: " in printed.err and "File name too long" in printed.err


def test_a_link_into_a_closed_folder_does_not_stop_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may enter any folder, so the test fakes the system's answer."""
    video, link = write_mouth(tmp_path / "a.mp4", 12), tmp_path / "link.mp4"
    link.symlink_to(tmp_path / "a.mp4")
    closed, stat = tmp_path / "closed", Path.stat

    def refused(self: Path, **options: bool) -> os.stat_result:
        if self in (link, closed):
            raise PermissionError(13, "Permission denied")
        return stat(self, **options)

    closed.write_text("not a video")
    monkeypatch.setattr(Path, "stat", refused)
    found, skipped = find_videos([str(tmp_path)])
    assert (list(found), skipped) == ([video, link], [closed])


def test_broken_links_and_pipes_in_a_folder_are_skipped(tmp_path: Path) -> None:
    video = write_mouth(tmp_path / "a.mp4", 12)
    (tmp_path / "0.txt").write_text("no video")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "none.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe")
    found, skipped = find_videos([str(tmp_path)])
    assert list(found) == [video]
    assert [path.name for path in skipped] == ["dangling.mp4", "loop.mp4", "pipe.mp4", "0.txt", "pipe"]
    found, _ = find_videos([str(tmp_path / "*.mp4")])
    assert list(found) == [video]


def test_an_empty_name_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"name of a video is empty; check .*shell variable"):
        find_videos([""])


def test_an_argument_after_two_dashes_is_a_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr("pipeline.cli.app", lambda arguments, **_: given.append(arguments))
    monkeypatch.setattr("pipeline.cli.atexit.register", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["pipeline", "inference", "--video_path=a_b", "--", "--my_vid.mp4"])
    with pytest.raises(SystemExit):
        main()
    assert given == [["inference", "--video-path=a_b", "--", "--my_vid.mp4"]]


# -- folders and disks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["notes.txt", "notes.txt/below", "/proc/none"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    reader = CountingReader()
    monkeypatch.setattr(inference_run, "open_reader", lambda *_: reader)
    (tmp_path / "notes.txt").write_text("a file")
    video = write_mouth(tmp_path / "a.mp4", 12)
    with pytest.raises(ConfigError, match=r"--out .*cannot write to this folder"):
        run(params, Outputs("text", tmp_path / out, False), video)
    assert reader.clips == []
    exported = pipeline(ROOT, ["export", "--out", str(tmp_path / out)])
    assert exported.returncode == 2 and "cannot write to this folder" in exported.stderr
    assert "Traceback" not in exported.stderr


def test_a_full_disk_costs_the_captioned_video_but_not_the_text(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    large = write_face(tmp_path / "a.mp4", 25, speaking=True)
    small = write_mouth(tmp_path / "b.mp4", 12)
    with largest_file(2_000), pytest.raises(MachineError, match="2 of 2 videos could not be"):
        run(params, Outputs("srt", tmp_path / "out", True), large, small)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.srt", "b.srt"]
    messages = capsys.readouterr().err
    for video in (large, small):
        captioned = tmp_path / "out" / f"{video.stem}.captioned.mp4"
        assert re.search(
            rf"{video}: not captioned: {captioned} .*: File too large; free some space.*--out", messages
        )


def test_a_text_that_cannot_be_written_does_not_stop_the_others(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = [write_mouth(tmp_path / name, 12) for name in ("a.mp4", "b.mp4")]
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    with pytest.raises(MachineError, match="1 of 2 videos"):
        run(params, Outputs("text", tmp_path / "out", False), *videos)
    assert (tmp_path / "out" / "b.txt").read_text("utf-8") == f"{TEXT}\n"
    assert f"{videos[0]}: {tmp_path / 'out' / 'a.txt'} was not written: " in capsys.readouterr().err


# -- Ctrl-C --------------------------------------------------------------------------------------------------


class StopsAtSecond(CountingReader):
    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        if self.clips:
            os.kill(os.getpid(), self.number)
        return super().read_clip(clip_THW, params)

    number = signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["json", "text", "srt"])
def test_texts_read_before_an_interrupt_are_kept(
    tmp_path: Path,
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    kind: str,
) -> None:
    reader = StopsAtSecond(texts=[TEXT] * 3)
    reader.number = number
    monkeypatch.setattr(inference_run, "open_reader", lambda *_: reader)
    videos = [write_mouth(tmp_path / name, 12) for name in ("a.mp4", "b.mp4", "c.mp4")]
    out = tmp_path / "out" if kind == "srt" else None
    place = "in .*out" if out else "printed above"
    with pytest.raises(Interrupted, match=f"stopped after 1 of 3 videos; .* {place}; run it again"):
        run(params, Outputs(kind, out, False), *videos)  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    if kind == "json":
        (one,) = json.loads(printed)
        assert (one["path"], one["text"]) == (str(videos[0]), TEXT)
    elif out is None:
        assert printed == f"{videos[0]}: {TEXT}\n"
    else:
        assert [path.name for path in out.iterdir()] == ["a.srt"]


# -- burnt in ------------------------------------------------------------------------------------------------


def times_and_changes(source: Path, made: Path) -> tuple[list[float], list[bool], float]:
    """Returns the time of each picture, whether it has a caption, and the video's length by its container."""
    with av.open(str(source)) as before, av.open(str(made)) as after:
        stream = after.streams.video[0]
        length_s = float(stream.duration * stream.time_base)
        times_s, are_captioned = [], []
        for one, other in zip(before.decode(video=0), after.decode(video=0), strict=True):
            strip = slice(round(one.height * 0.85), None)
            changed = np.abs(
                one.to_ndarray(format="gray")[strip].astype(int) - other.to_ndarray(format="gray")[strip]
            )
            times_s.append(float(other.pts * other.time_base))
            are_captioned.append(bool((changed > 60).sum() > 300))
    return times_s, are_captioned, length_s


def test_captions_match_their_pictures_after_early_sound_and_gaps(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    late = with_early_sound(tmp_path / "late.mkv", 1.5, num_frames=30)
    broken = with_gaps(
        tmp_path / "broken.mp4", list(face_pictures([placed()] * 50, speaking=True)), (25, 1.0)
    )
    out = tmp_path / "out"
    run(params, Outputs("text", out, True), late, broken)
    times_s, are_captioned, _ = times_and_changes(late, out / "late.captioned.mp4")
    assert times_s[0] == 0 and all(are_captioned)
    assert "late.mkv: captioned, but 1.50 s of sound before the first picture" in capsys.readouterr().err
    times_s, are_captioned, _ = times_and_changes(broken, out / "broken.captioned.mp4")
    assert all(are_captioned) and times_s[25] - times_s[24] == pytest.approx(1.04, abs=0.01)


@pytest.mark.parametrize("rate", [15, 25])
def test_the_last_picture_is_shown_as_long_as_the_others(tmp_path: Path, params: Params, rate: int) -> None:
    video = write_face(tmp_path / "a.mp4", 20, rate, speaking=True)
    run(params, Outputs("text", tmp_path / "out", True), video)
    *_, length_s = times_and_changes(video, tmp_path / "out" / "a.captioned.mp4")
    assert length_s == pytest.approx(20 / rate, abs=1e-3)
