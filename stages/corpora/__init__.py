"""Reads a corpus: the transcripts of one of the known layouts, and checks them for mistakes."""

from collections.abc import Callable, Mapping
from pathlib import Path

from shards.errors import CorpusError
from shards.schema import CLIP_ID_PATTERN
from stages.corpora.chinese_lips import read_chinese_lips
from stages.corpora.cmlr import read_cmlr
from stages.corpora.cnvsrc import read_cnvsrc
from stages.corpora.grid import read_grid
from stages.corpora.kaldi import read_kaldi
from stages.corpora.lrs import read_lrs2, read_lrs3
from stages.corpora.manifest import read_manifest
from stages.corpora.table import read_transcript_table
from stages.corpora.transcript import Transcript, split_rank, with_one_spelling
from stages.settings import CorpusParams

__all__ = ["Transcript", "read_corpus", "split_rank"]

_READERS: Mapping[str, Callable[[CorpusParams], list[Transcript]]] = {
    "chinese_lips": lambda corpus: read_chinese_lips(Path(corpus.root), corpus.follow_links),
    "grid": lambda corpus: read_grid(Path(corpus.root)),
    "table": read_transcript_table,
    "cmlr": read_cmlr,
    "cnvsrc": read_cnvsrc,
    "lrs2": read_lrs2,
    "lrs3": read_lrs3,
    "manifest": read_manifest,
    "kaldi": read_kaldi,
}


def read_corpus(corpus: CorpusParams) -> list[Transcript]:
    """Returns every transcript of the corpus, in the order of its files, with one spelling of each speaker's name.

    Raises CorpusError, naming file and line, where the transcripts are wrong: a wrong header, a row with missing
    fields, broken encoding, a duplicate id, a name outside [A-Za-z0-9_-]{1,120}, or no clip at all.
    """
    if not Path(corpus.root).is_dir():
        raise CorpusError(f"corpus.root {corpus.root} is not a folder; set it to the folder of the corpus")
    transcripts = _READERS[corpus.kind](corpus)
    if not transcripts:
        raise CorpusError(
            f"{corpus.root} contains no clip: its tables have a header but no rows; check corpus.root"
        )
    seen: dict[str, str] = {}
    for transcript in transcripts:
        for name, value in (("clip id", transcript.clip_id), ("split", transcript.split)):
            if not CLIP_ID_PATTERN.fullmatch(value):
                raise CorpusError(
                    f"{transcript.where}: {name} {value!r} must be 1 to 120 of the characters A-Z a-z 0-9 _ -"
                )
        if transcript.clip_id in seen:
            raise CorpusError(
                f"{transcript.where}: clip id {transcript.clip_id} already occurs at "
                f"{seen[transcript.clip_id]}; give every clip its own id"
            )
        seen[transcript.clip_id] = transcript.where
    return with_one_spelling(transcripts)
