"""Read, write and digest the files of a report. Every write is atomic and fsynced: a reader sees all of it or none.

A write that fails is a `StorageError` and leaves what was there before, without a temporary file where it can be removed.

An entry is a folder with `report.json`, `items.jsonl.gz` (one `records.Item` a line) and `trace.csv.gz`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import rfc8785

from jouleboard import itemline, ours, storage, strictjson
from jouleboard.errors import DataFileError
from jouleboard.records import FORMAT_VERSION, FileDigest, Item, Report
from jouleboard.upgrade import UPGRADES

REPORT, ITEMS, TRACE = "report.json", "items.jsonl.gz", "trace.csv.gz"
TEMPORARY = ".tmp"
"""How the name of a file ends that is being written; it begins with a dot."""
MAX_REPORT_BYTES = 4 * 2**20
MAX_PACKED_BYTES = 16 * 2**20
MAX_RAW_BYTES = 64 * 2**20
MAX_LINES = 250_000
MAX_LINE_BYTES = 2**20
MAX_RATIO, RATIO_FROM_BYTES = 200, 2 * 2**20
"""Items shrink to a fifth by compression and traces to a thirtieth; what shrinks far more is there to fill a disk."""
_CHUNK_BYTES = 2**18
_AGAIN = ours.AGAIN


def canonical(value: object) -> bytes:
    """Return the canonical JSON (RFC 8785) of a noun, or of plain JSON values."""
    return rfc8785.dumps(msgspec.to_builtins(value))


def digest(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of a value, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


def seal_item(item: Item) -> Item:
    """Return the item with its `digest` computed over every other field."""
    return msgspec.structs.replace(item, digest=item_digest(item))


def item_digest(item: Item) -> str:
    """Return the short digest over every field of an item but `digest` itself."""
    return hashlib.sha256(itemline.canonical(item, digest="")).hexdigest()[:16]


def seal_report(report: Report) -> Report:
    """Return the report with its `digest` computed over every other field."""
    return msgspec.structs.replace(report, digest=report_digest(report))


def report_digest(report: Report) -> str:
    """Return the digest over every field of a report but `digest` itself."""
    return digest(msgspec.structs.replace(report, digest="0" * 64))


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, and still there after a power cut.

    Raises:
        StorageError: it cannot be written; what was there before still is.
    """
    with storage.writing(path, size_bytes=len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files that only the owner can read; published entries are for everybody.
            Path(name).chmod(0o644)
            Path(name).replace(path)
            storage.sync_folder(path.parent)
        except BaseException:
            # What stopped the write may stop the removal too; the next run sweeps it up.
            with contextlib.suppress(OSError):
                Path(name).unlink(missing_ok=True)
            raise


def write_lines(path: Path, lines: Iterable[bytes]) -> FileDigest:
    """Write lines as a gzip file with the same bytes each time (no name, no time) and return its digest."""
    buffer, hasher, count = io.BytesIO(), hashlib.sha256(), 0
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as packed:
        for line in lines:
            row = line + b"\n"
            packed.write(row)
            hasher.update(row)
            count += 1
    write_atomic(path, buffer.getvalue())
    return FileDigest(sha256=hasher.hexdigest(), lines=count)


def write_items(folder: Path, items: Iterable[Item]) -> FileDigest:
    """Write `items.jsonl.gz`, one canonical JSON line an item."""
    return write_lines(folder / ITEMS, (itemline.canonical(item) for item in items))


def write_report(folder: Path, report: Report) -> Report:
    """Seal a report and write it as `report.json`, indented for people; return it with its digest."""
    sealed = seal_report(report)
    text = json.dumps(msgspec.to_builtins(sealed), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_atomic(folder / REPORT, text.encode() + b"\n")
    return sealed


def read_lines(path: Path) -> list[bytes]:
    """Read a gzip file of lines piece by piece; too large, too many or too long ones end the reading where it is seen.

    Raises:
        DataFileError: the file is missing, cut short, not gzip, or beyond a cap.
    """
    data = _unpacked(path)
    count = data.count(b"\n")
    if count > MAX_LINES:
        raise DataFileError(f"{count} lines, at most {MAX_LINES} are allowed", file=path, remedy=_AGAIN, code="lines")
    lines = bytes(data).split(b"\n")
    if not lines[-1]:
        lines.pop()
    longest = max(map(len, lines), default=0)
    if longest > MAX_LINE_BYTES:
        raise DataFileError(f"a line of {longest} bytes, at most {MAX_LINE_BYTES} are allowed", file=path, remedy=_AGAIN, code="lines")
    return lines


def _unpacked(path: Path) -> bytearray:
    data = bytearray()
    try:
        packed_bytes = _plain_size(path)
        if packed_bytes > MAX_PACKED_BYTES:
            raise DataFileError(f"{packed_bytes} bytes, more than the {MAX_PACKED_BYTES} allowed", file=path, remedy=_AGAIN, code="size")
        with gzip.open(path) as file:
            while piece := file.read(_CHUNK_BYTES):
                data += piece
                most_bytes = min(MAX_RAW_BYTES, max(RATIO_FROM_BYTES, MAX_RATIO * packed_bytes))
                if len(data) > most_bytes:
                    raise DataFileError(f"more than {most_bytes} bytes after decompression, of {packed_bytes} before it",
                                        file=path, remedy=_AGAIN, code="bomb")
    except FileNotFoundError:
        raise DataFileError("the file is missing", file=path, remedy=_AGAIN, code="missing") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataFileError(f"not a whole gzip file ({error})", file=path, remedy=_AGAIN, code="gzip") from None
    return data


def joined(lines: Iterable[bytes]) -> bytes:
    """Return lines as the content of a file, each ended."""
    return b"".join(line + b"\n" for line in lines)


def lines_sha256(lines: Iterable[bytes]) -> str:
    """Return the digest that `FileDigest` keeps of a file of lines."""
    return hashlib.sha256(joined(lines)).hexdigest()


def read_items(folder: Path) -> list[Item]:
    """Read `items.jsonl.gz`.

    Raises:
        DataFileError: naming the line and the field that is not what it should be.
    """
    return decode_items(read_lines(folder / ITEMS), folder / ITEMS)


def decode_items(lines: Sequence[bytes], path: Path) -> list[Item]:
    """Return the items of the lines of a file.

    Raises:
        DataFileError: naming the line and the field that is not what it should be.
    """
    decode = msgspec.json.Decoder(Item).decode
    found: list[Item] = []
    try:
        for line in lines:
            found.append(decode(line))  # noqa: PERF401 - how far it came tells the line
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        number = len(found) + 1
        # What is wrong with it as JSON has a code of its own.
        strictjson.loads(lines[number - 1], path, field=f"line {number}", remedy=_AGAIN)
        message, field = split_path(str(error))
        raise DataFileError(message, file=path, field=f"line {number}{field}", remedy=_AGAIN, code="schema") from None
    return found


def split_path(message: str) -> tuple[str, str]:
    """Split msgspec's `Expected ... - at `$.a.b`` into the message and ` a.b`."""
    text, _, where = message.partition(" - at `")
    # A wrong key of a mapping reads "at `key` in `$.a.b`".
    place = where.removeprefix("key` in `").rstrip("`").removeprefix("$").removeprefix(".")
    return text, f" {place}" if place else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A report as it lies in its file."""

    report: Report
    digest: str
    """Of every field but `digest` itself, as they are now."""
    stored_digest: str
    """As it stands in the file; a report of an older format is upgraded in memory and has another one there."""

    @property
    def genuine(self) -> bool:
        """Whether it is as it was written."""
        return self.digest == self.report.digest


def read_report(path: Path) -> Report:
    """Read one `report.json` as `open_report` does, whether it is genuine or not."""
    return open_report(path).report


def open_report(path: Path) -> Opened:
    """Read one `report.json` strictly, and digest it: UTF-8 JSON, no duplicate keys, no NaN, closed schema.

    A report of an older format is upgraded in memory and sealed anew, if its own digest is right; one that was changed after
    it was written keeps the digest that it has, so that a check finds it.

    Raises:
        DataFileError: naming the field and what is wrong with it.
    """
    data = read_small(path)
    raw = ours.require(data, path)
    try:
        report = msgspec.json.decode(data, type=Report) if raw["format_version"] == FORMAT_VERSION else _upgrade(raw)
        # Free-form fields can still hold what has no canonical JSON, and so no digest. To write it takes longest here: once.
        return Opened(report=report, digest=report_digest(report), stored_digest=str(raw.get("digest")))
    except (msgspec.DecodeError, DataFileError) as error:
        message, field = split_path(str(error))
        raise DataFileError(message, file=path, field=field.strip() or None, remedy=_AGAIN, code="schema") from None
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        raise DataFileError(f"has no canonical JSON ({error})", file=path, remedy=_AGAIN, code="number") from None


def _upgrade(raw: dict[str, Any]) -> Report:
    """Return a report of an older format as one of today's.

    Raises:
        DataFileError: a field that its format did not have.
        msgspec.DecodeError: a field of another type.
    """
    genuine = digest(raw | {"digest": "0" * 64}) == raw.get("digest")
    while raw["format_version"] != FORMAT_VERSION:
        raw = UPGRADES[raw["format_version"]](raw)
    report = msgspec.convert(raw, Report)
    return seal_report(report) if genuine else report


def read_small(path: Path, most_bytes: int | None = None) -> bytes:
    """Read a small file whole, as a rule one of at most `MAX_REPORT_BYTES`.

    Raises:
        DataFileError: it is larger than allowed, is no plain file, or cannot be read.
    """
    try:
        size, most_bytes = _plain_size(path), MAX_REPORT_BYTES if most_bytes is None else most_bytes
        if size > most_bytes:
            raise DataFileError(f"{size} bytes, more than the {most_bytes} allowed", file=path, remedy=_AGAIN, code="size")
        return path.read_bytes()
    except OSError as error:
        raise DataFileError(f"cannot be read ({error.strerror})", file=path, remedy=_AGAIN, code="missing") from None


def _plain_size(path: Path) -> int:
    """Return a file's size; a pipe or a device would be read for ever."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DataFileError("is no plain file", file=path, remedy=_AGAIN, code="file-kind")
    return found.st_size


def sweep(folder: Path) -> None:
    """Remove the temporary files that writers left below a folder when they were killed; nobody may be writing there."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def find_reports(root: Path) -> Iterator[Path]:
    """Yield every `report.json` below a folder (or the file itself), in sorted order, hidden folders left out."""
    if root.is_file():
        yield root
        return
    for path in sorted(root.rglob(REPORT)):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path
