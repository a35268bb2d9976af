"""Compares pixels of a decoded picture with FFmpeg's own conversion and OpenCV's warp."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from stages.videos.picture import SourceFrame, Window
from tests.support.videos import photograph

SMOOTH = cv2.GaussianBlur(photograph(), (0, 0), 4)
"""Without fine colour detail: chroma planes have only a quarter of the pixels."""


def frame_of(
    pix_fmt: str, colorspace: int = 2, color_range: int = 0, bgr: np.ndarray = SMOOTH
) -> SourceFrame:
    """Returns the photograph as a decoder returns it. FFmpeg's numbers: BT.709 is 1, BT.601 5, full range 2."""
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(bgr), format="bgr24")
    return SourceFrame(
        0,
        0.0,
        picture.reformat(
            format=pix_fmt,
            dst_colorspace=colorspace if colorspace != 2 else None,
            dst_color_range=color_range or None,
        ),
    )


@pytest.mark.parametrize(
    "pix_fmt", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "rgb24", "yuv420p10le"]
)
def test_a_view_has_the_colours_of_the_whole_picture(pix_fmt: str) -> None:
    frame = frame_of(pix_fmt)
    side = 2 * (min(frame.size) // 2)
    view = frame.rgb_view(np.array([[1.0, 0, 0], [0, 1, 0]]), side, repeat_border=True)
    assert view.shape == (side, side, 3)
    assert view.dtype == np.float32
    expected = SMOOTH[:side, :side, ::-1]
    assert np.abs(view - expected).mean() < 2
    assert np.abs(view - expected).max() < 16


def test_a_view_is_rotated_and_scaled_like_opencv() -> None:
    frame = frame_of("yuv444p")
    to_picture = np.array([[0.7, -0.3, 120.0], [0.3, 0.7, 60.0]])
    view = frame.rgb_view(to_picture, 128, repeat_border=True)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    expected = cv2.warpAffine(
        frame.rgb_HW3(), to_picture, (128, 128), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    assert np.abs(view - expected).mean() < 2


def test_outside_the_picture_a_view_is_black_or_repeats_the_border() -> None:
    frame = frame_of("yuv420p", bgr=np.full((64, 64, 3), 200, np.uint8))
    left_of_it = np.array([[1.0, 0, -80], [0, 1, 0]])
    assert frame.rgb_view(left_of_it, 64, repeat_border=False).max() < 2
    assert np.abs(frame.rgb_view(left_of_it, 64, repeat_border=True) - 200).max() < 3


@pytest.mark.parametrize(("colorspace", "color_range"), [(1, 1), (5, 1), (5, 2)])
def test_the_colour_space_and_range_of_the_decoder_are_used(
    colorspace: int, color_range: int, tmp_path: Path
) -> None:
    """With saturated colours, which differ by up to 40 levels between BT.709 and BT.601. The reference is FFmpeg."""
    bars = np.repeat(np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0], [0, 255, 255]], np.uint8), 32, axis=0)
    picture = np.repeat(bars[None], 128, axis=0)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, color_range
        given = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(
            format="yuv444p", dst_colorspace=colorspace, dst_color_range=color_range
        )
        container.mux(stream.encode(given))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        frame = SourceFrame(0, 0.0, next(container.decode(video=0)))
        assert (int(frame.picture.colorspace), int(frame.picture.color_range)) == (colorspace, color_range)
        view = frame.rgb_view(np.array([[1.0, 0, 0], [0, 1, 0]]), 128, repeat_border=True)
    inside = view[:, 8::32][:, :, ::-1]
    assert np.abs(inside - picture[:, 8::32]).max() < 6


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "gray", "nv12", "rgb24", "yuv420p10le"])
def test_a_gray_window_equals_that_part_of_the_picture(pix_fmt: str) -> None:
    frame = frame_of(pix_fmt)
    whole = frame.gray()
    assert np.array_equal(frame.gray(Window(3, 5, 200, 100)), whole[5:100, 3:200])
    assert whole.flags.c_contiguous
    before = whole.copy()
    whole[:] = 0  # the caller owns the returned picture
    assert np.array_equal(frame.gray(), before)


@pytest.mark.parametrize("shape", [(1, 256), (4, 64), (256, 1), (2, 128)])
def test_limited_range_is_expanded_by_the_formula(shape: tuple[int, int]) -> None:
    """(Y - 16) 255 / 219, rounded and clipped, for every Y, also with one row, one column and a width of two."""
    luma = np.arange(256, dtype=np.uint8).reshape(shape)
    picture = av.VideoFrame(shape[1], shape[0], "gray")
    plane = picture.planes[0]
    rows = np.zeros((shape[0], plane.line_size), np.uint8)
    rows[:, : shape[1]] = luma
    plane.update(rows)
    picture.color_range = 1
    gray = SourceFrame(0, 0.0, picture).gray()
    assert np.array_equal(gray, np.clip(np.rint((luma.astype(float) - 16) * 255 / 219), 0, 255))
