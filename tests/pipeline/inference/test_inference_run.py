"""From videos to files: which file is written where, which messages, and videos with burnt-in captions."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from model.text import Tokenizer
from model.vocabulary import Vocabulary
from pipeline.inference import burn_in, inference_run
from pipeline.inference.inference_run import Outputs, run_inference
from pipeline.params import Params, load_params
from shards.errors import ConfigError, MachineError
from tests.support.odd_videos import with_sound
from tests.support.readers import CountingReader
from tests.support.videos import face_pictures, placed, write_face, write_mirrored, write_mouth, write_video

ROOT = Path(__file__).parents[3]
TEXT = "lay blue at f two now"


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setattr(inference_run, "open_reader", lambda *_: CountingReader(texts=[TEXT] * 9))
    monkeypatch.setattr(inference_run, "native_stderr_to", lambda _: None)
    return load_params(ROOT / "params.yaml")


def run(params: Params, outputs: Outputs, *videos: Path) -> list[tuple[int, int]]:
    progress: list[tuple[int, int]] = []
    found = {video: Path(video.name) for video in videos}
    run_inference(found, [Path("model.pt")], params, outputs, None, lambda *now: progress.append(now))
    return progress


def test_one_bad_video_does_not_stop_the_others(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    good, later, bad = (
        write_mouth(tmp_path / "a.mp4", 12),
        write_mouth(tmp_path / "c.mp4", 12),
        tmp_path / "b.mp4",
    )
    bad.write_bytes(b"no video")
    out = tmp_path / "out"
    assert run(params, Outputs("srt", out, False), good, bad, later) == [(1, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in out.iterdir()) == ["a.srt", "c.srt"]
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"{bad}: unreadable: ")
    assert printed.err.splitlines()[-1].startswith("2 of 3 videos read, 1 could not be read")
    run(params, Outputs("json", out, False), bad)
    assert json.loads((out / "b.json").read_text("utf-8"))["reason"].startswith("unreadable")


def test_text_on_stdout_names_the_videos_if_there_are_several(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write_mouth(tmp_path / "a.mp4", 12), write_mouth(tmp_path / "b.mp4", 12)
    run(params, Outputs("text", None, False), one)
    assert capsys.readouterr().out == f"{TEXT}\n"
    run(params, Outputs("text", None, False), one, two)
    printed = capsys.readouterr()
    assert printed.out == f"{one}: {TEXT}\n{two}: {TEXT}\n" and printed.err == "2 of 2 videos read\n"
    with pytest.raises(ConfigError, match="--out"):
        run(params, Outputs("vtt", None, False), one, two)


@pytest.mark.parametrize(
    ("codec", "suffix", "rate"),
    [
        ("aac", ".mp4", 16_000),
        ("pcm_s16le", ".mkv", 16_000),
        # AAC supports neither rate
        ("pcm_s16le", ".mkv", 5_512),
        ("pcm_s16le", ".mkv", 192_000),
    ],
)
def test_captions_and_box_are_burnt_in_and_sound_is_kept(
    tmp_path: Path, params: Params, codec: str, suffix: str, rate: int
) -> None:
    silent = write_face(tmp_path / "silent.mp4", 30, speaking=True)
    video = with_sound(silent, tmp_path / f"a{suffix}", codec, 1.2, rate)
    run(params, Outputs("text", tmp_path / "out", True), video)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.captioned.mp4", "a.txt"]
    with av.open(str(tmp_path / "out" / "a.captioned.mp4")) as made:
        assert [stream.codec_context.name for stream in made.streams] == ["h264", "aac"]
        pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in made.decode(video=0)]
        made.seek(0)
        sound = np.concatenate([frame.to_ndarray().mean(axis=0) for frame in made.decode(audio=0)])
        made_rate = made.streams.audio[0].rate
    with av.open(str(silent)) as source:
        before = [frame.to_ndarray(format="rgb24").astype(int) for frame in source.decode(video=0)]
    assert len(pictures) == len(before) == 30
    # the loudest frequency, by numpy
    spectrum = np.abs(np.fft.rfft(sound))
    assert np.fft.rfftfreq(len(sound), 1 / made_rate)[spectrum.argmax()] == pytest.approx(440, abs=5)
    assert len(sound) / made_rate == pytest.approx(1.2, abs=0.15)
    changed_HW = np.abs(pictures[15] - before[15]).max(axis=2) > 60
    rows, columns = np.nonzero(changed_HW)
    # the face is in the middle above, the caption near the lower edge
    is_caption = rows > 288 * 0.85
    assert is_caption.sum() > 300 and (~is_caption).sum() > 100
    red, green, blue = np.median(pictures[15][rows[~is_caption], columns[~is_caption]], axis=0)
    # 4:2:0 halves the resolution of colour, which weakens a thin line
    assert green > max(red, blue) + 40
    assert columns[is_caption].mean() == pytest.approx(256, abs=15)


def test_a_captioned_video_keeps_size_and_orientation(tmp_path: Path, params: Params) -> None:
    """Those of the plain video, with the box around the same mouth."""
    shown = list(face_pictures([placed()] * 30, speaking=True))
    videos = [write_video(tmp_path / "plain.mp4", shown), write_mirrored(tmp_path / "mirrored.mp4", shown)]
    run(params, Outputs("text", tmp_path / "out", True), *videos)
    captioned = []
    for name in ("plain", "mirrored"):
        with av.open(str(tmp_path / "out" / f"{name}.captioned.mp4")) as made:
            stream = made.streams.video[0]
            assert (stream.width, stream.height) == (512, 288)
            assert stream.sample_aspect_ratio in (None, 1)
            frame = list(made.decode(stream))[15]
            assert frame.rotation == 0
            captioned.append(frame.to_ndarray(format="bgr24").astype(int))
    assert np.abs(captioned[0] - captioned[1]).mean() < 3
    assert np.abs(captioned[0] - captioned[1][:, ::-1]).mean() > 20


def test_damaged_sound_is_left_out_and_reported(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = with_sound(
        write_face(tmp_path / "silent.mp4", 30, speaking=True), tmp_path / "whole.mkv", "flac", 1.2
    )
    with av.open(str(whole)) as source:
        third = [bytes(packet) for packet in source.demux(audio=0)][2]
    damaged = tmp_path / "a.mkv"
    assert whole.read_bytes().count(third) == 1
    damaged.write_bytes(whole.read_bytes().replace(third, b"\xff" * len(third)))
    run(params, Outputs("text", tmp_path / "out", True), damaged)
    assert "a.mkv: captioned, but 1 damaged audio packets" in capsys.readouterr().err
    with av.open(str(tmp_path / "out" / "a.captioned.mp4")) as made_video:
        num_samples = sum(frame.samples for frame in made_video.decode(audio=0))
        assert num_samples / made_video.streams.audio[0].rate > 0.9


def test_a_video_that_cannot_be_captioned_keeps_its_text_and_stops_no_other(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an encoder that fails for the first and second video."""
    videos = [write_mouth(tmp_path / name, 12) for name in ("a.mp4", "b.mp4", "c.mp4")]
    picture_stream, failures = burn_in._picture_stream, [av.error.InvalidDataError(1, "bad")] * 2

    def fails_twice(*given: Any) -> Any:
        if failures:
            raise failures.pop()
        return picture_stream(*given)

    monkeypatch.setattr(burn_in, "_picture_stream", fails_twice)
    with pytest.raises(MachineError, match="2 of 3 videos"):
        run(params, Outputs("text", tmp_path / "out", True), *videos)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["a.txt", "b.txt", "c.captioned.mp4", "c.txt"]
    messages = capsys.readouterr().err
    assert f"{videos[0]}: not captioned: " in messages and f"{videos[1]}: not captioned: " in messages


