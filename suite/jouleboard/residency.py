"""What is in memory during a run: all variants of a family at once, or the base and one variant at a time.

All at once is quicker, since every variant is built once and the base's trials serve all of them. Where memory does not hold
that, the variants take turns beside the base. The choice follows from the weights, before anything is built, and from what is
left after each build.

Example: six variants of a model of 7e9 parameters in bf16 need 84 GB and six processes; 64 GB are there: in pairs.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jouleboard import hostmemory
from jouleboard.declared import Hardware
from jouleboard.errors import TooLargeError
from jouleboard.plan import ranks, torch_device
from jouleboard.recipes import Recipe
from jouleboard.session import Session
from jouleboard.sessionfile import Residency

Choice = Literal["auto", "all", "pair"]
MARGIN = 0.2
"""Share of the memory that is left alone: for activations, caches, and what else the machine does."""
PROCESS_BYTES = 600_000_000
"""A worker with its libraries and nothing built, on the host; on a GPU, its context. A guess, on the safe side."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LENGTH_BYTES, MOST_HEADER_BYTES = 8, 100_000_000
"""A safetensors file begins with the length of its header (little-endian), which the format limits to 100 MB; then the header,
JSON: https://github.com/huggingface/safetensors#format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Estimated bytes of one variant's weights."""

    building_bytes: int
    """While it is built: the base's weights in the recipe's data type."""
    resident_bytes: int
    """Afterwards."""


def need(recipe: Recipe, parameters: int) -> Need:
    """Estimate the memory of a variant's weights.

    Args:
        recipe: its data type and bits.
        parameters: of the dense model.
    """
    dense = parameters * DTYPE_BYTES[recipe.dtype]
    bits = recipe.stored_bits
    # An exporter holds the model that it reads and the one that it writes.
    building = dense if recipe.export is None else 2 * dense
    return Need(building_bytes=building, resident_bytes=dense if bits is None else min(dense, parameters * bits // 8))


def holds(needs: Sequence[Need], available_bytes: int, *, processes: int = 1) -> bool:
    """Say whether variants that are built one after another fit into memory together, with a margin.

    Args:
        needs: of the variants.
        available_bytes: on all devices together.
        processes: that compute each variant together, every one with libraries or a context of its own.
    """
    if not needs:
        return True
    resident = sum(one.resident_bytes + processes * PROCESS_BYTES for one in needs)
    most = max(one.building_bytes - one.resident_bytes for one in needs)
    return resident + most <= (1 - MARGIN) * available_bytes


def choose(session: Session, wanted: Choice) -> Residency:
    """Choose what is in memory; a session on disk keeps what it began with, since its order of trials follows from it."""
    there = session.folder.session.read()
    if there is not None:
        if wanted not in {"auto", there.residency}:
            session.display.say(f"  the session of {there.began_utc} goes on with `--resident {there.residency}`, as it began")
        return there.residency
    if wanted != "auto":
        return wanted
    if fits(session, session.family.recipes):
        return "all"
    session.display.say(_words(session))
    return "pair"


def fits(session: Session, recipes: Sequence[Recipe]) -> bool:
    """Say whether variants that are not built yet fit beside what is in memory now; where that is not known, they do."""
    count, available = parameters(session.dense.folder), available_bytes(session)
    if count is None or available is None:
        return True
    return holds([need(recipe, count) for recipe in recipes], available, processes=ranks(session.family.hardware))


def require_fit(session: Session, recipe: Recipe) -> None:
    """Refuse to load weights that are larger than the memory that is left: on a CPU the kernel would end some process.

    Raises:
        TooLargeError: they do not fit.
    """
    count, available = parameters(session.dense.folder), available_bytes(session)
    if count is None or available is None:
        return
    wanted = need(recipe, count).building_bytes
    if wanted > available:
        beside = [name for name in session.workers if name != recipe.id]
        words = f" beside {', '.join(beside)}" if beside else ""
        raise TooLargeError(f"its weights need {wanted / 1e6:.0f} MB while it is built, {available / 1e6:.0f} MB are free{words}",
                            field=recipe.id, remedy="use a device with more memory, end other programs, or run a smaller model"
                            + ("" if session.residency == "pair" else "; `--resident pair` holds two variants at a time"))


def parameters(folder: Path) -> int | None:
    """Count the numbers in a folder's safetensors, from their headers alone; None where there are none to be read."""
    counts = [_numbers(path) for path in sorted(folder.glob("*.safetensors"))]
    known = [count for count in counts if count is not None]
    return (sum(known) or None) if len(known) == len(counts) else None


def _numbers(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(LENGTH_BYTES))
            data = file.read(min(size, MOST_HEADER_BYTES))
        header = json.loads(data)
        count = sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    return count if len(data) == size else None


def available_bytes(session: Session) -> int | None:
    """Return how much memory is left on the device that the variants compute on; None where nobody says."""
    hardware = session.family.hardware
    if not _on_gpu(hardware):
        return hostmemory.available_bytes()
    if hardware.memory_bytes is None:
        return None
    # The driver does not compute, so it asks its workers what they took, and counts a context for each.
    # What they took is the sum over a variant's ranks already.
    taken = sum(session.resident_bytes.values()) + PROCESS_BYTES * len(session.resident_bytes) * ranks(hardware)
    return max(0, int(hardware.memory_bytes.value * hardware.count) - taken)


def _on_gpu(hardware: Hardware) -> bool:
    return torch_device(hardware).startswith("cuda")


def _words(session: Session) -> str:
    count, available = parameters(session.dense.folder), available_bytes(session)
    if count is None or available is None:
        return ""
    contexts = PROCESS_BYTES * ranks(session.family.hardware)
    total = sum(need(recipe, count).resident_bytes + contexts for recipe in session.family.recipes)
    return (f"memory: {len(session.family.recipes)} variants at once would take about {total / 1e9:.1f} GB, {available / 1e9:.1f} GB "
            "are free: the base and one variant at a time are held (`--resident pair`), which takes longer")
