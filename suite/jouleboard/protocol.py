"""What the run driver and a worker process say to each other: one JSON object a line, over two pipes.

The driver never imports torch; a worker computes and nothing else. Every request gets progress messages and then exactly
one reply: the one named beside it, or `Failed`. For measured work the reply comes in two steps: `Ready`, then, after the
driver has opened its window and sent `Go`, the result.
"""

from __future__ import annotations

from typing import Any

from jouleboard.declared import EngineName, Model, Noun
from jouleboard.declared_tasks import Task
from jouleboard.engines.place import RankPlace
from jouleboard.errors import FailureCode
from jouleboard.records import Engine, Realised, TaskResult


class Convert(Noun, tag=True, frozen=True, kw_only=True):
    """Make dense safetensors of a GGUF file. Reply: `Converted`."""

    model: Model
    source: str
    target: str


class Fingerprint(Noun, tag=True, frozen=True, kw_only=True):
    """Compute the fingerprint of dense weights in a folder. Reply: `Converted`."""

    model: Model
    folder: str


class Converted(Noun, tag=True, frozen=True, kw_only=True):
    """The fingerprint of the dense weights."""

    weights_sha256: str


class Prepare(Noun, tag=True, frozen=True, kw_only=True):
    """Apply one step that gives dense weights, and save them. Replies: `Ready`, progress, then `Prepared`."""

    folder: str
    """Dense weights to begin with."""
    base: str
    """Folder of the base's own dense weights."""
    target: str
    """Folder to make."""
    step: dict[str, Any]
    dtype: str
    calibration: str
    corpus: str | None
    checkpoint: str | None = None
    """The fetched files of a ready-made checkpoint that the step names."""
    state: str
    """Folder for what a long step needs to go on."""
    threads: int
    device: str
    piece_s: float
    """A step that can be stopped stops after so long; the same request goes on from there."""


class Prepared(Noun, tag=True, frozen=True, kw_only=True):
    """A step was applied, or a piece of it."""

    step: dict[str, Any]
    """As declared, with what it found out; empty: it goes on with the next request."""
    claims: tuple[str, ...] = ()
    """What it claimed and was found to be so."""
    weights_sha256: str | None = None
    peak_memory_bytes: int


class Work(Noun, frozen=True, kw_only=True):
    """What a variant will compute: a batch of prompts, and greedy steps behind them."""

    batch: int
    prompt_tokens: int
    output_tokens: int
    """0: a prefill alone."""
    of_text: bool = False
    """Whether the prompts are text, as in serving, and not drawn."""


class Build(Noun, tag=True, frozen=True, kw_only=True):
    """Load the base's weights and apply a recipe. Replies: `Ready`, then `Built`."""

    model: Model
    folder: str
    recipe: dict[str, Any]
    calibration: str
    threads: int
    batch_size: int
    device: str
    engine: EngineName = "reference"
    prepared: tuple[dict[str, Any], ...] = ()
    """Steps that were applied before, with what they found out: `folder` holds what they gave, `recipe` the other steps."""
    claims: tuple[str, ...] = ()
    """What those steps claimed and was found to be so."""
    checkpoint: str | None = None
    """The fetched files of a ready-made checkpoint that the first step names."""
    ranks: RankPlace | None = None
    """None: this worker computes the variant alone."""
    planned_batch_size: int | None = None
    """The plan's, where `batch_size` is the recipe's own."""
    work: tuple[Work, ...] = ()
    """What it will be asked for, so that what has to be compiled for that is compiled now."""


class Built(Noun, tag=True, frozen=True, kw_only=True):
    """A variant is in memory."""

    realised: Realised
    engine: Engine
    steps: tuple[dict[str, Any], ...]
    torch_cpu_capability: str
    device: str | None = None
    """Digest of the GPU's UUID (of all ranks' GPUs) as `records.DeviceState.device` has it; None on other devices."""
    fallback: str | None = None
    """Why the reference engine computes it in place of the plan's; None: the plan's does."""


class Evaluate(Noun, tag=True, frozen=True, kw_only=True):
    """Score one task's items. Replies: `Ready`, then `Evaluated`."""

    task: Task
    documents: str
    data_sha256: str
    unparsed: int
    limit: int | None
    seed: int
    withheld: str | None
    items: str
    """File to write the items to, JSON lines."""
    batches: str
    """File to write the recorded batches to, JSON."""
    quiet: bool = False
    """Send no progress: the window is that of a trial (`live`)."""
    journal: str | None = None
    """File that keeps computed batches; None: none are kept, as in a trial."""
    origin_sha256: str = ""
    """Digest of what is scored and with what: a journal of anything else is not used."""


