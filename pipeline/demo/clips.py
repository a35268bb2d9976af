"""Files of one clip: H.264 video and silent WAV, each whole or absent, equal bytes for equal frames."""

import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np

from pipeline.demo.face import FRAME_HEIGHT, FRAME_WIDTH
from pipeline.demo.motion import FPS
from shards.files import atomic_file

WAV_HZ: Final = 8000
# veryfast at 21 made a prototype's files a fifth of superfast's. One thread: the bytes differ with the count.
_X264_OPTIONS: Final = {"preset": "veryfast", "crf": "21", "threads": "1"}


def write_face_video(path: Path, frames: Iterable[Any]) -> int:
    """H.264 yuv420p MP4 at 30 fps from uint8 BGR frames (360, 640, 3); gives the number of frames."""
    num_frames = 0
    exact = {"fflags": "+bitexact"}  # no library versions in the file
    with atomic_file(path) as file, av.open(file, "w", format="mp4", options=exact) as container:
        stream = container.add_stream("libx264", rate=FPS, options=dict(_X264_OPTIONS))
        stream.width, stream.height, stream.pix_fmt = FRAME_WIDTH, FRAME_HEIGHT, "yuv420p"
        stream.thread_count = 1
        for image in frames:
            planes = np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
            num_frames += 1
        container.mux(stream.encode())
    return num_frames


def write_silence(path: Path, seconds: float) -> None:
    """A silent WAV: 8 kHz, mono, 8 bits (whose silence is 128)."""
    with atomic_file(path) as file, wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(WAV_HZ)
        sound.writeframes(b"\x80" * round(seconds * WAV_HZ))
