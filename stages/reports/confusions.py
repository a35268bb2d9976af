"""Counts the most frequent confusions of characters, words and syllables."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from model.metrics import Pair, unit_pairs
from model.pinyin import syllables_of
from model.visemes import LookAlikeClass, look_alike_classes_of, visemes_of
from stages.reports.figures import Confusion

NUM_SUBSTITUTED, NUM_MISSED_OR_ADDED = 20, 10
"""Separate limits: if a model reads little, missed units would fill a common list."""


def character_confusions(pairs: Iterable[Pair]) -> list[Confusion]:
    """Returns confusions of characters; two look alike if their sounds do in most of the sentences."""
    counted: Counter[Pair] = Counter()
    same_class: dict[Pair, Counter[bool]] = {}
    for reference, hypothesis in pairs:
        said_classes, read_classes = (
            iter(_look_alike_classes(reference)),
            iter(_look_alike_classes(hypothesis)),
        )
        for said, read in unit_pairs(reference, hypothesis):
            said_class = next(said_classes) if said else None
            read_class = next(read_classes) if read else None
            counted[said, read] += 1
            if said != read and said_class and read_class:
                same_class.setdefault((said, read), Counter())[said_class == read_class] += 1
    alike = {pair: counts[True] > counts[False] for pair, counts in same_class.items()}
    return _largest(counted, alike)


def word_confusions(pairs: Iterable[Pair]) -> list[Confusion]:
    """Returns confusions of words; whether words look alike is not known."""
    return _largest(_counted((said.split(), read.split()) for said, read in pairs), {})


def syllable_confusions(
    pairs: Iterable[Pair], syllables: Callable[[str], Sequence[str]] = syllables_of
) -> list[Confusion]:
    """Returns confusions of toneless syllables; other characters are units of their own."""
    counted = _counted((syllables(said), syllables(read)) for said, read in pairs)
    visemes = {pair: (visemes_of(pair[0]), visemes_of(pair[1])) for pair in counted if all(pair)}
    return _largest(counted, {pair: one == other for pair, (one, other) in visemes.items() if one and other})


def _look_alike_classes(text: str) -> list[LookAlikeClass | None]:
    """Returns the look-alike class of each character, None for spaces and unknown sounds."""
    classes = iter(look_alike_classes_of(text))
    return [None if character.isspace() else next(classes) for character in text]


def _counted(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Counter[Pair]:
    return Counter(pair for said, read in pairs for pair in unit_pairs(said, read))


def _largest(counted: Counter[Pair], alike: dict[Pair, bool]) -> list[Confusion]:
    """Returns the largest of `counted`, which also counts correct units; equal counts are in code point order."""
    num_said: Counter[str] = Counter()
    for (said, _), count in counted.items():
        if said:
            num_said[said] += count
    ranked = sorted((-count, said, read) for (said, read), count in counted.items() if said != read)
    substituted = [pair for pair in ranked if pair[1] and pair[2]][:NUM_SUBSTITUTED]
    missed_or_added = [pair for pair in ranked if not (pair[1] and pair[2])][:NUM_MISSED_OR_ADDED]
    return [
        Confusion(said, read, -count, num_said[said], alike.get((said, read)))
        for count, said, read in sorted(substituted + missed_or_added)
    ]
