"""Intervals, paired differences, verdicts and ranks: pure functions of numbers, which know neither reports nor files.

Every one names its source; the simulated coverage of each is in `tests/bench/coverage.py` and in the documentation of the site.
"""
