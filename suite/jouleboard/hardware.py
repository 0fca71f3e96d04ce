"""Hold a declared hardware profile against the device that is really there."""

from __future__ import annotations

import platform
import re

from jouleboard import catalogue, paths
from jouleboard.declared import Hardware
from jouleboard.errors import HardwareError
from jouleboard.meters import detect


def device_names(profile: Hardware) -> tuple[str, ...]:
    """Return the names of the devices of a profile's kind that are here: GPUs for GPU methods, else the processor."""
    return detect.gpus().devices if profile.method.startswith("gpu") else (detect.cpu_model(),)


def mismatch(profile: Hardware) -> str | None:
    """Return which field of the profile this machine does not fit, and how; None where it fits."""
    machine = platform.machine()
    if profile.machine and machine not in profile.machine:
        return f"machine: the profile is for {', '.join(profile.machine)}, this is {machine}"
    names = device_names(profile)
    if len(names) < profile.count:
        return f"count: the profile wants {profile.count} device(s), {len(names)} found"
    try:
        pattern = re.compile(profile.device_pattern)
    except re.error as error:
        return f"device_pattern: {profile.device_pattern!r} is no regular expression ({error})"
    for name in names[: profile.count]:
        if not pattern.search(name):
            return f"device_pattern: {name!r} does not match {profile.device_pattern!r}"
    return None


def unused_gpus(profile: Hardware) -> tuple[str, ...]:
    """Return the names of GPUs that are here while the profile in use is of something else."""
    return () if profile.method.startswith("gpu") else detect.gpus().devices


def resolve(ident: str | None) -> Hardware:
    """Return the profile that was asked for, or the best one that fits this machine.

    Args:
        ident: a profile's id; None: detect. A profile with a sensor is preferred over a power model.

    Raises:
        HardwareError: the profile does not fit, or none does.
    """
    folder = paths.data_folder("hardware")
    if ident is not None:
        profile = catalogue.hardware(ident)
        wrong = mismatch(profile)
        if wrong is not None:
            field, _, how = wrong.partition(": ")
            raise HardwareError(f"this machine is not a {profile.title}: {how}", file=folder / f"{ident}.yaml", field=field,
                                remedy="leave `--hardware` out to let it be detected, or declare a profile of your own")
        return profile
    declared: list[Hardware] = list(catalogue.load_all(folder, Hardware).values())
    for profile in sorted(declared, key=lambda profile: (profile.method == "model", profile.id)):
        if mismatch(profile) is None:
            return profile
    raise HardwareError(f"no declared profile fits this machine ({detect.cpu_model()}, {platform.machine()})",
                        file=folder, remedy="copy hardware/x86-vm.yaml to a profile of your own and name it")
