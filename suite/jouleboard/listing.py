"""What is declared, and what is in the cache, as lines for the terminal (tasks: `tasklist`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jouleboard import catalogue, hardware, paths, propose, sources
from jouleboard.check import KINDS
from jouleboard.declared import GeneratedSource, Hardware, HubSource, Model, PackageSource, Plan, Workload
from jouleboard.errors import PlanError


def _origin(source: object) -> str:
    if isinstance(source, HubSource):
        return "needs the hub"
    if isinstance(source, PackageSource):
        return f"offline, from the package {source.package}"
    return "offline, generated" if isinstance(source, GeneratedSource) else "from a path"


def _model(model: Model) -> str:
    return f"{model.title} | {_origin(model.source)} | {model.licence}"


def _plan(plan: Plan) -> str:
    return f"{plan.title} | {len(plan.models)} model(s), {len(plan.recipes)} recipes, {len(plan.tasks)} tasks"


def _workload(workload: Workload) -> str:
    return f"{workload.title} | {workload.prompt_tokens} prompt and {workload.output_tokens} output tokens a request"


FITS_WIDTH = 26
LINES: dict[str, Callable[[Any], str]] = {
    "models": _model, "plans": _plan, "workloads": _workload,
}


def show(kind: str) -> int:
    """Print one line for each declared thing of a kind."""
    for ident, found in catalogue.load_all(paths.data_folder(kind), KINDS[kind]).items():
        print(f"{ident:<32} {LINES[kind](found)}")
    return 0


def show_hardware() -> int:
    """Print a header and one line for each declared profile: category, energy method, whether it fits here or else why not, and title."""
    here = hardware.look()
    print(f"{'ID':<22} {'CATEGORY':<12} {'ENERGY':<12} {'HERE':<{FITS_WIDTH}} TITLE")
    for ident, profile in catalogue.load_all(paths.data_folder("hardware"), Hardware).items():
        wrong = hardware.misfit(profile, here)
        fits = "fits here" if wrong is None else f"no: {_short(wrong)}"
        if wrong is None and not hardware.detectable(profile):
            fits = "by request"
        print(f"{ident:<22} {profile.category:<12} {profile.method:<12} {fits:<{FITS_WIDTH}} {profile.title}")
    return 0


def _short(wrong: hardware.Misfit) -> str:
    """Say in a few words why a profile does not fit; `jouleboard run --hardware ID` gives all of them."""
    words = {"machine": "another architecture", "count": "no such device", "device_pattern": "another device",
             "sensor": "sensor not readable", "boundary": "GPU in MIG mode", "memory_bytes": "another size of memory",
             "power_limit_w": "another power limit"}
    return words.get(wrong.field, wrong.field)


def detect_hardware() -> int:
    """Print the profile of this machine, or the text of a new one for its GPU."""
    print(propose.proposal(), end="")
    return 0


def calibrate_hardware(ident: str | None, seconds: float | None) -> int:
    """Measure the counter's tick, the sampled share and idle power of the device that is here, beside what is declared."""
    profile = hardware.resolve(ident)
    # It imports Zeus, which takes seconds.
    from jouleboard.meters.calibrate import calibrate  # noqa: PLC0415

    return calibrate(profile) if seconds is None else calibrate(profile, seconds)


def show_one(kind: str, ident: str | None) -> int:
    """Print one declared thing as it stands in its file, after checking that it reads well."""
    if ident is None:
        raise PlanError("which one?", field="show", remedy=f"jouleboard {kind} list names them")
    catalogue.load(kind, ident, KINDS[kind])
    print((paths.data_folder(kind) / f"{ident}.yaml").read_text(encoding="utf-8"), end="")
    return 0


def cache() -> int:
    """Print what the cache holds."""
    held = sources.cached()
    for name, size in held:
        print(f"{size / 1e6:10.1f} MB  {name}")
    print(f"{sum(size for _, size in held) / 1e6:10.1f} MB in {paths.cache_folder()}")
    return 0


def clear_cache() -> int:
    """Delete the cache."""
    print(f"{sources.clear() / 1e6:.1f} MB freed in {paths.cache_folder()}")
    return 0
