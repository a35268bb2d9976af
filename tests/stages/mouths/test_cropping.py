"""One clip from one video: real decoding and landmarks on a photograph with known motion."""

import hashlib
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from pipeline.demo.corpus import build_demo_corpus
from pipeline.demo.plan import CorpusSize
from shards.errors import ClipRejected, MachineError
from shards.schema import CROPS, MediaKind
from stages.mouths import landmarker
from stages.mouths.cropping import CODE_VERSION, MouthClip, crop_video
from stages.mouths.face_tracking import track_faces
from stages.mouths.geometry import apply
from stages.mouths.landmarks import KEPT, TRACK_VERSION, Landmarks
from stages.mouths.mouth_pictures import MouthPatches
from stages.mouths.rendering import render_from_track
from stages.settings import CropParams
from stages.videos.media import Media
from tests.support.faces import landmarks_of, synthetic_face
from tests.support.videos import (
    face_pictures,
    number_of,
    numbered,
    photograph,
    placed,
    set_rotation,
    write_face,
    write_mouth,
    write_video,
)

PARAMS = CropParams()
GOLDEN = Path(__file__).parents[2] / "golden"


def crop(path: Path, params: CropParams = PARAMS) -> MouthClip:
    return crop_video(path, MediaKind.FACE, params)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_face(tmp_path_factory.mktemp("still") / "a.mp4", 20)


@pytest.fixture(scope="module")
def still_clip(still: Path) -> MouthClip:
    return crop(still)


def test_shape_types_and_figures_of_a_clip(still: Path, still_clip: MouthClip) -> None:
    assert still_clip.clip_THW.shape == (20, 96, 96)
    assert still_clip.clip_THW.dtype == np.uint8
    assert still_clip.frame_index_T.tolist() == list(range(20))
    assert still_clip.landmarked.tolist() == [
        0,
        16,
        19,
    ]  # a still head: only the ends of each stretch
    assert still_clip.transform_T23 is not None
    assert still_clip.transform_T23.dtype == np.float32
    figures = still_clip.figures
    assert figures.as_row().keys() <= set(CROPS.names)
    unmeasured = [name for name, value in asdict(figures).items() if value is None]
    assert unmeasured == ["sound_agreement"], "one face needs no sound"
    assert (figures.source_width, figures.source_height, figures.source_frames) == (512, 288, 20)
    assert (figures.source_fps, figures.duration_s) == (pytest.approx(25), pytest.approx(0.8))
    assert (figures.num_faces, figures.detection_rate, figures.num_frames) == (1, 1.0, 20)
    assert figures.mean_luma == pytest.approx(still_clip.clip_THW.mean())
    assert figures.jitter_px is not None
    assert figures.jitter_px < 0.2


def test_eyes_and_mouth_are_where_public_lip_readers_expect_them(still: Path, still_clip: MouthClip) -> None:
    """Uses mediapipe's own points on the still photograph. A real face differs a little from the mean face."""
    found = track_faces(still, PARAMS)
    kept = KEPT
    face = {index: found.points_MK3[10, kept.index(index), :2].astype(float) for index in kept}
    transform_23 = still_clip.transform_T23[10].astype(float)  # type: ignore[index]
    points = np.stack(
        [face[33] / 2 + face[133] / 2, face[362] / 2 + face[263] / 2, face[13] / 2 + face[14] / 2]
    )
    right_eye, left_eye, mouth = apply(transform_23[None], points[None])[0]
    assert np.linalg.norm(left_eye - right_eye) == pytest.approx(54.3, rel=0.12)
    assert abs(left_eye[1] - right_eye[1]) < 3
    assert np.abs(mouth - 48).max() < 3


def test_the_crop_follows_the_head(tmp_path: Path) -> None:
    """The head turns, grows and moves; the mouth in the crop stays the same."""
    placements = [placed(1.15 + 0.003 * i, 8 - 0.5 * i, (2.0 * i - 30, 0.8 * i)) for i in range(30)]
    path = write_video(tmp_path / "a.mp4", face_pictures(placements))
    clip = crop(path)
    assert clip.transform_T23 is not None
    # the transform from photograph to crop must be the same in every frame
    square = np.concatenate([placements, np.broadcast_to([0, 0, 1.0], (30, 1, 3))], axis=1)
    transforms = clip.transform_T23.astype(float) @ square
    mouth = np.array([[[223.0, 145.0]]] * 30)
    at = apply(transforms, mouth)[:, 0]
    assert np.ptp(at, axis=0).max() < 1.5
    assert np.abs(at - 48).max() < 3
    assert np.ptp(np.hypot(transforms[:, 0, 0], transforms[:, 1, 0])) < 0.05
    assert np.abs(np.diff(clip.clip_THW.astype(int), axis=0)).mean() < 3


