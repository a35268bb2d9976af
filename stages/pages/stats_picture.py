"""Computes the charts of stage stats and draws all its figures as one SVG: same figures, same bytes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.cells import cell_len, set_cell_size

from shards.enums import TRAIN_SPLIT
from stages.pages.page import rendered
from stages.statistics.characters import Characters
from stages.statistics.charts import Chart, Line, Point, log_ticks, nice_ticks

NUM_COLOURS = 6
_MOST_BINS = 60


def stats_picture(summary: Mapping[str, Any], characters: Characters) -> bytes:
    """Returns an SVG of hours, rejections, lengths of clips and labels, character frequencies, unknown characters."""
    splits, histograms = summary["splits"]["splits"], summary["histograms"]
    # colours repeat, with dashed lines
    kinds = {split: f"c{i % NUM_COLOURS}{' again' * (i >= NUM_COLOURS)}" for i, split in enumerate(splits)}
    # the names of the splits are above the lines, in two columns
    top = 74 + 18 * -(-len(splits) // 2)
    empty = Chart("", width=400, height=top + 210, right=400, top=top, bottom=top + 170)
    return rendered(
        "stats.svg.j2",
        summary=summary,
        splits=splits,
        others={name: row for name, row in summary["vocabulary"]["splits"].items() if name != TRAIN_SPLIT},
        kinds=kinds,
        reasons=Counter(summary["rejections"]["by_reason"]).most_common(),
        clip_lengths=_lengths(empty, "frames", histograms["clip_frames"], kinds),
        label_lengths=_lengths(empty, "characters", histograms["label_lengths"], kinds),
        frequencies=_frequencies(empty, characters, kinds),
        short=_short,
        shortened=_shortened,
    ).encode()


def _lengths(empty: Chart, unit: str, histogram: Mapping[str, Any], kinds: Mapping[str, str]) -> Chart:
    """Draws shares, not counts, so that a small split is visible next to a large one."""
    if not histogram["splits"]:
        return empty
    fine = histogram["bin_width"]
    end = fine + max(int(edge) for by_edge in histogram["splits"].values() for edge in by_edge)
    # in bins of one character, a small split shows only spikes
    width = fine * -(-end // (fine * _MOST_BINS))
    edges = range(0, end + width, width)
    lines: list[Line] = []
    for split, by_edge in histogram["splits"].items():
        counts: Counter[int] = Counter()
        for edge, count in by_edge.items():
            counts[int(edge) // width * width] += count
        total = counts.total() / 100
        steps = [(x, counts[edge] / total, "") for edge in edges[:-1] for x in (edge, edge + width)]
        # lines over an area stay visible where splits are alike
        kind = kinds[split] if lines else f"{kinds[split]} area"
        lines.append(Line(split, kind, ((0, 0, ""), *steps, (edges[-1], 0, ""))))
    y_name = f"% of clips in {width} {unit}" if width > 1 else "% of clips"
    highest = max(y for line in lines for _, y, _ in line.points)
    ends = (0, edges[-1])
    x_ticks, y_ticks = nice_ticks(*ends, whole=True), nice_ticks(0, highest)
    return replace(empty, y_name=y_name).with_lines(lines, ends, x_ticks, y_ticks)


def _frequencies(empty: Chart, characters: Characters, kinds: Mapping[str, str]) -> Chart:
    lines, points = [], list[Point]()
    for split in kinds:
        start, rank, total = len(points), 0, characters[split].total() / 100
        # characters of one count are a level part of the line
        for count, number in sorted(Counter(characters[split].values()).items(), reverse=True):
            points += [(rank + 1, count / total, ""), (rank + number, count / total, "")]
            rank += number
        if rank:
            lines.append(Line(split, kinds[split], tuple(points[start:])))
    if not points:
        return empty
    ranks, shares, _ = zip(*points, strict=True)
    ends = (1, max(2, *ranks))
    return empty.with_lines(lines, ends, log_ticks(*ends), log_ticks(min(shares), max(shares)), is_log=True)


def _shortened(name: str, cells: int) -> str:
    """Returns at most so many cells of the name; a Han character takes two."""
    return name if cell_len(name) <= cells else f"{set_cell_size(name, cells - 1).rstrip()}…"


def _short(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:.1f} million"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
