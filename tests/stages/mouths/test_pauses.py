"""Where a video is cut, with known faces and known lips."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.mouths.pieces import Cut, next_cut, runs
from stages.settings import CropParams, InferenceParams
from tests.support.faces import landmarks_of

CROP = CropParams()
FPS = 25
EYES_PX = 54.3


def speech(num_frames: int, *rests: tuple[int, int]) -> np.ndarray:
    """Returns the lip opening in pixels of a mouth that rests only in these frame ranges."""
    opening_px = 8 + 6 * np.sin(np.arange(num_frames) * 1.3)
    for begin, end in rests:
        opening_px[begin:end] = 1.0
    return opening_px


def cut(
    opening_px: np.ndarray,
    ended: bool = True,
    live: bool = False,
    unseen: tuple[int, ...] = (),
    scene_cuts: tuple[int, ...] = (),
    **params: float,
) -> Cut | None:
    placements = np.tile(np.array([[1.0, 0, 0], [0, 1, 0]]), (len(opening_px), 1, 1))
    found = landmarks_of(placements, opening_px=opening_px, unseen=unseen)
    found = replace(
        found,
        cut_frame_C=np.array(scene_cuts, np.int32),
        cut_box_C4=np.tile(found.box_M4[:1], (len(scene_cuts), 1)),
    )
    settings_ = InferenceParams.model_validate({"longest_s": 4, "overlap_s": 1} | params)
    return next_cut(found, CROP, settings_, ended, live)


def test_a_short_video_is_not_cut() -> None:
    assert cut(speech(100, (40, 60))) == Cut(100, 100)
    assert cut(speech(100, (40, 60)), ended=False) is None


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("scene_cuts", [(33,), (33, 70), (0, 33)])
def test_a_clip_ends_at_the_first_hard_cut(scene_cuts: tuple[int, ...], ended: bool, live: bool) -> None:
    """The cut comes before the longest length of a clip. A cut at frame 0 is the start of the clip."""
    assert cut(speech(80), ended, live, scene_cuts=scene_cuts) == Cut(33, 33)
    assert cut(speech(80), ended, live, unseen=tuple(range(5, 25)), scene_cuts=scene_cuts) == Cut(5, 5)


def test_a_cut_elsewhere_in_the_picture_is_ignored() -> None:
    """A screen behind the speaker changes its picture."""
    placements = np.tile(np.array([[1.0, 0, 0], [0, 1, 0]]), (80, 1, 1))
    found = landmarks_of(placements, opening_px=speech(80))
    found = replace(
        found,
        cut_frame_C=np.array([33], np.int32),
        cut_box_C4=np.array([[900, 100, 1000, 200]], np.float32),
    )
    params = InferenceParams.model_validate({"longest_s": 4, "overlap_s": 1})
    assert next_cut(found, CROP, params, True) == Cut(80, 80)


def test_a_hard_cut_beyond_the_longest_clip_changes_nothing() -> None:
    assert cut(speech(140), scene_cuts=(120,)) == cut(speech(140))


@pytest.mark.parametrize("ended", [True, False])
def test_the_cut_is_in_the_middle_of_the_longest_pause(ended: bool) -> None:
    found = cut(speech(140, (30, 41), (60, 76), (85, 97)), ended)
    assert found is not None and found.end == found.begin
    assert abs(found.end - 68) <= 1


def test_a_pause_at_the_start_makes_no_tiny_clip() -> None:
    found = cut(speech(140, (0, 20), (60, 72)))
    assert found is not None and 60 < found.end < 72


@pytest.mark.parametrize("rest", [(50, 59), (102, 130)])
def test_windows_overlap_without_a_usable_pause(rest: tuple[int, int]) -> None:
    """The first rest is too short, the second too late."""
    assert cut(speech(140, rest)) == Cut(100, 75)


def test_open_lips_can_rest() -> None:
    """They stay open at a third of the distance between the eyes."""
    opening_px = speech(140)
    opening_px[60:80] = EYES_PX / 3
    found = cut(opening_px)
    assert found is not None and abs(found.end - 70) <= 1


def test_a_clip_ends_where_no_face_is_and_the_gap_is_one_clip() -> None:
    gap = tuple(range(50, 80))
    assert cut(speech(90), unseen=gap) == Cut(50, 50)
    # the gap itself
    assert cut(speech(40), unseen=tuple(range(30))) == Cut(30, 30)
    assert cut(speech(40), unseen=tuple(range(40))) == Cut(40, 40)
    assert cut(speech(40), ended=False, unseen=tuple(range(40))) is None


def test_a_short_absence_is_bridged() -> None:
    assert cut(speech(90), unseen=tuple(range(50, 60))) == Cut(90, 90)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), min_size=1, max_size=8),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_frame_belongs_to_a_clip_no_longer_than_allowed(
    stretches: list[tuple[int, int]], live: bool
) -> None:
    """Speech, rest and no face in any order, cut to the end as in a stream."""
    opening_px = np.concatenate([speech(n) if kind else np.full(n, 1.0) for kind, n in stretches])
    absent = np.concatenate([np.full(n, kind == 3) for kind, n in stretches])
    begin, covered = 0, 0
    while begin < len(opening_px):
        unseen = tuple(np.flatnonzero(absent[begin:]).tolist())
        found = cut(opening_px[begin:], live=live, unseen=unseen)
        assert found is not None and 0 < found.begin <= found.end <= len(opening_px) - begin
        is_gap = absent[begin : begin + found.end].all()
        assert found.end <= 100 or is_gap
        assert begin <= covered
        covered = max(covered, begin + found.end)
        begin += found.begin if begin + found.end < len(opening_px) or found.begin == found.end else found.end
    assert covered == len(opening_px)


def test_live_the_first_pause_ends_the_clip() -> None:
    assert cut(speech(70, (40, 52)), ended=False) is None
    found = cut(speech(70, (40, 52), (55, 70)), ended=False, live=True)
    assert found is not None and 40 < found.end < 52


def test_live_rest_before_speech_is_left_out() -> None:
    found = cut(speech(60, (0, 60)), ended=False, live=True)
    assert found is not None and found.end == found.begin < 60


def test_runs() -> None:
    assert runs(np.array([True, True, False, True])) == [(0, 2), (3, 4)]
    assert runs(np.zeros(0, bool)) == []
