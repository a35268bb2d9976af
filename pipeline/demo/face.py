"""Makes one photograph speak: a speaker's canvas, and frames of it with a warped mouth.

The mouth moves by columns. Each column of the mouth region crosses the same lines: nose base, outer and inner
edge of the upper lip, inner and outer edge of the lower lip, dimple, chin, neck. Their rows in the photograph
are known; their rows in a frame follow from the mouth parameters; between two lines the picture is stretched.
This warp cannot fold, closes the lips sharply and takes about a millisecond (a thin-plate warp oscillates on
closed lips, a Gaussian warp does not close them). The inner mouth is painted: cavity, tongue, upper teeth
fixed to the skull, lower teeth fixed to the jaw, shadow of the upper lip.

Legend: h, w rows and columns of the mouth region; K lines; C colours (BGR). Rows and columns count from the
mouth's centre, in pixels of the canvas.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.demo.motion import ClipMotion
from pipeline.demo.photograph import (
    CANVAS_WIDTH,
    CHIN_PX,
    INNER_LOWER_PX,
    INNER_UPPER_PX,
    ORIGIN_C,
    OUTER_LOWER_PX,
    OUTER_UPPER_PX,
    SCALE,
    Floats,
    Image,
    Speaker,
    canvas,
    contour,
    rows_of,
)

FRAME_WIDTH: Final = 640
FRAME_HEIGHT: Final = 360

# Extent of the mouth region from the mouth's centre, pixels of the photograph: cheeks, nose base, below the collar.
_REACH_X_PX: Final = 42.0
_REACH_UP_PX: Final = 13.0
_REACH_DOWN_PX: Final = 48.0

# A mouth at rest has its corners 0.85 iris distances apart (0.83 in the mean face of FACTS.md). The lips are
# a little thicker than in the photograph, where a smile makes them thinner.
_REST_HALF_WIDTH_PX: Final = 18.2
_UPPER_LIP_PX: Final = 4.3
_LOWER_LIP_PX: Final = 6.0
_WIDEST_GAP_PX: Final = 18.0
_CLOSED_GAP_PX: Final = 0.9  # the dark line of closed lips; the video codec would remove a thinner line
_SPREAD: Final = 0.21  # share of the width that a full spread adds
_PUCKER: Final = 0.36  # share of the width that full rounding removes
_NECK_PX: Final = 12.0  # length below the chin where the skin still moves with it

_CAVITY_BGR: Final = np.array([26, 18, 44], np.float32)
_TEETH_BGR: Final = np.array([212, 226, 232], np.float32)
_TONGUE_BGR: Final = np.array([98, 94, 188], np.float32)


class Face:
    """A speaker's canvas, ready for drawing. Drawing changes it: use one Face for one clip at a time."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        ox, oy = ORIGIN_C
        self._left = round(ox - _REACH_X_PX * SCALE)
        self._right = round(ox + _REACH_X_PX * SCALE)
        self._top = round(oy - _REACH_UP_PX * SCALE)
        self._bottom = round(oy + _REACH_DOWN_PX * SCALE)
        self._x_w = np.arange(self._left, self._right, dtype=np.float32) - np.float32(ox)
        self._y_h1 = (np.arange(self._top, self._bottom, dtype=np.float32) - np.float32(oy))[:, None]
        corners_c = contour(OUTER_UPPER_PX)[[0, -1], 0]
        self._centre = float(corners_c.mean())
        self._half = float(corners_c[1] - corners_c[0]) / 2
        self._canvas = self._lit(self._closed(canvas()))
        self._region_hwC = self._canvas[self._top : self._bottom, self._left : self._right].copy()

    def _closed(self, image: Image) -> Image:
        """Paints over the gap of the smile, so that no tooth is visible when the mouth is warped shut."""
        region = image[self._top : self._bottom, self._left : self._right]
        x, y = self._x_w, self._y_h1
        upper, inner = rows_of(OUTER_UPPER_PX, x), rows_of(INNER_UPPER_PX, x)
        inner_low, lower = rows_of(INNER_LOWER_PX, x), rows_of(OUTER_LOWER_PX, x)
        inside = np.clip((self._half + 1.5 - np.abs(x - self._centre)) / 3, 0, 1)
        lips = np.clip(y - upper + 0.5, 0, 1) * np.clip(lower - y + 0.5, 0, 1) * inside
        lips = cv2.GaussianBlur(lips, (0, 0), 1.2)[..., None]
        # Shaded as in the photograph: the upper lip is in shade, the lower lip has a highlight below its edge.
        middle = (inner + inner_low) / 2
        below = np.clip((y - middle) / np.maximum(lower - middle, 2), 0, 1)
        shade = np.where(y < middle, 0.80, 0.92 + 0.22 * np.exp(-(((below - 0.62) / 0.22) ** 2)))
        tint = np.array(self.speaker.lip_bgr, np.float32) * shade[..., None].astype(np.float32)
        # Two pixels more than measured, since teeth and dark corners extend beyond the lines.
        gap = np.clip(y - inner + 2.5, 0, 1) * np.clip(inner_low + 2.5 - y, 0, 1) * inside
        gap = cv2.GaussianBlur(gap, (0, 0), 0.8)[..., None]
        cover = np.maximum(gap, self.speaker.lip_tint * lips)
        # The dark pits at the corners are outside the outline of the lips; their surroundings fill them.
        from_corner = np.abs(np.abs(x - self._centre) - self._half)
        pits = ((from_corner < 7) & (np.abs(y - (upper + 2)) < 6)).astype(np.uint8)
        filled = cv2.inpaint(region, pits, 3, cv2.INPAINT_TELEA).astype(np.float32)
        region[:] = (filled + cover * (tint - filled)).clip(0, 255).astype(np.uint8)
        return image

    def _lit(self, image: Image) -> Image:
        """Applies skin tone, gamma and side light to the whole picture, like another lamp and camera."""
        gains = np.array(self.speaker.skin_bgr, np.float32)
        table = 255 * (np.arange(256, dtype=np.float32) / 255) ** self.speaker.gamma
        ramp_W = 1 + 2 * self.speaker.side_light * np.linspace(1, -1, CANVAS_WIDTH, dtype=np.float32)
        lit = table[image] * gains * ramp_W.clip(0.6, 1.4)[None, :, None]
        return np.asarray(lit.clip(0, 255), np.uint8)

    def _mouth(self, parameters: NDArray[np.float64]) -> Image:
        """Draws the mouth region for one row of mouth parameters (fields of MouthShape), uint8 (h, w, C)."""
        speaker = self.speaker
        opening, width, rounding, press, tuck, teeth, tongue = (float(v) for v in parameters)
        half = SCALE * _REST_HALF_WIDTH_PX * speaker.mouth_width * (1 + _SPREAD * width - _PUCKER * rounding)
        gap = SCALE * (_CLOSED_GAP_PX + _WIDEST_GAP_PX * max(opening, 0.0))
        x, y, centre = self._x_w, self._y_h1, self._centre
        s = (x - centre) / half
        inside = np.clip(1 - np.abs(s), 0, 1)

        # The line where the lips meet; its corners rise as the mouth spreads.
        line = -0.6 * SCALE * (0.8 + 1.6 * width - rounding) * np.minimum(s * s, 1.3)
        # A rounded mouth opens only in its middle.
        bulge = np.clip(1 - np.abs(s / (1 - 0.22 * rounding)) ** (2.4 - 0.4 * rounding), 0, 1) ** 0.75
        profile = np.clip(1 - np.abs(s) ** 2.6, 0, 1) ** 0.8
        thick = 1 + 0.45 * rounding - 0.55 * press - 0.12 * max(opening, 0.0)
        upper = SCALE * _UPPER_LIP_PX * speaker.upper_lip * thick * profile + 0.3
        lower = SCALE * _LOWER_LIP_PX * speaker.lower_lip * thick * (1 - 0.6 * tuck) * profile + 0.3
        inner_up = line - 0.28 * gap * bulge - 0.5 * SCALE * tuck * bulge
        least = np.maximum(SCALE * _CLOSED_GAP_PX * inside**0.4, 0.25)
        inner_low = np.maximum(line + 0.72 * gap * bulge, inner_up + least)
        outer_up, outer_low = inner_up - upper, inner_low + lower
        jaw = 0.5 * gap - 1.2 * tuck

        # The corners map to those of the photograph; the motion decreases outside them.
        edge = SCALE * _REACH_X_PX - 1
        bends = [centre - edge, centre - half, centre + half, centre + edge]
        sources = [centre - edge, centre - self._half, centre + self._half, centre + edge]
        source_x = np.interp(x, bends, sources).astype(np.float32)

        # Below the lip the skin follows the jaw; the dimple line prevents a rubber-like stretch of the chin.
        fade = np.clip((edge - np.abs(x - centre)) / (0.45 * edge), 0, 1)
        fade = fade * fade * (3 - 2 * fade)
        nose, bottom = -SCALE * (_REACH_UP_PX - 1.5), SCALE * (_REACH_DOWN_PX - 1)
        chin = np.maximum(rows_of(CHIN_PX, x), SCALE * 12)
        lip_low = rows_of(OUTER_LOWER_PX, source_x)
        dimple = lip_low * 0.55 + chin * 0.45
        neck = np.minimum(chin + SCALE * _NECK_PX, bottom - 1)
        stretch = SCALE * speaker.chin_px
        dimple_to = np.maximum(dimple + (0.85 * jaw + 0.5 * stretch) * fade, outer_low + 2)
        chin_to = np.minimum(np.maximum(chin + (jaw + stretch) * fade, dimple_to + 1), bottom - 2.5)
        neck_to = np.maximum(neck, chin_to + 1)

        from_Kw = np.stack(
            [
                np.full_like(x, nose),
                rows_of(OUTER_UPPER_PX, source_x),
                rows_of(INNER_UPPER_PX, source_x),
                rows_of(INNER_LOWER_PX, source_x),
                lip_low,
                dimple,
                chin,
                neck,
                np.full_like(x, bottom),
            ]
        )
        to_Kw = np.stack(
            [
                np.full_like(x, nose),
                outer_up,
                inner_up,
                inner_low,
                outer_low,
                dimple_to,
                chin_to,
                neck_to,
                np.full_like(x, bottom),
            ]
        )
        # Beyond the corners the lips have no height, but the lines still need an order.
        from_Kw = np.maximum.accumulate(from_Kw, axis=0).astype(np.float32)
        to_Kw = np.maximum.accumulate(to_Kw + 1e-3 * np.arange(len(to_Kw))[:, None], axis=0).astype(
            np.float32
        )

        source_y = np.minimum(y, np.float32(nose)) + np.zeros_like(x)
        for k in range(len(to_Kw) - 1):
            span = to_Kw[k + 1] - to_Kw[k]
            source_y += np.clip(y - to_Kw[k], 0, span) * ((from_Kw[k + 1] - from_Kw[k]) / span)
        source_y += np.maximum(y - np.float32(bottom), 0)
        # Horizontal motion fades toward the nose and the jaw.
        along = np.interp(y[:, 0], [nose, nose * 0.45, SCALE * 14, SCALE * 34], [0.0, 1.0, 1.0, 0.0])
        map_x = x + along[:, None].astype(np.float32) * (source_x - x) - np.float32(self._left - ORIGIN_C[0])
        map_y = source_y - np.float32(self._top - ORIGIN_C[1])
        warped = cv2.remap(self._region_hwC, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        region = np.asarray(warped, np.uint8)
        self._paint_inside(region, s, inner_up, inner_low, gap, teeth, tongue, tuck)
        return region

    def _paint_inside(
        self,
        region: Image,
        s: Floats,
        inner_up: Floats,
        inner_low: Floats,
        gap: float,
        teeth: float,
        tongue: float,
        tuck: float,
    ) -> None:
        """Paints cavity, tongue, teeth and the upper lip's shadow between the inner lip lines."""
        left, right = np.searchsorted(s, [-1.02, 1.02])
        first = float(self._y_h1[0, 0])
        top = max(int(inner_up[left:right].min() - first) - 2, 0)
        y = self._y_h1[top : int(inner_low[left:right].max() - first) + 3]
        s, up, low = s[left:right], inner_up[left:right], inner_low[left:right]
        aside = np.abs(s)
        # A pixel of feather on each side: the dark lip line is not sharper than the picture.
        mask = np.clip((y - up) / 1.4 + 0.5, 0, 1) * np.clip((low - y) / 1.4 + 0.5, 0, 1)
        mask = mask * np.clip((1.02 - aside) / 0.08, 0, 1)
        colour = np.broadcast_to(_CAVITY_BGR, (*mask.shape, 3)).copy()

        tongue_top = low - (0.10 + 0.55 * tongue) * gap * np.clip(1 - (s / 0.75) ** 2, 0, 1)
        tongue_a = np.clip((y - tongue_top) / 2.5, 0, 1) * np.clip((0.85 - aside) / 0.1, 0, 1)
        colour += (tongue_a * (0.3 + 0.7 * tongue))[..., None] * (_TONGUE_BGR - colour)

        # The upper teeth are fixed to the skull, not to the lip; the lower teeth move with the jaw.
        arch = np.clip(1 - (s / 0.88) ** 2, 0, 1) ** 0.5
        visible = np.clip((np.maximum(low - up, 0.5) - 1.6) / 3.0, 0, 1)
        shown = min(max(max(teeth, tuck), 0.0), 1.0)
        upper_edge = SCALE * (-1.2 + (1.9 + 2.4 * shown) * arch)
        upper_a = np.clip((upper_edge - y) / 1.5 + 0.5, 0, 1) * np.clip((0.86 - aside) / 0.08, 0, 1)
        upper_a = upper_a * visible * (0.6 + 0.38 * shown)
        colour += upper_a[..., None] * (_TEETH_BGR * (1 - 0.25 * s[:, None] ** 2) - colour)
        lower_edge = low - SCALE * (0.6 + 3.0 * max(teeth, 0.0)) * arch
        lower_a = np.clip((y - lower_edge) / 1.5 + 0.5, 0, 1) * np.clip((0.74 - aside) / 0.08, 0, 1)
        lower_a = lower_a * visible * 0.9 * min(max(teeth, 0.0), 1.0) * (1 - min(max(tuck, 0.0), 1.0))
        colour += lower_a[..., None] * (_TEETH_BGR * 0.88 - colour)

        shadow = 1 - 0.5 * np.clip(1 - (y - up) / (SCALE * 2.0), 0, 1)
        # Lamp and camera darken the teeth like the skin, but less.
        tone = 0.96 * 0.92 ** max(self.speaker.gamma - 1, 0.0)
        colour = (colour * shadow[..., None] * tone).clip(0, 255)
        patch = region[top : top + len(y), left:right]
        patch[:] = (patch + mask[..., None] * (colour - patch)).astype(np.uint8)

    def draw(self, motion: ClipMotion, frame: int) -> Image:
        """Draws frame number `frame` of a clip, uint8 BGR (360, 640, 3), contiguous."""
        speaker = self.speaker
        self._canvas[self._top : self._bottom, self._left : self._right] = self._mouth(motion.mouth[frame])
        aspect = speaker.aspect**0.5
        shape = np.array([[aspect, speaker.shear], [0.0, motion.squash[frame] / aspect]])
        if speaker.mirrored:
            shape[:, 0] *= -1
        cos, sin = np.cos(motion.roll[frame]), np.sin(motion.roll[frame])
        linear = speaker.zoom * motion.zoom[frame] * np.array([[cos, -sin], [sin, cos]]) @ shape
        # The middle of the face, a little above the mouth, stays near the frame's centre.
        pivot = np.array(ORIGIN_C) - np.array([0.0, 16.0 * SCALE])
        target = np.array([FRAME_WIDTH / 2, FRAME_HEIGHT / 2 + 14.0]) + motion.shift[frame]
        matrix = np.hstack([linear, (target - linear @ pivot)[:, None]])
        size = (FRAME_WIDTH, FRAME_HEIGHT)
        image = cv2.warpAffine(
            self._canvas, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        return np.asarray(cv2.convertScaleAbs(image, alpha=float(motion.light[frame])), np.uint8)
