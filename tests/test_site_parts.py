"""What the pages of the site are made of: picker, claims, frontier, feed, badges, techniques, data scripts, stamps, vendored files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree, html

from jouleboard import (
    badges,
    boarddata,
    boards,
    check,
    claims,
    cli,
    costmodel,
    familyviews,
    formats,
    frontier,
    picking,
    rank,
    referenceviews,
    serving,
    sharing,
    sitefolder,
    sitestamp,
    techniques,
    translating,
    trust,
    views,
)
from jouleboard.estimates import Estimate
from jouleboard.paths import data_folder
from jouleboard.picking import Candidate, Limits, Load
from jouleboard.rows import Board, Row
from tests import factory, test_publish

ROOT = Path(__file__).parents[1]
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def served() -> list[Board]:
    """Boards of a family that serves requests, of joules."""
    return [board for board in rank.boards(factory.serving_family(n=30, joules=True)) if board.is_serving]


@pytest.fixture(scope="module")
def timed() -> list[Board]:
    """The same by CPU time."""
    return [board for board in rank.boards(factory.serving_family(n=30)) if board.is_serving]


# --- the budget picker ------------------------------------------------------------------------------------------------


def by_name(board: Board) -> dict[str, Candidate]:
    return {one.row.report.recipe: one for one in picking.candidates(board)}


def test_a_request_costs_what_the_law_behind_the_probes_says(served: list[Board]) -> None:
    for name, one in by_name(served[0]).items():
        found = picking.choice(one, Load(prompt=700, output=90, batch=4, requests_a_day=10.0))
        assert found.request == pytest.approx(factory.LAWS[name].request(700, 90, 4), rel=0.05)


def test_a_day_is_its_requests_and_the_idle_rest(served: list[Board]) -> None:
    one = dataclasses.replace(by_name(served[0])["base"], idle_w=10.0)
    none, some = (picking.choice(one, Load(prompt=512, output=64, batch=1, requests_a_day=number)) for number in (0.0, 100.0))
    assert none.day_wh == pytest.approx(240.0)
    assert some.busy_s is not None
    expected = (some.request * 100 + 10.0 * (86_400 - some.busy_s)) / 3600
    assert some.day_wh == pytest.approx(expected, rel=1e-12)


def test_a_day_on_a_cpu_time_board_is_the_declared_power_model_over_the_whole_day(timed: list[Board]) -> None:
    one = by_name(timed[0])["base"]
    model, cores = one.row.report.power_model, one.row.report.environment.logical_cores
    assert model is not None
    found = picking.choice(one, Load(prompt=512, output=64, batch=1, requests_a_day=50.0))
    joules = model.idle_w_per_core * cores * 86_400 + (model.max_w_per_core - model.idle_w_per_core) * found.request * 50
    assert found.day_wh == pytest.approx(joules / 3600, rel=1e-12)


def test_a_day_without_known_idle_power_is_not_known(served: list[Board]) -> None:
    one = dataclasses.replace(by_name(served[0])["base"], idle_w=None)
    assert picking.choice(one, Load(prompt=512, output=64, batch=1, requests_a_day=50.0)).day_wh is None


loads = st.builds(Load, prompt=st.integers(1, 8000), output=st.integers(1, 500), batch=st.integers(1, 128), requests_a_day=st.floats(0, 1e6))
limits = st.builds(Limits, memory_bytes=st.none() | st.floats(6e8, 1e9), quality=st.none() | st.floats(-0.2, 0.8),
                   first_token_s=st.none() | st.floats(0.001, 10), next_token_s=st.none() | st.floats(0.0001, 1), day_wh=st.none() | st.floats(1, 10_000))


@settings(deadline=None)
@given(load=loads, limits=limits)
def test_what_is_picked_keeps_every_limit_and_nothing_that_keeps_them_is_cheaper(served: list[Board], load: Load, limits: Limits) -> None:
    found = picking.candidates(served[0])
    chosen = picking.pick(found, load, limits)
    kept = {one.candidate.row.entry for one in chosen}
    assert [one.request for one in chosen] == sorted(one.request for one in chosen)
    for one in (picking.choice(other, load) for other in found):
        row = one.candidate.row
        keeps = all((
            limits.memory_bytes is None or (row.peak_memory_bytes or 1e99) <= limits.memory_bytes,
            limits.quality is None or (row.quality is not None and row.quality.value >= limits.quality),
            limits.first_token_s is None or (one.first_token_s or 1e99) <= limits.first_token_s,
            limits.next_token_s is None or (one.next_token_s or 1e99) <= limits.next_token_s,
            limits.day_wh is None or (one.day_wh if one.day_wh is not None else 1e99) <= limits.day_wh,
            (one.busy_s or 0) <= 86_400))
        assert (row.entry in kept) is keeps


@settings(deadline=None)
@given(load=loads)
def test_a_prediction_is_that_of_the_cost_model_and_says_where_it_goes_beyond(served: list[Board], load: Load) -> None:
    for one in picking.candidates(served[0]):
        predicted = costmodel.predict(one.cost, prompt=load.prompt, output=load.output, batch=load.batch)
        found = picking.choice(one, load)
        assert (found.request, found.extrapolated) == (predicted.value, bool(predicted.extrapolated))


# --- techniques, trust, badges ----------------------------------------------------------------------------------------


def test_every_step_of_a_recipe_has_a_technique() -> None:
    from jouleboard import recipes

    assert set(techniques.OF_STEP) == set(recipes.TECHNIQUES)


def test_techniques_follow_the_steps_of_the_report_in_order() -> None:
    made = factory.report(spec=factory.SPECS[4])
    assert techniques.techniques(made) == ("depth",)
    more = factory.build("drop-layers")
    both = replace(more, steps=({"step": "drop-layers"}, {"step": "torchao-int8-weight-only"}, {"step": "no-such"}))
    assert techniques.techniques(replace(made, build=both)) == ("depth", "quantised", "other")
    assert techniques.techniques(factory.report()) == ("none",)


def test_the_pages_say_of_each_level_of_trust_what_the_command_line_says() -> None:
    macros = sitefolder.environment().get_template("macros.html.j2").module
    for level, words in trust.WORDS.items():
        assert str(macros.trust_words(level)).strip() == words


def test_a_badge_says_rank_and_unit_and_never_claims_more(served: list[Board], timed: list[Board]) -> None:
    assert "J per request" in badges.badge(served[0], served[0].ranked[0]).message
    assert "CPU-s per request" in badges.badge(timed[0], timed[0].ranked[0]).message
    unranked = replace(served[0].ranked[0], rank=None, unranked="why")
    assert badges.badge(served[0], unranked).message == "measured, no rank"
    assert badges.badge(replace(served[0], method="simulated"), served[0].ranked[0]).message.startswith("SIMULATED")


def test_the_endpoint_of_a_badge_is_what_shields_reads(served: list[Board]) -> None:
    found = json.loads(badges.endpoint(badges.badge(served[0], served[0].ranked[0])))
    assert found["schemaVersion"] == 1
    assert set(found) == {"schemaVersion", "label", "message", "color"}


def test_the_drawing_of_a_badge_escapes_its_message() -> None:
    made = badges.Badge(message='<script>"&', color="0a6864", left=10, right=20)
    svg = sitefolder.environment().get_template("badge.svg.j2").render(badge=made, label=badges.LABEL)
    assert "".join(etree.fromstring(svg.encode()).find("{*}title").itertext()) == 'jouleboard: <script>"&'


# --- frontier and feed ------------------------------------------------------------------------------------------------


def placed(*points: tuple[str, float, float]) -> views.BoardView:
    """A board whose rows have these dates, costs and qualities."""
    first = factory.board().ranked[0]
    rows = tuple(replace(first, entry=f"m/r{number}", rank=number + 1, is_base=False, quality=factory.estimate(quality), cpu_s_per_ktoken=factory.estimate(cost),
                         report=replace(first.report, created_utc=when, recipe_title=f"r{number}", digest=factory.sha("d", number)))
                 for number, (when, cost, quality) in enumerate(points))
    return views.board_view(replace(factory.board(), ranked=rows, unranked=()))


def test_an_entry_joins_while_nothing_is_better_and_leaves_when_something_is() -> None:
    view = placed(("2026-01-01T00:00:00Z", 10, 0.5), ("2026-01-02T00:00:00Z", 12, 0.4), ("2026-01-03T00:00:00Z", 20, 0.8), ("2026-01-04T00:00:00Z", 9, 0.6))
    found = [(one.when_utc[8:10], one.kind, one.row.report.recipe_title, one.by and one.by.report.recipe_title) for one in frontier.changes([view])]
    assert sorted(found) == [("01", "joined", "r0", None), ("03", "joined", "r2", None), ("04", "joined", "r3", None), ("04", "left", "r0", "r3")]
    assert [one[0] for one in found] == sorted((one[0] for one in found), reverse=True)


@settings(deadline=None)
@given(points=st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=12))
def test_what_joined_and_did_not_leave_is_the_frontier(points: list[tuple[float, float]]) -> None:
    view = placed(*((f"2026-01-{number + 1:02d}T00:00:00Z", *point) for number, point in enumerate(points)))
    on: set[str] = set()
    for change in sorted(frontier.changes([view]), key=lambda one: (one.when_utc, one.kind)):
        on = on | {change.row.entry} if change.kind == "joined" else on - {change.row.entry}
    beaten = {number for number, (cost, quality) in enumerate(points)
              if any(other != (cost, quality) and other[0] <= cost and other[1] >= quality for other in points)}
    assert on == {f"m/r{number}" for number in range(len(points)) if number not in beaten}


def test_the_feed_parses_and_names_each_change_once() -> None:
    view = placed(("2026-01-01T00:00:00Z", 10, 0.5), ("2026-01-04T00:00:00Z", 9, 0.6))
    text = frontier.feed(frontier.changes([view]), "https://example.org/board/")
    assert text is not None
    root = etree.fromstring(text.encode())
    entries = root.findall("{*}entry")
    ids = [one.findtext("{*}id") for one in entries]
    assert len(set(ids)) == len(ids) == 3
    assert root.findtext("{*}updated") == "2026-01-04T00:00:00+00:00"
    assert {one.find("{*}link").get("href") for one in entries} == {f"https://example.org/board/entries/m/r{n}/index.html" for n in (0, 1)}
    assert text == frontier.feed(frontier.changes([view]), "https://example.org/board/")


def test_without_a_change_there_is_no_feed() -> None:
    assert frontier.feed(()) is None


# --- claims and families ----------------------------------------------------------------------------------------------


def test_each_claim_counts_the_entries_that_it_speaks_of(served: list[Board]) -> None:
    found = {one.key: one for one in claims.tested([views.board_view(board) for board in served])}
    pruning, lossless = found["pruning-80"], found["quantised-lossless"]
    assert [one.row.report.recipe for one in pruning.findings] == ["drop-6-layers"]
    assert pruning.failed == 1
    assert pruning.findings[0].value is not None
    assert pruning.findings[0].value < 0.8
    assert [one.row.report.recipe for one in lossless.findings] == ["int8-weights"]
    assert found["distillation-90"].findings == ()
    assert all(one.held + one.failed + one.open == len(one.findings) for one in found.values())


def test_simulated_entries_speak_of_no_claim() -> None:
    found = rank.boards(test_publish.simulated(test_publish.serving(joules=True, batches=(1,))))
    assert not any(one.findings for one in claims.tested([views.board_view(board) for board in found]))


def test_a_family_has_its_variants_and_parts_follow_the_laws(served: list[Board]) -> None:
    (family,) = familyviews.families([views.board_view(board) for board in served])
    (group,) = family.groups
    assert group.base is not None
    assert {row.report.recipe for row in group.variants} == {"int8-weights", "drop-6-layers"}
    laws = factory.LAWS
    for part in group.parts:
        mine, base = laws[part.row.report.recipe], laws["base"]
        assert part.prefill == pytest.approx(mine.prefill(1500, part.batch) / base.prefill(1500, part.batch), rel=0.08)
        assert part.decode == pytest.approx(mine.step(1520, part.batch) / base.step(1520, part.batch), rel=0.08)


def test_the_slopes_begin_at_the_base_and_lie_on_their_side_of_it(served: list[Board]) -> None:
    slope = familyviews.slope([row for row in served[0].ranked if not row.is_base])
    assert slope is not None
    for point in slope.points:
        assert point.row.cost_ratio is not None
        assert (point.x < slope.base_x) is (point.row.cost_ratio.value < 1)
        assert point.x_low <= point.x <= point.x_high
        assert point.y_high <= point.y <= point.y_low


def test_a_variant_without_a_ratio_has_no_slope() -> None:
    rows = [replace(row, cost_ratio=None) for row in factory.board().ranked if not row.is_base]
    assert familyviews.slope(rows) is None


@pytest.mark.parametrize("text", ["../x", "A b", "", "é", "x" * 200, "a/b"])
def test_what_is_no_id_gets_a_digest_for_an_address(text: str) -> None:
    found = referenceviews.slug(text)
    assert found != text
    assert found.isalnum()


# --- data scripts -----------------------------------------------------------------------------------------------------


def script(view: views.BoardView) -> Any:
    text = boarddata.board_script(view)
    assert text.startswith("jouleboard.board(")
    return json.loads(text.removeprefix("jouleboard.board(").removesuffix(");\n"))


def test_the_data_of_a_board_is_what_the_board_says(served: list[Board]) -> None:
    found = script(views.board_view(served[0]))
    fits = json.loads(boarddata.fits_script(views.board_view(served[0])).removeprefix("jouleboard.fits(").removesuffix(");\n"))["fits"]
    rows: tuple[Row, ...] = (*served[0].ranked, *served[0].unranked)
    assert [one["entry"] for one in found["rows"]] == [row.entry for row in rows]
    for one, row in zip(found["rows"], rows, strict=True):
        assert row.headline_cost is not None
        assert one["cost"][0] == pytest.approx(row.headline_cost.value, rel=1e-5)
        text = formats.shown(row.headline_cost)
        assert one["cost"][1] == f"{text.value} [{text.low}, {text.high}]"
        assert one["rank"] == row.rank
        assert row.cost_model is not None
        assert fits[row.entry]["cost"] == [row.cost_model.value(name) for name in ("a0", "a1", "a2", "d0", "d1", "d2")]


def test_the_scale_of_a_board_holds_zero_and_every_interval(served: list[Board]) -> None:
    view = views.board_view(served[0])
    found, places = script(view), {row.entry: row for row in view.rows}
    low, high = found["axis"]
    assert low < 0 < high
    for one in found["rows"]:
        bar, quality = view.bars[one["entry"]], places[one["entry"]].quality
        assert quality is not None
        assert (one["quality"][0] - low) / (high - low) * 100 == pytest.approx(bar.value, abs=0.01)
        assert (one["mark"] - low) / (high - low) * 100 == pytest.approx(bar.base, abs=0.01)


@pytest.mark.parametrize("hostile", ['<img src=x onerror="alert(1)">', "a\u202eb", "\ud800", "&amp;"])
def test_small_stretches_of_html_hold_what_a_record_says_as_text(hostile: str) -> None:
    known = sitefolder.environment().filters
    for name in ("missing", "text", "digest"):
        made = known[name](hostile)
        (one,) = html.fragments_fromstring(f"<p>{made}</p>")
        assert not one.xpath(".//img")
        assert one.text_content() == formats.visible(hostile)
    made = known["interval"](Estimate(value=1.0, low=None, high=None), hostile, hostile)
    assert [found.text for found in html.fromstring(f"<p>{made}</p>").xpath(".//span[@class='unit' or @class='kind']")] == [formats.visible(hostile)] * 2


def test_what_was_not_measured_says_so_in_the_language_of_the_page() -> None:
    for language, words in ((translating.ENGLISH, "not measured"), (translating.CHINESE, "未测量")):
        known = sitefolder.environment(language).filters
        for name in ("missing", "whole", "seconds", "bytes", "interval", "energy"):
            assert known[name](None) == f'<span class="none">{words}</span>'


def test_a_data_script_holds_nothing_that_ends_a_script_or_turns_text() -> None:
    text = boarddata.board_script(views.board_view(test_publish.hostile_board()))
    assert text.isascii()
    assert "<" not in text
    assert "\\u202e" not in text


def test_a_reader_begins_at_the_tier_of_the_base() -> None:
    board = factory.board()
    rows = tuple(replace(row, tier=tier) for row, tier in zip(board.ranked, (2, 5, 4), strict=True))
    assert views.floor(replace(board, ranked=rows)) == next(row.tier for row in rows if row.is_base)
    assert views.floor(board) is None
    assert Estimate(value=1.0, low=None, high=None)


# --- the build --------------------------------------------------------------------------------------------------------


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path / "cache"))
    factory.family(tmp_path / "reports", n=4)
    return tmp_path / "reports"


def test_a_stamp_changes_with_any_file_and_with_the_settings(reports: Path) -> None:
    before = sitestamp.of(reports, settings=["world"])
    assert sitestamp.of(reports, settings=["world"]) == before
    assert sitestamp.of(reports, settings=["other"]) != before
    report = next(reports.rglob("report.json"))
    os.utime(report, ns=(1, 1))
    assert sitestamp.of(reports, settings=["world"]) != before


def test_a_site_that_was_touched_is_not_current(reports: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("x")
    assert not sitestamp.is_current(out, "s")
    sitestamp.keep(out, "s")
    assert sitestamp.is_current(out, "s")
    assert not sitestamp.is_current(out, "t")
    (out / "index.html").write_text("other")
    assert not sitestamp.is_current(out, "s")
    assert reports.is_dir()


def test_a_build_that_finds_nothing_changed_checks_nothing(
    reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test_publish.no_drawing(monkeypatch)
    out = tmp_path / "out"
    sound = check.Findings(entries=[check.Entry(name=one.name, folder=one.folder or out, report=one.report, answers={}) for one in factory.family(n=4)])
    monkeypatch.setattr("jouleboard.check.load_entries", lambda *_: sound)
    assert boards.build(reports, out) == 0
    first = test_publish.contents(out)
    monkeypatch.setattr("jouleboard.check.load_entries", lambda *_: pytest.fail("checked again"))
    assert boards.build(reports, out) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert test_publish.contents(out) == first


def test_a_page_whose_old_bytes_were_altered_is_rendered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_publish.no_drawing(monkeypatch)
    out = tmp_path / "out"
    from jouleboard import publish

    publish.publish([factory.board()], out)
    before = test_publish.contents(out)
    page = next((out / "boards").glob("*/index.html"))
    page.write_text("defaced")
    publish.publish([factory.board()], out)
    assert test_publish.contents(out) == before


def test_only_what_changed_is_rendered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_publish.no_drawing(monkeypatch)
    out = tmp_path / "out"
    from jouleboard import publish

    one, other = factory.board(), factory.board(key="other", title="Other")
    publish.publish([one, other], out)
    rendered: list[str] = []
    keep = sitefolder.Site.keep

    def watched(self: sitefolder.Site, name: str, inputs: str, make: Any) -> None:
        keep(self, name, inputs, lambda: (rendered.append(name), make())[1])

    monkeypatch.setattr(sitefolder.Site, "keep", watched)
    publish.publish([one, replace(other, title="Another")], out)
    assert f"boards/{other.key}/index.html" in rendered
    assert f"boards/{one.key}/index.html" not in rendered


def test_the_server_gives_the_site_to_this_machine_alone(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("here")
    with serving.server(tmp_path, port=0) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{found.server_port}/") as answer:
            assert answer.read() == b"here"
        found.shutdown()
        thread.join()
    assert found.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("words", [["--serve", "70000"], ["--serve", "x"], ["--address", "http://x.org"], ["--address", "javascript:alert(1)"],
                                   ["--address", "https://x.org/?q"]])
def test_options_of_the_build_that_make_no_sense_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["build", *words])
    assert "is not" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_jobs_that_are_shared_out_are_all_done_once(processes: int) -> None:
    found = sharing.shared(range(20), lambda mine: {one: one**2 for one in mine}, processes=processes)
    assert len(found) == processes
    assert sorted(key for share in found for key in share) == list(range(20))


def test_the_error_of_a_child_is_raised_in_the_parent() -> None:
    def work(mine: Any) -> list[int]:
        if 1 in mine:
            raise ValueError("one is wrong")
        return list(mine)

    with pytest.raises(ValueError, match="one is wrong"):
        sharing.shared(range(4), work, processes=2)


def test_pages_that_are_shared_out_are_the_same_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jouleboard import publish

    test_publish.no_drawing(monkeypatch)
    publish.publish([factory.board()], tmp_path / "one")
    monkeypatch.setattr(sharing, "processes", lambda _: 2)
    publish.publish([factory.board()], tmp_path / "two")
    assert test_publish.contents(tmp_path / "one") == test_publish.contents(tmp_path / "two")


# --- vendored files ---------------------------------------------------------------------------------------------------


def test_every_vendored_file_is_the_one_that_the_lock_names() -> None:
    site = data_folder("site")
    known = json.loads((site / "vendor.json").read_text())
    locked = json.loads((site / "package-lock.json").read_text())["packages"]
    for name, one in known.items():
        assert hashlib.sha256((site / name).read_bytes()).hexdigest() == one["sha256"], name
        entry = locked[f"node_modules/{one['package']}"]
        assert (entry["version"], entry["integrity"]) == (one["version"], one["integrity"])
    shipped = {path.relative_to(site).as_posix() for path in (site / "static" / "vendor").iterdir()}
    assert shipped == {name for name in known if name.startswith("static/")}


def test_each_vendored_program_has_its_licence_beside_it() -> None:
    known = json.loads((data_folder("site") / "vendor.json").read_text())
    programs = {one["package"] for name, one in known.items() if name.endswith(".js")}
    assert programs == {one["package"] for name, one in known.items() if name.endswith("LICENSE.txt")}


def test_no_script_of_ours_makes_markup_of_text_or_evaluates_it() -> None:
    for path in sorted((data_folder("site") / "static" / "js").glob("*.js")):
        text = path.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "fetch(", "import("):
            assert word not in text, (path.name, word)
