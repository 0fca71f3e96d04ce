"""A Merkle root over the records of an entry: one number that stands for all, and short proofs that a record belongs to it.

Leaves are canonical JSON (RFC 8785), one a record: the lines of `items.jsonl.gz`, the trials, each line of the trace as a JSON string, and
the gates, in this order. Hashes are those of RFC 6962 (2.1): SHA-256 over 0x00 and a leaf, over 0x01 and two nodes; the left part of
a tree has the largest power of two of leaves.

Example: of two items and nothing else the root is H(1 || H(0 || item 0) || H(0 || item 1)).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from jouleboard import store
from jouleboard.records import Report


def of_entry(report: Report, items: Iterable[bytes], trace: Iterable[bytes]) -> str:
    """Return the root of an entry, in hexadecimal.

    Args:
        report: whose trials and gates are meant.
        items: lines of `items.jsonl.gz`.
        trace: lines of `trace.csv.gz`.
    """
    return root(_leaves(report, items, trace))


def _leaves(report: Report, items: Iterable[bytes], trace: Iterable[bytes]) -> Iterator[bytes]:
    yield from items
    yield from map(store.canonical, report.trials)
    # A line of a trace holds neither quotes nor backslashes, so that this is its JSON.
    yield from (b'"' + line + b'"' for line in trace)
    yield from map(store.canonical, report.gates)


def root(leaves: Iterable[bytes]) -> str:
    """Return the root over leaves, in hexadecimal; that of none is the hash of nothing."""
    level = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    if not level:
        return hashlib.sha256().hexdigest()
    while len(level) > 1:
        level = _up(level)
    return level[0].hex()


def _up(level: Sequence[bytes]) -> list[bytes]:
    """Join neighbours; one that is left over goes up as it is, which gives the tree of RFC 6962."""
    pairs = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
    return pairs + ([level[-1]] if len(level) % 2 else [])
