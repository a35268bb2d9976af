"""Videos whose stored pictures differ from the displayed ones: by ratio, orientation, transfer or bits."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from shards.schema import Transfer
from stages.settings import CropParams
from stages.videos.picture import SourceFrame
from stages.videos.video import decode
from tests.support.videos import photograph

PARAMS = CropParams()
SHOWN = cv2.GaussianBlur(photograph(), (0, 0), 2)
"""The picture that a player shows; BGR, 512 x 288."""
SHOWN_GRAY = cv2.cvtColor(SHOWN, cv2.COLOR_BGR2GRAY).astype(int)

TRC = {Transfer.PQ: 16, Transfer.HLG: 18}
"""FFmpeg's numbers."""

ORIENTATIONS: dict[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]] = {
    (1, 0, 0, 1): lambda shown: shown,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (-1, 0, 0, -1): lambda shown: np.rot90(shown, 2),
    (0, 1, 1, 0): lambda shown: shown.swapaxes(0, 1),
    (0, -1, -1, 0): lambda shown: np.rot90(shown.swapaxes(0, 1), 2),
    (0, 1, -1, 0): lambda shown: np.rot90(shown),
    (0, -1, 1, 0): lambda shown: np.rot90(shown, -1),
}
"""a, b, c, d of the display matrix, and how the picture is stored that a player turns upright with it."""


def stored(shown: np.ndarray, matrix: tuple[int, int, int, int], ratio: Fraction) -> np.ndarray:
    """Returns the picture as stored. The ratio is that of stored pixels, before they are turned upright."""
    turned = ORIENTATIONS[matrix](shown)
    height, width = turned.shape[:2]
    size = (2 * round(width / ratio / 2), height)
    return cv2.resize(np.ascontiguousarray(turned), size, interpolation=cv2.INTER_CUBIC)


def first_of(path: Path) -> SourceFrame:
    return next(iter(decode(path, PARAMS)))


def write_planes(
    path: Path,
    planes: list[np.ndarray],
    pix_fmt: str,
    transfer: int = 2,
    color_range: int = 1,
    colorspace: int = 2,
    num_frames: int = 1,
    pixel_ratio: Fraction | None = None,
) -> Path:
    """Writes samples unchanged; lossless except for mp4. `transfer`: 16 is PQ, 18 HLG; `colorspace`: 9 is BT.2020."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pix_fmt)
    kind = np.uint8 if planes[0].dtype == np.uint8 else np.uint16
    for plane, samples in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(plane, kind).reshape(plane.height, -1)
        rows[:, : samples.shape[1]] = samples
    frame.color_range, frame.colorspace = color_range, colorspace
    with av.open(str(path), "w") as container:
        is_mp4 = path.suffix == ".mp4"
        stream = container.add_stream("libx264" if is_mp4 else "ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.options = {"crf": "4"} if is_mp4 else {}
        context = stream.codec_context
        context.color_trc, context.color_range, context.colorspace = transfer, color_range, colorspace
        if pixel_ratio is not None:
            context.sample_aspect_ratio = pixel_ratio
        for number in range(num_frames):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def pq_signal(nits: np.ndarray) -> np.ndarray:
    """BT.2100, table 4: the inverse of PQ's EOTF."""
    y = (nits / 10_000) ** 0.1593017578125
    return np.asarray(((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375)


def hlg_signal(nits_HW3: np.ndarray) -> np.ndarray:
    """BT.2100, table 5: the inverse of the OOTF at 1,000 nits, then the OETF, of each colour."""
    display = nits_HW3 / 1000
    luminance = (display @ [0.2627, 0.678, 0.0593])[..., None]
    scene = display * np.maximum(luminance, 1e-9) ** (1 / 1.2 - 1)
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.asarray(np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper))


def hdr_planes(
    bgr: np.ndarray, transfer: Transfer, white_nits: float, bits: int, is_full: bool
) -> list[np.ndarray]:
    """Returns 4:2:0 code values of an SDR picture with that light for white: BT.1886, BT.2087, BT.2100."""
    linear_HW3 = white_nits * (bgr[..., ::-1] / 255.0) ** 2.4
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.088, 0.8956]])
    nits_HW3 = linear_HW3 @ to_2020.T
    signal_HW3 = pq_signal(nits_HW3) if transfer is Transfer.PQ else hlg_signal(nits_HW3)
    luma = signal_HW3 @ [0.2627, 0.678, 0.0593]
    chroma = [(signal_HW3[..., 2] - luma) / 1.8814, (signal_HW3[..., 0] - luma) / 1.4746]
    chroma = [cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for plane in chroma]
    if is_full:
        coded = [luma * (2**bits - 1)] + [plane * (2**bits - 1) + 2 ** (bits - 1) for plane in chroma]
    else:
        unit = 2 ** (bits - 8)
        coded = [(219 * luma + 16) * unit] + [(224 * plane + 128) * unit for plane in chroma]
    return [np.rint(plane).astype(np.uint8 if bits == 8 else np.uint16) for plane in coded]


def write_hdr(
    path: Path, pictures: list[np.ndarray], transfer: Transfer, white_nits: float, options: dict[str, str]
) -> Path:
    """Writes H.264 of 10 bit from BGR pictures in SDR, with that light for white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"} | options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_range, context.colorspace = TRC[transfer], 1, 9
        for number, picture in enumerate(pictures):
            planes = hdr_planes(picture, transfer, white_nits, 10, is_full=False)
            samples = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, stream.width)
            frame = av.VideoFrame.from_ndarray(samples, format="yuv420p10le")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