def test_rendering_a_known_track_gives_the_same_bytes(still: Path, still_clip: MouthClip) -> None:
    again = render_from_track(still, still_clip.transform_T23, still_clip.frame_index_T, PARAMS)
    assert np.array_equal(again, still_clip.clip_THW)


def test_golden_crop(tmp_path: Path) -> None:
    """After an intended change: raise CODE_VERSION (TRACK_VERSION for the track), run with UPDATE_GOLDEN=1.

    The tolerance allows last-digit differences of codecs and kernels between machines, but not a pixel of the crop.
    """
    placements = [placed(1.1, 3, (0.5 * i + 6 * np.sin(i / 4), 4 * np.sin(i / 7))) for i in range(48)]
    path = write_video(tmp_path / "a.mp4", face_pictures(placements), 30)
    clip = crop(path)
    assert clip.transform_T23 is not None
    small = np.stack(
        [cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA) for frame in clip.clip_THW[::4]]
    )
    golden = GOLDEN / f"crop_v{CODE_VERSION}.npy"
    golden_track = GOLDEN / f"track_v{TRACK_VERSION}.npy"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.parent.mkdir(exist_ok=True)
        np.save(golden, small)
        np.save(golden_track, clip.transform_T23)
    expected = np.load(golden, allow_pickle=False)
    assert small.shape == expected.shape
    difference = np.abs(small.astype(int) - expected)
    assert difference.mean() < 1.5
    assert difference.max() < 30
    expected_T23 = np.load(golden_track, allow_pickle=False).astype(float)
    bottom = np.broadcast_to([0.0, 0, 1], (len(expected_T23), 1, 3))
    sources = np.linalg.inv(np.concatenate([expected_T23, bottom], axis=1)) @ [
        [48, 0, 96],
        [48, 0, 96],
        [1, 1, 1],
    ]
    off_px = np.linalg.norm((clip.transform_T23 @ sources) - np.array([[48, 0, 96]] * 2), axis=1)
    assert off_px.max() < 0.1


def test_a_clip_of_50_fps_is_resampled_to_25(tmp_path: Path) -> None:
    clip = crop(write_face(tmp_path / "a.mp4", 30, rate=50))
    assert clip.frame_index_T.tolist() == list(range(0, 30, 2))
    assert len(clip.clip_THW) == 15


def test_a_rotated_video_gives_the_upright_crop(tmp_path: Path, still_clip: MouthClip) -> None:
    path = write_video(tmp_path / "a.mp4", [np.rot90(photograph())] * 20)
    set_rotation(path, 1)
    clip = crop(path)
    assert (clip.figures.source_width, clip.figures.source_height) == (512, 288)
    assert np.abs(clip.clip_THW.astype(int) - still_clip.clip_THW).mean() < 4


@pytest.mark.parametrize("small_first", [True, False])
def test_the_larger_of_two_faces_is_cropped(tmp_path: Path, small_first: bool) -> None:
    head = photograph()[10:190, 140:310]
    picture = np.full((330, 560, 3), 90, np.uint8)
    x_large, x_small = (270, 20) if small_first else (20, 330)
    for x, y, zoom in ((x_large, 20, 1.6), (x_small, 90, 1.1)):
        zoomed = cv2.resize(head, None, fx=zoom, fy=zoom)
        picture[y : y + zoomed.shape[0], x : x + zoomed.shape[1]] = zoomed
    clip = crop(write_video(tmp_path / "a.mp4", [picture] * 12))
    assert clip.figures.num_faces == 2
    centre = np.linalg.inv(np.vstack([clip.transform_T23[5], [0, 0, 1]])) @ [48, 48, 1]  # type: ignore[index]
    assert np.abs(centre[:2] - (x_large + 1.6 * 83, 20 + 1.6 * 135)).max() < 6


