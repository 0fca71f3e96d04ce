"""What could be measured on this machine, and why not more. Nothing here raises: what is not there is said in words.

Example::

    gpus()    Gpus(devices=("NVIDIA H100 80GB HBM3",), reason=None, details=(Gpu(power_limit_w=700.0, mig=False, ...),))
    rapl()    Rapl(zones=("intel-rapl:0",), readable=False, reason="intel-rapl:0/energy_uj is not readable by this user")
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jouleboard.meters import kernel
from jouleboard.meters.kernel import short_digest
from jouleboard.meters.powercap import PSYS, root_folder

_MEBI = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What one GPU says of itself; None where it does not say."""

    name: str
    device: str | None = None
    """First 16 hexadecimal digits of the SHA-256 of its UUID, as in `records.DeviceState`."""
    memory_bytes: int | None = None
    power_limit_w: float | None = None
    """The limit in force."""
    default_power_limit_w: float | None = None
    min_power_limit_w: float | None = None
    max_power_limit_w: float | None = None
    mig: bool | None = None
    """Whether it is split into slices, or will be after its next reset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The GPUs that a vendor's library names, or why it names none."""

    devices: tuple[str, ...]
    reason: str | None
    details: tuple[Gpu, ...] = ()
    """What each says of itself, in the same order; may be empty where only the names are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rapl:
    """Whether the processor's own energy counters can be read."""

    zones: tuple[str, ...]
    readable: bool
    reason: str | None
    psys: bool = False
    """Whether a counter of the whole platform is there; it holds the packages, so it is never added to them."""


def gpus() -> Gpus:
    """Ask NVML for the GPUs; never raises."""
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
        found = tuple(_nvidia(pynvml, handle) for handle in handles)
    except pynvml.NVMLError as error:
        return Gpus(devices=(), reason=f"NVML lists no GPU: {error}")
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return Gpus(devices=tuple(gpu.name for gpu in found), reason=None if found else "NVML lists no GPU", details=found)


def _nvidia(pynvml: Any, handle: Any) -> Gpu:
    """Read one GPU.

    Raises:
        NVMLError: it has not even a name.
    """
    def ask(call: Callable[[Any], Any]) -> Any:
        try:
            return call(handle)
        except pynvml.NVMLError:
            return None

    name = str(pynvml.nvmlDeviceGetName(handle))
    uuid, memory = ask(pynvml.nvmlDeviceGetUUID), ask(pynvml.nvmlDeviceGetMemoryInfo)
    band = ask(pynvml.nvmlDeviceGetPowerManagementLimitConstraints)
    modes = ask(pynvml.nvmlDeviceGetMigMode)
    return Gpu(
        name=name, device=None if uuid is None else short_digest(str(uuid)),
        memory_bytes=None if memory is None else int(memory.total),
        power_limit_w=_milli(ask(pynvml.nvmlDeviceGetEnforcedPowerLimit)),
        default_power_limit_w=_milli(ask(pynvml.nvmlDeviceGetPowerManagementDefaultLimit)),
        min_power_limit_w=_milli(band and band[0]), max_power_limit_w=_milli(band and band[1]),
        mig=None if modes is None else pynvml.NVML_DEVICE_MIG_ENABLE in modes,
    )


def _milli(value: float | None) -> float | None:
    return None if value is None else value / 1e3


