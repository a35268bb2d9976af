"""Compares several decoders on one checkpoint: `pipeline test --decoder …`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model.decoding.fusion import open_checkpoints
from model.decoding.registry import (
    GREEDY,
    HEADS_OF_DECODER,
    describe_settings,
    learnt_decoders,
    unused_weights,
)
from model.decoding.result import ScoredClip
from model.decoding.scoring import BatchReader, DecoderScores, score_decoders
from model.device import choose_device
from model.metrics import has_words, total_counts, word_error_rate
from model.settings import DecodeParams
from pipeline.params import Params
from pipeline.tables.evaluation import print_normalisers, print_overlap
from pipeline.training_job import packs_of
from shards.errors import ConfigError
from shards.files import Progress
from shards.packs import pack_of
from stages.report import SCORING_BATCH, identities_of
from stages.reports.clip_tables import normaliser_of
from stages.reports.counting import CORPUS_FIGURES, counted_clips, oracle_figures
from stages.reports.figures import interval_about, why_no_interval
from stages.reports.groups import calibration_error, calibration_of, cer_interval
from stages.reports.train_test_leakage import seen_in_training

ALL = "all"
LOG = logging.getLogger("pipeline.test")


def compare_decoders(
    checkpoints: Sequence[Path],
    params: Params,
    names: Sequence[str],
    on_progress: Progress | None = None,
    adapter: Path | None = None,
) -> list[dict[str, Any]]:
    """Returns the figures of each decoder on split report.split; the clips are encoded once for all decoders.

    `names`: decoders, or `all` for all that the model has learnt. Seconds are those of this machine, separate for
    encoding and decoding. Raises ConfigError for an unknown decoder, or one that the model has not learnt.
    """
    device = choose_device(params.machine.device)
    reader = open_checkpoints(checkpoints, device, params.decode.views, adapter)
    decodes = [
        params.decode.model_copy(update={"decoder": name}) for name in _named(names, reader, params.decode)
    ]
    for decode in decodes:
        reader.open_language_model(Path(params.paths.lm), decode)
    # no warning for greedy decoders: to compare them with beam searches is the purpose
    warnings = [
        unused_weights(decode, reader.heads) for decode in decodes if reader.decoder(decode) not in GREEDY
    ]
    for warning in dict.fromkeys(filter(None, warnings)):
        LOG.warning(warning)
    packs = packs_of(params)
    samples = packs.read(params.report.split)
    seen = seen_in_training(packs, params.report.split, params.loader)
    scores, encode_s = score_decoders(
        reader,
        samples,
        packs.store,
        decodes,
        batch_size=SCORING_BATCH,
        loader=params.loader,
        machine=params.machine,
        on_progress=on_progress,
    )
    shared: dict[str, Any] = {
        "speaker_overlap": seen.num_speakers,
        "normaliser": normaliser_of(packs),
        "checkpoint_normaliser": reader.models[0].normaliser,
    }
    fused = len(reader.models) > 1 or reader.num_views > 1
    if fused:
        shared["checkpoint"] = identities_of(checkpoints, adapter)
    names_of_packs = [pack.name for pack in packs.packs] if packs.is_blend else []
    return [
        {
            **_figures(score, encode_s, params, names_of_packs),
            **({"decode": reader.settings(decode)} if fused else {}),
            **shared,
        }
        for score, decode in zip(scores, decodes, strict=True)
    ]


def _named(names: Sequence[str], reader: BatchReader, decode: DecodeParams) -> list[str]:
    if unknown := [name for name in names if name not in (*HEADS_OF_DECODER, "auto", ALL)]:
        raise ConfigError(
            f"--decoder must be one of {', '.join(HEADS_OF_DECODER)}, auto, {ALL} (got {unknown[0]})"
        )
    named: list[str] = []
    for name in names:
        named += learnt_decoders(reader.heads) if name == ALL else [name]
    if "pinyin" in named and "pinyin" not in names and decode.lm_weight == 0:
        LOG.warning(
            "decoder pinyin is left out: it needs the language model, but decode.lm_weight is 0; set it above 0"
        )
        named.remove("pinyin")
    return list(dict.fromkeys(named))


def _figures(scores: DecoderScores, encode_s: float, params: Params, packs: Sequence[str]) -> dict[str, Any]:
    num_clips = len(scores.clips)
    figures = {
        "decoder": scores.decoder,
        **_errors(scores.clips, params),
        "clips_per_s": num_clips / (encode_s + scores.decode_s),
        "encode_s_per_clip": encode_s / num_clips,
        "decode_s_per_clip": scores.decode_s / num_clips,
    }
    clips_of = {name: [clip for clip in scores.clips if pack_of(clip.clip_id)[0] == name] for name in packs}
    of_packs = {name: _errors(clips, params) for name, clips in clips_of.items() if clips}
    if packs:
        figures["corpora"] = {
            name: {key: found[key] for key in CORPUS_FIGURES if key in found}
            for name, found in of_packs.items()
        }
    return figures


def _errors(clips: Sequence[ScoredClip], params: Params) -> dict[str, Any]:
    pairs = [(clip.reference, clip.hypothesis) for clip in clips]
    counts, counted = total_counts(pairs), counted_clips(clips)
    interval, over = cer_interval(counted, params.report.resamples, params.report.seed)
    return {
        "cer": counts.cer,
        "cer_low": interval.low if interval else None,
        "cer_high": interval.high if interval else None,
        "cer_interval_over": over if interval else None,
        "num_speakers": len({clip.speaker for clip in clips} - {None}),
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "num_chars": counts.num_chars,
        **({"wer": word_error_rate(pairs)} if has_words(reference for reference, _ in pairs) else {}),
        **oracle_figures(counted),
        "calibration_error": calibration_error(calibration_of(counted)),
        "num_clips": len(clips),
    }


def print_decoders(rows: Sequence[Mapping[str, Any]], split: str, console: Console) -> None:
    """Prints one line for each decoder."""
    encode_ms = 1e3 * rows[0]["encode_s_per_clip"]
    table = Table(
        title=f"split {split}: {rows[0]['num_clips']} clips, encoded once in {encode_ms:.1f} ms per clip",
        title_justify="left",
        caption="best: oracle CER, of the best candidate of each clip; greedy decoders have none\n"
        "ECE: expected calibration error of the confidence\n"
        "clips/s: from frames to text; ms: to decode a clip",
        caption_justify="left",
        padding=(0, 1, 0, 0),  # so that 80 columns are enough
    )
    table.add_column("decoder", no_wrap=True)
    with_words = any("wer" in row for row in rows)
    errors = ("CER", "95 %\ninterval", "S", "D", "I", *(["WER"] if with_words else []))
    for column in (*errors, "best", "ECE", "clips\n/s", "ms"):
        table.add_column(column, justify="right")
    for row in rows:
        words = [f"{row['wer']:.1%}" if "wer" in row else ""] if with_words else []
        table.add_row(
            row["decoder"],
            *_cer_of(row),
            *(f"{row[name]:,}" for name in ("substitutions", "deletions", "insertions")),
            *words,
            *(
                "–" if row[name] is None else f"{row[name]:.1%}"
                for name in ("oracle_cer", "calibration_error")
            ),
            f"{row['clips_per_s']:,.1f}",
            f"{1e3 * row['decode_s_per_clip']:,.1f}",
        )
    console.print(table)
    for row in rows:
        if "decode" in row:
            console.print(f"checkpoints {row['checkpoint']}: {describe_settings(row['decode'])}", style="dim")
    if "corpora" in rows[0]:
        _print_corpora(rows, console)
    interval_kinds = {row["cer_interval_over"] for row in rows}
    for over in interval_kinds - {None}:
        console.print(
            f"95 % interval: bootstrap {interval_about(over, rows[0]['num_speakers'])}", style="dim"
        )
    if None in interval_kinds:
        console.print(f"95 % interval –: {why_no_interval(rows[0]['num_clips'])}", style="dim")
    print_normalisers(rows[0], console)
    print_overlap(rows[0]["speaker_overlap"], split, console)
    if any(row["decoder"] == "syllables" for row in rows):
        console.print("syllables: compared with the labels as toneless pinyin with spaces", style="dim")


def _print_corpora(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = Table(title="by corpus", title_justify="left", padding=(0, 1, 0, 0))
    for column in ("corpus", "decoder"):
        table.add_column(column, no_wrap=True)
    for column in ("clips", "CER", "95 % interval"):
        table.add_column(column, justify="right")
    for name in rows[0]["corpora"]:
        for row in rows:
            found = row["corpora"][name]
            table.add_row(name, row["decoder"], str(found["num_clips"]), *_cer_of(found))
    console.print(table)


def _cer_of(figures: Mapping[str, Any]) -> tuple[str, str]:
    low, high = figures["cer_low"], figures["cer_high"]
    return f"{figures['cer']:.1%}", "–" if low is None else f"{100 * low:.1f}–{high:.1%}"
