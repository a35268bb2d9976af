"""The sound of a clip: aligned by timestamps, and turned into log-mel vectors."""

import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.signal

from shards.sound import decode_sound, encode_sound
from stages.settings import CropParams
from stages.videos.media import Source
from stages.videos.sound import RATE, NoSound, log_mel, mel_filters, read_sound_file, sound_of_clip
from tests.support.sounds import chirps, write_sound, write_talk

PARAMS = CropParams()


def as_sound(vectors_TKM: np.ndarray) -> np.ndarray:
    return vectors_TKM.reshape(-1, vectors_TKM.shape[2]).astype(np.float32)


def lag_of(ours_VM: np.ndarray, theirs_VM: np.ndarray, farthest: int = 40) -> int:
    """Returns by how many vectors `ours` is late, by the smallest mean difference."""

    def difference(lag: int) -> float:
        a, b = (ours_VM[lag:], theirs_VM) if lag >= 0 else (ours_VM, theirs_VM[-lag:])
        size = min(len(a), len(b))
        return float(np.abs(a[:size] - b[:size]).mean())

    return min(range(-farthest, farthest + 1), key=difference)


# -- vectors ---------------------------------------------------------------------------------------------


def test_vectors_equal_scipys_spectrogram_through_htks_filters() -> None:
    sound_N = chirps(1.03)
    # windows begin at multiples of 160 samples; those of the clip 80 later, around the middle of a quarter of a frame
    _, _, spectrum_FV = scipy.signal.stft(
        sound_N[80:], window="hann", nperseg=400, noverlap=240, nfft=512, boundary=None, padded=False
    )
    power_FV = np.abs(spectrum_FV * 200) ** 2  # scipy divides by the sum of the window, 200
    step = 1_127 * np.log1p(8_000 / 700) / 41
    edge_hz = 700 * np.expm1(np.arange(42) * step / 1_127)
    hz_F = np.arange(257) * 31.25
    filters_MF = np.array([np.interp(hz_F, edge_hz[m : m + 3], [0, 1, 0]) for m in range(40)])
    theirs_VM = np.log(np.maximum(filters_MF @ power_FV, 1e-10)).T
    ours_VM = as_sound(log_mel(sound_N, 25, 25.0))
    assert ours_VM.shape == (100, 40) and len(theirs_VM) >= 100
    np.testing.assert_allclose(ours_VM, theirs_VM[:100], atol=0.01)


def test_a_tone_is_in_the_band_of_its_pitch() -> None:
    hz = 1_000
    tone_N = np.sin(2 * np.pi * hz * np.arange(RATE + 400) / RATE).astype(np.float32)
    bands = log_mel(tone_N, 25, 25.0).astype(np.float32).mean(axis=(0, 1))
    assert int(bands.argmax()) == int(mel_filters()[round(hz / 31.25)].argmax())


@pytest.mark.parametrize("fps", [25.0, 29.97, 12.5])
def test_a_click_is_in_its_quarter_of_a_frame(fps: float) -> None:
    num_frames = 20
    for place in (0, 13, 40, 79):
        sound_N = np.zeros(round(num_frames / fps * RATE) + 401, np.float32)
        sound_N[200 + round((place + 0.5) * RATE / fps / 4)] = 1
        loud_V = as_sound(log_mel(sound_N, num_frames, fps)).mean(axis=1)
        assert int(loud_V.argmax()) == place


# -- files -------------------------------------------------------------------------------------------------


def reference(seconds: float = 2.0, skip_s: float = 0.0) -> np.ndarray:
    """The vectors of `chirps`, computed without any file; the clip begins `skip_s` after the sound."""
    sound_N = np.concatenate([np.zeros(200, np.float32), chirps(seconds + 1)])
    first = round(skip_s * RATE)
    return log_mel(sound_N[first:], round(seconds * 25), 25.0)


