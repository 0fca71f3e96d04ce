"""A verdict in one sentence that a person can repeat. Pure: numbers into words for the terminal and pages.

    int8 does the same work for 24 % less CPU time (18 to 29 %) and loses no more than 1 point of accuracy: it dominates bf16
    undecided: int8 costs 3 % less CPU time than bf16 (6 % less to 1 % more) and ...; about 900 more items would decide

The sentence is the same whichever entry was named first. On boards without an energy sensor it says CPU time, never energy.
"""

from __future__ import annotations

from jouleboard.estimates import Estimate
from jouleboard.formats import MINUS, count, fixed
from jouleboard.statistics.evidence import COST_MARGIN, LEVEL, MARGIN, Verdict

_MARGIN_POINTS = f"{MARGIN * 100:.0f} point"


def what_is_spent(*, cpu_time: bool) -> str:
    """Name the cost."""
    return "CPU time" if cpu_time else "energy"


def verdict(found: Verdict, *, reference: str, items: int, trials: int, cpu_time: bool) -> str:
    """Say how a variant stands to what it is held against.

    Args:
        found: of the variant that it names.
        reference: the other one.
        items: paired items that it was drawn from.
        trials: valid trials of the side with fewer.
        cpu_time: whether costs are CPU time.
    """
    spent = what_is_spent(cpu_time=cpu_time)
    if found.kind == "none" or found.quality is None or found.cost_ratio is None:
        return f"no verdict: {found.reason or 'nothing pairs'}"
    if found.kind == "dominates":
        return _dominates(found, (found.name, reference), spent)
    if found.kind == "dominated":
        return _dominates(_mirrored(found), (reference, found.name), spent)
    seen = (f"{found.name} costs {saving(found.cost_ratio, spent, than=reference)} and answers "
            f"{points(found.quality)}")
    if found.kind == "trade-off":
        return f"{seen}: a trade-off, neither dominates"
    return f"undecided: {seen}; {_needs(found, items, trials)}"


def _mirrored(found: Verdict) -> Verdict:
    """Return the verdict with the roles exchanged, as far as a sentence reads it."""
    quality, ratio = found.quality, found.cost_ratio
    if quality is None or ratio is None:
        return found
    names = {"better": "base-better", "cheaper": "base-cheaper"}
    return Verdict(
        name=found.name, kind="dominates", reason=None,
        quality=Estimate(value=-quality.value, low=_negative(quality.high), high=_negative(quality.low)),
        cost_ratio=Estimate(value=1 / ratio.value, low=_inverse(ratio.high), high=_inverse(ratio.low)),
        p_values={name: found.p_values.get(other, 1.0) for name, other in names.items()})


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _inverse(value: float | None) -> float | None:
    return None if not value else 1 / value


def _dominates(found: Verdict, names: tuple[str, str], spent: str) -> str:
    winner, loser = names
    if found.quality is None or found.cost_ratio is None:
        return f"{winner} dominates {loser}"
    better, cheaper = (found.p_values.get(name, 1.0) <= LEVEL for name in ("better", "cheaper"))
    if better and cheaper:
        return f"{winner} answers {points(found.quality)} for {saving(found.cost_ratio, spent)}: it dominates {loser}"
    if better:
        return (f"{winner} answers {points(found.quality)} and costs no more than {COST_MARGIN * 100:.0f} % more {spent} "
                f"({_span(found.cost_ratio)}): it dominates {loser}")
    if not cheaper:
        # Either alone is not certain, one of the two is (see `statistics.verdicts`).
        return (f"{winner} costs {saving(found.cost_ratio, spent, than=loser)} and answers {points(found.quality)}; it is better in one "
                f"of the two and worse in neither by more than the margin: it dominates {loser}")
    return (f"{winner} does the same work for {saving(found.cost_ratio, spent)} and loses no more than {_MARGIN_POINTS} of accuracy "
            f"({signed_points(found.quality)}): it dominates {loser}")


def saving(ratio: Estimate, spent: str, *, than: str | None = None) -> str:
    """Say a cost ratio as what is saved: `24 % less CPU time (18 to 29 %)`."""
    beside = "" if than is None else f" than {than}"
    span = _span(ratio)
    return f"{_side(ratio.value)} {spent}{beside}" + (f" ({span})" if span else "")


def _side(ratio: float) -> str:
    change = _percent(abs(ratio - 1))
    return f"{change} % less" if ratio < 1 else f"{change} % more"


def _span(ratio: Estimate) -> str:
    """Say the interval of a cost ratio: both ends in the same words where they are on one side of 1."""
    if ratio.low is None or ratio.high is None:
        return "with no interval"
    if ratio.high < 1 and ratio.value < 1:
        return f"{_percent(1 - ratio.high)} to {_percent(1 - ratio.low)} %"
    if ratio.low > 1 and ratio.value >= 1:
        return f"{_percent(ratio.low - 1)} to {_percent(ratio.high - 1)} %"
    return f"{_side(ratio.low)} to {_side(ratio.high)}"


def _percent(share: float) -> str:
    # Below ten per cent a whole number would be off by more than a twentieth.
    return fixed(share * 100, 1 if share < 0.0995 else 0)  # noqa: PLR2004 - said above


def points(quality: Estimate) -> str:
    """Say a difference of accuracies: `0.4 points fewer of the items right (0.9 fewer to 0.2 more)`."""
    if quality.value == 0:
        ends = "" if quality.low is None or quality.high is None else f" ({signed_points(quality).partition(', ')[2]} points)"
        return f"as many of the items right{ends}"
    value = f"{fixed(abs(quality.value) * 100, 1)} points {'fewer' if quality.value < 0 else 'more'} of the items right"
    if quality.low is None or quality.high is None:
        return f"{value} (with no interval)"
    least, most = (f"{fixed(abs(end) * 100, 1)}" for end in (quality.low, quality.high))
    if quality.high < 0:
        return f"{value} ({most} to {least})"
    if quality.low >= 0 and quality.value >= 0:
        return f"{value} ({least} to {most})"
    return f"{value} ({least} fewer to {most} more)"


def signed_points(quality: Estimate) -> str:
    """Give a difference of accuracies in points, with its sign and interval."""
    ends = "" if quality.low is None or quality.high is None else f", {signed(quality.low * 100)} to {signed(quality.high * 100)}"
    return f"{signed(quality.value * 100)} points{ends}"


def signed(value: float, decimals: int = 1) -> str:
    """Give a number with its sign; nothing before zero."""
    text = fixed(value, decimals)
    return text if text.startswith(MINUS) or not float(text.replace(",", "")) else f"+{text}"


def _needs(found: Verdict, items: int, trials: int) -> str:
    more = []
    if found.needs_items is not None:
        more.append(f"about {count(_rough(found.needs_items - items))} more items")
    if found.needs_trials is not None:
        extra = max(found.needs_trials - trials, 1)
        more.append(f"{'about ' if extra > 1 else ''}{count(extra)} more {'trial' if extra == 1 else 'trials'} of each")
    if not more:
        return "no number of items or trials that anybody would measure decides it at the differences seen"
    return f"{' and '.join(more)} would decide"


def _rough(number: int) -> int:
    """Round up to two digits: it is an estimate."""
    step = int(10 ** max(len(str(max(number, 1))) - 2, 0))
    return -(-max(number, 1) // step) * step
