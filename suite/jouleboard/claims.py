"""Claims that are often made of compression, and what the entries of this site say of each. Pure; the words are in the template.

`tested(views)[1].held` entries bear out "distillation keeps 90 % of the accuracy", `.failed` do not, `.open` cannot say; each with its figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jouleboard.rows import Row
from jouleboard.statistics.evidence import LEVEL
from jouleboard.techniques import techniques
from jouleboard.views import BoardView, standing

PRUNED_SHARE, KEPT_SHARE = 0.80, 0.90


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one entry says of a claim."""

    view: BoardView
    row: Row
    value: float | None
    """Of the claim's own figure: a share, a ratio."""
    holds: bool | None
    """None: it was not measured, or its interval allows both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim with all entries that it speaks of."""

    key: str
    findings: tuple[Finding, ...]

    @property
    def held(self) -> int:
        """Entries that bear it out."""
        return sum(one.holds is True for one in self.findings)

    @property
    def failed(self) -> int:
        """Entries that speak against it."""
        return sum(one.holds is False for one in self.findings)

    @property
    def open(self) -> int:
        """Entries that cannot say."""
        return sum(one.holds is None for one in self.findings)


Test = Callable[[Row, Row], tuple[float | None, bool | None]]
"""A variant and its base: the figure, and whether the claim holds."""


def tested(views: Sequence[BoardView]) -> tuple[Claim, ...]:
    """Hold each claim against every entry that it speaks of; an entry counts once, by its first board that is not simulated."""
    pairs = tuple(_pairs(views))
    return tuple(Claim(key=key, findings=tuple(
        Finding(view=view, row=row, value=(found := test(row, base))[0], holds=found[1])
        for view, row, base in pairs if set(techniques(row.report)) & wanted)) for key, wanted, test in CLAIMS)


def _pairs(views: Iterable[BoardView]) -> Iterable[tuple[BoardView, Row, Row]]:
    seen: set[str] = set()
    for view in views:
        if view.board.is_simulated or view.board.kind != "variants":
            continue
        bases = {(row.report.model, row.report.session): row for row in view.rows if row.is_base}
        for row in view.rows:
            base = bases.get((row.report.model, row.report.session))
            if base is not None and not row.is_base and row.entry not in seen and row.report.status != "failed":
                seen.add(row.entry)
                yield view, row, base


def _parameters_cut(row: Row, base: Row) -> tuple[float | None, bool | None]:
    mine, theirs = (None if one.report.realised is None else one.report.realised.parameters * one.report.realised.nonzero_share
                    for one in (row, base))
    if mine is None or not theirs:
        return None, None
    cut = 1 - mine / theirs
    return cut, cut >= PRUNED_SHARE


def _accuracy_kept(row: Row, _base: Row) -> tuple[float | None, bool | None]:
    kept = None if row.with_base is None else row.with_base.retention
    return kept, None if kept is None else kept >= KEPT_SHARE


def _costs_less(row: Row, _base: Row) -> tuple[float | None, bool | None]:
    value = None if row.cost_ratio is None else row.cost_ratio.value
    return value, {"less": True, "more": False}.get(standing(row))


def _lighter_costs_less(row: Row, base: Row) -> tuple[float | None, bool | None]:
    if row.weight_bytes is None or base.weight_bytes is None or row.weight_bytes >= base.weight_bytes:
        return None, None
    return _costs_less(row, base)


def _loses_nothing(row: Row, _base: Row) -> tuple[float | None, bool | None]:
    found = row.verdict
    if found is None or found.quality is None or not found.p_values:
        return None, None
    holds = True if found.p_values.get("not-worse", 1.0) <= LEVEL else False if found.p_values.get("worse", 1.0) <= LEVEL else None
    return found.quality.value * 100, holds


CLAIMS: tuple[tuple[str, frozenset[str], Test], ...] = (
    ("pruning-80", frozenset({"pruned", "depth"}), _parameters_cut),
    ("distillation-90", frozenset({"distilled"}), _accuracy_kept),
    ("quantised-cheaper", frozenset({"quantised"}), _costs_less),
    ("lighter-cheaper", frozenset({"quantised", "pruned", "depth", "low-rank", "distilled", "other"}), _lighter_costs_less),
    ("quantised-lossless", frozenset({"quantised"}), _loses_nothing),
)