def test_other_crop_sizes_show_the_same(still: Path, still_clip: MouthClip) -> None:
    double = crop(still, PARAMS.model_copy(update={"size_px": 192})).clip_THW
    halved = cv2.resize(double[10], (96, 96), interpolation=cv2.INTER_AREA)
    # half a pixel apart, since the crop centre is size / 2 in both
    assert np.abs(halved.astype(int) - still_clip.clip_THW[10]).mean() < 5


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    """A checkerboard of single pixels, shrunk fivefold, is gray."""
    board = (np.indices((720, 1280)).sum(axis=0) % 2 * 200 + 28).astype(np.uint8)
    pictures = [np.repeat(board[..., None], 3, axis=2)] * 10
    path = write_video(tmp_path / "a.mkv", pictures, codec="ffv1", pix_fmt="gray", options={})
    clip = crop_video(
        path, MediaKind.FACE, PARAMS, find_landmarks=synthetic_face(4.0, 10, y=-120.0, size=(1280, 720))
    )
    assert clip.clip_THW.std() < 3
    assert clip.clip_THW.mean() == pytest.approx(128, abs=2)


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0, 6.5])
def test_shrinking_does_not_shift_the_mouth(tmp_path: Path, scale: float) -> None:
    """A bright spot at the mouth centre lands at (48, 48) at every scale."""
    x, y = 129.31 * scale + 7, 157.82 * scale + 5
    yy, xx = np.mgrid[:1300, :1300]
    spot = 20 + 200 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * (4 * scale) ** 2))
    picture = np.repeat(spot.astype(np.uint8)[..., None], 3, axis=2)
    path = write_video(tmp_path / "a.mkv", [picture] * 10, codec="ffv1", pix_fmt="gray", options={})
    find_landmarks = synthetic_face(scale, 10, 7.0, 5.0, size=(1300, 1300))
    clip = crop_video(path, MediaKind.FACE, PARAMS, find_landmarks=find_landmarks)
    frame = clip.clip_THW[0].astype(float) - 20
    yy, xx = np.mgrid[:96, :96]
    frame[frame < 20] = 0
    assert (frame * xx).sum() / frame.sum() == pytest.approx(48, abs=0.15)
    assert (frame * yy).sum() / frame.sum() == pytest.approx(48, abs=0.15)


def test_at_the_edge_of_the_picture_the_border_is_repeated(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [np.full((288, 512, 3), 200, np.uint8)] * 12)
    find_landmarks = synthetic_face(1.0, 12, -90.0, 0.0, size=(512, 288))  # mouth centre at x = 39
    clip = crop_video(path, MediaKind.FACE, PARAMS, find_landmarks=find_landmarks)
    assert clip.clip_THW.shape == (12, 96, 96)
    assert clip.clip_THW.min() > 190  # no black beyond the edge


def test_spots_on_a_moving_head_stay_still_in_the_crop(tmp_path: Path) -> None:
    """Spots are drawn at known points of a head that turns, grows and moves, without warping by us or OpenCV."""
    places_P2 = np.array([(0, 0), (-30, -22), (31, -20), (-26, 30), (28, 25)], float)
    time = np.arange(50) / 50
    factor = (1.0 + 0.4 * time) * np.exp(1j * np.radians(-12 + 25 * time))
    shift = 40 + 60 * time + 1j * (60 - 20 * time)
    a, b = factor.real, factor.imag
    placements = np.stack(
        [np.stack([a, -b, shift.real], axis=1), np.stack([b, a, shift.imag], axis=1)], axis=1
    )
    yy, xx = np.mgrid[:420, :420]
    pictures = []
    for matrix, scale in zip(placements, np.abs(factor), strict=True):
        picture = np.full((420, 420), 40.0)
        for x, y in apply(matrix[None], places_P2[None] + (129.31, 157.82))[0]:
            picture += 180 * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * (2.5 * scale) ** 2))
        pictures.append(np.repeat(picture.astype(np.uint8)[..., None], 3, axis=2))
    path = write_video(tmp_path / "a.mkv", pictures, codec="ffv1", pix_fmt="gray", options={})
    landmarks = landmarks_of(placements, size=(420, 420))
    clip = crop_video(path, MediaKind.FACE, PARAMS, find_landmarks=lambda video, params, patches: landmarks)
    yy, xx = np.mgrid[-8:9, -8:9]
    for frame in clip.clip_THW.astype(float) - 40:
        for x, y in (places_P2 + 48).astype(int):
            window = np.clip(frame[y - 8 : y + 9, x - 8 : x + 9], 0, None)
            assert window.max() > 140
            assert abs((window * xx).sum() / window.sum()) < 0.6
            assert abs((window * yy).sum() / window.sum()) < 0.6


