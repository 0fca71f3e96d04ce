"""What a board shows: rows derived from reports by `rank`, rendered by `publish`. No I/O here.

Every number is derived again at each build from the raw records of the reports; nothing here is stored.
"""

from __future__ import annotations

from typing import Literal

from jouleboard.cascaderows import Derived
from jouleboard.costmodel import Crossover, Fit
from jouleboard.declared import Boundary, Method, Noun
from jouleboard.declared_tasks import Metric
from jouleboard.estimates import Estimate
from jouleboard.factors import Worth
from jouleboard.records import Report
from jouleboard.statistics.evidence import Verdict

BoardKind = Literal["variants", "stacks"]
"""What a board compares: variants that answered the same items, or engines that computed the same tokens of one model."""
REPLAY = "replay"
"""The workload that computes the recorded batches of the quality pass again; every other one serves requests."""


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


class Latency(Noun, frozen=True, kw_only=True):
    """How long something took, over so many samples."""

    median_s: float
    p95_s: float | None
    """None where the samples are too few for one."""
    samples: int
    context_tokens: int | None = None
    """Of decode steps: the prompt behind which they were timed."""


class PerCorrect(Noun, frozen=True, kw_only=True):
    """Cost of a correct answer: `per_token` x `tokens_per_answer` / `share_correct`, in the unit of the board."""

    per_token: float
    tokens_per_answer: float
    """Tokens that went through the model for an item, on average over the tasks with signal."""
    share_correct: float
    """Macro accuracy, guessed answers among them."""
    value: Estimate


class WithBase(Noun, frozen=True, kw_only=True):
    """What became of the base's answers, over the tasks that count, each of the same weight."""

    retention: float | None
    """Macro accuracy over that of the base; None where the base has none."""
    lost_share: float | None
    """Of all items: the base was right, the variant is wrong; None where scores are not right or wrong."""
    gained_share: float | None
    """The other way round: an accuracy that stays the same may hide both (Dutta et al. 2024)."""
    divergence_nats: float | None
    """Mean KL(base || variant) an item over the probabilities of its choices; None where no task has choices."""


class BreakEven(Noun, frozen=True, kw_only=True):
    """When the cost of making a variant is saved again."""

    bill: float
    """Of making the variant, in the unit of the board."""
    saving: Estimate
    """Of each request."""
    requests: Estimate | None
    """None where the saving is not clearly above zero; an upper bound of None: it may never be saved again."""
    days: Estimate | None
    """At `REQUESTS_A_DAY`."""


