from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jouleboard import scratch


def test_a_scratch_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    with scratch.folder(tmp_path, ".fetch-") as made:
        (made / "half").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_what_was_moved_out_stays(tmp_path: Path) -> None:
    with scratch.folder(tmp_path, ".convert-") as made:
        made.replace(tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_that_of_a_living_process_stays_and_that_of_a_killed_one_is_swept(tmp_path: Path) -> None:
    program = ("import sys, time; from pathlib import Path; from jouleboard import scratch\n"
               "with scratch.folder(Path(sys.argv[1]), '.fetch-') as made:\n"
               "    (made / 'half').write_bytes(b'x'); print(made, flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    theirs = Path(other.stdout.readline().strip())
    with scratch.folder(tmp_path, ".fetch-"):
        assert (theirs / "half").is_file()
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert theirs.is_dir()
    (tmp_path / ".fetched").mkdir()
    with scratch.folder(tmp_path, ".fetch-"):
        assert not theirs.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".fetched"]


class Elsewhere:
    """Stands in for a file system that takes a lock within one machine only, or none at all."""

    def __init__(self, code: int | None = None) -> None:
        self.code = code

    def flock(self, _handle: object, _how: int) -> None:
        if self.code is not None:
            raise OSError(self.code, os.strerror(self.code))


def grow_old(folder: Path, hours: float) -> None:
    then_s = time.time() - 3600 * hours
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then_s, then_s))


def another_machines(parent: Path, monkeypatch: pytest.MonkeyPatch, prefix: str = ".convert-") -> Path:
    """Leave a folder as another machine does that is at work in it now: its lock does not reach here."""
    with monkeypatch.context() as patch:
        patch.setattr(scratch.socket, "gethostname", lambda: "node7")
        made = Path(tempfile.mkdtemp(dir=parent, prefix=f"{prefix}{scratch.machine()}-"))
    (made / "half").write_bytes(b"x")
    return made


def test_that_of_another_machine_stays_though_its_lock_does_not_reach_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = another_machines(tmp_path, monkeypatch)
    grow_old(theirs, 11)
    with scratch.folder(tmp_path, ".convert-"):
        assert (theirs / "half").is_file()


def test_that_of_another_machine_goes_after_hours_without_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, older = another_machines(tmp_path, monkeypatch), tmp_path / ".convert-abcd1234"
    older.mkdir()
    grow_old(silent, 13)
    grow_old(older, 13)
    writing = another_machines(tmp_path, monkeypatch)
    grow_old(writing, 13)
    (writing / "half").write_bytes(b"xy")
    with scratch.folder(tmp_path, ".convert-"):
        assert not silent.exists()
        assert not older.exists()
        assert (writing / "half").is_file()


def test_what_is_locked_stays_however_old_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = another_machines(tmp_path, monkeypatch)
    grow_old(theirs, 100)
    handle = os.open(theirs, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        scratch.sweep(tmp_path, ".convert-")
        assert (theirs / "half").is_file()
    finally:
        os.close(handle)
    scratch.sweep(tmp_path, ".convert-")
    assert not theirs.exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_where_there_are_no_locks_age_is_what_counts(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch.fcntl, "flock", Elsewhere(code).flock)
    with scratch.folder(tmp_path, ".fetch-") as mine:
        (mine / "half").write_bytes(b"x")
        scratch.sweep(tmp_path, ".fetch-")
        assert (mine / "half").is_file()
        grow_old(mine, 13)
        scratch.sweep(tmp_path, ".fetch-")
        assert not mine.exists()


def test_another_boot_of_this_machine_is_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = scratch.machine()
    assert now == scratch.machine()
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(scratch, "BOOT_ID", tmp_path / "boot_id")
    assert scratch.machine() != now
    monkeypatch.setattr(scratch, "BOOT_ID", tmp_path / "none")
    assert scratch.machine() not in {"", now}
