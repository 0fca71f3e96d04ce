"""What `check` and `build` do with reports, in the order a reader of the terminal sees it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from jouleboard import branch, maintainers, paths, store, trust
from jouleboard import check as checker
from jouleboard.errors import PlanError
from jouleboard.trust import Published, Trust


def check(where: Sequence[Path], *, as_json: bool, base: str | None = None) -> int:
    """Check data files and reports; exit code 1 when anything is wrong.

    Args:
        where: reports, entries or folders of entries; with a base, a folder of the checkout to compare.
        as_json: print for machines.
        base: check only what the branch changes since it left this one; None: everything.
    """
    found = _against(where, base) if base is not None else _everything(where)
    unheld = sorted({task for entry in found.entries for task in entry.unheld})
    if as_json:
        print(json.dumps({"checked": found.checked, "problems": msgspec.to_builtins(found.problems), "without_manifest": unheld}, indent=1))
        return 1 if found.problems else 0
    for problem in found.problems:
        print(checker.render(problem))
    if unheld:
        print(f"note: no frozen manifest here of the data of {', '.join(unheld)}: their items are recomputed from the entries' own answers")
    print(f"{found.checked} files and entries checked, {len(found.problems)} problem(s)")
    return 1 if found.problems else 0


def codes() -> int:
    """Print every reason code with its rule."""
    from jouleboard.problems import RULES, SINCE  # noqa: PLC0415

    for code, rule in RULES.items():
        since = f" (since rules {SINCE[code]})" if code in SINCE else ""
        print(f"{code:<18} {rule}{since}")
    return 0


def _everything(where: Sequence[Path]) -> checker.Findings:
    for path in where:
        if not path.exists():
            raise PlanError("does not exist", file=path, remedy="name a report, an entry or a folder of entries")
        if not any(True for _ in store.find_reports(path)):
            raise PlanError("holds no report.json", file=path, remedy="name a folder that `jouleboard run` wrote")
    options = checker.Options(keep_items=False)
    return checker.check_paths(where, options) if where else checker.check_all(default_reports(), options)


def _against(where: Sequence[Path], base: str) -> checker.Findings:
    if len(where) > 1:
        raise PlanError("takes one checkout", field="--base", remedy="name one folder, or none for the one that you are in")
    found = branch.changes(where[0] if where else Path(), base)
    options = checker.Options(fresh=True, only=found.touched, keep_items=False)
    findings = checker.check_paths([found.reports], options) if found.reports.is_dir() else checker.Findings()
    findings.problems[:0] = found.problems
    return findings


def build(reports: Path | None, out: Path, factors: str = "world", *, address: str = "") -> int:
    """Build the site from every report that passes the check; nothing is done where nothing has changed since the last time.

    Args:
        reports: the folder of reports; None: that of the checkout.
        out: where the site goes.
        factors: a declared id, or a file.
        address: where the site will be published; empty: not known.
    """
    from jouleboard import catalogue, derived, publish, rank, sitestamp  # noqa: PLC0415
    from jouleboard.factors import Factors  # noqa: PLC0415

    own = Path(factors) if factors.endswith((".yaml", ".yml")) else None
    declared = catalogue.load("factors", factors, Factors) if own is None else catalogue.read_yaml(own, Factors)
    root = reports or default_reports()
    if not root.is_dir():
        raise PlanError("does not exist", file=root, field="--reports", remedy="name a folder of reports")
    stamp = sitestamp.of(root, settings=[factors, address], extra=[] if own is None else [own])
    if sitestamp.is_current(out, stamp):
        print(f"nothing changed since {out} was built")
        return 0
    loaded = checker.load_entries(root)
    for problem in loaded.problems:
        print(checker.render(problem), file=sys.stderr)
    boards = derived.with_cascades(rank.boards(loaded.entries, factors=declared), loaded.entries)
    folders = {entry.name: entry.folder for entry in loaded.entries}
    refused = sorted({problem.file for problem in loaded.problems})
    pages = publish.publish(boards, out, folders=folders, problems=refused, address=address, trust=_trust(loaded, root))
    if not loaded.problems:
        # With problems the next build names them again.
        sitestamp.keep(out, stamp)
    print(f"{len(loaded.entries)} entries on {len(boards)} board(s), {len(pages)} files; {len(refused)} file(s) refused")
    print(f"open {out / 'index.html'}")
    return 1 if loaded.problems else 0


def _trust(loaded: checker.Findings, root: Path) -> dict[str, Trust]:
    published = [Published(report=entry.report, recomputed=entry.recomputed) for entry in loaded.entries]
    return trust.levels(published, maintainers.read(root))


def preview(where: Path, base: str, out: Path) -> int:
    """Build the site as it would be with a branch's entries, and say which ranks they take and move.

    Args:
        where: a folder of the checkout.
        base: what the branch left.
        out: where the site and `ranks.md` are written.
    """
    from jouleboard import previews, publish, rank  # noqa: PLC0415

    found = branch.changes(where, base)
    if not found.reports.is_dir():
        raise PlanError("holds no folder reports/", file=where, field="--base", remedy="name a checkout with published entries")
    loaded = checker.load_entries(found.reports)
    old = [entry for entry in loaded.entries if entry.folder not in found.touched]
    boards = rank.boards(loaded.entries)
    lines = previews.lines(rank.boards(old), boards)
    publish.publish(boards, out, folders={entry.name: entry.folder for entry in loaded.entries},
                    problems=sorted({problem.file for problem in loaded.problems}), trust=_trust(loaded, found.reports))
    store.write_atomic(out / "ranks.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))
    print(f"open {out / 'index.html'}")
    return 0


def default_reports() -> Path:
    """Return the folder of published entries of this checkout, or `reports` where there is none."""
    root = paths.checkout()
    return (root or Path()) / "reports"
