"""Finds a system font for a text, Han characters included, and draws captions with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager, ft2font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.errors import MachineError

PREFERRED = (
    *("notosanscjk-regular", "notosanscjksc-regular", "notosanssc-regular", "sourcehansans", "wqy-microhei"),
    *("wqy-zenhei", "pingfang", "hiragino sans gb", "stheiti", "msyh", "simhei", "dejavusans"),
)
"""Starts of the file names of fonts made for screens, best first; others are tried after them."""
SHOWN = 20
"""Number of missing characters that a message lists."""
_SIMPLIFIED = (" SC", " CN", "GB")
"""Marks of the face in a font collection that draws characters as printed in mainland China."""


@dataclass(frozen=True, slots=True)
class CaptionFont:
    """A face in a font file."""

    path: Path
    index: int
    name: str

    def strip(self, lines: Sequence[str], size_px: int, max_width_px: int) -> NDArray[np.uint8]:
        """Draws the lines, centred, white with a black edge: (height, width, 4), RGBA, uint8.

        Uses a smaller size if a line would be wider than `max_width_px`.
        """
        edge = max(1, size_px // 12)
        font = self._at(size_px)
        widest = max(font.getlength(line) for line in lines) + 2 * edge
        if widest > max_width_px:
            size_px = max(6, int(size_px * max_width_px / widest))
            edge, font = max(1, size_px // 12), self._at(size_px)
        text = "\n".join(lines)
        drawing = ImageDraw.Draw(Image.new("RGBA", (1, 1)))
        left, top, right, bottom = map(
            round, drawing.multiline_textbbox((0, 0), text, font, align="center", stroke_width=edge)
        )
        picture = Image.new("RGBA", (right - left + 2, bottom - top + 2), (0, 0, 0, 0))
        ImageDraw.Draw(picture).multiline_text(
            (1 - left, 1 - top), text, "white", font, align="center", stroke_width=edge, stroke_fill="black"
        )
        return np.asarray(picture)[:, :max_width_px]

    def _at(self, size_px: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(str(self.path), size_px, index=self.index)


def font_for(text: str) -> CaptionFont:
    """Returns a font that has every character of `text`.

    Tries known good fonts first, so that the same machine always draws the same captions. Raises MachineError that
    names the font to install if no font has them all.
    """
    wanted = {ord(character) for character in text if not character.isspace()}
    # not matplotlib's own list of fonts: it is cached and misses fonts installed later
    files = {*font_manager.findSystemFonts(), font_manager.findfont("DejaVu Sans")}
    missing = {
        path: wanted - _characters(path) for path in sorted(files, key=lambda file: (_rank(file), file))
    }
    best = min(missing, key=lambda path: len(missing[path]))
    if not missing[best]:
        return _face(Path(best))
    shown = "".join(sorted(map(chr, missing[best])))[:SHOWN]
    more = ", …" if len(missing[best]) > SHOWN else ""
    raise MachineError(
        f"no font on this system has all {len(wanted)} characters that captions may need: {Path(best).name} lacks "
        f"{len(missing[best])} of them ({shown}{more}); install a font with Han characters (Debian and Ubuntu: "
        "apt install fonts-noto-cjk, Fedora: dnf install google-noto-sans-cjk-fonts), or omit --burn-in"
    )


def _rank(file: str) -> int:
    name = Path(file).name.lower()
    return next((i for i, known in enumerate(PREFERRED) if name.startswith(known)), len(PREFERRED))


@lru_cache(256)
def _characters(path: str) -> frozenset[int]:
    if "lastresort" in path.lower():
        return frozenset()  # it draws a box for every character
    try:
        return frozenset(ft2font.FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()  # a damaged font


def _face(path: Path) -> CaptionFont:
    """Returns the face for simplified characters of a font collection, else its first face."""
    names = []
    index = 0
    while True:
        try:
            names.append(" ".join(map(str, ImageFont.truetype(str(path), 10, index=index).getname())))
        except OSError:
            break  # past the last face
        if path.suffix.lower() not in (".ttc", ".otc"):
            break
        index += 1
    proper = [
        i for i, name in enumerate(names) if any(mark in name for mark in _SIMPLIFIED) and "Mono" not in name
    ]
    chosen = proper[0] if proper else 0
    return CaptionFont(path, chosen, names[chosen])
