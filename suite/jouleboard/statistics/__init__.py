"""Intervals, paired differences, verdicts and ranks: pure functions of numbers, which know neither reports nor files.

Every one names its source; `COVERAGE.md` says how often each held the truth in the simulation of `tests/bench/coverage.py`. Example::

    verdicts.of_family(evidence)                              # how each variant stands to its base
    intervals.per_cost(quality, intervals.costs_mean(joules)) # accuracy per joule, with its interval
    ranking.rank_intervals(log_costs)                         # ranks that hold all at once
"""
