"""What a branch changes, read from git: new entries are checked, published ones may not be touched, and code does not come with them.

Example: `changes(Path(), "origin/main")` of a branch that adds one entry and edits `tox.ini` gives that entry's folder and the problem
`mixed`. Git only compares here: nothing is fetched, and no hook, filter or helper of the repository is run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jouleboard.check_place import BESIDE, ENTRY_DEPTH, PUBLISHED
from jouleboard.errors import PlanError
from jouleboard.problems import Problem
from jouleboard.problems import at as at_file

MAX_ENTRIES = 100
PLAIN, LINK = "100644", "120000"
_NAMED = 5
_QUIET = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "-c", "core.quotepath=false", "-c", "core.attributesFile=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What differs between a branch, its files that are not committed among them, and where it left its base."""

    reports: Path
    """The folder of published entries."""
    touched: frozenset[Path]
    """Files below it that are new, and all folders that they lie in."""
    problems: tuple[Problem, ...]
    others: tuple[str, ...]
    """Changed files elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    mode: str
    status: str
    path: str


def changes(where: Path, base: str) -> Changes:
    """Compare a checkout with the commit where its branch left the base.

    Args:
        where: a folder of the checkout.
        base: branch, tag or commit.

    Raises:
        PlanError: it is no checkout, or there is no such base.
    """
    root = Path(_git(where, "rev-parse", "--show-toplevel").strip("\n"))
    if base.startswith("-"):
        raise PlanError(f"{base!r} is no branch, tag or commit", field="--base", remedy="name one, such as origin/main")
    left = _git(root, "merge-base", "--end-of-options", base, "HEAD").strip()
    found = [*_compared(_git(root, "diff", "--raw", "-z", "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=none",
                             left, "--")),
             *(_Change(mode=PLAIN, status="A", path=path) for path in _git(
                 root, "ls-files", "--others", "--exclude-standard", "-z").split("\0") if path)]
    reports = root / PUBLISHED
    inside = [one for one in found if one.path.startswith(f"{PUBLISHED}/") and one.path.removeprefix(f"{PUBLISHED}/") not in BESIDE]
    others = tuple(one.path for one in found if one not in inside)
    new = [root / one.path for one in inside if one.status == "A"]
    touched = frozenset(folder for path in new for folder in (path, *path.parents) if folder.is_relative_to(reports))
    return Changes(reports=reports, touched=touched, others=others,
                   problems=tuple(_problems(root, inside, others)))


def _compared(text: str) -> Iterator[_Change]:
    """Read `:100644 100644 <sha> <sha> M`, NUL, path, NUL, and so on."""
    parts = text.split("\0")
    for about, path in zip(parts[::2], parts[1::2], strict=False):
        words = about.removeprefix(":").split(" ")
        if len(words) == _NAMED:
            yield _Change(mode=words[1], status=words[4][:1], path=path)


def _problems(root: Path, inside: Sequence[_Change], others: Sequence[str]) -> Iterator[Problem]:
    for one in inside:
        at = at_file(root / one.path)
        if one.status != "A":
            yield at("(the file)", "append-only", {"D": "was removed"}.get(one.status, "was changed"),
                     "restore it: a correction is a new entry (`replaces`), and a withdrawal is a file beside it (reports/README.md)")
        elif one.mode == LINK:
            yield at("(the file)", "symlink", "is a link", "take it out")
        elif one.mode != PLAIN:
            yield at("(the file)", "file-kind", f"has the mode {one.mode}", "make it a plain file (chmod 644)")
    if not inside:
        return
    for path in others[:10]:
        yield at_file(root / path)("(the file)", "mixed", "changes together with entries", "propose it in a branch of its own")
    folders = {tuple(one.path.split("/")[: ENTRY_DEPTH + 1]) for one in inside if one.status == "A"}
    if len(folders) > MAX_ENTRIES:
        yield at_file(root / PUBLISHED)("(the whole folder)", "branch-size", f"{len(folders)} entries, at most {MAX_ENTRIES} at once",
                                        "share them out over several branches")


def _git(where: Path, *words: str) -> str:
    git = shutil.which("git")
    if git is None:
        raise PlanError("git is not installed", field="--base", remedy="install git, or check the entries without --base")
    # The checkout may belong to another user than the one who checks; nothing is written to it.
    done = subprocess.run([git, "-C", str(where), "-c", "safe.directory=*", *_QUIET, *words], capture_output=True, check=False,
                          env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"})
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise PlanError(f"git {words[0]} says: {said[0][:200] if said else 'nothing'}", file=where, field="--base",
                        remedy="name a branch, tag or commit that is in this checkout, with its history (git fetch)")
    return os.fsdecode(done.stdout)
