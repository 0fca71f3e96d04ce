"""The pages of the site, one function a kind: from boards with everything derived, into a folder under construction.

whole = Whole.of(boards, problems=[], address="")
sitepages.many_pages(site, whole, folders); sitepages.front(site, whole); sitepages.reference_pages(site, whole)
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Literal

import msgspec

from jouleboard import (
    badges,
    boarddata,
    catalogue,
    charts,
    chartstyle,
    claims,
    downloads,
    entryviews,
    familyviews,
    frontier,
    referenceviews,
    repeat,
    sharing,
    store,
    traces,
    views,
)
from jouleboard.chartstyle import Words
from jouleboard.declared import Workload
from jouleboard.declared_tasks import Task
from jouleboard.errors import JouleboardError
from jouleboard.gates import RULES
from jouleboard.paths import data_folder
from jouleboard.records import FileDigest
from jouleboard.rows import Board, Row
from jouleboard.sitefolder import Made, Site
from jouleboard.tracedrawing import TraceDrawing, trace_drawing
from jouleboard.translating import ENGLISH, LANGUAGES, Language
from jouleboard.trust import Trust
from jouleboard.views import BoardView

WIDTHS = {"wide": 860, "narrow": 380}
RAW = (store.REPORT, store.ITEMS, store.TRACE)
MOST_POINTS = 400
"""Rows beyond which a chart shows the frontier and the bases alone, before all others counted in squares; the tables have all."""
STILL = ("method", "read", "submit", "picker", "compare")
"""Pages that say the same whatever the boards are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """One raw file that was copied beside an entry's page."""

    name: str
    bytes: int
    digest: FileDigest | None


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Everything that the pages are made from."""

    views: tuple[BoardView, ...]
    workloads: Mapping[str, Workload]
    problems: tuple[str, ...]
    address: str
    """Where the site will be, for the feed; empty: not known."""
    trust: Mapping[str, Trust]
    """How far each entry may be believed, by its digest."""

    @classmethod
    def of(cls, boards: Sequence[Board], problems: Sequence[str], address: str, trust: Mapping[str, Trust] | None = None) -> Whole:
        """Derive the views of all boards."""
        declared = catalogue.load_all(data_folder("workloads"), Workload)
        return cls(views=tuple(views.board_view(board, declared) for board in boards), workloads=declared, problems=tuple(problems), address=address,
                   trust=trust or {})

    @cached_property
    def families(self) -> tuple[familyviews.Family, ...]:
        """The model families."""
        return familyviews.families(self.views)

    @cached_property
    def digests(self) -> dict[str, str]:
        """By the board's key: the digest of all that the board says."""
        return {view.board.key: _board_digest(view, self.trust) for view in self.views}

    @cached_property
    def codes(self) -> dict[str, str]:
        """The codes of the levels of trust, by digest."""
        return {digest: level.code for digest, level in self.trust.items()}

    @cached_property
    def tier_sizes(self) -> dict[str, Mapping[int | None, int]]:
        """By the board's key: how many ranked entries each tier has."""
        return {view.board.key: entryviews.tier_sizes(view.board) for view in self.views}

    @cached_property
    def all_digest(self) -> str:
        """Digest of all boards together."""
        return _digest([*self.digests.items(), list(self.problems), self.address])

    def prepare(self) -> None:
        """Work out now what is otherwise worked out where it is first asked for."""
        _ = self.families, self.digests, self.codes, self.tier_sizes

    def family_links(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Return address and title of the families of these rows."""
        mine = {row.report.model for row in rows}
        return [(referenceviews.slug(one.model), one.title) for one in self.families if one.model in mine]


def _board_digest(view: BoardView, trust: Mapping[str, Trust]) -> str:
    """Digest all that a board says; of a report its own digest stands for it."""
    told = [[row.report.digest, *(getattr(row, name) for name in Row.__struct_fields__ if name != "report")] for row in view.rows]
    board = [getattr(view.board, name) for name in Board.__struct_fields__ if name not in {"ranked", "unranked"}]
    return _digest([board, told, view.cell, [str(trust.get(row.report.digest)) for row in view.rows]])


def _digest(value: object) -> str:
    try:
        plain = msgspec.json.encode(value, enc_hook=str)
    except UnicodeEncodeError:
        # A lone surrogate in somebody's text has no UTF-8 form; slower, and the same each time.
        plain = json.dumps(msgspec.to_builtins(value, enc_hook=str), sort_keys=True).encode()
    return hashlib.sha256(plain).hexdigest()


def front(site: Site, whole: Whole) -> None:
    """Write the front page: the answer of the leading board first."""
    found = whole.views
    variants = [view for view in found if view.board.kind == "variants"] or list(found)
    lead = next((view for view in variants if view.board.ranked), next(iter(variants), None))
    real = [view for view in found if not view.board.is_simulated and view.board.kind == "variants"]
    floor = None if lead is None else views.floor(lead.board)
    best = [] if lead is None else sorted((row for row in lead.board.ranked if row.quality and row.headline_cost and (
        floor is None or (row.tier is not None and row.tier >= floor))), key=_cost)[:2]
    site.write("data/site.js", boarddata.site_script(found))
    site.page("index.html", "index.html.j2", inputs=whole.all_digest, views=found, lead=lead, best=best, floor=floor, problems=list(whole.problems),
              named={} if lead is None else {row.entry: row for row in lead.rows},
              measured=[view for view in real if not view.board.is_cpu_time], cpu_time=[view for view in real if view.board.is_cpu_time],
              simulated_views=[view for view in found if view.board.is_simulated],
              stacks=[view for view in found if view.board.kind == "stacks" and not view.board.is_simulated],
              families=[(referenceviews.slug(one.model), one.title) for one in whole.families])


def _cost(row: Row) -> float:
    return 0.0 if row.headline_cost is None else row.headline_cost.value


def still(site: Site) -> None:
    """Write the pages that say the same whatever the boards are."""
    site.page("404.html", "404.html.j2", inputs="")
    for name in STILL:
        site.page(f"{name}/index.html", f"{name}.html.j2", inputs="", rules=RULES)


def board_pages(site: Site, whole: Whole, keys: Collection[str] | None = None) -> None:
    """Write the page, the data and the charts of each board, or of those with these keys."""
    for view in whole.views:
        if keys is not None and view.board.key not in keys:
            continue
        board, key = view.board, whole.digests[view.board.key]
        site.keep(f"data/board-{board.key}.json", key, partial(downloads.board_json, board))
        site.keep(f"data/board-{board.key}.csv", key, partial(downloads.board_csv, board))
        site.keep(f"data/board-{board.key}.js", key, partial(boarddata.board_script, view, whole.codes))
        site.keep(f"data/fits-{board.key}.js", key, partial(boarddata.fits_script, view))
        table = downloads.board_parquet(board)
        if table is not None:
            site.place(f"data/board-{board.key}.parquet").write_bytes(table)
        _charts(site, board, key)
        site.page(f"boards/{board.key}/index.html", "boardpage.html.j2", inputs=key, view=view, families=whole.family_links(view.rows))


def _charts(site: Site, whole: Board, key: str) -> None:
    board = drawable(whole)
    if all(row.headline_cost is None for row in (*board.ranked, *board.unranked)):
        return
    crowd = _crowd(whole, board)
    for size, width in WIDTHS.items():
        # Drawing takes a quarter of a second; the others differ in colour and in a few words.
        drawn = cache(partial(_drawn, board, _words(site, board, ENGLISH), width, crowd))
        for language in LANGUAGES:
            light, dark = (f"{language.folder}charts/board-{board.key}-{size}-{scheme}.svg" for scheme in ("light", "dark"))
            site.keep(light, key, partial(_spoken, site, board, language, drawn))
            site.write(dark, chartstyle.darkened(site.place(light).read_text(encoding="utf-8")))


def _spoken(site: Site, board: Board, language: Language, drawn: Callable[[], str]) -> str:
    return chartstyle.translated(drawn(), _words(site, board, ENGLISH), _words(site, board, language))


def _crowd(whole: Board, drawn: Board) -> list[tuple[float, float]]:
    """Return cost and quality of the ranked rows that are not drawn by themselves."""
    shown = {row.entry for row in drawn.ranked}
    return [(row.headline_cost.value, row.quality.value) for row in whole.ranked
            if row.entry not in shown and row.headline_cost is not None and row.quality is not None]


def drawable(board: Board) -> Board:
    """Return a board that can be drawn: of one with too many rows, the frontier and the bases."""
    if len(board.ranked) + len(board.unranked) <= MOST_POINTS:
        return board
    kept, best = [], -math.inf
    for row in sorted(board.ranked, key=_cost):
        if row.quality is not None and row.quality.value > best:
            best = row.quality.value
            kept.append(row.entry)
    chosen = [row for row in board.ranked if row.is_base or row.entry in set(kept)][:MOST_POINTS]
    return msgspec.structs.replace(board, ranked=tuple(chosen), unranked=())


def _drawn(board: Board, words: Words, width: int, crowd: charts.Crowd) -> str:
    return charts.quality_cost(board, words, theme=chartstyle.LIGHT, width=width, crowd=crowd) or ""


def _words(site: Site, board: Board, language: Language) -> Words:
    """Read the words of a board's chart from their template."""
    known: dict[str, object] = vars(site.envs[language.code].get_template("chart_words.j2").make_module())
    kind = "simulated" if board.is_simulated else "cpu" if board.is_cpu_time else "joules"
    short = f"{known[kind]} {known['a_request' if board.is_serving else 'a_ktoken']}"
    more = str(known[f"{kind}_more"])
    return Words(
        quality=str(known["quality"]), cost=f"{short}{more}" if more.startswith(",") else f"{short} {more}", cost_short=short,
        chance=str(known["chance"]), cost_only=str(known["simulated_only" if board.is_simulated else "cost_only"]),
    )


def family_pages(site: Site, whole: Whole, models: Collection[str] | None = None) -> None:
    """Write the page of each model family, or of those of some models."""
    for family in whole.families:
        if models is not None and family.model not in models:
            continue
        inputs = _digest([family.model, *(whole.digests[view.board.key] for group in family.groups for view in group.boards)])
        site.page(f"families/{referenceviews.slug(family.model)}/index.html", "family.html.j2", inputs=inputs, family=family)


def reference_pages(site: Site, whole: Whole) -> None:
    """Write the pages of tasks, machines, claims, downloads and changes."""
    key, known = whole.all_digest, data_folder("tasks")

    def declared(task: str) -> Task | None:
        named = referenceviews.slug(task) == task and (known / f"{task}.yaml").is_file()
        return catalogue.load("tasks", task, Task) if named else None

    tasks, machines = referenceviews.tasks(whole.views, declared), referenceviews.machines(whole.views)
    site.page("tasks/index.html", "tasks.html.j2", inputs=key, tasks=tasks)
    for task in tasks:
        site.page(f"tasks/{task.slug}/index.html", "task.html.j2", inputs=key, task=task)
    site.page("hardware/index.html", "hardwares.html.j2", inputs=key, machines=machines)
    for machine in machines:
        site.page(f"hardware/{machine.slug}/index.html", "hardware.html.j2", inputs=key, machine=machine)
    site.page("claims/index.html", "claims.html.j2", inputs=key, claims=claims.tested(whole.views))
    site.page("downloads/index.html", "downloads.html.j2", inputs=key, views=whole.views, parquet=downloads.has_parquet())
    changes = frontier.changes(whole.views)
    feed = frontier.feed(changes, whole.address)
    if feed is not None:
        site.write("frontier/feed.xml", feed)
    site.page("frontier/index.html", "frontier.html.j2", inputs=key, changes=changes, has_feed=feed is not None)


def many_pages(site: Site, whole: Whole, folders: Mapping[str, Path]) -> None:
    """Write the pages of boards, families and entries; an entry may stand on several boards, and the first of them leads."""
    places: dict[str, list[tuple[Board, Row]]] = {}
    for view in whole.views:
        for row in view.rows:
            places.setdefault(row.entry, []).append((view.board, row))
    plans = {path.stem for path in data_folder("plans").glob("*.yaml")}
    slugs = {family.model: referenceviews.slug(family.model) for family in whole.families}

    def share(mine: Sequence[tuple[Literal["board", "family", "entry"], str]]) -> dict[str, Made]:
        # Drawing starts threads, and by now all processes that there will be are there.
        board_pages(site, whole, {name for kind, name in mine if kind == "board"})
        family_pages(site, whole, {name for kind, name in mine if kind == "family"})
        for kind, name in mine:
            if kind == "entry":
                _entry(site, whole, places[name], folder=folders.get(name), plans=plans, slugs=slugs)
        return site.made

    # What several pages need is worked out once, before there are several processes.
    whole.prepare()
    jobs: list[tuple[Literal["board", "family", "entry"], str]] = [("board", view.board.key) for view in whole.views]
    jobs += [("family", family.model) for family in whole.families]
    jobs += [("entry", name) for name in places]
    for made in sharing.shared(jobs, share, processes=sharing.processes(len(places))):
        site.made.update(made)


def _entry(
    site: Site, whole: Whole, places: Sequence[tuple[Board, Row]], *, folder: Path | None, plans: set[str],
    slugs: Mapping[str, str],
) -> None:
    board, row = places[0]
    home = f"entries/{row.entry}"
    raw = _raw(site, row, folder, home)
    found = badges.badge(board, row)
    site.write(f"{home}/badge.json", badges.endpoint(found))
    site.write(f"{home}/badge.svg", site.envs["en"].get_template("badge.svg.j2").render(badge=found, label=badges.LABEL))
    # An entry's page says of each board its own row, its base's model and how many share its tier.
    inputs = _digest([[(one.name, one.bytes) for one in raw], [[whole.digests[place.key], own.entry] for place, own in places]])

    def later() -> dict[str, object]:
        return {"trace": _trace(row, folder), "view": entryviews.entry_view(places, whole.workloads, whole.tier_sizes), "repeat": repeat.repeat(row.report, plans)}

    site.page(
        f"{home}/index.html", "entry.html.j2", inputs=inputs, later=later, board=board, row=row, report=row.report,
        tasks={cell.task: cell for cell in row.tasks}, withheld=views.withheld_codes(row), badge=found, raw=raw,
        family=slugs.get(row.report.model))


def _trace(row: Row, folder: Path | None) -> TraceDrawing | None:
    """Draw the trace of an entry; None where its file is not there."""
    path = None if folder is None else folder / store.TRACE
    if path is None or not path.is_file() or not row.report.trials:
        return None
    return trace_drawing(traces.decode(store.read_lines(path), file=str(path)), row.report)


def _raw(site: Site, row: Row, folder: Path | None, home: str) -> list[RawFile]:
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
