"""The packs and the result of `pipeline overlap`."""

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.params import Params
from pipeline.training_job import packs_of
from shards.errors import ConfigError
from shards.open_store import open_store
from shards.safe_text import one_line
from stages.corpora.pack_overlap import ComparedPack, PackOverlap, compared_packs

MAX_ROWS = 50
"""Largest number of rows of a table."""
EXAMPLES = 4
"""Largest number of clips or places in a row."""
_PACK = re.compile(r"([A-Za-z0-9_-]{1,40})=(.+)", re.DOTALL)


def packs_to_compare(arguments: Sequence[str], values: Params) -> list[ComparedPack]:
    """Returns the packs of the arguments, or those of params.yaml if there are none; raises ConfigError for others."""
    if not arguments and values.train.data:
        return compared_packs(packs_of(values))
    if not arguments:
        paths = values.paths
        return [ComparedPack("pack", Path(paths.samples), open_store(paths.shards, values.machine))]
    packs = []
    for argument in arguments:
        if not (match := _PACK.fullmatch(argument)):
            raise ConfigError(
                f"{argument!r} is not a pack; write NAME=FOLDER or NAME=SAMPLES,SHARDS, where NAME has at most 40 "
                "letters, digits, _ and -"
            )
        name, place = match.groups()
        samples, comma, shards = place.partition(",")
        if not comma:
            samples, shards = str(Path(place) / "samples.parquet"), str(Path(place) / "shards")
        packs.append(ComparedPack(name, Path(samples), open_store(shards, values.machine, argument)))
    return packs


def print_overlap(found: PackOverlap, console: Console) -> None:
    """Prints copies and speakers as tables, leaks first, and a summary line."""
    copies = [
        (
            "leak" if one.is_leak else "",
            f"{one.similarity:.2f}",
            [f"{c.pack} {c.split} {c.clip_id}" for c in one.clips],
        )
        for one in found.copies
    ]
    speakers = [
        ("leak" if one.is_leak else "", one.name, [f"{p.pack} {p.split} ({p.num_clips})" for p in one.places])
        for one in found.speakers
    ]
    _print("Clips of the same video", ("", "similarity", "pack, split, clip"), copies, console)
    _print("Speakers of the same name", ("", "speaker", "pack, split (clips)"), speakers, console)
    counts = ", ".join(f"{name} {count}" for name, count in found.num_clips.items())
    console.print(
        f"Compared {sum(found.num_clips.values())} clips ({counts}). Videos with copies: {len(copies)}, of which "
        f"{found.num_leaks} in training and in another split. Speaker names in several packs: {len(speakers)}.",
        highlight=False,
        markup=False,
    )
    if num_not_compared := sum(found.num_not_compared.values()):
        console.print(
            f"{num_not_compared} clips are too short or show a still picture: only equal files count as copies",
            highlight=False,
            markup=False,
        )


def _print(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, str, list[str]]], console: Console
) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for mark, value, places in rows[:MAX_ROWS]:
        more = [f"and {len(places) - EXAMPLES} more"] if len(places) > EXAMPLES else []
        # Text, not markup: names may contain brackets
        lines = "\n".join(one_line(place) for place in places[:EXAMPLES] + more)
        table.add_row(mark, Text(one_line(value)), Text(lines))
    console.print(table)
    if len(rows) > MAX_ROWS:
        console.print(f"and {len(rows) - MAX_ROWS} more; --json lists them all")
