"""What an entry's page shows beyond its rows: cells, gates by rule, the cost model, and what the trials were worth. Pure.

`entry_view(places, declared, sizes).gates[0].failing` are the rows of the first gate that did not pass, the others are folded away;
`.predictions[0].error` is -0.04 where the model says 4 % less than what was measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jouleboard import costmodel
from jouleboard.axes import padded, ticks
from jouleboard.costmodel import Crossover, Validation
from jouleboard.costs import headline_cost, latency
from jouleboard.declared import Workload
from jouleboard.gates import RULES
from jouleboard.meters.powercap import total_j
from jouleboard.records import Report
from jouleboard.rows import REPLAY, Board, Latency, Row
from jouleboard.views import cell_title
from jouleboard.windows import Canary, Gate, Probe, Trial

DEVICES = frozenset({"gpu", "soc"})
"""Boundaries that leave the host out; every other one holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One trial of the strip plot, on a scale from 0 to 100."""

    order: int
    cost: float
    x: float
    void: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A labelled place on the strip plot's axis."""

    value: float
    x: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """The trials of one entry, with the mean and interval of its row where there is one."""

    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]
    mean: float | None
    low: float | None
    high: float | None
    decimals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CellView:
    """One cell of an entry, and its place on that cell's board."""

    board: Board
    row: Row
    title: str
    strip: Strip | None
    of: int
    """Ranked entries of the board in the tier of this one."""
    trials: int
    """Valid ones."""
    void: int
    mismatch: float | None
    """Share of loops that gave other tokens than the first one; None where there is nothing to compare."""
    host_j_per_request: float | None
    """Joules of the host's packages and memory outside the boundary; None where they were not measured in every valid trial,
    and where the boundary is not that of a device alone (`DEVICES`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateGroup:
    """One rule and how everything that it spoke of fared."""

    name: str
    rule: str | None
    counts: Mapping[str, int]
    """By status, those that occur."""
    failing: tuple[Gate, ...]
    """Failed or unverified."""
    others: tuple[Gate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeView:
    """One probe with what follows from its window."""

    probe: Probe
    tokens_per_s: float
    inter_token: Latency | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossoverView:
    """The crossover batch for one declared workload."""

    title: str
    found: Crossover


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryView:
    """Everything that the page of an entry derives."""

    cells: tuple[CellView, ...]
    titles: Mapping[tuple[str, int | None], str]
    """Of every cell that has a trial, by workload and batch."""
    gates: tuple[GateGroup, ...]
    probes: tuple[ProbeView, ...]
    predictions: tuple[Validation, ...]
    crossovers: tuple[CrossoverView, ...]
    """None for the base, and where nothing may be compared."""
    live_ratio: float | None
    """Cost per computed token of the live eval over that of the replays."""
    canary_drift: float | None
    """Cost of a canary token after the run over before, less one."""
    has_host: bool
    """Whether there is a host outside the boundary, measured or not."""


def tier_sizes(board: Board) -> Mapping[int | None, int]:
    """Count the ranked entries of each tier."""
    return Counter(row.tier for row in board.ranked)


def entry_view(
    places: Sequence[tuple[Board, Row]], declared: Mapping[str, Workload], sizes: Mapping[str, Mapping[int | None, int]],
) -> EntryView:
    """Derive what the page of an entry shows.

    Args:
        places: the boards that it stands on with its row on each, in the order of the front page.
        declared: the serving workloads that have a data file, by id.
        sizes: `tier_sizes` of each board, by its key.
    """
    report, row = places[0][1].report, places[0][1]
    cells = [(one.workload, one.batch) for one in report.trials]
    return EntryView(
        cells=tuple(_cell(board, row, declared, sizes[board.key]) for board, row in places),
        titles={cell: cell_title(*cell, declared) for cell in dict.fromkeys(cells)}, gates=gate_groups(report.gates),
        probes=tuple(_probe(probe) for probe in report.probes),
        predictions=() if row.cost_model is None else costmodel.validate(row.cost_model, report.trials),
        crossovers=_crossovers(places, declared), live_ratio=live_ratio(report), canary_drift=canary_drift(report),
        has_host=report.boundary in DEVICES,
    )


def _cell(board: Board, row: Row, declared: Mapping[str, Workload], sizes: Mapping[int | None, int]) -> CellView:
    mine = [trial for trial in row.report.trials if (trial.workload, trial.batch) == (row.workload, row.batch)]
    valid = [trial for trial in mine if trial.void is None]
    return CellView(
        board=board, row=row, title=cell_title(row.workload, row.batch, declared), strip=strip(row), of=sizes.get(row.tier, 0),
        trials=len(valid), void=len(mine) - len(valid), mismatch=mismatch(valid),
        host_j_per_request=_host_j(valid) if row.report.boundary in DEVICES else None,
    )


def _host_j(trials: Sequence[Trial]) -> float | None:
    # The platform's counter holds the packages, so the domains are never simply added up.
    each = [joules / trial.requests for trial in trials if (joules := total_j(trial.window.host_j)) is not None]
    return math.fsum(each) / len(each) if each and len(each) == len(trials) else None


def mismatch(trials: Sequence[Trial]) -> float | None:
    """Return the share of loops whose output differs: later loops from the first of a trial, first ones from one another."""
    loops = sum(trial.loops for trial in trials)
    if loops < 2:  # noqa: PLR2004 - one is not compared
        return None
    changed = sum(min(trial.loops_changed, trial.loops) for trial in trials)
    return min(1.0, (changed + sum(trial.output_sha256 != trials[0].output_sha256 for trial in trials)) / loops)


def gate_groups(gates: Sequence[Gate]) -> tuple[GateGroup, ...]:
    """Group gates by rule, in the order in which they stand."""
    found: dict[str, list[Gate]] = {}
    for gate in gates:
        found.setdefault(gate.name, []).append(gate)
    return tuple(
        GateGroup(
            name=name, rule=RULES[name].text if name in RULES else None,
            counts={status: count for status in ("fail", "unverified", "pass", "not-applicable")
                    if (count := sum(gate.status == status for gate in group))},
            failing=tuple(gate for gate in group if gate.status in {"fail", "unverified"}),
            others=tuple(gate for gate in group if gate.status not in {"fail", "unverified"}),
        )
        for name, group in found.items())


def _probe(probe: Probe) -> ProbeView:
    tokens = probe.loops * probe.batch * (probe.prompt_tokens if probe.kind == "prefill" else probe.output_tokens)
    return ProbeView(probe=probe, tokens_per_s=tokens / probe.window.duration_s, inter_token=latency(probe.step_s))


def _crossovers(places: Sequence[tuple[Board, Row]], declared: Mapping[str, Workload]) -> tuple[CrossoverView, ...]:
    """Find the crossover for each declared workload, against the base of the same session."""
    board, row = next(((board, row) for board, row in places if row.cost_ratio is not None), places[0])
    if row.is_base or row.cost_ratio is None:
        # What may not be compared as measured may not be compared by a model of it either.
        return ()
    base = next((other for other in (*board.ranked, *board.unranked) if other.is_base and _beside(other, row)), None)
    return tuple(
        CrossoverView(title=workload.title, found=costmodel.crossover(
            None if base is None else base.cost_model, row.cost_model, prompt=workload.prompt_tokens,
            output=workload.output_tokens))
        for _, workload in sorted(declared.items()))


def _beside(base: Row, row: Row) -> bool:
    """Whether a base was measured in the session of a row."""
    return (base.report.model, base.report.session, base.report.recipe) == (
        row.report.model, row.report.session, row.report.base)


def live_ratio(report: Report) -> float | None:
    """Return the cost of a computed token of the live eval over that of the replays; None where either is not known."""
    replays = [trial for trial in report.trials if trial.workload == REPLAY and trial.void is None]
    if report.live is None or report.live.void is not None or not replays:
        return None
    mine, theirs = _per_computed([report.live], report), _per_computed(replays, report)
    return mine / theirs if mine is not None and theirs else None


def _per_computed(trials: Sequence[Trial], report: Report) -> float | None:
    cpu_time = report.method == "model"
    spent = [trial.window.cpu_s if cpu_time else trial.window.energy.measured_j for trial in trials]
    known = [one for one in spent if one is not None]
    tokens = sum(trial.computed_tokens for trial in trials)
    return math.fsum(known) / tokens if len(known) == len(trials) and tokens else None


def canary_drift(report: Report) -> float | None:
    """Return by how much a canary's token cost more after the run than before; None without a pair that did the same."""
    before, after = (next((one for one in report.canary if one.when == when), None) for when in ("before", "after"))
    if before is None or after is None or (before.model, before.output_sha256) != (after.model, after.output_sha256):
        return None
    costs = [_canary_cost(one, report) for one in (before, after)]
    return costs[1] / costs[0] - 1 if costs[0] and costs[1] is not None else None


