"""What is read for what: the most frequent confusions of characters, words and syllables."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from model.metrics import Pair, unit_pairs
from model.pinyin import syllables_of
from model.visemes import LookAlikeClass, look_alike_classes_of, visemes_of
from stages.reports.figures import Confusion

NUM_SUBSTITUTED, NUM_MISSED_OR_ADDED = 20, 10
"""Of the longest list: where a model reads little, what it missed would fill a list of all."""


def character_confusions(pairs: Iterable[Pair]) -> list[Confusion]:
    """Characters read for characters; they look alike where their sounds do in most of the sentences."""
    counted: Counter[Pair] = Counter()
    looking: dict[Pair, Counter[bool]] = {}
    for reference, hypothesis in pairs:
        said_looks, read_looks = iter(_looks(reference)), iter(_looks(hypothesis))
        for said, read in unit_pairs(reference, hypothesis):
            said_look = next(said_looks) if said else None
            read_look = next(read_looks) if read else None
            counted[said, read] += 1
            if said != read and said_look and read_look:
                looking.setdefault((said, read), Counter())[said_look == read_look] += 1
    alike = {pair: looks[True] > looks[False] for pair, looks in looking.items()}
    return _largest(counted, alike)


def word_confusions(pairs: Iterable[Pair]) -> list[Confusion]:
    """Words read for words; how words look is not known."""
    return _largest(_counted((said.split(), read.split()) for said, read in pairs), {})


def syllable_confusions(
    pairs: Iterable[Pair], syllables: Callable[[str], Sequence[str]] = syllables_of
) -> list[Confusion]:
    """Toneless syllables read for syllables, other characters by themselves."""
    counted = _counted((syllables(said), syllables(read)) for said, read in pairs)
    looks = {pair: (visemes_of(pair[0]), visemes_of(pair[1])) for pair in counted if all(pair)}
    return _largest(counted, {pair: one == other for pair, (one, other) in looks.items() if one and other})


def _looks(text: str) -> list[LookAlikeClass | None]:
    """How each character looks, with None for the spaces too."""
    looks = iter(look_alike_classes_of(text))
    return [None if character.isspace() else next(looks) for character in text]


def _counted(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Counter[Pair]:
    return Counter(pair for said, read in pairs for pair in unit_pairs(said, read))


def _largest(counted: Counter[Pair], alike: dict[Pair, bool]) -> list[Confusion]:
    """The largest of `counted`, which counts what was read rightly too; of equals the first in code point order."""
    num_said: Counter[str] = Counter()
    for (said, _), count in counted.items():
        if said:
            num_said[said] += count
    ranked = sorted((-count, said, read) for (said, read), count in counted.items() if said != read)
    substituted = [one for one in ranked if one[1] and one[2]][:NUM_SUBSTITUTED]
    missed_or_added = [one for one in ranked if not (one[1] and one[2])][:NUM_MISSED_OR_ADDED]
    return [
        Confusion(said, read, -count, num_said[said], alike.get((said, read)))
        for count, said, read in sorted(substituted + missed_or_added)
    ]
