"""What `check` and `build` do with reports, in the order a reader of the terminal sees it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from jouleboard import paths, store
from jouleboard.errors import PlanError


def check(where: Sequence[Path], *, as_json: bool) -> int:
    """Check data files and reports; exit code 1 when anything is wrong."""
    from jouleboard import check as checker  # noqa: PLC0415

    for path in where:
        if not path.exists():
            raise PlanError("does not exist", file=path, remedy="name a report, an entry or a folder of entries")
        if not any(True for _ in store.find_reports(path)):
            raise PlanError("holds no report.json", file=path, remedy="name a folder that `jouleboard run` wrote")
    found = checker.check_paths(where) if where else checker.check_all(_default_reports())
    if as_json:
        print(json.dumps({"checked": found.checked, "problems": msgspec.to_builtins(found.problems)}, indent=1))
    else:
        for problem in found.problems:
            print(checker.render(problem))
        print(f"{found.checked} files and entries checked, {len(found.problems)} problem(s)")
    return 1 if found.problems else 0


def build(reports: Path | None, out: Path, factors: str = "world", *, address: str = "") -> int:
    """Build the site from every report that passes the check; nothing is done where nothing has changed since the last time.

    Args:
        reports: the folder of reports; None: that of the checkout.
        out: where the site goes.
        factors: a declared id, or a file.
        address: where the site will be published; empty: not known.
    """
    from jouleboard import catalogue, publish, rank, sitestamp  # noqa: PLC0415
    from jouleboard import check as checker  # noqa: PLC0415
    from jouleboard.factors import Factors  # noqa: PLC0415

    own = Path(factors) if factors.endswith((".yaml", ".yml")) else None
    declared = catalogue.load("factors", factors, Factors) if own is None else catalogue.read_yaml(own, Factors)
    root = reports or _default_reports()
    if not root.is_dir():
        raise PlanError("does not exist", file=root, field="--reports", remedy="name a folder of reports")
    stamp = sitestamp.of(root, settings=[factors, address], extra=[] if own is None else [own])
    if sitestamp.is_current(out, stamp):
        print(f"nothing changed since {out} was built")
        return 0
    loaded = checker.load_entries(root)
    for problem in loaded.problems:
        print(checker.render(problem), file=sys.stderr)
    boards = rank.boards(loaded.entries, factors=declared)
    folders = {entry.name: entry.folder for entry in loaded.entries}
    refused = sorted({problem.file for problem in loaded.problems})
    pages = publish.publish(boards, out, folders=folders, problems=refused, address=address)
    if not loaded.problems:
        # With problems the next build names them again.
        sitestamp.keep(out, stamp)
    print(f"{len(loaded.entries)} entries on {len(boards)} board(s), {len(pages)} files; {len(refused)} file(s) refused")
    print(f"open {out / 'index.html'}")
    return 1 if loaded.problems else 0


def _default_reports() -> Path:
    root = paths.checkout()
    return (root or Path()) / "reports"
