"""What a board shows: rows derived from reports by `rank`, rendered by `publish`. No I/O here.

Every number is derived again at each build from the raw records of the reports; nothing here is stored.
"""

from __future__ import annotations

from jouleboard.declared import Boundary, Method, Metric, Noun
from jouleboard.records import Report


class Estimate(Noun, frozen=True, kw_only=True):
    """A value with its 95 % interval; the bounds are None where no interval can be had."""

    value: float
    low: float | None
    high: float | None


class TaskCell(Noun, frozen=True, kw_only=True):
    """One task of one row."""

    task: str
    metric: Metric
    score: Estimate | None
    """None where the quality is withheld."""
    chance: float
    signal: bool | None
    """Whether the base of this family is clearly above chance, None where that base is not known; only a task with signal
    counts in the quality."""
    withheld: str | None
    items: int


class Row(Noun, frozen=True, kw_only=True):
    """One entry on a board. `_per_ktoken` means per 1,000 tokens that went through the model, padding left out."""

    entry: str
    """Path of the entry's page below `entries/`, without a slash at either end."""
    report: Report
    is_base: bool
    badges: tuple[str, ...]
    """Reason codes shown as badges: `provisional`, `demonstration-base`, `estimated-joules`, `failed`, `base-grid`."""
    unranked: str | None
    """Why this row has no rank, in words, or None."""
    rank: int | None
    """Position by the board's cost among the ranked rows (1 is the least cost)."""
    quality: Estimate | None
    """Macro mean of the chance-corrected accuracies of the tasks with signal: 0 is chance, 1 is perfect."""
    tasks: tuple[TaskCell, ...]
    cpu_s_per_ktoken: Estimate | None
    cost_ratio: Estimate | None
    """Cost of this row over the cost of its base: CPU-seconds on CPU-time boards, joules elsewhere; 1 for the base."""
    energy_j_per_ktoken: Estimate | None
    """Measured joules, or the power model's estimate on CPU-time boards (then the bounds are its uncertainty)."""
    energy_is_estimate: bool
    quality_per_kilojoule: Estimate | None
    """Macro quality over kilojoules per 1,000 tokens: the headline, an estimate on CPU-time boards."""
    prefill_cpu_s_per_ktoken: dict[int, float]
    """By batch size."""
    decode_cpu_s_per_ktoken: dict[int, float]
    prefill_tokens_per_s: dict[int, float]
    decode_tokens_per_s: dict[int, float]
    weight_bytes: int | None
    peak_memory_bytes: int | None


class Board(Noun, frozen=True, kw_only=True):
    """Comparable rows: same items, same workload, same engine and device profile, same method and boundary."""

    key: str
    """Short digest over what all rows share."""
    title: str
    hardware: str
    method: Method
    boundary: Boundary
    is_cpu_time: bool
    """True where no sensor gave joules: ordered by measured CPU-seconds, joules are estimates and never ranked."""
    tasks: tuple[str, ...]
    no_signal: tuple[str, ...]
    """Tasks on which no base of the board is clearly above chance; none where no base is on it."""
    ranked: tuple[Row, ...]
    unranked: tuple[Row, ...]
