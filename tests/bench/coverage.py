"""How often the intervals of `jouleboard.statistics` hold the truth: `python tests/bench/coverage.py` prints it.

(a) Every interval at a nominal 95 %, over items n = 50, 300, 1,000, 5,000, trials R = 3, 5, 10, pairs that are alike or
    independent, and items on their own or in clusters.
(b) How often a family of variants has a false "dominates", where the true loss is three points, a point (the margin itself), or
    nothing is gained at all.
(c) How often a true difference is found with the items and trials that `power` names.

What is not as documented is marked. Everything is drawn with a fixed seed; `--draws` says how often (2,000: a share of 95 % is then
known to half a point). `--into suite/jouleboard/statistics/COVERAGE.md` writes the tables into that page, below its heading "Figures".
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.covered import Cell, of_costs, of_macro, of_pairs, of_ranks, of_ratios, of_shares
from tests.bench.families import Rate, false_dominance, powers

from jouleboard.statistics.ranking import SEED

DRAWS = 2000
HEADING = "## Figures\n"
GRID: tuple[Callable[[np.random.Generator, int], Iterator[Cell]], ...] = (of_pairs, of_macro, of_shares, of_costs, of_ratios, of_ranks)
NARROWEST, WIDEST, LEAST_WIDE = 0.93, 0.97, 0.945
WIDE: tuple[tuple[str, str], ...] = (
    ("paired", "n=50"), ("paired macro", "n=300"),
    ("share", "n=50 p=0.95"), ("share", "n=50 p=0.7 clusters"), ("share", "n=300 p=0.95 clusters"),
    ("cost ratio", "R=3"), ("break-even", "R=3"), ("quality per cost (MOVER, Wilson)", "R=3"), ("ranks", ""),
)
"""Intervals and settings that may be wider than nominal, as docstrings say: few items or clusters, three trials, all ranks at once."""


def allowed(one: Cell) -> tuple[float, float]:
    """Return the shares between which a cell is as documented; those that are wide hold the truth in at least 95 %, but for chance."""
    is_wide = any(interval in one.interval and re.search(rf"{setting}\b", one.setting) for interval, setting in WIDE)
    return (LEAST_WIDE, 1.0) if is_wide else (NARROWEST, WIDEST)


def cells(seed: int, draws: int) -> Iterator[Cell]:
    """Simulate every interval, and print each as it comes."""
    print(f"{'interval':34} {'setting':52} held (95 %)  no bounds  median width")
    for part in GRID:
        for one in part(np.random.default_rng(seed), draws):
            low, high = allowed(one)
            mark = "" if low <= one.covered <= high else "  not as documented"
            print(f"{one.interval:34} {one.setting:52} {100 * one.covered:9.1f} % {100 * one.unbounded:8.1f} % {one.width:13.4g}"
                  f"{mark}", flush=True)
            yield one


def rates(seed: int, draws: int) -> Iterator[Rate]:
    """Simulate verdicts, and print each rate as it comes."""
    print(f"\n{'claim':26} {'setting':86} share")
    for judge in (false_dominance, powers):
        for rate in judge(np.random.default_rng(seed), draws):
            print(f"{rate.claim:26} {rate.setting:86} {100 * rate.share:5.1f} %", flush=True)
            yield rate


def page(cells: Sequence[Cell], rates: Sequence[Rate], draws: int) -> str:
    """Return the tables in Markdown."""
    lines = [f"{draws:,} draws each.", "", "| interval | setting | held (95 %) | median width |", "| --- | --- | ---: | ---: |"]
    lines += [f"| {one.interval} | {one.setting} | {100 * one.covered:.1f} % | {one.width:.3g} |" for one in cells]
    lines += ["", "| claim | what is true | share of draws |", "| --- | --- | ---: |"]
    lines += [f"| {rate.claim} | {rate.setting} | {100 * rate.share:.1f} % |" for rate in rates]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--into", type=Path, help="page whose figures are replaced")
    asked = parser.parse_args()
    started = time.process_time()
    found = (list(cells(asked.seed, asked.draws)), list(rates(asked.seed, asked.draws)))
    print(f"\n{asked.draws} draws each, {time.process_time() - started:.0f} CPU-seconds")
    if asked.into is not None:
        above, heading, _ = asked.into.read_text(encoding="utf-8").partition(HEADING)
        asked.into.write_text(f"{above}{heading}\n{page(*found, asked.draws)}", encoding="utf-8")


if __name__ == "__main__":
    main()
