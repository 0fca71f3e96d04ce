"""Whether a run has room to write: checked before it begins, so that it does not end in the night with a full disk.

Example: 135 million parameters that are not in the cache yet take 540 MB as dense float32, and the file that they come from.
"""

from __future__ import annotations

from pathlib import Path

from jouleboard import paths, sources, storage
from jouleboard.declared import HubSource, PackageSource
from jouleboard.models import IDENTITY
from jouleboard.plan import Family, wanted_probes

ITEM_BYTES = 6_000
"""One item of one variant, its recorded batches and its place in the entry: 1,200 in the quick plan
(4.8 MB for 5 variants of 816 items), and room for their journal."""
TRACE_BYTES_S = 3_000
"""A second of trace at ten samples, as a working file and in the entry, old and new."""
LEAST_BYTES = 20_000_000
"""Logs, reports, and what is too small to count."""
SPARE_BYTES = 100_000_000
"""Parsed items and wheels beside the weights."""
UNKNOWN_PARAMETERS = 1_000_000_000
GGUF_BYTES, DENSE_BYTES, HUB_BYTES = 1, 4, 2
"""Bytes a parameter: of the file that is fetched (Q8 is the largest usual one), as dense float32, and as published in bf16."""


def require(family: Family, out: Path) -> None:
    """Make sure that the run folder, and the cache where something is missing from it, can be written and have room.

    Args:
        family: what is to be run.
        out: the run folder.

    Raises:
        StorageError: naming the folder, what is free and what is needed.
    """
    run_bytes, weights_bytes = folder_bytes(family), cache_bytes(family)
    cache = paths.cache_folder()
    storage.require(out, need_bytes=run_bytes, what="the run folder")
    if weights_bytes:
        storage.require(cache, need_bytes=weights_bytes, what="the cache")
        if out.stat().st_dev == cache.stat().st_dev:
            storage.require(out, need_bytes=run_bytes + weights_bytes, what="the run folder and the cache, on one disk")


def folder_bytes(family: Family) -> int:
    """Estimate what a run writes into its folder: items, recorded batches and traces of all variants."""
    energy, variants = family.plan.energy, len(family.recipes)
    items = sum(row.limit or row.task.items or 1000 for row in family.tasks)
    probes = sum(1 for _ in wanted_probes(family.plan))
    window_s = max(energy.window_s, 10.0)
    measured_s = variants * (2 * energy.trials * len(energy.cells) * window_s + probes * max(energy.probe_window_s, 1.0))
    return int(LEAST_BYTES + items * variants * ITEM_BYTES + measured_s * TRACE_BYTES_S)


def cache_bytes(family: Family) -> int:
    """Estimate what is still to be fetched and made dense; 0 where the weights are there, or come from a user's folder."""
    source, size = family.model.source, family.model.parameters or UNKNOWN_PARAMETERS
    if paths.bundle_folder() is not None:
        return 0
    if isinstance(source, PackageSource):
        if (paths.cache_folder() / "models" / f"{family.model.id}-{source.sha256[:16]}" / IDENTITY).is_file():
            return 0
        fetched = 0 if sources.package_target(source).is_file() else GGUF_BYTES * size
        return SPARE_BYTES + fetched + DENSE_BYTES * size
    if isinstance(source, HubSource):
        # The hub's own cache may be on another disk; what is there is known by the note that is kept of it.
        note = paths.cache_folder() / "models" / f"{family.model.id}-{source.revision[:16]}" / IDENTITY
        return 0 if note.is_file() else SPARE_BYTES + HUB_BYTES * size
    return 0
