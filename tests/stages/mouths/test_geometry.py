"""From landmarks to the window: compared with closed forms, Umeyama by SVD and scipy's smoothing."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import savgol_filter

from shards.errors import ClipRejected
from stages.mouths.geometry import (
    CANONICAL_42,
    MouthTrack,
    apply,
    bridge,
    fit_parabolas,
    longest_gap,
    matrices,
    mouth_track,
    mouth_windows,
    similarity,
    smooth,
    smoothed_frames,
    stable_points,
    yaw_deg,
)
from stages.mouths.landmarks import KEPT, Landmarks
from stages.mouths.main_face import main_face
from stages.settings import CropParams
from stages.videos.streams import resample
from tests.support.faces import face_points, landmarks_of

PARAMS = CropParams()
RNG = np.random.default_rng(0)


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the 2x3 matrix by singular values, as printed in Umeyama 1991."""
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    u, d, vt = np.linalg.svd(covariance)
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ s @ vt
    scale = np.trace(np.diag(d) @ s) / ((source - source_mean) ** 2).sum(axis=1).mean()
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])


def random_similarities(count: int) -> np.ndarray:
    angle, scale = RNG.uniform(-np.pi, np.pi, count), RNG.uniform(0.1, 5, count)
    shift = RNG.uniform(-500, 500, (2, count))
    return np.stack([scale * np.cos(angle), scale * np.sin(angle), *shift], axis=1)


def test_similarity_equals_umeyamas() -> None:
    source = RNG.normal(0, 50, (200, 4, 2))
    target = RNG.normal(0, 50, (4, 2))
    ours = matrices(similarity(source, target))
    for points, matrix in zip(source, ours, strict=True):
        assert np.allclose(matrix, umeyama(points, target))


def test_similarity_finds_the_transform_that_was_applied() -> None:
    """For any rotation and scale, and without mirroring."""
    applied = random_similarities(50)
    inverse_points = apply(np.linalg.inv(_square(matrices(applied)))[:, :2], np.stack([CANONICAL_42] * 50))
    assert np.allclose(similarity(inverse_points, CANONICAL_42), applied)
    mirrored = matrices(similarity(CANONICAL_42[None] * (-1, 1), CANONICAL_42))
    assert np.linalg.det(mirrored[0, :, :2]) > 0


def _square(matrices_N23: np.ndarray) -> np.ndarray:
    bottom = np.broadcast_to([0.0, 0.0, 1.0], (len(matrices_N23), 1, 3))
    return np.concatenate([matrices_N23, bottom], axis=1)


def test_coinciding_points_are_rejected() -> None:
    with pytest.raises(ClipRejected, match="one point"):
        similarity(np.full((3, 4, 2), 7.0), CANONICAL_42)
    with pytest.raises(ClipRejected):
        similarity(np.full((3, 4, 2), np.nan), CANONICAL_42)


@pytest.mark.parametrize("size_px", [96, 88, 128, 48])
def test_the_window_is_that_of_public_lip_readers(size_px: int) -> None:
    """Eyes 54.3 px apart on a line, mouth in the middle, for any position, rotation and size of the head."""
    placements = np.linalg.inv(_square(matrices(random_similarities(40))))[:, :2]
    points = face_points(placements)
    windows = matrices(mouth_windows(points, size_px))
    eyes_and_mouth = apply(windows, stable_points(points))
    scale = size_px / 96
    assert np.allclose(eyes_and_mouth[:, 3], size_px / 2)
    across = eyes_and_mouth[:, 1] - eyes_and_mouth[:, 0]
    assert np.allclose(np.linalg.norm(across, axis=1), 54.29 * scale, atol=0.01 * scale)
    assert np.allclose(eyes_and_mouth, (CANONICAL_42 - CANONICAL_42[3]) * scale + size_px / 2)


def test_a_long_face_still_has_its_mouth_in_the_middle() -> None:
    longer = CANONICAL_42 * (1, 1.3)
    points = face_points(np.array([[[1.0, 0, 0], [0, 1, 0]]]), longer)
    assert np.allclose(apply(matrices(mouth_windows(points, 96)), stable_points(points))[0, 3], 48)


@pytest.mark.parametrize("window", [1, 3, 5, 13])
@pytest.mark.parametrize("num", [1, 2, 3, 4, 12, 13, 14, 75])
def test_smoothing_equals_scipys(window: int, num: int) -> None:
    values = RNG.normal(0, 10, (num, 4))
    reach = min(window, num if num % 2 else num - 1)
    expected = savgol_filter(values, reach, min(1, reach - 1), axis=0, mode="interp") if reach > 0 else values
    assert np.allclose(smooth(values, window), expected)


