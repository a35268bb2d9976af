"""Limits on the requests to the server."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """A request beyond one of these limits is refused with a message."""

    max_upload_mb: float = 100.0
    """Size of the whole request, 1 MB = 10^6 bytes."""
    max_video_s: float = 60.0
    timeout_s: float = 120.0
    """Time for one video, from the start of its reading."""
    max_places: int = 8
    """Number of videos that are uploaded, waiting or being read."""
    pause_s: float = 10.0
    """A connection without any transfer for this time is closed."""
    slowest_kb_s: float = 50.0
    """A slower upload, as a mean over about `pause_s`, is stopped; 1 kB = 10^3 bytes."""

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * 1e6)
