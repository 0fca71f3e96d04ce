"""Runs of words as numbers, the same on every machine: to find texts that share them.

>>> hashes(words("The cat sat."), 2)      # "the cat", "cat sat"
array([1316…, 9024…], dtype=uint64)
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
FACTOR = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio, odd: multiplied by it, a word has another weight at every place of its run."""
WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the words of a text, without case, punctuation and differences of typesetting."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=2**20)
def _number(word: str) -> int:
    # Python's own hash of a word differs from process to process.
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def hashes(run: list[str], length: int) -> Hashes:
    """Return one number for each run of `length` words, in their order; none where there are fewer words.

    The number is the sum of word(i) x FACTOR^i modulo 2^64, so that two of a million runs share one by chance in about one
    of 10^7 texts.

    Args:
        run: the words.
        length: how many make a run.
    """
    count = len(run) - length + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    numbers = np.fromiter((_number(word) for word in run), dtype=np.uint64, count=len(run))
    found = np.zeros(count, dtype=np.uint64)
    for place in range(length):
        # The number of words tells a run of 2 from the same two at the beginning of a run of 3.
        found += numbers[place : place + count] * np.uint64(pow(FACTOR, place + length, 2**64))
    return found
