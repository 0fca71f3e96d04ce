"""Bring entries back from machines that ran a bundle, or from several run folders: checked, whole, and never over another.

    DIR/results/<model>/<recipe>/  ->  RUNS/<hardware>/<model>/<recipe>/20300101t000000z-0123abcd/

Entries of several machines never meet in one place: time and digest are in the folder's name. Failed entries come along.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jouleboard import archive, check, store, submit
from jouleboard.check import Entry
from jouleboard.errors import PlanError, StorageError
from jouleboard.portable.manifest import MANIFEST
from jouleboard.portable.start import RESULTS


@dataclass(slots=True, kw_only=True)
class Found:
    """What was found in all folders and archives."""

    entries: list[Entry] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What is not an entry, or not a sound one, with the reason."""


def collect(where: Sequence[Path], out: Path | None, archived: Path | None) -> int:
    """Copy every sound entry, or put it into an archive; exit code 1 when one is not sound and is left out.

    Args:
        where: bundles, run folders, or archives that this command made.
        out: folder that gets the entries; None where only an archive is made.
        archived: tar file to write.

    Raises:
        PlanError: a folder is missing or holds no entry, or a place is taken by something else.
        StorageError: nothing can be written there.
    """
    if (out is None) == (archived is None):
        raise PlanError("name one of --out and --archive", field="--out",
                        remedy="--archive FILE.tar on the machine that ran, --out RUNS where the entries are to be")
    if out is not None:
        _make(out)
    with _scratch(out if out is not None else None) as scratch:
        found = Found()
        for number, place in enumerate(where):
            _look(place, scratch / str(number), found)
        for line in found.left_out:
            print(f"left out  {line}")
        if out is not None:
            _copy(found.entries, out)
        elif found.entries and archived is not None:
            unique = {entry.report.digest: entry for entry in found.entries}
            archive.write(archived, unique.values())
            print(f"archive   {archived}: {len(unique)} entries, {archived.stat().st_size / 1e6:.1f} MB")
            print(f"next      copy it, and there: jouleboard collect {archived.name} --out RUNS")
    _count(found)
    return 1 if found.left_out or not found.entries else 0


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot be written ({error.strerror})", file=out, field="--out",
                           remedy="name a folder that you may write to") from None


@contextmanager
def _scratch(out: Path | None) -> Iterator[Path]:
    """Give a folder for what archives hold, on the disk where it goes in the end."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".collect-", dir=out))
    except OSError as error:
        raise StorageError(f"cannot be written ({error.strerror})", file=out, field="--out",
                           remedy="name a folder that you may write to") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _look(place: Path, scratch: Path, found: Found) -> None:
    if not place.exists():
        raise PlanError("does not exist", file=place, remedy="name a bundle, a run folder, or an archive of `jouleboard collect`")
    if place.is_file() and place.name != store.REPORT:
        archive.unpack(place, scratch)
        root = scratch
    else:
        root = place / RESULTS if (place / MANIFEST).is_file() else place
    if not root.exists() or not any(True for _ in store.find_reports(root)):
        raise PlanError("holds no entry: the run has not finished scoring a variant, or this is another folder", file=place,
                        remedy="name the folder that `jouleboard run` wrote to; run the same command again to go on")
    findings = check.check_paths([root])
    found.entries += findings.entries
    wrong = sorted({problem.file for problem in findings.problems})
    for file in wrong:
        problems = [problem for problem in findings.problems if problem.file == file]
        more = f" (and {len(problems) - 1} more; `jouleboard check` lists all)" if len(problems) > 1 else ""
        name = Path(file).relative_to(root).as_posix() if Path(file).is_relative_to(root) else file
        found.left_out.append(f"{place}: {name}: {problems[0].field}: {problems[0].found}{more}")
    found.left_out += [f"{place}: {line}" for line in _set_aside(root)]


def _set_aside(root: Path) -> Iterator[str]:
    """Name entries that a run which was ended between two steps has set aside and not yet put back."""
    for folder in sorted(root.rglob(".*.old")):
        target = folder.with_name(folder.name[1:].removesuffix(".old"))
        if (folder / store.REPORT).is_file() and not target.exists():
            yield (f"{target.relative_to(root).as_posix()}: set aside when the run was ended; run the same command there again, "
                   "and it comes back")


def _copy(entries: Sequence[Entry], out: Path) -> None:
    """Copy each entry into a place of its own; what is there already stays as it is."""
    targets = {submit.target(out, entry): entry for entry in entries}
    new = [place for place, entry in targets.items() if not submit.there(place, entry)]
    for place in new:
        submit.publish(targets[place], place, field="--out")
    for place, entry in targets.items():
        print(f"{'copied' if place in new else 'there already':<13} {place}" + _state(entry))


def _state(entry: Entry) -> str:
    report = entry.report
    if report.status == "failed":
        return f"  failed: {report.failure.reason if report.failure else ''}"
    return "" if report.status == "complete" else f"  {report.status}"


def _count(found: Found) -> None:
    states = [entry.report.status for entry in found.entries]
    words = ", ".join(f"{states.count(state)} {state}" for state in ("complete", "quality-only", "failed") if state in states)
    print(f"{len(found.entries)} entries ({words or 'none'}), {len(found.left_out)} left out")
