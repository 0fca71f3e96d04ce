"""What can go wrong in a way that a person can mend: each error names the file, the field and the remedy.

The command line catches `JouleboardError` and nothing else, prints it and exits with 2. A bug keeps its traceback.
"""

from __future__ import annotations


class JouleboardError(Exception):
    """A problem that the user can mend.

    Args:
        problem: what is wrong, in one sentence.
        file: the file concerned, if there is one.
        field: the field inside the file, written as in the file (`source.sha256`).
        remedy: what to do about it, in one sentence.
    """

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
    """A YAML or JSON file of ours, or of a user, is not what it should be."""


class SourceError(JouleboardError):
    """Weights or data could not be had from their one declared source, or are not the declared ones."""


class PlanError(JouleboardError):
    """A plan, or the words on the command line, cannot be carried out."""


class HardwareError(JouleboardError):
    """The declared hardware profile and the device that is really there do not match."""


class MeterError(JouleboardError):
    """A meter gave no reading, or one that cannot be true."""


class RecipeError(JouleboardError):
    """A compression step cannot run here, or did not do what it claims."""


class UnitError(JouleboardError):
    """A worker process died, or answered with an error."""


class TooLargeError(UnitError):
    """What was asked for does not fit into memory; nothing was computed and the worker is as before."""


class OutOfTimeError(JouleboardError):
    """The time that a piece of a run was given is spent. What is finished is kept; the same command goes on."""
