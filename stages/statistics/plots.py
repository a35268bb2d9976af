"""Draws the figures of stage stats as one picture: same figures, same bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.enums import TRAIN_SPLIT
from stages.statistics.characters import Characters

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE_IN = (12.5, 10.6)
"""900 px wide where a browser shows an SVG of 72 points an inch."""
# colours of Okabe and Ito, which colour-blind people can distinguish; darker than usual on white
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_INK, _FAINT = "#333333", "#8a8a8a"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "stats",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "axes.axisbelow": True,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
_MOST_BARS = 8
_MOST_BINS = 60
_AXES_CHARS = 58
"""Characters in a line that fit into half of the picture."""


def stats_picture(summary: Mapping[str, Any], characters: Characters) -> bytes:
    """Returns an SVG of hours, rejections, lengths of clips and labels, character frequencies, unknown characters."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    splits = list(summary["splits"]["splits"])
    colours = {split: _COLOURS[number % len(_COLOURS)] for number, split in enumerate(splits)}
    frames, chars = (
        {split: figures[name] for split, figures in summary["splits"]["splits"].items()}
        for name in ("mean_frames", "mean_chars")
    )
    with mpl.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.18, h_pad=0.18)
        figure = Figure(figsize=_SIZE_IN, dpi=72, layout=layout, facecolor="white")
        axes = figure.subplots(3, 2)
        _hours(axes[0, 0], summary["splits"]["splits"], colours)
        _rejections(axes[0, 1], summary["rejections"], summary["splits"]["total"]["clips"])
        _lengths(axes[1, 0], summary["histograms"]["clip_frames"], frames, colours, "Clip lengths", "frames")
        _lengths(
            axes[1, 1], summary["histograms"]["label_lengths"], chars, colours, "Label lengths", "characters"
        )
        _frequencies(axes[2, 0], characters, colours)
        _unknown(axes[2, 1], summary["vocabulary"]["splits"], colours)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()


def _hours(axes: "Axes", splits: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    axes.set_title("Hours of video")
    hours = {split: figures["hours"] for split, figures in splits.items()}
    if None in hours.values():
        _say(axes, "not known before `pipeline crop`")
        return
    names = [f"{split}\n{_short(figures['speakers'])} speakers" for split, figures in splits.items()]
    notes = [f"{_short(hours[split])} h · {_short(splits[split]['ok'])} clips" for split in hours]
    _bars(axes, names, list(hours.values()), notes, [colours[split] for split in hours])


def _rejections(axes: "Axes", rejections: Mapping[str, Any], num_clips: int) -> None:
    by_reason = rejections["by_reason"]
    axes.set_title("Rejected clips by reason")
    if by_reason is None:
        _say(axes, "not known before `pipeline crop`")
    elif not by_reason:
        _say(axes, "no clip was rejected")
    else:
        axes.set_title(
            f"Rejected clips by reason: {rejections['rejected'] / num_clips:.1%} of {_short(num_clips)}"
        )
        ranked = sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))
        if rest := sum(count for _, count in ranked[_MOST_BARS:]):
            ranked = [*ranked[:_MOST_BARS], ("other reasons", rest)]
        names = [reason.replace("_", " ") for reason, _ in ranked]
        counts = [count for _, count in ranked]
        _bars(axes, names, counts, [_short(count) for count in counts], ["#7a869a"] * len(counts))


def _lengths(
    axes: "Axes",
    histogram: Mapping[str, Any],
    means: Mapping[str, float],
    colours: Mapping[str, str],
    title: str,
    unit: str,
) -> None:
    """Draws shares, not counts, so that a small split is visible next to a large one."""
    axes.set_title(title)
    if not histogram["splits"]:
        _say(axes, "not known before `pipeline crop`")
        return
    fine = histogram["bin_width"]
    longest = max(int(edge) for by_edge in histogram["splits"].values() for edge in by_edge)
    # in bins of one character, a small split shows only spikes
    width = fine * -(-(longest + fine) // (fine * _MOST_BINS))
    for number, (split, by_edge) in enumerate(histogram["splits"].items()):
        edges = np.array([int(edge) for edge in by_edge])
        counts = np.array(list(by_edge.values()))
        bins = np.arange(0, longest + 2 * width, width)
        shares = np.bincount(edges // width, counts, minlength=len(bins))[:-1] / counts.sum()
        label = f"{split}, mean {means[split]:.0f}"
        # a line over a filled histogram stays visible where splits are alike
        fill: dict[str, Any] = (
            {"fill": True, "alpha": 0.25, "linewidth": 0} if number == 0 else {"linewidth": 1.6}
        )
        axes.stairs(shares * 100, bins, color=colours[split], label=label, **fill)
    axes.set_xlabel(unit)
    axes.set_ylabel(f"% of clips in {width} {unit}" if width > 1 else "% of clips")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend()


def _frequencies(axes: "Axes", characters: Characters, colours: Mapping[str, str]) -> None:
    axes.set_title("Character frequency by rank")
    for split, colour in colours.items():
        counts = np.sort(np.array(list(characters[split].values()), np.float64))[::-1]
        if len(counts):
            ranks = np.arange(1, len(counts) + 1)
            label = f"{split}, {len(counts):,} characters"
            axes.loglog(ranks, counts / counts.sum() * 100, color=colour, linewidth=1.8, label=label)
    if not axes.lines:
        _say(axes, "no label has a character")
        return
    axes.set_xlabel("rank")
    axes.set_ylabel("% of the split's characters")
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        # within a factor of 10 there may be no major tick, and an axis without numbers
        axis.set_minor_formatter("{x:g}" if high < 10 * low else "")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend()


def _unknown(axes: "Axes", splits: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    axes.set_title("Characters that train lacks, share of the text")
    rates = {
        split: figures["out_of_vocabulary_rate"] for split, figures in splits.items() if split != TRAIN_SPLIT
    }
    if None in rates.values() or not rates:
        _say(axes, "no train split to compare with" if rates else "train is the only split")
        return
    notes = [
        f"{rates[split]:.2%} · {splits[split]['out_of_vocabulary_distinct']:,} characters" for split in rates
    ]
    _bars(axes, list(rates), [rate * 100 for rate in rates.values()], notes, [colours[s] for s in rates])


def _bars(
    axes: "Axes", names: Sequence[str], values: Sequence[float], notes: Sequence[str], colours: Sequence[str]
) -> None:
    """Draws bars from top to bottom, each with its note next to it."""
    places = np.arange(len(names))
    axes.barh(places, values, color=colours, height=0.62)
    # few bars stay as slim as many
    axes.set_ylim(max(len(names), 4) - 0.5, -0.5)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.grid(False)
    axes.spines[["bottom", "left"]].set_visible(False)
    room = _AXES_CHARS / (_AXES_CHARS - max(map(len, notes)))
    axes.set_xlim(0, max([*values, 1e-12]) * room)
    for place, value, note in zip(places, values, notes, strict=True):
        axes.annotate(note, (value, place), (8, 0), textcoords="offset points", va="center")


def _say(axes: "Axes", text: str) -> None:
    axes.set_axis_off()
    axes.text(0, 0.9, text, transform=axes.transAxes, color=_FAINT, va="top")


def _short(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:.1f} million"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
