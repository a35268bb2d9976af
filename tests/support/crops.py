"""Synthetic clips that compress like mouth crops: smooth, slowly moving, with grain."""

import cv2
import numpy as np


def crop_like(num_frames: int, height: int = 96, width: int = 96, seed: int = 0) -> np.ndarray:
    """Returns uint8, T×H×W, with gray levels from 0 to 255, which limited-range video would clip."""
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.random((height * 2, width * 2)).astype(np.float32), (0, 0), 4)
    texture = (texture - texture.min()) / max(float(np.ptp(texture)), 1e-6) * 375 - 60
    frames = np.empty((num_frames, height, width), np.uint8)
    for t in range(num_frames):
        down, right = round(3 * np.sin(t / 5)), round(2 * np.cos(t / 7))
        moved = np.roll(texture, (down, right), (0, 1))[height // 2 :, width // 2 :][:height, :width]
        frames[t] = np.clip(moved + rng.normal(5, 2, (height, width)), 0, 255)
    return frames


def mean_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())