@pytest.mark.parametrize("window", [1, 3, 5, 7])
@pytest.mark.parametrize("num", [1, 2, 4, 5, 6, 7, 8, 75])
def test_parabolas_equal_scipys(window: int, num: int) -> None:
    values = RNG.normal(0, 10, (num, 4))
    reach = min(window, num if num % 2 else num - 1)
    expected = savgol_filter(values, reach, 2, axis=0, mode="interp") if reach >= 5 else values
    assert np.allclose(fit_parabolas(values, reach), expected)


@pytest.mark.parametrize("fps", [10, 25, 30, 50])
def test_the_number_of_frames_equals_the_exact_fraction(fps: int) -> None:
    """The odd number nearest to the seconds, the larger of two. The default of 12.5 frames gives 13."""
    assert smoothed_frames(PARAMS.smoothing_s, PARAMS.target_fps) == 13
    for hundredths in range(501):
        exact = Fraction(hundredths, 100) * fps
        expected = max(range(1, 252, 2), key=lambda odd: (-abs(odd - exact), odd))
        assert smoothed_frames(hundredths / 100, fps) == expected


def test_a_steady_motion_is_not_changed_even_at_the_ends() -> None:
    line = np.outer(np.arange(40), [1.0, -2, 0.5, 3]) + 7
    assert np.allclose(smooth(line, 13), line)


def test_the_ends_join_without_a_jump() -> None:
    """Frames 0 to 6 lie on one line, and so do the last seven."""
    smoothed = smooth(RNG.normal(0, 10, (60, 4)), 13)
    for part in (smoothed[:7], smoothed[-7:]):
        assert np.allclose(np.diff(part, n=2, axis=0), 0)


def test_bridge_interpolates_and_extends() -> None:
    times = np.arange(6) / 25
    bridged = bridge(times[[1, 4]], np.array([[0.0, 3.0], [3.0, 0.0]]), times)
    assert np.allclose(bridged, [[0, 3], [0, 3], [1, 2], [2, 1], [3, 0], [3, 0]])


@pytest.mark.parametrize(
    ("seen", "gap"),
    [
        (range(10), (0, 0)),
        (range(5, 10), (0, 0.2)),
        (range(7), (0.28, 0.4)),
        ([0, 1, 2, 7, 8, 9], (0.12, 0.28)),
    ],
)
def test_the_longest_gap_includes_the_ends(seen: range | list[int], gap: tuple[float, float]) -> None:
    begin_s, end_s = longest_gap(np.arange(10) / 25, np.array(list(seen), np.int32), 1 / 25)
    assert end_s - begin_s == pytest.approx(gap[1] - gap[0])
    if gap != (0, 0):
        assert (begin_s, end_s) == (pytest.approx(gap[0]), pytest.approx(gap[1]))


def track_of(landmarks: Landmarks, params: CropParams = PARAMS) -> MouthTrack:
    face = main_face(landmarks, params)
    assert face is not None
    frame_index = np.arange(len(landmarks.times_s_F), dtype=np.int32)
    return mouth_track(face, landmarks.times_s_F, frame_index, params)


