"""Copy the entries of a run into the folder of published entries, checked, whole, and never over one that is there.

    runs/quick/<model>/<recipe>/  ->  reports/<hardware>/<model>/<recipe>/20300101t000000z-0123abcd/

Git is never run: the commands that propose the entries are printed.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jouleboard import check, check_place, folders, gates, paths, proposal, publicform, store, withdraw
from jouleboard.check import Entry, Options
from jouleboard.errors import DataFileError, PlanError
from jouleboard.records import ACCOUNT, Report

SIMULATED = "SIMULATED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """What is to become of a run's entries."""

    chosen: tuple[Entry, ...]
    """To be published: each base before its variants."""
    left_out: tuple[str, ...]
    """Entries that stay where they are, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The words of `jouleboard submit`."""

    submitter: str | None
    """Account of whoever proposes the entries."""
    provisional: bool = False
    """Whether entries that are provisional are published too, marked as such."""
    failed: bool = False
    """Whether variants that failed are published too: what does not work is a result."""
    replaces: tuple[Path, ...] = ()
    """Folders of published entries that entries of this run correct."""
    dry_run: bool = False
    """Whether it is only shown what would be published."""


def submit(run: Path, reports: Path | None, wishes: Wishes) -> int:
    """Publish the complete entries below a run's folder.

    Args:
        run: the folder that `jouleboard run` wrote, or a part of it.
        reports: folder of published entries; None: `reports/` of the checkout.
        wishes: what else was asked for.

    Returns:
        Exit code: 0 all well, 1 an entry does not pass the check.

    Raises:
        PlanError: there is nothing to publish, an entry may not be, or a target is taken by something else.
    """
    root = _reports(reports)
    entries = _checked(run)
    if entries is None:
        return 1
    _refuse(entries, wishes)
    # What may not be published at all is said before who would do it is asked.
    _require_account(wishes.submitter)
    found = sort(entries, root, failed=wishes.failed)
    for line in found.left_out:
        print(f"left out  {line}")
    if not found.chosen:
        raise PlanError("has no complete entry with its base", file=run,
                        remedy="run the same `jouleboard run` again: it goes on from what is finished")
    for entry in found.chosen:
        if entry.report.environment.code_dirty:
            print(f"warning: {entry.name}: measured with uncommitted changes to the code; commit them and run again, or say "
                  "in the pull request what they are", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="jouleboard-submit-") as scratch:
        return _publish_all(found.chosen, run, root, Path(scratch) / check_place.PUBLISHED, wishes)


def _publish_all(chosen: Sequence[Entry], run: Path, root: Path, stage: Path, wishes: Wishes) -> int:
    """Make the public forms, check them as new entries beside those that are there, show them, and put them in place."""
    corrected = _corrected(chosen, wishes)
    made = [_staged(entry, publicform.make(entry.folder, entry.report, submitter=wishes.submitter, root=run,
                                           replaces=corrected.get(_kind(entry.report))), stage) for entry in chosen]
    again = check.check_paths([root, stage], Options(fresh=True, keep_items=False, only=_below(stage)))
    # One that is there already is the same entry, and no copy of it.
    news = [one for one in made if not there(root / one.folder.relative_to(stage), one)]
    new = {one.folder for one in news}
    problems = [problem for problem in again.problems if any(Path(problem.file).is_relative_to(folder) for folder in new)]
    for problem in problems:
        print(check.render(problem))
    if problems:
        print(f"{len(made)} entries as they would be published, {len(problems)} problem(s): nothing is copied", file=sys.stderr)
        return 1
    targets = {root / one.folder.relative_to(stage): one for one in made}
    print("\n".join(line for one in news for line in proposal.shown(one, stage)))
    if wishes.dry_run:
        return 0
    for place, entry in targets.items():
        if entry in news:
            publish(entry, place)
    for place, entry in targets.items():
        print(f"{'copied' if entry in news else 'there already':<9} {place}")
    if news:
        print("\n".join(proposal.proposal(root, [place for place, one in targets.items() if one in news], news)))
    return 0


def _kind(report: Report) -> tuple[str, str, str]:
    return report.hardware, report.model, report.recipe


