"""What can be wrong with the files of an entry before anything in them is looked at: their bytes, their kinds, their names, their places."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jouleboard import store
from tests.attacks import entry

Change = Callable[[Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One thing wrong with the files of an entry."""

    code: str
    change: Change
    heavy: bool = False
    """Whether it is there to fill memory or time."""


ATTACKS: dict[str, Attack] = {}


def attack(code: str, *, heavy: bool = False) -> Callable[[Change], Change]:
    """Register a change of an entry's folder under its function's name."""

    def add(change: Change) -> Change:
        ATTACKS[change.__name__] = Attack(code=code, change=change, heavy=heavy)  # type: ignore[attr-defined]
        return change

    return add


def report(name: str, code: str, make: Callable[[bytes], bytes], *, heavy: bool = False) -> None:
    """Register a change of the report's bytes."""

    def change(folder: Path) -> None:
        path = folder / store.REPORT
        path.write_bytes(make(path.read_bytes()))

    ATTACKS[name] = Attack(code=code, change=change, heavy=heavy)


def with_digest(change: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    """Change the plain values of a report and give it the digest that they have then."""

    def make(data: bytes) -> bytes:
        raw = json.loads(data)
        change(raw)
        raw["digest"] = store.digest(raw | {"digest": "0" * 64})
        return json.dumps(raw).encode()

    return make


def _in(data: bytes, text: bytes) -> bytes:
    """Put a text in the place of the number of bytes of memory."""
    raw = json.loads(data)
    raw["peak_memory_bytes"] = "@"
    return json.dumps(raw).encode().replace(b'"@"', text)


# --- the bytes of a report --------------------------------------------------------------------------------------------

report("an_empty_report", "json", lambda _: b"")
report("a_report_cut_short", "json", lambda data: data[: len(data) // 2])
report("a_report_with_something_behind", "json", lambda data: data + b"{}")
report("a_report_in_latin_1", "encoding", lambda data: data.replace(b"SmolLM2", b"Smol\xe9LM", 1))
report("a_report_in_utf_16", "encoding", lambda data: data.decode().encode("utf-16"))
report("a_byte_order_mark", "encoding", lambda data: b"\xef\xbb\xbf" + data)
report("not_a_number", "number", lambda data: _in(data, b"NaN"))
report("infinity", "number", lambda data: _in(data, b"-Infinity"))
report("a_float_beyond_infinity", "number", lambda data: _in(data, b"1e999"))
report("a_huge_integer", "number", lambda data: _in(data, b"9" * 1_000_000), heavy=True)
report("a_float_of_a_million_digits", "number", lambda data: _in(data, b"0." + b"1" * 1_000_000), heavy=True)
report("an_integer_beyond_json", "schema", lambda data: _in(data, str(2**53).encode()))
report("a_key_twice", "duplicate-key", lambda data: b'{"status": "complete",' + data.lstrip()[1:])
report("a_key_twice_deep_inside", "duplicate-key", lambda data: data.replace(b'"duration_s":', b'"duration_s": 1, "duration_s":', 1))
report("lists_ten_thousand_deep", "depth", lambda data: _in(data, b"[" * 10_000 + b"]" * 10_000), heavy=True)
report("objects_ten_thousand_deep", "depth", lambda data: _in(data, b'{"a":' * 10_000 + b"1" + b"}" * 10_000), heavy=True)
report("a_hundred_thousand_brackets", "depth", lambda _: b"[" * 100_000)
report("nothing_but_brackets", "size", lambda _: b"[" * 4_000_000, heavy=True)
report("a_million_empty_lists", "size", lambda data: _in(data, b"[" + b"[]," * 1_000_000 + b"[]]"), heavy=True)
report("a_report_of_a_gigabyte", "size", lambda data: data + b" " * store.MAX_REPORT_BYTES, heavy=True)
report("strings_without_an_end", "json", lambda data: data + b'"\\' * 1_000_000, heavy=True)
report("a_string_without_an_end", "json", lambda data: data + b'"' + b"a" * 3_000_000, heavy=True)
report("escapes_without_an_end", "json", lambda data: data + b'"' + b"\\" * 2_999_999, heavy=True)
report("another_format", "format", with_digest(lambda raw: raw.update(format="jouleboard-rapport")))
report("a_list_in_the_place_of_a_report", "format", lambda _: b"[]")
report("a_format_of_tomorrow", "version", with_digest(lambda raw: raw.update(format_version=99)))
report("a_version_that_is_no_number", "version", with_digest(lambda raw: raw.update(format_version=True)))
report("an_unknown_field", "schema", with_digest(lambda raw: raw.update(rank=1)))
report("an_unknown_field_deep_inside", "schema", with_digest(lambda raw: raw["trials"][0].update(rank=1)))
report("a_field_that_is_missing", "schema", with_digest(lambda raw: raw.pop("engine")))
report("a_text_in_the_place_of_a_number", "schema", with_digest(lambda raw: raw.update(peak_memory_bytes="12")))
report("a_number_below_its_range", "schema", with_digest(lambda raw: raw["trials"][0]["window"].update(duration_s=-1.0)))
report("a_number_above_its_range", "schema", with_digest(lambda raw: raw["trials"][0]["window"].update(duration_s=1e300)))
report("an_id_that_leads_elsewhere", "schema", with_digest(lambda raw: raw.update(model="../../../etc")))
report("an_id_in_capitals", "schema", with_digest(lambda raw: raw.update(model="SmolLM2")))
report("an_unknown_method", "schema", with_digest(lambda raw: raw.update(method="guessed")))
report("half_a_character", "schema", with_digest(lambda raw: None))
report("yaml_in_the_place_of_a_report", "json", lambda _: b"!!python/object/apply:os.system ['touch /tmp/pwned']\n")
report("a_pickle_in_the_place_of_a_report", "encoding", lambda _: pickle.dumps({"format": "jouleboard-report"}, protocol=4) + b"\xff")
report("a_digest_that_is_another_one", "digest", lambda data: data.replace(b'"plan": "full"', b'"plan": "fast"'))
report("a_merkle_root_that_is_another_one", "merkle", with_digest(lambda raw: raw.update(merkle_root="0" * 64)))
report("no_merkle_root", "merkle", with_digest(lambda raw: raw.pop("merkle_root")))
report("a_file_with_another_digest", "files", with_digest(lambda raw: raw["files"][store.TRACE].update(sha256="0" * 64)))
report("a_file_elsewhere", "files", with_digest(lambda raw: raw["files"].update({"../../../etc/passwd": {"sha256": "0" * 64, "lines": 1}})))
ATTACKS["half_a_character"] = Attack(code="json", change=lambda folder: (folder / store.REPORT).write_bytes(
    (folder / store.REPORT).read_bytes().replace(b'"plan": "full"', b'"plan": "\\ud8"')))


# --- the raw files ----------------------------------------------------------------------------------------------------


def _zeros(path: Path, gigabytes: int) -> None:
    """Write a gzip file that unpacks to so many gigabytes of zeros; it may have any number of members."""
    member = gzip.compress(bytes(64 * 2**20), compresslevel=9)
    path.write_bytes(member * (gigabytes * 16))


@attack("bomb", heavy=True)
def ten_gigabytes_of_items(folder: Path) -> None:
    _zeros(folder / store.ITEMS, 10)


@attack("bomb", heavy=True)
def ten_gigabytes_of_trace(folder: Path) -> None:
    _zeros(folder / store.TRACE, 10)


@attack("bomb", heavy=True)
def a_bomb_that_shrinks_as_records_do(folder: Path) -> None:
    line = random.Random(1).randbytes(500).hex().encode() + b"\n"
    (folder / store.ITEMS).write_bytes(gzip.compress(b"".join(line + str(index).encode() for index in range(75_000)), compresslevel=1))


@attack("size", heavy=True)
def a_raw_file_of_seventeen_megabytes(folder: Path) -> None:
    (folder / store.ITEMS).write_bytes(gzip.compress(random.Random(1).randbytes(17 * 2**20), compresslevel=1))


@attack("lines", heavy=True)
def a_line_of_two_megabytes(folder: Path) -> None:
    store.write_lines(folder / store.ITEMS, [random.Random(1).randbytes(2**20).hex().encode()])


@attack("lines", heavy=True)
def three_hundred_thousand_lines(folder: Path) -> None:
    rng = random.Random(1)
    store.write_lines(folder / store.ITEMS, [rng.randbytes(8).hex().encode() for _ in range(300_000)])


@attack("gzip")
def items_that_are_not_packed(folder: Path) -> None:
    (folder / store.ITEMS).write_bytes(b"{}\n")


@attack("gzip")
def a_trace_cut_short(folder: Path) -> None:
    path = folder / store.TRACE
    path.write_bytes(path.read_bytes()[:-20])


@attack("gzip")
def items_with_one_bit_turned(folder: Path) -> None:
    data = bytearray((folder / store.ITEMS).read_bytes())
    data[-6] ^= 1
    (folder / store.ITEMS).write_bytes(bytes(data))


@attack("missing")
def no_items(folder: Path) -> None:
    (folder / store.ITEMS).unlink()


@attack("missing")
def no_trace(folder: Path) -> None:
    (folder / store.TRACE).unlink()


def item_line(name: str, code: str, make: Callable[[bytes], bytes]) -> None:
    """Register a change of the first item's line, with the digest of the new bytes in it and all other digests right."""

    def change(folder: Path) -> None:
        lines = store.read_lines(folder / store.ITEMS)
        written = store.write_lines(folder / store.ITEMS, [make(lines[0]), *lines[1:]])
        raw = json.loads((folder / store.REPORT).read_bytes())
        raw["files"][store.ITEMS] = {"sha256": written.sha256, "lines": written.lines}
        raw["digest"] = store.digest(raw | {"digest": "0" * 64})
        (folder / store.REPORT).write_text(json.dumps(raw))

    ATTACKS[name] = Attack(code=code, change=change)


item_line("an_item_that_is_no_number", "number", lambda line: line.replace(b'"gold":', b'"gold":NaN,"x":', 1))
item_line("an_item_of_a_huge_integer", "number", lambda line: line.replace(b'"output_tokens":', b'"output_tokens":' + b"9" * 5000, 1))
item_line("an_item_ten_thousand_deep", "depth", lambda line: line.replace(b'"gold":', b'"x":' + b"[" * 10_000 + b"]" * 10_000 + b',"gold":', 1))
item_line("an_item_with_a_key_twice", "duplicate-key", lambda line: line.replace(b'"gold":', b'"gold":0,"gold":', 1))
item_line("an_item_with_an_unknown_field", "schema", lambda line: line.replace(b'"gold":', b'"rank":1,"gold":', 1))
item_line("an_item_with_spaces", "item-canonical", lambda line: line.replace(b'"gold":', b'"gold": ', 1))
item_line("an_item_with_a_float_written_longer", "item-canonical", lambda line: line.replace(b'"item":', b'"item":', 1).replace(b'"acc":1', b'"acc":1.0').replace(
    b'"acc":0', b'"acc":0.0'))
item_line("an_item_that_is_none", "schema", lambda _: b"[]")
item_line("an_item_in_latin_1", "encoding", lambda line: line.replace(b"piqa", b"piq\xe9", 1))
item_line("an_item_with_another_digest", "item-digest", lambda line: line.replace(b'"digest":"', b'"digest":"0', 1)[:0] + line.replace(
    line[line.index(b'"digest":"'):line.index(b'"digest":"') + 27], b'"digest":"0000000000000000"', 1))


def trace_line(name: str, make: Callable[[list[bytes]], list[bytes]]) -> None:
    """Register a change of the trace's lines, with all digests right."""

    def change(folder: Path) -> None:
        written = store.write_lines(folder / store.TRACE, make(store.read_lines(folder / store.TRACE)))
        raw = json.loads((folder / store.REPORT).read_bytes())
        raw["files"][store.TRACE] = {"sha256": written.sha256, "lines": written.lines}
        raw["digest"] = store.digest(raw | {"digest": "0" * 64})
        (folder / store.REPORT).write_text(json.dumps(raw))

    ATTACKS[name] = Attack(code="trace", change=change)


trace_line("a_trace_without_its_header", lambda lines: lines[1:])
trace_line("a_row_that_is_no_number", lambda lines: [lines[0], b"trial-0,nan,,,,,,,,,", *lines[1:]])
trace_line("a_row_with_a_column_more", lambda lines: [lines[0], lines[1] + b",1", *lines[2:]])
trace_line("an_empty_trace", lambda _: [])


# --- kinds, names and places ------------------------------------------------------------------------------------------


@attack("symlink")
def a_report_that_is_a_link(folder: Path) -> None:
    outside = folder.parents[4] / "outside.json"
    shutil.move(folder / store.REPORT, outside)
    (folder / store.REPORT).symlink_to(outside)


@attack("symlink")
def items_that_are_a_device(folder: Path) -> None:
    (folder / store.ITEMS).unlink()
    (folder / store.ITEMS).symlink_to("/dev/zero")


@attack("symlink")
def a_folder_that_is_a_link(folder: Path) -> None:
    (folder.parent / "20260301t000000z-00000000").symlink_to(folder)


@attack("file-kind")
def a_report_that_may_be_executed(folder: Path) -> None:
    (folder / store.REPORT).chmod(0o755)


@attack("file-kind")
def items_that_are_a_pipe(folder: Path) -> None:
    (folder / store.ITEMS).unlink()
    os.mkfifo(folder / store.ITEMS)


@attack("stray-file")
def a_yaml_file_beside_the_report(folder: Path) -> None:
    (folder / "report.yaml").write_text("a: &a [*a]\n")


@attack("stray-file")
def pickled_weights_beside_the_report(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


@attack("stray-file")
def a_page_beside_the_entries(folder: Path) -> None:
    (folder.parent / "index.html").write_text("<script>alert(1)</script>")


@attack("name")
def a_hidden_file(folder: Path) -> None:
    (folder / ".gitattributes").write_text("* -text")


@attack("name")
def a_name_with_two_points(folder: Path) -> None:
    folder.rename(folder.with_name("a..b"))


@attack("name")
def a_name_that_runs_backwards(folder: Path) -> None:
    (folder / "report\u202enosj.").write_text("{}")


@attack("name")
def a_name_with_a_line_s_end(folder: Path) -> None:
    folder.parent.rename(folder.parent.with_name("bf16\n"))


@attack("case-twin")
def a_folder_that_differs_in_case(folder: Path) -> None:
    shutil.copytree(folder.parent, folder.parent.with_name("BF16"))


@attack("case-twin")
def a_file_that_differs_in_case(folder: Path) -> None:
    shutil.copy(folder / store.REPORT, folder / "Report.json")


@attack("count")
def a_folder_inside_an_entry(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "report.json").write_text("{}")


@attack("place")
def an_entry_under_other_hardware(folder: Path) -> None:
    target = folder.parents[2].with_name("nvidia-t4-16gb") / folder.relative_to(folder.parents[2])
    target.parent.mkdir(parents=True)
    folder.rename(target)


@attack("place")
def an_entry_under_another_recipe(folder: Path) -> None:
    folder.parent.rename(folder.parent.with_name("nf4"))


@attack("place")
def a_folder_named_by_another_digest(folder: Path) -> None:
    folder.rename(folder.with_name(folder.name[:-8] + "00000000"))


@attack("place")
def a_folder_named_by_another_time(folder: Path) -> None:
    folder.rename(folder.with_name("20270101t000000z" + folder.name[16:]))


# --- other entries ----------------------------------------------------------------------------------------------------


@attack("twin")
def the_same_entry_twice(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name(folder.name[:16] + "-11111111"))


@attack("copied")
def a_copied_entry_with_one_digit_changed(folder: Path) -> None:
    copied = folder.with_name("20260401t000000z-00000000")
    shutil.copytree(folder, copied)
    found = entry.read(copied)
    found.raw.update(submitter="mallory", created_utc="2026-04-01T00:00:00Z", session="1" * 64)
    found.window("trial-3")["cpu_s"] += 0.1
    entry.seal(found)


@attack("copied")
def copied_rows_under_windows_of_ones_own(folder: Path) -> None:
    copied = folder.with_name("20260401t000000z-00000000")
    shutil.copytree(folder, copied)
    found = entry.read(copied)
    found.raw.update(submitter="mallory", created_utc="2026-04-01T00:00:00Z", session="1" * 64)
    for trial in found.raw["trials"]:
        trial["window"]["duration_s"] += 0.01
        trial["window"]["wall_s"] += 0.01
        trial["window"]["cpu_s"] += 0.02
    entry.seal(found)


@attack("reproduces")
def a_reproduction_by_oneself(folder: Path) -> None:
    digest = json.loads((folder / store.REPORT).read_bytes())["digest"]
    copied = folder.with_name("20260401t000000z-00000000")
    shutil.copytree(folder, copied)
    found = entry.read(copied)
    found.raw.update(reproduces=digest, created_utc="2026-04-01T00:00:00Z")
    entry.seal(found)


@attack("replaces")
def a_correction_of_somebody_else_s_entry(folder: Path) -> None:
    digest = json.loads((folder / store.REPORT).read_bytes())["digest"]
    copied = folder.with_name("20260401t000000z-00000000")
    shutil.copytree(folder, copied)
    found = entry.read(copied)
    found.raw.update(replaces=digest, submitter="mallory", created_utc="2026-04-01T00:00:00Z")
    entry.seal(found)


def _withdrawal(folder: Path, **changed: object) -> None:
    digest = json.loads((folder / store.REPORT).read_bytes())["digest"]
    about = {"format": "jouleboard-withdrawal", "digest": digest, "withdrawn_utc": "2026-04-01T00:00:00Z",
             "reason": "The board was not alone in its machine."}
    folder.with_name(f"{folder.name}.withdrawn.json").write_text(json.dumps(about | changed))


@attack("withdrawal")
def a_withdrawal_of_another_entry(folder: Path) -> None:
    _withdrawal(folder, digest="0" * 64)


@attack("text-markup")
def a_withdrawal_with_script(folder: Path) -> None:
    _withdrawal(folder, reason="Because <script>alert(1)</script> of it.")


@attack("schema")
def a_withdrawal_without_a_reason(folder: Path) -> None:
    _withdrawal(folder, reason="")


@attack("json")
def a_withdrawal_in_yaml(folder: Path) -> None:
    folder.with_name(f"{folder.name}.withdrawn.json").write_text("reason: because\n")
