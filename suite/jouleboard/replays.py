"""What recorded batches take to be computed again, in tokens. Pure functions.

A row is scored (`decode_steps` 0: one pass over its tokens) or generated: its prompt gives the first token, each further one
takes a step, and the last is never fed. A batch is of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import msgspec

from jouleboard.records import ReplayRow

UNPADDED = frozenset({"ctranslate2", "llama.cpp"})
"""Engines that compute prompts of different lengths together without padding."""
ROW_TOKENS = 128
"""A packed batch has at most so many tokens for each sequence of the batch size, padding included."""


def fed_tokens(rows: Sequence[ReplayRow]) -> int:
    """Return the tokens of a batch that go through the model, padding left out."""
    return sum(len(row.tokens) + _later_steps(row) for row in rows)


def computed_tokens(rows: Sequence[ReplayRow], engine: str = "transformers") -> int:
    """Return the tokens of a batch that go through the model: rows as long as the longest beside them, and the steps behind them.

    Args:
        rows: the batch.
        engine: that computes it, as entries call it; some pad no prompts of generation. What is scored, all of them pad.
    """
    if engine in UNPADDED and any(row.decode_steps for row in rows):
        return fed_tokens(rows)
    together: dict[int, list[int]] = {}
    for row in rows:
        together.setdefault(row.joins, []).append(len(row.tokens))
    return sum(len(lengths) * max(lengths) for lengths in together.values()) + sum(map(_later_steps, rows))


def part(rows: Sequence[ReplayRow], tokens: int) -> list[ReplayRow]:
    """Return a batch whole, or of a generated one that has more than `tokens` fed tokens the rows that begin it.

    Nothing that those rows do depends on the later ones, so this is the batch as it was recorded, without them.
    """
    later = any(row.joins for row in rows)
    return [row for row in rows if not row.joins] if later and fed_tokens(rows) > tokens else list(rows)


def steps(rows: Sequence[ReplayRow]) -> int:
    """Return how many steps one after the other a batch takes behind its prompts."""
    return max(row.joins + _later_steps(row) for row in rows)


def _later_steps(row: ReplayRow) -> int:
    return max(0, row.decode_steps - 1)


def is_prefix(rows: Sequence[ReplayRow]) -> bool:
    """Return whether a batch is the prefix of those behind it."""
    return not any(row.requests for row in rows)


def is_packed(rows: Sequence[ReplayRow]) -> bool:
    """Return whether a batch is one of the shared-prefix engine's, or a prefix of it."""
    return is_prefix(rows) or any(row.scored for row in rows)


def prefixes(batches: Sequence[Sequence[ReplayRow]]) -> dict[int, int]:
    """Return, for each batch that is behind a prefix, where that prefix is among the batches."""
    found: dict[int, int] = {}
    last = 0
    for index, rows in enumerate(batches):
        if is_prefix(rows):
            last = index
        elif rows[0].behind:
            found[index] = last
    return found


def as_run(
    batches: Sequence[Sequence[ReplayRow]], *, batch_size: int, own_batch_size: bool, packs: bool, refills: bool
) -> list[list[ReplayRow]]:
    """Return recorded batches as a variant computes them.

    Args:
        batches: as the base's engine recorded them.
        batch_size: of the variant: rows at once, or so many times the tokens of a packed batch.
        own_batch_size: whether that is not the one that they were recorded with: then they are cut anew.
        packs: whether the variant's engine computes packed batches; else each sequence of theirs is computed whole.
        refills: whether rows may join others that are under way; else those that wait begin when all have left.
    """
    found = [list(rows) for rows in batches] if packs else plain(batches, batch_size)
    if own_batch_size:
        return [batch for _, group in groupby(found, key=_kind) for batch in _cut(list(group), batch_size, refills=refills)]
    return found if refills else [_scheduled(rows, batch_size, refills=False) if _kind(rows) == "generated" else rows for rows in found]


def _kind(rows: Sequence[ReplayRow]) -> str:
    if is_prefix(rows):
        return "prefix"
    if is_packed(rows):
        return "packed"
    return "generated" if any(row.decode_steps for row in rows) else "scored"


