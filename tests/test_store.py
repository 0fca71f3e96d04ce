"""Files are written whole or not at all, with the same bytes each time, and anything else is refused with its reason."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import itertools
import json
import math
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jouleboard import folders, storage, store, traces
from jouleboard.errors import DataFileError, StorageError
from jouleboard.records import FORMAT_VERSION, Item
from tests import factory

SAFE = 2**53 - 1
OLD = b"what was there before"


@pytest.fixture(scope="module")
def report_json() -> dict[str, Any]:
    """A report as plain JSON values."""
    return msgspec.to_builtins(factory.report(factory.items(4), spec=factory.SPECS[0]))


def read_changed(folder: Path, value: object) -> Any:
    """Write a JSON value as a report and read it."""
    path = folder / store.REPORT
    path.write_text(json.dumps(value))
    return store.read_report(path)


def refused(folder: Path, data: bytes) -> DataFileError:
    """Write bytes as a report, and return the error that reading them gives."""
    path = folder / store.REPORT
    path.write_bytes(data)
    with pytest.raises(DataFileError) as caught:
        store.read_report(path)
    assert caught.value.file == str(path)
    assert caught.value.remedy
    return caught.value


# --- writing ----------------------------------------------------------------------------------------------------------


FAULTS = ("replace", "rename", "fsync", "mkdir", "open", "chmod")
"""What `store` does on a disk, by the functions of `os` that do it."""


class Disk:
    """Fails at the Nth operation, and at all that come after it where the fault stays."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, *, stays: bool = False, code: int = errno.ENOSPC) -> None:
        self.calls = 0
        for name in FAULTS:
            patch.setattr(os, name, self._failing(getattr(os, name)))
        self._number, self._stays, self._code = number, stays, code

    @property
    def failed(self) -> bool:
        return self.calls >= self._number

    def _failing(self, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._number or (self._stays and self.failed):
                raise OSError(self._code, os.strerror(self._code), args[0] if isinstance(args[0], (str, os.PathLike)) else None)
            return real(*args, **kwargs)

        return call


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES, errno.EDQUOT, errno.ENOENT])
@pytest.mark.parametrize("stays", [False, True])
def test_wherever_a_write_fails_the_file_is_the_old_one_or_the_new_one(
    code: int, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: FBT001 - a parameter of the test
) -> None:
    path = tmp_path / "deep" / "file"
    for number in itertools.count(1):
        store.write_atomic(path, OLD)
        with monkeypatch.context() as patch:
            disk = Disk(patch, number, stays=stays, code=code)
            try:
                store.write_atomic(path, b"new")
                error = None
            except StorageError as caught:
                error = caught
        if not disk.failed:
            break
        if error is None:
            # A folder that is there need not be made.
            assert path.read_bytes() == b"new"
            continue
        assert error.file == str(path)
        assert os.strerror(code) in error.problem
        assert "same command again" in (error.remedy or "")
        assert (f"free at least 3 bytes on the disk of {path.parent}" in (error.remedy or "")) is (code in {errno.ENOSPC, errno.EDQUOT})
        left = {name: data for name, data in tree(tmp_path).items() if not name.endswith(store.TEMPORARY)}
        assert left in ({"deep/file": OLD}, {"deep/file": b"new"})
        if not stays:
            assert set(tree(tmp_path)) == {"deep/file"}, "a temporary file was left where it could be removed"
        store.sweep(tmp_path)
        assert set(tree(tmp_path)) == {"deep/file"}
    assert number > 5
    assert path.read_bytes() == b"new"


def entry_files(folder: Path, text: bytes) -> None:
    """Write an entry as a run does: beside its place, then into it."""
    folders.recover(folder)
    new = folder.with_name(f".{folder.name}.new")
    store.write_lines(new / store.ITEMS, [text])
    store.write_atomic(new / store.REPORT, text)
    folders.replace(new, folder)