@pytest.mark.parametrize("unseen", [range(40, 53), range(13), range(87, 100)], ids=["middle", "begin", "end"])
def test_a_gap_is_bridged_up_to_its_limit(tmp_path: Path, unseen: range) -> None:
    """13 of 100 frames without the face are about half a second: within 0.6 s, beyond 0.4 s."""
    path = write_video(tmp_path / "a.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 100)
    lenient, strict = (
        PARAMS.model_copy(update={"max_gap_s": gap_s, "min_detection_rate": 0.3}) for gap_s in (0.6, 0.4)
    )
    find_landmarks = synthetic_face(1.0, 100, unseen=unseen)
    clip = crop_video(path, MediaKind.FACE, lenient, find_landmarks=find_landmarks)
    assert clip.figures.detection_rate == pytest.approx(0.87)
    assert clip.transform_T23 is not None
    assert np.allclose(clip.transform_T23, clip.transform_T23[0], atol=1e-3)
    with pytest.raises(ClipRejected, match=r"low_detection.*crop\.max_gap_s"):
        crop_video(path, MediaKind.FACE, strict, find_landmarks=find_landmarks)


def test_pixels_equal_scipys_also_beyond_the_edge(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 240)).astype(np.float32)
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    pictures = [np.repeat(picture.astype(np.uint8)[..., None], 3, axis=2)] * 10
    path = write_video(tmp_path / "a.mkv", pictures, codec="ffv1", pix_fmt="gray", options={})
    turned = placed(1.1, 20, (-88, 0), about=(129, 158))  # the mouth near the left edge
    landmarks = landmarks_of(np.array([turned] * 10), size=(240, 200))
    clip = crop_video(path, MediaKind.FACE, PARAMS, find_landmarks=lambda video, params, patches: landmarks)
    v, u = np.mgrid[:96, :96]
    on_face = np.stack([u - 48 + 129.31, v - 48 + 157.82], axis=-1).reshape(1, -1, 2)
    x, y = apply(turned[None], on_face)[0].T
    assert (x < 0).mean() > 0.1
    expected = map_coordinates(pictures[0][..., 0].astype(float), [y, x], order=1, mode="nearest")
    assert np.abs(clip.clip_THW[5].ravel() - expected).mean() < 1
    assert np.abs(clip.clip_THW[5].ravel() - expected).max() < 5


def test_the_drawn_faces_of_the_demo_are_cropped(tmp_path: Path) -> None:
    """mediapipe finds the eyes in single pictures, independent of the crop: 54 px apart, but for the face's shape."""
    mediapipe = pytest.importorskip("mediapipe")
    vision = mediapipe.tasks.vision
    build_demo_corpus(tmp_path, 0, size=CorpusSize(train=(1, 1), valid=(0, 0), test=(1, 1)))
    base = mediapipe.tasks.BaseOptions(model_asset_buffer=landmarker.MODEL_FILE.read_bytes())
    paths = sorted(tmp_path.rglob("*_FACE.mp4"))
    assert len(paths) == 2
    with vision.FaceLandmarker.create_from_options(vision.FaceLandmarkerOptions(base_options=base)) as finder:
        for path in paths:
            clip = crop(path)
            assert clip.transform_T23 is not None
            assert clip.figures.detection_rate == 1
            capture = cv2.VideoCapture(str(path))
            pictures = [capture.read()[1] for _ in range(clip.frame_index_T[-1] + 1)]
            for at in (0, len(clip.clip_THW) // 2):
                rgb = np.ascontiguousarray(pictures[clip.frame_index_T[at]][..., ::-1])
                found = finder.detect(mediapipe.Image(mediapipe.ImageFormat.SRGB, rgb)).face_landmarks[0]
                mesh = np.array([(p.x, p.y) for p in found]) * rgb.shape[1::-1]
                eyes = np.stack([mesh[[33, 133]].mean(axis=0), mesh[[362, 263]].mean(axis=0)])
                eyes_crop = apply(clip.transform_T23[at : at + 1].astype(float), eyes[None])[0]
                assert np.linalg.norm(eyes_crop[1] - eyes_crop[0]) == pytest.approx(54.3, rel=0.15)


# -- ready mouth crops --------------------------------------------------------------------------------


def no_landmarks(media: Media, params: CropParams, patches: MouthPatches) -> Landmarks:
    raise AssertionError("ready mouth crops must not be landmarked")


def test_ready_mouth_crops_are_not_changed(tmp_path: Path) -> None:
    path = write_mouth(tmp_path / "a.mp4", 20)
    clip = crop_video(path, MediaKind.MOUTH, PARAMS, find_landmarks=no_landmarks)
    assert clip.transform_T23 is None
    assert (clip.figures.num_faces, clip.figures.landmarked_frames, len(clip.landmarked)) == (None, None, 0)
    capture = cv2.VideoCapture(str(path))
    for frame in clip.clip_THW:
        expected = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2GRAY)
        assert np.abs(frame.astype(int) - expected).mean() < 2