def _cut(batches: list[list[ReplayRow]], batch_size: int, *, refills: bool) -> list[list[ReplayRow]]:
    """Cut neighbouring batches of one kind anew; a prefix stays what it is."""
    kind, rows = _kind(batches[0]), [row for batch in batches for row in batch]
    if kind == "prefix":
        return batches
    if kind == "generated":
        return [_scheduled(rows, batch_size, refills=refills)]
    if kind == "scored":
        # As lm-eval sorts them: little is padded.
        rows.sort(key=lambda row: (-len(row.tokens), row.tokens))
    most = batch_size * ROW_TOKENS if kind == "packed" else batch_size
    found: list[list[ReplayRow]] = []
    for row in rows:
        grown = [*found[-1], row] if found else [row]
        size = len(grown) * max(len(one.tokens) for one in grown) if kind == "packed" else len(grown)
        if found and size <= most:
            found[-1] = grown
        else:
            found.append([row])
    return found


def _scheduled(rows: Sequence[ReplayRow], batch_size: int, *, refills: bool) -> list[ReplayRow]:
    """Return generated rows with the passes after which each joins: as soon as a quarter of the places are free (`generation.write`)."""
    found: list[ReplayRow] = []
    left: list[int] = []
    passes = 0
    while len(found) < len(rows):
        free = batch_size - len(left)
        if not left or (refills and 4 * free >= batch_size):
            new = rows[len(found) : len(found) + free]
            found += [msgspec.structs.replace(row, joins=passes) for row in new]
            # The pass that computes a prompt gives its first token.
            left += [row.decode_steps - 1 for row in new]
        else:
            left = [steps_ - 1 for steps_ in left]
        left = [steps_ for steps_ in left if steps_ > 0]
        passes += 1
    return found


def plain(batches: Sequence[Sequence[ReplayRow]], batch_size: int) -> list[list[ReplayRow]]:
    """Return what the reference engine computes for recorded batches: of packed ones each sequence whole, the longest first.

    Args:
        batches: as one engine recorded them.
        batch_size: rows at once.
    """
    found: list[list[ReplayRow]] = []
    prefix: tuple[int, ...] = ()
    for rows in batches:
        if is_prefix(rows):
            prefix = rows[0].tokens
        elif is_packed(rows):
            whole = sorted((one for row in rows for one in _unpacked(row, prefix if row.behind else ())),
                           key=lambda row: (-len(row.tokens), row.tokens))
            found += [whole[start : start + batch_size] for start in range(0, len(whole), batch_size)]
        else:
            found.append(list(rows))
    return found


def _unpacked(row: ReplayRow, prefix: tuple[int, ...]) -> Iterator[ReplayRow]:
    """Yield the sequences of a packed row, with its requests shared out: each served one at least."""
    parents = row.parents or range(-1, len(row.tokens) - 1)
    for number, end in enumerate(row.ends):
        tokens, place = [], end
        while place >= 0:
            tokens.append(row.tokens[place])
            place = parents[place]
        yield ReplayRow(tokens=(*prefix, *reversed(tokens)), requests=_share(row.requests, number, len(row.ends)),
                        prompt_tokens=_share(row.prompt_tokens, number, len(row.ends)),
                        output_tokens=_share(row.output_tokens, number, len(row.ends)))


def _share(whole: int, number: int, parts: int) -> int:
    return whole // parts + (number < whole % parts)


def apart(batches: Sequence[Sequence[ReplayRow]]) -> list[list[ReplayRow]]:
    """Return what an engine computes that takes no rows in while others are under way: batches of rows that begin together.

    Args:
        batches: as another engine recorded them; of one whose rows joined each other, as many are computed at once as began it.
    """
    found: list[list[ReplayRow]] = []
    for rows in batches:
        at_once = sum(not row.joins for row in rows)
        alone = [msgspec.structs.replace(row, joins=0) for row in rows]
        found += [alone[start : start + at_once] for start in range(0, len(alone), at_once)]
    return found
