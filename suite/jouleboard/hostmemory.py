"""Memory of this machine that a process can still have: the kernel's estimate, and the limits of control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil


def available_bytes() -> int:
    """Return how many bytes this process, and those that it starts, can allocate now without swapping."""
    groups = control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return min([int(psutil.virtual_memory().available), *groups])


def control_groups(membership: Path, root: Path) -> Iterator[int]:
    """Yield what is left below each memory limit of this process's control group and those above it (cgroup v1 and v2)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = base / path.lstrip("/")
        # A container may see its own group as the root, whatever its path says.
        for group in [folder, *(parent for parent in folder.parents if parent.is_relative_to(base))]:
            left = _left(group, *names)
            if left is not None:
                yield left


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    try:
        allowed, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if allowed == "max":
        return None
    # Cached files that nobody read lately are given up first.
    return max(0, int(allowed) - used + int(stat.get(reclaimable, 0)))