def upright(scale: float = 1.5, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return np.array([[scale, 0, x], [0, scale, y]])


def test_a_steadily_moving_head_is_still_in_the_crop() -> None:
    placements = np.stack([upright(1.5 + 0.002 * i, 3.0 * i, 2.0 * i) for i in range(50)])
    track = track_of(landmarks_of(placements))
    expected = matrices(mouth_windows(face_points(placements), 96))
    moved = apply(track.transform_T23.astype(float), stable_points(face_points(placements)))
    still = apply(expected, stable_points(face_points(placements)))
    assert np.abs(moved - still).max() < 0.5  # scale changes are smoothed as 1/scale
    assert track.jitter_px < 0.05
    assert track.mouth_width_px == pytest.approx(45.02 * 1.549, rel=0.01)


def test_speech_moves_the_lip_but_not_the_window() -> None:
    """The jaw opens and shuts five times a second: the lower lip moves, the window does not."""
    opening_px = 12 * (1 - np.cos(2 * np.pi * 5 * np.arange(75) / 25)) / 2
    placements = np.stack([upright()] * 75)
    track = track_of(landmarks_of(placements, opening_px=opening_px))
    nose = apply(track.transform_T23.astype(float), np.full((75, 1, 2), 200.0))[:, 0]
    assert np.ptp(nose[10:-10], axis=0).max() < 0.6
    assert np.ptp(nose, axis=0).max() < 1.5
    raw = matrices(mouth_windows(face_points(placements, opening_px=opening_px), 96))
    assert np.ptp(apply(raw, np.full((75, 1, 2), 200.0))[:, 0, 1]) > 3  # without smoothing it moves


def test_noise_is_smoothed_and_measured() -> None:
    jump = RNG.normal(0, 1.0, (100, 2))
    noisy = np.stack([upright(1.5, x, y) for x, y in jump])
    track = track_of(landmarks_of(noisy))
    assert np.linalg.norm(np.diff(track.transform_T23[:, :, 2], axis=0), axis=1).mean() < 0.4
    assert track.jitter_px > 0.5  # the noise is now in the crop, and the figure shows it


def mouth_off_px(track: MouthTrack, landmarks: Landmarks) -> np.ndarray:
    """Returns the distance of the mouth's middle from the crop's middle, frame by frame."""
    mouth = stable_points(landmarks.points_MK3.astype(float))[:, 3:]
    return np.asarray(np.linalg.norm(apply(track.transform_T23.astype(float), mouth)[:, 0] - 48, axis=1))


@pytest.mark.parametrize(("period_s", "sway_px"), [(0.4, 10), (0.5, 15), (0.7, 15), (1.0, 20), (2.0, 40)])
@pytest.mark.parametrize("direction", [(0, 1), (1, 0), (0.7, 0.7)])
def test_a_fast_head_stays_in_the_middle(
    period_s: float, sway_px: float, direction: tuple[float, float]
) -> None:
    """It nods or sways by so many crop pixels to each side while it speaks. The mean alone would lag behind."""
    time_s = np.arange(75) / 25
    sway_T = sway_px * 1.5 * np.sin(2 * np.pi * time_s / period_s)
    placements = np.stack([upright(1.5, 200 + direction[0] * d, 200 + direction[1] * d) for d in sway_T])
    landmarks = landmarks_of(placements, opening_px=5 + 5 * np.sin(2 * np.pi * 4 * time_s))
    assert np.percentile(mouth_off_px(track_of(landmarks), landmarks), 95) < 4
    calm = track_of(landmarks, PARAMS.model_copy(update={"max_lag_px": 1e9}))
    assert np.percentile(mouth_off_px(calm, landmarks), 95) > 4
    assert track_of(landmarks).jitter_px < 0.75 * calm.jitter_px


@pytest.mark.parametrize("fps", [24000 / 1001, 30.0, 50.0, 60.0])
def test_a_fast_head_at_another_frame_rate_stays_in_the_middle(fps: float) -> None:
    """Output frames show the nearest source frames, which are unevenly spaced in time."""
    time_s = np.arange(round(3 * fps)) / fps
    sway_F = 20 * 1.5 * np.sin(2 * np.pi * 2 * time_s)
    landmarks = landmarks_of(np.stack([upright(1.5, 200, 200 + d) for d in sway_F]), fps=fps)
    face = main_face(landmarks, PARAMS)
    assert face is not None
    shown_T = resample(time_s, 25.0)
    track = mouth_track(face, time_s, shown_T, PARAMS)
    mouth_T12 = stable_points(landmarks.points_MK3[shown_T].astype(float))[:, 3:]
    off_px = np.linalg.norm(apply(track.transform_T23.astype(float), mouth_T12)[:, 0] - 48, axis=1)
    assert np.percentile(off_px, 95) < 4
    assert track.jitter_px < 1.5


def test_a_turning_head_is_followed() -> None:
    roll_deg = 20 * np.sin(2 * np.pi * np.arange(75) / 25)
    angle = np.radians(roll_deg)
    cos, sin = 1.5 * np.cos(angle), 1.5 * np.sin(angle)
    placements = np.stack(
        [np.stack([cos, -sin, 600 - 129 * cos], -1), np.stack([sin, cos, 400 - 129 * sin], -1)], axis=1
    )
    transform_T23 = track_of(landmarks_of(placements)).transform_T23
    window_deg = np.degrees(np.arctan2(-transform_T23[:, 1, 0], transform_T23[:, 0, 0]))
    assert np.abs(window_deg - roll_deg).max() < 5
    calm = track_of(landmarks_of(placements), PARAMS.model_copy(update={"max_lag_px": 1e9})).transform_T23
    assert np.abs(np.degrees(np.arctan2(-calm[:, 1, 0], calm[:, 0, 0])) - roll_deg).max() > 8


def test_slow_heads_get_exactly_the_plain_mean() -> None:
    """With a speaking mouth, with noise of the landmarks, with a slow drift."""
    drift = np.stack(
        [upright(1.5, 100 + 0.4 * i + n, 100 + m) for i, (n, m) in enumerate(RNG.normal(0, 0.3, (75, 2)))]
    )
    opening_px = 6 * (1 - np.cos(2 * np.pi * 5 * np.arange(75) / 25))
    landmarks = landmarks_of(drift, opening_px=opening_px)
    raw = mouth_windows(landmarks.points_MK3.astype(float), 96)
    expected = matrices(smooth(raw, 13)).astype(np.float32)
    assert np.array_equal(track_of(landmarks).transform_T23, expected)


@pytest.mark.parametrize("max_lag_px", [0.0, 0.5, 3.0])
def test_the_lag_is_bounded_for_any_motion(max_lag_px: float) -> None:
    """Compares with the window without lag, at the middle of the crop."""
    walk = np.cumsum(RNG.normal(0, 6, (80, 2)), axis=0)
    placements = np.stack([upright(1.5, 500 + x, 500 + y) for x, y in walk])
    params = PARAMS.model_copy(update={"max_lag_px": max_lag_px})
    without_lag = PARAMS.model_copy(update={"max_lag_px": 0.0})
    landmarks = landmarks_of(placements)
    ours, quick = (track_of(landmarks, each).transform_T23.astype(float) for each in (params, without_lag))
    middle_T12 = (48 - quick[:, None, :, 2]) @ np.linalg.inv(quick[:, :, :2]).transpose(0, 2, 1)
    assert np.linalg.norm(apply(ours, middle_T12)[:, 0] - 48, axis=1).max() <= max_lag_px + 0.02


def test_a_short_gap_is_bridged() -> None:
    placements = np.stack([upright(1.5, 2.0 * i) for i in range(40)])
    whole = track_of(landmarks_of(placements))
    holed = track_of(landmarks_of(placements, unseen=range(15, 22)))
    assert np.allclose(whole.transform_T23, holed.transform_T23, atol=1e-3)


@pytest.mark.parametrize("degrees", [-60, -20, 0, 35])
def test_yaw_of_a_turned_face(degrees: float) -> None:
    points = face_points(upright()[None])
    turned = points.copy()
    angle = np.radians(degrees)
    turned[..., 0] = points[..., 0] * np.cos(angle)
    turned[..., 2] = points[..., 0] * np.sin(angle)
    assert yaw_deg(turned)[0] == pytest.approx(degrees, abs=1)


def test_yaw_is_positive_for_heads_turned_to_both_sides() -> None:
    """The figure by which clips are rejected. A head that turns half of the time to each side is turned, too."""
    placements = np.stack([upright(1.5, 100.0)] * 20)
    for degrees in (np.full(20, 40.0), np.full(20, -40.0), np.repeat([-40.0, 40.0], 10)):
        landmarks = landmarks_of(placements)
        across = landmarks.points_MK3[:, :, 0].copy()
        landmarks.points_MK3[:, :, 0] = across * np.cos(np.radians(degrees))[:, None]
        landmarks.points_MK3[:, :, 2] = across * np.sin(np.radians(degrees))[:, None]
        assert track_of(landmarks).yaw_deg == pytest.approx(40, abs=1)


def test_the_larger_face_is_chosen_in_any_order() -> None:
    large = np.stack([upright(1.5, 300.0 + i) for i in range(30)])
    small = np.stack([upright(0.7, 10.0) for _ in range(30)])
    for order in ((large, small), (small, large)):
        landmarks = landmarks_of(*order)
        assert landmarks.num_faces == 2
        assert track_of(landmarks).mouth_width_px == pytest.approx(45.02 * 1.5, rel=0.01)


def test_a_passing_large_face_is_not_chosen() -> None:
    """And the two faces do not swap when their order changes."""
    stays = np.stack([upright(1.0, 10.0) for _ in range(60)])
    passes = np.stack([upright(1.6, 300.0) for _ in range(60)])
    landmarks = landmarks_of(passes, stays, shuffled=True, unseen_first=range(15, 60))
    face = main_face(landmarks, PARAMS)
    assert face is not None
    assert face.frame_N.tolist() == list(range(60))
    assert np.ptp(face.points_NK3[:, 0, 0]) == 0


def test_frames_where_the_mouth_is_outside_the_picture_do_not_count() -> None:
    placements = np.stack([upright(1.0, 20.0 * i) for i in range(30)])
    face = main_face(landmarks_of(placements), PARAMS)
    assert face is not None
    assert len(face.frame_N) == 30
    within = main_face(replace(landmarks_of(placements), width=640, height=480), PARAMS)
    assert within is not None
    # a quarter of the crop, 24 of its 96 px, may lie outside, and grid points are 6 px apart
    edge_px = 640 - (129.31 + 20 * np.arange(30))
    assert np.abs(len(within.frame_N) - np.sum(edge_px > 24)) <= 1
    assert within.outside_frames == sorted(set(range(30)) - set(within.frame_N.tolist()))


def test_no_landmark_is_kept_twice() -> None:
    assert len(set(KEPT)) == len(KEPT)
    assert main_face(landmarks_of(np.zeros((0, 2, 3))), PARAMS) is None
