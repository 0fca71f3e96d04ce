"""Entries against each other: copies of one measurement, corrections and reproductions that name what is there, withdrawals.

Items never tell a copy: a faithful reproduction has equal items. Windows do: no two last equally long and cost the same to six digits.

Example: an entry whose five trials are those of another one, with a digit changed in one of them, is named with that other one.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jouleboard.problems import Make, Problem
from jouleboard.problems import at as at_file
from jouleboard.records import Report

SAMPLED = 8
"""One of so many rows of a trace is remembered, chosen by what is in it."""
MOST_SHARED = 0.2
"""Two measurements share no rows: each has a time in microseconds. Some room is left for rows at the very beginning of a window."""
LEAST_ROWS = 4
DIGITS = 6
_AGAIN = "measure it yourself"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is remembered of an entry."""

    file: str
    digest: str
    session: str | None
    family: tuple[str, str, str]
    """Hardware, model and recipe."""
    submitter: str | None
    replaces: str | None
    reproduces: str | None
    published: bool
    """Whether it lies where what it names must lie too."""


@dataclass(slots=True, kw_only=True)
class Index:
    """What was seen of all entries, to find one in another."""

    entries: dict[str, Known] = field(default_factory=dict)
    windows: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    """Digests of the entries with a trial of this duration and cost."""
    rows: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, path: Path, report: Report, trace: Sequence[bytes], *, published: bool) -> Iterator[Problem]:
        """Remember an entry, and yield whose copy it is.

        Args:
            path: of its report.
            report: as it was read.
            trace: the lines of its trace; empty: only its windows are compared.
            published: whether it lies in the folder of published entries.
        """
        at, digest = at_file(path), report.digest
        if digest in self.entries:
            yield at("digest", "twin", f"the same entry as {self.entries[digest].file}", "take one of the two out")
            return
        pairs = [_pair(trial.window.duration_s, trial.window.energy.measured_j, trial.window.cpu_s) for trial in report.trials]
        rows = list(_rows(report, trace))
        yield from self._copied(pairs, self.windows, report, at, least=min(2, max(len(pairs), 1)), share=0.5, words="windows")
        yield from self._copied(rows, self.rows, report, at, least=LEAST_ROWS, share=MOST_SHARED, words="rows of the trace")
        for pair in pairs:
            self.windows[pair].append(digest)
        for row in rows:
            self.rows[row].append(digest)
        self.entries[digest] = Known(file=str(path), digest=digest, session=report.session, submitter=report.submitter,
                                     replaces=report.replaces, reproduces=report.reproduces, published=published,
                                     family=(report.hardware, report.model, report.recipe))

    def _copied(
        self, mine: Sequence[object], seen: dict[object, list[str]] | dict[tuple[str, str], list[str]] | dict[int, list[str]],
        report: Report, at: Make, *, least: int, share: float, words: str,
    ) -> Iterator[Problem]:
        shared = Counter(other for one in set(mine) for other in seen.get(one, ()))  # type: ignore[call-overload]
        for other, count in shared.most_common(1):
            # Two variants of one session share its idle windows, which are not looked at here; they share no trial.
            if count >= least and count > share * len(set(mine)) and not _corrects(report, other):
                yield at("trials", "copied", f"{count} of {len(set(mine))} {words} are those of {self.entries[other].file}", _AGAIN)

    def check_names(self) -> Iterator[Problem]:
        """Check that the entries which entries name are there; after all of them were added."""
        for mine in self.entries.values():
            if not mine.published:
                continue
            at = at_file(Path(mine.file))
            if mine.replaces is not None:
                old = self.entries.get(mine.replaces)
                if old is None or (old.family, old.submitter) != (mine.family, mine.submitter):
                    yield at("replaces", "replaces", f"{mine.replaces[:16]}… is no entry of the same hardware, model, recipe and submitter",
                             "name the digest of the entry that this one corrects")
            if mine.reproduces is not None:
                old = self.entries.get(mine.reproduces)
                if old is None or old.family[1:] != mine.family[1:] or old.submitter == mine.submitter:
                    yield at("reproduces", "reproduces", f"{mine.reproduces[:16]}… is no entry of the same model and recipe by another submitter",
                             "name the digest of the entry that was run again")


def _corrects(report: Report, other: str) -> bool:
    """A correction may be the same measurement, said better."""
    return report.replaces == other


def _pair(duration_s: float, joules: float | None, cpu_s: float | None) -> tuple[str, str]:
    spent = joules if joules is not None else cpu_s
    return f"{duration_s:.{DIGITS}g}", "" if spent is None else f"{spent:.{DIGITS}g}"


def _rows(report: Report, trace: Iterable[bytes]) -> Iterator[int]:
    """Yield a number for some rows of the trials, the same ones wherever they stand."""
    trials = {trial.window.name.encode() for trial in report.trials}
    for line in trace:
        name, _, rest = line.partition(b",")
        # The first row of a window is the same in many: nothing was spent yet.
        if name in trials and not rest.startswith(b"0,"):
            number = zlib.crc32(rest)
            if number % SAMPLED == 0:
                yield number
