"""The sites that the browser looks at: built once for all tests, from invented families and from a hostile one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jouleboard import catalogue, publish, rank
from jouleboard.factors import Factors
from jouleboard.rows import Board
from tests import factory, test_publish

MODEL = f"families/{factory.MODEL}/index.html"


def boards(folder: Path) -> tuple[list[Board], dict[str, Path]]:
    """Make boards of CPU time, of measured joules and of a simulated device, with their raw files."""
    cpu, joules = (factory.serving_family(folder / kind, n=40, joules=kind == "joules") for kind in ("cpu", "joules"))
    joules = [dataclasses.replace(entry, name=f"gpu/{entry.name}") for entry in joules]
    simulated = test_publish.simulated(test_publish.serving(joules=True, batches=(1,)))
    found = rank.boards([*cpu, *joules, *simulated], factors=catalogue.load("factors", "world", Factors))
    return found, factory.folders(cpu) | factory.folders(joules)


def build(folder: Path) -> Path:
    """Build the site of these boards."""
    found, folders = boards(folder / "runs")
    publish.publish(found, folder / "site", folders=folders, problems=["a/report.json: <b>broken</b>"])
    return folder / "site"


def hostile(folder: Path) -> Path:
    """Build a site whose every free string is hostile."""
    publish.publish([test_publish.hostile_board(), *test_publish.hostile_serving()], folder / "site", problems=[test_publish.HOSTILE])
    return folder / "site"


def kinds(site: Path) -> dict[str, str]:
    """Name one page of each kind, by its path."""
    def first(pattern: str) -> str:
        return min(path.relative_to(site).as_posix() for path in site.glob(pattern))

    found = {name: f"{name}/index.html" for name in ("picker", "compare", "method", "read", "submit", "claims", "tasks", "hardware", "frontier", "downloads")}
    found |= {"front": "index.html", "missing": "404.html", "entry": f"entries/gpu/{factory.MODEL}/int8-weights/index.html"}
    found |= {"task": first("tasks/*/index.html"), "machine": first("hardware/*/index.html"), "family": first("families/*/index.html")}
    keys = sorted(path.name for path in (site / "boards").iterdir())
    return found | {f"board {key}": f"boards/{key}/index.html" for key in keys}
