"""The page of `pipeline qc`: its content, and its HTML text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.pages import histogram
from stages.pages.histogram import Histogram
from stages.pages.page import rendered
from stages.statistics.quality import Quality


@dataclass(frozen=True, slots=True)
class Picture:
    """Images as data: URIs, shown next to each other. `missing` says why there are none."""

    uris: tuple[str, ...]
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """One usable clip: its film strip, the figure that chose it (None: random), and other figures by short name."""

    clip_id: str
    split: str
    speaker: str | None
    label: str
    figure: str | None
    facts: Sequence[tuple[str, str]]
    strip: Picture


@dataclass(frozen=True, slots=True)
class CardList:
    title: str
    about: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class RejectedClip:
    clip_id: str
    speaker: str | None
    media: str
    detail: str
    still: Picture


@dataclass(frozen=True, slots=True)
class Rejection:
    """The clips of one reason, some of them as examples."""

    reason: str
    explained: str
    num_clips: int
    examples: tuple[RejectedClip, ...]


@dataclass(frozen=True, slots=True)
class Speaker:
    """Name, counts, and the mean of each figure over the usable clips, as text by the figure's title."""

    name: str
    num_ok: int
    num_rejected: int
    means: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures of the whole corpus. Shares are None if nothing was measured."""

    num_ok: int
    num_rejected: int
    num_face_videos: int
    num_ready_mouths: int
    hours: float
    num_speakers: int
    num_ok_speakers: int
    source_frames: int
    landmarked_frames: int
    num_frames: int
    bridged_frames: int

    @property
    def num_clips(self) -> int:
        return self.num_ok + self.num_rejected

    @property
    def ok_share(self) -> float:
        return self.num_ok / self.num_clips

    @property
    def landmarked_share(self) -> float | None:
        return self.landmarked_frames / self.source_frames if self.source_frames else None

    @property
    def bridged_share(self) -> float | None:
        return self.bridged_frames / self.num_frames if self.num_frames else None


@dataclass(frozen=True, slots=True)
class QcPage:
    """Everything on the page. `warnings` are at its top."""

    totals: Totals
    warnings: Sequence[str]
    limits: Mapping[str, str]
    histograms: Sequence[Histogram]
    random: CardList
    extremes: Sequence[CardList]
    speaker_columns: Sequence[Quality]
    speakers: Sequence[Speaker]
    speaker_strips: CardList
    rejections: Sequence[Rejection]
    seed: int


def render_qc_page(page: QcPage) -> str:
    """Returns the page as HTML. It fetches nothing and runs no script, and every text of the corpus is escaped."""
    return rendered("qc.html.j2", page=page, totals=page.totals, box=histogram)
