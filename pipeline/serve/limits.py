"""What a server takes from those who ask it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Beyond these a request is refused, with words that say so."""

    max_upload_mb: float = 100.0
    """The whole request, 1 MB = 10^6 bytes."""
    max_video_s: float = 60.0
    timeout_s: float = 120.0
    """For one video, from its turn on."""
    max_places: int = 8
    """Videos on their way in, waiting or being read."""
    pause_s: float = 10.0
    """Who sends or takes nothing for so long is hung up on."""
    slowest_kb_s: float = 50.0
    """An upload that comes more slowly, as a mean over about `pause_s`, is given up; 1 kB = 10^3 bytes."""

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * 1e6)
