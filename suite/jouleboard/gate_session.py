"""Gates of a cell, of a session and of the variant: over valid trials, idle windows, the canary, and what was built. Pure.

Example: five valid trials of 4.00 to 4.10 J a token have a coefficient of variation near 0.01, and `repeats` passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from jouleboard.declared import Cell
from jouleboard.gate_facts import Facts, canary_cost, cost, mean, others, power_w, quotient, unit, windows
from jouleboard.gate_rules import (
    CODES_SHARE,
    DENSE,
    DENSE_ZEROS,
    FULL_REPEATS,
    LEAST_REPEATS,
    LEAST_TICKS,
    RULES,
    above,
    absent,
    allowed,
    below,
    cell_name,
    gate,
    passed,
)
from jouleboard.records import Realised, Report
from jouleboard.traces import Sample
from jouleboard.windows import Canary, Gate, Trial

SESSION, CANARY, VARIANT = "session", "canary", "variant"
FLOAT_BITS = 16
_BITS = re.compile(r"(?:int|uint|nf|fp|float)([0-9]{1,2})")


def of_session(report: Report, rows: Mapping[str, Sequence[Sample]], known: Facts) -> tuple[Gate, ...]:
    """Evaluate everything that is not of one window.

    Args:
        report: with its void trials marked.
        rows: the samples of each window.
        known: of the report.
    """
    found: list[Gate] = []
    if report.trials:
        for cell in _cells(report):
            mine = [trial for trial in report.trials if (trial.workload, trial.batch) == (cell.workload, cell.batch)]
            found += _of_cell(cell, mine, report, known)
        if not report.is_base:
            found.append(absent("drift", SESSION, "on-the-base"))
        found.append(_idle(report, rows, known))
        found.append(_canary(report, known))
        found.append(_device(report, known))
    found.append(_realised(report))
    return tuple(found)


def _cells(report: Report) -> list[Cell]:
    planned = () if report.energy_plan is None else report.energy_plan.cells
    there = [Cell(workload=trial.workload, batch=trial.batch) for trial in report.trials]
    return list(dict.fromkeys([*planned, *there]))


def _of_cell(cell: Cell, every: Sequence[Trial], report: Report, known: Facts) -> Iterator[Gate]:
    name = cell_name(cell.workload, cell.batch)
    trials = [trial for trial in every if trial.void is None]
    yield _window_length(name, trials, known)
    yield _repeats(name, trials, known)
    yield _load(name, trials, known)
    yield _outputs(name, trials)
    if report.is_base:
        yield _drift(name, every, known)


def _window_length(name: str, trials: Sequence[Trial], known: Facts) -> Gate:
    if not trials:
        return absent("window-length", name, "no-trial")
    shortest_s = min(trial.window.duration_s for trial in trials)
    ticks = quotient(shortest_s, known.tick_s)
    words = f"the shortest window is {shortest_s:.6g} s" + ("" if ticks is None else f", {ticks:.6g} ticks of the counter")
    short = shortest_s < allowed("window-length") or (ticks is not None and below(ticks, LEAST_TICKS))
    if short:
        return gate("window-length", name, "fail", "too-short", f"{words}; wanted are 60 s" + (
            "" if ticks is None else f" and {LEAST_TICKS} ticks"), value=shortest_s)
    return passed("window-length", name, words, value=shortest_s)


def _repeats(name: str, trials: Sequence[Trial], known: Facts) -> Gate:
    if known.method == "none":
        return absent("repeats", name, "no-sensor")
    costs = [cost(trial, known) for trial in trials]
    there = [one for one in costs if one is not None]
    if len(trials) < LEAST_REPEATS:
        return gate("repeats", name, "fail", "too-few", f"{len(trials)} valid trials, at least {LEAST_REPEATS} are needed")
    if len(there) != len(costs):
        return gate("repeats", name, "fail", "no-cost", f"{len(costs) - len(there)} of {len(costs)} trials have no cost")
    share = _variation(there)
    if share is None:
        return gate("repeats", name, "fail", "no-cost", "the trials cost nothing")
    words = f"{len(there)} valid trials, whose {unit(known)} a token vary by {100 * share:.4g} %"
    make = partial(gate, "repeats", name, reason=words, value=share)
    if above(share, allowed("repeats")):
        return make("fail", "spread")
    return make("unverified", "provisional-repeats") if len(there) < FULL_REPEATS else make("pass", "pass")


def _variation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation over the mean; None where the mean is not above zero."""
    # Relative to the largest, so that no square leaves the range of numbers.
    largest = max(values)
    if largest <= 0:
        return None
    shares = [value / largest for value in values]
    middle = mean(shares)
    if not 0 < middle < math.inf:
        return None
    spread = math.sqrt(math.fsum((share - middle) ** 2 for share in shares) / (len(shares) - 1))
    return spread / middle


