"""Boards into a static site: pages, charts, data and raw records, built beside the old site and then swapped in.

The same boards give the same bytes. Nothing is fetched, no page needs a script, every link is relative::

    publish(rank.boards(entries), Path("_site"), folders={"smollm2-135m/base": Path("runs/quick/base")})
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jinja2

from jouleboard import (
    catalogue,
    charts,
    chartstyle,
    costs,
    downloads,
    entryviews,
    formats,
    repeat,
    storage,
    store,
    views,
)
from jouleboard.chartstyle import Words
from jouleboard.declared import Workload
from jouleboard.errors import JouleboardError
from jouleboard.paths import data_folder
from jouleboard.records import FileDigest
from jouleboard.rows import Board, Row
from jouleboard.trust import Trust

MARKER = ".jouleboard-site"
"""A file that only a build of ours leaves: without it a folder is never replaced."""
MARKER_TEXT = "A site that `jouleboard build` made; the next build replaces this whole folder.\n"
WIDTHS = {"wide": 860, "narrow": 380}
THEMES = {"light": chartstyle.LIGHT, "dark": chartstyle.DARK}
RAW = (store.REPORT, store.ITEMS, store.TRACE)
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """One raw file that was copied beside an entry's page."""

    name: str
    bytes: int
    digest: FileDigest | None


def publish(
    boards: Sequence[Board], out: Path, *, folders: Mapping[str, Path] | None = None, problems: Sequence[str] = (),
    trust: Mapping[str, Trust] | None = None,
) -> list[Path]:
    """Render the site into a folder, all of it or nothing.

    Args:
        boards: the boards in the order of the front page.
        out: the folder to make; a former site there is replaced, anything else refused.
        folders: where the raw files of each entry (`Row.entry`) are, to be copied beside its page.
        problems: what was left out and why, a line each (`relative/path: field: what`); listed on the front page.
        trust: how far each entry may be believed, by its digest; shown in every row.

    Returns:
        The files of the site, sorted.

    Raises:
        JouleboardError: `out` is something else than a former site, or a name cannot be a path.
        StorageError: the folder cannot be written; a former site is still there.
    """
    out = out.resolve()
    _refuse(out)
    with storage.within(out.parent), _beside(out) as fresh:
        site = _Site(root=fresh, env=environment())
        site.env.globals["trust"] = dict(trust or {})
        site.write(MARKER, MARKER_TEXT)
        _static(site)
        _pages(site, boards, folders or {}, problems)
        _swap(fresh, out)
    return sorted(path for path in out.rglob("*") if path.is_file())


