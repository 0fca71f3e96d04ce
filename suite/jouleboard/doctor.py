"""What can be measured on this machine, why not more, and what would change that."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil

from jouleboard import catalogue, hardware, paths, plan, sources
from jouleboard.declared import Hardware, Noun
from jouleboard.errors import HardwareError
from jouleboard.meters import detect

NEEDED_BYTES = 2 * 10**9


class Finding(Noun, frozen=True, kw_only=True):
    """One thing that was looked at."""

    topic: str
    ok: bool
    found: str
    remedy: str | None = None


def examine() -> list[Finding]:
    """Look at everything that decides what can be measured here."""
    return [*_machine(), _profile(), *_sensors(), *_software(), _cache()]


def _machine() -> list[Finding]:
    text = (f"{detect.cpu_model()}, {os.cpu_count()} logical cores, {detect.memory_bytes() / 1e9:.1f} GB memory, "
            f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    return [Finding(topic="machine", ok=True, found=text)]


def _profile() -> Finding:
    try:
        found = hardware.resolve(None)
    except HardwareError as error:
        return Finding(topic="hardware profile", ok=False, found=error.problem, remedy=error.remedy)
    known = len(catalogue.load_all(paths.data_folder("hardware"), Hardware))
    how = "measured by a sensor"
    if found.method == "model" and found.power_model is not None:
        share = found.power_model.relative_uncertainty
        how = f"NOT measured: CPU-seconds are, joules are estimated to ±{share:.0%} and never ranked"
    return Finding(topic="hardware profile", ok=found.method != "model",
                   found=f"{found.id} (of {known} declared), energy method {found.method}: energy is {how}",
                   remedy=None if found.method != "model" else "see the sensors below")


def _sensors() -> list[Finding]:
    gpus, rapl = detect.gpus(), detect.rapl()
    declared: list[Hardware] = list(catalogue.load_all(paths.data_folder("hardware"), Hardware).values())
    fits = any(profile.method.startswith("gpu") and hardware.mismatch(profile) is None for profile in declared)
    if gpus.devices:
        remedy = None if fits else "no declared profile fits this GPU: copy hardware/nvidia-h100-sxm-80gb.yaml to one of your own"
    else:
        remedy = ("run on a machine with an NVIDIA GPU (Volta or newer) and its driver; its own energy counter is then "
                  "read through Zeus")
    gpu = Finding(topic="NVIDIA GPU", ok=fits, found=", ".join(gpus.devices) or gpus.reason or "none", remedy=remedy)
    zones = Finding(
        topic="processor energy counters (RAPL)", ok=rapl.readable, found=", ".join(rapl.zones) or rapl.reason or "none",
        remedy=None if rapl.readable else (
            "run as root, or let your group read /sys/class/powercap/intel-rapl:*/energy_uj" if rapl.zones
            else "run on the machine itself instead of inside a virtual machine or container"),
    )
    return [gpu, zones]


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