def _load(name: str, trials: Sequence[Trial], known: Facts) -> Gate:
    if not known.sensor:
        return absent("load", name, "no-sensor")
    if known.idle_w is None or known.limit_w is None or known.limit_w <= known.idle_w:
        return absent("load", name, "not-declared")
    watts = [one for trial in trials if (one := power_w(trial.window)) is not None]
    if not watts:
        return absent("load", name, "no-trial")
    share = (mean(watts) - known.idle_w) / (known.limit_w - known.idle_w)
    words = (f"{mean(watts):.6g} W on average, idle {known.idle_w:.6g} W, limit {known.limit_w:.6g} W: "
             f"{100 * share:.4g} % of what the device can take")
    if below(share, allowed("load")):
        return gate("load", name, "fail", "no-verdict", words, value=share)
    return passed("load", name, words, value=share)


def _outputs(name: str, trials: Sequence[Trial]) -> Gate:
    loops = sum(trial.loops for trial in trials)
    if loops < 2:  # noqa: PLR2004 - one is not compared
        return absent("outputs", name, "one-loop" if trials else "no-trial")
    other = sum(1 for trial in trials if trial.output_sha256 != trials[0].output_sha256)
    changed = sum(min(trial.loops_changed, trial.loops) for trial in trials)
    share = min(1.0, (changed + other) / loops)
    words = f"{changed} of {loops} loops changed within a trial, {other} of {len(trials)} trials began otherwise than the first"
    if changed or other:
        return gate("outputs", name, "fail", "outputs-changed", words, value=share)
    return passed("outputs", name, words, value=share)


def _drift(name: str, trials: Sequence[Trial], known: Facts) -> Gate:
    ordered = sorted(trials, key=lambda trial: trial.order)
    if len(ordered) < 2:  # noqa: PLR2004 - first and last
        return absent("drift", name, "not-measured")
    lost = [f"the base's {words} trial ({trial.window.name}) is void" for words, trial in (
        ("first", ordered[0]), ("last", ordered[-1])) if trial.void is not None]
    if lost:
        # A valid trial further in says nothing of what came before or after it.
        return gate("drift", name, "unverified", "unbracketed",
                    f"{' and '.join(lost)}: nothing brackets {'either end' if len(lost) > 1 else 'that end'}")
    first, last = cost(ordered[0], known), cost(ordered[-1], known)
    return _moved("drift", name, first, last, f"first trial {{:.6g}}, last {{:.6g}} {unit(known)} a token")


def _moved(name: str, subject: str, before: float | None, after: float | None, words: str) -> Gate:
    ratio = quotient(after, before)
    if before is None or after is None or ratio is None:
        return absent(name, subject, "not-measured")
    share = abs(ratio - 1)
    text = f"{words.format(before, after)}: {100 * share:.4g} % apart"
    if above(share, allowed(name)):
        return gate(name, subject, "fail", "drifted", text, value=share)
    return passed(name, subject, text, value=share)


def _canary(report: Report, known: Facts) -> Gate:
    before = [one for one in report.canary if one.when == "before"]
    after = [one for one in report.canary if one.when == "after"]
    if not before or not after:
        return absent("canary", CANARY, "not-measured")
    # A session in pieces has several: the first and the last span all of it.
    first, last = before[0], after[-1]
    if _work(first) != _work(last):
        return gate("canary", CANARY, "fail", "another-canary", f"{first.model} before, {last.model} after, or other output")
    return _moved("canary", CANARY, canary_cost(first, known), canary_cost(last, known),
                  f"canary before {{:.6g}}, after {{:.6g}} {unit(known)} a token")


def _work(canary: Canary) -> tuple[str, str]:
    return canary.model, canary.output_sha256


def _device(report: Report, known: Facts) -> Gate:
    """A session in pieces may have gone on with another board."""
    if not known.sensor:
        return absent("device", SESSION, "no-sensor")
    states = [(window.name, state) for window in windows(report) for state in (window.start, window.end) if state]
    devices = [(name, state.device) for name, state in states if state.device is not None]
    boots = [(name, state.boot) for name, state in states if state.boot is not None]
    for code, named in (("two-devices", devices), ("two-boots", boots)):
        other = next((one for one in named if one[1] != named[0][1]), None)
        if other is not None:
            return gate("device", SESSION, "fail", code, f"{named[0][1]} in {named[0][0]}, {other[1]} in {other[0]}")
    if not (devices if known.asked else devices or boots):
        return gate("device", SESSION, "unverified" if known.asked else "not-applicable", "not-sampled",
                    RULES["device"].codes["not-sampled"])
    return passed("device", SESSION, f"{len({name for name, _ in states})} windows of one device and one start of the machine")