class Row(Noun, frozen=True, kw_only=True):
    """One entry on a board, which is one cell of it. `_per_ktoken` means per 1,000 tokens that went through the model, padding left out."""

    entry: str
    """Path of the entry's page below `entries/`, without a slash at either end."""
    report: Report
    is_base: bool
    badges: tuple[str, ...]
    """Reason codes shown as badges: `simulated`, `provisional`, `demonstration-base`, `estimated-joules`, `failed`,
    `base-grid`, `idling`, `unverified`."""
    unranked: str | None
    """Why this row has no rank, in words, or None."""
    rank: int | None
    """Position by the board's cost among the ranked rows (1 is the least cost)."""
    quality: Estimate | None
    """Macro mean of the chance-corrected accuracies of the tasks with signal: 0 is chance, 1 is perfect."""
    tasks: tuple[TaskCell, ...]
    cpu_s_per_ktoken: Estimate | None
    cost_ratio: Estimate | None
    """Cost of this row over the cost of its base: CPU-seconds on CPU-time boards, joules elsewhere; 1 for the base, None
    where the two may not be compared."""
    energy_j_per_ktoken: Estimate | None
    """Measured joules, or the power model's estimate on CPU-time boards (then the bounds are its uncertainty)."""
    energy_is_estimate: bool
    quality_per_kilojoule: Estimate | None = None
    """Macro quality over kilojoules per request (of `replay`: per 1,000 tokens): the headline, an estimate on CPU-time
    boards, None where energy is simulated."""
    prefill_cpu_s_per_ktoken: dict[int, float]
    """By batch size, at the middle one of the prompt lengths that were probed."""
    decode_cpu_s_per_ktoken: dict[int, float]
    prefill_tokens_per_s: dict[int, float]
    decode_tokens_per_s: dict[int, float]
    weight_bytes: int | None
    peak_memory_bytes: int | None
    workload: str = REPLAY
    batch: int | None = None
    """Sequences at once; None for `replay`."""
    cpu_s_per_request: Estimate | None = None
    """None for `replay`, whose requests are parts of eval items."""
    energy_j_per_request: Estimate | None = None
    """As `energy_j_per_ktoken`."""
    first_token: Latency | None = None
    """Over the loops of the cell's valid trials."""
    inter_token: Latency | None = None
    """Over the steps of the decode probe at the cell's batch size whose prompt is nearest to the cell's."""
    cost_model: Fit | None = None
    """Fitted to the probes: CPU-seconds on CPU-time boards, joules elsewhere."""
    crossover: Crossover | None = None
    """Against the base, for requests of this cell; None for the base, for `replay`, and where nothing may be compared."""
    provisional: tuple[str, ...] = ()
    """Why these figures are provisional, in words."""
    tier: int | None = None
    """Band of a tenth of macro quality (`rowquality.tier`); None without a rank. Ranks order inside a tier."""
    tiers_reached: tuple[int, int] | None = None
    """Lowest and highest tier that the interval of the quality reaches into: where they differ, so may the tier."""
    rank_low: int | None = None
    """Best and worst rank in the tier by a simultaneous 95 % set; None where a cost has no interval, or the board is too large."""
    rank_high: int | None = None
    frontier_share: float | None = None
    """Probability that no other ranked row of the board is better in both cost and quality, from joint draws with a fixed seed."""
    verdict: Verdict | None = None
    """How the variant stands to its base; None for the base, and where its base is not on the board."""
    with_base: WithBase | None = None
    """None for the base, and where no items pair."""
    accuracy: Estimate | None = None
    """Macro mean of the primary metrics of the tasks with signal, not corrected for chance."""
    cost_per_item: Estimate | None = None
    """Of `replay`: cost of an eval item, by the tokens that an item is, in the unit of the board; scoring is no serving."""
    per_correct: PerCorrect | None = None
    per_prompt_token: float | None = None
    """Of serving: what a prompt token adds to a request by the fitted model at this batch, in the unit of the board; None where it was
    not probed."""
    per_output_token: float | None = None
    break_even: BreakEven | None = None
    """Of a variant that costs less than its base: what making it cost, over what each request saves."""
    worth: Worth | None = None
    """1,000 requests as carbon, cost and charges, by declared factors: a view, an estimate where joules are."""
    base_drift: float | None = None
    """How far the first and last trial of the base are apart in this cell, as a share: a cost ratio that is no farther from
    1 is no difference. None for the base, and where it is not known."""

    @property
    def cost_per_request(self) -> Estimate | None:
        """What a request costs in the unit of the board: CPU-seconds where joules are estimates, else joules."""
        return self.cpu_s_per_request if self.energy_is_estimate else self.energy_j_per_request

    @property
    def cost_per_ktoken(self) -> Estimate | None:
        """What 1,000 tokens cost in the unit of the board."""
        return self.cpu_s_per_ktoken if self.energy_is_estimate else self.energy_j_per_ktoken

    @property
    def headline_cost(self) -> Estimate | None:
        """What the board is ordered by: the cost per request, of `replay` the cost per 1,000 tokens."""
        return self.cost_per_ktoken if self.workload == REPLAY else self.cost_per_request


class IsoQuality(Noun, frozen=True, kw_only=True):
    """The least cost at a floor of quality."""

    floor: float
    """Of macro quality."""
    entry: str
    """Of the ranked row with the least cost among those whose quality is at or above the floor."""
    cost: Estimate
    certain: bool
    """Whether the lower bound of its quality is at or above the floor too."""
    runner_up: str | None
    """The next one in cost."""


class Board(Noun, frozen=True, kw_only=True):
    """Comparable rows: same items, same workload and batch, same engine and device profile, same method and boundary."""

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
    workload: str = REPLAY
    batch: int | None = None
    prompt_tokens: int | None = None
    """Of each request; None for `replay`."""
    output_tokens: int | None = None
    kind: BoardKind = "variants"
    iso_quality: tuple[IsoQuality, ...] = ()
    """One for each floor of a tier that a ranked row reaches, the highest first."""
    least_difference: float | None = None
    """Difference in macro accuracy, in absolute terms, that a paired comparison of this many items finds with 80 % power; None where no
    pair is on the board."""
    cascades: tuple[Derived, ...] = ()
    """Derived, not measured: small variant first, its base where it is unsure (`derived.with_cascades`)."""

    @property
    def is_serving(self) -> bool:
        """Whether the cell serves requests of declared lengths."""
        return self.workload != REPLAY

    @property
    def is_simulated(self) -> bool:
        """Whether the joules come from a simulated device: nothing of it is ranked or compared."""
        return self.method == "simulated"
