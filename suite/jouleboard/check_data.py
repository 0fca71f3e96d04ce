"""Declared data files of this installation: each is what its kind is, and names what is there.

Example: a plan's recipe that trains on a corpus which no file of `suite/corpora` declares is named by file and field.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jouleboard import catalogue, definitions, paths
from jouleboard.declared import Hardware, Model, Noun, Plan, Workload
from jouleboard.declared_corpora import Corpus
from jouleboard.declared_tasks import Task, TaskGroup
from jouleboard.errors import DataFileError
from jouleboard.factors import Factors
from jouleboard.problems import Problem
from jouleboard.recipes import Recipe

KINDS: dict[str, type[Noun]] = {
    "models": Model, "recipes": Recipe, "tasks": Task, "hardware": Hardware, "plans": Plan,
    "workloads": Workload, "corpora": Corpus, "factors": Factors,
}


def from_error(error: DataFileError, path: Path) -> Problem:
    """Return what a file could not be read for as a problem."""
    return Problem(file=error.file or str(path), field=error.field or "(the whole file)", code=error.code,
                   found=error.problem, remedy=error.remedy or "mend the file")


def check_data() -> Iterator[Problem | None]:
    """Check every declared data file; None for one that is sound."""
    for kind, noun in KINDS.items():
        for path in sorted(paths.data_folder(kind).glob("*.yaml")):
            try:
                found = catalogue.read_yaml(path, noun)
                if isinstance(found, Task):
                    definitions.require(found)
                if isinstance(found, Recipe):
                    _require_corpora(found, path)
            except DataFileError as error:
                yield from_error(error, path)
                continue
            yield None
    yield from _check_groups()


def _check_groups() -> Iterator[Problem | None]:
    """Check the groups of tasks: each names tasks that are declared."""
    folder = paths.data_folder("tasks")
    for path in sorted((folder / catalogue.GROUPS).glob("*.yaml")):
        try:
            for name in catalogue.read_yaml(path, TaskGroup).tasks:
                if not (folder / f"{name}.yaml").is_file():
                    raise DataFileError(f"there is no task {name!r}", file=path, field="tasks", remedy="jouleboard tasks list names them")
        except DataFileError as error:
            yield from_error(error, path)
            continue
        yield None


def _require_corpora(recipe: Recipe, path: Path) -> None:
    """Make sure that what a recipe's steps are trained on is declared."""
    for index, step in enumerate(recipe.steps):
        if step.trains_on is not None and not (paths.data_folder("corpora") / f"{step.trains_on}.yaml").is_file():
            raise DataFileError(f"there is no corpus {step.trains_on!r}", file=path, field=f"steps[{index}].corpus",
                                remedy="declare it in suite/corpora, or name one that is there")