def test_a_missing_font_is_reported_before_anything_is_read(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The font must have the model's whole vocabulary; every system has one for the text of this video."""
    reader = CountingReader(texts=[TEXT] * 9, vocabulary=Vocabulary(Tokenizer(tuple("abc\U0010fffd"))))
    monkeypatch.setattr(inference_run, "open_reader", lambda *_: reader)
    video = write_mouth(tmp_path / "a.mp4", 12)
    with pytest.raises(
        MachineError, match=r"all 4 characters .* lacks 1 of them \(\U0010fffd\); install .*fonts-noto-cjk"
    ):
        run(params, Outputs("text", tmp_path / "out", True), video)
    assert reader.clips == [] and not (tmp_path / "out").exists()
    # captions in files need no font
    run(params, Outputs("srt", tmp_path / "out", False), video)
    assert (tmp_path / "out" / "a.srt").exists()


def test_a_truncated_video_is_captioned_up_to_its_end(tmp_path: Path, params: Params) -> None:
    faces = face_pictures([placed()] * 100, speaking=True)
    whole = write_video(tmp_path / "whole.mkv", faces, options={"g": "10", "crf": "12"})
    torn = tmp_path / "torn.mkv"
    torn.write_bytes(whole.read_bytes()[: int(0.7 * whole.stat().st_size)])
    inference = params.inference.model_copy(update={"longest_s": 2.0, "overlap_s": 0.2})
    run(params.model_copy(update={"inference": inference}), Outputs("text", tmp_path / "out", True), torn)
    with av.open(str(tmp_path / "out" / "torn.captioned.mp4")) as made:
        assert 50 < sum(1 for _ in made.decode(video=0)) < 100


def test_a_transcript_next_to_its_video_is_not_overwritten(tmp_path: Path, params: Params) -> None:
    video = write_mouth(tmp_path / "a.mp4", 12)
    truth = tmp_path / "a.srt"
    truth.write_text("what is said")
    elsewhere = tmp_path / "elsewhere" / "a.mp4"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(video.read_bytes())
    for source in (video, elsewhere):
        with pytest.raises(ConfigError, match="transcript"):
            run(params, Outputs("srt", tmp_path, False), source)
    assert truth.read_text() == "what is said"
    run(params, Outputs("vtt", tmp_path, False), video)
    # captions in a folder without videos come from this command and may be overwritten
    for _ in range(2):
        run(params, Outputs("srt", tmp_path / "out", False), video)
    burnt = tmp_path / "a.captioned.mp4"
    burnt.write_bytes(video.read_bytes())
    with pytest.raises(ConfigError, match="one of the videos"):
        run(params, Outputs("json", tmp_path, True), video, burnt)


def test_a_second_video_of_the_same_name_is_reported(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_mouth(tmp_path / "a.mp4", 12)
    two = tmp_path / "two" / "a.mp4"
    two.parent.mkdir()
    two.write_bytes(one.read_bytes())
    run(params, Outputs("text", tmp_path / "out", False), one, two)
    renamed, summary = capsys.readouterr().err.splitlines()
    assert renamed.startswith(f"{two}: another video has the same name") and renamed.endswith(" a-2.txt")
    assert summary == "2 of 2 videos read"


@pytest.mark.parametrize("kind", ["text", "srt", "vtt"])
@pytest.mark.parametrize("to_folder", [True, False])
def test_the_cer_is_printed_once_for_every_output(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str], kind: str, to_folder: bool
) -> None:
    video = write_mouth(tmp_path / "a.mp4", 12)
    outputs = Outputs(kind, tmp_path / "out" if to_folder else None, False)  # type: ignore[arg-type]
    run_inference({video: Path("a.mp4")}, [Path("m.pt")], params, outputs, TEXT, lambda *_: None)
    printed = capsys.readouterr()
    line = "CER 0.0000 (accuracy 100.00%)\n"
    assert (printed.out if kind == "text" and not to_folder else printed.err).endswith(line)
    assert (printed.out + printed.err).count("CER") == 1
