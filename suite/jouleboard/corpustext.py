"""What becomes of a corpus's texts, one step after another: normalised, filtered, freed of duplicates and of eval items. Pure.

Every text that goes is counted under the reason: `short`, `few_letters`, `language`, `same`, `near`, `in_evals`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jouleboard import ngrams
from jouleboard.ngrams import Hashes

SHORTEST_CHARACTERS = 200
LETTER_SHARE = 0.75
"""Least share of letters among what is not white space: tables, lists of numbers and formulas have less."""
ENGLISH = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
ENGLISH_KINDS = 2
"""How many of these words a text must have: the rule of Rae et al. 2021 (Gopher), appendix A."""
SHINGLE_WORDS = 5
NEAR = 0.7
"""Jaccard similarity of their shingles from which on two texts are one."""
OVERLAP_WORDS = 13
"""Brown et al. 2020 (GPT-3), appendix C: a run of 13 words that a text shares with an eval item is no chance."""
SHORTEST_PART_WORDS = 8
"""A shorter part of an item, an answer for example, is said by chance; 8 is the least of GPT-3's, too."""
SHORTEST_ITEM_WORDS = 5
"""So is a whole item that is shorter than this: it cannot be looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evals:
    """The runs of words that must not be in a text to train on."""

    runs: Mapping[str, Mapping[int, Hashes]]
    """By task and by length in words."""
    items: Mapping[str, int]
    too_short: Mapping[str, int]
    """How many items of a task are too short to be looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """The texts that are left, and how many went for which reason."""

    texts: list[str]
    dropped: dict[str, int]
    hits: dict[str, int]
    """Texts that share a run with a task's items, by task; one text may have several."""


def normalise(text: str) -> str:
    """Return a text in composed Unicode, with typewriter quotation marks, one space between words, and no empty lines."""
    composed = unicodedata.normalize("NFC", text).replace("``", '"').replace("''", '"')
    lines = (" ".join(line.split()) for line in composed.splitlines())
    return "\n".join(line for line in lines if line)


def unfit(text: str, words: Sequence[str]) -> str | None:
    """Say why a normalised text is not to be trained on; None: it is fit.

    Args:
        text: the text.
        words: its words.
    """
    if len(text) < SHORTEST_CHARACTERS:
        return "short"
    shown = [character for character in text if not character.isspace()]
    if sum(map(str.isalpha, shown)) < LETTER_SHARE * len(shown):
        return "few_letters"
    return None if len(ENGLISH.intersection(words)) >= ENGLISH_KINDS else "language"


class Seen:
    """Tells texts that were there before, whole or nearly so."""

    def __init__(self) -> None:
        """Nothing was there yet."""
        self._whole: set[bytes] = set()
        self._sizes: list[int] = []
        self._places: dict[int, list[int]] = {}

    def repeats(self, words: list[str]) -> str | None:
        """Say whether a text is the `same` as, or `near`, an earlier one; one that is neither is remembered.

        Similarity is exact, not estimated: shared shingles over all shingles of both.
        """
        shingles = np.unique(ngrams.hashes(words, min(SHINGLE_WORDS, len(words))))
        whole = ngrams.hashes(words, len(words)).tobytes()
        if whole in self._whole:
            return "same"
        self._whole.add(whole)
        shared: Counter[int] = Counter()
        numbers = shingles.tolist()
        for number in numbers:
            shared.update(self._places.get(number, ()))
        if any(count >= NEAR * (len(numbers) + self._sizes[other] - count) for other, count in shared.items()):
            return "near"
        for number in numbers:
            self._places.setdefault(number, []).append(len(self._sizes))
        self._sizes.append(len(numbers))
        return None


def evals(documents: Mapping[str, Sequence[object]]) -> Evals:
    """Gather the runs of words of all eval items.

    Every text of an item gives its runs of 13 words; one of 8 to 12 words is looked for as a whole. So is an item's whole text,
    in the order of its fields, because an item of short parts would not be found by any of them.

    Args:
        documents: each task's parsed documents.
    """
    runs: dict[str, dict[int, Hashes]] = {}
    too_short: dict[str, int] = {}
    for task, items in documents.items():
        found: dict[int, list[Hashes]] = {}
        for item in items:
            parts = [ngrams.words(part) for part in _texts(item)]
            whole = [word for part in parts for word in part]
            too_short[task] = too_short.get(task, 0) + (len(whole) < SHORTEST_ITEM_WORDS)
            for words in (whole, *(part for part in parts if len(part) >= SHORTEST_PART_WORDS)):
                if len(words) >= SHORTEST_ITEM_WORDS:
                    length = min(len(words), OVERLAP_WORDS)
                    found.setdefault(length, []).append(ngrams.hashes(words, length))
        runs[task] = {length: np.unique(np.concatenate(hashes)) for length, hashes in sorted(found.items())}
    return Evals(runs=runs, items={task: len(items) for task, items in documents.items()}, too_short=too_short)


def _texts(value: object) -> Iterator[str]:
    """Yield every text in an item, at any depth, in the order of its fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def overlaps(texts: Sequence[list[str]], held: Evals) -> dict[str, set[int]]:
    """Return which texts share a run of words with which task's items.

    Args:
        texts: each as its words.
        held: what must not be in them.
    """
    found: dict[str, set[int]] = {}
    for length in sorted({length for runs in held.runs.values() for length in runs}):
        per_text = [ngrams.hashes(words, length) for words in texts]
        owners = np.repeat(np.arange(len(texts)), [len(hashes) for hashes in per_text])
        everything = np.concatenate([np.zeros(0, dtype=np.uint64), *per_text])
        for task, runs in held.runs.items():
            if length in runs:
                hit = np.unique(owners[_among(everything, runs[length])])
                found.setdefault(task, set()).update(map(int, hit))
    return {task: hits for task, hits in found.items() if hits}


def _among(values: Hashes, ordered: Hashes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Tell which values are in an ordered array that is not empty."""
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values)


def clean(raw: Iterable[str], held: Evals) -> Cleaned:
    """Normalise, filter, remove duplicates, and remove every text that overlaps with an eval item.

    Args:
        raw: the texts as parsed.
        held: what must not be in them.
    """
    seen, dropped = Seen(), dict.fromkeys(("short", "few_letters", "language", "same", "near", "in_evals"), 0)
    kept: list[tuple[str, list[str]]] = []
    for text in map(normalise, raw):
        words = ngrams.words(text)
        why = unfit(text, words) or seen.repeats(words)
        if why is None:
            kept.append((text, words))
        else:
            dropped[why] += 1
    hits = overlaps([words for _, words in kept], held)
    gone = set().union(*hits.values())
    dropped["in_evals"] = len(gone)
    return Cleaned(texts=[text for index, (text, _) in enumerate(kept) if index not in gone], dropped=dropped,
                   hits={task: len(found) for task, found in sorted(hits.items())})