@pytest.mark.parametrize(
    ("name", "codec", "rate", "layout", "closest"),
    [
        ("a.mkv", "pcm_s16le", 16_000, "mono", 0.1),
        ("a.mkv", "flac", 44_100, "stereo", 0.5),
        ("a.mp4", "aac", 48_000, "mono", 1.5),
        ("a.avi", "pcm_s16le", 16_000, "mono", 0.1),
        ("a.mpg", "mp2", 48_000, "mono", 1.5),
    ],
)
def test_the_sound_of_a_video_lies_at_its_pictures(
    tmp_path: Path, name: str, codec: str, rate: int, layout: str, closest: float
) -> None:
    if name.endswith("mpg"):
        path = write_talk(tmp_path / "a.ts", 50, chirps(3, rate), rate, codec=codec, layout=layout)
    else:
        path = write_talk(tmp_path / name, 50, chirps(3, rate), rate, codec=codec, layout=layout)
    ours_VM, theirs_VM = as_sound(sound_of_clip(Source(path), None, 50, PARAMS)), as_sound(reference())
    assert lag_of(ours_VM, theirs_VM) == 0
    if rate == 16_000:
        assert np.abs(ours_VM - theirs_VM).mean() < closest


@pytest.mark.parametrize(("sound_s", "pictures_s"), [(0.2, 0.0), (0.0, 0.4), (0.48, 0.16)])
@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_late_starts_of_sound_or_picture_shift_the_vectors(
    tmp_path: Path, name: str, sound_s: float, pictures_s: float
) -> None:
    codec = "pcm_s16le" if name == "a.mkv" else "mp2"
    path = write_talk(tmp_path / name, 50, chirps(3), 16_000, sound_s, pictures_s, codec=codec)
    ours_VM = as_sound(sound_of_clip(Source(path), None, 50, PARAMS))
    late = round((sound_s - pictures_s) * 100)
    # a negative lag: the picture starts within the sound
    assert abs(lag_of(ours_VM, as_sound(reference()), 50) - late) <= (0 if name == "a.mkv" else 1)
    if late > 8:
        assert (ours_VM[: late - (3 if name == "a.mkv" else 8)] == np.float16(np.log(1e-10))).all()


def test_a_file_of_sound_begins_with_the_first_picture_of_the_video(tmp_path: Path) -> None:
    video = write_talk(tmp_path / "a.mkv", 50, np.zeros(100, np.float32), pictures_start_s=0.36)
    sound = write_sound(tmp_path / "a.wav", chirps(3))
    found = sound_of_clip(Source(video), Source(sound), 50, PARAMS)
    np.testing.assert_allclose(found.astype(np.float32), reference().astype(np.float32), atol=0.6)
    assert lag_of(as_sound(found), as_sound(reference())) == 0
    with pytest.raises(NoSound, match=r"a\.mkv is silent during the clip"):
        sound_of_clip(Source(video), None, 50, PARAMS)


@pytest.mark.parametrize("key_every", [250, 10])
@pytest.mark.parametrize("has_file", [False, True])
def test_the_sound_of_a_part_begins_with_its_first_picture(
    tmp_path: Path, has_file: bool, key_every: int
) -> None:
    """The part begins 4.03 s after the first picture, so its first picture is at 4.04 s."""
    sound_N = chirps(8)
    video = write_talk(tmp_path / "a.mkv", 200, sound_N, pictures_start_s=0.2, num_pictures_a_key=key_every)
    file = Source(write_sound(tmp_path / "a.wav", sound_N)) if has_file else None
    found = sound_of_clip(Source(video, start_s=4.03, end_s=6.03), file, 50, PARAMS)
    begin = round((4.04 + (0.0 if has_file else 0.2)) * RATE)
    expected = log_mel(sound_N[begin - 200 :], 50, 25.0)
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=0.6)


