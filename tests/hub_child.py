"""A process that fetches from a hub, for tests: the hub's library reads its environment when it is imported.

    python -m tests.hub_child model org/tiny COMMIT
    python -m tests.hub_child data org/set COMMIT SUBSET SPLIT...       # SUBSET may be empty
    python -m tests.hub_child checkpoint org/tiny COMMIT FILE           # FILE may be empty: all of it
    python -m tests.hub_child task task.yaml

It prints one line of JSON: what came, or what was said to go wrong.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import msgspec

from jouleboard import hubdata, sources
from jouleboard.declared import HubSource
from jouleboard.errors import JouleboardError


def _come(words: list[str], said: list[str]) -> object:
    kind, *rest = words
    if kind == "task":
        from jouleboard import tasks
        from jouleboard.catalogue import read_yaml
        from jouleboard.declared_tasks import Task

        prepared = tasks.prepare(read_yaml(Path(rest[0]), Task), say=said.append)
        return {"documents": prepared.documents, "sha256": prepared.data_sha256, "lines": prepared.path.read_text().rstrip("\n").split("\n")}
    source = HubSource(repo=rest[0], revision=rest[1], subset=rest[2] or None if kind == "data" else None)
    if kind == "data":
        return hubdata.splits(source, rest[3:], used_by="task t", say=said.append)
    if kind == "checkpoint":
        place = sources.checkpoint(msgspec.structs.replace(source, file=rest[2] or None), used_by="recipe r", say=said.append)
        return {"name": place.name, "sha256": hashlib.sha256(place.read_bytes()).hexdigest() if place.is_file() else None}
    folder = sources.hub_model(source, used_by="model m", say=said.append, thorough="--sizes" not in rest)
    return {"folder": str(folder), "files": {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                                             for path in sorted(folder.rglob("*")) if path.is_file()}}


def main(words: list[str]) -> None:
    """Fetch, and print what came of it."""
    said: list[str] = []
    try:
        answer = {"came": _come(words, said)}
    except JouleboardError as error:
        answer = {"error": type(error).__name__, "problem": error.problem, "remedy": error.remedy or "", "file": error.file}
    print(json.dumps({**answer, "said": said, "modules": sorted({"torch", "datasets", "lm_eval"} & set(sys.modules))}))


if __name__ == "__main__":
    main(sys.argv[1:])
