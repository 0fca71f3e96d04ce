"""What a plan needs before it is run: time, disk and download. For `run --dry-run`.

Waits and windows are declared, so their sum is a lower bound that holds; the time to compute is a guess from the model's
size and the profile's peak, and said to be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jouleboard import hostmemory, residency
from jouleboard.declared import Hardware
from jouleboard.plan import REPLAY, Family, Slot, pair_order, session_order, torch_device, wanted_probes
from jouleboard.sessionfile import LONGEST_S, Residency

CPU_PREFILL, CPU_DECODE = 2.5e11, 1e10
"""Operations a second that one thread reaches in prefill and decode of a small model in bf16, as seen on a virtual machine with
AVX-512; between processors it differs by ten times."""
PREFILL_SHARE, DECODE_SHARE = 0.3, 0.02
"""Shares of a device's peak that prefill and decode of one sequence reach through plain transformers: guesses."""
MOST_STEPS_PER_S = 60.0
"""Decode steps a second beyond which plain transformers waits for Python, whatever the device: a guess."""
TOKENS_PER_ITEM = 120
"""Of an eval item, all its choices together: a guess."""
START_S = 20.0
"""Starting a worker and building its variant."""
UNKNOWN_PARAMETERS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a plan needs."""

    declared_s: float
    """Windows, warm-ups, waits and idle: at least this."""
    computing_s: float
    """Everything else: a guess."""
    disk_bytes: int | None
    """Dense weights in the cache and, for GGUF, the file they come from; None where the model's size is not declared."""


def forecast(families: Sequence[Family], resident: residency.Choice = "all") -> Forecast:
    """Return what the families of a plan need together.

    Args:
        families: of the plan.
        resident: what is in memory at once; `auto`: as the memory that is free now allows.
    """
    sizes = [family.model.parameters for family in families]
    held = [held_at_once(family, resident) for family in families]
    return Forecast(
        declared_s=sum(map(_declared_s, families, held)), computing_s=sum(map(_computing_s, families, held)),
        disk_bytes=sum(3 * size for size in sizes if size) if all(sizes) else None,
    )


def held_at_once(family: Family, resident: residency.Choice) -> Residency:
    """Say what a family would have in memory; where the model's size is not declared, all variants."""
    if resident != "auto":
        return resident
    size, free_bytes = family.model.parameters, _free_bytes(family.hardware)
    if size is None or free_bytes is None:
        return "all"
    return "all" if residency.holds([residency.need(recipe, size) for recipe in family.recipes], free_bytes) else "pair"


def _free_bytes(hardware: Hardware) -> int | None:
    if torch_device(hardware) == "cpu":
        return hostmemory.available_bytes()
    return None if hardware.memory_bytes is None else int(hardware.memory_bytes.value * hardware.count)


def lines(families: Sequence[Family], resident: residency.Choice = "all") -> list[str]:
    """Return the forecast as lines for the terminal.

    Args:
        families: of the plan.
        resident: as in `forecast`.
    """
    found = forecast(families, resident)
    disk = "unknown" if found.disk_bytes is None else f"about {found.disk_bytes / 1e9:.1f} GB of cache for the weights"
    total_s = found.declared_s + found.computing_s
    held = [held_at_once(family, resident) for family in families]
    trials = sum(len(_order(family, one)) for family, one in zip(families, held, strict=True))
    pairs = ["memory    the base and one variant at a time are held: every variant is built twice, and the base is measured beside each"
             ] if "pair" in held else []
    late = [f"note      over {LONGEST_S / 3600:.0f} h a session of trials begins anew: measure fewer cells or variants at a time"] if (
        total_s > LONGEST_S) else []
    return [
        (f"time      at least {_minutes(found.declared_s)} of windows, warm-ups and waits ({trials} trials); about "
        f"{_minutes(total_s)} in all, a guess from the model's size and the device's peak"),
        f"disk      {disk}",
        *pairs,
        *late,
    ]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004 - 90 minutes


def _order(family: Family, held: Residency) -> tuple[Slot, ...]:
    energy = family.plan.energy
    ordered = session_order if held == "all" else pair_order
    return ordered(energy.cells, [recipe.id for recipe in family.recipes], energy.trials, family.plan.seed)


def _declared_s(family: Family, held: Residency) -> float:
    energy, variants = family.plan.energy, len(family.recipes)
    turns = len(_order(family, held))
    probes = variants * sum(1 for _ in wanted_probes(family.plan))
    warm_s = variants * energy.first_warmup_s + (turns - variants + probes) * energy.warmup_s
    return (warm_s + turns * (energy.window_s + energy.jitter_s / 2) + probes * energy.probe_window_s
            + 4 * energy.idle_s + 2 * energy.canary_s)


def _computing_s(family: Family, held: Residency) -> float:
    energy, variants = family.plan.energy, len(family.recipes)
    # Each cell has as many trials as any other, whatever the order.
    trials_a_cell = len(_order(family, held)) / len(energy.cells)
    prefill, decode = _rates(family)
    loops_s = 0.0
    for cell in energy.cells:
        if cell.workload == REPLAY:
            loop_s = energy.replay_tokens / prefill
        else:
            workload = family.workloads[cell.workload]
            loop_s = (cell.batch or 1) * workload.prompt_tokens / prefill + workload.output_tokens / decode
        # A window holds whole loops, so it ends within one loop of its least length.
        loops_s += trials_a_cell * (loop_s if not energy.window_s else loop_s / 2)
    probes_s = variants * sum(
        one.batch * one.prompt_tokens / prefill + one.output_tokens / decode for one in wanted_probes(family.plan))
    items = sum(row.limit or row.task.items or 1000 for row in family.tasks)
    builds = variants if held == "all" else 2 * variants
    return loops_s + 2 * probes_s + builds * START_S + variants * TOKENS_PER_ITEM * items / prefill


def _rates(family: Family) -> tuple[float, float]:
    """Guess prefill tokens and decode steps a second: two operations a parameter and token."""
    operations = 2 * (family.model.parameters or UNKNOWN_PARAMETERS)
    peak = _peak_flops(family.hardware)
    if peak is None or torch_device(family.hardware) == "cpu":
        threads = family.plan.threads
        return threads * CPU_PREFILL / operations, threads * CPU_DECODE / operations
    return PREFILL_SHARE * peak / operations, min(MOST_STEPS_PER_S, DECODE_SHARE * peak / operations)


def _peak_flops(hardware: Hardware) -> float | None:
    figures = hardware.peak_flops
    known = figures.get("bfloat16") or figures.get("float16") or next(iter(figures.values()), None)
    return None if known is None else known.value
