"""Where published entries lie: names, kinds of files and how many, before anything in them is opened.

Example::

    reports/<hardware>/<model>/<recipe>/<UTC>-<digest8>/report.json, items.jsonl.gz, trace.csv.gz
    reports/<hardware>/<model>/<recipe>/<UTC>-<digest8>.withdrawn.json
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from jouleboard import check_time, store
from jouleboard.problems import Make, Problem
from jouleboard.problems import at as at_file
from jouleboard.records import Report

PUBLISHED = "reports"
"""The folder that entries are published from."""
BESIDE = frozenset({"README.md", "maintainers.yaml"})
"""Files in that folder which are no entries, and which a branch with entries may not touch."""
WITHDRAWN = ".withdrawn.json"
ENTRY_DEPTH = 4
"""Folders below `reports/` down to an entry's own."""
MAX_FILES = 400_000
FILES = frozenset({store.REPORT, store.ITEMS, store.TRACE})
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
ENTRY = re.compile(r"[0-9]{8}t[0-9]{6}z-[0-9a-f]{8}")
_LEFT = re.compile(r"\..+\.(new|old)")
_TAKE_OUT = "take it out of the folder"


def published_root(path: Path) -> Path | None:
    """Return the folder `reports` that a path is or lies in; None: what is there is not published."""
    found = path.resolve()
    return next((folder for folder in (found, *found.parents) if folder.name == PUBLISHED), None)


def check_tree(root: Path, depth: int = 0, *, strict: bool = True) -> Iterator[Problem]:
    """Check all names and kinds below the folder of published entries; no file is opened, and no link is followed.

    Args:
        root: the folder, or one below it.
        depth: how many folders below it.
        strict: whether what a copy that was broken off left behind is a file like any other.
    """
    seen = 0
    waiting: list[tuple[Path, int]] = [(root, depth)]
    while waiting:
        folder, depth = waiting.pop()
        names: dict[str, str] = {}
        with os.scandir(folder) as found:
            for one in sorted(found, key=lambda one: one.name):
                seen += 1
                if not strict and _LEFT.fullmatch(one.name) and one.is_dir(follow_symlinks=False):
                    # The next `submit` sweeps it up.
                    continue
                if seen > MAX_FILES:
                    yield at_file(root)("(the whole folder)", "count", f"more than {MAX_FILES} files and folders", _TAKE_OUT)
                    return
                at = at_file(folder / ascii(one.name)[1:-1])
                twin = names.setdefault(one.name.lower(), one.name)
                if twin != one.name:
                    # Of both: a branch is told of the one that it adds.
                    for make in (at, at_file(folder / ascii(twin)[1:-1])):
                        yield make("(the file's name)", "case-twin", f"{one.name!a} and {twin!a}", _TAKE_OUT)
                if depth == 0 and one.name in BESIDE and not one.is_symlink():
                    continue
                yield from _name(one.name, at)
                if one.is_dir(follow_symlinks=False):
                    if depth < ENTRY_DEPTH:
                        waiting.append((folder / one.name, depth + 1))
                    else:
                        yield at("(the folder)", "count", f"{depth + 1} folders deep", _TAKE_OUT)
                else:
                    yield from _file(one, depth, at)


def _name(name: str, at: Make) -> Iterator[Problem]:
    if NAME.fullmatch(name) is None or ".." in name:
        yield at("(the file's name)", "name", f"{name[:100]!a}", "name it as `jouleboard submit` does")


def _file(one: os.DirEntry[str], depth: int, at: Make) -> Iterator[Problem]:
    mode = one.stat(follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        yield at("(the file)", "symlink", "is a link", _TAKE_OUT)
        return
    if not stat.S_ISREG(mode) or mode & 0o111:
        yield at("(the file)", "file-kind", "may be executed" if stat.S_ISREG(mode) else "is no plain file", "make it a plain file (chmod 644)")
    withdrawal = depth == ENTRY_DEPTH - 1 and one.name.endswith(WITHDRAWN) and ENTRY.fullmatch(one.name.removesuffix(WITHDRAWN))
    if not withdrawal and not (depth == ENTRY_DEPTH and one.name in FILES):
        yield at("(the file)", "stray-file", f"{one.name[:60]!a} is no file of an entry", _TAKE_OUT)


def check_place(path: Path, report: Report, stored_digest: str, at: Make) -> Iterator[Problem]:
    """Hold an entry against the folder that it is published in.

    Args:
        path: of its report.
        report: as it was read.
        stored_digest: as it stands in the file, whose format may be an older one.
        at: makes problems of the report's file.
    """
    root = published_root(path)
    if root is None:
        return
    created = check_time.moment(report.created_utc)
    made = "" if created is None else f"{created:%Y%m%dt%H%M%Sz}"
    wanted = (report.hardware, report.model, report.recipe, f"{made}-{stored_digest[:8]}")
    found = path.resolve().parent.relative_to(root).parts
    if found != wanted:
        yield at("(the folder)", "place", f"{'/'.join(found)[:200]}, the report belongs in {'/'.join(wanted)}", "publish it with `jouleboard submit`")


def check_simulated(path: Path, report: Report) -> Iterator[Problem]:
    """Simulated joules have no place where entries are published from."""
    simulated = report.method == "simulated" or (report.profile is not None and report.profile.category == "simulated")
    if simulated and published_root(path) is not None:
        yield at_file(path)("method", "simulated", f"{report.method} in a folder `{PUBLISHED}`",
                            "take it out of the folder: it shows that the software works and is no measurement")