def test_ready_mouth_crops_of_another_rate_are_resampled(tmp_path: Path) -> None:
    """90 numbered pictures at 30 fps become 75."""
    path = write_video(tmp_path / "a.mp4", [numbered(i, 96, 96) for i in range(90)], 30)
    clip = crop_video(path, MediaKind.MOUTH, PARAMS, find_landmarks=no_landmarks)
    assert clip.clip_THW.shape == (75, 96, 96)
    numbers = np.array([number_of(frame) for frame in clip.clip_THW])
    assert np.array_equal(numbers, clip.frame_index_T)
    assert np.abs(numbers / 30 - np.arange(75) / 25).max() <= 0.5 / 30 + 1e-6


def test_ready_mouth_crops_of_another_size_are_resized(tmp_path: Path) -> None:
    clip = crop_video(write_mouth(tmp_path / "a.mp4", 12, size=128), MediaKind.MOUTH, PARAMS)
    assert clip.clip_THW.shape == (12, 96, 96)


@pytest.mark.parametrize(
    "size", [(100, 50), (140, 46), (46, 140), (97, 96), (96, 64), (31, 30), (256, 2), (90, 96), (48, 24)]
)
def test_oblong_ready_mouth_crops_keep_their_aspect_ratio(tmp_path: Path, size: tuple[int, int]) -> None:
    """The longer side fills the crop, nothing is cut off, and the rest repeats the border."""
    width, height = size
    x, y = np.meshgrid(np.linspace(20, 230, width), np.linspace(20, 230, height))
    picture = np.stack([x, x, y], axis=-1).astype(np.uint8)
    options = {"codec": "ffv1", "pix_fmt": "bgr0", "options": {}}
    clip = crop_video(write_video(tmp_path / "a.mkv", [picture] * 12, **options), MediaKind.MOUTH, PARAMS)
    gray = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    scaled = [max(1, round(side * 96 / max(size))) for side in size]
    left, top = ((96 - side) // 2 for side in scaled)
    crop = clip.clip_THW[0].astype(int)
    inner = crop[top : top + scaled[1], left : left + scaled[0]]
    # an independent scaling
    expected = cv2.resize(gray.astype(np.float64), scaled, interpolation=cv2.INTER_LINEAR)
    assert np.abs(inner - expected).max() < (6 if min(scaled) > 1 else 130)
    assert np.array_equal(
        crop, np.pad(inner, ((top, 96 - top - scaled[1]), (left, 96 - left - scaled[0])), "edge")
    )


# -- the landmarker -----------------------------------------------------------------------------------


def test_a_modified_model_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "face_landmarker.task"
    other.write_bytes(landmarker.MODEL_FILE.read_bytes()[:-1])
    monkeypatch.setattr(landmarker, "MODEL_FILE", other)
    with pytest.raises(MachineError, match="install the package again"):
        landmarker.model_bundle()


def test_the_licence_note_has_the_hash_of_the_model() -> None:
    digest = hashlib.sha256(landmarker.MODEL_FILE.read_bytes()).hexdigest()
    assert digest == landmarker.MODEL_SHA256
    assert digest in (landmarker.MODEL_FILE.parent / "LICENSES.md").read_text()


def test_cropping_leaves_no_ignored_exception_at_exit(still: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stages.mouths.cropping import crop_video; "
        "from stages.settings import CropParams; from shards.schema import MediaKind; "
        "crop_video(Path(sys.argv[1]), MediaKind.FACE, CropParams()); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program, str(still)], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr
