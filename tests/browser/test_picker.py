"""The budget picker computes in the browser what `jouleboard.picking` computes, and what `rank` predicts and measured."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from jouleboard import costmodel, picking
from jouleboard.picking import Limits, Load
from jouleboard.rows import Board
from tests.browser import sites
from tests.browser.conftest import opened, settled

pytestmark = pytest.mark.browser
LOADS = [Load(prompt=prompt, output=output, batch=batch, requests_a_day=requests) for prompt, output, batch, requests in itertools.product(
    (1, 128, 1500, 9000), (1, 40, 300), (1, 7, 64), (0.0, 1000.0, 2_000_000.0))]
LIMITS = [Limits(), Limits(memory_bytes=8.2e8), Limits(quality=0.3), Limits(first_token_s=0.05, day_wh=500.0), Limits(next_token_s=0.0003)]
CALL = """([board, load, limits]) => new Promise((resolve) => jouleboard.fitted(board, (found) => resolve(jouleboard.pick(found, load, limits)
    .map((one) => [one.row.entry, one.cost, one.first, one.next, one.busy, one.day, one.outside]))))"""


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> list[Board]:
    found, _ = sites.boards(tmp_path_factory.mktemp("picked"))
    return [board for board in found if board.is_serving and not board.is_simulated]


def test_the_browser_picks_what_python_picks(browser: Browser, site: Path, boards: list[Board]) -> None:
    tried = 0
    with opened(browser, (site / "picker" / "index.html").as_uri()) as (page, _):
        settled(page)
        for board in boards:
            known = picking.candidates(board)
            assert known
            for number, load in enumerate(LOADS):
                limits = LIMITS[number % len(LIMITS)]
                asked = {"prompt": load.prompt, "output": load.output, "batch": load.batch, "requests": load.requests_a_day}
                within = {"memory": limits.memory_bytes, "first": limits.first_token_s, "next": limits.next_token_s, "quality": limits.quality,
                          "day": limits.day_wh}
                theirs = page.evaluate(CALL, [board.key, asked, within])
                ours = picking.pick(known, load, limits)
                assert [one[0] for one in theirs] == [one.candidate.row.entry for one in ours]
                for one, other in zip(theirs, ours, strict=True):
                    values = [other.request, other.first_token_s, other.next_token_s, other.busy_s, other.day_wh]
                    assert one[1:6] == [None if value is None else pytest.approx(value, rel=1e-12) for value in values]
                    assert one[6] is other.extrapolated
                    tried += 1
    assert tried > 200


def test_the_picker_predicts_what_the_cost_model_of_rank_predicts(boards: list[Board]) -> None:
    for board in boards:
        assert board.prompt_tokens
        assert board.output_tokens
        assert board.batch
        load = Load(prompt=board.prompt_tokens, output=board.output_tokens, batch=board.batch, requests_a_day=1.0)
        for one in picking.candidates(board):
            assert one.row.cost_model is not None
            predicted = costmodel.predict(one.row.cost_model, prompt=load.prompt, output=load.output, batch=load.batch)
            assert picking.choice(one, load).request == predicted.value
            assert one.row.headline_cost is not None
            assert predicted.value == pytest.approx(one.row.headline_cost.value, rel=0.1)


def test_the_picker_shows_best_and_runner_up_and_keeps_the_load_in_the_address(browser: Browser, site: Path) -> None:
    with opened(browser, (site / "picker" / "index.html").as_uri()) as (page, watch):
        settled(page)
        page.fill("#picker [name=prompt]", "128")
        page.fill("#picker [name=quality]", "0.3")
        words = page.inner_text("#picked")
        assert "Six layers dropped" not in words
        assert "runner-up" in words.lower()
        address = page.url
        assert not watch
    assert "prompt=128" in address
    with opened(browser, address) as (page, _):
        settled(page)
        assert page.input_value("#picker [name=prompt]") == "128"
        assert page.inner_text("#picked") == words


def test_answers_begin_at_the_tier_of_the_base_and_any_quality_can_be_asked_for(browser: Browser, site: Path, boards: list[Board]) -> None:
    with opened(browser, (site / "picker" / "index.html").as_uri()) as (page, watch):
        settled(page)
        board = next(one for one in boards if one.key == page.input_value("#picker [name=board]"))
        floor = next(row.tier for row in board.ranked if row.is_base)
        assert floor
        assert page.input_value("#picker [name=quality]") == f"{floor / 10:.1f}"
        assert "quality=" not in page.url
        kept = page.locator("#picked tbody tr").count()
        page.fill("#picker [name=quality]", "")
        assert page.locator("#picked tbody tr").count() >= kept
        address = page.url
        assert not watch
    with opened(browser, address) as (page, _):
        settled(page)
        assert page.input_value("#picker [name=quality]") == ""


def test_where_the_load_was_measured_the_measured_cost_stands_beside_the_predicted_one(browser: Browser, site: Path, boards: list[Board]) -> None:
    with opened(browser, (site / "picker" / "index.html").as_uri()) as (page, _):
        settled(page)
        board = next(one for one in boards if one.key == page.input_value("#picker [name=board]"))
        for name, value in (("prompt", board.prompt_tokens), ("output", board.output_tokens), ("batch", board.batch)):
            page.fill(f"#picker [name={name}]", str(value))
        assert "measured:" in page.inner_text("#picked tbody")
        page.fill("#picker [name=output]", str((board.output_tokens or 0) + 1))
        assert "measured:" not in page.inner_text("#picked tbody")


def test_a_cpu_time_board_calls_the_energy_of_a_day_an_estimate(browser: Browser, site: Path) -> None:
    with opened(browser, (site / "picker" / "index.html").as_uri()) as (page, _):
        settled(page)
        keys = [one.get_attribute("value") for one in page.locator("#picker [name=board] option").all()]
        for key in keys:
            page.select_option("#picker [name=board]", key)
            page.wait_for_timeout(300)
            words = page.inner_text("#picked .answer-title")
            assert ("an estimate" in words) is ("CPU-s" in words)
        assert len(keys) == 2


def test_a_load_that_a_day_cannot_hold_is_refused(browser: Browser, site: Path) -> None:
    with opened(browser, (site / "picker" / "index.html").as_uri()) as (page, _):
        settled(page)
        page.fill("#picker [name=requests]", "100000000000")
        assert "No entry keeps all limits" in page.inner_text("#picked")


def test_two_entries_stand_side_by_side_with_their_factors(browser: Browser, site: Path) -> None:
    with opened(browser, (site / "compare" / "index.html").as_uri()) as (page, watch):
        settled(page)
        words = page.inner_text("#compared")
        for part in ("Cost of a token", "Tokens an answer", "Share of answers that are correct", "Cost of a correct answer"):
            assert part in words
        page.locator("#entries input").last.check()
        assert page.locator("#compared thead th").count() == 4
        assert not watch
        address = page.url
    with opened(browser, address) as (page, _):
        settled(page)
        assert page.locator("#compared thead th").count() == 4
