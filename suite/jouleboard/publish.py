"""Boards into a static site: pages, charts, data and raw records, built beside the old site and then swapped in.

The same boards give the same bytes, and what did not change since the former build is taken over from it. Nothing is fetched, no page
needs a script to be read, every link is relative::

    publish(rank.boards(entries), Path("_site"), folders={"smollm2-135m/base": Path("runs/quick/base")})
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from jouleboard import sitefolder, sitepages
from jouleboard.paths import data_folder
from jouleboard.rows import Board
from jouleboard.sitefolder import MARKER, Site, environment
from jouleboard.sitepages import RAW, Whole
from jouleboard.trust import Trust

__all__ = ["MARKER", "RAW", "environment", "publish"]


def publish(
    boards: Sequence[Board], out: Path, *, folders: Mapping[str, Path] | None = None, problems: Sequence[str] = (), address: str = "",
    trust: Mapping[str, Trust] | None = None,
) -> list[Path]:
    """Render the site into a folder, all of it or nothing.

    Args:
        boards: the boards in the order of the front page.
        out: the folder to make; a former site there is replaced, anything else refused.
        folders: where the raw files of each entry (`Row.entry`) are, to be copied beside its page.
        problems: what was left out and why, a line each (`relative/path: field: what`); listed on the front page.
        address: where the site will be published, with a slash at the end, for the feed; empty: its links are relative.
        trust: how far each entry may be believed, by its digest; shown in every row.

    Returns:
        The files of the site, sorted.

    Raises:
        JouleboardError: `out` is something else than a former site, or a name cannot be a path.
        StorageError: the folder cannot be written; a former site is still there.
    """
    with sitefolder.under_construction(out) as site:
        whole = Whole.of(boards, problems, address, trust)
        for env in site.envs.values():
            env.globals["trust"] = dict(trust or {})
        _static(site)
        sitepages.still(site)
        # Before anything is drawn: drawing starts threads, and a process with threads should not fork.
        sitepages.many_pages(site, whole, folders or {})
        sitepages.front(site, whole)
        sitepages.reference_pages(site, whole)
    return sorted(Path(folder, name) for folder, _, names in os.walk(out.resolve()) for name in names)


def _static(site: Site) -> None:
    source = data_folder("site") / "static"
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, site.place(f"static/{path.relative_to(source).as_posix()}"))
