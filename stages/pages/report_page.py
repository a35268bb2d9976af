"""Renders the page of the report from its figures, with a verdict."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from model.decoding.ctc_spikes import spiking_head
from stages.pages import report_clips
from stages.pages.page import percent, rendered
from stages.pages.report_charts import calibration_chart, quality_charts, training_charts
from stages.pages.report_clips import ShownClip, shown_clip
from stages.reports.figures import (
    NARROW_NOTE,
    NO_INTERVAL_NOTE,
    NORMALISER_UNKNOWN,
    CountedClip,
    Figures,
    ReportContext,
    has_interval,
    interval_about,
    normaliser_warning,
    unit_of,
    why_no_interval,
)
from stages.reports.groups import confidence_of
from stages.statistics.axis_ticks import nice_ticks
from stages.statistics.quality import EXPLAINED

# The CER, and the upper end of its interval if there is one, must be below this share of the blind and the chance CER
# (our choice).
FAR_BELOW = 0.8
# Without an error there is no interval; from this number of clips on, a CER of 0 is accepted without one.
ENOUGH_CLIPS = 30


def render_page(figures: Figures, context: ReportContext) -> str:
    """Returns the page as HTML text. It loads nothing, runs no script and escapes every text from outside."""

    def shown(counted: CountedClip) -> ShownClip:
        clip_id = counted.clip.clip_id
        return shown_clip(counted, context.clip_of(clip_id), context.spikes_of(clip_id), context.fps)

    metrics = figures.metrics
    return rendered(
        "report.html.j2",
        figures=figures,
        metrics=metrics,
        context=context,
        warnings=[*context.warnings, *filter(None, [normaliser_warning(metrics)])],
        verdict=verdict(metrics),
        why_no_interval=why_no_interval(metrics["num_clips"]),
        has_interval=has_interval,
        normaliser_unknown=NORMALISER_UNKNOWN,
        narrow_note=NARROW_NOTE,
        no_interval_note=NO_INTERVAL_NOTE,
        interval_about=interval_about(metrics.get("cer_interval_over"), metrics.get("num_speakers")),
        charts=[chart for chart in training_charts(context.curves) if chart.lines],
        splits=split_rows(context),
        rejections=rejection_rows(context),
        calibration=calibration_chart(figures.calibration),
        qualities=quality_charts(figures.qualities),
        unit=unit_of(metrics.get("decoder")),
        ctc_unit="syllable" if spiking_head(metrics.get("decoder")) == "syllables" else "character",
        explained=EXPLAINED,
        shown=shown,
        confidence_of=confidence_of,
        reel=report_clips,
        ticks_to=lambda high: nice_ticks(0.0, high),
    )


def split_rows(context: ReportContext) -> list[tuple[str, int, int]]:
    """Returns (split, usable clips, rejected clips) for splits that have either."""
    splits = dict.fromkeys([*context.clip_totals, *context.rejections])
    rejected = {split: sum(context.rejections.get(split, {}).values()) for split in splits}
    return [(split, context.clip_totals.get(split, 0), rejected[split]) for split in splits]


def rejection_rows(context: ReportContext) -> list[tuple[str, int, int]]:
    """Returns (reason, rejected clips of the reported split, of all splits), the most frequent first."""
    ours: Mapping[str, int] = context.rejections.get(context.split, {})
    total: Counter[str] = sum(map(Counter, context.rejections.values()), Counter())
    rows = [(reason, ours.get(reason, 0), number) for reason, number in total.items()]
    return sorted(rows, key=lambda row: (-row[1], -row[2], row[0]))


def verdict(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """Returns whether the figures show lip reading, as "good", "bad" or "open", with a sentence.

    The sentence states only the comparison: no CER can say how much was read from the lips.
    """
    cer, low, high = metrics["cer"], metrics.get("cer_low"), metrics.get("cer_high")
    rivals = {name: metrics[f"{name}_cer"] for name in ("blind", "chance")}
    known = {name: rival for name, rival in rivals.items() if rival is not None}
    if missed := [name for name, rival in known.items() if cer >= FAR_BELOW * rival]:
        return "bad", (
            f"This model is not shown to read lips: its CER of {percent(cer)} is not below {_limits(known, missed)}."
        )
    if missing := [name for name in rivals if name not in known]:
        cause = (
            "it was not measured" if missing[0] == "blind" else "a split of one clip has no other clip's text"
        )
        return (
            "open",
            f"The {missing[0]} CER is not known ({cause}), so the CER does not show lip reading.",
        )
    below = f"Its CER of {percent(cer)} is below {_limits(known, list(known))}"
    if cer == 0 and metrics["num_clips"] >= ENOUGH_CLIPS:
        return "good", f"{below}: not one error in {metrics['num_clips']} clips."
    if not has_interval(low, high):
        return "open", f"{below}, but it has no interval: the CER of other clips may differ by any amount."
    if missed := [name for name, rival in known.items() if high >= FAR_BELOW * rival]:
        return "open", (
            f"{below}, but the upper end of its interval, {percent(high)}, is not below {_limits(known, missed)}: "
            "this split does not show whether the model reads lips."
        )
    return "good", (
        f"This model needs the moving mouth of the right clip: its CER of {percent(cer)} and the upper end of its "
        f"interval, {percent(high)}, are below {_limits(known, list(known))}."
    )


def _limits(rivals: Mapping[str, float], names: Sequence[str]) -> str:
    """Returns the text of the limits: a share of each of these rivals."""
    limits = " and ".join(percent(FAR_BELOW * rivals[name]) for name in names)
    rates = " and of the ".join(f"{name} CER ({percent(rivals[name])})" for name in names)
    return f"{limits}, {100 * FAR_BELOW:.0f}\u202f% of the {rates}"
