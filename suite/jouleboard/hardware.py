"""Hold a declared hardware profile against the machine that is really there.

Example::

    resolve("nvidia-h100-sxm-80gb")    HardwareError: power_limit_w: ... 500 W in force, the profile declares 700 W
    resolve(None)                      the best profile that fits: a sensor before a power model
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

from jouleboard import catalogue, paths
from jouleboard.declared import Hardware
from jouleboard.errors import HardwareError
from jouleboard.meters import detect, kernel

GPU_SENSORS = ("nvml", "amdsmi")
SIMULATED = "SIMULATED"
"""What the name of every simulated device begins with, and of no real one."""
MEMORY_TOLERANCE = 0.1
"""A board of 80 GB has 85.5e9 bytes for NVML, and one with error correction less."""
POWER_TOLERANCE_W = 1.0
_ORDER = ("nvml", "amdsmi", "jetson", "apple", "rapl", "none")
_OWN = "leave `--hardware` out to let it be detected, or declare a profile of your own (`jouleboard hardware detect` writes one)"
_LOOK = "`jouleboard doctor` says what is missing and what would change that"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is here, looked up once."""

    machine: str
    """As `uname -m` says."""
    processor: str
    board: str | None
    memory_bytes: int
    nvidia: detect.Gpus
    amd: detect.Gpus
    rapl: detect.Rapl
    jetson: bool
    apple: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """Why a profile is not this machine's."""

    field: str
    """The field of the profile."""
    how: str
    remedy: str


def look() -> Machine:
    """Look up what is here."""
    return Machine(
        machine=platform.machine(), processor=detect.cpu_model(), board=kernel.board(),
        memory_bytes=detect.memory_bytes(), nvidia=detect.visible(detect.gpus()), amd=detect.amd_gpus(),
        rapl=detect.rapl(), jetson=kernel.jetson(), apple=detect.apple(),
    )


def device_names(profile: Hardware, here: Machine | None = None) -> tuple[str, ...]:
    """Return the names of the devices of a profile's kind that are here: GPUs, the board, or else the processor."""
    return _devices(profile, look() if here is None else here).devices


def _devices(profile: Hardware, here: Machine) -> detect.Gpus:
    if profile.sensor in GPU_SENSORS:
        return here.nvidia if profile.sensor == "nvml" else here.amd
    on_board = profile.sensor == "jetson" or (profile.sensor == "none" and profile.category == "edge")
    name = here.board if on_board and here.board is not None else here.processor
    return detect.Gpus(devices=(name,), reason=None)


def mismatch(profile: Hardware, here: Machine | None = None) -> str | None:
    """Return which field of the profile this machine does not fit, and how; None where it fits."""
    found = misfit(profile, here)
    return None if found is None else f"{found.field}: {found.how}"


def misfit(profile: Hardware, here: Machine | None = None) -> Misfit | None:
    """Return the first field of the profile that this machine does not fit; None where it fits.

    Args:
        profile: the declared profile.
        here: what `look` found; None: look now.
    """
    here = look() if here is None else here
    if profile.machine and here.machine not in profile.machine:
        return Misfit(field="machine", how=f"the profile is for {', '.join(profile.machine)}, this is {here.machine}",
                      remedy="`jouleboard hardware list` shows what fits here")
    return _wrong_names(profile, here) or _wrong_sensor(profile, here) or _wrong_memory(profile, here) or _wrong_limit(profile, here)


def _wrong_names(profile: Hardware, here: Machine) -> Misfit | None:
    present = _devices(profile, here)
    if len(present.devices) < profile.count:
        why = f" ({present.reason})" if present.reason else ""
        return Misfit(field="count", how=f"the profile wants {profile.count} device(s), {len(present.devices)} found{why}",
                      remedy=_LOOK)
    try:
        pattern = re.compile(profile.device_pattern)
    except re.error as error:
        return Misfit(field="device_pattern", how=f"{profile.device_pattern!r} is no regular expression ({error})",
                      remedy="mend the pattern")
    for name in present.devices[: profile.count]:
        if not pattern.search(name):
            return Misfit(field="device_pattern", how=f"{name!r} does not match {profile.device_pattern!r}", remedy=_OWN)
        # Whatever a pattern says, a real profile never takes a simulated device, nor the other way round.
        if name.startswith(SIMULATED) != (profile.category == "simulated"):
            return Misfit(field="device_pattern", how=f"{name!r} is {'simulated' if name.startswith(SIMULATED) else 'real'}, "
                          f"the profile is of category {profile.category}",
                          remedy="`--hardware simulated-gpu` is for simulated devices, and for nothing else")
    return None


