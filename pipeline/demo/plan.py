"""Plans the demo corpus: its sentences, and the speaker, ID, topic, text and paths of each clip.

The sentences are short Mandarin: who does what with how many of which things. Their slots have a fixed order,
which distinguishes homophenes (爸 is a person who acts, 八 is a number). The fillers are nearly equally likely
and freely combined, so that a blind model cannot guess. Measure words are omitted, since the noun would
predict them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.demo.motion import viseme_sequence
from pipeline.demo.photograph import Speaker, draw_speaker

SLOTS: Final[dict[str, str]] = {
    "who": "我你他爸妹冯周",
    "how": "也都不先",
    "does": "买要有看画送吃学",
    "count": "一两三五六八十",
    "thing": "花书鱼饭水灯笔包",
    "and": "和",
}

# 4 to 7 characters, about 5.8 on average.
PATTERNS: Final[tuple[tuple[str, ...], ...]] = (
    ("who", "does", "count", "thing"),
    ("who", "how", "does", "count", "thing"),
    ("who", "does", "count", "count", "thing"),
    ("who", "how", "does", "count", "count", "thing"),
    ("who", "and", "who", "does", "count", "thing"),
    ("who", "does", "count", "thing", "and", "thing"),
    ("who", "and", "who", "how", "does", "count", "thing"),
    ("who", "how", "does", "count", "thing", "and", "thing"),
)

CHARACTERS: Final[str] = "".join(SLOTS.values())

# Each pair has the same visemes but different slots, so only the neighbours distinguish it.
HOMOPHENES: Final[tuple[str, ...]] = ("爸八", "吃十", "画花")

CSV_HEADER: Final = ("ID", "TOPIC", "WAV", "PPT", "FACE", "TEXT")
TOPICS: Final = ("DZJJ", "JKYS", "KJ", "LY", "QC", "RWLS", "TY", "YS", "ZX")
# Chinese-LiPS has "valid" in the names of its CSVs and "val" as its folder.
SPLIT_FOLDERS: Final = {"train": "train", "valid": "val", "test": "test"}
_TOPICS_PER_SPEAKER: Final = 2
_FIRST_SPEAKER_ID: Final = 101

# Purposes of the random streams: more draws from one do not change the others.
_SENTENCES, _SPEAKER, _CLIP, _IDENTITY = range(4)


def _deck(fillers: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Yields fillers without end, each once per round: equal counts, so that none is too rare to learn."""
    while True:
        yield from (fillers[i] for i in rng.permutation(len(fillers)))


def draw_sentences(counts: Sequence[int], rng: np.random.Generator) -> list[list[str]]:
    """Returns a list of that many sentences for each count.

    No two sentences in all lists are equal or have the same visemes.
    """
    seen: set[tuple[object, ...]] = set()
    lists: list[list[str]] = []
    for count in counts:
        decks = {slot: _deck(fillers, rng) for slot, fillers in SLOTS.items()}
        patterns = _deck([str(i) for i in range(len(PATTERNS))], rng)
        sentences: list[str] = []
        while len(sentences) < count:
            words = [next(decks[slot]) for slot in PATTERNS[int(next(patterns))]]
            repeats = len(set(words)) < len(words)
            visemes: tuple[object, ...] = viseme_sequence("".join(words))
            if repeats or visemes in seen:
                continue
            seen.add(visemes)
            sentences.append("".join(words))
        lists.append(sentences)
    return lists


@dataclass(frozen=True, slots=True)
class CorpusSize:
    """Number of speakers and of clips per speaker in each split."""

    train: tuple[int, int] = (24, 15)
    valid: tuple[int, int] = (4, 12)
    test: tuple[int, int] = (4, 16)

    def splits(self) -> dict[str, tuple[int, int]]:
        return {"train": self.train, "valid": self.valid, "test": self.test}


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """One line of a CSV, and the numbers that seed the drawing. Paths are relative to the corpus root."""

    clip_id: str
    split: str
    topic: str
    text: str
    speaker_index: int
    clip_number: int

    def _path(self, kind: str, name: str) -> str:
        return f"{SPLIT_FOLDERS[self.split]}/{self.clip_id.rsplit('_', 1)[0]}/{kind}/{name}"

    @property
    def face(self) -> str:
        return self._path("FACE", f"{self.clip_id}_FACE.mp4")

    @property
    def wav(self) -> str:
        return self._path("WAV", f"{self.clip_id}.wav")

    @property
    def ppt(self) -> str:
        return self._path("PPT", f"{self.clip_id}_PPT.mp4")


def plan_corpus(seed: int, size: CorpusSize) -> list[ClipPlan]:
    """Returns every clip of a corpus, in the order of its CSVs.

    No speaker is in two splits; no sentence of valid or test, nor one with the same visemes, is in train.
    """
    splits = size.splits()
    rng = np.random.default_rng([seed, _SENTENCES])
    sentences = draw_sentences([speakers * clips for speakers, clips in splits.values()], rng)
    plans: list[ClipPlan] = []
    speaker_index = 0
    for (split, (num_speakers, num_clips)), texts in zip(splits.items(), sentences, strict=True):
        for number in range(num_speakers):
            rng = np.random.default_rng([seed, _IDENTITY, speaker_index])
            age, gender = int(rng.integers(18, 60)), "MF"[int(rng.integers(2))]
            topics = [TOPICS[i] for i in sorted(rng.choice(len(TOPICS), _TOPICS_PER_SPEAKER, replace=False))]
            for clip in range(num_clips):
                topic = topics[clip * len(topics) // num_clips]
                speaker = f"{speaker_index + _FIRST_SPEAKER_ID}_{age}_{gender}"
                clip_id = f"{speaker}_{topic}_{clip + 1:03d}"
                text = texts[number * num_clips + clip]
                plans.append(ClipPlan(clip_id, split, topic, text, speaker_index, clip))
            speaker_index += 1
    return plans


def speaker_of(seed: int, speaker_index: int) -> Speaker:
    """Returns the pseudo-speaker with that number in the corpus of that seed."""
    return draw_speaker(np.random.default_rng([seed, _SPEAKER, speaker_index]))


def clip_rng(seed: int, speaker_index: int, clip_number: int) -> np.random.Generator:
    """Returns the random generator of a clip: it depends on seed, speaker and clip number, never on the text."""
    return np.random.default_rng([seed, _CLIP, speaker_index, clip_number])