class Evaluated(Noun, tag=True, frozen=True, kw_only=True):
    """A task's result; its times are filled in by the driver."""

    result: TaskResult
    resumed_batches: int = 0
    """Batches that an earlier try had computed."""


class Replay(Noun, tag=True, frozen=True, kw_only=True):
    """Compute recorded batches again, in whole loops. Replies: `Ready` (after the warm-up), then `Worked`."""

    batches: str
    """File of batches, JSON: a list of lists of `records.ReplayRow`. A variant with a batch size of its own cuts them anew."""
    warmup_s: float
    window_s: float
    """No loop begins later than this after `Go`; 0: one loop."""


class Serve(Noun, tag=True, frozen=True, kw_only=True):
    """Serve a batch of requests of forced lengths, in whole loops: prefill, then greedy decoding. Replies as `Replay`.

    More tokens than the model's context or the memory holds: `Failed`, before `Ready`.
    """

    prompt_tokens: int
    output_tokens: int
    batch: int
    text: str
    """File of the text that prompts are cut from."""
    warmup_s: float
    window_s: float


class Worked(Noun, tag=True, frozen=True, kw_only=True):
    """Whole loops are done and the device is idle again. Fields as in `records.Trial`."""

    loops: int
    loop_ends_s: tuple[float, ...]
    output_sha256: str
    loops_changed: int
    """Later loops whose output differs from that of the first."""
    first_token_s: tuple[float, ...]
    cached_tokens: int


class Probe(Noun, tag=True, frozen=True, kw_only=True):
    """Prefill or decode at one batch size, in whole loops. Replies: `Ready` (after a warm-up), then `Probed`.

    `TooLarge` may come in place of either: memory can run out in the window too.
    """

    kind: str
    batch: int
    prompt_tokens: int
    output_tokens: int
    warmup_s: float
    window_s: float


class Probed(Noun, tag=True, frozen=True, kw_only=True):
    """A probe is done and the device is idle again. Latencies were measured before `Ready`, after the warm-up, step by step."""

    loops: int
    first_token_s: float | None
    step_s: tuple[float, ...]
    peak_memory_bytes: int


class TooLarge(Noun, tag=True, frozen=True, kw_only=True):
    """A probe does not fit into memory or the model's context; the worker is as before."""

    reason: str


class Canary(Noun, tag=True, frozen=True, kw_only=True):
    """Decode with the small fixed model of `workloads.CANARY`. Replies: `Ready` (after a warm-up), then `CanaryDone`.

    Needs no `Build` before it: a worker of its own holds no variant.
    """

    device: str
    threads: int
    warmup_s: float
    window_s: float


class CanaryDone(Noun, tag=True, frozen=True, kw_only=True):
    """The canary has sung."""

    model: str
    tokens: int
    output_sha256: str


class Memory(Noun, tag=True, frozen=True, kw_only=True):
    """Ask for the peak memory, and perhaps begin a new peak. Reply: `MemoryRead`."""

    begin_anew: bool


class MemoryRead(Noun, tag=True, frozen=True, kw_only=True):
    """Peak bytes: resident set of the worker on a CPU, allocated on the device on a GPU."""

    peak_memory_bytes: int


class Go(Noun, tag=True, frozen=True, kw_only=True):
    """The window is open: begin."""


class Ready(Noun, tag=True, frozen=True, kw_only=True):
    """Everything is prepared; work begins at `Go`."""


class Progress(Noun, tag=True, frozen=True, kw_only=True):
    """Some of the work is done, in the unit that `of` counts."""

    done: int
    of: int


class Failed(Noun, tag=True, frozen=True, kw_only=True):
    """The request could not be carried out."""

    reason: str
    remedy: str | None
    code: FailureCode = "error"
    storage: bool = False
    """A file could not be written: that is no failure of the variant, and ends the run."""
    file: str | None = None
    """Which, where that is known."""


Request = Convert | Fingerprint | Prepare | Build | Evaluate | Replay | Serve | Probe | Canary | Memory | Go
Reply = (
    Converted | Prepared | Built | Evaluated | Worked | Probed | TooLarge | CanaryDone | MemoryRead | Ready | Progress | Failed
)
