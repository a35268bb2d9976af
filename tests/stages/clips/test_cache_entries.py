"""Entries of a cache that another wrote: every member and every figure, each with hostile values."""

import dataclasses
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.schema import MediaKind, Reason
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from stages.clips.cache import ClipCache
from stages.clips.entries import DAMAGE, clip_of, landmarks_of, outcome_of
from stages.mouths.cropping import Figures
from stages.pack import pack
from stages.settings import CorpusParams, CropParams
from tests.support.crop_runs import Run, clip_row, write_clips
from tests.support.videos import write_face, write_mouth

PARAMS = CropParams()
NUM_FRAMES = 12
CLIP_SHAPE = (NUM_FRAMES, PARAMS.size_px, PARAMS.size_px)
Arrays = dict[str, Any]

READERS: dict[str, Callable[[zipfile.ZipFile], object]] = {
    "face": lambda kept: outcome_of(kept, True, PARAMS.size_px),
    "mouth": lambda kept: outcome_of(kept, False, PARAMS.size_px),
    "rejection": lambda kept: outcome_of(kept, False, PARAMS.size_px),
    "landmarks": landmarks_of,
    "clip": lambda kept: clip_of(kept, CLIP_SHAPE),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Arrays]:
    """The arrays of one entry of each kind, as the program itself wrote them."""
    folder = tmp_path_factory.mktemp("sound")
    cache = ClipCache(folder / "cache")
    face = cache.crop(write_face(folder / "face.mp4", NUM_FRAMES), MediaKind.FACE, PARAMS)
    mouth = cache.crop(write_mouth(folder / "mouth.mp4", NUM_FRAMES), MediaKind.MOUTH, PARAMS)
    short = cache.crop(write_mouth(folder / "short.mp4", 3), MediaKind.MOUTH, PARAMS)
    assert (face.rejection, mouth.rejection) == (None, None)
    assert short.rejection is not None and face.keys.track is not None

    def arrays(kind: str, key: str) -> Arrays:
        with np.load(folder / "cache" / kind / key[:2] / f"{key}.npz") as entry:
            return dict(entry)

    return {
        "face": arrays("clips", face.keys.clip),
        "mouth": arrays("clips", mouth.keys.clip),
        "rejection": arrays("clips", short.keys.clip),
        "landmarks": arrays("tracks", face.keys.track),
        "clip": arrays("clips", mouth.keys.clip),
    }


