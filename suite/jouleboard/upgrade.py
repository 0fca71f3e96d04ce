"""Older reports as today's: one function a format, from plain JSON values to those of the next. No I/O here.

Example: the two idle windows of a format-1 report become `idle-0` before and `idle-1` after its trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jouleboard.errors import DataFileError

_NEW_FIELDS = {"profile", "energy_plan", "live", "skipped_probes", "canary"}
_NEW_WINDOW_FIELDS = {"name", "wall_s", "host_j", "start", "end", "void"}


def first_to_second(raw: dict[str, Any]) -> dict[str, Any]:
    """Upgrade format 1: windows get names, idle windows say when they were, and what was not recorded is None.

    Args:
        raw: JSON values of a report of format 1. What has another type than it should is left as it is: reading the result
            as a report names it.

    Raises:
        DataFileError: a field that format 1 did not have.
    """
    _require_absent(raw, _NEW_FIELDS, "")
    if isinstance(failure := raw.get("failure"), dict):
        _require_absent(failure, {"code", "remedy", "task"}, "failure.")
        raw = raw | {"failure": {"code": "error", **failure}}
    trials, probes, idle = (_objects(raw.get(name)) for name in ("trials", "probes", "idle"))
    found: dict[str, Any] = {"profile": None, "energy_plan": None, "live": None, "skipped_probes": [], "canary": []}
    if trials is not None:
        found["trials"] = [_with_window(one, f"trial-{one.get('order')}", f"trials[{index}]", one.get("void"))
                           for index, one in enumerate(trials)]
    if probes is not None:
        found["probes"] = [_with_window(one, f"probe-{index}", f"probes[{index}]") for index, one in enumerate(probes)]
    if idle is not None:
        # Format 1 measured one idle window before the trials and one behind the probes, the variants resident.
        found["idle"] = [
            {"when": "after" if index else "before", "context": True, "window": _named(one, f"idle-{index}", f"idle[{index}]")}
            for index, one in enumerate(idle)]
    return raw | found | {"format_version": 2}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: first_to_second}
"""From each older format to the next one."""


def _objects(value: object) -> Sequence[dict[str, Any]] | None:
    return value if isinstance(value, list) and all(isinstance(one, dict) for one in value) else None


def _with_window(one: dict[str, Any], name: str, where: str, void: object = None) -> dict[str, Any]:
    window = one.get("window")
    return one | {"window": _named(window, name, f"{where}.window", void)} if isinstance(window, dict) else one


def _named(window: dict[str, Any], name: str, where: str, void: object = None) -> dict[str, Any]:
    _require_absent(window, _NEW_WINDOW_FIELDS, f"{where}.")
    energy = window.get("energy")
    unread = isinstance(energy, dict) and energy.get("measured_j") is None and energy.get("estimate_j") is None
    # Format 1 said only of the trial that its sensor had failed.
    return window | {"name": name, "void": void if unread else None}


def _require_absent(value: dict[str, Any], names: set[str], where: str) -> None:
    strange = sorted(names & set(value))
    if strange:
        raise DataFileError(f"Object contains unknown field `{strange[0]}` - at `$.{where}{strange[0]}`")