def _wrong_sensor(profile: Hardware, here: Machine) -> Misfit | None:
    """Check that what the profile's meter reads is there."""
    for index, gpu in enumerate(_devices(profile, here).details[: profile.count]):
        if gpu.mig:
            return Misfit(field="boundary", how=f"GPU {index} is in MIG mode: its counter holds the joules of all its slices",
                          remedy=f"switch it off (nvidia-smi -i {index} -mig 0), or measure another GPU")
    if profile.sensor == "rapl" and not here.rapl.readable:
        return Misfit(field="sensor", how=here.rapl.reason or "no RAPL counter can be read",
                      remedy="let this user read the counters: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
                      if here.rapl.zones else "measure on the machine itself, outside virtual machines and containers")
    if profile.sensor == "jetson" and not here.jetson:
        return Misfit(field="sensor", how="the device tree does not speak of a Jetson", remedy="measure on the Jetson itself")
    if profile.sensor == "apple" and not here.apple:
        return Misfit(field="sensor", how="this is no Mac with an Apple processor", remedy="measure on the Mac itself")
    return None


def _wrong_memory(profile: Hardware, here: Machine) -> Misfit | None:
    if profile.memory_bytes is None:
        return None
    declared = profile.memory_bytes.value
    if profile.sensor in GPU_SENSORS:
        sizes = [gpu.memory_bytes for gpu in _devices(profile, here).details[: profile.count]]
    else:
        sizes = [here.memory_bytes]
    for size in sizes:
        if size is not None and abs(size - declared) > MEMORY_TOLERANCE * declared:
            return Misfit(field="memory_bytes", how=f"the device has {size / 1e9:.1f} GB, the profile declares {declared / 1e9:.1f} GB",
                          remedy=_OWN)
    return None


def _wrong_limit(profile: Hardware, here: Machine) -> Misfit | None:
    if profile.power_limit_w is None or profile.sensor not in GPU_SENSORS:
        return None
    declared = profile.power_limit_w.value
    tool = "rocm-smi --setpoweroverdrive" if profile.sensor == "amdsmi" else "sudo nvidia-smi -i {index} -pl"
    for index, gpu in enumerate(_devices(profile, here).details[: profile.count]):
        remedy = f"set it back: `{tool.format(index=index)} {declared:g}`, or declare a profile of your own with that limit"
        if gpu.power_limit_w is None:
            return Misfit(field="power_limit_w", how=f"GPU {index} does not say which power limit is in force",
                          remedy="measure on the machine itself, with a current driver")
        if abs(gpu.power_limit_w - declared) > POWER_TOLERANCE_W:
            return Misfit(field="power_limit_w", how=f"GPU {index} has {gpu.power_limit_w:g} W in force, the profile declares "
                          f"{declared:g} W", remedy=remedy)
    return None


def unused_gpus(profile: Hardware, here: Machine | None = None) -> tuple[str, ...]:
    """Return the names of GPUs that are here while the profile in use is of something else."""
    if profile.sensor in GPU_SENSORS:
        return ()
    here = look() if here is None else here
    return here.nvidia.devices + here.amd.devices


def declared() -> list[Hardware]:
    """Return every declared profile, the best first: a sensor before a power model, the most telling pattern first."""
    found: list[Hardware] = list(catalogue.load_all(paths.data_folder("hardware"), Hardware).values())
    return sorted(found, key=lambda one: (one.method == "model", _ORDER.index(one.sensor), -len(one.device_pattern), one.id))


def detectable(profile: Hardware) -> bool:
    """Tell whether a profile may be chosen without being asked for: a simulated device and a stand-in for phones may not."""
    return profile.category not in {"simulated", "phone"}


def resolve(ident: str | None, here: Machine | None = None) -> Hardware:
    """Return the profile that was asked for, or the best one that fits this machine.

    Args:
        ident: a profile's id; None: detect. A profile with a sensor is preferred over a power model.
        here: what `look` found; None: look now.

    Raises:
        HardwareError: the profile does not fit, or none does.
    """
    folder = paths.data_folder("hardware")
    if ident is not None:
        profile = catalogue.hardware(ident)
        wrong = misfit(profile, here)
        if wrong is not None:
            raise HardwareError(f"this machine is not a {profile.title}: {wrong.how}", file=folder / f"{ident}.yaml",
                                field=wrong.field, remedy=wrong.remedy)
        return profile
    here = look() if here is None else here
    for profile in declared():
        if detectable(profile) and misfit(profile, here) is None:
            return profile
    raise HardwareError(f"no declared profile fits this machine ({here.processor}, {here.machine})",
                        file=folder, remedy="copy hardware/x86-vm.yaml to a profile of your own and name it")