def _corrected(chosen: Sequence[Entry], wishes: Wishes) -> dict[tuple[str, str, str], str]:
    """Return which published entry each of ours corrects: its digest, by hardware, model and recipe.

    Raises:
        PlanError: one to be corrected is not published, is somebody else's, or has no counterpart in this run.
    """
    ours = {_kind(entry.report) for entry in chosen}
    found: dict[tuple[str, str, str], str] = {}
    for folder in wishes.replaces:
        old, _ = withdraw.published(folder, field="--replaces")
        if old.submitter != wishes.submitter:
            raise PlanError(f"was submitted by {old.submitter}, and only they correct it", file=folder, field="--replaces",
                            remedy="publish yours beside it: an independent measurement makes both worth more")
        if _kind(old) not in ours or _kind(old) in found:
            raise PlanError(f"corrects nothing: this run has no {'other ' if _kind(old) in found else ''}entry of {old.recipe}, {old.model} on {old.hardware}",
                            file=folder, field="--replaces", remedy="measure the same variant on the same hardware again")
        found[_kind(old)] = old.digest
    return found


def _staged(entry: Entry, public: publicform.Public, stage: Path) -> Entry:
    new = stage / "new"
    sealed = publicform.write(new, public)
    made = msgspec.structs.replace(entry.report, digest=sealed.digest)
    place = target(stage, dataclasses.replace(entry, report=made))
    place.parent.mkdir(parents=True, exist_ok=True)
    new.rename(place)
    stripped = f"; left out of {', '.join(public.stripped[:8])}" if public.stripped else ""
    return dataclasses.replace(entry, folder=place, report=sealed, name=f"{entry.name}{stripped}")


def _below(stage: Path) -> frozenset[Path]:
    return frozenset(path for path in (stage, *stage.rglob("*")))


def _require_account(name: str | None) -> None:
    if name is None or re.fullmatch(ACCOUNT, name) is None:
        raise PlanError("who proposes the entries is not said" if name is None else f"{name[:40]!r} is no name of an account",
                        field="--submitter", remedy="name your account where you will open the pull request: --submitter NAME")


def _reports(reports: Path | None) -> Path:
    checkout = paths.checkout()
    root = reports if reports is not None else None if checkout is None else checkout / "reports"
    if root is None or not root.is_dir():
        raise PlanError("is no folder" if root else "there is no source checkout with a folder reports/", file=root,
                        field="--reports", remedy="clone the repository and name its folder: --reports CHECKOUT/reports")
    return root


def _checked(run: Path) -> list[Entry] | None:
    """Read and check every entry; print all problems and return None where there are any."""
    if not run.exists():
        raise PlanError("does not exist", file=run, remedy="name the folder that `jouleboard run` wrote")
    if not any(True for _ in store.find_reports(run)):
        raise PlanError("holds no report.json", file=run, remedy="name the folder that `jouleboard run` wrote")
    findings = check.check_paths([run])
    for problem in findings.problems:
        print(check.render(problem))
    if findings.problems:
        print(f"{findings.checked} entries checked, {len(findings.problems)} problem(s): nothing is copied", file=sys.stderr)
        return None
    return findings.entries


# --- what may be published ------------------------------------------------------------------------------------------


def _refuse(entries: Sequence[Entry], wishes: Wishes) -> None:
    """Refuse the whole run where one of its entries may never be published, or is provisional and that was not asked for.

    Raises:
        PlanError: naming each such entry and why.
    """
    doubtful = [(entry, found[0]) for entry in entries if entry.report.status == "complete" and (found := gates.provisional(entry.report))]
    if doubtful and not wishes.provisional and all(refusal(entry.report) is None for entry in entries):
        named = "; ".join(f"{entry.name}: {reason}" for entry, reason in doubtful)
        raise PlanError(f"nothing is copied: provisional: {named}", file=doubtful[0][0].folder, field="--provisional",
                        remedy="measure by a plan with full windows and repeats (`jouleboard plans list`), or add --provisional: "
                        "the entries are then marked on every page")
    never = [(entry, reason) for entry in entries if (reason := refusal(entry.report)) is not None]
    if never:
        entry = never[0][0]
        remedy = ("measure on a real device" if is_simulated(entry.report) else
                  "declare the model in suite/models with the hub or package that it comes from, and run again"
                  if _has_no_source(entry.report) else "submit a run without it")
        raise PlanError("nothing is copied: " + "; ".join(f"{entry.name}: {reason}" for entry, reason in never),
                        file=entry.folder, remedy=remedy)


def refusal(report: Report) -> str | None:
    """Return why an entry may never be published, or None."""
    if is_simulated(report):
        return f"it is {SIMULATED}: no device was measured"
    if _has_no_source(report):
        return "its model has no public source (kind `path`), so nobody could measure it again"
    # Another one is left out, or as a failure is checked in its public form.
    return check.publishable(report) if report.status == "complete" else None