def packed(arrays: Arrays, compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def is_refused(kind: str, payload: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as kept:
            READERS[kind](kept)
    except DAMAGE:
        return True
    return False


def other_arrays(array: Any) -> Iterator[tuple[str, Any]]:
    """What may stand in place of an array, and must be refused whatever the array is."""
    yield "an axis more", array[None]
    yield "text", np.array("text, and more of it")
    yield "a wider type", array.astype(np.complex128) if array.dtype.kind in "fiu" else array.astype("S3")
    yield (
        "the other byte order",
        array.astype(array.dtype.newbyteorder(">")) if array.dtype.itemsize > 1 else array.astype(">i2"),
    )
    yield "objects", np.array([{"a": 1}], dtype=object)
    yield "fields", np.zeros(array.shape, [("a", "<f4")])
    if array.ndim and len(array):
        yield "one axis less", array.reshape(-1)[0]
        yield "every second", array[::2][: len(array) // 2]
        yield "twice as many", np.concatenate([array, array])
        yield "none", array[:0]
    if array.dtype.kind == "f":
        for name, value in (
            ("NaN", np.nan),
            ("infinite", np.inf),
            ("huge", 1e30),
            ("hugely negative", -1e30),
        ):
            yield name, with_last(array, value)
    elif array.dtype.kind == "i":
        for name, value in (("negative", -1), ("huge", np.iinfo(array.dtype).max)):
            yield name, with_last(array, value)


def with_last(array: Any, value: float) -> Any:
    changed = np.array(array)
    changed.reshape(-1)[-1:] = value
    return changed


FREE_LENGTHS = {("landmarks", "landmarked"), ("landmarks", "cut_frame_C"), ("landmarks", "cut_box_C4")}
"""How many there are stands nowhere else in the entry."""


@pytest.mark.parametrize("kind", READERS)
def test_every_member_is_checked(sound: dict[str, Arrays], kind: str) -> None:
    arrays = sound[kind]
    assert not is_refused(kind, packed(arrays))
    looked_at = ["clip"] if kind == "clip" else list(arrays)
    for name in looked_at:
        taken: list[str] = []
        without = {other: array for other, array in arrays.items() if other != name}
        assert is_refused(kind, packed(without)), name
        for what, array in other_arrays(arrays[name]):
            is_other_length = what in ("every second", "twice as many", "none")
            if is_other_length and ((kind, name) in FREE_LENGTHS or not len(arrays[name])):
                continue
            if (
                not array.size
                and not arrays[name].size
                and array.dtype == arrays[name].dtype
                and array.ndim == arrays[name].ndim
            ):
                continue
            if not is_refused(kind, packed(arrays | {name: array})):
                taken.append(what)
        assert not taken, (name, taken)
    if kind != "clip":
        assert is_refused(kind, packed(arrays | {"more": np.zeros(3)}))


def test_frames_out_of_order_are_refused(sound: dict[str, Arrays]) -> None:
    for kind, name in (
        ("face", "frame_index_T"),
        ("face", "landmarked"),
        ("landmarks", "times_s_F"),
        ("landmarks", "frame_M"),
        ("landmarks", "landmarked"),
    ):
        turned = sound[kind][name][::-1]
        assert len(turned) > 1
        assert is_refused(kind, packed(sound[kind] | {name: turned})), name
    times_s = sound["landmarks"]["times_s_F"] * 0
    assert is_refused("landmarks", packed(sound["landmarks"] | {"times_s_F": times_s}))


HOSTILE_FIGURES = (
    "5",
    "",
    2**70,
    -(2**70),
    -1,
    float("nan"),
    float("inf"),
    1e300,
    True,
    [1],
    {"a": 1},
    [[[]]],
)


@pytest.mark.parametrize("kind", ["face", "mouth", "rejection"])
def test_every_figure_is_checked(sound: dict[str, Arrays], kind: str) -> None:
    stored = json.loads(sound[kind]["outcome"].tobytes())

    def with_reported(value: Any) -> bytes:
        text = value if isinstance(value, str) else json.dumps(value)
        return packed(sound[kind] | {"outcome": np.frombuffer(text.encode(), np.uint8)})

    assert not is_refused(kind, with_reported(stored))
    for name, value in stored["figures"].items():
        hostile = list(HOSTILE_FIGURES)
        if name == "sound_agreement":
            hostile.append(1.1)
        if kind == "mouth" and name == "sound_agreement":
            hostile.append(1)
        elif kind != "rejection" and name not in ("source_fps", "sound_agreement"):
            # measured of a clip, or of a face alone
            hostile += [None] if value is not None else [1]
        if isinstance(value, int) and kind != "rejection" and name not in ("source_width", "source_height"):
            hostile.append(value + 1 if name in ("num_frames", "landmarked_frames") else 0.5)
        for bad in hostile:
            assert is_refused(kind, with_reported(stored | {"figures": stored["figures"] | {name: bad}})), (
                name,
                bad,
            )
    outcomes: list[Any] = [
        stored | {"more": 1},
        stored | {"figures": stored["figures"] | {"more": 1}},
        [stored],
        None,
        5,
    ]
    outcomes += [{key: stored[key] for key in stored if key != name} for name in stored]
    outcomes += [stored | {"figures": figures} for figures in (None, [], "x")]
    outcomes += [
        stored | {"reason": reason, "detail": "x"} for reason in (5, "", "nonsense", ["no_face"], "crashed")
    ]
    outcomes += [stored | {"reason": "no_face", "detail": detail} for detail in (None, "", 5, "\ud800")]
    outcomes += ["", "{", "[" * 100_000, '{"figures": ' + "9" * 5_000 + "}"]
    for outcome in outcomes:
        assert is_refused(kind, with_reported(outcome)), str(outcome)[:300]


@pytest.mark.parametrize("reason", [Reason.MISSING_FILE, Reason.CRASHED, Reason.TIMEOUT, Reason.EMPTY_TEXT])
def test_what_is_never_kept_is_not_taken_from_an_entry_either(
    sound: dict[str, Arrays], reason: Reason
) -> None:
    stored = {"figures": dataclasses.asdict(Figures()), "reason": reason, "detail": "x"}
    outcome = np.frombuffer(json.dumps(stored).encode(), np.uint8)
    assert is_refused("rejection", packed({"outcome": outcome}))


@pytest.mark.parametrize("kind", READERS)
def test_what_unfolds_is_refused_before_it_does(
    sound: dict[str, Arrays], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_refused(kind, packed(sound[kind], compressed=True))
    monkeypatch.setattr("stages.clips.entries.MAX_MEMBER_BYTES", 100)
    assert is_refused(kind, packed(sound[kind]))


def test_a_header_that_claims_more_than_follows_costs_no_memory(sound: dict[str, Arrays]) -> None:
    """numpy would take room for what is claimed."""
    payload = packed(sound["landmarks"])
    with zipfile.ZipFile(io.BytesIO(payload)) as kept:
        members = {name: kept.read(name) for name in kept.namelist()}
    claimed = members["times_s_F.npy"].replace(b"(12,), }" + b" " * 12, b"(999999999999,), }  ")
    assert claimed != members["times_s_F.npy"]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as kept:
        for name, content in (members | {"times_s_F.npy": claimed}).items():
            kept.writestr(name, content)
    assert is_refused("landmarks", file.getvalue())


def test_flipped_and_cut_entries_raise_nothing_else(sound: dict[str, Arrays]) -> None:
    rng = np.random.default_rng(0)
    for kind in READERS:
        payload = packed(
            {name: array[:3] if name == "clip" else array for name, array in sound[kind].items()}
        )
        # headers and the directory of the zip, which no CRC guards
        unguarded = [*range(300), *range(len(payload) - 900, len(payload))]
        for _ in range(200):
            harmed = bytearray(payload)
            for place in rng.choice(unguarded, 3):
                harmed[place] = rng.integers(256)
            is_refused(kind, bytes(harmed))
            is_refused(kind, payload[: rng.integers(len(payload))])


def figure_of(name: str, value: Any) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        stored = json.loads(arrays["outcome"].tobytes())
        stored["figures"][name] = value
        arrays["outcome"] = np.frombuffer(json.dumps(stored).encode(), np.uint8)

    return change


def array_of(name: str, change: Callable[[Any], Any]) -> Callable[[Arrays], None]:
    def changed(arrays: Arrays) -> None:
        arrays[name] = change(arrays[name])

    return changed


ODD: dict[str, Callable[[Arrays], None]] = {
    "a figure that is text": figure_of("sharpness", "sharp"),
    "a figure beyond every integer": figure_of("source_frames", 2**70),
    "a frame index on two axes": array_of("frame_index_T", lambda array: array[None]),
    "a smaller clip": array_of("clip", lambda array: array[:, :50, :50]),
    "a shorter clip": array_of("clip", lambda array: array[:5]),
}


def test_odd_entries_of_a_shared_cache_are_named_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, forked_workers: None
) -> None:
    """The ledger and the shards are those of a run without them, and the share is healed."""
    run = Run(tmp_path)
    for seed, _ in enumerate(ODD):
        write_mouth(run.root / f"{seed}.mp4", NUM_FRAMES, seed)
    rows = [clip_row(f"c{seed}", f"{seed}.mp4", media_kind="mouth") for seed, _ in enumerate(ODD)]
    write_clips(tmp_path / "clips.parquet", rows)
    share = tmp_path / "share"
    first, second = (
        MachineParams(workers=1, cache_dir=str(tmp_path / name), share=share.as_uri()) for name in ("1", "2")
    )
    run(machine=first)
    tables = run.tables()
    harmed = sorted(share.glob("clips/*/*.npz"))
    for entry, change in zip(harmed, ODD.values(), strict=True):
        with np.load(entry) as kept:
            arrays = dict(kept)
        change(arrays)
        entry.write_bytes(packed(arrays))
    summary = run(machine=second)
    assert (summary.num_from_cache, summary.num_damaged, run.tables()) == (0, len(ODD), tables)
    assert f"0 from the cache ({len(ODD)} damaged entries were replaced)" in str(summary)
    third = MachineParams(workers=1, cache_dir=str(tmp_path / "3"), share=share.as_uri())
    assert (run(machine=third).num_from_cache, run.tables()) == (len(ODD), tables)

    for entry, change in zip(harmed, ODD.values(), strict=True):
        local = Path(third.cache_dir) / entry.relative_to(share)
        with np.load(local) as kept:
            arrays = dict(kept)
        change(arrays)
        local.write_bytes(packed(arrays))
    places = [tmp_path / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    with caplog.at_level(logging.WARNING):
        packed_again = pack(
            CorpusParams(root=str(run.root)), PARAMS, PackParams(), third, *places,
            FolderStore(tmp_path / "shards"), tmp_path / "samples.parquet",
        )  # fmt: skip
    # the pictures alone are looked at here
    assert packed_again.num_rendered == 2
    assert sum(entry.name in caplog.text for entry in harmed) == 2
