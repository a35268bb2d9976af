"""Compares crops from kept patches with crops from pictures that are decoded again."""

from pathlib import Path

import numpy as np
import pytest

from shards.schema import MediaKind
from stages.mouths import mouth_pictures as patches_module
from stages.mouths import rendering
from stages.mouths.cropping import crop_video
from stages.mouths.face_tracking import track_faces
from stages.mouths.mouth_pictures import MouthPatches
from stages.mouths.rendering import render_from_track
from stages.settings import CropParams
from tests.support.videos import face_pictures, placed, set_rotation, write_mouth, write_video

PARAMS = CropParams()


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The videos that were decoded again for cutting."""
    paths: list[Path] = []
    real = rendering.decode
    monkeypatch.setattr(rendering, "decode", lambda media, params: paths.append(media) or real(media, params))
    return paths


MOVES = {
    "walks": [placed(1.2 + 0.005 * i, 0.5 * i, (2 * i - 40, i)) for i in range(40)],
    "nods": [placed(1.3, 0, (0, 12 * np.sin(i / 6))) for i in range(40)],
    "large": [placed(3.5, 5, (20, 120))] * 30,
    "at the edge": [placed(1.0, 0, (-175, 0))] * 30,
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("size_px", [96, 160])
def test_one_decoding_gives_the_same_bytes_as_two(
    tmp_path: Path, decodings: list[Path], move: str, size_px: int
) -> None:
    path = write_video(tmp_path / "a.mp4", face_pictures(MOVES[move], 640, 400))
    params = PARAMS.model_copy(update={"size_px": size_px})
    clip = crop_video(path, MediaKind.FACE, params)
    assert decodings == []
    assert clip.transform_T23 is not None
    again = render_from_track(path, clip.transform_T23, clip.frame_index_T, params)
    assert decodings == [path]
    assert np.array_equal(again, clip.clip_THW)


def test_one_decoding_of_a_rotated_video_gives_the_same_bytes(tmp_path: Path, decodings: list[Path]) -> None:
    upright = list(face_pictures([placed(1.2, 0, (i, 0)) for i in range(20)]))
    path = write_video(tmp_path / "a.mp4", [np.rot90(picture) for picture in upright])
    set_rotation(path, 1)
    clip = crop_video(path, MediaKind.FACE, PARAMS)
    assert decodings == []
    assert np.array_equal(
        render_from_track(path, clip.transform_T23, clip.frame_index_T, PARAMS), clip.clip_THW
    )


def test_without_memory_the_video_is_decoded_again_with_the_same_result(
    tmp_path: Path, decodings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", face_pictures(MOVES["walks"]))
    whole = crop_video(path, MediaKind.FACE, PARAMS)
    monkeypatch.setattr(patches_module, "KEPT_BYTES", 100_000)
    assert np.array_equal(crop_video(path, MediaKind.FACE, PARAMS).clip_THW, whole.clip_THW)
    assert decodings == [path]


def test_the_kept_patches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches_module, "KEPT_BYTES", 200_000)
    patches = MouthPatches()
    track_faces(write_video(tmp_path / "a.mp4", face_pictures(MOVES["walks"])), PARAMS, patches)
    kept = [patch for _, patch in patches._patches.values()]
    assert kept
    assert sum(patch.nbytes for patch in kept) <= 200_000
    assert all(patch.base is None for patch in kept), "a patch must not keep the whole picture in memory"


def test_a_ready_mouth_is_decoded_once(tmp_path: Path, decodings: list[Path]) -> None:
    path = write_mouth(tmp_path / "a.mp4", 20)
    clip = crop_video(path, MediaKind.MOUTH, PARAMS)
    assert decodings == []
    assert np.array_equal(render_from_track(path, None, clip.frame_index_T, PARAMS), clip.clip_THW)


def test_a_window_contains_every_pixel_that_the_warp_reads() -> None:
    """Changing the pixels outside the window does not change the mouth."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        scale, angle = rng.uniform(0.12, 2.5), rng.uniform(-0.6, 0.6)
        a, b = scale * np.cos(angle), scale * np.sin(angle)
        centre = rng.uniform(-50, 700, 2)
        shift = 48 - np.array([a * centre[0] - b * centre[1], b * centre[0] + a * centre[1]])
        transform_23 = np.array([[a, -b, shift[0]], [b, a, shift[1]]], np.float32)
        shrink = rendering._shrink(transform_23[None])
        window = rendering._window(transform_23, shrink, 96, (640, 480))
        assert 0 <= window.left < window.right <= 640
        assert 0 <= window.top < window.bottom <= 480
        picture = rng.integers(0, 256, (480, 640), dtype=np.uint8)
        changed = np.full_like(picture, 255)
        inside = np.s_[window.top : window.bottom, window.left : window.right]
        changed[inside] = picture[inside]
        whole = patches_module.Window(0, 0, 640 // shrink * shrink, 480 // shrink * shrink)
        cuts = [
            rendering._mouth(p[: whole.bottom, : whole.right], whole, transform_23, shrink, 96)
            for p in (picture, changed)
        ]
        assert np.array_equal(*cuts), "pixels outside have no effect"
        cut = rendering._mouth(picture[inside], window, transform_23, shrink, 96)
        assert np.abs(cut.astype(int) - cuts[0]).mean() < 1, "equal except for rounding of coordinates"
