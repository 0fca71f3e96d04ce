"""home_agent at every level and in every language: exactly one right call, no two items alike, and no way around reading."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.generators import understood

from jouleboard.generators import shortcuts
from jouleboard.generators.home_agent import generate
from jouleboard.generators.home_grammar import read_grammar
from jouleboard.generators.shortcuts import accuracy, shared_words

ROOT = Path(__file__).parents[2]
GRAMMAR = ROOT / "tasks" / "data" / "home_agent" / "grammar.yaml"
LEVELS = ("easy", "medium", "hard", "easy_zh", "medium_zh", "hard_zh")
CALL = re.compile(r"(?P<room>[a-z_]+)\.(?P<device>[a-z]+)\.(?P<action>[a-z_]+)\((?P<value>\d*)\)")
# Three standard errors of a share of 1/4 over 1,000 items.
NOISE = 3 * math.sqrt(0.25 * 0.75 / 1000)


def made(level: str, *, seed: int = 2026, count: int = 1000) -> list[dict[str, Any]]:
    return generate(grammar_path=GRAMMAR, level=level, seed=seed, count=count)


def parsed(choice: str) -> dict[str, str]:
    match = CALL.fullmatch(choice)
    assert match, choice
    return match.groupdict()


@cache
def others(level: str) -> list[dict[str, Any]]:
    """Items of another seed."""
    return made(level, seed=7, count=1200)


@pytest.fixture(scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def documents(level: str) -> list[dict[str, Any]]:
    return made(level)


def assert_understood(documents: list[dict[str, Any]], level: str) -> None:
    for document in documents:
        want = understood.wanted(document["state"], document["command"], chinese=level.endswith("_zh"))
        right = [parsed(choice) == want for choice in document["choices"]]
        assert right == [index == document["gold"] for index in range(4)], (document, want)


def test_exactly_the_gold_call_does_what_the_command_asks(documents: list[dict[str, Any]], level: str) -> None:
    assert_understood(documents, level)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(), level=st.sampled_from(LEVELS))
@example(seed=-1, level="hard_zh")  # "Nobody watches the screen for films": its name begins with the word that ends the verb.
def test_so_it_is_for_every_seed(seed: int, level: str) -> None:
    assert_understood(made(level, seed=seed, count=40), level)


def test_no_two_items_are_alike(documents: list[dict[str, Any]]) -> None:
    assert len({(d["command"].casefold(), frozenset(d["choices"])) for d in documents}) == len(documents) == 1000


def test_commands_of_a_hard_level_differ_by_themselves(documents: list[dict[str, Any]], level: str) -> None:
    least = {"easy": 850, "medium": 950, "hard": 990}[level.removesuffix("_zh")]
    assert len({d["command"] for d in documents}) >= least


@pytest.mark.parametrize("count", [100, 1000])
def test_every_position_is_right_equally_often(documents: list[dict[str, Any]], count: int) -> None:
    assert set(Counter(d["gold"] for d in documents[:count]).values()) == {count // 4}


def test_the_choices_are_all_combinations_of_two_options_in_two_fields(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        calls = [parsed(choice) for choice in document["choices"]]
        kinds = sorted(len({call[field] for call in calls}) for field in ("room", "device", "action", "value"))
        assert kinds == [1, 1, 2, 2]
        assert len({tuple(call.items()) for call in calls}) == 4


RULES: dict[str, Any] = {
    "longest": lambda d, i: len(d["choices"][i]),
    "shortest": lambda d, i: -len(d["choices"][i]),
    "first in the alphabet": lambda d, i: -sorted(d["choices"]).index(d["choices"][i]),
    "last in the alphabet": lambda d, i: sorted(d["choices"]).index(d["choices"][i]),
    "largest value": lambda d, i: int(parsed(d["choices"][i])["value"] or 0),
    "smallest value": lambda d, i: -int(parsed(d["choices"][i])["value"] or 0),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_over_the_choices_alone_does_not_beat_chance(documents: list[dict[str, Any]], rule: str) -> None:
    assert accuracy(documents, RULES[rule]) < 0.25 + NOISE


@pytest.mark.parametrize("sign", [1, -1], ids=["middle", "odd-one-out"])
def test_no_call_is_the_middle_or_the_odd_one_out(documents: list[dict[str, Any]], sign: int) -> None:
    def likeness(document: dict[str, Any], index: int) -> int:
        call = parsed(document["choices"][index])
        return sign * sum(call[f] == parsed(other)[f] for other in document["choices"] for f in call)

    assert accuracy(documents, likeness) == pytest.approx(0.25)


def test_what_other_seasons_answers_look_like_does_not_help(documents: list[dict[str, Any]], level: str) -> None:
    """A naive Bayes over the words of a call, trained on 1,200 items of another seed, sees no command."""
    right, all_calls = Counter[str](), Counter[str]()
    for document in others(level):
        for index, choice in enumerate(document["choices"]):
            words = re.findall(r"[a-z_]+|\d+", choice)
            all_calls.update(words)
            right.update(words if index == document["gold"] else [])

    def likely(document: dict[str, Any], index: int) -> float:
        words = re.findall(r"[a-z_]+|\d+", document["choices"][index])
        return sum(math.log((right[word] + 1) / (all_calls[word] + 4)) for word in words)

    assert accuracy(documents, likely) < 0.25 + NOISE


def test_where_the_user_is_does_not_give_the_answer_away(documents: list[dict[str, Any]], level: str) -> None:
    grammar = read_grammar(GRAMMAR, level=level)

    def is_here(document: dict[str, Any], index: int) -> bool:
        return grammar.rooms[parsed(document["choices"][index])["room"]] in document["state"]

    # The easy level has no decoys: who is in a room of the choices says "here".
    most = 0.33 if level.startswith("easy") else 0.25 + NOISE
    assert accuracy(documents, is_here) < most
    assert accuracy(documents, lambda d, i: not is_here(d, i)) < 0.25 + NOISE


FIGURES = {"easy": 0.71, "medium": 0.48, "hard": 0.25, "easy_zh": 0.75, "medium_zh": 0.51, "hard_zh": 0.26}


def test_shared_words_get_the_stated_share(documents: list[dict[str, Any]], level: str) -> None:
    assert accuracy(documents, shared_words(read_grammar(GRAMMAR, level=level))) == pytest.approx(FIGURES[level], abs=0.006)


def test_choosing_what_shares_the_fewest_words_is_worth_nothing(documents: list[dict[str, Any]], level: str) -> None:
    rule = shared_words(read_grammar(GRAMMAR, level=level))
    assert accuracy(documents, lambda d, i: -rule(d, i)) < 0.25 + NOISE


def test_equal_scores_share_an_item() -> None:
    document = {"command": "", "choices": ["a", "b", "c", "d"], "gold": 2}
    assert shortcuts.accuracy([document], lambda _d, _i: 1) == 0.25
    assert shortcuts.accuracy([document], lambda _d, i: i >= 2) == 0.5
    assert shortcuts.accuracy([document], lambda _d, i: i < 2) == 0


def test_the_rule_of_shared_words_counts_words_and_not_parts_of_them() -> None:
    rule = shared_words(read_grammar(GRAMMAR, level="easy"))
    document = {"command": "Turn on the lamplight in the living room.", "choices": ["living_room.lamp.turn_on()", "attic.fan.set(3)"]}
    assert [rule(document, index) for index in (0, 1)] == [4, 0]


def test_texts_have_no_unfilled_slot_and_no_double_space(documents: list[dict[str, Any]]) -> None:
    assert not [d for d in documents if re.search(r"[{}]|  |\bin in\b|的的|里里|None", d["state"] + d["command"])]


def test_chinese_commands_have_no_latin_letter_and_english_ones_no_other(documents: list[dict[str, Any]], level: str) -> None:
    pattern = r"[A-Za-z]" if level.endswith("_zh") else r"[^\x20-\x7e]"
    assert not [d for d in documents if re.search(pattern, d["state"] + d["command"])]


def test_every_room_device_action_and_clue_occurs(level: str) -> None:
    data = yaml.safe_load(GRAMMAR.read_text(encoding="utf-8"))
    documents = others(level)
    golds = [parsed(d["choices"][d["gold"]]) for d in documents]
    assert {gold["room"] for gold in golds} == set(data["rooms"])
    assert {(g["device"], g["action"]) for g in golds} == {(d, a) for d, e in data["devices"].items() for a in e["actions"]}
    chosen, wording = data["levels"][level], data["phrasings"]["zh" if level.endswith("_zh") else "en"]
    text = "\n".join(d["command"] for d in documents)
    for rate, key in (("clue", "room_clues"), ("device_clue", "device_clues")):
        clues = [clue for clues in wording[key].values() for clue in clues]
        unseen = [clue for clue in clues if clue not in text]
        assert unseen == [] if chosen.get(rate) else len(unseen) == len(clues)


@pytest.mark.parametrize(("rate", "key"), [("clue", "room_clues"), ("device_clue", "device_clues"), ("relative", "relative")])
def test_a_level_whose_wording_lacks_what_its_rate_needs_is_refused_by_name(tmp_path: Path, rate: str, key: str) -> None:
    data = yaml.safe_load(GRAMMAR.read_text(encoding="utf-8"))
    del data["phrasings"]["en"][key]
    data["levels"]["hard"] = {"language": "en", "here": 0, "need": 0, "aside": 0, rate: 10}
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"g\.yaml: key '{key}' is missing; level 'hard' needs it"):
        generate(grammar_path=tmp_path / "g.yaml", level="hard", seed=1, count=1)


def test_a_level_with_an_unknown_rate_is_refused_by_name(tmp_path: Path) -> None:
    data = yaml.safe_load(GRAMMAR.read_text(encoding="utf-8"))
    data["levels"]["easy"]["noise"] = 3
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(ValueError, match=r"g\.yaml: levels\.easy: .*'noise'"):
        generate(grammar_path=tmp_path / "g.yaml", level="easy", seed=1, count=1)


@pytest.mark.parametrize("level", LEVELS)
def test_the_lm_eval_definitions_read_fields_that_documents_have(level: str) -> None:
    language = "zh" if level.endswith("_zh") else "en"
    task = yaml.safe_load((ROOT / "tasks" / "lm_eval" / f"home_agent_{language}.yaml").read_text(encoding="utf-8"))
    texts = task["doc_to_text"] + task["doc_to_choice"] + task["doc_to_target"]
    assert set(re.findall(r"{{(\w+)}}", texts)) <= set(made(level, count=1)[0])
    assert task["task"] == f"home_agent_{language}"
