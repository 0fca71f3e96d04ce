"""The published description of the format is that of the code, and every genuine entry is valid by it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from jouleboard import check, cli, describe, selfreported, store
from jouleboard.problems import RULES, SINCE
from tests import factory, genuine
from tests.attacks import files, records

ROOT = Path(__file__).parents[1]
FORMAT_1 = ROOT / "tests" / "data" / "format-1"


@pytest.mark.parametrize("name", describe.PAGES)
def test_what_is_published_is_what_the_code_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", name]) == 0
    assert (ROOT / "docs" / describe.FILES[name]).read_text() == capsys.readouterr().out, f"jouleboard schema {name} > docs/{describe.FILES[name]}"


def test_genuine_entries_are_valid_by_the_schema_and_others_are_not(tmp_path: Path) -> None:
    folder = genuine.publish_one(tmp_path / "reports", *genuine.entry())
    report = json.loads((folder / store.REPORT).read_bytes())
    validator = jsonschema.Draft202012Validator(json.loads(describe.schema(describe.Report)))
    validator.check_schema(validator.schema)
    assert list(validator.iter_errors(report)) == []
    assert list(validator.iter_errors(report | {"rank": 1}))
    assert list(validator.iter_errors(report | {"model": "../x"}))
    items = jsonschema.Draft202012Validator(json.loads(describe.schema(describe.Item)))
    for line in store.read_lines(folder / store.ITEMS):
        assert list(items.iter_errors(json.loads(line))) == []


def test_every_noun_and_every_field_has_a_row(tmp_path: Path) -> None:
    page = describe.fields()
    for noun in describe.NOUNS:
        assert f"## {noun.__name__}\n" in page
        for name in noun.__struct_fields__:
            assert f"| `{name}` | `" in page
    assert "| `measured_j` | `Finite \\| None` | joules | Joules a sensor gave" in page
    for one in selfreported.FIELDS:
        assert one.why in page


def test_every_code_is_listed_by_the_command_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--codes"]) == 0
    printed = capsys.readouterr().out
    for code, rule in RULES.items():
        assert re.search(rf"^{code} +{re.escape(rule)}", printed, re.MULTILINE)
    assert set(SINCE) <= set(RULES)


def test_every_code_that_the_source_names_has_a_rule() -> None:
    named: set[str] = set()
    for path in (ROOT / "suite" / "jouleboard").glob("*.py"):
        text = path.read_text()
        named |= set(re.findall(r'code="([a-z-]+)"', text)) if path.stem in {"store", "strictjson", "ours"} else set()
        if path.stem.startswith("check") or path.stem == "branch":
            named |= set(re.findall(r'\bat\((?:f?"[^"]*"|_name\(item\)|where|field), "([a-z-]+)"', text))
    assert len(named) > 50
    assert named <= set(RULES)


def test_there_is_an_attack_for_every_rule() -> None:
    elsewhere = {"unreadable", "append-only", "mixed", "branch-size"}  # declared data files; branches (test_branch)
    attacked = {one.code for one in (*records.ATTACKS.values(), *files.ATTACKS.values())}
    assert len(records.ATTACKS) + len(files.ATTACKS) >= 200
    assert set(RULES) - attacked - elsewhere == set()


def test_an_entry_is_held_against_the_rules_of_its_time(tmp_path: Path) -> None:
    """The invented family was made under the first rules: of a far future, on hardware that nobody declared."""
    factory.family(tmp_path, n=4, specs=factory.SPECS[:1])
    assert check.check_paths([tmp_path]).problems == []
    codes = {problem.code for problem in check.check_paths([tmp_path], check.Options(fresh=True)).problems}
    assert {"rules", "submitter", "declared-hardware", "declared-recipe"} <= codes
    assert check.check_paths([FORMAT_1]).problems == []
