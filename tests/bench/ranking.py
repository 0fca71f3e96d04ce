"""How long thousands of entries take to be ranked, and what memory that needs: `python tests/bench/ranking.py [--rows 10000]`.

The entries are made up for load: boards of up to 500, families of ten, three tasks of 200 items each, five trials. Time and peak memory
are printed for a fifth of the rows, and for all: both are to grow with the rows. Two runs are to give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import numpy as np
from tests import factory

from jouleboard import answers, downloads, rank, scores
from jouleboard.answers import Answers
from jouleboard.records import Report, Score

BOARD, FAMILY, ITEMS, TRIALS = 500, 10, 200, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry, its items as arrays."""

    name: str
    report: Report
    answers: Mapping[str, Answers]


def entries(rows: int) -> Iterator[Entry]:
    """Make entries whose quality and cost differ, and whose trials scatter."""
    model = factory.serving_family(n=ITEMS, joules=True, batches=(1,), recipes=("base",))[0]
    known = answers.of_entry(model.report, model.items)
    for number in range(rows):
        board, family, place = number // BOARD, number // FAMILY, number % FAMILY
        generator = np.random.default_rng(number)
        share = 0.55 + 0.4 * random.Random(number).random()
        mine = {task: answered(one, generator.random(len(one.items)) < share) for task, one in known.items()}
        yield Entry(name=f"b{board}/f{family}/v{place}", answers=mine, report=_report(model.report, mine, board, family, place, generator))


def answered(one: Answers, right: np.ndarray) -> Answers:
    """Return answers of which these are right."""
    return Answers(task=one.task, metric=one.metric, items=one.items, scores=right.astype(np.float64), clusters=None,
                   loglikelihoods=one.loglikelihoods)


def _report(report: Report, mine: Mapping[str, Answers], board: int, family: int, place: int, generator: np.random.Generator) -> Report:
    cost = 1.0 + 0.02 * random.Random(f"{family}/{place}").random() * place
    trials = tuple(
        msgspec.structs.replace(trial, order=turn, window=msgspec.structs.replace(trial.window, energy=msgspec.structs.replace(
            trial.window.energy, measured_j=(trial.window.energy.measured_j or 1.0) * cost * generator.normal(1.0, 0.01))))
        for turn, trial in enumerate([one for one in report.trials if one.batch == 1][:1] * TRIALS))
    tasks = tuple(_scored(result, mine) for result in report.tasks)
    return msgspec.structs.replace(
        report, recipe=f"v{place}", is_base=place == 0, base="v0", session=factory.sha("s", family), trials=trials, tasks=tasks,
        hardware_sha256=factory.sha("h", board), model=f"m{family}", model_weights_sha256=factory.sha("w", family))


def _scored(result: answers.TaskResult, mine: Mapping[str, Answers]) -> answers.TaskResult:
    if result.kind != "choice":
        return result
    values = mine[result.task].scores
    score = Score(value=float(values.mean()), stderr=float(values.std(ddof=1) / len(values) ** 0.5), n=len(values))
    return msgspec.structs.replace(result, scores=dict.fromkeys(result.scores, score),
                                   above_chance=scores.clears_chance(score, result.chance, result.primary_metric))


def ranked(rows: int) -> str:
    """Rank so many rows, print what it took, and return a digest of the boards."""
    made = list(entries(rows))
    before, begun, cpu = _peak_mb(), time.perf_counter(), time.process_time()
    boards = rank.boards(made)
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    placed = sum(len(board.ranked) for board in boards)
    print(f"{rows:6} entries, {len(boards)} boards, {placed} rows ranked: {wall_s:6.1f} s, {cpu_s:6.1f} CPU-s; "
          f"peak {_peak_mb():,.0f} MB, {before:,.0f} MB of it the entries", flush=True)
    return hashlib.sha256("".join(map(downloads.board_json, boards)).encode()).hexdigest()


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, metavar="N")
    words = parser.parse_args()
    found = []
    # Each in a process of its own: a peak of memory is that of a process.
    for rows in (words.rows // 5, words.rows, words.rows):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(ranked, rows).result())
    print(f"the same entries give the same bytes: {found[1] == found[2]}")


if __name__ == "__main__":
    main()