@pytest.mark.parametrize("stays", [False, True])
def test_wherever_an_entry_fails_to_be_written_the_old_or_the_new_one_is_there_whole(
    stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: FBT001 - a parameter of the test
) -> None:
    target = tmp_path / "model" / "nf4"
    entry_files(tmp_path / "new", b"new")
    entry_files(tmp_path / "old", b"old")
    old, new = tree(tmp_path / "old"), tree(tmp_path / "new")
    set_aside = 0
    for number in itertools.count(1):
        entry_files(target, b"old")
        with monkeypatch.context() as patch:
            disk = Disk(patch, number, stays=stays)
            with contextlib.suppress(StorageError):
                entry_files(target, b"new")
        if not disk.failed:
            break
        if target.exists():
            assert tree(target) in (old, new)
        else:
            # Both renames failed: only then it is set aside, and whoever comes next brings it back.
            assert stays
            set_aside += 1
        folders.recover(target)
        assert tree(target) in (old, new)
        assert [path.name for path in target.parent.iterdir()] == ["nf4"]
        entry_files(target, b"new")
        assert tree(target) == new
    assert number > 15
    assert set_aside == (1 if stays else 0)


def test_a_folder_that_was_set_aside_is_not_lost_by_the_next_one_that_is_written(tmp_path: Path) -> None:
    target = tmp_path / "nf4"
    entry_files(target, b"old")
    target.rename(tmp_path / ".nf4.old")
    new = tmp_path / ".nf4.new"
    with pytest.raises(StorageError, match="cannot be written"):
        folders.replace(new, target)
    assert (target / store.REPORT).read_bytes() == b"old"


# --- real disks -------------------------------------------------------------------------------------------------------


def mount(*words: str) -> None:
    """Mount, or skip where that is not permitted."""
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()[:100]}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_with_what_to_free_and_when_it_is_freed_the_write_succeeds(small_disk: Path) -> None:
    path = small_disk / "runs" / "session.json"
    store.write_atomic(path, OLD)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    with pytest.raises(StorageError) as caught:
        store.write_atomic(path, b"x" * 8000)
    assert str(caught.value) == (
        f"{path}: cannot be written (No space left on device)\n"
        f"  remedy: free at least 8000 bytes on the disk of {path.parent} and run the same command again: it goes on")
    assert tree(path.parent) == {"session.json": OLD}
    ballast.unlink()
    store.write_atomic(path, b"x" * 8000)
    assert path.read_bytes() == b"x" * 8000


def test_too_little_room_is_said_before_anything_is_written(small_disk: Path) -> None:
    storage.require(small_disk / "run", need_bytes=30_000, what="the run folder")
    with pytest.raises(StorageError, match=r"the run folder: 0 MB are free, about 5 MB are needed") as caught:
        storage.require(small_disk / "run", need_bytes=5_000_000, what="the run folder")
    assert "free 5 MB on the disk of" in (caught.value.remedy or "")
    assert list((small_disk / "run").iterdir()) == []


def test_a_read_only_folder_is_said_and_what_it_holds_stays(small_disk: Path) -> None:
    path = small_disk / "run" / "file"
    store.write_atomic(path, OLD)
    entry_files(small_disk / "run" / "nf4", b"old")
    mount("--bind", str(small_disk), str(small_disk))
    try:
        mount("-o", "remount,ro,bind", str(small_disk))
        with pytest.raises(StorageError, match="Read-only file system") as caught:
            store.write_atomic(path, b"new")
        assert "for writing" in (caught.value.remedy or "")
        with pytest.raises(StorageError, match="Read-only file system"):
            storage.require(small_disk / "run", need_bytes=0, what="the run folder")
        with pytest.raises(StorageError, match="Read-only file system"):
            entry_files(small_disk / "run" / "nf4", b"new")
    finally:
        subprocess.run(["umount", "--lazy", str(small_disk)], check=True)
    assert path.read_bytes() == OLD
    assert (small_disk / "run" / "nf4" / store.REPORT).read_bytes() == b"old"


@pytest.mark.parametrize(("error", "remedy"), [
    (Exception("No space left on device (os error 28)"), "free some space on the disk of"),
    (RuntimeError("SafetensorError: I/O error: Read-only file system (os error 30)"), "for writing"),
    (OSError(errno.ENOSPC, "x"), "free some space"), (ValueError("something else"), None), (OSError("no number"), None),
])
def test_libraries_say_in_their_own_words_that_a_disk_is_full(error: Exception, remedy: str | None, tmp_path: Path) -> None:
    found = storage.told(error, tmp_path / "file")
    assert (found is None) is (remedy is None)
    if found is not None and remedy is not None:
        assert remedy in (found.remedy or "")


