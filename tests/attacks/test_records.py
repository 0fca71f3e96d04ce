"""Each forged record is refused with its own code: as it is edited, and after every digest was recomputed."""

from __future__ import annotations

from pathlib import Path

import pytest

from jouleboard import check
from jouleboard.check import Options
from tests.attacks import entry
from tests.attacks.records import ATTACKS

FRESH = Options(fresh=True)
DIGESTS = {"digest", "item-digest", "files", "merkle"}


def codes(tmp_path: Path) -> set[str]:
    found = check.check_paths([tmp_path / "reports"], FRESH)
    assert all(problem.remedy and problem.field and problem.found for problem in found.problems)
    return {problem.code for problem in found.problems}


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_the_genuine_entries_pass(kind: str, copied, tmp_path: Path) -> None:
    copied(kind)
    assert codes(tmp_path) == set()


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_genuine_entry_that_is_only_sealed_again_passes(kind: str, copied, tmp_path: Path) -> None:
    folder = copied(kind)
    before = entry.read(folder)
    entry.seal(entry.read(folder))
    assert codes(tmp_path) == set()
    assert entry.read(folder) == before


@pytest.mark.parametrize("name", ATTACKS)
def test_a_forged_record_is_refused_although_every_digest_is_right_again(name: str, copied, tmp_path: Path) -> None:
    attack = ATTACKS[name]
    found = entry.read(copied(attack.kind))
    attack.change(found)
    entry.seal(found, judge=attack.judge)
    assert attack.code in codes(tmp_path)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_forged_record_is_refused_by_its_digests_alone(name: str, copied, tmp_path: Path) -> None:
    attack = ATTACKS[name]
    found = entry.read(copied(attack.kind))
    attack.change(found)
    entry.write(found)
    assert codes(tmp_path) & (DIGESTS | {attack.code})