def test_a_gap_in_the_sound_is_silence_at_its_place(tmp_path: Path) -> None:
    sound_N = chirps(2.5)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for first in (0, 8_000, 24_000):  # nothing from 1 s to 1.5 s
            values = (sound_N[first : first + 8_000] * 32_767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found_N = read_sound_file(Source(tmp_path / "a.mkv"), 0.0, 2 * RATE, PARAMS)
    assert (found_N[16_010:23_990] == 0).all()
    for first in (0, 8_000, 24_000):
        np.testing.assert_allclose(
            found_N[first + 10 : first + 7_990], sound_N[first + 10 : first + 7_990], atol=1e-4
        )


def test_sound_in_a_zip_is_read(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", chirps(3))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.wav", "in/a.wav")
    plain_N, zipped_N = (
        read_sound_file(source, 0.1, 16_000, PARAMS)
        for source in (Source(tmp_path / "a.wav"), Source(tmp_path / "a.zip", "in/a.wav"))
    )
    np.testing.assert_array_equal(plain_N, zipped_N)


# -- hostile and odd files ---------------------------------------------------------------------------------


def test_files_without_usable_sound_say_why(tmp_path: Path) -> None:
    video = Source(write_talk(tmp_path / "a.mkv", 20, chirps(1)))
    (tmp_path / "text.wav").write_bytes(b"no sound at all" * 99)
    (tmp_path / "empty.wav").write_bytes(b"")
    write_sound(tmp_path / "long.wav", np.zeros(16_000 * 5, np.float32))
    for name, params, why in (
        ("text.wav", PARAMS, "text.wav cannot be decoded"),
        ("empty.wav", PARAMS, "empty.wav is empty"),
        ("none.wav", PARAMS, "none.wav is missing"),
        ("long.wav", CropParams(max_source_mb=0.1), "long.wav has 0 MB; crop.max_source_mb is 0.1"),
    ):
        with pytest.raises(NoSound, match=why):
            sound_of_clip(video, Source(tmp_path / name), 20, params)
    silent_film = tmp_path / "film.mp4"
    with av.open(str(video.path)) as source, av.open(str(silent_film), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with pytest.raises(NoSound, match=r"film\.mp4 has no sound"):
        sound_of_clip(Source(silent_film), None, 20, PARAMS)


def test_sound_that_never_ends_is_refused(tmp_path: Path) -> None:
    """A small file of silence, decoded to a far later begin: decoding ends at crop.max_source_s."""
    sound = write_sound(tmp_path / "a.flac", np.zeros(16_000 * 60, np.float32), codec="flac")
    assert sound.stat().st_size < 60_000
    with pytest.raises(Exception, match=r"a\.flac is longer than crop\.max_source_s \(10 s\)"):
        read_sound_file(Source(sound), 59.0, 16_000, CropParams(max_source_s=10))


# -- the member of a shard ---------------------------------------------------------------------------------


def test_the_member_is_numpys_own_format(tmp_path: Path) -> None:
    sound_TKM = np.random.default_rng(0).normal(size=(7, 4, 40)).astype(np.float16)
    payload = encode_sound(sound_TKM)
    (tmp_path / "a.npy").write_bytes(payload)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), sound_TKM)
    np.testing.assert_array_equal(decode_sound(payload, 7), sound_TKM)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda p: p[:-2], "float16 values of shape"),
        (lambda p: p + b"\0\0", "float16 values of shape"),
        (lambda p: p.replace(b"(7, 4", b"(8, 4"), "float16 values of shape"),
        (lambda p: p.replace(b"<f2", b"|O2"), "float16 values of shape"),
        (lambda p: p[:-2] + b"\x00\x7e", "not finite"),
    ],
)
def test_another_member_is_refused(damage, what: str) -> None:  # type: ignore[no-untyped-def]
    payload = encode_sound(np.zeros((7, 4, 40), np.float16))
    with pytest.raises(ValueError, match=what):
        decode_sound(damage(payload), 7)