def is_simulated(report: Report) -> bool:
    """Whether anything in an entry says that its device is simulated."""
    names = (*report.environment.devices, report.hardware_title)
    return (report.method == "simulated" or any(SIMULATED in name.upper() for name in names)
            or (report.profile is not None and report.profile.category == "simulated"))


def _has_no_source(report: Report) -> bool:
    return report.model_source.get("kind") not in {"hub", "package"}


def sort(entries: Sequence[Entry], root: Path, *, failed: bool = False) -> Sorted:
    """Choose the complete entries, and those that failed where they are asked for, whose base is published too: in this run, or before."""
    left_out, complete, broken = [], [], []
    for entry in entries:
        if entry.report.status == "complete":
            complete.append(entry)
        else:
            why = entry.report.failure.reason if entry.report.failure else "it has no energy trials yet"
            if failed and entry.report.status == "failed" and not entry.report.is_base:
                broken.append(entry)
            else:
                more = " (--failed publishes it as such)" if entry.report.status == "failed" and not entry.report.is_base else ""
                left_out.append(f"{entry.name}: {entry.report.status}: {why}{more}")
    bases = {_family(entry.report) for entry in complete if entry.report.is_base}
    chosen = []
    for entry in sorted([*complete, *broken], key=lambda entry: (not entry.report.is_base, entry.name)):
        if entry.report.is_base or _family(entry.report) in bases or _base_is_published(entry.report, root):
            chosen.append(entry)
        else:
            left_out.append(f"{entry.name}: no complete entry of its base `{entry.report.base}` from the same session")
    return Sorted(chosen=tuple(chosen), left_out=tuple(left_out))


def _family(report: Report) -> tuple[str, str, str, str | None]:
    return report.hardware, report.model, report.base, report.session


def _base_is_published(report: Report, root: Path) -> bool:
    place = root / report.hardware / report.model / report.base
    if not place.is_dir():
        return False
    for path in store.find_reports(place):
        try:
            there = store.read_report(path)
        except DataFileError:
            continue
        if there.is_base and there.status == "complete" and _family(there) == _family(report):
            return True
    return False


# --- copying ----------------------------------------------------------------------------------------------------------


def target(root: Path, entry: Entry) -> Path:
    """Return where an entry goes. Ids are safe folder names by their own rule; the time is read, not copied.

    Raises:
        PlanError: the time when it was made is none.
    """
    report = entry.report
    try:
        made = dt.datetime.strptime(report.created_utc, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC)
    except ValueError:
        raise PlanError(f"{report.created_utc[:40]!r} is not a time like 2030-01-01T00:00:00Z", file=entry.folder,
                        field="created_utc", remedy="measure again") from None
    name = f"{made:%Y%m%dt%H%M%Sz}-{report.digest[:8]}"
    return root / report.hardware / report.model / report.recipe / name


def there(place: Path, entry: Entry) -> bool:
    """Whether the very same entry is published already.

    Raises:
        PlanError: something else is in its place.
    """
    if not place.is_symlink() and not place.exists():
        return False
    try:
        same = not place.is_symlink() and store.read_report(place / store.REPORT).digest == entry.report.digest
    except DataFileError:
        same = False
    if not same:
        raise PlanError("there is something else in the place of this entry; published entries are never changed",
                        file=place, remedy="look at what it is; take it away if it was never published")
    return True


def _is_whole(folder: Path, report: Report) -> bool:
    """Whether a folder holds the very entry that was checked."""
    try:
        return store.open_report(folder / store.REPORT).digest == report.digest and all(
            store.lines_sha256(store.read_lines(folder / name)) == file.sha256 for name, file in report.files.items())
    except DataFileError:
        return False


def publish(entry: Entry, place: Path, *, field: str = "--reports") -> None:
    """Copy one entry: its three files and nothing else, whole or not at all.

    Raises:
        PlanError: the folder cannot be written, or the entry changed while it was copied.
    """
    new = place.with_name(f".{place.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        for name in publicform.FILES:
            store.write_atomic(new / name, (entry.folder / name).read_bytes())
        # What was checked is what is published, whatever happened to the run's folder meanwhile.
        if not _is_whole(new, entry.report):
            raise PlanError("changed while it was copied", file=entry.folder, remedy="wait until the run has ended")
        folders.replace(new, place)
    except OSError as error:
        raise PlanError(f"cannot be copied ({error.strerror})", file=error.filename or place, field=field,
                        remedy="make the folder writable, or free some space, and run the same command again") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
