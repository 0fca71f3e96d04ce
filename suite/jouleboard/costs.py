"""What 1,000 tokens and a request cost, and the interval over repeats; the ratio to the base's is in `statistics.intervals`. Pure, no I/O.

Tokens are those that went through the model, padding left out: prompt and output tokens are summed over requests, and
requests that share a row would be counted several times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import special

from jouleboard.estimates import Estimate
from jouleboard.rows import REPLAY, Latency
from jouleboard.windows import Probe, Trial

LEVEL = 0.95
LEAST_REPEATS = 3
"""Fewer say next to nothing of their own spread: Student's t over two repeats is 12.7 standard errors wide."""
LEAST_LATENCIES = 20
"""Below it the 95th percentile is the largest sample, or close to it."""


def per_ktoken(spent: float | None, tokens: int) -> float | None:
    """Return what 1,000 tokens cost, in the unit of `spent`; None where it was not measured or no token was computed."""
    return None if spent is None or not tokens else 1000 * spent / tokens


def trial_cost(trial: Trial, *, cpu_time: bool) -> float | None:
    """Return CPU-seconds, or measured joules, per 1,000 tokens of one trial; None where not measured."""
    return per_ktoken(trial.window.cpu_s if cpu_time else trial.window.energy.measured_j, trial.fed_tokens)


def request_cost(trial: Trial, *, cpu_time: bool) -> float | None:
    """Return CPU-seconds, or measured joules, per request of one trial; None for `replay`, and where not measured."""
    spent = trial.window.cpu_s if cpu_time else trial.window.energy.measured_j
    return None if spent is None or trial.workload == REPLAY else spent / trial.requests


def headline_cost(trial: Trial, *, cpu_time: bool) -> float | None:
    """Return what a board is ordered by: the cost per request, of `replay` the cost per 1,000 tokens."""
    return (trial_cost if trial.workload == REPLAY else request_cost)(trial, cpu_time=cpu_time)


def probe_tokens(probe: Probe) -> int:
    """Return the tokens that a probe's window computed, over all sequences of its batch and all loops."""
    return probe.loops * probe.batch * (probe.output_tokens if probe.kind == "decode" else probe.prompt_tokens)


def mean(values: Sequence[float | None]) -> Estimate | None:
    """Mean over repeats with Student's t interval; None where there is none, or one of them has no cost.

    There is no interval for fewer than `LEAST_REPEATS`, and none that would reach zero: no cost is below it, so repeats that
    are so far apart, and so few, do not bear the assumption of the interval.
    """
    # A repeat without a cost leaves the mean unknown: leaving it out would be a guess.
    known = [value for value in values if value is not None]
    if not known or len(known) != len(values):
        return None
    middle = math.fsum(known) / len(known)
    none = Estimate(value=middle, low=None, high=None)
    if len(known) < LEAST_REPEATS:
        return none
    spread = math.sqrt(math.fsum((value - middle) ** 2 for value in known) / (len(known) - 1))
    half = float(special.stdtrit(len(known) - 1, (1 + LEVEL) / 2)) * spread / math.sqrt(len(known))
    return none if middle - half <= 0 else Estimate(value=middle, low=middle - half, high=middle + half)


def latency(samples: Sequence[float], *, context_tokens: int | None = None) -> Latency | None:
    """Return median and 95th percentile (linear between samples); None without samples.

    Args:
        samples: durations in seconds; fewer than `LEAST_LATENCIES` have no 95th percentile.
        context_tokens: the prompt behind which decode steps were timed.
    """
    if not samples:
        return None
    ordered = sorted(samples)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return Latency(median_s=at(0.5), p95_s=at(0.95) if len(ordered) >= LEAST_LATENCIES else None, samples=len(ordered),
                   context_tokens=context_tokens)


def estimated_joules(trials: Sequence[Trial], *, a_request: bool = False) -> Estimate | None:
    """Mean of the power model's joules per 1,000 tokens, or per request; the bounds are the model's own uncertainty."""
    joules = [trial.window.energy.estimate_j for trial in trials]
    if a_request:
        found = mean([None if one is None or trial.workload == REPLAY else one / trial.requests
                      for one, trial in zip(joules, trials, strict=True)])
    else:
        found = mean([per_ktoken(one, trial.fed_tokens) for one, trial in zip(joules, trials, strict=True)])
    share = trials[0].window.energy.estimate_relative_uncertainty if trials else None
    if found is None or share is None:
        return found
    # The model's own uncertainty is far larger than the spread of repeats, and common to all of them.
    return Estimate(value=found.value, low=found.value * (1 - share), high=found.value * (1 + share))


def exp(value: float) -> float | None:
    """Return e to the power of a value; None where no float holds it."""
    try:
        found = math.exp(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