def _canary_cost(canary: Canary, report: Report) -> float | None:
    window = canary.window
    spent = window.cpu_s if report.method == "model" else window.energy.measured_j
    return None if spent is None or window.void is not None else spent / canary.tokens


def strip(row: Row) -> Strip | None:
    """Place the trials of an entry's cell on one scale; None where none has a cost."""
    mine = [trial for trial in row.report.trials if (trial.workload, trial.batch) == (row.workload, row.batch)]
    found = [(trial, headline_cost(trial, cpu_time=row.energy_is_estimate)) for trial in mine]
    known = [(trial, value) for trial, value in found if value is not None]
    if not known:
        return None
    mean = row.headline_cost
    interval = [] if mean is None else [end for end in (mean.value, mean.low, mean.high) if end is not None]
    low, high = padded([*(value for _, value in known), *interval])

    def place(value: float | None) -> float | None:
        return None if value is None else (value - low) / (high - low) * 100

    marks, decimals = ticks(low, high)
    return Strip(
        dots=tuple(
            Dot(order=one.order, cost=value, x=(value - low) / (high - low) * 100, void=one.void is not None)
            for one, value in known
        ),
        ticks=tuple(Tick(value=value, x=(value - low) / (high - low) * 100) for value in marks),
        mean=place(mean.value if mean else None),
        low=place(mean.low if mean else None),
        high=place(mean.high if mean else None),
        decimals=decimals,
    )
