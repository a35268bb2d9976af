"""A lip reader without a network, whose text depends only on the clip, and parameters for reading with it."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from model.decoding.result import Candidate, Reading
from model.settings import DecodeParams, TextParams
from model.text import Tokenizer
from model.vocabulary import Vocabulary
from pipeline.params import Params, load_params
from stages.settings import InferenceParams

PARAMS_YAML = Path(__file__).parents[2] / "params.yaml"


@cache
def default_params() -> Params:
    return load_params(PARAMS_YAML)


def params_with(**inference: float) -> Params:
    """Returns the parameters of params.yaml with changes of `inference`."""
    params = default_params()
    changed = InferenceParams.model_validate(params.inference.model_dump() | inference)
    return params.model_copy(update={"inference": changed})


@dataclass
class CountingReader:
    """Returns the number of frames as text, and keeps the clips."""

    fps: float = 25.0
    crop_px: int = 96
    text: TextParams = field(default_factory=TextParams)
    clips: list[np.ndarray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Texts to return in order instead, if any."""
    vocabulary: Vocabulary = field(
        default_factory=lambda: Vocabulary(Tokenizer.of_units(" 0123456789" + ascii_lowercase))
    )

    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        self.clips.append(clip_THW)
        text = self.texts.pop(0) if self.texts else f"frames{len(clip_THW)}"
        score = float(np.log(0.5))
        return Reading(text, score, (Candidate(text, score * len(text), 0.0), Candidate("x", -2.0, -2.0)))

    def reference(self, label: str, params: DecodeParams) -> str:
        return label
