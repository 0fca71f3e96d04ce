"""Read the YAML files that people declare things in, strictly: one noun a file, the file's name is its id.

Example: `suite/models/smollm2-135m-instruct-q4wheel.yaml` holds one `declared.Model` with that id.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec

from jouleboard import contradictions, paths, strictyaml
from jouleboard.declared import Hardware, HubSource, Model, Noun, PathSource, Plan, PlanTask, Workload
from jouleboard.declared_tasks import Task, TaskGroup
from jouleboard.errors import DataFileError, PlanError

MAX_YAML_BYTES = strictyaml.MAX_YAML_BYTES
N = TypeVar("N", bound=Noun)


def read_yaml(path: Path, noun: type[N]) -> N:
    """Read one YAML file into a noun.

    Raises:
        DataFileError: naming the file, the field and the remedy.
    """
    found = strictyaml.convert(strictyaml.read(path), noun, path)
    for wrong in contradictions.of(found):
        raise DataFileError(wrong.problem, file=path, field=wrong.field, remedy=wrong.remedy)
    ident = getattr(found, "id", path.stem)
    if ident != path.stem:
        raise DataFileError(f"is {ident!r}, the file's name says {path.stem!r}", file=path, field="id",
                            remedy="give both the same name")
    return found


@cache
def load_all(folder: Path, noun: type[N]) -> dict[str, N]:
    """Read every YAML file of a folder, by id."""
    return {path.stem: read_yaml(path, noun) for path in sorted(folder.glob("*.yaml"))}


def load(kind: str, ident: str, noun: type[N]) -> N:
    """Read the data file of one id.

    Args:
        kind: `corpora`, `models`, `tasks`, `hardware`, `plans` or `recipes`.
        ident: the id, which is the file's name without `.yaml`.
        noun: the class to read it into.

    Raises:
        PlanError: there is no such file; the nearest names are given.
    """
    folder = paths.data_folder(kind)
    known = sorted(entry.stem for entry in folder.glob("*.yaml"))
    if ident in known:
        return read_yaml(folder / f"{ident}.yaml", noun)
    near = difflib.get_close_matches(ident, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
    raise PlanError(f"there is no {kind.rstrip('s')} {ident!r}", file=folder, remedy=hint)


def model(ident: str) -> Model:
    """Read `suite/models/<ident>.yaml`, or describe weights of the user's own.

    Args:
        ident: a declared id; a folder with safetensors, `config.json` and tokenizer; or `OWNER/NAME@COMMIT` on the hub.

    Raises:
        PlanError: it is none of these.
    """
    if ident in (entry.stem for entry in paths.data_folder("models").glob("*.yaml")):
        # A folder of the same name never stands in for a declared model.
        return load("models", ident, Model)
    folder = Path(ident)
    try:
        folder = folder.expanduser()
        own = folder.is_dir() and (folder / "config.json").is_file()
    except (OSError, RuntimeError):
        # Too long for a path, or the home folder of nobody.
        own = False
    if own:
        source = PathSource(path=str(folder.resolve()))
        return _own_model(folder.resolve().name, "weights from a folder", source)
    match = re.fullmatch(r"([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)@([0-9a-f]{40})", ident)
    if match is not None:
        return _own_model(match[1], f"{match[1]} from the hub", HubSource(repo=match[1], revision=match[2]))
    if "/" in ident:
        raise PlanError(f"{ident!r} is neither a folder with a config.json nor OWNER/NAME@COMMIT", field="--model",
                        remedy="give the folder that holds the weights, or pin the hub's repository to the 40 digits of a commit (its page shows "
                        "them under Files, History): a branch or tag may move")
    return load("models", ident, Model)


def _own_model(name: str, title: str, source: HubSource | PathSource) -> Model:
    # A name of its own: these may be other weights than a declared model of the same name.
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:70] or "model"
    ident = f"{slug}-{source.revision[:8] if isinstance(source, HubSource) else 'local'}"
    return Model(id=ident, title=f"{name} ({title})", description="Named on the command line.", source=source,
                 format="safetensors", licence="not declared")


def task(ident: str) -> Task:
    """Read `tasks/<ident>.yaml`."""
    return load("tasks", ident, Task)


GROUPS = "groups"
"""Folder below `tasks/` with one group of tasks a file."""


def groups() -> dict[str, TaskGroup]:
    """Read every group of tasks, by id."""
    return load_all(paths.data_folder("tasks") / GROUPS, TaskGroup)


def expanded(rows: Iterable[PlanTask]) -> tuple[PlanTask, ...]:
    """Put the tasks of a group in the place of its name, each with the group's limit; a task goes before a group of its name."""
    known = groups()
    found: list[PlanTask] = []
    for row in rows:
        group = None if (paths.data_folder("tasks") / f"{row.task}.yaml").is_file() else known.get(row.task)
        found += [row] if group is None else [PlanTask(task=name, limit=row.limit) for name in group.tasks]
    return tuple(found)


def hardware(ident: str) -> Hardware:
    """Read `hardware/<ident>.yaml`."""
    return load("hardware", ident, Hardware)


def workload(ident: str) -> Workload:
    """Return a declared serving workload."""
    return load("workloads", ident, Workload)


def plan(ident: str) -> Plan:
    """Read `suite/plans/<ident>.yaml`, or the YAML file at a path; groups of tasks are expanded."""
    path = Path(ident)
    found = read_yaml(path, Plan) if path.suffix in {".yaml", ".yml"} else load("plans", ident, Plan)
    return msgspec.structs.replace(found, tasks=expanded(found.tasks))