def visible(found: Gpus) -> Gpus:
    """Leave the GPUs that `CUDA_VISIBLE_DEVICES` shows, in its order, as CUDA and Zeus count them."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or not found.devices:
        return found
    by_uuid = {gpu.device: index for index, gpu in enumerate(found.details) if gpu.device is not None}
    chosen: list[int] = []
    for word in (part.strip() for part in wanted.split(",")):
        index = int(word) if word.isdecimal() else by_uuid.get(short_digest(word), -1)
        # CUDA stops at the first entry that it does not know.
        if not 0 <= index < len(found.devices):
            break
        chosen.append(index)
    return Gpus(devices=tuple(found.devices[index] for index in chosen),
                reason=None if chosen else f"CUDA_VISIBLE_DEVICES={wanted!r} hides every GPU",
                details=tuple(found.details[index] for index in chosen if index < len(found.details)))


def amd_gpus() -> Gpus:
    """Ask AMD SMI for the GPUs, where its package is installed; never raises."""
    if importlib.util.find_spec("amdsmi") is None:
        return Gpus(devices=(), reason="the package amdsmi, a part of ROCm, is not installed")
    try:
        # It prints, and raises whatever comes up, where its library is missing or does not fit (seen with amdsmi 7).
        with contextlib.redirect_stdout(io.StringIO()):
            amdsmi: Any = importlib.import_module("amdsmi")
    except (ImportError, OSError, AttributeError, KeyError) as error:
        return Gpus(devices=(), reason=f"AMD SMI's library does not load ({error})")
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException as error:
        return Gpus(devices=(), reason=f"AMD SMI does not start: {error}")
    try:
        found = tuple(_amd(amdsmi, handle) for handle in amdsmi.amdsmi_get_processor_handles())
    except amdsmi.AmdSmiException as error:
        return Gpus(devices=(), reason=f"AMD SMI lists no GPU: {error}")
    finally:
        with contextlib.suppress(amdsmi.AmdSmiException):
            amdsmi.amdsmi_shut_down()
    return Gpus(devices=tuple(gpu.name for gpu in found), reason=None if found else "AMD SMI lists no GPU", details=found)


def _amd(amdsmi: Any, handle: Any) -> Gpu:
    """Read one GPU: memory in MiB, powers in microwatts."""
    def ask(call: Callable[[Any], Any]) -> Any:
        try:
            return call(handle)
        except amdsmi.AmdSmiException:
            return None

    name = str(amdsmi.amdsmi_get_gpu_asic_info(handle)["market_name"])
    caps, memory = ask(amdsmi.amdsmi_get_power_cap_info) or {}, ask(amdsmi.amdsmi_get_gpu_vram_info) or {}
    uuid, size = ask(amdsmi.amdsmi_get_gpu_device_uuid), memory.get("vram_size")

    def watts(key: str) -> float | None:
        value = caps.get(key)
        return value / 1e6 if isinstance(value, int | float) else None

    return Gpu(name=name, device=None if uuid is None else short_digest(str(uuid)),
               memory_bytes=size * _MEBI if isinstance(size, int) else None, power_limit_w=watts("power_cap"),
               default_power_limit_w=watts("default_power_cap"), min_power_limit_w=watts("min_power_cap"),
               max_power_limit_w=watts("max_power_cap"))


def rapl(root: Path | None = None) -> Rapl:
    """Look for readable RAPL zones.

    Args:
        root: folder of the zones; None: where the kernel has them, or where the environment says (JOULEBOARD_POWERCAP).
    """
    root = root_folder() if root is None else root
    zones = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
    names = tuple(zone.name for zone in zones)
    if not zones:
        return Rapl(zones=(), readable=False,
                    reason="the kernel shows no RAPL zone (virtual machines and containers hide it)")
    kinds = [kernel.text(zone / "name") for zone in zones]
    psys = any(kind is not None and kind.startswith(PSYS) for kind in kinds)
    denied = [zone for zone in zones if not os.access(zone / "energy_uj", os.R_OK)]
    if denied:
        return Rapl(zones=names, readable=False, psys=psys,
                    reason=f"{denied[0].name}/energy_uj is not readable by this user")
    if all(kind is not None and not kind.startswith("package") for kind in kinds):
        return Rapl(zones=names, readable=False, psys=psys, reason="no RAPL zone is that of a processor package")
    return Rapl(zones=names, readable=True, reason=None, psys=psys)


def apple() -> bool:
    """Tell whether this is a Mac with an Apple processor."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def apple_sensor() -> bool:
    """Tell whether the package is there through which Zeus reads an Apple processor."""
    return importlib.util.find_spec("zeus_apple_silicon") is not None


def cpu_model() -> str:
    """Return the processor's name as the system gives it; where it gives none, the board's."""
    named = kernel.cpuinfo("model name", "hardware") or (_apple_model() if apple() else None)
    return named or kernel.board() or platform.processor() or platform.machine()


def _apple_model() -> str | None:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True,
                              check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def memory_bytes() -> int:
    """Return the machine's memory in bytes."""
    return int(psutil.virtual_memory().total)
