"""The demo's sentences: telegram-style Mandarin, who does what with how many of which.

Slots in a fixed order, fillers nearly equiprobable and freely combined: the order is what parts homophenes
(爸 stands where someone acts, 八 where things are counted), the freedom is what keeps a model that sees
nothing from guessing. Measure words are left out, since the noun would foretell them.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from pipeline.demo.visemes import viseme_sequence

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

# Each pair looks alike on the lips and stands in different slots, so only its neighbours part it.
HOMOPHENES: Final[tuple[str, ...]] = ("爸八", "吃十", "画花")


def _deck(fillers: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Endless draws, each filler once per round: counts stay level, so none is too rare to learn."""
    while True:
        yield from (fillers[i] for i in rng.permutation(len(fillers)))


def draw_sentences(counts: Sequence[int], rng: np.random.Generator) -> list[list[str]]:
    """For each count, that many sentences.

    No two sentences of all the lists are equal, nor do two look the same on the lips.
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
            looks: tuple[object, ...] = viseme_sequence("".join(words))
            if repeats or looks in seen:
                continue
            seen.add(looks)
            sentences.append("".join(words))
        lists.append(sentences)
    return lists
