"""What could be measured on this machine, and why not more."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The NVIDIA GPUs that NVML names, or why it names none."""

    devices: tuple[str, ...]
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rapl:
    """Whether the processor's own energy counters can be read."""

    zones: tuple[str, ...]
    readable: bool
    reason: str | None


def gpus() -> Gpus:
    """Ask NVML for the names of the GPUs; never raises."""
    try:
        import pynvml  # noqa: PLC0415 - only where something asks for GPUs
    except ImportError:
        return Gpus(devices=(), reason="the package nvidia-ml-py is not installed (extra `run`)")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Gpus(devices=(), reason=f"NVML does not start: {error}")
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
        return Gpus(devices=tuple(str(name) for name in names), reason=None if names else "NVML lists no GPU")
    except pynvml.NVMLError as error:
        return Gpus(devices=(), reason=f"NVML lists no GPU: {error}")
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def rapl(root: Path = POWERCAP) -> Rapl:
    """Look for readable RAPL zones."""
    zones = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
    names = tuple(zone.name for zone in zones)
    if not zones:
        return Rapl(zones=(), readable=False,
                    reason="the kernel shows no RAPL zone (virtual machines and containers hide it)")
    denied = [zone for zone in zones if not os.access(zone / "energy_uj", os.R_OK)]
    if denied:
        return Rapl(zones=names, readable=False, reason=f"{denied[0].name}/energy_uj is not readable by this user")
    return Rapl(zones=names, readable=True, reason=None)


def cpu_model() -> str:
    """Return the processor's name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.lower().startswith(("model name", "hardware")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Return the machine's memory in bytes."""
    return int(psutil.virtual_memory().total)
