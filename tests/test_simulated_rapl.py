"""The simulated powercap tree counts what its trace says, wraps where it says, and looks like the kernel's."""

from __future__ import annotations

import os
import random
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.simulated_gpu import Segment, square
from tests.simulated_rapl import DRAM, PACKAGE, PSYS, SimulatedRapl, Zone


def read_uj(tree: SimulatedRapl, zone: Zone) -> int:
    return int((tree.place(zone) / "energy_uj").read_text())


def test_the_tree_looks_like_the_kernels(tmp_path: Path) -> None:
    tree = SimulatedRapl(tmp_path, PACKAGE, DRAM, PSYS)
    assert sorted(path.name for path in tree.root.iterdir()) == ["intel-rapl", "intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"]
    assert (tree.root / "intel-rapl:0" / "intel-rapl:0:0" / "name").read_text() == "dram\n"
    assert (tree.root / "intel-rapl:1" / "name").read_text() == "psys\n"
    assert (tree.root / "intel-rapl:0" / "max_energy_range_uj").read_text() == "262143328850\n"


def test_counters_are_the_exact_integral_in_whole_microjoules_and_wrap(tmp_path: Path) -> None:
    dice = random.Random(3)
    small = replace(PACKAGE, trace=(*square(high_w=200, low_w=20, period_s=0.7), Segment(0.5, 20, 180)),
                    start_uj=900_000, range_uj=1_000_000)
    tree = SimulatedRapl(tmp_path, small, DRAM)
    for _ in range(50):
        now_s = dice.randrange(10**11) / 1e9
        tree.set(now_s=now_s)
        whole_uj = 900_000 + small.energy_j(0, now_s) * 1e6
        assert read_uj(tree, small) < 1_000_000
        assert abs(whole_uj - read_uj(tree, small) - 1_000_000 * (whole_uj // 1_000_000)) <= 1.01
        assert abs(read_uj(tree, DRAM) - 8e6 * now_s) <= 1


def test_a_running_tree_follows_the_clock(tmp_path: Path) -> None:
    tree = SimulatedRapl(tmp_path, PACKAGE)
    with tree.running():
        before_s, first_uj = tree.now_s(), read_uj(tree, PACKAGE)
        time.sleep(0.3)
        second_uj, after_s = read_uj(tree, PACKAGE), tree.now_s()
    assert second_uj > first_uj
    assert second_uj <= after_s * 50e6
    assert before_s < after_s
    assert read_uj(tree, PACKAGE) >= second_uj


def test_a_root_only_zone_cannot_be_read_by_others(tmp_path: Path) -> None:
    tree = SimulatedRapl(tmp_path, replace(PACKAGE, mode=0))
    tree.set(now_s=2.0)
    path = tree.place(PACKAGE) / "energy_uj"
    assert stat.S_IMODE(path.stat().st_mode) == 0
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):
            path.read_text()
