"""Which hardware profile is this machine's: a declared one, or the text of a new one from what the device itself says.

What `jouleboard hardware detect` prints is always a YAML file, with remarks in comments::

    # no declared profile is of this GPU; save this as hardware/nvidia-geforce-rtx-2060.yaml and fill in what is missing
    id: nvidia-geforce-rtx-2060
    device_pattern: "^NVIDIA GeForce RTX 2060$"
    power_limit_w: {value: 160, source: "the device itself, through NVML: default power limit"}
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator

from jouleboard import hardware, paths
from jouleboard.declared import Hardware
from jouleboard.errors import HardwareError
from jouleboard.meters import detect

_LIBRARY = {"nvml": "NVML", "amdsmi": "AMD SMI"}
_VENDOR = {"nvml": "NVIDIA", "amdsmi": "AMD"}
_WORKSTATION = re.compile(r"GeForce|Radeon|RTX|Quadro", re.IGNORECASE)
_SPECIAL = re.compile(r"[][.^$*+?{}\\|()]")


def proposal() -> str:
    """Return the profile of this machine as YAML, with comments that say why it is that one.

    Raises:
        HardwareError: nothing fits, and there is no device that could describe itself.
    """
    here = hardware.look()
    # The simulated profile may be proposed: it fits no real device, and its remark says what it is for.
    fitting = (profile for profile in hardware.declared() if hardware.misfit(profile, here) is None)
    chosen = next((profile for profile in fitting if profile.category != "phone"), None)
    if chosen is not None and chosen.sensor in hardware.GPU_SENSORS:
        return _comment(_fits(chosen)) + _file(chosen)
    near = "".join(_comment(line) for line in _near(here))
    for sensor, found in (("nvml", here.nvidia), ("amdsmi", here.amd)):
        if found.details and not near and not found.devices[0].startswith(hardware.SIMULATED):
            return new_profile(found.details[0], sensor)
    if chosen is None:
        raise HardwareError(f"no declared profile fits this machine ({here.processor}, {here.machine})",
                            file=paths.data_folder("hardware"), remedy="copy hardware/x86-vm.yaml to a profile of your own")
    return near + _comment(_fits(chosen)) + _file(chosen)


def _fits(profile: Hardware) -> str:
    if profile.category == "simulated":
        return (f"{profile.id}: the GPU here is SIMULATED. It is only used by request (`--hardware {profile.id}`), and nothing "
                "measured on it is ranked or published.")
    if profile.method == "model":
        return (f"{profile.id}: no sensor that is declared can be read here, so CPU-seconds are measured and joules are only "
                "estimated, from the power model below. `jouleboard doctor` says what would change that.")
    return f"{profile.id} fits this machine: energy method {profile.method}."


def _near(here: hardware.Machine) -> Iterator[str]:
    """Name the profiles that are of a GPU that is here, and what is not as they declare it."""
    for profile in hardware.declared():
        names = hardware.device_names(profile, here)[: profile.count]
        if profile.sensor in hardware.GPU_SENSORS and names and all(re.search(profile.device_pattern, name) for name in names):
            wrong = hardware.misfit(profile, here)
            if wrong is not None:
                yield f"{profile.id} is declared for this GPU, but {wrong.field}: {wrong.how}. Remedy: {wrong.remedy}."


def _file(profile: Hardware) -> str:
    return (paths.data_folder("hardware") / f"{profile.id}.yaml").read_text(encoding="utf-8")


def new_profile(gpu: detect.Gpu, sensor: str) -> str:
    """Return the text of a profile for a GPU that none declares.

    Args:
        gpu: what the device says of itself.
        sensor: `nvml` or `amdsmi`.
    """
    ident = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")[:70] or "gpu"
    pattern = f"^{_SPECIAL.sub(lambda found: chr(92) + found[0], gpu.name)}$"
    library = _LIBRARY[sensor]
    lines = [
        _comment(f"No declared profile is of this GPU. Save this as hardware/{ident}.yaml, and fill in what you have a source for."),
        # Quoted: a name may read as a number, or as `no`.
        f"id: {json.dumps(ident)}\ntitle: {json.dumps(gpu.name)}\n",
        f"description: {json.dumps(f'One {gpu.name}, its own energy counter read through Zeus.')}\nvendor: {_VENDOR[sensor]}\n",
        f"category: {'workstation' if _WORKSTATION.search(gpu.name) else 'datacentre'}\n",
        f"sensor: {sensor}\ndevice_pattern: {json.dumps(pattern)}\nmethod: gpu_counter\nboundary: gpu\n",
    ]
    said = {
        "memory_bytes": (gpu.memory_bytes, "memory"),
        "power_limit_w": (gpu.default_power_limit_w or gpu.power_limit_w, "default power limit"),
        "min_power_limit_w": (gpu.min_power_limit_w, "smallest power limit"),
        "max_power_limit_w": (gpu.max_power_limit_w, "largest power limit"),
    }
    for field, (value, what) in said.items():
        if value is not None:
            lines.append(f'{field}: {{value: {value}, source: "the device itself, through {library}: {what}"}}\n')
    lines.append(_comment("counter_tick_s: not known; `jouleboard hardware calibrate` measures how often the energy counter moves."))
    lines.append(_comment("idle_w, peak_flops, memory_bandwidth_bytes_per_s, start_temperature_c: from the vendor's datasheet, or left out."))
    lines.append(_comment("electricity_usd_per_kwh, grid_kgco2e_per_kwh, pue: as in the other profiles, with year and source."))
    return "".join(lines)


def _comment(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 116, initial_indent="# ", subsequent_indent="# ", break_long_words=False,
                                   break_on_hyphens=False)) + "\n"
