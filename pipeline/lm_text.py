"""Whether the language model is of the text that params.yaml names, which DVC does not watch: a dep cannot be empty.

What it was made from stands in the first line of its file (model/decoders/arpa.py); so does its normaliser, which a
reader compares with its own when it opens the file.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from model.decoders.arpa import arpa_about
from model.decoders.choice import asks_language_model
from pipeline.params import Params
from shards.files import sha256_of

LOG = logging.getLogger("pipeline.lm")


def warn_of_other_text(params: Params, decoders: Sequence[str] = ()) -> None:
    """A line where one of the decoders (decode.decoder by default) asks a language model made from another text."""
    names = decoders or (params.decode.decoder,)
    # auto is greedy
    if any(name != "auto" and asks_language_model(name, params.decode) for name in names) and (
        told := other_text_told(params)
    ):
        LOG.warning(told)


def other_text_told(params: Params) -> str | None:
    """What to warn of where paths.lm is not of lm.text_file as it is now; None too where nothing says what it is of."""
    lm, text = Path(params.paths.lm), params.lm.text_file
    about = arpa_about(lm)
    if not text or about is None:
        return None
    learnt_from, mend = about.get("learnt_from"), "run `dvc repro -f lm`, or `pipeline lm`"
    if not Path(text).is_file():
        there = f"lm.text_file: {text} is not there; {lm} was made from {learnt_from}"
        return f"{there}: put it back, or name another and {mend}"
    if sha256_of(Path(text)) == about.get("text_sha256"):
        return None
    if Path(text).name == learnt_from:
        return f"{text} has changed since {lm} was made from it: {mend}"
    return f"{lm} was made from another text ({learnt_from}) than lm.text_file, {text}: {mend}"