def test_only_errors_of_our_own_folders_are_errors_of_storage(tmp_path: Path) -> None:
    ours, other = tmp_path / "run", tmp_path / "other"
    with pytest.raises(StorageError, match="No such file") as caught, storage.within(ours):
        (ours / "gone").read_bytes()
    assert "bring the folder" in (caught.value.remedy or "")
    with pytest.raises(FileNotFoundError), storage.within(ours):
        (other / "gone").read_bytes()
    with pytest.raises(BrokenPipeError), storage.within(ours):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    with pytest.raises(StorageError), storage.within(ours):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_ctrl_c_inside_a_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_handle: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    store.write_atomic(path, OLD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.write_atomic(path, b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", OLD)]


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file, then rename, then fsync of the folder."""
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real_fsync(handle)

    def replace(old: Any, new: Any, **kwargs: Any) -> None:
        calls.append("rename")
        real_replace(old, new, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    store.write_atomic(tmp_path / "deep" / "file", b"new")
    assert calls == ["file", "rename", "folder"]


def test_what_is_written_can_be_read_by_everybody(tmp_path: Path) -> None:
    store.write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_the_same_records_give_the_same_bytes_at_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = factory.items(5)
    one, two = tmp_path / "one", tmp_path / "two"
    factory.write_entry(one, factory.report(made), made)
    monkeypatch.setattr("time.time", lambda: 2e9)
    factory.write_entry(two, factory.report(made), made)
    for name in (store.REPORT, store.ITEMS, store.TRACE):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_the_digest_of_lines_is_that_of_the_uncompressed_content(tmp_path: Path) -> None:
    found = store.write_lines(tmp_path / "x.gz", [b"one", b"", b"three"])
    assert found.lines == 3
    assert found.sha256 == hashlib.sha256(b"one\n\nthree\n").hexdigest()
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == b"one\n\nthree\n"


def test_a_report_that_is_written_reads_back_equal_and_sealed(tmp_path: Path) -> None:
    sealed = store.write_report(tmp_path, factory.report(factory.items(4), digest="0" * 64))
    assert store.read_report(tmp_path / store.REPORT) == sealed
    assert sealed.digest == store.report_digest(sealed) != "0" * 64


def test_a_report_with_a_number_that_json_does_not_have_is_not_written(tmp_path: Path) -> None:
    made = factory.report(factory.items(4))
    with pytest.raises(ValueError, match="nan"):
        store.write_report(tmp_path, msgspec.structs.replace(made, model_source={"x": math.nan}))
    assert not list(tmp_path.iterdir())


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    assert store.digest({"a": 1, "b": [2.0, None]}) == store.digest({"b": [2.0, None], "a": 1})
    assert store.digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


@pytest.mark.parametrize("field", [name for name in Item.__struct_fields__ if name != "digest"])
def test_an_item_digest_covers_every_other_field(field: str) -> None:
    made = factory.item()
    other: dict[str, Any] = {
        "task": "other", "item": 1, "doc_sha256": "0" * 64, "prompt_sha256": "0" * 64, "gold": None, "text_bytes": 7,
        "loglikelihoods": (-1.0,), "choice_chars": (1,), "scores": {}, "prompt_tokens": 0, "output_tokens": 0,
        "cluster": "0" * 16, "correct": (1,), "response": "yes", "response_sha256": "0" * 64, "extracted": "yes",
        "targets": ("yes",), "stopped": "stop",
    }
    assert store.item_digest(msgspec.structs.replace(made, **{field: other[field]})) != made.digest
    assert store.item_digest(msgspec.structs.replace(made, digest="f" * 16)) == made.digest


# --- reading a report -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b" \n\t"])
def test_an_empty_report_is_called_empty(data: bytes, tmp_path: Path) -> None:
    assert "empty" in refused(tmp_path, data).problem


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_report_that_was_cut_short_is_refused(share: float, report_json: dict[str, Any], tmp_path: Path) -> None:
    data = json.dumps(report_json).encode()
    assert "JSON" in refused(tmp_path, data[: int(len(data) * share)]).problem


@pytest.mark.parametrize("data", [b"{}", b"[]", b"null", b"7", b'"jouleboard-report"', b'{"format": "other"}',
                                  b'{"format": ["jouleboard-report"]}'])
def test_foreign_json_is_called_no_jouleboard_report(data: bytes, tmp_path: Path) -> None:
    error = refused(tmp_path, data)
    assert error.field == "format"
    assert "not a Jouleboard report" in error.problem


@pytest.mark.parametrize("version", [0, -1, 3, 99, "1", "2", 1.0, 2.0, True, None, [1]])
def test_another_version_is_named(version: object, report_json: dict[str, Any], tmp_path: Path) -> None:
    error = refused(tmp_path, json.dumps(report_json | {"format_version": version}).encode())
    assert error.field == "format_version"
    assert repr(version) in error.problem


def test_a_key_that_occurs_twice_is_refused_at_any_depth(report_json: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(report_json)
    twice = text.replace('"duration_s":', '"duration_s": 1.0, "duration_s":', 1)
    assert twice != text
    assert "'duration_s' occurs twice" in refused(tmp_path, twice.encode()).problem


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused(
    constant: str, report_json: dict[str, Any], tmp_path: Path
) -> None:
    changed = json.dumps(report_json | {"peak_memory_bytes": "@"}).replace('"@"', constant)
    assert constant in refused(tmp_path, changed.encode()).problem


@pytest.mark.parametrize("number", ["1e400", "-1e999"])
def test_a_number_beyond_floating_point_is_refused(number: str, report_json: dict[str, Any], tmp_path: Path) -> None:
    changed = json.loads(json.dumps(report_json))
    changed["tasks"][0]["chance"]["value"] = "@"
    error = refused(tmp_path, json.dumps(changed).replace('"@"', number).encode())
    assert (error.code, "beyond every float" in error.problem) == ("number", True)


@pytest.mark.parametrize("number", [str(SAFE + 1), "9" * 30, "9" * 5000])
@pytest.mark.parametrize("place", ["peak_memory_bytes", "model_source"])
def test_an_integer_that_json_cannot_hold_exactly_is_refused(
    place: str, number: str, report_json: dict[str, Any], tmp_path: Path
) -> None:
    value: object = {"size": "@"} if place == "model_source" else "@"
    refused(tmp_path, json.dumps(report_json | {place: value}).replace('"@"', number).encode())


@pytest.mark.parametrize("depth", [400, 900, 5000, 200_000])
def test_deep_nesting_is_refused_without_a_traceback(
    depth: int, report_json: dict[str, Any], tmp_path: Path
) -> None:
    text = json.dumps(report_json | {"model_source": {"a": "@"}}).replace('"@"', "[" * depth + "]" * depth)
    # A depth that can be read must also be one that can be digested.
    with contextlib.suppress(DataFileError):
        (tmp_path / store.REPORT).write_text(text)
        store.report_digest(store.read_report(tmp_path / store.REPORT))


def test_half_a_surrogate_pair_is_refused(report_json: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(report_json | {"model_title": "@"}).replace("@", "\\ud800")
    refused(tmp_path, text.encode())


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b'{"format": "\xe9"}'])
def test_what_is_not_utf_8_is_refused(data: bytes, tmp_path: Path) -> None:
    refused(tmp_path, data)


def test_utf_16_is_refused_although_python_reads_it(report_json: dict[str, Any], tmp_path: Path) -> None:
    refused(tmp_path, json.dumps(report_json).encode("utf-16"))


@pytest.mark.parametrize(("where", "value", "field"), [
    (("colour",), "red", "colour"),
    (("engine", "colour"), "red", "engine"),
    (("model",), 7, "model"),
    (("model",), "../up", "model"),
    (("trials", 0, "window", "duration_s"), 0, "trials[0].window.duration_s"),
    (("trials", 0, "window", "energy", "method"), "guess", "trials[0].window.energy.method"),
    (("tasks", 0, "items_used"), True, "tasks[0].items_used"),
    (("tasks", 0, "prompt_tokens"), -1, "tasks[0].prompt_tokens"),
    (("status",), "perfect", "status"),
    (("digest",), "abc", "digest"),
])
def test_a_wrong_field_is_named(
    where: tuple[Any, ...], value: object, field: str, report_json: dict[str, Any], tmp_path: Path
) -> None:
    changed = json.loads(json.dumps(report_json))
    place = changed
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    error = refused(tmp_path, json.dumps(changed).encode())
    assert field in f"{error.field} {error.problem}"


def test_a_wrong_key_of_a_mapping_is_named_with_its_place(report_json: dict[str, Any], tmp_path: Path) -> None:
    changed = json.loads(json.dumps(report_json))
    changed["tasks"][0]["scores"]["luck"] = None
    error = refused(tmp_path, json.dumps(changed).encode())
    assert error.field == "tasks[0].scores"
    assert "luck" in error.problem
    assert "`" not in (error.field or "")


@pytest.mark.parametrize("field", ["status", "trials", "digest", "failure"])
def test_a_missing_field_is_named(field: str, report_json: dict[str, Any], tmp_path: Path) -> None:
    changed = {key: value for key, value in report_json.items() if key != field}
    assert field in refused(tmp_path, json.dumps(changed).encode()).problem


def test_a_report_larger_than_the_limit_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_REPORT_BYTES", 10)
    monkeypatch.setattr(Path, "read_bytes", lambda _self: pytest.fail("it was read"))
    assert "more than the 10" in refused(tmp_path, b"x" * 11).problem


def test_a_folder_in_the_place_of_a_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / store.REPORT).mkdir()
    with pytest.raises(DataFileError, match="is no plain file"):
        store.read_report(tmp_path / store.REPORT)


def test_every_report_is_found_but_not_those_in_hidden_folders(tmp_path: Path) -> None:
    for name in ("b", "a/deep", ".work", "a/.old"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / store.REPORT).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in store.find_reports(tmp_path)]
    assert found == ["a/deep/report.json", "b/report.json"]


# --- a report of an older format --------------------------------------------------------------------------------------

FORMAT_1 = Path(__file__).parent / "data" / "format-1" / "int8-weights"


@pytest.fixture
def first() -> dict[str, Any]:
    """A report of format 1, as it was written then, in plain JSON values."""
    found: dict[str, Any] = json.loads((FORMAT_1 / store.REPORT).read_bytes())
    assert found["format_version"] == 1
    return found


def test_a_report_of_format_1_is_read_as_one_of_today(first: dict[str, Any]) -> None:
    report = store.read_report(FORMAT_1 / store.REPORT)
    assert report.format_version == FORMAT_VERSION == 2
    assert (report.profile, report.energy_plan, report.live, report.skipped_probes, report.canary) == (
        None, None, None, (), ())
    assert [trial.window.name for trial in report.trials] == ["trial-1", "trial-6", "trial-11"]
    assert [trial.loops for trial in report.trials] == [1, 1, 1]
    assert [probe.window.name for probe in report.probes] == ["probe-0", "probe-1", "probe-2", "probe-3"]
    assert [(one.when, one.context, one.window.name) for one in report.idle] == [("before", True, "idle-0")]
    # What was measured is what was measured.
    assert [trial.window.cpu_s for trial in report.trials] == [one["window"]["cpu_s"] for one in first["trials"]]
    assert msgspec.to_builtins(report.tasks) == tuple(first["tasks"])
    assert msgspec.to_builtins(report.files) == first["files"]
    # It is sealed anew, and can be written and read as one of today.
    assert report.digest == store.report_digest(report) != first["digest"]


def test_an_upgraded_report_is_written_and_read_as_one_of_today(tmp_path: Path) -> None:
    report = store.read_report(FORMAT_1 / store.REPORT)
    assert store.write_report(tmp_path, report) == report
    assert store.read_report(tmp_path / store.REPORT) == report


def test_two_idle_windows_of_format_1_are_before_and_after(first: dict[str, Any], tmp_path: Path) -> None:
    report = read_changed(tmp_path, first | {"idle": first["idle"] * 2})
    assert [(one.when, one.window.name) for one in report.idle] == [("before", "idle-0"), ("after", "idle-1")]


def test_a_report_of_format_1_that_was_changed_keeps_a_digest_that_is_wrong(
    first: dict[str, Any], tmp_path: Path
) -> None:
    for change in ({"created_utc": "2031-01-01T00:00:00Z"}, {"peak_memory_bytes": None}, {"digest": "0" * 64}):
        report = read_changed(tmp_path, first | change)
        assert report.digest == (first | change)["digest"]
        assert report.digest != store.report_digest(report)


def test_a_void_trial_of_format_1_without_joules_says_so_of_its_window(first: dict[str, Any], tmp_path: Path) -> None:
    trial = first["trials"][0]
    energy = trial["window"]["energy"] | {"estimate_j": None}
    trial |= {"void": "the device was lost", "window": trial["window"] | {"energy": energy}}
    report = read_changed(tmp_path, first)
    assert [one.window.void for one in report.trials] == ["the device was lost", None, None]


@pytest.mark.parametrize(("where", "value", "field"), [
    (("profile",), None, "profile"), (("energy_plan",), None, "energy_plan"), (("canary",), [], "canary"),
    (("colour",), "red", "colour"), (("trials", 0, "window", "name"), "trial-9", "trials[0].window.name"),
    (("trials", 0, "window", "void"), None, "trials[0].window.void"),
    (("idle", 0, "name"), "x", "idle[0].name"), (("probes", 1, "window", "host_j"), {}, "probes[1].window.host_j"),
    (("trials", 0, "order"), -1, "trials[0].order"), (("trials", 0, "order"), "../x", "trials[0]"),
    (("trials", 0, "window"), None, "trials[0].window"), (("trials", 0), 7, "trials[0]"), (("trials",), {}, "trials"),
    (("trials",), None, "trials"), (("idle",), [3], "idle[0]"), (("idle",), "x", "idle"),
    (("probes", 0, "window", "duration_s"), 0, "probes[0].window.duration_s"), (("digest",), None, "digest"),
    (("trials", 0, "window", "energy"), None, "trials[0].window.energy"), (("gates",), [{}], "gates[0]"),
])
def test_a_wrong_field_of_format_1_is_named(
    where: tuple[Any, ...], value: object, field: str, first: dict[str, Any], tmp_path: Path
) -> None:
    place: Any = first
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    error = refused(tmp_path, json.dumps(first).encode())
    assert field in f"{error.field} {error.problem}"


@pytest.mark.parametrize("name", ["trials", "status", "idle", "digest", "files"])
def test_a_missing_field_of_format_1_is_named(name: str, first: dict[str, Any], tmp_path: Path) -> None:
    del first[name]
    error = refused(tmp_path, json.dumps(first).encode())
    assert name in f"{error.field} {error.problem}"


@pytest.mark.parametrize("text", ['"\\ud800"', "1e400", "9" * 30, "NaN", "[" * 300 + "]" * 300])
def test_what_has_no_digest_is_refused_in_format_1_too(text: str, first: dict[str, Any], tmp_path: Path) -> None:
    data = json.dumps(first | {"model_source": {"a": "@"}}).replace('"@"', text)
    with contextlib.suppress(DataFileError):
        (tmp_path / store.REPORT).write_text(data)
        store.report_digest(store.read_report(tmp_path / store.REPORT))
        assert text.startswith("[")


def test_a_newer_format_is_refused_with_what_to_do(report_json: dict[str, Any], tmp_path: Path) -> None:
    newer = refused(tmp_path, json.dumps(report_json | {"format_version": FORMAT_VERSION + 1}).encode())
    assert "install a newer Jouleboard" in (newer.remedy or "")
    assert f"versions 1 to {FORMAT_VERSION}" in newer.problem
    older = refused(tmp_path, json.dumps(report_json | {"format_version": 0}).encode())
    assert "newer" not in (older.remedy or "")


def test_a_trace_of_format_1_is_read_by_the_orders_of_its_trials() -> None:
    rows = traces.decode(store.read_lines(FORMAT_1 / store.TRACE))
    assert {row.window for row in rows} == {"trial-1", "trial-6", "trial-11"}
    assert rows[1] == traces.Sample(window="trial-1", elapsed_s=0.5, cpu_s=0.97)
    assert traces.decode([traces.FIRST_HEADER, b"7,1.5,2.25,31.5"]) == [
        traces.Sample(window="trial-7", elapsed_s=1.5, cpu_s=2.25, power_w=31.5)]


@pytest.mark.parametrize("line", [b"", b"7", b"7,1.5,2.25", b"x,1.5,2.25,", b"-1,1.5,2.25,", b"7,1.5,2.25,,", b"7,,2.25,",
                                  b",1.5,2.25,", b"7,inf,2.25,", b"7;1.5;2.25;", b"\xb2,1.5,2.25,"])
def test_a_line_that_is_no_sample_of_format_1_is_named(line: bytes) -> None:
    with pytest.raises(DataFileError) as caught:
        traces.decode([traces.FIRST_HEADER, b"7,0,0,", line])
    assert caught.value.field == "line 3"


# --- reading raw files ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a genuine items file."""
    folder = tmp_path_factory.mktemp("packed")
    store.write_items(folder, factory.items(30))
    return (folder / store.ITEMS).read_bytes()


def read_packed(folder: Path, data: bytes) -> list[Item]:
    """Read bytes as an items file."""
    (folder / store.ITEMS).write_bytes(data)
    return store.read_items(folder)


def test_a_missing_items_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="missing") as caught:
        store.read_items(tmp_path)
    assert caught.value.file == str(tmp_path / store.ITEMS)


@pytest.mark.parametrize("share", [0.0005, 0.1, 0.5, 0.99])
def test_a_gzip_file_that_was_cut_short_is_refused(share: float, packed: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="not a whole gzip file"):
        read_packed(tmp_path, packed[: 1 + int(len(packed) * share)])


@pytest.mark.parametrize("garbage", [b"not gzip at all", b"\x1f\x8b", b"\x1f\x8b\x08\x00" + b"\xff" * 60, b"{}"])
def test_garbage_in_the_place_of_gzip_is_refused(garbage: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="not a whole gzip file"):
        read_packed(tmp_path, garbage)


def test_no_changed_byte_of_a_gzip_file_gives_other_items_or_a_traceback(packed: bytes, tmp_path: Path) -> None:
    genuine = read_packed(tmp_path, packed)
    for place in range(0, len(packed), 7):
        changed = bytearray(packed)
        changed[place] ^= 0x20
        # Some header bytes (time, system) mean nothing; then the items are the same.
        with contextlib.suppress(DataFileError):
            assert read_packed(tmp_path, bytes(changed)) == genuine, place


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_RAW_BYTES", 1000)
    bomb = gzip.compress(b"\n" * 1_000_000)
    with pytest.raises(DataFileError, match="more than 1000 bytes after decompression"):
        read_packed(tmp_path, bomb)
    assert store.read_lines(_written(tmp_path / "just.gz", gzip.compress(b"\n" * 1000))) == [b""] * 1000


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("change", "field"), [
    ({"colour": "red"}, "colour"), ({"item": -1}, "item"), ({"item": 1.5}, "item"), ({"gold": "0"}, "gold"),
    ({"item": SAFE + 1}, "item"), ({"prompt_tokens": 10**30}, "prompt_tokens"), ({"doc_sha256": "AB"}, "doc_sha256"),
    ({"scores": {"luck": 1.0}}, "scores"), ({"loglikelihoods": [None]}, "loglikelihoods"), ({"task": ".."}, "task"),
])
def test_a_wrong_item_is_named_by_line_and_field(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    made = factory.items(3)
    lines = [store.canonical(one) for one in made]
    lines[1] = json.dumps(msgspec.to_builtins(made[1]) | change).encode()
    store.write_lines(tmp_path / store.ITEMS, lines)
    with pytest.raises(DataFileError) as caught:
        store.read_items(tmp_path)
    assert (caught.value.field or "").startswith("line 2")
    assert field in f"{caught.value.field} {caught.value.problem}"


@pytest.mark.parametrize("line", [b"", b"{", b"null", b"\xff", b"[]", b'{"task":"a","task":"b"}', b"[" * 100_000])
def test_a_line_that_is_no_item_is_named(line: bytes, tmp_path: Path) -> None:
    store.write_lines(tmp_path / store.ITEMS, [store.canonical(factory.item()), line])
    with pytest.raises(DataFileError, match="line 2"):
        store.read_items(tmp_path)


# --- property ---------------------------------------------------------------------------------------------------------

counts = st.integers(0, SAFE)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
numbers = st.floats(allow_nan=False, allow_infinity=False)
items = st.builds(
    Item, task=st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,20}\Z"), item=counts, doc_sha256=hexes, prompt_sha256=hexes,
    gold=st.none() | counts, loglikelihoods=st.lists(numbers, max_size=5).map(tuple),
    choice_chars=st.lists(counts, max_size=5).map(tuple), text_bytes=st.none() | counts,
    scores=st.dictionaries(st.sampled_from(["acc", "acc_norm", "bits_per_byte"]), numbers), prompt_tokens=counts,
    output_tokens=counts, digest=st.text(max_size=20).filter(lambda text: text.isprintable()),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(items, max_size=4))
def test_items_written_read_and_written_again_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Item]
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _handle: None)  # the disk is not what is tested here
    sealed = [store.seal_item(one) for one in made]
    first = store.write_items(tmp_path, sealed)
    data = (tmp_path / store.ITEMS).read_bytes()
    read = store.read_items(tmp_path)
    assert [store.item_digest(one) for one in read] == [one.digest for one in sealed]
    assert store.write_items(tmp_path, read) == first
    assert (tmp_path / store.ITEMS).read_bytes() == data