def _idle(report: Report, rows: Mapping[str, Sequence[Sample]], known: Facts) -> Gate:
    if not known.sensor:
        return absent("idle", SESSION, "no-sensor")
    seen = max((count for one in report.idle for count in others(one.window, rows.get(one.window.name, ()))), default=0)
    if seen > 0:
        return gate("idle", SESSION, "fail", "not-alone", f"up to {seen} other processes in an idle window", value=seen,
                    limit=0)
    worst: tuple[float, str] | None = None
    for context, words in ((True, "with"), (False, "without")):
        before, after = (_idle_w(report, when, context=context) for when in ("before", "after"))
        ratio = quotient(after, before)
        if before is not None and after is not None and ratio is not None:
            share = abs(ratio - 1)
            text = f"{before:.6g} W before and {after:.6g} W after, {words} a context: {100 * share:.4g} % apart"
            worst = max((share, text), worst or (share, text))
    if worst is None:
        return gate("idle", SESSION, "unverified", "not-measured", RULES["idle"].codes["not-measured"])
    if above(worst[0], allowed("idle")):
        return gate("idle", SESSION, "fail", "idle-moved", worst[1], value=worst[0])
    return passed("idle", SESSION, worst[1], value=worst[0])


def _idle_w(report: Report, when: str, *, context: bool) -> float | None:
    found = [watts for one in report.idle if (one.when, one.context) == (when, context)
             and (watts := power_w(one.window)) is not None]
    return mean(found) if found else None


def _realised(report: Report) -> Gate:
    found = report.realised
    if found is None:
        return absent("realised", VARIANT, "not-built")
    steps = () if report.build is None else report.build.steps
    if not steps:
        return absent("realised", VARIANT, "no-claim")
    dense_bits = 32 if report.engine.dtype == "float32" else FLOAT_BITS
    stored_bits = 8 * found.weight_bytes / found.parameters
    bits = min((found_bits for step in steps if (found_bits := step_bits(step)) is not None), default=dense_bits)
    problem = _unmet(steps, found) or _fake(found, bits, stored_bits, dense_bits) or _masked(found)
    if problem is not None:
        return gate("realised", VARIANT, "fail", problem[0], problem[1], value=stored_bits, limit=dense_bits)
    return passed("realised", VARIANT, f"{stored_bits:.4g} bits a weight in {', '.join(sorted(found.dtypes))}; "
                  f"{100 * found.nonzero_share:.4g} % of them not zero", value=stored_bits, limit=dense_bits)


def step_bits(step: Mapping[str, object]) -> int | None:
    """Return the bits a weight of a recorded step; entries of earlier versions say them in the step's name only."""
    said = step.get("weight_bits")
    if type(said) is int:
        return said
    # A step that hands the model to another engine says in a field how that stores the weights.
    found = [int(match[1]) for field in ("step", "weights") if (match := _BITS.search(str(step.get(field))))]
    return min(found, default=None)


def _unmet(steps: Sequence[Mapping[str, object]], found: Realised) -> tuple[str, str] | None:
    claimed = sum(count for step in steps if type(count := step.get("claimed_quantised_tensors")) is int)
    if found.quantised_tensors < claimed:
        return "claim-not-met", f"{found.quantised_tensors} quantised tensors, the steps claim {claimed}"
    layers = [count for step in steps if type(count := step.get("claimed_layers")) is int]
    if layers and found.layers != layers[-1]:
        return "claim-not-met", f"{found.layers} layers, the steps claim {layers[-1]}"
    return None


def _fake(found: Realised, bits: int, stored_bits: float, dense_bits: int) -> tuple[str, str] | None:
    """A quantiser whose codes are as wide as what they stand for saves nothing."""
    if not 0 < bits < FLOAT_BITS:
        return None
    codes_bytes = sum(size for name, size in found.dtypes.items() if name not in DENSE)
    if not found.quantised_tensors or not codes_bytes:
        return "fake-quantisation", f"weights of {bits} bits are claimed, all are stored as {', '.join(sorted(found.dtypes))}"
    if stored_bits >= dense_bits:
        return "fake-quantisation", f"weights of {bits} bits are claimed, {stored_bits:.4g} bits are stored for each"
    codes = 8 * codes_bytes / bits
    if codes > CODES_SHARE * found.parameters:
        return "fake-quantisation", (f"{codes_bytes} bytes of codes would be {codes:.6g} weights of {bits} bits, "
                                     f"the model has {found.parameters}")
    return None


def _masked(found: Realised) -> tuple[str, str] | None:
    """Zeros among dense weights are read and multiplied like any other weight."""
    zeros = 1 - found.nonzero_share
    if found.quantised_tensors or zeros <= DENSE_ZEROS:
        return None
    return "zero-masked", f"{100 * zeros:.4g} % of the dense weights are zeros that are stored and computed with"
