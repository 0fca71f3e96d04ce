"""Rows and batches of the shared-prefix engine: trees of tokens, packed so that little padding is computed. Pure, no torch.

A row holds trees of tokens. Two choices, `3 4 5` and `3 6 7`, behind the context `1 2` and scored from `3` on::

    tokens   1  2  3  4  6        the last token of a choice is scored and never fed
    parents -1  0  1  2  2        4 and 6 both follow 3
    scored      1  2  3  4        the places whose logits tell the next token
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jouleboard.replays import ROW_TOKENS

ROW_SCORES = 64
"""And at most so many scored places: each needs a row of logits as wide as the vocabulary."""
FULL_ROW = 64
"""Short trees share a row up to so many tokens: fewer rows mean less padding, and fewer copies of the prefix before them."""
PASS_COST = 4
"""What a forward pass costs beside its tokens, in tokens for each sequence of the plan's batch size."""
PAIRS_A_TOKEN = 300
"""Pairs of tokens in one row that do not see each other cost as much as computing one token.

By multiplications it would be over a thousand (about 12 h^2 a token and layer, 2 h a pair; h is 576 in the smallest model), but
attention with a mask runs far below the speed of a matrix product: on one AVX-512 core it took a sixth of the forward pass of
PIQA in bfloat16 with 1000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request."""

    context: tuple[int, ...]
    target: tuple[int, ...]
    """Tokens to score, at least one."""

    def fed(self, max_length: int) -> tuple[int, ...]:
        """Return what the model must see: all but the last token, cut from the left, as lm-eval does it."""
        return (self.context + self.target)[:-1][-max_length:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Trees of tokens that are fed as one sequence."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    """Place of the token before each; -1: the prefix of the batch, or nothing."""
    scored: tuple[int, ...]
    """Places whose logits are needed, in order."""
    ends: tuple[int, ...]
    """Places where a sequence ends that would be a row of its own without packing, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Where a request's answer stands in its batch."""

    place: int
    """Number of the request, in the order that they were asked."""
    row: int
    scored: tuple[int, ...]
    """Places in the row that tell each of the request's target tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One batch."""

    prefix: tuple[int, ...]
    """Tokens before every row, computed before; batches of the same prefix follow each other."""
    rows: tuple[Row, ...]
    served: tuple[Served, ...]
    """In the order of their places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A sequence that must be fed, and the requests that need it."""

    tokens: tuple[int, ...]
    places: tuple[int, ...]
    first_scored: int
    """The first place that is scored for any of them."""
    shared: int
    """How many tokens it has in common with the sequence before it."""


@dataclass(slots=True, kw_only=True)
class _Growing:
    """A tree or a row that is being put together."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    """Where the tokens of the sequence that was added last stand."""
    scored: set[int] = field(default_factory=set)
    ends: list[int] = field(default_factory=list)
    served: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """Each request with the places that tell its target."""

    def absorb(self, other: _Growing) -> None:
        """Put another tree beside what is here."""
        begins = len(self.tokens)
        self.tokens += other.tokens
        self.parents += [parent + begins if parent >= 0 else -1 for parent in other.parents]
        self.scored |= {place + begins for place in other.scored}
        self.ends += [place + begins for place in other.ends]
        self.served += [(place, tuple(one + begins for one in scored)) for place, scored in other.served]


def batches(
    sequences: Sequence[Run], groups: Sequence[tuple[int, int, int]], asks: Sequence[Ask], batch_size: int
) -> Iterator[Packed]:
    """Yield the batches of each prefix, the longest prefix and the longest rows first.

    Args:
        sequences: what must be fed, in the order of the tokens.
        groups: first sequence, the one behind the last, and the tokens of their prefix; together they are all sequences.
        asks: the requests.
        batch_size: sequences at once as the plan of the run has them; it bounds tokens and logits.
    """
    trees: dict[tuple[int, ...], list[_Growing]] = {}
    for start, stop, depth in groups:
        prefix = sequences[start].tokens[:depth]
        trees.setdefault(prefix, []).extend(_trees(sequences[start:stop], depth, asks, batch_size))
    # Where memory is too small for the longest, that shows at once.
    for prefix in sorted(trees, key=lambda prefix: (-len(prefix), prefix)):
        rows = sorted(_filled(trees[prefix], batch_size), key=lambda row: -len(row.tokens))
        for start, stop in _cuts(rows, batch_size):
            yield _packed(prefix, rows[start:stop])


def _filled(trees: Sequence[_Growing], batch_size: int) -> Iterator[_Growing]:
    """Put short trees into common rows, beginning with the longest, each time the longest that still fits."""
    left = sorted(trees, key=lambda tree: len(tree.tokens))
    lengths = [len(tree.tokens) for tree in left]
    while left:
        row = left.pop()
        lengths.pop()
        while (fits := bisect.bisect_right(lengths, FULL_ROW - len(row.tokens))) > 0:
            if len(row.scored) + len(left[fits - 1].scored) > batch_size * ROW_SCORES:
                break
            lengths.pop(fits - 1)
            row.absorb(left.pop(fits - 1))
        yield row


def _cuts(rows: Sequence[_Growing], batch_size: int) -> list[tuple[int, int]]:
    """Cut rows into batches so that padding and passes cost least together.

    Args:
        rows: the longest first.
        batch_size: as in `batches`.
    """
    least = [0] * (len(rows) + 1)
    ends = [0] * len(rows)
    for start in range(len(rows) - 1, -1, -1):
        width, scores = len(rows[start].tokens), 0
        for stop in range(start + 1, len(rows) + 1):
            tokens = width * (stop - start)
            scores += len(rows[stop - 1].scored)
            if stop > start + 1 and (tokens > batch_size * ROW_TOKENS or scores > batch_size * ROW_SCORES):
                break
            cost = tokens + batch_size * PASS_COST + least[stop]
            if stop == start + 1 or cost <= least[start]:
                least[start], ends[start] = cost, stop
    found, start = [], 0
    while start < len(rows):
        found.append((start, ends[start]))
        start = ends[start]
    return found


def _trees(
    sequences: Sequence[Run], depth: int, asks: Sequence[Ask], batch_size: int
) -> Iterator[_Growing]:
    """Put sequences that begin alike behind the prefix into one tree, as far as that pays."""
    row: _Growing | None = None
    for one in sequences:
        shared, own = one.shared - depth, len(one.tokens) - one.shared
        if row is not None:
            held = len(row.tokens)
            pays = shared > 0 and shared * PAIRS_A_TOKEN >= (held - shared) * own
            # A long context is not cut apart from its choices: computing it for each would take more memory, not less.
            whole, scores = len(one.tokens) - depth, len(row.scored) + len(one.tokens) - one.first_scored
            fits = held + own <= max(batch_size * ROW_TOKENS, 2 * whole) and scores <= max(batch_size * ROW_SCORES, whole)
            if not (pays and fits):
                yield row
                row = None
        if row is None:
            row, shared = _Growing(), 0
        _add(row, one, depth + shared, depth, asks)
    if row is not None:
        yield row


def _add(row: _Growing, one: Run, begins: int, depth: int, asks: Sequence[Ask]) -> None:
    """Add the tokens of a sequence from `begins` on; those before it, but for the prefix, are in the row already."""
    del row.path[begins - depth :]
    for token in one.tokens[begins:]:
        row.parents.append(row.path[-1] if row.path else -1)
        row.path.append(len(row.tokens))
        row.tokens.append(token)
    row.ends.append(row.path[-1])
    for place in one.places:
        scored = tuple(row.path[-len(asks[place].target) :])
        row.scored.update(scored)
        row.served.append((place, scored))


def _packed(prefix: tuple[int, ...], members: Sequence[_Growing]) -> Packed:
    served = [Served(place=place, row=number, scored=scored)
              for number, row in enumerate(members) for place, scored in row.served]
    return Packed(
        prefix=prefix, served=tuple(sorted(served, key=lambda one: one.place)),
        rows=tuple(Row(tokens=tuple(row.tokens), parents=tuple(row.parents), scored=tuple(sorted(row.scored)),
                       ends=tuple(row.ends)) for row in members))
