"""Withdraw a published entry: a file beside it says that it no longer counts, and why; the entry itself stays as it is.

    reports/<hardware>/<model>/<recipe>/20300101t000000z-0123abcd/                    the entry
    reports/<hardware>/<model>/<recipe>/20300101t000000z-0123abcd.withdrawn.json      what this writes

Git is never run: the commands that propose it are printed.
"""

from __future__ import annotations

import datetime as dt
import shlex
from pathlib import Path

import msgspec

from jouleboard import check, check_place, check_text, proposal, store
from jouleboard.errors import PlanError
from jouleboard.problems import RULES
from jouleboard.records import Report, Withdrawal
from jouleboard.storage import writing

LEAST_CHARS = 10
"""Of a reason; the format asks for as many."""


def withdraw(folder: Path, reason: str) -> int:
    """Write the withdrawal of a published entry.

    Args:
        folder: of the entry.
        reason: why it no longer counts, a sentence for everybody to read.

    Returns:
        Exit code 0.

    Raises:
        PlanError: it is no published entry, it was withdrawn before, or the reason cannot be published.
        StorageError: the file cannot be written.
    """
    found, root = published(folder)
    words = " ".join(reason.split())
    wrong = [f"{what}: {RULES[code]}" for code, what in check_text.wrong("reason", words)] + (["is shorter than ten characters"] if len(words) < LEAST_CHARS else [])
    if wrong:
        raise PlanError("; ".join(wrong), field="--reason", remedy="say in a sentence of plain text why the entry no longer counts")
    place = folder.resolve().with_name(f"{folder.resolve().name}{check_place.WITHDRAWN}")
    if place.exists():
        raise PlanError("was withdrawn before", file=place, remedy="nothing is left to do")
    made = Withdrawal(format="jouleboard-withdrawal", digest=found.digest, withdrawn_utc=dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), reason=words)
    with writing(place):
        store.write_atomic(place, msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    mine = [problem for problem in check.check_paths([root]).problems if Path(problem.file) == place]
    if mine:
        place.unlink()
        raise PlanError("; ".join(f"{problem.field}: {problem.found}" for problem in mine), file=place, remedy="nothing was written")
    print(f"withdrawn {place}")
    checkout = proposal.checkout(root)
    print("\n".join(proposal.commands(checkout, f"withdraw-{place.name.split('.')[0]}", [place.relative_to(checkout).as_posix()],
                                      f"Withdraw {found.recipe} of {found.model} on {found.hardware}: {words}"[:120])))
    return 0


def published(folder: Path, *, field: str = "ENTRY") -> tuple[Report, Path]:
    """Return the report of a published entry, and the folder of published entries.

    Raises:
        PlanError: the folder is no entry, or does not lie where published ones do.
    """
    place = folder.resolve()
    remedy = "name the folder of a published entry: reports/HARDWARE/MODEL/RECIPE/UTC-DIGEST"
    if not (place / store.REPORT).is_file():
        raise PlanError(f"holds no {store.REPORT}", file=folder, field=field, remedy=remedy)
    found = store.read_report(place / store.REPORT)
    home = (found.hardware, found.model, found.recipe)
    if place.parts[-4:-1] != home or check_place.ENTRY.fullmatch(place.name) is None or place.parents[3].name != check_place.PUBLISHED:
        raise PlanError("does not lie where published entries do", file=folder, field=field, remedy=f"{remedy}; {shlex.join(home)} is what its report says")
    return found, place.parents[3]
