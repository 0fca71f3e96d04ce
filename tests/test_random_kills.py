"""A run that is killed at random moments, again and again, ends with the results of one that nobody disturbed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import random_kills, survival
from tests.survival import Ground, Place

pytestmark = pytest.mark.slow


def test_kills_of_driver_workers_and_fork_server_cost_nothing_that_was_finished(ground: Ground, tmp_path: Path) -> None:
    killer = random_kills.Killer(
        draw=random.Random(random_kills.seed()), ground=ground, folder=tmp_path, words=(), codes=frozenset({0}),
        victims={"driver": 1, "everything": 1, "worker": 5, "fork server": 3},
        took_s=random_kills.durations((ground.undisturbed.parent / "output-1.txt").read_text()),
    )
    killer.stories(random_kills.wanted(0.5))


@pytest.mark.parametrize(("damage", "words"), [
    (lambda place: (place.work(survival.BASE) / f"{survival.CHOICE}.unit.json").unlink(), "unit.json is gone"),
    (lambda place: (place.work(survival.BASE) / f"{survival.TEXT}.unit.json").write_bytes(b"{}"), "unit.json is another"),
    (lambda place: shutil.rmtree(place.out / survival.MODEL / survival.VARIANT), f"{survival.VARIANT} was complete"),
])
def test_a_record_that_is_lost_or_altered_is_noticed(
    ground: Ground, tmp_path: Path, damage: Callable[[Place], None], words: str
) -> None:
    place = Place(ground=ground, folder=tmp_path / "place")
    shutil.copytree(ground.undisturbed, place.out)
    before = random_kills.finished(place)
    assert before.require(place) == before
    damage(place)
    with pytest.raises(AssertionError, match=words):
        before.require(place)
