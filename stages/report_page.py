"""The report's page: the verdict, and what the templates draw from the figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.spikes import Spikes
from stages import report_clips
from stages.pages import nice_ticks, percent, rendered
from stages.quality import EXPLAINED
from stages.report_charts import calibration_chart, quality_charts, training_charts
from stages.report_clips import ShownClip, shown_clip
from stages.report_figures import CountedClip, Figures, interval_about

# A CER below this share of both blind and chance CER counts as "far below both" (DESIGN.md names no figure).
FAR_BELOW = 0.8


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What read the clips."""

    preset: str
    num_parameters: int
    epoch: int
    normaliser: str
    decoder: str
    """Its name and settings, in a line for people."""


@dataclass(frozen=True, slots=True)
class ReportContext:
    """Everything in the report that does not come from the hypotheses.

    `warnings` stand at the top of the page; `speaker_overlap` counts the speakers of the split that were also
    trained on. `curves` has a row an epoch: epoch, train_loss, val_loss, val_cer,
    learning_rate, clips_per_s, data_wait; None where not measured. `rejections` counts crops.parquet by reason,
    `clip_totals` the usable clips by split. `clip_of` gives a clip's mouth crops, uint8, frames × height × width,
    `spikes_of` what a CTC head says of them over time, None where the model has none.
    """

    corpus: str
    split: str
    seed: int
    num_examples: int
    resamples: int
    model: ModelFacts
    clip_of: Callable[[str], np.ndarray]
    spikes_of: Callable[[str], Spikes | None] = lambda clip_id: None
    warnings: Sequence[str] = ()
    speaker_overlap: int = 0
    curves: Sequence[Mapping[str, float | None]] = ()
    rejections: Mapping[str, int] = field(default_factory=dict)
    clip_totals: Mapping[str, int] = field(default_factory=dict)
    fps: float = 25.0


def render_page(figures: Figures, context: ReportContext) -> str:
    """The page as HTML text. It loads nothing, runs no script, and escapes every text that came from outside."""

    def shown(counted: CountedClip) -> ShownClip:
        clip_id = counted.clip.clip_id
        return shown_clip(counted, context.clip_of(clip_id), context.spikes_of(clip_id), context.fps)

    metrics = figures.metrics
    return rendered(
        "report.html.j2",
        figures=figures,
        metrics=metrics,
        context=context,
        verdict=verdict(metrics["cer"], metrics["blind_cer"], metrics["chance_cer"]),
        interval_about=interval_about(metrics.get("cer_interval_over"), metrics.get("num_speakers")),
        charts=[chart for chart in training_charts(context.curves) if chart.lines],
        calibration=calibration_chart(figures.calibration),
        qualities=quality_charts(figures.qualities),
        explained=EXPLAINED,
        shown=shown,
        reel=report_clips,
        ticks_to=lambda high: nice_ticks(0.0, high),
    )


def verdict(cer: float, blind_cer: float | None, chance_cer: float | None) -> tuple[str, str]:
    """Whether the figures show lip reading: ("good", "bad" or "open", a sentence for people)."""
    rivals = [
        f"{name} CER ({percent(rival)})"
        for name, rival in (("blind", blind_cer), ("chance", chance_cer))
        if rival is not None and cer > FAR_BELOW * rival
    ]
    if rivals:
        return "bad", (
            f"This model is not shown to read lips: its CER of {percent(cer)} is not far below the "
            f"{' and the '.join(rivals)}. Much of what it gets right comes without watching the mouth move."
        )
    if blind_cer is None or chance_cer is None:
        missing = "blind" if blind_cer is None else "chance"
        cause = "it was not measured" if blind_cer is None else "a split of one clip has no other clip's text"
        return "open", f"The {missing} CER is not known ({cause}), so this figure alone shows no lip reading."
    return "good", "Far below both blind and chance: most of what is right here was read from moving lips."