def environment() -> jinja2.Environment:
    """Return the template environment: everything is escaped, an undefined name is an error."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(data_folder("site") / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=formats.finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.globals["trust"] = {}
    env.filters |= formats.FILTERS | {"standing": views.standing, "trial_cost": costs.headline_cost}
    return env


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """The folder under construction; nothing is written outside it."""

    root: Path
    env: jinja2.Environment

    def place(self, name: str) -> Path:
        """Return the path of a file of the site, its folder made; each part of its name is checked."""
        parts = name.split("/")
        if name != MARKER and not all(_SEGMENT.fullmatch(part) for part in parts):
            raise JouleboardError(
                f"{name!r} cannot be a path of the site",
                remedy="names of boards and entries are letters, digits, dots, dashes and slashes",
            )
        path = self.root.joinpath(*parts)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise JouleboardError(f"{name!r} leads out of the site", remedy="take the link out of the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, text: str) -> None:
        """Write one text file; what has no UTF-8 form (a lone surrogate) is written as JSON would escape it."""
        self.place(name).write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")

    def page(self, name: str, template: str, **values: object) -> None:
        """Render one page; `root` is the way back to the front page."""
        root = "../" * name.count("/")
        self.write(name, self.env.get_template(template).render(root=root, **values))


def _pages(site: _Site, boards: Sequence[Board], folders: Mapping[str, Path], problems: Sequence[str]) -> None:
    declared = catalogue.load_all(data_folder("workloads"), Workload)
    shown = [views.board_view(board, declared) for board in boards]
    site.page("index.html", "index.html.j2", views=shown, problems=list(problems))
    site.page("404.html", "404.html.j2")
    places: dict[str, list[tuple[Board, Row]]] = {}
    for board in boards:
        site.write(f"data/board-{board.key}.json", downloads.board_json(board))
        site.write(f"data/board-{board.key}.csv", downloads.board_csv(board))
        _charts(site, board)
        for row in (*board.ranked, *board.unranked):
            places.setdefault(row.entry, []).append((board, row))
    for entry, found in places.items():
        _entry(site, found, declared, folders.get(entry))


def _entry(
    site: _Site, places: Sequence[tuple[Board, Row]], declared: Mapping[str, Workload], folder: Path | None
) -> None:
    """Write the page of an entry, which may stand on several boards; the first of them leads."""
    board, row = places[0]
    home = f"entries/{row.entry}"
    site.page(
        f"{home}/index.html",
        "entry.html.j2",
        board=board,
        row=row,
        report=row.report,
        tasks={cell.task: cell for cell in row.tasks},
        withheld=views.withheld_codes(row),
        view=entryviews.entry_view(places, declared),
        repeat=repeat.repeat(row.report, {path.stem for path in data_folder("plans").glob("*.yaml")}),
        raw=_raw(site, row, folder, home),
    )


def _raw(site: _Site, row: Row, folder: Path | None, home: str) -> list[RawFile]:
    """Copy the raw files of an entry beside its page."""
    copied = []
    for name in RAW if folder else ():
        source = Path(folder or "") / name
        # A link in somebody's entry could publish any file of this machine.
        if source.is_symlink():
            raise JouleboardError("a link cannot be published", file=source, remedy="put the file itself there")
        if source.is_file():
            target = site.place(f"{home}/raw/{name}")
            shutil.copyfile(source, target)
            copied.append(RawFile(name=name, bytes=target.stat().st_size, digest=row.report.files.get(name)))
    return copied


def _charts(site: _Site, board: Board) -> None:
    words = _words(site.env, board)
    for scheme, theme in THEMES.items():
        for size, width in WIDTHS.items():
            drawn = charts.quality_cost(board, words, theme=theme, width=width)
            if drawn is not None:
                site.write(f"charts/board-{board.key}-{size}-{scheme}.svg", drawn)


def _words(env: jinja2.Environment, board: Board) -> Words:
    """Read the words of a board's chart from their template."""
    known: dict[str, object] = vars(env.get_template("chart_words.j2").make_module())
    kind = "simulated" if board.is_simulated else "cpu" if board.is_cpu_time else "joules"
    short = f"{known[kind]} {known['a_request' if board.is_serving else 'a_ktoken']}"
    more = str(known[f"{kind}_more"])
    return Words(
        quality=str(known["quality"]), cost=f"{short}{more}" if more.startswith(",") else f"{short} {more}", cost_short=short,
        chance=str(known["chance"]), cost_only=str(known["simulated_only" if board.is_simulated else "cost_only"]),
    )


def _static(site: _Site) -> None:
    source = data_folder("site") / "static"
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, site.place(f"static/{path.relative_to(source).as_posix()}"))


def _refuse(out: Path) -> None:
    """Refuse to replace what no build made; an empty folder is nobody's."""
    if not out.exists() or (out.is_dir() and ((out / MARKER).is_file() or not any(out.iterdir()))):
        return
    raise JouleboardError(
        "exists and is not a site that `jouleboard build` made, so it is not replaced",
        file=out,
        remedy="choose another --out, or move what is there",
    )


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Give a fresh folder on the same file system as `out`, gone afterwards unless it was moved."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    # mkdtemp makes folders that only the owner can read; a site is for everybody.
    fresh.chmod(0o755)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, out: Path) -> None:
    """Put the fresh site in the place of the old one; the old one comes back if that fails."""
    if not out.exists():
        fresh.rename(out)
        return
    with _beside(out) as aside:
        old = aside / "old"
        out.rename(old)
        try:
            fresh.rename(out)
        except BaseException:
            old.rename(out)
            raise
