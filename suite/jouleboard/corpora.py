"""A corpus to train on, on this machine: fetched from its pinned sources, cleaned, and checked against every eval task's items.

In the cache lie the texts, `corpora/mixed-prose-0f3a….jsonl`, one `{"text": ..}` a line, and beside them the proof of what was
removed for which reason, `corpora/mixed-prose-0f3a….json` (a `Proof`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from jouleboard import catalogue, corpustext, paths, sources, store, tasks
from jouleboard.declared import Count, HubSource, Noun, Sha256
from jouleboard.declared_corpora import Corpus, Part
from jouleboard.declared_tasks import Task
from jouleboard.errors import DataFileError, SourceError
from jouleboard.parsers import PROSE, Parsed
from jouleboard.sources import Say, quiet

BUNDLED = "inputs/corpora"
"""Where a bundle has a corpus's texts and its proof."""
METHOD = 1
"""Counts what changes in how texts are cleaned: other texts come of it."""


class Proof(Noun, frozen=True, kw_only=True):
    """What was done to a corpus, in numbers."""

    corpus: str
    made_of_sha256: Sha256
    """Digest of the declaration, of the method, and of the tasks that it was checked against."""
    file_sha256: Sha256
    data_sha256: Sha256
    documents: Count
    characters: Count
    parsed: Count
    unparsed: tuple[str, ...]
    """What did not parse, with its place."""
    dropped: dict[str, Count]
    """Documents that went, by reason; `in_evals`: they shared a run of words with an eval item."""
    overlaps: dict[str, Count]
    """Documents that shared a run of words with a task's items, by task; one document may be in several."""
    items: dict[str, Count]
    """How many items of each task the corpus was checked against."""
    items_too_short: dict[str, Count]
    """Those among them that are too short to be looked for."""
    not_checked: tuple[str, ...]
    """Tasks whose items only the hub has."""


def load(ident: str) -> Corpus:
    """Read `suite/corpora/<ident>.yaml`."""
    return catalogue.load("corpora", ident, Corpus)


def prepare(corpus: Corpus, evals: Sequence[Task] | None = None, *, say: Say = quiet) -> Path:
    """Return the file with a corpus's texts, making it where it is missing.

    Args:
        corpus: the declared corpus.
        evals: tasks whose items must not be in it; None: every declared task whose items are to be had without the hub.
        say: told what is fetched and what was removed.

    Raises:
        SourceError: a source cannot be reached or gives other bytes than declared.
        DataFileError: what comes out is not what is declared.
    """
    bundle = paths.bundle_folder()
    if bundle is not None:
        return _from_bundle(corpus, bundle)
    declared = catalogue.load_all(paths.data_folder("tasks"), Task).values() if evals is None else evals
    checked = [task for task in declared if not isinstance(task.source, HubSource)]
    hubs = sorted(task.id for task in declared if isinstance(task.source, HubSource))
    made_of = store.digest([METHOD, corpus, checked])
    file = paths.cache_folder() / "corpora" / f"{corpus.id}-{made_of[:16]}.jsonl"
    if _whole(file, made_of):
        say(f"{corpus.id}: in the cache")
        return file
    parsed = [_parse(corpus, part, say) for part in corpus.parts]
    held = corpustext.evals({task.id: _items(task, say) for task in checked})
    cleaned = corpustext.clean((document["text"] for one in parsed for document in one.documents), held)
    documents = [{"text": text} for text in cleaned.texts]
    _require_declared(corpus, {"documents": len(documents), "data_sha256": store.digest(documents)})
    text = store.joined(map(store.canonical, documents))
    proof = Proof(
        corpus=corpus.id, made_of_sha256=made_of, file_sha256=store.lines_sha256(text.splitlines()), data_sha256=store.digest(documents),
        documents=len(documents), characters=sum(map(len, cleaned.texts)), parsed=sum(len(one.documents) for one in parsed),
        unparsed=tuple(f"{part.parser}: {why}" for part, one in zip(corpus.parts, parsed, strict=True) for why in one.unparsed),
        dropped=cleaned.dropped, overlaps=cleaned.hits, items=dict(held.items), items_too_short=dict(held.too_short),
        not_checked=tuple(hubs))
    say(f"{corpus.id}: {proof.documents} texts; left out: " + ", ".join(f"{count} {why}" for why, count in proof.dropped.items() if count))
    store.write_atomic(file, text)
    # Last: a file without its proof is made again.
    store.write_atomic(file.with_suffix(".json"), store.canonical(proof))
    return file


def proof(file: Path) -> Proof:
    """Read the proof of a corpus's file.

    Raises:
        SourceError: there is none, or it is not about these bytes.
    """
    try:
        found = msgspec.json.decode(file.with_suffix(".json").read_bytes(), type=Proof)
        if sources.file_sha256(file) == found.file_sha256:
            return found
        why = "it has other bytes than when it was made"
    except (OSError, msgspec.DecodeError) as error:
        why = str(error)
    raise SourceError(f"the corpus cannot be used ({why})", file=file, remedy="delete it and run the same command again")


def _whole(file: Path, made_of: str) -> bool:
    try:
        return proof(file).made_of_sha256 == made_of
    except SourceError:
        return False


def _from_bundle(corpus: Corpus, bundle: Path) -> Path:
    """Return the texts that a bundle holds of a corpus; there is no other source while it is run."""
    file = bundle / BUNDLED / f"{corpus.id}.jsonl"
    found = proof(file)
    _require_declared(corpus, {"documents": found.documents, "data_sha256": found.data_sha256})
    return file


def _parse(corpus: Corpus, part: Part, say: Say) -> Parsed:
    data = sources.package_file(part.source, used_by=f"corpus {corpus.id}", say=say).read_bytes()
    try:
        return PROSE[part.parser](data)
    except UnicodeDecodeError as error:
        raise SourceError(f"corpus {corpus.id}: {part.source.member} is not UTF-8 ({error})", field="parts.source",
                          remedy="name a text file as the source") from None


def _items(task: Task, say: Say) -> list[object]:
    path = tasks.prepare(task, say=say).path
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def _require_declared(corpus: Corpus, found: dict[str, object]) -> None:
    for field, value in found.items():
        declared = getattr(corpus, field)
        if declared is not None and declared != value:
            raise DataFileError(f"declared {declared}, there are {value}" if field == "documents" else f"declared {declared}, found {value}",
                                file=paths.data_folder("corpora") / f"{corpus.id}.yaml", field=field,
                                remedy="other texts are another corpus: give it a name of its own; where an eval task was added that "
                                "the texts overlap with, correct the field")
