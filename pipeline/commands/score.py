"""The verb test.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import (
    PARAMS,
    Assignments,
    CheckpointDir,
    DataRoot,
    Json,
    ModelFile,
    ParamsFile,
    app,
    load,
    shown,
)


@app.command()
def test(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    checkpoint: ModelFile = None,
    checkpoint_dir: CheckpointDir = None,
    split: Annotated[str | None, typer.Option(help="split to score; default: report.split")] = None,
    data_root: DataRoot = None,
    decoder: Annotated[
        list[str] | None,
        typer.Option(
            help="compare decoders in one table: ctc, ctc_beam, attention, attention_beam, joint_beam, syllables, "
            "pinyin, auto, all; repeatable"
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="has no effect; accepted for older scripts")] = None,
    json_: Json = False,
) -> None:
    """Score a checkpoint on a split and print the figures; write no file.

    Example: pipeline test --checkpoint checkpoints/best_model.pt --split valid --decoder ctc --decoder ctc_beam
    """
    import json

    from pipeline.console import stdout
    from pipeline.tables.metrics import print_examples, print_metrics
    from shards.open_store import open_store
    from shards.samples import read_samples
    from stages.lm import warn_of_other_text
    from stages.report import num_rejected, reading_facts, score_checkpoint
    from stages.reports.counting import split_metrics
    from stages.reports.train_test_leakage import seen_in_training

    values = load(
        params, assignments, data_root=data_root, checkpoint_dir=checkpoint_dir, report__split=split
    )
    paths = values.paths
    checkpoint = checkpoint or Path(paths.checkpoints) / "best_model.pt"
    if decoder:
        from pipeline.tables.decoders import compare_decoders, print_decoders

        with shown("reading clips", "clips") as on_progress:
            warn_of_other_text(Path(values.paths.lm), values.lm.text_file, values.decode, decoder)
            rows = compare_decoders(checkpoint, values, decoder, on_progress)
        if json_:
            typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        else:
            print_decoders(rows, values.report.split, stdout)
        return
    # read the tables first: a damaged one is reported before the work
    seen = seen_in_training(Path(paths.samples), values.report.split)
    clip_ids = read_samples(Path(paths.samples), values.report.split)["clip_id"].to_pylist()
    rejected = num_rejected(Path(paths.clips), Path(paths.crops), values.report.split, clip_ids)
    with shown("reading normally, then blind", "readings") as on_progress:
        warn_of_other_text(Path(values.paths.lm), values.lm.text_file, values.decode)
        reader, scored, blind = score_checkpoint(
            checkpoint,
            Path(paths.samples),
            open_store(paths.shards, values.machine),
            values.report.split,
            loader=values.loader,
            decode=values.decode,
            machine=values.machine,
            lm=Path(paths.lm),
            on_progress=on_progress,
        )
    metrics = split_metrics(
        scored,
        blind,
        values.report.split,
        values.report.seed,
        seen.num_speakers,
        resamples=values.report.resamples,
        facts=reading_facts(reader, values.decode, checkpoint, Path(paths.samples), Path(paths.lm)),
        num_rejected=rejected,
    )
    if json_:
        typer.echo(json.dumps(metrics, ensure_ascii=False, indent=2))
    else:
        print_examples(scored, stdout)
        print_metrics(metrics, stdout)
