"""What can go wrong in a way that a person can mend: each error names the file, the field and the remedy.

The command line catches `JouleboardError` and nothing else, prints it and exits with 2. A bug keeps its traceback.
"""

from __future__ import annotations

from typing import Literal

FailureCode = Literal["out-of-memory", "crash", "time-out", "non-finite", "unsupported", "data", "error"]
"""Kinds of failure that are results: a variant that fails so becomes a failed entry, and the rest of the run goes on."""


class JouleboardError(Exception):
    """A problem that the user can mend.

    Args:
        problem: what is wrong, in one sentence.
        file: the file concerned, if there is one.
        field: the field inside the file, written as in the file (`source.sha256`).
        remedy: what to do about it, in one sentence.
    """

    kind: FailureCode = "error"
    """What kind of failure a variant has that fails so."""

    def __init__(
        self, problem: str, *, file: object = None, field: str | None = None, remedy: str | None = None
    ) -> None:
        """Keep the parts, so that `--json` can print them apart."""
        super().__init__(problem)
        self.problem = problem
        self.file = None if file is None else str(file)
        self.field = field
        self.remedy = remedy

    def __str__(self) -> str:
        """Give `file: field: problem` and the remedy on a line of its own."""
        where = ": ".join(part for part in (self.file, self.field) if part)
        text = f"{where}: {self.problem}" if where else self.problem
        return f"{text}\n  remedy: {self.remedy}" if self.remedy else text


class DataFileError(JouleboardError):
    """A YAML or JSON file of ours, or of a user, is not what it should be.

    Args:
        problem: what is wrong, in one sentence.
        file: the file concerned, if there is one.
        field: the field inside the file.
        remedy: what to do about it, in one sentence.
        code: the rule that is broken, a key of `problems.RULES`.
    """

    kind = "data"

    def __init__(
        self, problem: str, *, file: object = None, field: str | None = None, remedy: str | None = None, code: str = "unreadable",
    ) -> None:
        """Keep the parts."""
        super().__init__(problem, file=file, field=field, remedy=remedy)
        self.code = code


class SourceError(JouleboardError):
    """Weights or data could not be had from their one declared source, or are not the declared ones."""

    kind = "data"


class PlanError(JouleboardError):
    """A plan, or the words on the command line, cannot be carried out."""


class HardwareError(JouleboardError):
    """The declared hardware profile and the device that is really there do not match."""


class MeterError(JouleboardError):
    """A meter gave no reading, or one that cannot be true."""


class RecipeError(JouleboardError):
    """A compression step cannot run here, or did not do what it claims."""

    kind = "unsupported"


class UnitError(JouleboardError):
    """A worker process died, or answered with an error.

    Args:
        problem: what is wrong, in one sentence.
        file: the file concerned, if there is one.
        field: the unit concerned.
        remedy: what to do about it, in one sentence.
        kind: what kind of failure it is.
    """

    def __init__(
        self, problem: str, *, file: object = None, field: str | None = None, remedy: str | None = None,
        kind: FailureCode = "error",
    ) -> None:
        """Keep the parts."""
        super().__init__(problem, file=file, field=field, remedy=remedy)
        self.kind = kind


class TooLargeError(UnitError):
    """What was asked for does not fit into memory; nothing was computed and the worker is as before."""

    def __init__(
        self, problem: str, *, file: object = None, field: str | None = None, remedy: str | None = None,
        kind: FailureCode = "out-of-memory",
    ) -> None:
        """Keep the parts."""
        super().__init__(problem, file=file, field=field, remedy=remedy, kind=kind)


class StorageError(JouleboardError):
    """A folder cannot be written: it is full, read-only, or gone. It ends the run, and no variant has failed by it."""


class OutOfTimeError(JouleboardError):
    """The time that a piece of a run was given is spent. What is finished is kept; the same command goes on."""
