"""The same with a meter process beside the run: the SIMULATED GPU, whose windows may be void and whose scores may not differ."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests import random_kills
from tests.survival import Ground

pytestmark = pytest.mark.slow


def test_kills_of_the_meter_too_cost_nothing_that_was_finished(ground: Ground, tmp_path: Path) -> None:
    killer = random_kills.Killer(
        draw=random.Random(random_kills.seed()), ground=ground, folder=tmp_path, words=("--hardware", "simulated-gpu"),
        # Its power follows the load of a processor that others use too, so trials may be void and the exit code 1.
        codes=frozenset({0, 1}), victims={"driver": 1, "everything": 1, "worker": 4, "fork server": 2, "meter": 4},
        took_s=random_kills.durations((ground.undisturbed.parent / "output-1.txt").read_text()),
    )
    killer.stories(random_kills.wanted(0.5))
